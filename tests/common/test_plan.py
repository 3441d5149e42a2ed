"""The plan: steps, time, what fits, the smallest change, and the recipes' own models on other hardware."""

from common import plan


def test_steps_tokens_and_epochs_are_those_that_run():
    assert plan.steps_of(510, 107_903, 8, 2.0, -1) == {"steps": 128, "tokens_per_step": 1686, "epochs": 2.0}
    assert plan.steps_of(510, 107_903, 8, 2.0, 32) == {"steps": 32, "tokens_per_step": 1686, "epochs": 0.5}
    assert plan.steps_of(3, 90, 8, 3.0, -1) == {"steps": 3, "tokens_per_step": 90, "epochs": 3.0}

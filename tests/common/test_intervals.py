"""Warmup and intervals are fitted to the steps there are, and every change is said."""

import pytest

from common import intervals
from common.refusal import Refusal


def test_the_original_run_of_86_steps_would_have_evaluated():
    """100 steps of warmup and evaluations every 200 steps: it reached neither its learning rate nor an evaluation."""
    found, said = intervals.fit(86, None, 200, 200)
    assert found == {"warmup_steps": 9, "eval_steps": 21, "save_steps": 21}
    assert said[0] == "warmup of 9 of 86 steps"
    assert said[1] == "EVAL_STEPS is 21 in place of 200, which 86 steps do not reach twice"
    assert "SAVE_STEPS is 21 in place of 200" in said[2]


@pytest.mark.parametrize(
    ("steps", "warmup", "evaluate", "save", "expected"),
    [
        (2000, None, 200, 200, (100, 200, 200)),  # long enough: nothing but the warmup is decided here
        (400, 40, 200, 200, (40, 200, 200)),
        (399, 40, 200, 200, (40, 99, 99)),
        (1000, 0, 100, 250, (0, 100, 250)),
        (1000, 0, 200, 10, (0, 200, 10)),  # whoever saves often fears to lose hours
        (1, 0, 200, 200, (0, 1, 1)),
        (3, None, 1, 1, (0, 1, 1)),
        (100, 0, None, 200, (0, None, 25)),  # nothing to evaluate: nothing is said of it
    ],
)
def test_what_fits_stays_and_what_does_not_becomes_a_quarter(steps, warmup, evaluate, save, expected):
    found, said = intervals.fit(steps, warmup, evaluate, save)
    assert tuple(found.values()) == expected
    changed = (evaluate, save) != expected[1:]
    assert bool([text for text in said if "in place of" in text]) == changed


@pytest.mark.parametrize(("steps", "warmup"), [(86, 100), (100, 100), (1, 1)])
def test_a_warmup_that_never_ends_is_refused(steps, warmup):
    with pytest.raises(Refusal, match=f"WARMUP_STEPS is {warmup}, and the run has {steps} steps, so LEARNING_RATE would never be reached"):
        intervals.fit(steps, warmup, 200, 200)

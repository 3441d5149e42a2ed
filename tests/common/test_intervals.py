"""Warmup and intervals are fitted to the steps there are, and every change is said."""

from types import SimpleNamespace

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


# Strategies


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("epoch", 48, "epoch", None), 'SAVE_STRATEGY is "epoch" and SAVE_STEPS is 48'),
        (("steps", None, "epoch", None), 'SAVE_STRATEGY is "steps" and EVAL_STRATEGY "epoch"'),
        (("epoch", None, "steps", 10), "make them equal, or set LOAD_BEST_MODEL_AT_END = False"),
        (("steps", 50, "steps", 30), "SAVE_STEPS = 50 is no multiple of EVAL_STEPS = 30"),
    ],
)
def test_strategies_that_contradict_each_other_are_refused(given, said):
    with pytest.raises(Refusal, match=said):
        intervals.require(*given, best=True)
    if given[1] != 48:
        assert intervals.require(*given) == [], "where no best is chosen"


def test_steps_that_are_not_used_are_said():
    assert intervals.require("steps", 100, "no", 100, best=True) == ['EVAL_STEPS = 100 is not used: EVAL_STRATEGY is "no"']


@pytest.mark.parametrize(
    ("rows", "save", "evaluation", "expected"),
    [
        (3200, ("steps", None), ("steps", None), (100, 100)),  # 600 steps
        (512, ("steps", None), ("steps", None), (24, 24)),  # 96 steps: a quarter
        (512, ("steps", 100), ("steps", 100), (100, 100)),  # what is given stays, whether it is reached or not
        (512, ("steps", 48), ("steps", None), (48, 24)),
        (512, ("steps", 50), ("steps", None), (50, 50)),
        (3200, ("steps", None), ("steps", 30), (90, 30)),
        (512, ("epoch", None), ("epoch", None), (32, 32)),
        (512, ("epoch", None), ("no", None), (32, None)),
        (512, ("steps", 7), ("no", None), (7, None)),
        (4, ("steps", None), ("steps", None), (1, 1)),
    ],
)
def test_what_is_left_open_fits_the_run_and_what_is_given(rows, save, evaluation, expected):
    args = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=4, world_size=1, num_train_epochs=3, max_steps=-1,
                           eval_strategy="no" if evaluation[0] == "no" else "steps", save_steps=None, eval_steps=None)  # fmt: skip
    said = intervals.place(SimpleNamespace(args=args, train_dataset=range(rows)), *save, *evaluation)
    assert (args.save_steps, args.eval_steps) == expected
    opened = [name for name, (strategy, steps), became in zip(("SAVE_STEPS", "EVAL_STEPS"), (save, evaluation), expected, strict=True)
              if strategy == "steps" and steps is None and became != 100]  # fmt: skip
    assert [sentence.split(" is ")[0] for sentence in said] == opened

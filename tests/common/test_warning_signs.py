"""Warning signs: each is said of a training that shows it, with values and constants, and of no healthy one.

The losses are real: the tiny Llama's, and a GPT's, as they were logged, shortened where "…" says so.
"""

import random

import pytest

from common import warning_signs
from common.warning_signs import WarningSigns

# name: (rows a logged value is the mean of, losses)
HEALTHY = {
    "1 row a value": (1, """
        4.79 4.58 4.52 5.15 4.27 3.91 3.79 3.68 3.40 2.92 2.91 2.70 4.02 3.08 6.01 2.41 2.90 3.15 3.41 2.49 2.28 2.87 5.32 2.42 2.92 3.32
        1.99 2.55 2.38 5.64 2.36 5.87 2.49 3.28 2.83 3.39 2.02 2.21 2.77 2.35 1.64 5.43 2.31 2.08 6.16 2.34 1.90 2.08 2.12 2.43 2.58 5.30
        5.30 2.42 2.15 2.43 1.89 5.50 2.14 1.81 3.31 1.81 1.87 2.99 1.57 5.88 5.09 2.11 2.48 5.11 2.07 5.36 1.85 2.99 1.84 1.72 1.46"""),
    "2 rows a value": (2, """
        4.49 6.18 4.69 3.87 3.97 4.17 6.44 3.34 3.45 2.93 2.68 2.94 3.19 2.79 3.19 2.58 4.16 4.28 2.76 3.63 2.96 4.04 2.35 2.18 2.58 2.15
        2.55 2.45 3.75 1.94 2.64 3.63 3.62 1.87 2.06 1.51 2.26 1.69 5.46 1.82 1.73 1.15 2.75 1.66 1.78 3.90 3.82 3.85 1.92 1.74 1.72 5.35
        1.66 3.17 2.11 1.74 3.46 3.38 1.91 1.97 1.48 1.41 3.24 1.94 2.15 1.32 1.43 3.11 2.27 1.42 2.13 1.75 1.31 5.32 3.17 3.38 5.12"""),
    "LEARNING_RATE 1e-2, every step": (8, """
        5.16 4.90 4.12 3.83 3.88 4.05 3.63 3.67 2.91 3.45 2.54 3.17 2.88 4.46 3.08 2.92 2.57 4.74 3.00 2.45 2.33 2.81 3.54 2.18 2.24 1.97
        2.07 2.14 1.92 2.00 3.60 2.30 2.66 1.79 1.95 2.94 2.46 3.59 1.73 2.59 1.62 2.81 4.10 1.55 1.40 1.90 3.60 2.04 2.18 2.53 1.51"""),
    "the tiny run": (40, """
        4.519 3.656 3.257 3.153 2.658 2.026 2.478 2.724 2.239 2.464 1.373 1.927 1.886 2.020 1.860 1.410 1.755 1.679 1.211 1.288 1.658"""),
    "learned by heart": (20, """
        1.550 1.072 0.652 0.238 0.124 0.121 0.067 0.032 0.018 0.054 0.051 0.035 0.005 0.006 0.005 0.003 0.002 0.002 0.002 0.001 0.001"""),
    "files of different difficulty": (160, """
        7.443 6.619 5.980 5.554 5.087 4.749 4.490 4.353 4.176 4.394 4.171 4.092 4.220 4.663 4.508 … 3.168 3.091 3.030 2.901 2.887 2.789
        2.827 2.952 4.027 3.769 3.663 3.487 3.486 3.345 3.452 3.313 3.211 3.181 3.318 3.196 3.495 3.872 3.499 3.498 3.498 3.445 3.435"""),
}  # fmt: skip
TOO_FAST = {
    "5e-2": (8, "rising (4.900 -> 8.888 by step 8)", "5.16 4.90 3.62 6.03 12.30 9.03 9.80 7.28 6.56 6.60 5.66 8.01 7.38 7.93 6.81 6.62"),
    "1e-1": (8, "rising (4.900 -> 9.900 by step 8)", "5.16 4.90 3.69 8.38 10.92 11.59 11.91 6.70 5.55 6.15 5.19 5.60 5.47 6.35 5.21 5.30"),
    "1e-1, every fifth": (40, "erratic: it leapt from about 6.330 to 10.300 before step 3", "6.33 10.30 5.71 5.29 4.92 4.62 4.79 5.01"),
    "3e-2": (8, "where it began (5.240, up to 6.878, 5.140 by step 22)", """
        5.16 4.90 3.78 5.31 7.05 7.70 6.89 7.36 5.39 5.90 5.17 6.65 5.40 6.56 5.49 5.22 4.69 6.08 5.16 4.83 4.57 5.06"""),
    "6e-2 after a long warmup": (8, "rising (", """
        4.2 3.9 4.0 3.6 3.7 3.4 3.5 3.3 3.4 3.3 3.4 3.2 3.4 3.3 5.9 7.2 6.4 6.9 6.1 6.6"""),
    "no rest": (40, "erratic: at about 2.150 it moves by 1.000 from", "1.9 " + "2.4 1.4 " * 10),
}  # fmt: skip


def said(losses, rows, step=1, learning_rate=0.05, **changed):
    settings = {"batch": 2, "accumulation": 4, "steps": 60, "warmup": 3, "larger": "LEARNING_RATE or LORA_R"} | changed
    signs = WarningSigns(learning_rate, rows=rows, **settings)
    values = [float(loss) for loss in losses.split() if loss != "…"]
    return [sentence for number, loss in enumerate(values, 1) for sentence in signs.at(step * number, loss, None, 1.0, 10.0)]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_loss_is_not_commented(name):
    rows, losses = HEALTHY[name]
    assert said(losses, rows) == []


@pytest.mark.parametrize("name", TOO_FAST)
def test_a_rate_that_is_too_high_is_said_once(name):
    rows, words, losses = TOO_FAST[name]
    (sentence,) = said(losses, rows)
    assert words in sentence and sentence.endswith("lower LEARNING_RATE (now 0.05) to a third, 0.017")


def test_a_loss_that_rises_slowly_is_said_though_it_is_noisy():
    draw = random.Random(1)
    losses = [1.5 * (1 + max(0, n - 40) / 20) * (1 + draw.gauss(0, 0.1)) for n in range(80)]
    (sentence,) = said(" ".join(map(str, losses)), 80, steps=1000)
    step = int(sentence.split("by step ")[1].split(")")[0])
    assert "the loss is rising (1.3" in sentence and 40 < step < 60


def test_a_single_value_far_off_is_a_leap_only_where_it_is_the_mean_of_many_rows():
    losses = "1.5 1.4 1.3 1.4 1.2 1.3 2.6 1.3 1.2"
    assert "leapt from about 1.350 to 2.600 before step 80" in said(losses, 80, step=10)[0]
    assert said(losses, 8, step=10) == []


def test_a_flat_loss_is_said_after_a_third_of_the_run_and_not_in_the_warmup():
    losses = " ".join(["2.0 2.01"] * 15)
    (sentence,) = said(losses, 80)
    assert sentence == "the loss is flat (2.004 -> 2.004 by step 21); raise LEARNING_RATE or LORA_R"
    assert said(losses, 80, warmup=15) == []
    assert said(losses, 80, steps=300) == []


GPUS = {"step": 120, "batch": 2, "accumulation": 4, "memory_share": 0.4, "constants": {}}


def test_gpus_that_wait_name_the_larger_batch_of_the_same_rows_a_step():
    sentence = warning_signs.idle([0.1] + [0.43] * 5, **GPUS)
    assert sentence == (
        "the GPUs computed 43% of the time up to step 120; raise PER_DEVICE_TRAIN_BATCH_SIZE from 2 to 4 with "
        "GRADIENT_ACCUMULATION_STEPS from 4 to 2: the same rows a step"
    )
    assert "from 2 to 6 with GRADIENT_ACCUMULATION_STEPS from 3 to 1" in warning_signs.idle([0.4] * 6, **GPUS | {"accumulation": 3})
    follows = warning_signs.idle([0.4] * 6, **GPUS | {"constants": {"TRAIN_BATCH_SIZE": 128}})
    assert follows.endswith("raise PER_DEVICE_TRAIN_BATCH_SIZE from 2 to 4: the same rows a step")


@pytest.mark.parametrize(("changed", "why"), [({"accumulation": 1}, "has nothing to give"), ({"memory_share": 0.9}, "90% of the memory")])
def test_where_no_larger_batch_fits_another_cause_is_named(changed, why):
    sentence = warning_signs.idle([0.4] * 6, **GPUS | changed)
    assert why in sentence and "rows from a slow disk" in sentence and "EVAL_STEPS" in sentence and "raise" not in sentence


@pytest.mark.parametrize("busy", [[], [0.1] * 5, [0.2, 0.3, 0.9, 0.9, 0.9, 0.4], [0.5] * 6])
def test_gpus_that_start_slowly_or_pause_are_not_commented(busy):
    assert warning_signs.idle(busy, **GPUS) is None


def test_the_warmup_does_not_count_and_each_kind_is_said_once():
    signs = WarningSigns(1e-3, 2, 4, 80, 600, 30, "LEARNING_RATE")
    falling = [(10 * n, 4 / n) for n in range(1, 30)]
    found = [sentence for step, loss in falling for sentence in signs.at(step, loss, 0.2, 1.0, 10.0)]
    assert len(found) == 1 and found[0].startswith("the GPUs computed 20% of the time up to step 90;")


CONSTANTS = {"PER_DEVICE_TRAIN_BATCH_SIZE": 2, "GRADIENT_ACCUMULATION_STEPS": 4, "MAX_SEQ_LENGTH": 2048, "LORA_R": 16}


def test_memory_at_its_edge_names_what_to_change_first():
    assert warning_signs.full(76.9, 79.3, CONSTANTS) == (
        "memory is near its edge: 76.9 of the 79.3 GB within reach (97%), a longer row may not fit. Change first: "
        "PER_DEVICE_TRAIN_BATCH_SIZE 2 -> 1 and GRADIENT_ACCUMULATION_STEPS 4 -> 8: the same rows a step, slower; then "
        "MAX_SEQ_LENGTH 2048 -> 1024: longer rows lose their oldest turns, then the middle of their document"
    )
    assert warning_signs.full(76.9, 79.3, {}).endswith("a longer row may not fit")
    assert warning_signs.full(74.0, 79.3, CONSTANTS) is None


@pytest.mark.parametrize(("rate", "said"), [(2e-4, None), (1e-5, None), (3e-3, None), (0.2, "1,000 times this recipe's 0.0002"),
                                            (1e-9, "1/200,000 of this recipe's 0.0002; the loss will hardly fall")])  # fmt: skip
def test_a_rate_far_from_the_recipes_own(rate, said):
    found = warning_signs.unusual_rate(rate, 2e-4)
    assert (found is None) if said is None else said in found

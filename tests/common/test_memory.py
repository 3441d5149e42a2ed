"""Memory: an allocation that fails ends with what to change, in order."""

import pytest

from common import memory
from common.refusal import Refusal

SETTINGS = {
    "PER_DEVICE_TRAIN_BATCH_SIZE": 8,
    "PER_DEVICE_EVAL_BATCH_SIZE": 4,
    "GRADIENT_ACCUMULATION_STEPS": 2,
    "MAX_SEQ_LENGTH": 2048,
    "GRADIENT_CHECKPOINTING": "none",
    "LOAD_IN_4BIT": False,
    "LORA_R": 16,
    "LEARNING_RATE": 1e-4,
}


def test_a_real_allocation_that_fails():
    import torch

    with pytest.raises(Refusal) as refused, memory.advice(**SETTINGS):
        torch.empty(1 << 55, dtype=torch.uint8)
    assert str(refused.value).startswith("out of memory.")
    assert "PER_DEVICE_TRAIN_BATCH_SIZE 8 -> 4" in str(refused.value)


def test_numpy_s_allocation_counts_too():
    import numpy

    with pytest.raises(Refusal, match="out of memory"), memory.advice(**SETTINGS):
        numpy.empty(1 << 55, dtype=numpy.uint8)


def test_python_s_allocation_counts_too():
    with pytest.raises(Refusal, match="out of memory"), memory.advice(**SETTINGS):
        bytearray(1 << 55)


def test_other_errors_stay_what_they_are():
    import torch

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), memory.advice(**SETTINGS):
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(Refusal, match="^first$"), memory.advice(**SETTINGS):
        raise Refusal("first")


def test_the_order_and_the_values():
    found = memory.ladders(SETTINGS)
    assert found == [
        [{"PER_DEVICE_TRAIN_BATCH_SIZE": size, "GRADIENT_ACCUMULATION_STEPS": 16 // size} for size in (4, 2, 1)],
        [{"GRADIENT_CHECKPOINTING": "unsloth"}],
        [{"LOAD_IN_4BIT": True}],
        [{"MAX_SEQ_LENGTH": 1024}, {"MAX_SEQ_LENGTH": 512}],
        [{"LORA_R": 8}],
    ]
    assert memory.in_words(SETTINGS, found[0][0]) == (
        "PER_DEVICE_TRAIN_BATCH_SIZE 8 -> 4 and GRADIENT_ACCUMULATION_STEPS 2 -> 4: the same rows a step, slower"
    )
    assert memory.ladders({"LORA_R": 32, "LORA_ALPHA": 64})[0] == [{"LORA_R": 16, "LORA_ALPHA": 32}, {"LORA_R": 8, "LORA_ALPHA": 16}]


def test_what_becomes_of_longer_rows_is_said():
    for more, said in (
        ({}, "longer rows lose their oldest turns, then the middle of their document"), ({"PRETRAINING": True}, "a shorter context"),
        ({"LONG_DOCUMENTS": "shorten"}, "longer rows lose their oldest turns, then the middle of their document"),
        ({"LONG_DOCUMENTS": "drop"}, "longer rows lose their oldest turns, and are left out if that is not enough"),
    ):  # fmt: skip
        assert memory.in_words(SETTINGS | more, {"MAX_SEQ_LENGTH": 1024}) == f"MAX_SEQ_LENGTH 2048 -> 1024: {said}"


def test_an_evaluation_comes_first():
    with pytest.raises(Refusal) as refused, memory.advice(**SETTINGS):
        raise MemoryError
    lines = str(refused.value).splitlines()
    assert lines[1] == "  PER_DEVICE_EVAL_BATCH_SIZE 4 -> 1, if it happened in an evaluation"
    assert lines[2].startswith("  PER_DEVICE_TRAIN_BATCH_SIZE 8 -> 4")


@pytest.mark.parametrize("batch", range(2, 13))
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_a_step_keeps_its_rows(batch, accumulation):
    (rungs,) = memory.ladders({"PER_DEVICE_TRAIN_BATCH_SIZE": batch, "GRADIENT_ACCUMULATION_STEPS": accumulation})
    sizes = [change["PER_DEVICE_TRAIN_BATCH_SIZE"] for change in rungs]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < batch
    assert sizes[-1] == 1
    assert all(c["PER_DEVICE_TRAIN_BATCH_SIZE"] * c["GRADIENT_ACCUMULATION_STEPS"] == batch * accumulation for c in rungs)


def test_where_nothing_is_left_to_change():
    smallest = {
        "PER_DEVICE_TRAIN_BATCH_SIZE": 1,
        "MAX_SEQ_LENGTH": 512,
        "GRADIENT_CHECKPOINTING": "unsloth",
        "LOAD_IN_4BIT": True,
        "LORA_R": 8,
    }
    assert memory.ladders(smallest) == []
    with pytest.raises(Refusal, match="take a smaller model or a larger GPU; every constant is at its smallest"), memory.advice(**smallest):
        raise MemoryError

"""Memory: a GPU that is too small is refused before anything loads; an allocation that fails ends with what to change, in order."""

import os

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
    lines = memory.changes(SETTINGS)
    assert [line.split()[0] for line in lines] == [
        "PER_DEVICE_EVAL_BATCH_SIZE",
        "PER_DEVICE_TRAIN_BATCH_SIZE",
        "GRADIENT_CHECKPOINTING",
        "LOAD_IN_4BIT",
        "MAX_SEQ_LENGTH",
        "LORA_R",
    ]
    assert "PER_DEVICE_TRAIN_BATCH_SIZE 8 -> 4 and GRADIENT_ACCUMULATION_STEPS 2 -> 4" in lines[1]
    assert "MAX_SEQ_LENGTH 2048 -> 1024" in lines[4]
    assert "LORA_R 16 -> 8" in lines[5]


@pytest.mark.parametrize("batch", range(2, 13))
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_a_step_keeps_its_rows(batch, accumulation):
    (line,) = memory.changes({"PER_DEVICE_TRAIN_BATCH_SIZE": batch, "GRADIENT_ACCUMULATION_STEPS": accumulation})
    smaller, steps = (int(part.split("->")[1].split(":")[0]) for part in line.split(" and "))
    assert smaller < batch
    assert smaller * steps == batch * accumulation


def test_where_nothing_is_left_to_change():
    smallest = {
        "PER_DEVICE_TRAIN_BATCH_SIZE": 1,
        "MAX_SEQ_LENGTH": 512,
        "GRADIENT_CHECKPOINTING": "unsloth",
        "LOAD_IN_4BIT": True,
        "LORA_R": 8,
    }
    assert memory.changes(smallest) == ["take a smaller model or a larger GPU; every constant is at its smallest"]


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """Put an nvidia-smi on the PATH that lists GPUs of so many MiB."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def write(*sizes):
        lines = "".join(f"{n}, GPU-{n}, NVIDIA Small {n}, {mib}, {mib}, 580.95.05\n" for n, mib in enumerate(sizes))
        (tmp_path / "answer").write_text(lines)
        (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\ncat "{tmp_path}/answer"\n')
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return write


def test_a_gpu_that_is_too_small(gpus):
    gpus(81920, 4096)
    with pytest.raises(Refusal) as refused:
        memory.require_gpu("owner/model", 6.0, load_in_4bit=False)
    assert str(refused.value).startswith("NVIDIA Small 1 has 4.0 GiB; owner/model needs at least 7.5 GiB (6.0 of weights, 1.5 to work in)")
    assert "LOAD_IN_4BIT = True" in str(refused.value)
    memory.require_gpu("owner/model", 6.0, load_in_4bit=True)
    gpus(3000)
    with pytest.raises(Refusal, match="in 4 bit.*take a smaller model or a larger GPU"):
        memory.require_gpu("owner/model", 6.0, load_in_4bit=True)


def test_a_gpu_that_is_large_enough_an_unknown_size_and_no_gpu(gpus, monkeypatch):
    gpus(8192)
    memory.require_gpu("owner/model", 6.0, load_in_4bit=False)
    memory.require_gpu("owner/model", None, load_in_4bit=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    memory.require_gpu("owner/model", 6000.0, load_in_4bit=False)

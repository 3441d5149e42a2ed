"""What a recipe says before it runs, and the run that cannot fit: refused with the fix, on GPUs that nvidia-smi tells of and without."""

import json
import os

import pytest
from recipe_jobs import JOBS

from common import forecast, log, plan_text
from common.hardware import size
from common.job import Job
from common.refusal import Refusal
from common.switches import Switches
from common.token_counts import TokenCounts

JOB = JOBS["llama32_qlora"][1]
MODEL = "meta-llama/Llama-3.2-3B-Instruct"


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """Put an nvidia-smi on the PATH that lists GPUs of so many MiB, (total, free) or one number for both."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def write(*sizes, name="NVIDIA GeForce RTX 3060"):
        pairs = [pair if isinstance(pair, tuple) else (pair, pair) for pair in sizes]
        lines = "".join(f"{n}, GPU-{n}, {name}, {total}, {free}, 580.95.05\n" for n, (total, free) in enumerate(pairs))
        (tmp_path / "answer").write_text(lines)
        (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\ncat "{tmp_path}/answer"\n')
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return write


def require(job):
    return forecast.require(lambda name: job, MODEL)


def test_a_job_that_fits_comes_back_on_the_gpus_found(gpus):
    gpus(12288, 12288)
    job = require(JOB)
    assert (job.gpus, job.zero_stage) == (2, 2)


def test_a_job_that_cannot_fit_is_refused_with_a_change_that_is_enough(gpus):
    gpus(12288)
    with pytest.raises(Refusal) as refused:
        require(JOB.changed({"PER_DEVICE_TRAIN_BATCH_SIZE": 64}))
    said = str(refused.value)
    assert said.startswith("this run cannot fit: with these constants it needs ")
    assert "RTX 3060 has 12.9 GB. Change PER_DEVICE_TRAIN_BATCH_SIZE 64 -> " in said
    assert "--no-plan starts all the same" in said
    smaller = int(said.split("64 -> ")[1].split()[0])
    require(JOB.changed({"PER_DEVICE_TRAIN_BATCH_SIZE": smaller}))


def test_the_smallest_of_several_gpus_decides(gpus):
    gpus(81920, 3000)
    with pytest.raises(Refusal, match="this run cannot fit"):
        require(JOB)


def test_a_gpu_that_others_use(gpus):
    gpus((12288, 2000))
    with pytest.raises(Refusal, match=r"12\.9 GB, but only 2\.1 GB of it are free\. End what else runs there"):
        require(JOB)


def test_host_memory_that_is_too_little_is_a_warning(gpus, monkeypatch):
    """262,144 tokens: each rank moves 36 layers' inputs of 1.3 GB to the host."""
    gpus(*[81559] * 4, name="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("common.hardware.memory_gib", lambda: 128.0)
    log.close()
    assert require(JOBS["qwen3_4b_longctx"][1]).gpus == 4
    assert [text.split(" of host memory")[1] for text in log.warnings] == [", and this machine has 128 GiB"]
    log.close()
    monkeypatch.setattr("common.hardware.memory_gib", lambda: 1024.0)
    require(JOBS["qwen3_4b_longctx"][1])
    assert log.warnings == []


def test_no_constant_is_enough(gpus):
    gpus(24564, name="NVIDIA GeForce RTX 4090")
    full = JOBS["mtg_full_32b"][1]
    with pytest.raises(Refusal, match=r"No constant is enough; take 64 such GPUs or 8 x A100-80GB\."):
        require(full)
    with pytest.raises(Refusal, match=r"No constant is enough; take 1 x A100-80GB\."):
        require(Job(model=JOBS["qwen3_4b_longctx"][1].model, max_seq_length=512))


def test_without_gpus_the_memory_of_the_machine_counts(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("common.hardware.memory_gib", lambda: 8.0)
    job = require(JOB)
    assert (job.kernels, job.optim, job.packing, job.zero_stage) == ("torch", "adamw_torch_fused", False, 0)
    with pytest.raises(Refusal, match=r"and CPU has 8\.6 GB"):
        require(JOB.changed({"LOAD_IN_4BIT": False, "PER_DEVICE_TRAIN_BATCH_SIZE": 16}))


def test_a_model_that_is_not_known_is_trained_with_a_warning(gpus):
    def unknown(name):
        raise Refusal("mamba is not known")

    gpus(12288)
    log.close()
    assert forecast.require(unknown, "owner/mamba") is None
    assert log.warnings == ["whether this run fits is not known: mamba is not known"]
    forecast.announce(None, "owner/mamba", None)  # says nothing
    log.close()


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def test_the_page(capsys):
    found = forecast.show(JOB, MODEL, Switches(gpus="8xH100", usd_per_gpu_hour=3.5, tokens=10_000_000), "RTX 3060", {})
    said = capsys.readouterr().out
    assert f"{3_212_749_824 + 24_313_856:,} parameters, 24,313,856 of them trained (0.75%) by QLoRA" in said
    assert "8 x H100, 79.6 GiB each (as asked)" in said
    for name, amount in found["memory_bytes_per_gpu"]["parts"].items():
        assert f"{name:<26}{size(amount / 1e9):>10}" in said
    assert found["steps"] == 3 * 77  # 4,882.8 rows of 2,048 in steps of 64
    assert found["usd"] == pytest.approx(found["time"]["hours"] * 8 * 3.5)
    assert f"{found['usd']:,.2f} dollars" in said
    assert len([line for line in said.splitlines() if " x " in line and " GB" in line]) == 15
    bar = next(line for line in said.splitlines() if "[" in line)
    assert bar.index("]") - bar.index("[") == plan_text.WIDTH + 1


def test_the_bar_of_what_does_not_fit_marks_the_end_of_the_gpu(capsys):
    forecast.show(JOB, MODEL, Switches(gpus="1x3GB", tokens=10_000_000), "RTX 3060", {})
    said = capsys.readouterr().out
    assert "memory    DOES NOT FIT: " in said
    assert "fix       Change " in said
    assert "not predicted: how fast 3 GiB computes is not known here" in said
    bar = next(line for line in said.splitlines() if "[" in line)
    assert bar.count("|") == 1
    assert "·" not in bar


def test_json_is_the_same_plan(capsys):
    asked = Switches(gpus="2xA100", tokens=1_000_000, json=True)
    found = forecast.show(JOB, MODEL, asked, "RTX 3060", {})
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))
    assert found["accelerator"]["name"] == "A100-80GB"
    assert found["memory_bytes_per_gpu"]["total"] == pytest.approx(sum(found["memory_bytes_per_gpu"]["parts"].values()))


def test_data_that_are_not_there_are_said_and_the_rest_is_planned(capsys, tmp_path):
    found = forecast.show(JOB, MODEL, Switches(gpus="H100"), "RTX 3060", {str(tmp_path / "none.jsonl"): 1.0})
    said = capsys.readouterr().out
    assert (found["steps"], found["data"]) == (None, None)
    assert "none.jsonl does not exist" in found["no_data"]
    assert found["time"]["step"] > 0
    assert "none.jsonl does not exist" in said
    assert "or say --tokens" in said


def test_padding_is_computed_and_packing_is_not():
    import numpy as np

    counts = TokenCounts(1000, 300_000, np.array([100, 500] * 500), 0.0, 0.0, "counted")
    padded = forecast.workload(JOB.changed({"PACKING": False}), counts)
    packed = forecast.workload(JOB.changed({"PACKING": True}), counts)
    assert padded.rows == 1000
    assert padded.computed_tokens > padded.tokens == packed.tokens == packed.computed_tokens == 300_000
    assert 300_000 / 2048 <= packed.rows < 160
    assert padded.attended_length == packed.attended_length == pytest.approx((100**2 + 500**2) / 600)

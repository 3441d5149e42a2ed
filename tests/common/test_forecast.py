"""What a recipe says before it runs, and the run that cannot fit: refused with the fix, on GPUs that nvidia-smi tells of and without."""

import json
import os

import numpy as np
import pytest
from recipe_jobs import JOBS

from common import forecast, hardware, log, plan_text
from common.constants import Resolved
from common.job import Job
from common.refusal import Refusal
from common.token_counts import TokenCounts

JOB = JOBS["llama32_qlora"][1]
MODEL = "meta-llama/Llama-3.2-3B-Instruct"


def asked(argv=(), **switches):
    """The resolved constants of a recipe that was started with these switches."""
    return Resolved(recipe="recipe", values={}, origins={}, argv=argv if argv is None else list(argv), **switches)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """A terminal of 120 columns, no launcher, no GPU, and nothing said yet."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    log.close()
    yield
    log.close()


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """Put an nvidia-smi on the PATH that lists GPUs of so many MiB, (total, free) or one number for both."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def write(*sizes, name="NVIDIA GeForce RTX 3060"):
        pairs = [pair if isinstance(pair, tuple) else (pair, pair) for pair in sizes]
        lines = "".join(f"{n}, GPU-{n}, {name}, {total}, {free}, 580.95.05\n" for n, (total, free) in enumerate(pairs))
        (tmp_path / "answer").write_text(lines)
        (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\ncat "{tmp_path}/answer"\n')
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return write


def require(job, settings=None):
    return forecast.require(lambda name, sharded: job, MODEL, settings or asked())


def test_a_job_that_fits_comes_back_on_the_gpus_that_it_uses(gpus):
    gpus(12288, 12288)
    job = require(JOB)
    assert (job.gpus, job.zero_stage) == (2, 2)
    assert require(JOB, asked(tiny=True)).gpus == 1
    assert require(JOB, asked(argv=None)).gpus == 1  # called from Python


def test_in_a_launchers_ranks_their_number_counts(gpus, monkeypatch):
    gpus(81559, 81559)
    full = JOBS["mtg_full_32b"][1]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "32")
    assert require(full).gpus == 32
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Refusal, match="this run cannot fit"):
        require(full)


def test_the_json_of_zero_is_read_where_ranks_share_the_work(gpus):
    seen = []

    def job_of(name, sharded):
        seen.append(sharded)
        return JOB

    gpus(12288)
    forecast.require(job_of, MODEL, asked())
    gpus(12288, 12288)
    forecast.require(job_of, MODEL, asked())
    assert seen == [False, True]


def test_a_job_that_cannot_fit_is_refused_with_a_change_that_is_enough(gpus):
    gpus(12288)
    with pytest.raises(Refusal) as refused:
        require(JOB.changed({"PER_DEVICE_TRAIN_BATCH_SIZE": 64}))
    said = str(refused.value)
    assert said.startswith("this run cannot fit: with these constants it needs ")
    assert "RTX 3060 has 12.0 GiB. Change PER_DEVICE_TRAIN_BATCH_SIZE 64 -> " in said
    assert "--no-plan starts all the same" in said
    smaller = int(said.split("64 -> ")[1].split()[0])
    require(JOB.changed({"PER_DEVICE_TRAIN_BATCH_SIZE": smaller}))


def test_the_smallest_of_several_gpus_decides(gpus):
    gpus(81920, 3000)
    with pytest.raises(Refusal, match="this run cannot fit"):
        require(JOB)


def test_a_gpu_that_others_use(gpus, monkeypatch):
    gpus((12288, 2000), 12288)
    with pytest.raises(Refusal, match=r"12\.0 GiB, but only 2\.0 GiB of it are free\. End what else runs there"):
        require(JOB)
    gpus(12288, (12288, 2000))
    require(JOB, asked(tiny=True))  # which uses the first one alone
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    require(JOB)  # what the other ranks have taken is no reason to refuse


def test_host_memory_that_is_too_little_is_a_warning(gpus, monkeypatch):
    """262,144 tokens: each rank moves 36 layers' inputs of 1.3 GB to the host."""
    gpus(*[81559] * 4, name="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("common.hardware.memory_gib", lambda: 128.0)
    assert require(JOBS["qwen3_4b_longctx"][1]).gpus == 4
    assert [text.split(" of host memory")[1] for text in log.warnings] == [", and this machine has 128.0 GiB"]
    log.close()
    monkeypatch.setattr("common.hardware.memory_gib", lambda: 1024.0)
    require(JOBS["qwen3_4b_longctx"][1])
    assert log.warnings == []


def test_no_constant_is_enough(gpus):
    gpus(24564, name="NVIDIA GeForce RTX 4090")
    full = JOBS["mtg_full_32b"][1]
    with pytest.raises(Refusal, match=r"No constant is enough; take 64 x RTX 4090 or "):
        require(full)
    with pytest.raises(Refusal, match=r"No constant is enough; take 1 x "):
        require(Job(model=JOBS["qwen3_4b_longctx"][1].model, max_seq_length=512))


def test_a_gpu_without_bf16_is_refused_at_once(gpus):
    gpus(15360, name="Tesla T4")
    with pytest.raises(Refusal, match="T4 has no bf16"):
        require(JOB)
    with pytest.raises(Refusal, match="T4 has no bf16"):
        forecast.show(JOB, MODEL, asked(), "RTX 3060", {})


def test_parts_of_a_gpu_are_not_judged(gpus, monkeypatch):
    gpus(81559, name="NVIDIA H100 80GB HBM3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-3f2b")
    assert require(JOB) is None
    assert "MIG" in log.warnings[0]


def test_without_gpus_the_memory_of_the_machine_counts(monkeypatch):
    monkeypatch.setattr("common.hardware.memory_gib", lambda: 8.0)
    job = require(JOB)
    assert (job.kernels, job.optim, job.packing, job.zero_stage) == ("torch", "adamw_torch_fused", False, 0)
    with pytest.raises(Refusal, match=r"and CPU has 8\.0 GiB"):
        require(JOB.changed({"LOAD_IN_4BIT": False, "PER_DEVICE_TRAIN_BATCH_SIZE": 16}))


def test_a_model_that_is_not_known_is_trained_with_a_warning(gpus):
    def unknown(name, sharded):
        raise Refusal("mamba is not known")

    gpus(12288)
    assert forecast.require(unknown, "owner/mamba", asked()) is None
    assert log.warnings == ["whether this run fits is not known: mamba is not known"]
    forecast.announce(None, "owner/mamba", None)  # says nothing


def test_the_page(capsys):
    found = forecast.show(JOB, MODEL, asked(gpus="8xH100", usd_per_gpu_hour=3.5, tokens=10_000_000), "RTX 3060", {})
    said = capsys.readouterr().out
    assert f"{3_212_749_824 + 24_313_856:,} parameters, 24,313,856 of them trained (0.75%) by QLoRA" in said
    assert "8 x H100 (as asked)" in said
    for name, amount in found["memory_bytes_per_gpu"]["parts"].items():
        assert f" {name:<22}{plan_text.gib(amount):>10}" in said
    assert found["job"]["zero"]["stage"] == 2 and "ZeRO buffers" in found["memory_bytes_per_gpu"]["parts"]
    assert found["steps"] == 3 * 77  # 4,882.8 rows of 2,048 in steps of 64
    assert found["usd"] == pytest.approx(found["time"]["hours"] * 8 * 3.5)
    assert f"cost      {found['usd']:,.2f} dollars" in said
    assert len([line for line in said.splitlines() if " x " in line and " GiB" in line]) == 15


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_every_line_fits_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for gpu in ("8xH100", "1x3GB"):
        forecast.show(JOBS["mtg_full_32b"][1], "qihoo360/TinyR1-32B", asked(gpus=gpu, tokens=1_410_000_000), "8xH200", {})
    said = capsys.readouterr().out
    assert columns < 80 or said.count("     time   GPU-h\n") == 2  # the table's rows are whole
    table = [line for line in said.splitlines() if "GiB" in line]
    assert all(len(line) <= max(columns, 80) for line in table)
    assert max(map(len, table)) > 55


@pytest.mark.parametrize("gpu", ["1x3GB", "RTX 3060", "8xH200"])
def test_the_bar_has_the_width_of_the_gpu_and_larger_parts_have_no_fewer_letters(gpu, capsys):
    found = forecast.show(JOB, MODEL, asked(gpus=gpu), "RTX 3060", {})
    bar = next(line.strip() for line in capsys.readouterr().out.splitlines() if "[" in line)
    memory = found["memory_bytes_per_gpu"]
    assert len(bar) == plan_text.WIDTH + 2 + (not memory["fits"])
    letters = [bar.count(plan_text.MARKS[name]) for name in sorted(memory["parts"], key=memory["parts"].get)]
    assert letters == sorted(letters)
    assert bar.count("|") == (0 if memory["fits"] else 1)
    assert bar.isascii()


def test_what_does_not_fit_has_a_fix_that_can_be_typed(capsys):
    found = forecast.show(JOB, MODEL, asked(gpus="1x3.4GB", tokens=10_000_000), "RTX 3060", {})
    said = capsys.readouterr().out
    assert "memory    DOES NOT FIT: " in said
    assert "fix       Change " in said
    assert "not predicted: how fast 3.4 GiB computes is not known here" in said
    for change in found["to_make_it_fit"]["changes"]:
        for name, value in change.items():
            assert f"--{name.lower().replace('_', '-')} {value}" in " ".join(said.split())


def test_json_is_the_same_plan(capsys):
    found = forecast.show(JOB, MODEL, asked(gpus="2xA100", tokens=1_000_000, json=True), "RTX 3060", {})
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))
    assert found["accelerator"]["name"] == "A100-80GB"


def test_what_samples_take_stands_on_the_page(capsys):
    asks = {"gpus": "1x4090", "usd_per_gpu_hour": 0.5}
    found = forecast.show(JOB.changed({"MAX_STEPS": 9}), MODEL, asked(**asks), "RTX 3060", {"samples/cross_validated.jsonl": 1.0})
    said = " ".join(capsys.readouterr().out.split())
    samples = found["samples"]
    tokens = round(found["data"]["tokens"] / found["data"]["conversations"])
    assert {sample["tokens"] for sample in samples} == {tokens} and found["data"]["conversations"] == 320
    one, ten, hundred = [f"{plan_text.duration(sample['hours'])} ({sample['usd']:,.2f} dollars)" for sample in samples]
    assert f"samples of {tokens} tokens each, 3 epochs, without evaluations: 1,000 take {one}, 10,000 {ten}, 100,000 {hundred}" in said
    forecast.show(JOB, MODEL, asked(gpus="1x4090"), "RTX 3060", {"none.jsonl": 1.0})
    assert "samples taken to be of 512 tokens each, 3 epochs, without" in " ".join(capsys.readouterr().out.split())
    forecast.show(JOB, MODEL, asked(), "cpu", {})
    assert "samples" not in capsys.readouterr().out


def test_data_that_are_not_there_are_said_and_the_rest_is_planned(capsys, tmp_path):
    found = forecast.show(JOB, MODEL, asked(gpus="H100", usd_per_gpu_hour=2), "RTX 3060", {str(tmp_path / "none.jsonl"): 1.0})
    said = " ".join(capsys.readouterr().out.split())
    assert (found["steps"], found["data"], found["usd"]) == (None, None, None)
    assert "none.jsonl does not exist" in found["no_data"] and "none.jsonl does not exist" in said
    assert found["time"]["step"] > 0
    assert "dollars per million tokens" in said and "or say --tokens" in said


def test_evaluations_cost_time_and_memory():
    job = JOB.changed({"EVAL_STEPS": 100, "PER_DEVICE_EVAL_BATCH_SIZE": 2})

    def plan(job, held_out=0.1):
        return forecast.show(job, MODEL, asked(gpus="H100", tokens=100_000_000), "H100", {}, held_out)

    often, seldom, never = plan(job), plan(job.changed({"EVAL_STEPS": 1000})), plan(job, held_out=0.0)
    assert often["time"]["evaluating"] == pytest.approx(10 * seldom["time"]["evaluating"], rel=0.1)
    assert often["time"]["hours"] - never["time"]["hours"] == pytest.approx(often["time"]["evaluating"] / 3600)
    large = plan(job.changed({"PER_DEVICE_EVAL_BATCH_SIZE": 512}))["memory_bytes_per_gpu"]
    assert "an evaluation" in large["parts"] and large["total"] > often["memory_bytes_per_gpu"]["total"]


def test_the_steps_that_are_asked_for_are_those_everywhere():
    found = forecast.show(JOB.changed({"MAX_STEPS": 1000}), MODEL, asked(gpus="1xH100", tokens=10**9), "H100", {})
    rows = {row["gpus"]: row for row in found["elsewhere"] if row["accelerator"] == "H100"}
    assert [rows[n]["steps"] for n in (1, 4, 8)] == [1000, 1000, 1000]
    assert rows[8]["gpu_hours"] == pytest.approx(8 * rows[1]["gpu_hours"], rel=0.1)
    epochs = forecast.show(JOB, MODEL, asked(gpus="1xH100", tokens=10**9), "H100", {})["elsewhere"]
    assert {row["gpus"]: row["steps"] for row in epochs if row["accelerator"] == "H100"} == {1: 183_108, 4: 45_777, 8: 22_890}


def test_less_data_than_a_step_needs_are_not_charged_a_whole_one():
    small, full = (forecast.show(JOB, MODEL, asked(gpus="H100", tokens=tokens), "H100", {}) for tokens in (2048, 16_384))
    assert small["steps"] == full["steps"] == 3
    assert full["time"]["hours"] == pytest.approx(8 * small["time"]["hours"], rel=0.1)


def test_merging_needs_the_hosts_memory_where_the_gpu_is_small():
    job = JOB.changed({"MERGE": True})
    small, large = (forecast.show(job, MODEL, asked(gpus=gpu), "H100", {})["host_bytes"] for gpu in ("RTX 3060", "H100"))
    assert small - large == pytest.approx(2 * 3_212_749_824, rel=0.01)


def test_disk_is_that_of_the_checkpoints_there_will_be(tmp_path):
    def disk(**changed):
        job = JOB.changed({name.upper(): value for name, value in changed.items()})
        return forecast.show(job, MODEL, asked(gpus="H100", tokens=10_000_000), "H100", {})["disk_bytes"]

    many = disk(save_steps=100)["checkpoints"]
    assert disk(save_steps=10**6)["checkpoints"] == pytest.approx(many / 5)  # one, at the end
    assert disk(save_steps=100, keep_local=False)["checkpoints"] == pytest.approx(many * 3 / 5)  # newest, best, one being written
    local = forecast.show(JOB, str(tmp_path), asked(gpus="H100"), "H100", {})["disk_bytes"]
    assert "the model's download" in disk() and "the model's download" not in local


def test_padding_is_computed_and_packing_is_not():
    counts = TokenCounts(1000, 300_000, np.array([100, 500] * 500), 0.0, 0.0, "counted", validation_tokens=15_000)
    padded = forecast.workload(JOB.changed({"PACKING": False}), counts)
    packed = forecast.workload(JOB.changed({"PACKING": True}), counts)
    assert padded.rows == 1000
    assert padded.computed_tokens > padded.tokens == packed.tokens == packed.computed_tokens == 300_000
    assert 300_000 / 2048 <= packed.rows < 160
    assert padded.attended_length == packed.attended_length == pytest.approx((100**2 + 500**2) / 600)
    assert padded.validation_tokens == 15_000


def test_this_machine_s_memory_and_disk_stand_beside_what_is_needed(gpus, capsys):
    gpus(12288)
    forecast.show(JOB, MODEL, asked(), "RTX 3060", {})
    said = capsys.readouterr().out
    assert f"(this machine has {hardware.memory_gib():.1f} GiB)" in said
    assert "are free here)" in said

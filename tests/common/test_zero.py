"""DeepSpeed's JSON against the constants; checkpoints that go on with another number of ranks."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from example_checkpoints import contents, write_checkpoint
from user_commands import train

from common import manifest, zero
from common.refusal import Refusal
from common.run_directory import RunDirectory

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "ds_configs").glob("*.json"))


@pytest.fixture
def write(tmp_path):
    def config(**content):
        path = tmp_path / "ds.json"
        path.write_text(json.dumps(content))
        return path

    return config


def test_auto_and_absence_are_decided_by_the_constants(write):
    path = write(gradient_clipping="auto", bf16={"enabled": "auto"})
    found = zero.check(path, gradient_clipping=0.5, bf16__enabled=True, train_micro_batch_size_per_gpu=3, zero_optimization__stage=2)
    assert found == {"gradient_clipping": "auto", "bf16": {"enabled": "auto"}}


def test_the_same_value_is_no_contradiction(write):
    assert zero.check(write(gradient_clipping=1.0, bf16={"enabled": True}), gradient_clipping=1.0, bf16__enabled=True)


@pytest.mark.parametrize(
    ("content", "constant", "said"),
    [
        ({"gradient_clipping": 1.0}, {"gradient_clipping": 0.5}, ["gradient_clipping = 1.0", "0.5"]),
        ({"bf16": {"enabled": False}}, {"bf16__enabled": True}, ["bf16.enabled = False", "True"]),
        ({"zero_optimization": {"stage": 3}}, {"zero_optimization__stage": 2}, ["zero_optimization.stage = 3", "2"]),
    ],
)
def test_a_contradiction_names_file_and_both_values(write, content, constant, said):
    path = write(**content)
    with pytest.raises(Refusal) as refused:
        zero.check(path, **constant)
    for part in [str(path), *said, '"auto"']:
        assert part in str(refused.value)


def test_a_missing_and_a_broken_file(tmp_path):
    with pytest.raises(Refusal, match="which does not exist"):
        zero.check(tmp_path / "no.json")
    (tmp_path / "cut.json").write_text('{"bf16": ')
    with pytest.raises(Refusal, match="cut.json is not JSON"):
        zero.check(tmp_path / "cut.json")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_ones_leave_to_the_recipe_what_the_recipe_says(path):
    zero.check(path, gradient_accumulation_steps=7, gradient_clipping=0.123, train_micro_batch_size_per_gpu=11, bf16__enabled=True)
    assert (path.parents[1] / "recipes" / f"{path.stem}.py").is_file()


def test_there_are_shipped_ones():
    assert SHIPPED


def test_a_quantised_optimiser_is_not_divided_otherwise(tmp_path):
    checkpoint = write_checkpoint(
        tmp_path / "run" / "checkpoint-8", world_size=2, sharded=True, optimizer="bitsandbytes.optim.adamw.PagedAdamW8bit"
    )
    before = contents(tmp_path)
    with pytest.raises(Refusal) as refused:
        zero.regroup(checkpoint, 3)
    said = str(refused.value)
    assert "was written by 2 rank(s) with bitsandbytes.optim.adamw.PagedAdamW8bit, whose quantised state cannot be divided among 3" in said
    assert "resume on as many GPUs as before" in said
    assert contents(tmp_path) == before


def test_regrouping_asks_for_the_disk_that_it_will_take_first(tmp_path, monkeypatch):
    checkpoint = write_checkpoint(tmp_path / "run" / "checkpoint-8", world_size=2, sharded=True)
    before = contents(tmp_path)
    monkeypatch.setattr(zero.hardware, "free_disk_gb", lambda path: 8.9e-6)  # the checkpoint has 9 kB and a little
    with pytest.raises(Refusal, match="regrouping .*checkpoint-8 for 3 rank.s. needs .* MB and the disk of .* has"):
        zero.regroup(checkpoint, 3)
    assert contents(tmp_path) == before


def test_on_a_disk_without_links_the_checkpoint_is_copied(tmp_path, monkeypatch):
    """The converter has nothing to convert here; what it was given is there to be seen."""
    checkpoint = write_checkpoint(tmp_path / "run" / "checkpoint-8", world_size=2, sharded=True)

    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(zero.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="regrouping .* ended with 1"):
        zero.regroup(checkpoint, 3)
    assert contents(tmp_path / "run" / ".regrouped-checkpoint-8") == contents(checkpoint)


FLAGS = (
    *("--max-steps", "12", "--logging-steps", "1", "--per-device-train-batch-size", "4", "--lora-dropout", "0"),
    *("--report-to", "[]", "--no-merge"),
)


def losses(run):
    """{step: loss} as last logged."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def gone_on(home, run, name, checkpoint, *flags, **options):
    """Resume a copy of `run` from its checkpoint of that step; the copy."""
    shutil.copytree(run.path, home / name)
    path = home / name / f"checkpoint-{checkpoint}"
    before = contents(path)
    ran = train(home, *FLAGS, *flags, "--resume-from-checkpoint", str(path), name=name, **options)
    assert ran.returncode == 0, ran.output
    assert contents(path) == before, "regrouping works on a copy"
    assert not list(ran.run.path.glob(".regrouped-*")), "which is gone"
    assert f"resuming from checkpoint-{checkpoint}" in ran.output and "goes on with" in ran.output
    return ran.run


@pytest.mark.soak
def test_two_ranks_go_on_as_one_and_that_as_two(tmp_path):
    """A step has the same rows, so that losses differ by the order of sums in bf16 only."""
    port = 20000 + os.getpid() % 10000
    two = {"launcher": ("deepspeed", "--num_gpus=2", f"--master_port={port}")}
    whole = train(tmp_path, *FLAGS, "--gradient-accumulation-steps", "2", "--save-steps", "6", "--eval-steps", "6", name="two", **two)
    assert whole.returncode == 0, whole.output
    expected = losses(whole.run)
    assert set(expected) == set(range(1, 13)) and manifest.read(whole.run.path / "checkpoint-6")["world_size"] == 2

    one = gone_on(tmp_path, whole.run, "one", 6, "--gradient-accumulation-steps", "4", "--save-steps", "3", "--eval-steps", "3")
    assert manifest.read(one.path / "checkpoint-9")["world_size"] == 1
    again = gone_on(tmp_path, one, "again", 9, "--gradient-accumulation-steps", "2", "--save-steps", "3", "--eval-steps", "3", **two)
    assert manifest.read(again.path / "checkpoint-12")["world_size"] == 2
    for run, first in ((one, 7), (again, 10)):
        found = losses(run)
        far = {step: abs(found[step] - expected[step]) for step in range(first, 13)}
        print(run.path.name, {step: f"{distance:.1e}" for step, distance in far.items()})
        assert max(far.values()) < 1e-3, far
        assert len(set(found.values())) == 12 and RunDirectory(run.path).whole_checkpoints()[-1][0] == 12

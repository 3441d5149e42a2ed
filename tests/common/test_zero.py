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
from common.job import Zero
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


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"[]", "holds a list"), (b'"ds"', "holds text"), (b"null", "holds null"), (b"3", "holds a number"), (b"\xff", "is not UTF-8"),
     (b"", "is not JSON"), (b"[" * 100_000, "is not JSON")],
)  # fmt: skip
def test_what_is_no_json_object(tmp_path, content, said):
    (tmp_path / "ds.json").write_bytes(content)
    with pytest.raises(Refusal) as refused:
        zero.check(tmp_path / "ds.json", bf16__enabled=True)
    assert str(refused.value).startswith(f"{tmp_path / 'ds.json'} {said}")


def test_a_directory_instead_of_a_file(tmp_path):
    with pytest.raises(Refusal, match="cannot be read .Is a directory.; ds_configs/ holds one JSON"):
        zero.check(tmp_path)


@pytest.mark.parametrize("bf16", [True, None, "auto", ["enabled"]])
def test_a_section_that_is_no_object(write, bf16):
    path = write(bf16=bf16)
    with pytest.raises(Refusal) as refused:
        zero.check(path, bf16__enabled=True)
    assert str(refused.value) == f"{path} says bf16 = {json.dumps(bf16)}; it must be an object {{...}}, or be left out"


def facts(path, hidden_size=64, **more):
    return zero.facts(zero.check(path), path, hidden_size, **more)


SIZES = {
    "reduce_bucket_size": "reduce_bucket_size",
    "prefetch_bucket_size": "stage3_prefetch_bucket_size",
    "max_live_parameters": "stage3_max_live_parameters",
    "max_reuse_distance": "stage3_max_reuse_distance",
    "param_persistence_threshold": "stage3_param_persistence_threshold",
}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 7, "round_robin_gradients": True},
        {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "overlap_comm": None},
        {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/tmp"}, "offload_param": {"device": "cpu"}},
        {"stage": 3, "offload_optimizer": {}, "offload_param": None, "stage3_max_live_parameters": 1.5e9, "overlap_comm": False},
        {"stage": 3, "offload_optimizer": {"device": "auto"}, "overlap_comm": "auto", "stage3_max_reuse_distance": "auto"},
        {"stage": "auto", "cpu_offload": True},
        {"stage": 3, "stage3_prefetch_bucket_size": 0, "stage3_param_persistence_threshold": 12345678, "cpu_offload_param": True},
    ],
)
def test_the_facts_are_what_deepspeed_makes_of_the_json(write, content):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    found, theirs = facts(write(zero_optimization=content)), DeepSpeedZeroConfig(**content)
    assert found.stage == theirs.stage and found.overlap_comm == theirs.overlap_comm
    for key in ("offload_optimizer", "offload_param"):
        section = getattr(theirs, key)
        assert getattr(found, key) == (section is not None and section.device != "none")
    for ours, key in SIZES.items():
        assert getattr(found, ours) == getattr(theirs, key.removeprefix("stage3_"))


def test_auto_sizes_are_what_transformers_makes_of_the_hidden_size(write):
    from types import SimpleNamespace

    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    automatic = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    path = write(zero_optimization={"stage": 3, **dict.fromkeys(automatic, "auto")})
    theirs = HfTrainerDeepSpeedConfig(str(path))
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=3072))
    theirs.trainer_config_finalize(TrainingArguments(use_cpu=True), model, num_training_steps=1)
    found = facts(path, 3072)
    for ours, key in SIZES.items():
        if key in automatic:
            assert getattr(found, ours) == theirs.config["zero_optimization"][key]


def test_without_zero_there_is_none_and_alone_is_passed_on(write):
    path = write(bf16={"enabled": "auto"})
    assert facts(path) == Zero(overlap_comm=False) and facts(path, alone=True).alone


SIZE = 'it must be a whole number from 0, without quotes, or "auto"'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"stage": 4}, "stage = 4; it must be 0, 1, 2 or 3"),
        ({"stage": -1}, "stage = -1; it must be 0, 1, 2 or 3"),
        ({"stage": "2"}, 'stage = "2"; it must be 0, 1, 2 or 3'),
        ({"stage": True}, "stage = true; it must be 0, 1, 2 or 3"),
        ({"stage": None}, "stage = null; it must be 0, 1, 2 or 3"),
        ({"stage": 2.5}, "stage = 2.5; it must be 0, 1, 2 or 3"),
        ({"offload_optimizer": "cpu"}, 'offload_optimizer = "cpu"; it must be an object whose device is "none", "cpu" or "nvme"'),
        ({"offload_param": True}, 'offload_param = true; it must be an object whose device is "none", "cpu" or "nvme"'),
        ({"offload_param": {"device": "gpu"}}, 'offload_param = {"device": "gpu"}; it must be an object whose device is'),
        ({"offload_param": {"device": None}}, 'offload_param = {"device": null}; it must be an object whose device is'),
        ({"overlap_comm": "yes"}, 'overlap_comm = "yes"; it must be true or false'),
        ({"overlap_comm": [1]}, "overlap_comm = [1]; it must be true or false"),
        ({"reduce_bucket_size": "5e8"}, 'reduce_bucket_size = "5e8"; it must be a whole number from 1, without quotes'),
        ({"reduce_bucket_size": 0}, "reduce_bucket_size = 0; it must be a whole number from 1"),
        ({"reduce_bucket_size": None}, "reduce_bucket_size = null; it must be a whole number from 1"),
        ({"stage3_prefetch_bucket_size": -5}, f"stage3_prefetch_bucket_size = -5; {SIZE}"),
        ({"stage3_max_live_parameters": {}}, f"stage3_max_live_parameters = {{}}; {SIZE}"),
        ({"stage3_max_reuse_distance": 0.5}, f"stage3_max_reuse_distance = 0.5; {SIZE}"),
        ({"stage3_max_reuse_distance": float("inf")}, f"stage3_max_reuse_distance = Infinity; {SIZE}"),
        ({"stage3_param_persistence_threshold": True}, f"stage3_param_persistence_threshold = true; {SIZE}"),
    ],
)
def test_a_value_that_deepspeed_would_not_take_or_not_as_meant(write, content, said):
    path = write(zero_optimization=content)
    with pytest.raises(Refusal) as refused:
        facts(path)
    assert str(refused.value).startswith(f"{path} says zero_optimization.{said}")


@pytest.mark.parametrize("section", [[], True, None, "auto", 2])
def test_a_zero_optimization_that_is_no_object(write, section):
    with pytest.raises(Refusal, match="says zero_optimization = .*; it must be an object"):
        facts(write(zero_optimization=section))


@pytest.mark.parametrize("key", ["model_config", "self", "__class__", ""])
def test_a_key_of_any_name_is_deepspeeds_business(write, key):
    assert facts(write(zero_optimization={key: 1, "stage": 1})).stage == 1


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

"""The run directory: whole files, names that never collide, resuming the right checkpoint of the right run."""

import os
import re
import subprocess
import sys
import textwrap
from contextlib import nullcontext

import pytest

from common import run_directory
from common.refusal import Refusal
from common.run_directory import RunDirectory


def make_run(path, steps=(), half=(), time=None):
    """A run with whole checkpoints at `steps` and interrupted ones at `half`; time: when its run.json was written."""
    run = RunDirectory(path)
    run.begin({"LORA_R": 8}, recipe="example")
    for step in (*steps, *half):
        checkpoint = path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text("{}")
        if step in steps:
            (checkpoint / "constants.json").write_text("{}")
    if time:
        os.utime(run.run, (time, time))
    return run


def test_begin_writes_and_a_resumed_run_keeps_when_it_started(tmp_path):
    run = RunDirectory(tmp_path / "outputs" / "run")
    run.begin({"LORA_R": 8}, recipe="example", tiny=True)
    first = run_directory.read_json(run.run)
    assert first["status"] == "running"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", first["started"])
    run.update(started="2020-01-01T00:00:00+00:00", status="failed", steps=3)
    run.begin({"LORA_R": 8}, recipe="example", tiny=False)
    second = run_directory.read_json(run.run)
    assert (second["started"], second["status"], second["steps"], second["tiny"]) == ("2020-01-01T00:00:00+00:00", "running", 3, False)
    assert run_directory.read_json(run.constants) == {"LORA_R": 8}


@pytest.mark.parametrize(
    ("raised", "status"), [(None, "finished"), (ValueError, "failed"), (Refusal, "failed"), (KeyboardInterrupt, "stopped")]
)
def test_how_it_ended_is_recorded(tmp_path, raised, status):
    run = make_run(tmp_path / "run")
    with pytest.raises(raised) if raised else nullcontext(), run.recording(["padding"]):
        if raised:
            raise raised("no")
    facts = run_directory.read_json(run.run)
    assert (facts["status"], facts["warnings"]) == (status, ["padding"])
    assert facts["seconds"] >= 0
    with run.recording([], active=False):
        pass
    assert run_directory.read_json(run.run)["status"] == status


def test_a_fresh_run_takes_a_name_of_its_own(tmp_path):
    names = []
    for _ in range(3):
        run, checkpoint = run_directory.open_run(tmp_path, "qlora")
        assert checkpoint is None
        run.begin({})
        names.append(run.path.name)
    assert names == ["qlora", "qlora-2", "qlora-3"]
    assert run_directory.open_run(tmp_path, "qlora_tiny")[0].path.name == "qlora_tiny"
    assert run_directory.open_run(tmp_path, "qlor")[0].path.name == "qlor"


def test_an_empty_directory_and_a_file_of_that_name(tmp_path):
    (tmp_path / "qlora").mkdir()
    assert run_directory.open_run(tmp_path, "qlora")[0].path.name == "qlora"
    (tmp_path / "other").write_text("a file")
    assert run_directory.open_run(tmp_path, "other")[0].path.name == "other-2"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a b", "a\nb"])
def test_odd_names(tmp_path, name):
    with pytest.raises(Refusal, match="RUN_NAME is"):
        run_directory.open_run(tmp_path, name)


def test_auto_takes_the_newest_whole_checkpoint_of_the_newest_run(tmp_path):
    make_run(tmp_path / "qlora", steps=(5, 900), time=1000)
    make_run(tmp_path / "qlora-2", steps=(9, 100), half=(200,), time=3000)
    make_run(tmp_path / "qlora-3", steps=(1,), time=2000)
    make_run(tmp_path / "qlora_tiny", steps=(7,), time=9000)
    run, checkpoint = run_directory.open_run(tmp_path, "qlora", "auto")
    assert run.path == tmp_path / "qlora-2"
    assert checkpoint == tmp_path / "qlora-2" / "checkpoint-100"
    assert [step for step, _ in run.checkpoints()] == [9, 100, 200]
    assert [step for step, _ in run.whole_checkpoints()] == [9, 100]


def test_auto_without_anything_starts_afresh(tmp_path):
    run, checkpoint = run_directory.open_run(tmp_path, "qlora", "auto")
    assert (run.path, checkpoint) == (tmp_path / "qlora", None)
    make_run(tmp_path / "qlora", half=(5,))
    assert run_directory.open_run(tmp_path, "qlora", "auto")[1] is None


def test_a_named_checkpoint_belongs_to_the_run_above_it(tmp_path):
    make_run(tmp_path / "elsewhere", steps=(5,))
    run, checkpoint = run_directory.open_run(tmp_path / "outputs", "qlora", str(tmp_path / "elsewhere" / "checkpoint-5"))
    assert (run.path, checkpoint) == (tmp_path / "elsewhere", tmp_path / "elsewhere" / "checkpoint-5")


def test_checkpoints_that_are_none(tmp_path):
    run = make_run(tmp_path / "run", steps=(5,), half=(6,))
    (tmp_path / "run" / "checkpoint-7").write_text("a file")
    for path, said in [
        (tmp_path / "no" / "checkpoint-5", "does not exist"),
        (run.path, "named checkpoint-N"),
        (run.path / "checkpoint-6", "lacks constants.json, so its save was interrupted"),
        (run.path / "checkpoint-7", "does not exist"),
    ]:
        with pytest.raises(Refusal) as refused:
            run_directory.open_run(tmp_path, "qlora", str(path))
        assert str(path) in str(refused.value)
        assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "step"), [("checkpoint-5", 5), ("checkpoint-0012", 12), ("checkpoint-", None), ("checkpoint-5.tmp", None), ("x", None)]
)
def test_step_of(name, step):
    assert run_directory.step_of(f"a/{name}") == step


def test_newest(tmp_path):
    with pytest.raises(Refusal, match="no run found"):
        run_directory.newest(tmp_path)
    make_run(tmp_path / "a", time=3000)
    make_run(tmp_path / "b", time=2000)
    (tmp_path / "c").mkdir()
    assert run_directory.newest(tmp_path).path == tmp_path / "a"


def test_held_out_file_is_the_validation_rows_else_the_test_rows(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.held_out_file() is None
    run.test.write_text("{}\n")
    assert run.held_out_file() == run.test
    run.validation.write_text("{}\n")
    assert run.held_out_file() == run.validation


def test_read_json(tmp_path):
    assert run_directory.read_json(tmp_path / "no.json", 7) == 7
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(Refusal, match="cut.json is not JSON"):
        run_directory.read_json(tmp_path / "cut.json")
    run_directory.write_json(tmp_path / "new" / "é.json", {"text": "naïve \U0001f600"})
    assert run_directory.read_json(tmp_path / "new" / "é.json") == {"text": "naïve \U0001f600"}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["é.json"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    """A writer is killed in the middle of its work, many times; the file is whole each time."""
    path = tmp_path / "run.json"
    program = f"""
        from common import run_directory
        n = 0
        while True:
            n += 1
            run_directory.write_json({str(path)!r}, {{"n": n, "text": "x" * 300_000, "end": n}})
            if n == 1:
                print("ready", flush=True)
    """
    for delay in (0.003, 0.011, 0.017, 0.029):
        writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        for _ in range(20):
            found = run_directory.read_json(path)
            assert found["n"] == found["end"]
        try:
            writer.wait(delay)
        except subprocess.TimeoutExpired:
            writer.kill()
        writer.wait()
        found = run_directory.read_json(path)
        assert found["n"] == found["end"]


def saved(tmp_path, step, **constants):
    """A whole checkpoint of `step` with these constants."""
    checkpoint = tmp_path / "run" / f"checkpoint-{step}"
    run_directory.write_json(checkpoint / "constants.json", constants)
    (checkpoint / "trainer_state.json").write_text("{}")
    return checkpoint


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("SEED", 42, 7), ("TRAIN_FILES", {"a.jsonl": 1.0}, {"b.jsonl": 1.0}), ("LORA_R", 16, 8), ("LEARNING_RATE", 1e-4, 5e-3)],
)
def test_a_resume_with_another_split_or_shape_is_refused(tmp_path, name, old, new):
    checkpoint = saved(tmp_path, 8, **{name: old, "MAX_GRAD_NORM": 1.0})
    with pytest.raises(Refusal, match=f"was trained with {name} = "):
        run_directory.changed_constants(checkpoint, {name: new, "MAX_GRAD_NORM": 1.0}, "key")


def test_a_resume_names_the_constants_that_may_change(tmp_path):
    checkpoint = saved(tmp_path, 8, MAX_GRAD_NORM=1.0, RUN_NAME="a", SEED=42)
    run_directory.write_json(checkpoint.parent / "run.json", {"data_key": "key"})
    changed = run_directory.changed_constants(checkpoint, {"MAX_GRAD_NORM": 0.3, "RUN_NAME": "b", "SEED": 42}, "key")
    assert changed == ["MAX_GRAD_NORM was 1.0 and is 0.3 from here on"]
    with pytest.raises(Refusal, match="the training files changed"):
        run_directory.changed_constants(checkpoint, {"SEED": 42}, "other key")


def test_checkpoints_that_a_resume_abandons_are_kept_under_another_name(tmp_path):
    for step in (8, 16, 24):
        saved(tmp_path, step)
    assert run_directory.set_aside_newer(tmp_path / "run" / "checkpoint-8") == ["checkpoint-16", "checkpoint-24"]
    assert [step for step, _ in run_directory.RunDirectory(tmp_path / "run").checkpoints()] == [8]
    assert len(list((tmp_path / "run").glob("abandoned-checkpoint-*/constants.json"))) == 2

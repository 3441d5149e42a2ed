"""The run directory: whole files, how a run ended, one process at a time, checkpoints that are set aside."""

import errno
import re
import signal
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from pathlib import Path

import pytest
from example_checkpoints import contents, run_id, write_checkpoint, write_run

from common import log, run_directory, signals
from common.refusal import Refusal
from common.run_directory import RunDirectory


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
    ("raised", "status"),
    [
        (None, "finished"),
        (ValueError("no"), "failed"),
        (Refusal("no"), "failed"),
        (KeyboardInterrupt(), "stopped"),
        (SystemExit(75), "stopped"),
        (signals.Stopped(signal.SIGTERM), "stopped"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_how_it_ended_is_recorded(tmp_path, raised, status):
    run = write_run(tmp_path / "run")
    with pytest.raises(type(raised)) if raised else nullcontext(), run.recording(["padding"]):
        if raised:
            raise raised
    facts = run_directory.read_json(run.run)
    assert (facts["status"], facts["warnings"]) == (status, ["padding"])
    assert facts["seconds"] >= 0
    with run.recording([], active=False):
        pass
    assert run_directory.read_json(run.run)["status"] == status


def test_a_resumed_run_keeps_its_identity_and_its_warnings(tmp_path):
    run, other = write_run(tmp_path / "run"), write_run(tmp_path / "other")
    with run.recording(["padding"]):
        identity = run_id(run)
    run.begin({"LORA_R": 8}, recipe="example")
    with run.recording(["padding", "flat"]):
        pass
    assert run_id(run) == identity != run_id(other)
    assert run_directory.read_json(run.run)["warnings"] == ["padding", "flat"]


HOLDER = """
import sys, time
from pathlib import Path
from common.run_directory import RunDirectory
RunDirectory(Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(60)
"""


def test_a_run_is_one_processs_and_free_again_when_that_was_killed(tmp_path):
    run = write_run(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "taken\n"
        for path in (run.path, run.path / ".." / "run"):
            with pytest.raises(Refusal, match="in use by another process"):
                RunDirectory(path).take()
        write_run(tmp_path / "another").take()
    finally:
        holder.kill()
        holder.wait()
    run.take()
    run.take()  # a process that has it may ask again
    second = subprocess.run([sys.executable, "-c", HOLDER, str(run.path)], capture_output=True, text=True)
    assert second.returncode == 1 and "in use by another process" in second.stderr and "taken" not in second.stdout


def test_a_disk_without_locks_stops_no_run_and_is_said_once(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    log.close()
    run = RunDirectory(tmp_path / "run")
    for _ in range(2):
        run.take()
    (said,) = log.warnings
    log.close()
    assert "knows no locks (No locks available): nothing stops a second process" in said


def test_what_a_killed_start_left_is_removed(tmp_path):
    """A copy for other ranks at once; what came of a download when the run begins, since until then it is gone on with."""
    run = write_run(tmp_path / "run", steps=(5,))
    for name in (".regrouped-checkpoint-5", ".coming-checkpoint-9"):
        write_checkpoint(run.path / name)
    run.take()
    assert [p.name for p in run.path.glob(".*-checkpoint-*")] == [".coming-checkpoint-9"]
    write_checkpoint(run.path / ".regrouped-checkpoint-5")
    run.take()  # it is this process's own now
    assert (run.path / ".regrouped-checkpoint-5").is_dir()
    run.begin({})
    assert not (run.path / ".coming-checkpoint-9").exists() and [step for step, _ in run.whole_checkpoints()] == [5]


def test_what_is_set_aside_stays_whole_and_is_no_checkpoint_any_more(tmp_path):
    run = write_run(tmp_path / "run", steps=(5, 9))
    before = contents(run.path / "checkpoint-9")
    names = [run.set_aside(run.path / "checkpoint-9", "damaged").name]
    write_checkpoint(run.path / "checkpoint-9")
    names.append(run.set_aside(run.path / "checkpoint-9", "damaged").name)  # within the same second
    assert len(set(names)) == 2 and all(re.fullmatch(r"damaged-checkpoint-9-\d{8}-\d{6}x?", name) for name in names)
    assert contents(run.path / names[0]) == before
    assert [step for step, _ in run.checkpoints()] == [5]


def test_checkpoints_that_a_resume_abandons_are_kept_under_another_name(tmp_path):
    run = write_run(tmp_path / "run", steps=(8, 16, 100), half=(24,))
    names = run.set_aside_newer(run.path / "checkpoint-8")
    assert [re.sub(r"-\d{8}-\d{6}$", "", name) for name in names] == [f"abandoned-checkpoint-{step}" for step in (16, 24, 100)]
    assert [step for step, _ in run.checkpoints()] == [8]
    assert all((run.path / name / "optimizer.pt").is_file() for name in names)


def test_a_checkpoint_is_whole_when_its_manifest_is_there(tmp_path):
    run = write_run(tmp_path / "run", steps=(9, 100), half=(200,))
    (run.path / "checkpoint-7").write_text("a file")
    assert [step for step, _ in run.checkpoints()] == [9, 100, 200]
    assert [step for step, _ in run.whole_checkpoints()] == [9, 100]


@pytest.mark.parametrize(
    ("name", "step"), [("checkpoint-5", 5), ("checkpoint-0012", 12), ("checkpoint-", None), ("checkpoint-5.tmp", None), ("x", None)]
)
def test_step_of(name, step):
    assert run_directory.step_of(f"a/{name}") == step


def test_newest(tmp_path):
    with pytest.raises(Refusal, match="no run found"):
        run_directory.newest(tmp_path)
    write_run(tmp_path / "a", time=3000)
    write_run(tmp_path / "b", time=2000)
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


def test_a_run_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(Refusal, match="cannot be a directory: it, or one above it, is a file; set OUTPUT_DIR"):
        RunDirectory(tmp_path / "file" / "run").take()


def test_a_place_where_nothing_can_be_written_is_refused():
    with pytest.raises(Refusal, match=r"nothing can be written to /proc/run \(.*\); set OUTPUT_DIR to another place"):
        RunDirectory(Path("/proc/run")).take()


def test_a_directory_of_a_run_that_was_given(tmp_path):
    own = tmp_path / "mine"
    run_directory.require_own(own)
    (own / ".coming-checkpoint-5").mkdir(parents=True)
    (own / ".lock").write_text("")
    run_directory.require_own(own, "auto")  # a download that broke off is taken up again
    with pytest.raises(Refusal, match=r"holds other things \(\.coming-checkpoint-5, \.lock\); name a directory that is new or empty"):
        run_directory.require_own(own)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x")
    with pytest.raises(Refusal, match="holds other things"):
        run_directory.require_own(tmp_path / "notes", "auto")
    run_directory.require_own(own, "gs://bucket/runs/mine", "mine")
    with pytest.raises(Refusal, match="is of the run theirs, and OUTPUT_DIR is .*/mine; a run keeps its name"):
        run_directory.require_own(own, "gs://bucket/runs/theirs", "theirs")

"""The recipe on a disk that another process fills: it says so, what is committed stays whole, and it goes on when there is room again."""

import json
import os
import sys
import time

import pytest
from user_commands import ROOT, user_environment

from common import manifest
from common.run_directory import RunDirectory, read_json

FLAGS = (
    *("--max-steps", "10", "--save-steps", "4", "--eval-steps", "4", "--logging-steps", "1", "--run-name", "full", "--no-merge"),
)


def command(home, *flags):
    return [sys.executable, "recipes/llama32_qlora.py", "--tiny", "--output-dir", str(home), *FLAGS, *flags]


def fill(disk, leave):
    """Write a file of zeros until `leave` bytes are free; it can be removed."""
    filler, facts = disk.seen / "filler", os.statvfs(disk.seen)
    with filler.open("wb") as out:
        os.posix_fallocate(out.fileno(), 0, facts.f_bavail * facts.f_frsize - leave)
    return filler


@pytest.fixture
def filled(tmp_path, full_disk):
    """A run whose disk is filled after its first checkpoint, as a function of bytes left free and flags: (disk, code, output, filler)."""

    def train(leave, *flags):
        disk = full_disk(20)
        with (tmp_path / "output").open("w") as output:
            process = disk.start(command(disk.path, *flags), cwd=ROOT, env=user_environment(tmp_path), stdout=output, stderr=output)
            deadline = time.monotonic() + 200
            while not (disk.seen / "full" / "checkpoint-4" / manifest.NAME).exists():
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "output").read_text()
                time.sleep(0.02)
            filler = fill(disk, leave)
            code = process.wait(200)
        return disk, code, (tmp_path / "output").read_text(), filler

    return train


def losses(run):
    """[{step: loss} of each session], the steps of which the disk kept the figures."""
    sessions = [{}]
    for line in run.metrics.read_text().splitlines():
        found = json.loads(line) if line.endswith("}") else {}
        if "loss" in found:
            if found["step"] in sessions[-1]:
                sessions.append({})
            sessions[-1][found["step"]] = found["loss"]
    return sessions


@pytest.mark.soak
def test_without_room_for_checkpoints_it_trains_on_and_the_end_is_a_refusal(filled):
    """Room for logs, not for the 2 MB of a checkpoint."""
    disk, code, output, _ = filled(300_000)
    run = RunDirectory(disk.seen / "full")
    assert code == 2 and "Traceback" not in output, output
    for step in (8, 10):
        assert f"warning: checkpoint-{step} was not saved: it needs 2." in output and f"step {step}/10  held-out loss" in output
    (said,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "checkpoint-10 could not be saved for lack of room" in said and f"--resume-from-checkpoint {disk.path}/full/checkpoint-4" in said
    assert run.whole_checkpoints() == [(4, run.path / "checkpoint-4")] == run.checkpoints()
    assert manifest.verify(run.path / "checkpoint-4") == [] and read_json(run.run)["status"] == "failed"


@pytest.mark.soak
def test_on_a_disk_without_a_byte_left_it_ends_in_a_sentence_and_goes_on_when_there_is_room(filled, tmp_path):
    disk, code, output, filler = filled(0, "--report-to", "[]")
    run = RunDirectory(disk.seen / "full")
    assert code == 2 and "Traceback" not in output, output
    assert len([line for line in output.splitlines() if line.startswith("error: the disk is full")]) == 1
    assert run.checkpoints() == [(4, run.path / "checkpoint-4")] and manifest.verify(run.path / "checkpoint-4") == []
    filler.unlink()
    again = disk.run(command(disk.path, "--report-to", "[]", "--resume-from-checkpoint", "auto"), cwd=ROOT, env=user_environment(tmp_path))
    assert again.returncode == 0 and "resuming from checkpoint-4" in again.stdout, again.stdout + again.stderr
    assert [step for step, _ in run.whole_checkpoints()] == [4, 8, 10]
    assert [problem for _, path in run.whole_checkpoints() for problem in manifest.verify(path)] == []
    first, second = losses(run)
    assert set(second) == set(range(5, 11)) and len(first) > 4
    assert {step: second[step] for step in first if step in second} == {step: loss for step, loss in first.items() if step in second}
    assert read_json(run.run)["status"] == "finished"

"""The process that uploads beside a training: what it survives, what it outlives, and in which order it works."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from object_store import BUCKET, wait_until

from common import manifest
from common.refusal import Refusal
from common.uploads import Uploads

ROOT = Path(__file__).resolve().parents[2]
STALLED = "stalled upload"


@pytest.fixture
def run_key(request):
    return request.node.name


@pytest.fixture
def uploads(server, run_key):
    found = Uploads(f"gs://{BUCKET}/runs", run_key)
    yield found
    found.close()


def make(directory, files=3, size=1000):
    directory.mkdir(parents=True)
    for number in range(files):
        (directory / f"file-{number:02}").write_bytes(os.urandom(size))
    manifest.write(directory, {name: manifest.describe(directory / name) for name in manifest.files_in(directory)})
    return directory


def arrived(server, run_key, directory):
    """True where the store has every byte of `directory`, its manifest included."""
    names = [*manifest.files_in(directory), manifest.NAME]
    return all(server.contents(f"runs/{run_key}/{directory.name}/{name}") == (directory / name).read_bytes() for name in names)


def process_of(uploads):
    wait_until(lambda: uploads._process is not None, 10)
    return uploads._process


def test_directories_and_files_arrive_and_the_process_is_light(server, uploads, run_key, tmp_path):
    checkpoint = make(tmp_path / "checkpoint-1")
    (tmp_path / "run.json").write_text('{"step": 1}')
    uploads.submit(checkpoint, checkpoint.name)
    uploads.submit_files({"run.json": tmp_path / "run.json", "logs/metrics.jsonl": tmp_path / "run.json"})
    blocked = uploads.blocked_seconds
    assert uploads.wait() == {}
    assert uploads.blocked_seconds == blocked > 0, "waiting at the end holds up no step"
    assert uploads.safe() == {"checkpoint-1"}
    assert arrived(server, run_key, checkpoint)
    assert server.contents(f"runs/{run_key}/logs/metrics.jsonl") == b'{"step": 1}'
    process = psutil.Process(process_of(uploads).pid)
    assert process.nice() >= 10
    assert not [mapped.path for mapped in process.memory_maps() if "torch" in mapped.path]
    assert [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (1, 2)] == ["/dev/null"] * 2
    uploads.close()
    assert not process.is_running()


def test_killed_in_the_middle_it_is_started_again_and_the_data_arrives(server, uploads, run_key, tmp_path):
    kill_in_the_middle(server, uploads, run_key, make(tmp_path / "checkpoint-1", files=16), "file-04")


@pytest.mark.soak
def test_fifteen_kills_in_the_middle_of_an_upload(server, uploads, run_key, tmp_path):
    draw = random.Random(0)
    for number in range(15):
        kill_in_the_middle(server, uploads, run_key, make(tmp_path / f"checkpoint-{number}", files=24), f"file-{draw.randrange(14):02}")


def kill_in_the_middle(server, uploads, run_key, checkpoint, begun):
    """Submit, kill -9 once the file `begun` is in the store and the manifest is not, and see it arrive all the same."""
    uploads.submit(checkpoint, checkpoint.name)
    process = process_of(uploads)
    wait_until(lambda: server.contents(f"runs/{run_key}/{checkpoint.name}/{begun}") is not None, 20)
    process.kill()
    process.wait()
    assert server.contents(f"runs/{run_key}/{checkpoint.name}/{manifest.NAME}") is None, "it was not in the middle"
    assert checkpoint.name not in uploads.safe()
    assert uploads.wait() == {}
    assert checkpoint.name in uploads.safe()
    assert process_of(uploads).pid != process.pid
    assert arrived(server, run_key, checkpoint)


def test_signals_that_launchers_send_to_everybody_do_not_end_it(server, uploads, run_key, tmp_path):
    checkpoint = make(tmp_path / "checkpoint-1", files=8)
    uploads.submit(checkpoint, checkpoint.name)
    process = process_of(uploads)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):  # at once, before it could ignore them
        os.kill(process.pid, number)
    wait_until(lambda: server.contents(f"runs/{run_key}/checkpoint-1/file-00") is not None, 20)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.killpg(process.pid, number)
    assert uploads.wait() == {}
    assert process_of(uploads) is process
    assert process.poll() is None
    assert arrived(server, run_key, checkpoint)


PARENT = """
import os, sys, time
from common.uploads import Uploads
uploads = Uploads(sys.argv[1], "run")
uploads.submit(sys.argv[2], "checkpoint-1")
while uploads._process is None:
    time.sleep(0.01)
if os.fork() == 0:  # as a data loader's worker, which holds a copy of the pipe
    time.sleep(20)
    os._exit(0)
print(uploads._process.pid, flush=True)
time.sleep(60)
"""


def test_it_ends_with_a_killed_parent(server, tmp_path):
    """Even where a fork of the parent lives on."""
    command = [sys.executable, "-c", PARENT, f"gs://{BUCKET}/orphan", str(make(tmp_path / "checkpoint-1", files=30))]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE)
    child = psutil.Process(int(parent.stdout.readline()))
    forked = [process for process in psutil.Process(parent.pid).children() if process.pid != child.pid]
    wait_until(lambda: server.contents("orphan/run/checkpoint-1/file-00") is not None, 20)
    parent.kill()
    parent.wait()
    assert forked[0].is_running()
    try:
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 5)
    finally:
        forked[0].kill()
        parent.stdout.close()
    assert server.contents(f"orphan/run/checkpoint-1/{manifest.NAME}") is None, "it had nothing left to do"


def test_the_newest_checkpoint_goes_first_and_the_newest_content_wins(server, uploads, run_key, tmp_path):
    path = tmp_path / "run.json"
    path.write_text("one")
    with server.faults(stall=0.5) as faults:
        faults.force(STALLED, "checkpoint-1/")
        faults.force(STALLED, "run.json")
        uploads.submit(make(tmp_path / "checkpoint-1", files=1), "checkpoint-1")
        uploads.submit_files({"run.json": path})
        wait_until(lambda: faults.injected[STALLED] == 2, 20)
        uploads.submit(make(tmp_path / "checkpoint-2", files=8), "checkpoint-2")
        uploads.submit(make(tmp_path / "checkpoint-3"), "checkpoint-3")
        for text in ("two", "three"):
            path.write_text(text)
            uploads.submit_files({"run.json": path})
        path.write_text("written after it was submitted")
        wait_until(lambda: "checkpoint-3" in uploads.safe(), 20)
        assert "checkpoint-2" not in uploads.safe()
    assert uploads.wait() == {}
    assert uploads.safe() == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
    assert server.contents(f"runs/{run_key}/run.json") == b"three"


def test_what_says_whose_a_checkpoint_is_arrives_before_it(server, uploads, run_key, tmp_path):
    """run.json first of the files, and the checkpoint not before all of them, though one of them needs long."""
    found = dict.fromkeys(("run.json", "data.json"), tmp_path / "file")
    (tmp_path / "file").write_text("{}")
    arrived = []
    with server.faults(stall=0.5) as faults:
        faults.force(STALLED, "data.json")
        chosen = faults.choose
        faults.choose = lambda identity, path, fitting: arrived.append(path) or chosen(identity, path, fitting)
        uploads.submit_files(found)
        uploads.submit(make(tmp_path / "checkpoint-1", files=1), "checkpoint-1")
        assert uploads.wait() == {}
    sent = [path for path in arrived if "uploadType" in path]
    order = [next(i for i, path in enumerate(sent) if name in path) for name in ("run.json", "data.json", "file-00", manifest.NAME)]
    assert order == sorted(order) and faults.injected[STALLED] == 1


def test_where_no_process_can_be_started_the_jobs_fail_until_asked_again(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    uploads = Uploads(f"file://{tmp_path}/store", "run")
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", refuse)
        uploads.submit(make(tmp_path / "checkpoint-1"), "checkpoint-1")
        why = "the upload process could not be started (Resource temporarily unavailable)"
        assert uploads.wait(timeout=10) == {"checkpoint-1": why}
    uploads.retry_failed()
    assert uploads.wait() == {} and uploads.safe() == {"checkpoint-1"}
    uploads.close()


def test_a_process_that_cannot_even_begin_says_why_and_no_secrets(tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text('raise ImportError("libz.so.1: cannot open s3://AKIA:S3CRET@bucket")')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    uploads = Uploads(f"file://{tmp_path}/store", "run")
    uploads.submit(make(tmp_path / "checkpoint-1"), "checkpoint-1")
    said = uploads.wait()["checkpoint-1"]
    uploads.close()
    assert "died 3 times over it (exit code 1: ImportError: libz.so.1: cannot open s3://" in said
    assert "AKIA" not in said and "S3CRET" not in said


def test_a_package_that_is_missing_there_is_named(server, tmp_path, monkeypatch):
    (tmp_path / "gcsfs.py").write_text("import a_package_that_is_none")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    uploads = Uploads(f"gs://{BUCKET}/runs", "run")
    uploads.submit(make(tmp_path / "checkpoint-1", files=1), "checkpoint-1")
    assert "the Python package a_package_that_is_none cannot be imported here" in uploads.wait(timeout=15)["checkpoint-1"]
    uploads.close()


def test_paths_in_the_environment_mean_the_same_to_it_and_modules_lying_there_nothing(tmp_path, monkeypatch):
    for name in ("json.py", "common.py"):
        (tmp_path / name).write_text("raise SystemExit('not mine')")
    monkeypatch.chdir(tmp_path)
    uploads = Uploads(f"file://{tmp_path}/store", "run")
    uploads.submit(make(tmp_path / "checkpoint-1"), "checkpoint-1")
    assert uploads.wait() == {}
    assert psutil.Process(process_of(uploads).pid).cwd() == str(tmp_path)
    uploads.close()


def test_it_works_on_two_jobs_at_once_however_many_it_is_sent(tmp_path):
    """The manifest of each directory is a pipe that nobody writes to, so that none ends."""
    (tmp_path / "checkpoint-1").mkdir()
    os.mkfifo(tmp_path / "checkpoint-1" / manifest.NAME)
    command = [sys.executable, "-m", "common.uploads", f"file://{tmp_path}/store", "run", str(os.getpid())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        try:
            for number in range(200):
                line = {"key": "checkpoint-1", "number": number, "directory": str(tmp_path / "checkpoint-1")}
                process.stdin.write(json.dumps(line).encode() + b"\n")
            process.stdin.flush()
            wait_until(lambda: psutil.Process(process.pid).num_threads() >= 4, 10)
            time.sleep(0.2)
            assert psutil.Process(process.pid).num_threads() <= 6
        finally:
            process.kill()


def test_another_run_in_the_store_is_not_overwritten(tmp_path):
    """Two runs came to have one name: the second is told at every save, and the first stays as it is."""
    for run_id in ("first", "second"):
        (tmp_path / run_id).write_text(json.dumps({"run_id": run_id}))
    uploads = {run_id: Uploads(f"file://{tmp_path}/store", "run", run_id) for run_id in ("first", "second")}
    for name in ("first", "second", "first"):
        uploads[name].submit_files({"run.json": tmp_path / name})
        uploads[name].submit(make(tmp_path / f"{len(list(tmp_path.iterdir()))}"), name)
        found = uploads[name].wait()
        assert set(found) == (set() if name == "first" else {"run.json", "second"})
        assert all("/store/run is another run's by now and would be overwritten" in why for why in found.values())
    for each in uploads.values():
        each.close()
    assert sorted(p.name for p in (tmp_path / "store" / "run").iterdir()) == ["first", "run.json"]
    assert json.loads((tmp_path / "store" / "run" / "run.json").read_text()) == {"run_id": "first"}


def test_what_fails_is_said_not_raised_and_tried_again_or_withdrawn_when_asked(server, uploads, run_key, tmp_path):
    unfinished = tmp_path / "checkpoint-1"
    unfinished.mkdir()
    uploads.submit(unfinished, "checkpoint-1")
    uploads.submit_files({"run.json": tmp_path / "none.json"})
    found = uploads.wait()
    assert set(found) == {"checkpoint-1", "run.json"}
    assert "has no manifest.json, which is written last" in found["checkpoint-1"]
    assert "none.json could not be read (No such file or directory)" in found["run.json"]
    assert uploads.failed() == found
    assert uploads.safe() == set()
    manifest.write(unfinished, {})
    (tmp_path / "none.json").write_text("{}")
    uploads.retry_failed()
    uploads.submit_files({"run.json": tmp_path / "none.json"})
    uploads.submit(tmp_path / "none", "checkpoint-2")
    assert set(uploads.wait()) == {"checkpoint-2"}
    for key in ("checkpoint-1", "checkpoint-2"):
        uploads.withdraw(key)
    assert uploads.wait() == {}
    assert uploads.safe() == {"checkpoint-1"}, "what is safe stays safe"


def test_a_process_that_dies_over_and_over_is_given_up_until_asked_again(server, uploads, run_key, tmp_path, monkeypatch):
    monkeypatch.setattr("common.uploads.MOST_DEATHS", 2)
    checkpoint = make(tmp_path / "checkpoint-1", files=1)
    with server.faults(rate=1.0, kinds=(STALLED,), stall=5) as faults:
        uploads.submit(checkpoint, checkpoint.name)
        for death in (1, 2):
            wait_until(lambda death=death: faults.injected[STALLED] == death, 20)
            uploads._process.kill()
        wait_until(uploads.failed, 10)
        assert uploads.failed() == {"checkpoint-1": "the upload process died 2 times over it (killed by SIGKILL)"}
    uploads.retry_failed()
    assert uploads.wait() == {}
    assert arrived(server, run_key, checkpoint)


def test_waiting_ends_and_says_what_for(server, uploads, tmp_path, monkeypatch):
    monkeypatch.setattr("common.uploads.SAY_SECONDS", 0.3)
    said = []
    with server.faults(stall=5) as faults:
        faults.force(STALLED)
        uploads.submit(make(tmp_path / "checkpoint-1", files=1), "checkpoint-1")
        start = time.monotonic()
        found = uploads.wait(timeout=1, say=said.append)
        assert 1 <= time.monotonic() - start < 4
    assert set(found) == {"checkpoint-1"}
    assert "still on its way after 1 s" in found["checkpoint-1"]
    assert said
    assert set(said) == {f"waiting for 1 upload to gs://{BUCKET}/runs: checkpoint-1"}


def test_an_address_that_is_none_is_refused_at_once():
    with pytest.raises(Refusal, match="is no address of a store"):
        Uploads("bucket/prefix", "run")

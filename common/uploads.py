"""Uploads in the background, by a process of their own, so that training shares neither memory nor interpreter with them.

    uploads = Uploads("gs://bucket/prefix", "run-1")
    uploads.submit("outputs/run-1/checkpoint-96", "checkpoint-96")     # returns at once
    uploads.safe()                                                     # {"checkpoint-96"} once its manifest is verified there
    not_safe = uploads.wait()                                          # {} or {key: why}

The newest checkpoint goes first: if the machine dies, it is the one worth having. Small files go before those that are not begun, in
their order: a checkpoint in the store finds there what says whose it is. Nothing here raises into training: what fails is remembered,
and tried again when asked to. The process outlives no parent and heeds no signal but SIGKILL; killed, it is started again, and what it
had not confirmed is sent again.

`python -m common.uploads URI KEY PID [RUN_ID]` is that process: jobs come as JSON lines on stdin, answers go as JSON lines to stdout.
"""

import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import wraps
from pathlib import Path

from common import remote_runs, storage
from common.refusal import Refusal
from common.safe_text import without_secrets

MOST_DEATHS = 3  # of the process over one job, after which that job has failed
SAY_SECONDS = 30  # between two lines of `wait`
NICE = 10  # the CPU belongs to training first
KINDS = ("bytes", "directory")  # of jobs; the process works on one of each at once
WAITING, SAFE = "", "safe"


def _counted(method):
    """Add the time that the caller spends in `method` to blocked_seconds."""

    @wraps(method)
    def counting(self, *arguments, **options):
        start = time.perf_counter()
        try:
            return method(self, *arguments, **options)
        finally:
            self.blocked_seconds += time.perf_counter() - start

    return counting


class Uploads:
    """What is to be stored below `uri`/`run_key`, and how far that is. Use from one thread.

    run_id: whose that key is; where the store's run.json says another one, nothing is stored and every job fails.
    blocked_seconds: the time spent in the methods below by whoever called them, `wait` aside.
    `Refusal` where `uri` is no address of a store or lacks a package.
    """

    def __init__(self, uri, run_key, run_id=None):
        storage.open_store(uri)
        self.blocked_seconds = 0.0
        self._arguments = [uri, run_key, str(os.getpid()), *([run_id] if run_id else [])]
        self._changed = threading.Condition()
        self._jobs = {}  # key -> _Job, the newest last
        self._under_way = {}  # "directory" or "bytes" -> (key, number) of the one that the process has
        self._process, self._closed = None, False
        threading.Thread(target=self._feed, daemon=True).start()

    @_counted
    def submit(self, directory, key):
        """Store `directory`, which has a manifest, as `key`: soon, in the background."""
        self._queue(key, {"directory": str(Path(directory).absolute())})

    @_counted
    def submit_files(self, files):
        """Store the files of {key: path} as they are now."""
        for key, path in files.items():
            try:
                self._queue(key, {"bytes": base64.b64encode(Path(path).read_bytes()).decode()})
            except OSError as error:
                with self._changed:
                    self._jobs[key] = _Job({}, state=f"{path} could not be read ({error.strerror})")

    @_counted
    def withdraw(self, key):
        """Forget `key`, unless it is safe: its directory is about to go, and what is newer is safe."""
        with self._changed:
            if key in self._jobs and self._jobs[key].state != SAFE:
                del self._jobs[key]

    @_counted
    def safe(self):
        """The keys of the directories that are in the store, every file and then the manifest verified."""
        with self._changed:
            return {key for key, job in self._jobs.items() if job.state == SAFE and "directory" in job.what}

    @_counted
    def failed(self):
        """{key: why} of what could not be stored so far."""
        return self._failed()

    @_counted
    def retry_failed(self):
        """Try again what failed; to be called at every save and before the last `wait`."""
        with self._changed:
            for job in self._jobs.values():
                if job.state not in (WAITING, SAFE) and job.what:
                    job.state, job.deaths = WAITING, 0
            self._changed.notify_all()

    def wait(self, timeout=None, say=print):
        """Wait until everything is stored or has failed, at most `timeout` seconds; {key: why} of what is not safe."""
        start = said = time.monotonic()
        with self._changed:
            while left := [key for key, job in self._jobs.items() if job.state == WAITING]:
                now = time.monotonic()
                if timeout is not None and now - start > timeout:
                    break
                if now - said > SAY_SECONDS:
                    said = now
                    say(f"waiting for {len(left)} upload{'s' if len(left) > 1 else ''} to {self._arguments[0]}: {', '.join(left[:5])}")
                self._changed.wait(0.2)
            late = {key: f"it was still on its way after {time.monotonic() - start:.0f} s" for key in left}
        return {**self._failed(), **late}

    @_counted
    def close(self):
        """End the process, whatever it is doing: half an upload counts for nothing, in the store as here."""
        with self._changed:
            self._closed, process = True, self._process
            self._changed.notify_all()
        if process is not None:
            process.kill()
            process.wait()

    # between the threads

    def _failed(self):
        with self._changed:
            return {key: job.state for key, job in self._jobs.items() if job.state not in (WAITING, SAFE)}

    def _queue(self, key, what):
        with self._changed:
            self._jobs.pop(key, None)
            self._jobs[key] = _Job(what)
            self._changed.notify_all()

    def _next(self):
        """(kind, key) to send now: one file at a time, and where none is left, of the directories the newest; None for nothing."""
        files, directories = ([key for key, job in self._jobs.items() if kind in job.what and job.state == WAITING] for kind in KINDS)
        if "bytes" in self._under_way:  # two at once could overtake each other and leave the older content
            return None
        if files:
            return "bytes", files[0]
        return ("directory", directories[-1]) if directories and "directory" not in self._under_way else None

    def _feed(self):
        """Start the process and hand it one job after another; the thread of this object."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the process inherits that, until it ignores them itself
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next())
                if self._closed:
                    return
                try:
                    process = self._process = self._process or self._start()
                except (OSError, RuntimeError, MemoryError) as error:  # no more processes, threads or memory
                    for job in [job for job in self._jobs.values() if job.state == WAITING]:
                        job.state = f"the upload process could not be started ({getattr(error, 'strerror', None) or error})"
                    self._changed.notify_all()
                    continue
                kind, key = self._next()
                job = self._jobs[key]
                self._under_way[kind] = key, job.number
                line = json.dumps({"key": key, "number": job.number, **job.what}) + "\n"
            with suppress(OSError, ValueError):  # it died: _listen sees that
                process.stdin.write(line.encode())
                process.stdin.flush()

    def _start(self):
        command = [sys.executable, "-P", "-m", "common.uploads", *self._arguments]  # -P: no modules of the directory we are in
        home = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, home))}
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - not a pipe, which may fill up; it is gone with `_listen`
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        threading.Thread(target=self._listen, args=[process, errors], daemon=True).start()
        return process

    def _listen(self, process, errors):
        """Take the answers of `process`; when it is gone, what it had not answered is sent again. errors: the file of its stderr."""
        with suppress(ValueError):  # half a line: it was killed
            for line in process.stdout:
                answer = json.loads(line)
                with self._changed:
                    self._answered(answer["number"], answer["error"] or SAFE)
        code = process.wait()
        with self._changed:
            for key, number in list(self._under_way.values()):
                job = self._jobs.get(key)
                if job and job.number == number:
                    job.deaths += 1
                died = job and job.deaths >= MOST_DEATHS
                self._answered(number, f"the upload process died {job.deaths} times over it ({_ended(code, errors)})" if died else WAITING)
            self._process = None
            self._changed.notify_all()

    def _answered(self, number, state):
        """The job `number` is not under way any more; what was submitted under its key meanwhile still waits."""
        for kind, (key, sent) in list(self._under_way.items()):
            if sent == number:
                del self._under_way[kind]
                if key in self._jobs and self._jobs[key].number == number:
                    self._jobs[key].state = state
                    if kind == "bytes" and state == SAFE:
                        self._jobs[key].what = {"bytes": ""}  # a snapshot has no further use
        self._changed.notify_all()


class _Job:
    """One thing to store: {"directory": path} or {"bytes": base64}, and where it stands: WAITING, SAFE, or why it failed."""

    numbers = itertools.count()

    def __init__(self, what, state=WAITING):
        self.what, self.state, self.number, self.deaths = what, state, next(_Job.numbers), 0


def _ended(code, errors):
    errors.seek(0)
    said = "".join(f": {line}" for line in errors.read().decode(errors="replace").strip().splitlines()[-1:])
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}{without_secrets(said)[:300]}"


# the process


def main():
    """Store what stdin asks for until it ends or the parent is gone."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    uri, run_key, parent, run_id = [*sys.argv[1:], None][:4]
    store, lock = storage.open_store(uri), threading.Lock()
    answers = os.fdopen(os.dup(1), "w")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.nice(NICE)
    threading.Thread(target=_end_with, args=[int(parent)], daemon=True).start()

    def work(job):
        error = _error_of(lambda: _store(store, run_key, run_id, job))
        with lock:
            answers.write(json.dumps({"key": job["key"], "number": job["number"], "error": error}) + "\n")
            answers.flush()

    pool = ThreadPoolExecutor(len(KINDS))  # what more were asked of it would wait
    for line in sys.stdin.buffer:
        pool.submit(work, json.loads(line))
    os._exit(0)  # at once, though uploads are under way


def _store(store, run_key, run_id, job):
    key = f"{run_key}/{job['key']}"
    if run_id and remote_runs.facts(store, run_key).get("run_id", run_id) != run_id:
        raise Refusal(f"{store.uri(run_key)} is another run's by now and would be overwritten; take another CHECKPOINT_URI")
    if "directory" in job:
        store.upload_directory(job["directory"], key)
    else:
        store.upload_bytes(base64.b64decode(job["bytes"]), key)


def _error_of(action):
    try:
        action()
    except Refusal as refusal:
        return str(refusal)
    except Exception as error:  # the text of an unknown error may hold what no log should
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"
    return None


def _end_with(parent):
    """End when the parent is gone, also where a fork of it still holds the other end of stdin."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


if __name__ == "__main__":
    main()

"""The layout of a run directory, the same for every recipe. Training, evaluation and report meet only here.

    outputs/<run>/
        constants.json          the resolved constants
        ds_config.json          the ZeRO JSON as it was resolved, where weights are divided among ranks
        run.json                recipe, base model, status, versions, command, figures of the training
        data.json               statistics of the data, the masked example
        validation.jsonl        held-out rows that pick the best checkpoint
        test.jsonl              held-out rows that are only reported
        checkpoint-N/           N = optimiser steps done; manifest.json is written last and makes it whole
        unfinished-…, damaged-…, abandoned-checkpoint-N-TIME/   kept, never resumed from
        final_model/            what the run was for: adapter or full model, tokenizer, constants.json, model card
        merged_model/           adapter merged into the 16-bit base
        held_out_tokens.npz     of a pretraining run: held-out rows that its checkpoints are judged on
        samples.json            what a pretrained model writes
        logs/training.log       what the terminal showed
        logs/metrics.jsonl      one JSON object per logged step
        logs/tensorboard/, logs/wandb/
        eval/                   one JSON per judged checkpoint, summary.json, table.md, curves.png
        report.html
"""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common import manifest, signals
from common.log import warn
from common.refusal import Refusal

_taken = {}  # by the path of each lock that this process has or cannot have: the descriptor, None where the disk knows no locks
LOCKED = (errno.EAGAIN, errno.EACCES)  # what disks answer where another process has a lock


class InUse(Refusal):
    """Another process has the run."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run. Nothing is created by asking for a path."""

    path: Path

    constants = property(lambda self: self.path / "constants.json")
    run = property(lambda self: self.path / "run.json")
    ds_config = property(lambda self: self.path / "ds_config.json")
    claim = property(lambda self: self.path / ".claim.json")  # whose the name is until run.json says it
    data = property(lambda self: self.path / "data.json")
    validation = property(lambda self: self.path / "validation.jsonl")
    test = property(lambda self: self.path / "test.jsonl")
    final_model = property(lambda self: self.path / "final_model")
    merged_model = property(lambda self: self.path / "merged_model")
    held_out_tokens = property(lambda self: self.path / "held_out_tokens.npz")
    samples = property(lambda self: self.path / "samples.json")
    logs = property(lambda self: self.path / "logs")
    training_log = property(lambda self: self.path / "logs" / "training.log")
    metrics = property(lambda self: self.path / "logs" / "metrics.jsonl")
    tensorboard = property(lambda self: self.path / "logs" / "tensorboard")
    wandb = property(lambda self: self.path / "logs")  # W&B adds its own wandb/
    eval = property(lambda self: self.path / "eval")
    report = property(lambda self: self.path / "report.html")

    def begin(self, constants, **facts):
        """Create the directory and write constants.json and run.json; a resumed run keeps what run.json had, a fresh one its claim."""
        self.logs.mkdir(parents=True, exist_ok=True)
        manifest.sync_directory(self.path.parent)
        write_json(self.constants, constants)
        earlier = {"started": now(), "run_id": secrets.token_hex(8), **read_json(self.claim, {}), **read_json(self.run, {})}
        self.update(**{**earlier, **facts, "status": "running"})
        self.claim.unlink(missing_ok=True)
        for left in self.path.glob(".coming-*"):  # of a download that broke off; what is needed is here by now
            shutil.rmtree(left, ignore_errors=True)

    def is_free(self):
        """True where no run began here: there is nothing, or only what a start that did not come to training left."""
        return not self.path.exists() or (self.path.is_dir() and {p.name for p in self.path.iterdir()} <= {".lock", ".claim.json"})

    def claimed(self, asked_name):
        """The bytes of .claim.json, written where it is not there yet: who the run is that will begin here."""
        if read_json(self.claim) is None:
            write_json(self.claim, {"run_id": secrets.token_hex(8), "asked_name": asked_name, "started": now()})
        return self.claim.read_bytes()

    def update(self, **facts):
        """Add facts to run.json."""
        write_json(self.run, {**read_json(self.run, {}), **facts})

    @contextmanager
    def recording(self, warnings, active=True):
        """Write how what happens inside ended into run.json: finished, stopped (a signal) or failed. active: on rank 0."""
        start, status = time.time(), "failed"
        try:
            yield
            status = "finished"
        except (SystemExit, KeyboardInterrupt, signals.Stopped):
            status = "stopped"
            raise
        finally:
            if active:
                earlier = read_json(self.run, {}).get("warnings", [])  # of the session before a resume
                said = [*earlier, *(w for w in warnings if w not in earlier)]
                self.update(status=status, finished=now(), seconds=round(time.time() - start, 1), warnings=said)

    def take(self):
        """Make the run this process's until it ends, however it ends; `InUse` where another one, perhaps still saving, has it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise Refusal(f"{self.path} cannot be a directory: it, or one above it, is a file; set OUTPUT_DIR to another place") from None
        except OSError as error:
            raise self._unwritable(error) from None
        path = self.path.resolve() / ".lock"
        if path in _taken:
            return
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno in LOCKED:
                said = "is in use by another process, which may still be saving; wait until it ended, or stop it"
                raise InUse(f"{self.path} {said}") from None
            lock = None
            warn(f"the disk of {self.path} knows no locks ({error.strerror}): nothing stops a second process from writing into this run")
        _taken[path] = lock
        for left in self.path.glob(".regrouped-*") if lock is not None else ():  # of a start that was killed
            shutil.rmtree(left, ignore_errors=True)

    def _unwritable(self, error):
        return Refusal(f"nothing can be written to {self.path} ({error.strerror}); set OUTPUT_DIR to another place")

    def set_aside(self, checkpoint, why):
        """Rename a checkpoint to `why`-checkpoint-N-TIME, where nothing takes it for one; its new path."""
        target = checkpoint.with_name(f"{why}-{checkpoint.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        while target.exists():
            target = target.with_name(f"{target.name}x")
        checkpoint.rename(target)
        return target

    def set_aside_newer(self, checkpoint):
        """Rename the checkpoints after `checkpoint`, which a resume from it abandons; their new names."""
        newer = [path for step, path in self.checkpoints() if step > step_of(checkpoint)]
        return [self.set_aside(path, "abandoned").name for path in newer]

    def held_out_file(self):
        """validation.jsonl, else test.jsonl; None where nothing is held out."""
        return next((f for f in (self.validation, self.test) if f.is_file()), None)

    def checkpoints(self):
        """[(step, path), …] of every checkpoint-N/ by step, whole or not."""
        return sorted((step_of(p), p) for p in self.path.glob("checkpoint-*") if step_of(p) is not None and p.is_dir())

    def whole_checkpoints(self):
        """The checkpoints whose manifest, written last, is there."""
        return [(step, p) for step, p in self.checkpoints() if manifest.exists(p)]


def require_own(directory, resume=None, from_store=None):
    """`Refusal` where the directory that a run was given holds another one, several, or anything else; or is not what it resumes.

    resume: a checkpoint, "auto", or an address in a store, where from_store is the run's name.
    """
    directory = Path(directory)
    run = RunDirectory(directory)
    if resume and resume != "auto" and "://" not in resume and Path(resume).resolve().parent != directory.resolve():
        raise Refusal(f"RESUME_FROM_CHECKPOINT is {resume}, and OUTPUT_DIR is {directory}; a run goes on in its own directory: leave "
                      f"OUTPUT_DIR out, or set it to {Path(resume).parent}")  # fmt: skip
    if from_store and from_store != directory.name:
        raise Refusal(f"RESUME_FROM_CHECKPOINT is of the run {from_store}, and OUTPUT_DIR is {directory}; a run keeps its name: leave "
                      f"OUTPUT_DIR out, or set it to {directory.parent / from_store}")  # fmt: skip
    begun = run.run.is_file() or (directory / ".lock").is_file()  # also by a download that broke off before run.json
    if run.is_free() or (resume and begun) or resume not in (None, "auto"):
        return
    if run.run.is_file() or run.checkpoints():
        step = max((step for step, _ in run.checkpoints()), default=0)
        raise Refusal(f"OUTPUT_DIR {directory} holds another run{f', saved at step {step}' if step else ''}; go on with it by "
                      f"--resume-from-checkpoint auto, or give this one a new name, such as {directory}-2")  # fmt: skip
    if runs := sorted(path.parent.name for path in directory.glob("*/run.json")):
        raise Refusal(f"OUTPUT_DIR {directory} holds runs ({', '.join(runs[:3])}), and this recipe wants a directory for its run alone, "
                      f"such as {directory}/my_run")  # fmt: skip
    found = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else ["a file"]
    raise Refusal(f"OUTPUT_DIR {directory} holds other things ({', '.join(found[:3])}); name a directory that is new or empty")


def now():
    """The local time with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def step_of(path):
    """The N of …/checkpoint-N, None for any other name."""
    found = re.fullmatch(r"checkpoint-(\d+)", Path(path).name)
    return int(found.group(1)) if found else None


def is_called(name, found, facts):
    """True where the run in the directory `found`, with this run.json, is one of those that were started as `name`: name, name-2, …"""
    return found == name or bool(re.fullmatch(rf"{re.escape(name)}-\d+", found) and facts.get("asked_name", name) == name)


def read_json(path, default=None):
    """The JSON in `path`; `default` where there is no such file; `Refusal` where it is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Refusal(f"{path} is not JSON ({error}); it was changed or cut short after it was written") from None


def write_json(path, value):
    """Write `value` as JSON so that a reader sees the old file or the new one, never half of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def newest(output_dir="outputs"):
    """The run directory under `output_dir` whose run.json was written last; `Refusal` where there is none."""
    runs = sorted(Path(output_dir).glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise Refusal(f"no run found under {output_dir}/ (a run has a run.json); train one first, or name its directory")
    return RunDirectory(runs[-1].parent)

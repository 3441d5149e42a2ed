"""The layout of a run directory, the same for every recipe. Training, evaluation and report meet only here.

    outputs/<run>/
        constants.json          the resolved constants
        run.json                recipe, base model, status, versions, command, figures of the training
        data.json               statistics of the data, the masked example
        validation.jsonl        held-out rows that pick the best checkpoint
        test.jsonl              held-out rows that are only reported
        checkpoint-N/           N = optimiser steps done; constants.json is written last and makes it whole
        final_model/            what the run was for: adapter or full model, tokenizer, constants.json, model card
        merged_model/           adapter merged into the 16-bit base
        logs/training.log       what the terminal showed
        logs/metrics.jsonl      one JSON object per logged step
        logs/tensorboard/, logs/wandb/
        eval/                   one JSON per judged checkpoint, summary.json, table.md, curves.png
        report.html
"""

import json
import os
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common.refusal import Refusal


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run. Nothing is created by asking for a path."""

    path: Path

    constants = property(lambda self: self.path / "constants.json")
    run = property(lambda self: self.path / "run.json")
    data = property(lambda self: self.path / "data.json")
    validation = property(lambda self: self.path / "validation.jsonl")
    test = property(lambda self: self.path / "test.jsonl")
    final_model = property(lambda self: self.path / "final_model")
    merged_model = property(lambda self: self.path / "merged_model")
    logs = property(lambda self: self.path / "logs")
    training_log = property(lambda self: self.path / "logs" / "training.log")
    metrics = property(lambda self: self.path / "logs" / "metrics.jsonl")
    tensorboard = property(lambda self: self.path / "logs" / "tensorboard")
    wandb = property(lambda self: self.path / "logs")  # W&B adds its own wandb/
    eval = property(lambda self: self.path / "eval")
    report = property(lambda self: self.path / "report.html")

    def begin(self, constants, **facts):
        """Create the directory and write constants.json and run.json; a resumed run keeps what run.json had."""
        self.logs.mkdir(parents=True, exist_ok=True)
        write_json(self.constants, constants)
        self.update(**{"started": now(), **read_json(self.run, {}), **facts, "status": "running"})

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
        except KeyboardInterrupt:
            status = "stopped"
            whole = [path.name for _, path in self.whole_checkpoints()]
            if active and whole:
                resume = f"--resume-from-checkpoint {self.path / whole[-1]}"
                print(f"stopped after {whole[-1]}; to go on: the same command with {resume}", flush=True)
            raise
        finally:
            if active:
                earlier = read_json(self.run, {}).get("warnings", [])  # of the session before a resume
                said = [*earlier, *(w for w in warnings if w not in earlier)]
                self.update(status=status, finished=now(), seconds=round(time.time() - start, 1), warnings=said)

    def held_out_file(self):
        """validation.jsonl, else test.jsonl; None where nothing is held out."""
        return next((f for f in (self.validation, self.test) if f.is_file()), None)

    def checkpoints(self):
        """[(step, path), …] of every checkpoint-N/ by step, whole or not."""
        return sorted((step_of(p), p) for p in self.path.glob("checkpoint-*") if step_of(p) is not None and p.is_dir())

    def whole_checkpoints(self):
        """The checkpoints whose constants.json, written last, is there."""
        return [(step, p) for step, p in self.checkpoints() if (p / "constants.json").is_file()]


def now():
    """The local time with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def step_of(path):
    """The N of …/checkpoint-N, None for any other name."""
    found = re.fullmatch(r"checkpoint-(\d+)", Path(path).name)
    return int(found.group(1)) if found else None


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def open_run(output_dir, name, resume=None):
    """(RunDirectory, checkpoint to resume from or None). A fresh run never touches another one: it takes name-2, name-3, …

    resume: None starts afresh; "auto" continues the newest run of this name at its newest whole checkpoint, and starts
    afresh where there is none; a path names the checkpoint. Raises `Refusal` for a path that is none, or an odd name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise Refusal(f"RUN_NAME is {name!r}; it becomes a directory: letters, digits, '.', '_' and '-', beginning with a letter or digit")
    if resume not in (None, "auto"):
        checkpoint = require_checkpoint(resume)
        return RunDirectory(checkpoint.parent), checkpoint
    same = (p for p in Path(output_dir).glob(f"{name}*") if re.fullmatch(rf"{re.escape(name)}(-\d+)?", p.name))
    taken = [p for p in same if not p.is_dir() or any(p.iterdir())]
    if resume == "auto":
        runs = [p for p in taken if (p / "run.json").is_file()]
        if runs:
            run = RunDirectory(max(runs, key=lambda p: (p / "run.json").stat().st_mtime))
            whole = run.whole_checkpoints()
            return run, whole[-1][1] if whole else None
    numbers = [int(p.name[len(name) + 1 :] or 1) if p.name != name else 1 for p in taken]
    path = Path(output_dir) / (name if not taken else f"{name}-{max(numbers) + 1}")
    return RunDirectory(path), None


# Constants that decide which rows come in which order and what the saved tensors mean, and those that the saved optimiser state
# brings along and would silently win: a resume with others is another run.
FIXED = (
    *("MODEL_NAME", "MODEL_REVISION", "INITIAL_MODEL", "LOAD_IN_4BIT", "LORA_R", "LORA_ALPHA", "TARGET_MODULES"),
    *("TRAIN_FILES", "HELD_OUT", "SPLIT_BY", "BAD_ROWS", "MAX_SEQ_LENGTH", "PACKING", "SEED"),
    *("PER_DEVICE_TRAIN_BATCH_SIZE", "GRADIENT_ACCUMULATION_STEPS", "LEARNING_RATE", "WEIGHT_DECAY", "OPTIM"),
)


def changed_constants(checkpoint, constants, data_key):
    """Sentences about constants that are not those of `checkpoint`; `Refusal` where one of FIXED changed, or the data did."""
    before = read_json(Path(checkpoint) / "constants.json", {})
    changed = {n: (before[n], v) for n, v in constants.items() if n in before and before[n] != v}
    for name in FIXED:
        if name in changed:
            old, new = changed[name]
            raise Refusal(
                f"{checkpoint} was trained with {name} = {old!r}, now it is {new!r}; a resume keeps it: set it back, or start a new run "
                "(INITIAL_MODEL goes on from a saved model)"
            )
    if read_json(Path(checkpoint).parent / "run.json", {}).get("data_key", data_key) != data_key:
        raise Refusal(f"the training files changed since {checkpoint} was written, so its place in them means nothing; start afresh")
    aside = ("RESUME_FROM_CHECKPOINT", "RUN_NAME", "OUTPUT_DIR")
    return [f"{n} was {old!r} and is {new!r} from here on" for n, (old, new) in changed.items() if n not in aside]


def set_aside_newer(checkpoint):
    """Rename the checkpoints after `checkpoint`, which a resume from it abandons, so that none is taken for the new line's."""
    checkpoint = Path(checkpoint)
    newer = [path for step, path in RunDirectory(checkpoint.parent).checkpoints() if step > step_of(checkpoint)]
    for path in newer:
        path.rename(path.with_name(f"abandoned-{path.name}-{int(time.time())}"))
    return [path.name for path in newer]


def require_checkpoint(path):
    """`path` as a Path when it is a whole checkpoint; `Refusal` that says what it lacks when it is not."""
    path = Path(path)
    if not path.is_dir():
        raise Refusal(f"RESUME_FROM_CHECKPOINT is {path}, which does not exist; name a checkpoint-N directory, or \"auto\" for the newest")
    if step_of(path) is None:
        raise Refusal(f"RESUME_FROM_CHECKPOINT is {path}; a checkpoint is a directory named checkpoint-N inside a run")
    lacking = [f for f in ("trainer_state.json", "constants.json") if not (path / f).is_file()]
    if lacking:
        raise Refusal(f"{path} lacks {' and '.join(lacking)}, so its save was interrupted; take an older checkpoint, or \"auto\"")
    return path


def newest(output_dir="outputs"):
    """The run directory under `output_dir` whose run.json was written last; `Refusal` where there is none."""
    runs = sorted(Path(output_dir).glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise Refusal(f"no run found under {output_dir}/ (a run has a run.json); train one first, or name its directory")
    return RunDirectory(runs[-1].parent)

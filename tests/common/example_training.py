"""A training of a second: transformers' Trainer with dropout, accumulation and evaluations, kept by `Checkpoints`.

`python example_training.py DIRECTORY STRIDE` interrupts it at every STRIDE-th forward pass, in a process of its own each time.
"""

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from common import checkpoints, hardware, log, manifest, resume, signals
from common.run_directory import read_json

STEPS = 8  # an epoch is 6, of which the last accumulates one micro-batch only
ROWS, HELD_OUT = 22, 4
CONSTANTS = {"SEED": 42, "GRADIENT_ACCUMULATION_STEPS": 2}
STATE = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


class Net(torch.nn.Module):
    """Dropout between two layers. before_forward: called before every forward pass."""

    def __init__(self, width=8):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Dropout(0.3), torch.nn.Linear(width, 1))
        self.before_forward = lambda: None

    def forward(self, x, labels):
        self.before_forward()
        found = self.layers(x)
        return {"loss": torch.nn.functional.mse_loss(found, labels), "logits": found}


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(count, 5, generator=generator)
    return [{"x": row[:4], "labels": row[:4].sum(0, keepdim=True) + row[4:] / 10} for row in found]


def training(run, width=8, limit=3, uri=None, keep_local=True, **arguments):
    """(trainer, its Checkpoints) for the RunDirectory `run`; arguments: of TrainingArguments, in place of the usual."""
    usual = {
        "max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 2,
        "learning_rate": 0.05, "save_steps": 2, "eval_steps": 2, "eval_strategy": "steps", "logging_steps": 3, "seed": 42, "data_seed": 42,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_loss",
    }  # fmt: skip
    args = TrainingArguments(str(run.path), use_cpu=True, report_to="none", disable_tqdm=True, **{**usual, **arguments})
    torch.manual_seed(7)
    trainer = Trainer(Net(width), args, train_dataset=rows(ROWS, 1), eval_dataset=rows(HELD_OUT, 2))
    trainer.remove_callback(PrinterCallback)
    return trainer, checkpoints.Checkpoints(trainer, run, CONSTANTS, "key", 2, limit, uri, keep_local)


def train(directory, name, interrupt_at=None, number=None):
    """Train or go on; at the forward pass `interrupt_at` of this process it sends itself the signal `number`."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as in a terminal; what runs the tests may ignore it
    signals.listen()
    run, checkpoint = resume.open_run(directory, name, "auto")
    run.begin(CONSTANTS, command="python example.py")
    trainer, kept = training(run)
    passes = 0

    def count():
        nonlocal passes
        passes += 1
        if passes == interrupt_at:
            os.kill(os.getpid(), number)

    trainer.model.before_forward = count
    kept.train(checkpoint, STEPS)
    kept.finish()
    (directory / f"{name}.json").write_text(json.dumps({"passes": passes, **outcome(trainer, run)}))


def outcome(trainer, run):
    """What must not depend on interruptions: figures, the best, the final weights, and the bits of everything in the last checkpoint."""
    state, files = trainer.state, manifest.read(run.path / f"checkpoint-{STEPS}")["files"]
    figures = [{k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k} for entry in state.log_history]
    best = [state.best_global_step, state.best_metric, Path(state.best_model_checkpoint).name]
    weights = {name: tensor.tolist() for name, tensor in trainer.model.state_dict().items()}
    return {"figures": figures, "files": {name: files[name]["crc32c"] for name in STATE}, "best": best, "weights": weights}


def in_a_process(function, *arguments):
    """The exit code of a fork that calls `function(*arguments)`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function(*arguments)
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def everywhere(directory, stride):
    """Interrupt at every `stride`-th forward pass, go on, compare with the run nobody interrupted; prints a line of JSON for each."""
    kinds = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    train(directory, "whole")  # in this process, so that no fork has to import anything
    log.close()
    gc.freeze()  # a collection would copy all of it in every fork
    whole = read_json(directory / "whole.json")
    for place in range(1, whole["passes"] + 1, stride):
        number, name = kinds[place // stride % len(kinds)], f"at{place}"
        code = in_a_process(train, directory, name, place, number)
        saved = sorted(p.name for p in (directory / name).glob("*checkpoint-*"))
        again = in_a_process(train, directory, name)
        found = read_json(directory / f"{name}.json", {})
        same = {key: found.get(key) == whole[key] for key in ("figures", "files", "best", "weights")}
        print("RESULT", json.dumps({"place": place, "signal": number.name, "code": code, "saved": saved, "again": again, "same": same,
                                    "passes": found.get("passes")}))  # fmt: skip
    print("RESULT", json.dumps({"place": 0, "passes": whole["passes"]}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)  # whose pool would not survive the forks
    hardware.prepare_torch()
    everywhere(Path(sys.argv[1]), int(sys.argv[2]))

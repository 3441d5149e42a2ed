"""Runs and checkpoints written file by file, with a manifest as training writes it; for the tests of what finds and judges them."""

import os
import random

from common import manifest, remote_runs, storage
from common.run_directory import RunDirectory, read_json, write_json

CONSTANTS = {"SEED": 42, "MAX_GRAD_NORM": 1.0, "GRADIENT_ACCUMULATION_STEPS": 2, "RUN_NAME": "a"}


def write_checkpoint(path, constants=(), best=None, whole=True, **facts):
    """checkpoint-N at `path`; best: the step of the best one so far; facts: of the manifest, in place of the usual."""
    step, dice = int(path.name.rpartition("-")[2]), random.Random(str(path))
    (path / f"global_step{step}").mkdir(parents=True)
    for name, size in (("adapter_model.safetensors", 4000), ("optimizer.pt", 3000), (f"global_step{step}/states.pt", 2000)):
        (path / name).write_bytes(dice.randbytes(size))
    constants = {**CONSTANTS, **dict(constants)}
    write_json(path / "trainer_state.json", {"global_step": step, "best_global_step": best})
    write_json(path / "constants.json", constants)
    usual = {"step": step, "world_size": 1, "data_key": "key", "sharded": False, "optimizer": "torch.optim.adamw.AdamW"}
    usual |= {"position": {"micro_batch": 16}, "constants": constants}
    if whole:
        manifest.write(path, {name: manifest.describe(path / name) for name in manifest.files_in(path)}, **{**usual, **facts})
    return path


def write_run(path, steps=(), half=(), time=None, best=None):
    """A run with whole checkpoints at `steps` and interrupted ones at `half`; time: when its run.json was written."""
    run = RunDirectory(path)
    run.begin({"LORA_R": 8}, recipe="example")
    for step in (*steps, *half):
        write_checkpoint(path / f"checkpoint-{step}", whole=step in steps, best=best)
    if time:
        os.utime(run.run, (time, time))
    return run


def run_id(run):
    """What tells this run from all others."""
    return read_json(run.run)["run_id"]


def contents(directory):
    """{relative name: bytes} of all files below `directory`."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def flip(path, offset, bit=0):
    """Change one bit of the file `path`, as a disk does: size and times stay."""
    times = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def store_run(uri, run, name=None):
    """Upload a run as training does: every whole checkpoint, then the run's files; its key is `name` or its own."""
    store, key = storage.open_store(uri), name or run.path.name
    for _, checkpoint in run.whole_checkpoints():
        store.upload_directory(checkpoint, f"{key}/{checkpoint.name}")
    for file in remote_runs.FILES:
        if (run.path / file).is_file():
            store.upload_bytes((run.path / file).read_bytes(), f"{key}/{file}")
    return store

"""Runs in a store: which there are, what is newest in them, and bringing one to this disk whole."""

import json
import re
from pathlib import Path

from common import manifest, storage
from common.log import say, warn
from common.refusal import Refusal
from common.run_directory import RunDirectory, read_json, step_of

# Files of a run that go to a store beside its checkpoints and come back with them.
FILES = ("run.json", "constants.json", "data.json", "validation.jsonl", "test.jsonl", "skipped_rows.jsonl", "logs/metrics.jsonl")


def named(uri):
    """(store, key of the run, step or None) of gs://bucket/prefix/run or …/run/checkpoint-N; `Refusal` for any other."""
    uri = uri.rstrip("/")
    step = step_of(uri.rsplit("/", 1)[-1])
    run = uri.rsplit("/", 1)[0] if step is not None else uri
    scheme, _, path = run.partition("://")
    if not re.search(r"[^/]/[A-Za-z0-9][A-Za-z0-9._-]*$", path):
        raise Refusal(f"RESUME_FROM_CHECKPOINT is {uri}; it must name a run in a store, such as gs://bucket/runs/llama32_qlora")
    parent, key = path.rsplit("/", 1)
    return storage.open_store(f"{scheme}://{parent}"), key, step


def facts(store, key):
    """The run.json of the run `key`, {} where there is none."""
    data = store.read(f"{key}/run.json")
    return json.loads(data) if data else {}


def steps(store, key):
    """The steps of the run's checkpoints that have a manifest, in order."""
    found = (step_of(name) for name in store.names(key))
    return sorted(step for step in found if step is not None and manifest.NAME in store.names(f"{key}/checkpoint-{step}"))


def newest(store, is_ours):
    """The key of the run that was started last among those whose name `is_ours`; None where there is none."""
    return max(filter(is_ours, store.names()), key=lambda key: facts(store, key).get("started", ""), default=None)


def peek(store, key, step=None):
    """The manifest of the newest checkpoint, or of that of `step`; None where there is none."""
    found = [step] if step is not None else steps(store, key)
    data = store.read(f"{key}/checkpoint-{found[-1]}/{manifest.NAME}") if found else None
    return manifest.parse(data, store.uri(f"{key}/checkpoint-{found[-1]}")) if data else None


def require_same(store, run):
    """`Refusal` where the store has another run under the name of `run`: uploads would overwrite it."""
    there = facts(store, run.path.name)
    if there and there.get("run_id") != read_json(run.run, {}).get("run_id"):
        raise Refusal(f"{store.uri(run.path.name)} is another run than {run.path} and would be overwritten; take another CHECKPOINT_URI, "
                      "or give one of the two directories another name")  # fmt: skip


def abandon_newer(store, key, step):
    """Take the manifests of the checkpoints after `step` away, so that none is taken for the new line's; they stay as abandoned-….

    Returns the checkpoints' names. Raises StorageError.
    """
    newer = [f"checkpoint-{number}" for number in steps(store, key) if number > step]
    for name in newer:
        store.upload_bytes(store.read(f"{key}/{name}/{manifest.NAME}"), f"{key}/{name}/abandoned-{manifest.NAME}")
        store.delete(f"{key}/{name}/{manifest.NAME}")
    return newer


def restore(store, key, output_dir, step=None):
    """(RunDirectory, checkpoint): a run's newest checkpoint that can be brought whole, or that of `step`, and the best one beside it.

    Raises `Refusal` where there is none, or another run of that name is here. Without the best one a run can go on.
    """
    run = RunDirectory(Path(output_dir) / key)
    run.take()
    whole = steps(store, key)
    there, here = facts(store, key), read_json(run.run)
    if here is not None and here.get("run_id") != there.get("run_id"):
        raise Refusal(f"{run.path} is another run than {store.uri(key)}; move one of them away, or set OUTPUT_DIR")
    problem = "it holds no committed checkpoint; name a run's directory in the store, or one of its checkpoint-N"
    for number in reversed(whole) if step is None else [step]:
        try:
            checkpoint = _bring(store, key, run, number)
        except Refusal as error:  # of the store, or of a manifest that was damaged there
            problem = f"checkpoint-{number} could not be brought here whole: {error}"
            warn(f"{store.uri(key)}: {problem}")
            continue
        best = read_json(checkpoint / "trainer_state.json", {}).get("best_global_step")
        try:
            if best in whole and best != number:
                _bring(store, key, run, best)
        except Refusal as error:
            warn(f"{store.uri(key)}: checkpoint-{best}, the best one, could not be brought here whole: {error}")
        for name in FILES if here is None else ():
            data = store.read(f"{key}/{name}")
            if data is not None:
                (run.path / name).parent.mkdir(parents=True, exist_ok=True)
                manifest.write_whole(run.path / name, data)
        return run, checkpoint
    raise Refusal(f"nothing to resume from in {store.uri(key)}: {problem}")


def _bring(store, key, run, step):
    """The path of a checkpoint here, downloaded where it is not here whole; an interrupted download goes on."""
    name = f"checkpoint-{step}"
    checkpoint, coming = run.path / name, run.path / f".coming-{name}"
    if manifest.exists(checkpoint) and not manifest.verify(checkpoint):
        return checkpoint
    if checkpoint.exists():
        run.set_aside(checkpoint, "damaged" if manifest.exists(checkpoint) else "unfinished")
    say(f"bringing {store.uri(key)}/{name} to {checkpoint}")
    store.download_directory(f"{key}/{name}", coming)
    coming.rename(checkpoint)
    return checkpoint

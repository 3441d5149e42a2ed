"""Runs in a store: which there are, what is newest in them, and bringing one to this disk whole."""

import json
import re
from pathlib import Path

from common import buckets, manifest, storage
from common.log import say, warn
from common.refusal import Refusal
from common.run_directory import RunDirectory, is_called, read_json, step_of

# Files of a run that go to a store beside its checkpoints and come back with them.
FILES = ("run.json", "constants.json", "data.json", "validation.jsonl", "test.jsonl", "skipped_rows.jsonl", "held_out_tokens.npz",
         "samples.json", "logs/metrics.jsonl")  # fmt: skip


def named(uri):
    """(store, key of the run, step or None) of gs://bucket/prefix/run or …/run/checkpoint-N; `Refusal` for any other."""
    uri = uri.rstrip("/")
    step = step_of(uri.rsplit("/", 1)[-1])
    run = uri.rsplit("/", 1)[0] if step is not None else uri
    scheme, _, path = run.partition("://")
    if not re.search(r"[^/]/[A-Za-z0-9][A-Za-z0-9._-]*$", path):
        raise Refusal(f"RESUME_FROM_CHECKPOINT is {buckets.masked(uri)}; it must name a run in a store, such as gs://bucket/runs/llama32_qlora")
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


def newest(store, name):
    """The key of the run called `name` that was started last among those with a checkpoint; None where there is none.

    One without is a name that a start took; that start may have ended long ago.
    """
    found = {key: facts(store, key) for key in store.names() if is_called(name, key, {})}
    ours = [key for key in found if is_called(name, key, found[key])]
    return next((key for key in sorted(ours, key=lambda key: found[key].get("started", ""), reverse=True) if steps(store, key)), None)


def peek(store, key, step=None):
    """The manifest of the newest checkpoint whose manifest can be read, or of that of `step`; None where there is none."""
    for number in reversed(steps(store, key)) if step is None else [step]:
        data = store.read(f"{key}/checkpoint-{number}/{manifest.NAME}")
        try:
            if data:
                return manifest.parse(data, store.uri(f"{key}/checkpoint-{number}"))
        except Refusal:
            if step is not None:
                raise
    return None


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
    run, whole = RunDirectory(Path(output_dir) / key), steps(store, key)
    if not whole:
        raise Refusal(f"nothing to resume from in {store.uri(key)}: it holds no committed checkpoint; name a run's directory in the store, "
                      "or one of its checkpoint-N")  # fmt: skip
    run.take()
    there, here = facts(store, key), read_json(run.run)
    if here is not None and here.get("run_id") != there.get("run_id"):
        raise Refusal(f"{run.path} is another run than {store.uri(key)}; move one of them away, or set OUTPUT_DIR")
    problem = ""
    if here is None:
        _bring_files(store, key, run)  # first, so that whose the checkpoints are is known whatever happens then
    for number in reversed(whole) if step is None else [step]:
        try:
            brought = _bring(store, key, run, number)
        except Refusal as error:  # of the store, or of a manifest that was damaged there
            problem = f"checkpoint-{number} could not be brought here whole: {error}"
            warn(f"{store.uri(key)}: {problem}")
            continue
        best = beside = None
        try:
            best = read_json(brought / "trainer_state.json", {}).get("best_global_step")
            if best in whole and best != number:
                beside = _bring(store, key, run, best)
        except Refusal as error:
            warn(f"{store.uri(key)}: checkpoint-{best}, the best one, could not be brought here whole: {error}")
        checkpoint = _name(run, brought, number)  # when all is here: a start that is killed before this is gone on with
        if beside:
            _name(run, beside, best)
        return run, checkpoint
    if here is None:
        run.run.unlink(missing_ok=True)  # a run without a checkpoint would be begun anew here
    raise Refusal(f"nothing to resume from in {store.uri(key)}: {problem}")


def _bring_files(store, key, run):
    """The run's files, run.json last: where it is missing here, they are brought again."""
    for name in reversed(FILES):
        data = store.read(f"{key}/{name}")
        if data is not None:
            (run.path / name).parent.mkdir(parents=True, exist_ok=True)
            manifest.write_whole(run.path / name, data)


def _bring(store, key, run, step):
    """Where a checkpoint is here whole, not under its own name yet if it was downloaded; an interrupted download goes on."""
    name = f"checkpoint-{step}"
    checkpoint, coming = run.path / name, run.path / f".coming-{name}"
    if manifest.exists(checkpoint) and not manifest.verify(checkpoint):
        return checkpoint
    if checkpoint.exists():
        run.set_aside(checkpoint, "damaged" if manifest.exists(checkpoint) else "unfinished")
    say(f"bringing {store.uri(key)}/{name} to {checkpoint}")
    store.download_directory(f"{key}/{name}", coming)
    return coming


def _name(run, brought, step):
    """The path of a checkpoint under its own name."""
    checkpoint = run.path / f"checkpoint-{step}"
    if brought != checkpoint:
        brought.rename(checkpoint)
        manifest.sync_directory(run.path)
    return checkpoint

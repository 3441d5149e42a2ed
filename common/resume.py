"""What a start goes on from: the run, its newest checkpoint that is whole, from this disk or from a store, and what may change.

A checkpoint counts when it has a manifest (see `manifest`) and every file in it is as the manifest says. What does not count
is renamed to say why - unfinished-, damaged-, abandoned- - and stays on the disk; it is never chosen and never deleted.
"""

import re
from contextlib import suppress
from pathlib import Path

from common import manifest, remote_runs, storage, versions
from common.log import is_rank_0, warn
from common.refusal import Refusal
from common.run_directory import InUse, RunDirectory, is_called, read_json, require_own, step_of


def check(name, resume=None, uri=None, check_store=True, directory=None):
    """Say what is wrong with these constants before anything heavy loads: an odd name, a path that is none, a store that refuses.

    check_store: write a small object there and read it back, on rank 0; directory: where it is given for this run alone.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        path = f"OUTPUT_DIR is {str(directory)!r}; its last part is the run's name"
        becomes = path if directory else f"RUN_NAME is {name!r}; it becomes a directory"
        raise Refusal(f"{becomes}: letters, digits, '.', '_' and '-', beginning with a letter or digit")
    check_store = check_store and is_rank_0()
    if uri is not None:
        store = storage.open_store(uri)
        if check_store:
            store.check()
    if resume is not None and "://" in resume:
        store, _, _ = remote_runs.named(resume)
        if check_store:
            store.check_readable()
    elif resume not in (None, "auto"):
        require_checkpoint(resume)
    if directory and is_rank_0():
        from_store = remote_runs.named(resume)[1] if resume and "://" in resume else None
        require_own(directory, resume, from_store)


def peek(output_dir, name, resume=None, uri=None, exact=False):
    """The manifest of what `open_run` will probably go on from, without verifying it; None for a fresh run. exact: as there."""
    if resume is None:
        return None
    if "://" in resume:
        return remote_runs.peek(*remote_runs.named(resume))
    if resume != "auto":
        return manifest.read(resume)
    run = _newest_run_here(output_dir, name, exact)
    for _, checkpoint in reversed(run.whole_checkpoints() if run else []):
        with suppress(Refusal):  # `open_run` sets it aside and goes on from the one before
            return manifest.read(checkpoint)
    if not uri:
        return None
    store = storage.open_store(uri)
    key = run.path.name if run else name if exact else remote_runs.newest(store, name)
    return remote_runs.peek(store, key) if key else None


def open_run(output_dir, name, resume=None, uri=None, exact=False):
    """(RunDirectory, checkpoint to go on from or None). A fresh run never touches another one: it takes name-2, name-3, …

    exact: this directory was given for this run alone: it is taken, or refused.
    resume: None starts afresh; "auto" continues the newest run of this name at its newest whole checkpoint, and starts
    afresh where there is none; a path, or the URI of a run or a checkpoint in a store, names what to go on from.
    uri: the store this run uploads to; "auto" looks there too and takes what is newer. On rank 0 only: it may read,
    download and rename for a long time. Raises `Refusal` for a path that is none or a checkpoint that is not whole.
    """
    check(name, resume, uri, check_store=False)
    store = storage.open_store(uri) if uri else None
    if resume == "auto":
        run, checkpoint = _newest_here(output_dir, name, exact)
        if store:
            run, checkpoint = _newer_in_store(store, output_dir, name, run, checkpoint, exact)
        if run and (checkpoint or not run.final_model.exists()):
            return run, checkpoint
        if run and exact:
            raise Refusal(f"no checkpoint of {run.path} is whole, so nothing can be resumed; what it trained stays: name another directory")
        if run:
            warn(f"no checkpoint of {run.path} is whole, so nothing can be resumed; what it trained stays, this run takes another name")
    elif resume is not None:
        if "://" in resume:
            source, key, step = remote_runs.named(resume)
            run, checkpoint = remote_runs.restore(source, key, output_dir, step)
        else:
            run, checkpoint = _open_checkpoint(require_checkpoint(resume))
        if store:
            remote_runs.require_same(store, run)
        return run, checkpoint
    return _open_fresh(Path(output_dir), name, store, exact), None


def _open_fresh(output_dir, name, store, exact):
    """A run whose name nobody else has: it is taken on this disk by a lock, and in the store by a run.json."""
    others = set()  # names that turned out to be somebody's
    while True:
        if exact and others:
            raise Refusal(f"OUTPUT_DIR {output_dir / name} is another run's, or its name is taken in the store, perhaps by a start that "
                          "saved nothing there; name another directory, or remove that name from the store")  # fmt: skip
        here = {path.name for path in output_dir.glob(f"{name}*") if not RunDirectory(path).is_free()}
        there = {key for key in store.names() if not _is_ours(store, key, output_dir)} if store else set()
        run = RunDirectory(output_dir / (name if exact else _free_name(name, here | there | others)))
        try:
            run.take()
        except InUse:  # by a start that does not train yet
            if exact:
                raise
            others.add(run.path.name)
            continue
        if not run.is_free():  # begun by another one in the meantime
            others.add(run.path.name)
            continue
        claim = run.claimed(name)
        if store is None or store.claim(claim, f"{run.path.name}/run.json"):
            return run
        run.claim.unlink()
        others.add(run.path.name)


def _is_ours(store, key, output_dir):
    """True where the name `key` in the store was taken by a start on this disk that did not come to training."""
    claim = RunDirectory(output_dir / key).claim
    return claim.is_file() and store.read(f"{key}/run.json") == claim.read_bytes()


def _free_name(name, taken):
    numbers = [int(found[len(name) + 1 :] or 1) for found in taken if is_called(name, found, {})]
    return f"{name}-{max(numbers) + 1}" if numbers else name


def _open_checkpoint(checkpoint):
    run = RunDirectory(checkpoint.parent)
    run.take()
    problems = manifest.verify(checkpoint)
    if problems:
        aside = run.set_aside(checkpoint, "damaged")
        raise Refusal(f'{checkpoint} is not as it was written ({_few(problems)}); it is now {aside.name}: take another one, or "auto"')
    return run, checkpoint


def _newest_run_here(output_dir, name, exact=False):
    if exact:
        run = RunDirectory(Path(output_dir) / name)
        return run if run.run.is_file() else None
    runs = [p for p in Path(output_dir).glob(f"{name}*/run.json") if is_called(name, p.parent.name, _facts(p))]
    return RunDirectory(max(runs, key=lambda p: p.stat().st_mtime).parent) if runs else None


def _facts(run_json):
    try:
        return read_json(run_json, {})
    except Refusal:  # a damaged one is no reason not to go on from a checkpoint that is whole
        return {}


def _newest_here(output_dir, name, exact):
    """The run of this name that was written last, and its newest checkpoint that verifies; what does not is set aside."""
    run = _newest_run_here(output_dir, name, exact)
    if run is None:
        return None, None
    run.take()
    for step, checkpoint in reversed(run.checkpoints()):
        if not manifest.exists(checkpoint):
            aside = run.set_aside(checkpoint, "unfinished")
            warn(f"the save of step {step} was interrupted; what it left is now {aside.name}")
        elif problems := manifest.verify(checkpoint):
            aside = run.set_aside(checkpoint, "damaged")
            warn(f"{checkpoint.name} is not as it was written ({_few(problems)}); it is now {aside.name}")
        else:
            return run, checkpoint
    return run, None


def _newer_in_store(store, output_dir, name, run, checkpoint, exact):
    """What the store has of this run where that is newer than what is here; of any run of this name where there is none here."""
    try:
        key = run.path.name if run else name if exact else remote_runs.newest(store, name)
        steps = remote_runs.steps(store, key) if key else []
        if run:
            remote_runs.require_same(store, run)
    except storage.StorageError as error:
        if checkpoint is None:
            raise Refusal(f"there is no checkpoint on this disk, and what is in the store cannot be found out: {error}") from None
        warn(f"whether the store has a newer checkpoint is unknown ({error}); going on with {checkpoint.name}")
        return run, checkpoint
    if not steps or (checkpoint and steps[-1] <= step_of(checkpoint)):
        return run, checkpoint
    try:
        brought = remote_runs.restore(store, key, output_dir)
    except Refusal as error:
        if checkpoint is None:
            raise
        warn(f"{error}; going on with {checkpoint.name}")
        return run, checkpoint
    return brought if checkpoint is None or step_of(brought[1]) > step_of(checkpoint) else (run, checkpoint)


def require_checkpoint(path):
    """`path` as a Path when it is a checkpoint with a manifest; `Refusal` that says what it lacks when it is not."""
    path = Path(path)
    if not path.is_dir():
        raise Refusal(f"RESUME_FROM_CHECKPOINT is {path}, which does not exist; name a checkpoint-N directory, or \"auto\" for the newest")
    if step_of(path) is None:
        raise Refusal(f"RESUME_FROM_CHECKPOINT is {path}; a checkpoint is a directory named checkpoint-N inside a run")
    manifest.read(path)
    return path


def _few(problems):
    return "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")


# Constants that decide which rows come in which order and what the saved tensors mean, and those that the saved optimiser state
# brings along and would silently win: a resume with others is another run.
FIXED = (
    *("MODEL_NAME", "MODEL_REVISION", "INITIAL_MODEL", "LOAD_IN_4BIT", "LORA_R", "LORA_ALPHA", "TARGET_MODULES"),
    *("TRAIN_FILES", "HELD_OUT", "SPLIT_BY", "BAD_ROWS", "MAX_SEQ_LENGTH", "LONG_DOCUMENTS", "PACKING", "SEED"),
    *("PER_DEVICE_TRAIN_BATCH_SIZE", "LEARNING_RATE", "WEIGHT_DECAY", "OPTIM"),
    *("BF16", "FP16"),
    *("NUM_HIDDEN_LAYERS", "HIDDEN_SIZE", "NUM_ATTENTION_HEADS", "DROPOUT", "PRECISION", "TRAIN_BATCH_SIZE", "ADAM_BETA1", "ADAM_BETA2"),
)
# Constants on which no step's weights depend, but which step becomes the final model.
CHOOSING = ("SAVE_STEPS", "SAVE_STRATEGY", "EVAL_STEPS", "EVAL_STRATEGY", "LOAD_BEST_MODEL_AT_END", "PER_DEVICE_EVAL_BATCH_SIZE",
            "EARLY_STOPPING_PATIENCE")
# Constants that change no weight: where things go, and when something is written.
HARMLESS = ("OUTPUT_DIR", "CHECKPOINT_URI", "KEEP_LOCAL", "REPORT_TO", "MERGE", "SAVE_TOTAL_LIMIT", "LOGGING_STEPS", "SAMPLES",
            "CHECKPOINT_EVERY_FILES", "EVAL_TOKENS", "AUTO_BATCH", "DATALOADER_NUM_WORKERS")


def micro_batch(checkpoint, rows):
    """Rows of one micro-batch over all ranks that the order of rows is made for: those of the run that is resumed, else `rows`."""
    return manifest.read(checkpoint)["position"]["micro_batch"] if checkpoint else rows


def require_fixed(found, constants):
    """`Refusal` where a constant that makes it another run is not that of the manifest `found`; None asks nothing."""
    before = found["constants"] if found else {}
    for name in FIXED:
        if name in constants and name in before and before[name] != constants[name]:
            raise Refusal(
                f"checkpoint-{found['step']} was trained with {name} = {before[name]!r}, now it is {constants[name]!r}; a resume keeps it: "
                "set it back, or start a new run" + " (INITIAL_MODEL goes on from a saved model)" * ("INITIAL_MODEL" in constants)
            )


def changed_constants(checkpoint, constants, data_key, world_size, sharded, packing):
    """Sentences about constants that are not those of `checkpoint`; `Refusal` where one changed that makes it another run.

    data_key: of the tokenised data; world_size: ranks of this start; sharded: under DeepSpeed; packing: whether rows are packed here.
    Ranks x accumulation must stay: a step has the same rows.
    """
    found = manifest.read(checkpoint)
    require_fixed(found, constants)
    before = found["constants"]
    changed = {n: (before[n], v) for n, v in constants.items() if n in before and before[n] != v}
    if found["data_key"] != data_key:
        raise Refusal(
            f"the training rows are not those of {checkpoint}: the training files, their split, the tokenizer, its library's version or "
            "this repository's code that prepares them changed since, so its place in them means nothing; set that back, or start afresh"
        )
    if found.get("packing", packing) != packing:
        ways = {True: "packed rows, as on a GPU", False: "rows grouped by length, as on a CPU"}
        raise Refusal(f"{checkpoint} was trained with {ways[not packing]}, now it would be {ways[packing]}: other rows in another order; "
                      "resume on the same kind of device, or start a new run from it with INITIAL_MODEL")  # fmt: skip
    if sharded and not found["sharded"]:
        raise Refusal(f"{checkpoint} was written by one process without ZeRO, whose optimiser state cannot be divided among ranks; resume "
                      "with plain python on one GPU (CUDA_VISIBLE_DEVICES=0), or start a new run from it with INITIAL_MODEL")  # fmt: skip
    accumulation = "GRADIENT_ACCUMULATION_STEPS"
    micro_batches = before[accumulation] * found["world_size"]
    if micro_batches != constants[accumulation] * world_size:
        fits = f"set it to {micro_batches // world_size}" if micro_batches % world_size == 0 else "take another number of GPUs"
        raise Refusal(
            f"{checkpoint} was trained with {accumulation} = {before[accumulation]} on {found['world_size']} rank(s), now it is "
            f"{constants[accumulation]} on {world_size}: a step would have other rows; {fits}, or start a new run"
        )
    sentences = [
        f"{n} was {old!r} and is {new!r} from here on; {_what_depends_on(n, constants.get('LOAD_BEST_MODEL_AT_END', False))}"
        for n, (old, new) in changed.items()
        if n not in ("RESUME_FROM_CHECKPOINT", "RUN_NAME", accumulation)
    ]
    here = versions.installed()
    there = found.get("versions", here)
    others = [f"{n} {there.get(n, 'none')} there, {here.get(n, 'none')} here" for n in {**there, **here} if there.get(n) != here.get(n)]
    if others:
        sentences.append(f"{checkpoint.name} was written with other versions ({', '.join(others)}): bits may differ from here on")
    if found["world_size"] != world_size:
        sentences.append(f"{checkpoint.name} was written by {found['world_size']} rank(s) and goes on with {world_size}: the same rows a "
                         "step, sums in another order")  # fmt: skip
    return sentences


def _what_depends_on(name, choosing):
    """choosing: whether the final model is the best checkpoint of several."""
    if name in HARMLESS or (name in CHOOSING and not choosing and name != "LOAD_BEST_MODEL_AT_END"):
        return "no weight depends on it"
    if name in CHOOSING:
        return "no step's weights depend on it, but which step becomes the final model may"
    return "the weights will not be those of a run without this change"

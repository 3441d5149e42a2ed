"""What a start goes on from: the run, its newest checkpoint that is whole, from this disk or from a store, and what may change.

A checkpoint counts when it has a manifest (see `manifest`) and every file in it is as the manifest says. What does not count
is renamed to say why - unfinished-, damaged-, abandoned- - and stays on the disk; it is never chosen and never deleted.
"""

import re
import time
from pathlib import Path

from common import manifest, storage
from common.log import is_rank_0, say, warn
from common.refusal import Refusal
from common.run_directory import RunDirectory, read_json, step_of

# Files of a run that go to a store beside its checkpoints and come back with them.
RUN_FILES = ("run.json", "constants.json", "data.json", "validation.jsonl", "test.jsonl", "skipped_rows.jsonl", "logs/metrics.jsonl")


def check(output_dir, name, resume=None, uri=None, check_store=True):
    """Say what is wrong with these constants before anything heavy loads: an odd name, a path that is none, a store that refuses.

    check_store: write a small object there and read it back; once for a start is enough.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise Refusal(f"RUN_NAME is {name!r}; it becomes a directory: letters, digits, '.', '_' and '-', beginning with a letter or digit")
    if uri is not None:
        store = storage.open_store(uri)
        if check_store and is_rank_0():
            store.check()
    if resume is not None and "://" in resume:
        store, _, _ = _in_store(resume)
        if check_store and is_rank_0():
            store.check_readable()
    elif resume not in (None, "auto"):
        require_checkpoint(resume)


def peek(output_dir, name, resume=None, uri=None):
    """The manifest of what `open_run` will probably go on from, without verifying it; None for a fresh run."""
    if resume is None:
        return None
    if "://" in resume:
        store, key, step = _in_store(resume)
        return _manifest_in_store(store, key, step)
    if resume != "auto":
        return manifest.read(resume)
    run = _newest_run_here(output_dir, name)
    whole = run.whole_checkpoints() if run else []
    if whole:
        return manifest.read(whole[-1][1])
    return _manifest_in_store(storage.open_store(uri), run.path.name if run else name, None) if uri else None


def _manifest_in_store(store, key, step):
    steps = [step] if step is not None else steps_in_store(store, key)
    data = store.read(f"{key}/checkpoint-{steps[-1]}/{manifest.NAME}") if steps else None
    return manifest.parse(data, store.uri(f"{key}/checkpoint-{steps[-1]}")) if data else None


def open_run(output_dir, name, resume=None, uri=None):
    """(RunDirectory, checkpoint to go on from or None). A fresh run never touches another one: it takes name-2, name-3, …

    resume: None starts afresh; "auto" continues the newest run of this name at its newest whole checkpoint, and starts
    afresh where there is none; a path, or the URI of a run or a checkpoint in a store, names what to go on from.
    uri: the store this run uploads to; "auto" looks there too and takes what is newer. On rank 0 only: it may read,
    download and rename for a long time. Raises `Refusal` for a path that is none or a checkpoint that is not whole.
    """
    check(output_dir, name, resume, uri, check_store=False)
    if resume is not None and "://" in resume:
        store, run_key, step = _in_store(resume)
        in_use(RunDirectory(Path(output_dir) / run_key))
        return _restore(store, run_key, Path(output_dir), step, required=True)
    if resume not in (None, "auto"):
        checkpoint = require_checkpoint(resume)
        in_use(RunDirectory(checkpoint.parent))
        problems = manifest.verify(checkpoint)
        if problems:
            aside = set_aside(checkpoint, "damaged")
            raise Refusal(f"{checkpoint} is not as it was written ({_few(problems)}); it is now {aside.name}: take another, or \"auto\"")
        return RunDirectory(checkpoint.parent), checkpoint
    store = storage.open_store(uri) if uri else None
    if resume == "auto":
        run, checkpoint = _newest_here(output_dir, name)
        if store:
            run, checkpoint = _newer_in_store(store, Path(output_dir), name, run, checkpoint)
        if run:
            return run, checkpoint
    taken = {p.name for p in Path(output_dir).glob(f"{name}*") if not p.is_dir() or any(f.name != ".lock" for f in p.iterdir())}
    taken |= set(store.names()) if store else set()
    run = RunDirectory(Path(output_dir) / _free_name(name, taken))
    in_use(run)
    return run, None


_locks = {}  # held until this process ends, however it ends


def in_use(run):
    """Take the run for this process; `Refusal` where another one, perhaps still saving, has it."""
    from filelock import FileLock, Timeout

    path = run.path.resolve() / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _locks.setdefault(path, FileLock(path, timeout=0))
    if not lock.is_locked:
        try:
            lock.acquire()
        except Timeout:
            raise Refusal(f"{run.path} is in use by another process, which may still be saving; wait until it ended, or stop it") from None


def _of_this_name(name, found):
    return bool(re.fullmatch(rf"{re.escape(name)}(-\d+)?", found))


def _free_name(name, taken):
    numbers = [int(found[len(name) + 1 :] or 1) for found in taken if _of_this_name(name, found)]
    return f"{name}-{max(numbers) + 1}" if numbers else name


def _newest_run_here(output_dir, name):
    runs = [p for p in Path(output_dir).glob(f"{name}*/run.json") if _of_this_name(name, p.parent.name)]
    return RunDirectory(max(runs, key=lambda p: p.stat().st_mtime).parent) if runs else None


def _newest_here(output_dir, name):
    """The run of this name that was written last, and its newest checkpoint that verifies; what does not is set aside."""
    run = _newest_run_here(output_dir, name)
    if run is None:
        return None, None
    in_use(run)
    for step, checkpoint in reversed(run.checkpoints()):
        if not manifest.exists(checkpoint):
            aside = set_aside(checkpoint, "unfinished")
            warn(f"the save of step {step} was interrupted; what it left is now {aside.name}")
        elif problems := manifest.verify(checkpoint):
            aside = set_aside(checkpoint, "damaged")
            warn(f"{checkpoint.name} is not as it was written ({_few(problems)}); it is now {aside.name}")
        else:
            return run, checkpoint
    return run, None


def _newer_in_store(store, output_dir, name, run, checkpoint):
    """What is in the store where that is newer than what is here."""
    try:
        if run:
            keys = [run.path.name]
        else:  # this disk knows nothing: the run that was started last
            found = [key for key in store.names() if _of_this_name(name, key)]
            keys = sorted(found, key=lambda key: (read_facts(store, key) or {}).get("started", ""))
        for key in keys[-1:]:
            here, there = read_json(run.run, {}) if run else {}, read_facts(store, key)
            steps = steps_in_store(store, key)
            if not there or not steps or (here and here.get("run_id") != there.get("run_id")):
                continue
            if checkpoint is None or steps[-1] > step_of(checkpoint):
                in_use(RunDirectory(output_dir / key))
                return _restore(store, key, output_dir)
    except storage.StorageError as error:
        if checkpoint is None:
            raise Refusal(f"nothing on this disk to resume, and the store failed: {error}") from None
        warn(f"whether the store has a newer checkpoint is unknown ({error}); going on with {checkpoint.name}")
    return run, checkpoint


def read_facts(store, key):
    """The run.json of the run `key` in the store, None where there is none."""
    import json

    data = store.read(f"{key}/run.json")
    return json.loads(data) if data else None


def steps_in_store(store, key):
    """The steps of the checkpoints of the run `key` that have a manifest in the store, in order."""
    steps = (step_of(name) for name in store.names(key))
    return sorted(step for step in steps if step is not None and store.read(f"{key}/checkpoint-{step}/{manifest.NAME}"))


def _restore(store, key, output_dir, step=None, required=False):
    """Bring a run's newest checkpoint (or that of `step`) and its files from the store; what cannot be read whole is left out."""
    run = RunDirectory(output_dir / key)
    steps = [step] if step is not None else steps_in_store(store, key)
    if not steps and required:
        raise Refusal(f"{store.uri(key)} holds no committed checkpoint; name a run's directory in the store, or one of its checkpoint-N")
    here, there = read_json(run.run), read_facts(store, key) or {}
    if here is not None and here.get("run_id") != there.get("run_id"):
        raise Refusal(f"{run.path} is another run than {store.uri(key)}; move one of them away, or set OUTPUT_DIR")
    for found in reversed(steps):
        target = run.path / f"checkpoint-{found}"
        if manifest.exists(target) and not manifest.verify(target):
            return run, target
        if target.exists() and not list(target.rglob("*.part")):  # a download that was interrupted goes on
            set_aside(target, "damaged" if manifest.exists(target) else "unfinished")
        say(f"bringing {store.uri(key)}/checkpoint-{found} to {target}")
        try:
            store.download_directory(f"{key}/checkpoint-{found}", target)
        except storage.StorageError as error:
            if required and (step is not None or found == steps[0]):
                raise Refusal(f"{store.uri(key)}/checkpoint-{found} could not be brought here whole: {error}") from None
            warn(f"checkpoint-{found} in the store is not whole ({error}); trying the one before it")
            continue
        for name in RUN_FILES if here is None else ():
            data = store.read(f"{key}/{name}")
            if data is not None:
                path = run.path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                manifest.write_whole(path, data)
        return run, target
    return run, None


def _in_store(uri):
    """(store, key of the run, step or None) of gs://bucket/prefix/run or …/run/checkpoint-N."""
    uri = uri.rstrip("/")
    step = step_of(uri.rsplit("/", 1)[-1])
    if step is not None:
        uri = uri.rsplit("/", 1)[0]
    scheme, path = uri.split("://", 1)
    if not re.search(r"[^/]/[A-Za-z0-9][A-Za-z0-9._-]*$", path):
        raise Refusal(f"RESUME_FROM_CHECKPOINT is {uri}; it must name a run in a store, such as gs://bucket/runs/llama32_qlora")
    parent, key = path.rsplit("/", 1)
    return storage.open_store(f"{scheme}://{parent}"), key, step


def set_aside(checkpoint, why):
    """Rename a checkpoint to `why`-checkpoint-N-TIME, where nothing takes it for one; its new path."""
    target = checkpoint.with_name(f"{why}-{checkpoint.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    while target.exists():
        target = target.with_name(f"{target.name}x")
    checkpoint.rename(target)
    return target


def set_aside_newer(checkpoint):
    """Rename the checkpoints after `checkpoint`, which a resume from it abandons, so that none is taken for the new line's."""
    checkpoint = Path(checkpoint)
    newer = [path for step, path in RunDirectory(checkpoint.parent).checkpoints() if step > step_of(checkpoint)]
    return [set_aside(path, "abandoned").name for path in newer]


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
    *("TRAIN_FILES", "HELD_OUT", "SPLIT_BY", "BAD_ROWS", "MAX_SEQ_LENGTH", "PACKING", "SEED"),
    *("PER_DEVICE_TRAIN_BATCH_SIZE", "LEARNING_RATE", "WEIGHT_DECAY", "OPTIM"),
)
# Constants that change no weight: where things go, and when something is written or looked at.
HARMLESS = (
    *("OUTPUT_DIR", "CHECKPOINT_URI", "KEEP_LOCAL", "REPORT_TO", "MERGE", "SAVE_TOTAL_LIMIT", "PER_DEVICE_EVAL_BATCH_SIZE"),
    *("SAVE_STEPS", "EVAL_STEPS", "LOGGING_STEPS", "LOAD_BEST_MODEL_AT_END"),
)


def micro_batch(checkpoint, rows):
    """Rows of one micro-batch over all ranks that the order of rows is made for: those of the run that is resumed, else `rows`."""
    return manifest.read(checkpoint)["position"]["micro_batch"] if checkpoint else rows


def changed_constants(checkpoint, constants, data_key, world_size, sharded):
    """Sentences about constants that are not those of `checkpoint`; `Refusal` where one changed that makes it another run.

    data_key: of the tokenised data; world_size: ranks of this start; sharded: under DeepSpeed. Ranks x accumulation must stay:
    a step has the same rows.
    """
    found = manifest.read(checkpoint)
    before = found["constants"]
    changed = {n: (before[n], v) for n, v in constants.items() if n in before and before[n] != v}
    for name in FIXED:
        if name in changed:
            old, new = changed[name]
            raise Refusal(
                f"{checkpoint} was trained with {name} = {old!r}, now it is {new!r}; a resume keeps it: set it back, or start a new run "
                "(INITIAL_MODEL goes on from a saved model)"
            )
    if found["data_key"] != data_key:
        raise Refusal(f"the training files changed since {checkpoint} was written, so its place in them means nothing; start afresh")
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
    matters = {True: "the weights will not be those of a run without this change", False: "no weight depends on it"}
    sentences = [
        f"{n} was {old!r} and is {new!r} from here on; {matters[n not in HARMLESS]}"
        for n, (old, new) in changed.items()
        if n not in ("RESUME_FROM_CHECKPOINT", "RUN_NAME", accumulation)
    ]
    if found["world_size"] != world_size:
        sentences.append(f"{checkpoint.name} was written by {found['world_size']} rank(s) and goes on with {world_size}: the same rows a "
                         "step, sums in another order")  # fmt: skip
    return sentences

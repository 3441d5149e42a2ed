"""Less memory: which constants take how much of it, in the order in which one changes them, before a run or after it ran out."""

from contextlib import contextmanager

from common.refusal import Refusal

SHORTEST = 512  # tokens; below it a change costs more of the data than it saves
SMALLEST_RANK = 8


@contextmanager
def advice(**constants):
    """Turn an out-of-memory error inside into a `Refusal` with the constants to change, in order, with values.

    constants: those of the recipe that cost memory, as they are now: PER_DEVICE_TRAIN_BATCH_SIZE,
    GRADIENT_ACCUMULATION_STEPS, MAX_SEQ_LENGTH, GRADIENT_CHECKPOINTING, LOAD_IN_4BIT, LORA_R, PER_DEVICE_EVAL_BATCH_SIZE.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError, the CPU allocator's has no type
        if not ran_out(error):
            raise
        first = [in_words(constants, rungs[0]) for rungs in ladders(constants)]
        if constants.get("PER_DEVICE_EVAL_BATCH_SIZE", 1) > 1:
            first.insert(0, in_words(constants, {"PER_DEVICE_EVAL_BATCH_SIZE": 1}) + ", if it happened in an evaluation")
        first = first or ["take a smaller model or a larger GPU; every constant is at its smallest"]
        raise Refusal("out of memory. Change in this order, one at a time:\n" + "\n".join(f"  {c}" for c in first)) from error


def ran_out(error):
    """Whether an exception says that there was no memory left, on a GPU or on the host."""
    said = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return type(error).__name__ in ("OutOfMemoryError", "MemoryError") or any(words in str(error) for words in said)


def smaller_batch(constants):
    """The next smaller micro-batch of the same rows a step, {PER_DEVICE_TRAIN_BATCH_SIZE, GRADIENT_ACCUMULATION_STEPS}; None at one row."""
    first = next(iter(ladders(constants)), [{}])[0]
    return first if "GRADIENT_ACCUMULATION_STEPS" in first else None


def ladders(constants):
    """[[{NAME: new value, …}, …], …]: each list one thing to change, a little, more, as far as it goes; what costs least comes first."""
    now, found = constants.get, []
    batch, accumulation = now("PER_DEVICE_TRAIN_BATCH_SIZE", 1), now("GRADIENT_ACCUMULATION_STEPS", 1)
    rows = batch * accumulation
    smaller = [size for size in range(batch // 2, 0, -1) if rows % size == 0]
    if now("TRAIN_BATCH_SIZE"):  # accumulation follows
        found.append([{"PER_DEVICE_TRAIN_BATCH_SIZE": size} for size in smaller])
    else:
        found.append([{"PER_DEVICE_TRAIN_BATCH_SIZE": size, "GRADIENT_ACCUMULATION_STEPS": rows // size} for size in smaller])
    if "GRADIENT_CHECKPOINTING" in constants and now("GRADIENT_CHECKPOINTING") in (False, "none", None):
        found.append([{"GRADIENT_CHECKPOINTING": "true" if now("PRETRAINING") else "unsloth"}])
    if now("LOAD_IN_4BIT") is False:
        found.append([{"LOAD_IN_4BIT": True}])
    found.append([{"MAX_SEQ_LENGTH": length} for length in _halves(now("MAX_SEQ_LENGTH", 0), SHORTEST)])
    ranks = _halves(now("LORA_R", 0), SMALLEST_RANK)
    found.append([{"LORA_R": r} | ({"LORA_ALPHA": now("LORA_ALPHA") * r // now("LORA_R")} if now("LORA_ALPHA") else {}) for r in ranks])
    return [rungs for rungs in found if rungs]


def in_words(constants, change):
    """A change of `ladders` with the values as they are and as they would be, and what it costs."""
    values = " and ".join(f"{name} {constants[name]} -> {value}" for name, value in change.items())
    then = "and are left out if that is not enough" if constants.get("LONG_DOCUMENTS") == "drop" else "then the middle of their document"
    cost = {
        "PER_DEVICE_TRAIN_BATCH_SIZE": ": the same rows a step, slower",
        "GRADIENT_CHECKPOINTING": ": activations are computed again, about 30 % slower",
        "LOAD_IN_4BIT": ": about a quarter of the memory for weights",
        "MAX_SEQ_LENGTH": ": a shorter context" if constants.get("PRETRAINING") else f": longer rows lose their oldest turns, {then}",
        "LORA_R": ": a smaller adapter",
    }
    return values + cost.get(next(iter(change)), "")


def _halves(value, least):
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found

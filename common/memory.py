"""GPU memory: refusing a model that cannot fit, and what to change after an out-of-memory error."""

from contextlib import contextmanager

from common import hardware
from common.refusal import Refusal

WORKING_GIB = 1.5  # CUDA context, activations of one short row, adapter and its optimiser: nothing trains in less


def require_gpu(model_name, weights_gib, load_in_4bit):
    """Refuse a GPU that cannot hold the weights and the least of work; does nothing without a GPU or with an unknown size.

    weights_gib: GiB of the 16-bit safetensors. In NF4 the linear layers take 0.53 byte a parameter (4 bits and double
    quantised scales) instead of 2; embeddings stay in 16 bit, so 0.35 of the file is what is counted.
    """
    gpus = hardware.gpus()
    if not gpus or not weights_gib:
        return
    needed = weights_gib * (0.35 if load_in_4bit else 1) + WORKING_GIB
    smallest = min(gpus, key=lambda gpu: gpu.memory_gib)
    if smallest.memory_gib < needed:
        other = "take a smaller model or a larger GPU" if load_in_4bit else "set LOAD_IN_4BIT = True, or take a larger GPU"
        raise Refusal(
            f"{smallest.name} has {smallest.memory_gib:.1f} GiB; {model_name} needs at least {needed:.1f} GiB "
            f"({needed - WORKING_GIB:.1f} of weights{' in 4 bit' if load_in_4bit else ''}, {WORKING_GIB} to work in); {other}"
        )


@contextmanager
def advice(**constants):
    """Turn an out-of-memory error inside into a `Refusal` with the constants to change, in order, with values.

    constants: those of the recipe that cost memory, as they are now: PER_DEVICE_TRAIN_BATCH_SIZE,
    GRADIENT_ACCUMULATION_STEPS, MAX_SEQ_LENGTH, GRADIENT_CHECKPOINTING, LOAD_IN_4BIT, LORA_R, PER_DEVICE_EVAL_BATCH_SIZE.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError, the CPU allocator's has no type
        text = str(error)
        if not (type(error).__name__ in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in text or "out of memory" in text):
            raise
        raise Refusal("out of memory. Change in this order, one at a time:\n" + "\n".join(f"  {c}" for c in changes(constants))) from error


def changes(constants):
    """What to change, cheapest for the result first, as lines with old and new values."""
    now, lines = constants.get, []
    batch, accumulation = now("PER_DEVICE_TRAIN_BATCH_SIZE", 1), now("GRADIENT_ACCUMULATION_STEPS", 1)
    if now("PER_DEVICE_EVAL_BATCH_SIZE", 1) > 1:
        lines.append(f"PER_DEVICE_EVAL_BATCH_SIZE {now('PER_DEVICE_EVAL_BATCH_SIZE')} -> 1, if it happened in an evaluation")
    if batch > 1:
        smaller = max(size for size in range(1, batch // 2 + 1) if batch * accumulation % size == 0)
        lines.append(
            f"PER_DEVICE_TRAIN_BATCH_SIZE {batch} -> {smaller} and GRADIENT_ACCUMULATION_STEPS {accumulation} -> "
            f"{batch * accumulation // smaller}: the same rows a step, slower"
        )
    if now("GRADIENT_CHECKPOINTING") in (False, "none", None) and "GRADIENT_CHECKPOINTING" in constants:
        lines.append('GRADIENT_CHECKPOINTING -> "unsloth": activations are computed again, about 30 % slower')
    if now("LOAD_IN_4BIT") is False:
        lines.append("LOAD_IN_4BIT False -> True: a quarter of the memory for weights")
    if now("MAX_SEQ_LENGTH", 0) > 512:
        lines.append(f"MAX_SEQ_LENGTH {now('MAX_SEQ_LENGTH')} -> {now('MAX_SEQ_LENGTH') // 2}: longer rows lose their oldest turns")
    if now("LORA_R", 0) > 8:
        lines.append(f"LORA_R {now('LORA_R')} -> {now('LORA_R') // 2} and LORA_ALPHA in proportion: a smaller adapter")
    return lines or ["take a smaller model or a larger GPU; every constant is at its smallest"]

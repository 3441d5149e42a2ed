"""Constants that the machine decides: the row of a recipe's GPU_PRESETS for the GPU found, or what the run that goes on had.

The first row, under the key "GPU", names the constants; the others have their values, by the names that `accelerators` knows.
"""

import math

from common import accelerators, hardware
from common.refusal import Refusal

BATCH = ("PER_DEVICE_TRAIN_BATCH_SIZE", "GRADIENT_ACCUMULATION_STEPS")
ALIKE = 0.97  # of a row's memory: firmware and error correction keep a little more of one GPU than of another


def decide(settings, namespace, presets, own_gpu, checkpoint=None):
    """Give the constants of the table that are None their values; a sentence that says which row that is and why, None where none is.

    settings: the `Resolved` ones; namespace: the recipe's globals(); own_gpu: planned for where no GPU is found; checkpoint: manifest of
    what is resumed, whose values come first, a micro-batch that had to shrink included. Raises `Refusal` where there is no GPU to go by.
    """
    if checkpoint:
        _as_before(settings, namespace, presets, checkpoint)
    if None not in (settings.values[name] for name in presets["GPU"]):
        return None
    left = ", ".join(name for name in presets["GPU"] if settings.values[name] is None)
    if settings.gpus:
        gpu = accelerators.parse(settings.gpus)[1]
    elif hardware.is_mig():
        raise Refusal(f"the GPU is divided (MIG), and how large its parts are is not known here; set {left} yourself, as in the row of "
                      "GPU_PRESETS that has as much memory")  # fmt: skip
    elif found := accelerators.found():
        gpu = found[1]
    elif settings.plan or settings.prefetch:
        gpu = accelerators.parse(own_gpu)[1]
    else:
        raise Refusal(f"no GPU was found here, by which {left} would be chosen; --tiny runs the same code on a CPU, --plan computes what a "
                      "GPU needs for it, and a value for each of them starts all the same")  # fmt: skip
    name, why = row_for(gpu, presets)
    row, origin = dict(zip(presets["GPU"], presets[name], strict=True)), f'GPU_PRESETS["{name}"]'
    rows = row[BATCH[0]] * row[BATCH[1]]
    for given, other in (BATCH, BATCH[::-1]):  # where one of the two is given, as many rows a step as it divides
        if (size := settings.values[given]) is not None:
            times = max(1, rows // size)
            settings.decide(namespace, f"{times * size} rows a step on a GPU, {rows} in {origin}", **{other: times})
    settings.decide(namespace, origin, **row)
    return f"{gpu.name}, {gpu.memory_gib:.1f} GiB: {why}"


def require_precision(bf16, fp16, settings):
    """Refuse where not exactly one of the two is asked for, bf16 on a GPU that is known to be without it, and fp16 without a GPU."""
    if bf16 == fp16:
        raise Refusal(f"BF16 and FP16 are both {bf16}; a run computes in one of them: BF16 on Ampere GPUs (RTX 30, A100) and newer, FP16 "
                      "on older ones")  # fmt: skip
    if settings.gpus or settings.prefetch:  # not for what is found here; what --gpus may name has bf16
        return
    found = accelerators.found()
    if fp16 and not found and not settings.plan:
        raise Refusal("FP16 is True, which is for GPUs older than bf16, and there is no GPU here; set FP16 = False and BF16 = True")
    if bf16 and found and not found[1].bf16:
        raise Refusal(f"BF16 is True, and {found[1].name} has no bf16; set BF16 = False and FP16 = True, or take an Ampere GPU or newer "
                      "(RTX 30, A100, L4, H100)")  # fmt: skip


def row_for(gpu, presets):
    """(name of the row for an `Accelerator`, why that one): its own, else the largest that has no more memory, else the smallest."""
    memory = {name: accelerators.parse(name)[1].memory_gib for name in presets if name != "GPU"}
    kind = gpu.name.split(" (")[0].replace("-PCIe", "")  # of several kinds the smallest, with the others in brackets
    if ALIKE * memory.get(kind, math.inf) <= gpu.memory_gib:
        return kind, f"the row {kind} of GPU_PRESETS"
    smaller = [name for name in memory if ALIKE * memory[name] <= gpu.memory_gib]
    if smaller:
        name = max(smaller, key=memory.get)
        return name, f"no row of its own in GPU_PRESETS, so that of the {name}, the largest that has no more memory"
    name = min(memory, key=memory.get)
    return name, f"less memory than any row of GPU_PRESETS; that of the {name} is tried"


def _as_before(settings, namespace, presets, checkpoint):
    """What the run had where nothing else is said; and its micro-batch, where AUTO_BATCH shrank it from what is said."""
    before, origin = checkpoint["constants"], f"checkpoint-{checkpoint['step']}"
    now, then = ([values.get(name) for name in BATCH] for values in (settings.values, before))
    alone = checkpoint["world_size"] == 1 and not checkpoint["sharded"]  # only such a run shrinks
    if settings.values["AUTO_BATCH"] and alone and now != [None, None] and None not in then:
        rows = then[0] * then[1]
        batch, accumulation = now[0] or rows // now[1], now[1] or rows // now[0]
        if batch * accumulation == rows and then[0] < batch:
            for name, value in zip(BATCH, then, strict=True):
                settings.values[name] = None
                settings.decide(namespace, f"{origin}, shrunk for lack of memory", **{name: value})
    settings.decide(namespace, origin, **{name: before[name] for name in presets["GPU"] if name in before})

"""The memory of a job, part by part, on one of its GPUs; whether it fits there, and the smallest change with which it does."""

import math
from dataclasses import dataclass

from common import activations, memory, model_states
from common.hardware import GIB

CONTEXT_BYTES = 0.6e9  # CUDA context, kernels and cuBLAS workspaces of one process; what nvidia-smi shows before the first tensor
COLLECTIVES_BYTES = 0.8e9  # NCCL's channels and buffers, with more than one GPU
RESERVE = 0.05  # of the GPU: with less to spare a run only just fits, for this arithmetic errs by as much
FRAGMENTED = 0.05  # of what is allocated and freed within a step: what the caching allocator cannot give out again


@dataclass(frozen=True)
class Footprint:
    """Bytes on one GPU. `parts` live together at the worst moment of a run and add up; `not_together` are those of other moments."""

    parts: dict  # name -> bytes
    not_together: dict  # name -> bytes
    capacity: float  # bytes the GPU has

    total = property(lambda self: sum(self.parts.values()))
    free = property(lambda self: self.capacity - self.total)
    fits = property(lambda self: self.free >= 0)
    fits_well = property(lambda self: self.free >= RESERVE * self.capacity)

    @property
    def allocated(self):
        """What torch.cuda.max_memory_allocated would say: without context and fragmentation."""
        return self.total - self.parts["context and libraries"] - self.parts["fragmentation"]


def of(job, memory_gib):
    """The `Footprint` of a job on GPUs of `memory_gib` GiB.

    A run has four moments: the loss (all that is kept, and the logits), the backward pass of a layer (and its own tensors), the
    optimiser (no activations, of ZeRO-1 and 2 no buckets, but gradients in fp32), and an evaluation. The largest counts.
    """
    stage, trained, zero = job.zero_stage, job.trained_parameters, job.zero
    offload, largest = zero.offload_optimizer, model_states.largest_trained(job.model, trained)
    weights = model_states.weights_bytes(job.model, job.lora_r, job.target_modules, job.load_in_4bit, stage, job.gpus, zero.offload_param)
    small = model_states.small_trained(job.model, job.lora_r, job.target_modules)
    standing = {
        "weights": weights["base"] + weights["trained"],
        "gradients": model_states.gradient_bytes(trained, stage, job.gpus, offload, largest),
        "optimiser states": model_states.optimizer_bytes(trained, job.optim, stage, job.gpus, offload, small),
    }
    buffers = model_states.buffer_bytes(
        stage, job.gpus, trained, job.model, zero, job.gradient_accumulation_steps, job.load_in_4bit, job.kernels
    )
    if dequantised := buffers.pop("dequantised", 0):
        standing["quantisation buffer"] = dequantised
    sharing = {"ZeRO buffers": sum(buffers.values())} if buffers else {}
    context = CONTEXT_BYTES + (COLLECTIVES_BYTES if job.gpus > 1 else 0)
    free = memory_gib * GIB - sum(standing.values()) - sum(sharing.values()) - context
    training = activations.Training(job.kernels, job.lora_r, job.target_modules, job.dropout, autocast=not stage, tiled_mlp=job.tiled_mlp)
    work = activations.peak(
        job.model, job.micro_batch_tokens, job.gradient_checkpointing, job.loss, training, job.tiled_mlp, max(free, 0)
    )  # fmt: skip
    moments = {
        "loss": sharing | {"activations": work["activations kept"], "logits and loss": work["logits and loss"]},
        "backward": sharing | {"activations": work["activations kept"] + work["one layer at work"]},
        "step": {"gradients in fp32": model_states.step_bytes(trained, stage, job.gpus, offload, largest)},
    }
    if stage == 3:
        moments["step"] |= sharing
    if job.eval_steps:
        evaluated = activations.evaluation_bytes(job.model, job.eval_batch_tokens, job.loss, training, max(free, 0))
        moments["evaluation"] = (sharing if stage == 3 else {}) | {"an evaluation": evaluated}
    worst = max(moments, key=lambda moment: sum(moments[moment].values()))
    parts = standing | moments[worst]
    parts["fragmentation"] = FRAGMENTED * sum(size for part, size in moments[worst].items() if part != "ZeRO buffers")
    parts["context and libraries"] = context
    others = {part: size for moment, found in moments.items() if moment != worst for part, size in found.items() if part not in parts}
    return Footprint(parts, others, memory_gib * GIB)


def smallest_change(job, memory_gib):
    """The least that has to be changed for `job` to fit well, as [{CONSTANT: new value}, …]; None where no constant is enough.

    One constant, as far as it must go, in the order of `memory.ladders`; where one is not enough, several, of which those that cost
    the result most are changed least.
    """

    def fits(changes):
        changed = job
        for change in changes:
            changed = changed.changed(change)
        return of(changed, memory_gib).fits_well

    ladders = memory.ladders(job.constants())
    single = next(([change] for rungs in ladders for change in rungs if fits([change])), None)
    if single or not fits([rungs[-1] for rungs in ladders]):
        return single
    taken = [[rungs[-1]] for rungs in ladders]
    for place, rungs in reversed(list(enumerate(ladders))):
        for less in ([], *([change] for change in rungs)):
            trial = [*taken[:place], less, *taken[place + 1 :]]
            if fits([change for changes in trial for change in changes]):
                taken = trial
                break
    return [change for changes in taken for change in changes]


def fewest_gpus(job, memory_gib, most=64):
    """The smallest number of such GPUs on which the job fits as it is: ZeRO spreads its states; None where none up to `most` is enough."""
    if not job.zero.stage:
        return None
    counts = (2**n for n in range(int(math.log2(most)) + 1))
    possible = (n for n in counts if n > job.gpus and n % job.sequence_parallel_size == 0 and job.divides(n))
    return next((n for n in possible if of(job.on(n), memory_gib).fits_well), None)


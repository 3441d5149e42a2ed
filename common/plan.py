"""The plan of a run before it starts: parameters, memory, disk, steps, hours, dollars, and the same on other GPUs.

Arithmetic from `dimensions`, `footprint`, `compute` and `disk_needs`; nothing is loaded and nobody is asked.
"""

import math
from dataclasses import asdict, dataclass

from common import accelerators, activations, compute, disk_needs, footprint, memory, model_states
from common.accelerators import Accelerator
from common.footprint import Footprint
from common.job import Job


@dataclass(frozen=True)
class Workload:
    """What an epoch has to compute. rows: as the trainer has them (packed ones when packing), None where the data are unknown."""

    rows: float
    tokens: int  # of the training rows, without padding
    computed_tokens: float  # with the padding that is computed
    attended_length: float  # tokens of the row that the average token stands in
    waste: str  # padding or packing efficiency in words
    source: str  # how the tokens were counted


@dataclass(frozen=True)
class Time:
    """Seconds of one optimiser step, by what they go to, and of all steps. `total` and what follows are None where steps are unknown."""

    computing: float
    sending: float  # only what does not hide behind computing
    updating: float  # the optimiser
    flops: float  # of one GPU in one step
    utilisation: float  # share of the peak that all of it reaches together
    utilisation_from: str
    step: float
    steps: int | None
    tokens_per_second: float
    hours: float | None
    gpu_hours: float | None


@dataclass(frozen=True)
class Plan:
    job: Job
    model_name: str
    accelerator: Accelerator
    came_from: str
    footprint: Footprint
    changes: list | None  # the smallest that make it fit; [] where it fits, None where none do
    fix: str | None  # the same in words, or what else would do
    workload: Workload | None
    missing: str | None  # why there is no workload
    epochs: float | None
    steps: int | None
    tokens_per_step: float
    time: Time | None  # None where the GPU's peak is unknown
    dollars: float | None
    disk: dict  # {what: bytes}
    host: float  # bytes of memory of one node
    elsewhere: list  # [{"gpus", "accelerator", "memory_gb", "capacity_gb", "fits", "hours", "gpu_hours"}]

    def to_dict(self):
        """The plan as plain values for JSON: sizes in bytes, times in seconds or hours as their names say."""
        job, model = asdict(self.job), self.job.model
        accelerator = asdict(self.accelerator) | {"came_from": self.came_from}
        return {
            "model": self.model_name, "dimensions": job.pop("model"), "job": job, "accelerator": accelerator,
            "parameters": {"total": model.parameters() + self.job.trained_parameters * bool(self.job.lora_r),
                           "trainable": self.job.trained_parameters},
            "memory_bytes_per_gpu": {
                "parts": self.footprint.parts, "at_another_moment": self.footprint.not_together, "total": self.footprint.total,
                "capacity": self.footprint.capacity, "free": self.footprint.free, "fits": self.footprint.fits,
            },
            "to_make_it_fit": {"changes": self.changes, "in_words": self.fix},
            "host_bytes": self.host, "disk_bytes": self.disk,
            "data": self.workload and asdict(self.workload), "no_data": self.missing, "epochs": self.epochs, "steps": self.steps,
            "tokens_per_step": self.tokens_per_step, "time": self.time and asdict(self.time), "usd": self.dollars,
            "elsewhere": self.elsewhere,
        }  # fmt: skip


def steps_of(rows, tokens, rows_per_step, epochs, max_steps):
    """{"steps", "tokens_per_step", "epochs"} of what is really run.

    rows: rows of the training set as the trainer has it (packed rows when packing); tokens: all of their tokens;
    rows_per_step: micro-batch x accumulation x ranks.
    """
    steps_per_epoch = max(1, math.ceil(rows / rows_per_step))
    steps = max_steps if max_steps > 0 else math.ceil(steps_per_epoch * epochs)
    return {"steps": steps, "tokens_per_step": round(tokens / steps_per_epoch), "epochs": round(steps / steps_per_epoch, 3)}


def full_rows(tokens, max_seq_length):
    """The `Workload` of data of which only the number of tokens is known: rows are taken to be full."""
    return Workload(tokens / max_seq_length, tokens, tokens, max_seq_length, "rows taken to be full", "the number given with --tokens")


def time_of(job, accelerator, computed_tokens_per_step, attended_length, steps):
    """`Time` of a job on GPUs of one kind; None where their peak is not known (a CPU, a GPU named by its memory)."""
    if not accelerator.peak_tflops:
        return None
    model, stage = job.model, job.zero_stage
    flops = compute.step_flops(
        model, computed_tokens_per_step / job.gpus, attended_length, job.lora_r, job.target_modules, job.gradient_checkpointing,
        loss=job.loss, use_reentrant=job.gradient_checkpointing == "unsloth" or stage == 3, tiled_mlp=job.tiled_mlp,
    )  # fmt: skip
    share, source = compute.utilisation(job.method, accelerator.name, model.hidden_size)
    computing = compute.computing_seconds(flops, accelerator.peak_tflops, share, accelerator.name)
    recomputes = job.gradient_checkpointing != "none"
    sent = compute.communication_bytes(
        stage, job.gpus, job.trained_parameters, model.parameters() if job.lora_r else 0, job.gradient_accumulation_steps, recomputes,
        model.layer_parameters(), max_reuse_distance=job.zero.max_reuse_distance,
    )["total"]  # fmt: skip
    link = accelerator.link_gb_per_s if job.gpus <= accelerators.GPUS_PER_NODE else accelerator.node_gb_per_s
    busy = compute.step_seconds(computing, sent, link, overlapped=job.zero.overlap_comm)
    if job.sequence_parallel_size > 1:  # attention waits for this exchange, which hides behind nothing
        exchanged = compute.sequence_parallel_bytes(model, computed_tokens_per_step / job.gpus, job.sequence_parallel_size, recomputes)
        busy += exchanged / (link * 1e9)
    mine = job.trained_parameters / (job.gpus if stage else 1)
    if job.zero.offload_optimizer and stage:
        updating = compute.offloaded_optimizer_seconds(job.trained_parameters, mine)
    else:
        states = footprint.of(job, accelerator.memory_gib).parts
        updating = compute.optimizer_seconds(mine * 2, states["optimiser states"], states["gradients"], accelerator.memory_gb_per_s)
    step = busy + updating
    hours = step * steps / 3600 if steps else None
    return Time(
        computing, busy - computing, updating, flops["total"], flops["total"] / computing / (accelerator.peak_tflops * 1e12), source, step,
        steps, computed_tokens_per_step / step, hours, hours * job.gpus if steps else None,
    )  # fmt: skip


def which_gpus(asked, own):
    """(count, `Accelerator`, where they come from) of --gpus, else of the GPUs found, else of the recipe's own; "cpu" is this machine."""
    if asked:
        return *accelerators.parse(asked), "as asked"
    if found := accelerators.found():
        return *found, "found here"
    if own == "cpu":
        return 1, accelerators.cpu(), "this machine"
    return *accelerators.parse(own), "the recipe's own hardware; no GPU was found here"


def make(job, model_name, accelerator, came_from, workload=None, missing=None, usd_per_gpu_hour=None):
    """The `Plan` of a job on its GPUs, all of one kind. workload: None where the data are unknown, for the reason in `missing`."""
    full_step = job.rows_per_step * job.max_seq_length
    ran = workload and steps_of(workload.rows, workload.tokens, job.rows_per_step, job.num_train_epochs, job.max_steps)
    steps = ran["steps"] if ran else job.max_steps if job.max_steps > 0 else None
    per_step = workload.computed_tokens / workload.rows * job.rows_per_step if workload else full_step
    attended = workload.attended_length if workload else job.max_seq_length
    taken = footprint.of(job, accelerator.memory_gib)
    time = time_of(job, accelerator, per_step, attended, steps)
    return Plan(
        job, model_name, accelerator, came_from, taken, [] if taken.fits else footprint.smallest_change(job, accelerator.memory_gib),
        None if taken.fits else fix(job, accelerator.memory_gib), workload, missing, ran and ran["epochs"], steps,
        ran["tokens_per_step"] if ran else full_step, time,
        time.gpu_hours * usd_per_gpu_hour if time and usd_per_gpu_hour and steps else None,
        disk_of(job, workload), host_of(job),
        [_elsewhere(job, count, kind, per_step, attended, steps) for count, kind in accelerators.COMPARED],
    )  # fmt: skip


def _elsewhere(job, count, kind, tokens_per_step, attended_length, steps):
    """The same constants on `count` other GPUs: as many rows on each, so with more of them fewer and larger steps."""
    other = job.changed({"GPUS": count})
    taken = footprint.of(other, kind.memory_gib)
    time = time_of(other, kind, tokens_per_step / job.gpus * count, attended_length, steps and math.ceil(steps * job.gpus / count))
    return {
        "gpus": count, "accelerator": kind.name, "memory_gb": taken.total / 1e9, "capacity_gb": taken.capacity / 1e9,
        "fits": taken.fits, "hours": time.hours, "gpu_hours": time.gpu_hours, "tokens_per_second": time.tokens_per_second,
    }  # fmt: skip


def disk_of(job, workload):
    """{what: bytes} on this run's disk at its fullest."""
    trained, adapter = job.trained_parameters, job.lora_r > 0
    small = model_states.small_trained(job.model, job.lora_r, job.target_modules)
    one = disk_needs.checkpoint_bytes(trained, job.optim, job.zero_stage, adapter, gpus=job.gpus, small=small,
                                      model=job.model, load_in_4bit=job.load_in_4bit)  # fmt: skip
    found = {"checkpoints": disk_needs.kept_bytes(one, job.save_total_limit)}
    found["final_model"] = disk_needs.final_model_bytes(trained, adapter, job.zero_stage)
    if adapter and job.merge:
        found["merged_model"] = disk_needs.merged_model_bytes(job.model)
    if not job.pretraining:
        found["the model's download"] = disk_needs.merged_model_bytes(job.model)
    if workload:
        found["tokens"] = disk_needs.cache_bytes(workload.tokens)
    return found


def host_of(job):
    """Bytes of host memory that the ranks of one node need."""
    ranks = min(job.gpus, accelerators.GPUS_PER_NODE)
    kept = activations.host_bytes(job.model, job.micro_batch_tokens, job.gradient_checkpointing)
    offloaded = {}
    if job.zero.offload_optimizer and job.zero_stage:
        offloaded = model_states.offloaded_bytes(
            job.trained_parameters, job.optim, job.zero_stage, job.gpus, job.model, job.zero.offload_param, job.gradient_accumulation_steps
        )
    return disk_needs.host_bytes(ranks, kept_activations_bytes=kept, offloaded_bytes=sum(offloaded.values()))


def fix(job, memory_gib):
    """The smallest change that makes a job fit, as a sentence."""
    changes = footprint.smallest_change(job, memory_gib)
    if changes:
        return "Change " + "; and ".join(memory.in_words(job.constants(), change) for change in changes) + "."
    enough = footprint.fewest_gpus(job, memory_gib)
    larger = ((n, kind) for n, kind in accelerators.COMPARED if footprint.of(job.changed({"GPUS": n}), kind.memory_gib).fits)
    others = [f"{enough} such GPUs"] * bool(enough) + [next((f"{n} x {kind.name}" for n, kind in larger), "a smaller model")]
    return f"No constant is enough; take {' or '.join(others)}."

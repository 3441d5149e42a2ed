"""The plan of a run before it starts: parameters, memory, disk, steps, hours, dollars, and the same on other GPUs.

Arithmetic from `dimensions`, `footprint`, `compute` and `disk_needs`; nothing is loaded and nobody is asked.
"""

import math
from dataclasses import asdict, dataclass, replace

from common import accelerators, activations, compute, disk_needs, footprint, memory, model_states
from common.accelerators import Accelerator
from common.footprint import Footprint
from common.hardware import GIB
from common.job import Job

SAMPLES = (1_000, 10_000, 100_000)  # conversations of which every plan tells the hours
USUAL_TOKENS = 512  # of a conversation where the data do not say
FEW_STEPS = 30
LONG = 16_384  # tokens of a row above which rows are documents


@dataclass(frozen=True)
class Workload:
    """What an epoch has to compute."""

    rows: float  # as the trainer has them: packed ones when packing
    tokens: int  # of the training rows, without padding
    computed_tokens: float  # with the padding that is computed
    attended_length: float  # tokens of the row that the average token stands in
    validation_tokens: float  # of one evaluation
    waste: str  # padding or packing efficiency in words
    source: str  # how the tokens were counted
    conversations: int | None = None  # in the rows; None where only their tokens are known


@dataclass(frozen=True)
class Time:
    """Seconds of one optimiser step, by what they go to, and hours of all."""

    computing: float
    sending: float  # only what does not hide behind computing
    updating: float  # the optimiser
    step: float
    tokens_per_second: float
    flops: float  # of one GPU in one step
    utilisation: float  # share of the peak that all of it reaches together
    utilisation_from: str
    evaluating: float | None  # seconds of all evaluations
    hours: float | None  # None where the steps are unknown
    gpu_hours: float | None


@dataclass(frozen=True)
class Course:
    """The steps of a run and their time; None where it is unknown."""

    steps: int | None
    epochs: float | None
    tokens_per_step: float  # without padding
    time: Time | None  # None where the GPU's peak is unknown


@dataclass(frozen=True)
class Plan:
    job: Job
    model_name: str
    accelerator: Accelerator
    came_from: str
    footprint: Footprint
    changes: list | None  # the smallest that make it fit well; [] where it fits, None where none do
    fix: str | None  # the same in words, or what else would do
    workload: Workload | None
    missing: str | None  # why there is no workload
    course: Course
    dollars: float | None  # in all
    dollars_per_million_tokens: float | None
    disk: dict  # {what: bytes}
    host: float  # bytes of memory of one node
    elsewhere: list  # of what `_elsewhere` gives
    samples: list  # of what `samples_of` gives

    def to_dict(self):
        """The plan as plain values for JSON: sizes in bytes, times in seconds or hours as their names say."""
        job, model, taken, course = asdict(self.job), self.job.model, self.footprint, self.course
        accelerator = asdict(self.accelerator) | {"came_from": self.came_from}
        return {
            "model": self.model_name, "dimensions": job.pop("model"), "job": job, "accelerator": accelerator,
            "parameters": {"total": model.parameters() + self.job.trained_parameters * bool(self.job.lora_r),
                           "trainable": self.job.trained_parameters},
            "memory_bytes_per_gpu": {
                "parts": taken.parts, "at_other_moments": taken.not_together, "total": taken.total, "capacity": taken.capacity,
                "free": taken.free, "fits": taken.fits, "fits_well": taken.fits_well,
            },
            "to_make_it_fit": {"changes": self.changes, "in_words": self.fix},
            "host_bytes": self.host, "disk_bytes": self.disk,
            "data": self.workload and asdict(self.workload), "no_data": self.missing, "epochs": course.epochs, "steps": course.steps,
            "tokens_per_step": course.tokens_per_step, "time": course.time and asdict(course.time), "usd": self.dollars,
            "usd_per_million_tokens": self.dollars_per_million_tokens, "elsewhere": self.elsewhere,
            "samples": self.samples,
        }  # fmt: skip


def steps_of(rows, tokens, rows_per_step, epochs, max_steps):
    """{"steps", "tokens_per_step", "epochs"} of what is really run.

    rows: rows of the training set as the trainer has it (packed rows when packing); tokens: all of their tokens;
    rows_per_step: micro-batch x accumulation x ranks.
    """
    steps_per_epoch = max(1, math.ceil(rows / rows_per_step))
    steps = max_steps if max_steps > 0 else math.ceil(steps_per_epoch * epochs)
    return {"steps": steps, "tokens_per_step": round(tokens / steps_per_epoch), "epochs": round(steps / steps_per_epoch, 3)}


def few_steps(steps, packing, rows_per_step):
    """A sentence where a run has too few steps for its schedule to mean anything; None where it has enough."""
    if steps >= FEW_STEPS:
        return None
    packed = "PACKING = False, or " if packing else ""
    return (f"{steps} optimiser steps are few: the rate hardly rises before it falls, and the model may learn nothing; more rows, more "
            f"epochs, {packed}fewer rows a step than {rows_per_step} (GRADIENT_ACCUMULATION_STEPS) make more")  # fmt: skip


def full_rows(tokens, max_seq_length, validation_tokens=0.0):
    """The `Workload` of training data of which only the number of tokens is known: rows are taken to be full."""
    source = "the number given with --tokens"
    return Workload(tokens / max_seq_length, tokens, tokens, max_seq_length, validation_tokens, "rows taken to be full", source)


def course_of(job, accelerator, workload=None):
    """The `Course` of a job on GPUs of one kind. Without a workload a step is one of full rows."""
    if workload is None:
        tokens = job.rows_per_step * job.max_seq_length
        steps = job.max_steps if job.max_steps > 0 else None
        return Course(steps, None, tokens, time_of(job, accelerator, tokens, job.max_seq_length, steps))
    ran = steps_of(workload.rows, workload.tokens, job.rows_per_step, job.num_train_epochs, job.max_steps)
    computed = workload.computed_tokens / max(1, math.ceil(workload.rows / job.rows_per_step))
    time = time_of(job, accelerator, computed, workload.attended_length, ran["steps"], workload.validation_tokens)
    return Course(ran["steps"], ran["epochs"], ran["tokens_per_step"], time)


def samples_of(job, accelerator, workload=None, usd_per_gpu_hour=None):
    """[{rows, tokens, hours, gpu_hours, usd}, …]: what each of `SAMPLES` conversations takes in the job's epochs, without evaluations.

    tokens: of one conversation, as many as the workload's have on average, and packed or padded like these; where it has none, they
    are taken to be of USUAL_TOKENS, and documents to fill their rows. usd: None without a price. Nothing of pretraining, and where the
    GPU's peak is unknown.
    """
    if job.pretraining or not accelerator.peak_tflops:
        return []
    if workload is None or not workload.conversations:
        usual = job.max_seq_length if job.max_seq_length > LONG else min(USUAL_TOKENS, job.max_seq_length)
        workload = replace(full_rows(usual, job.max_seq_length if job.packing else usual), attended_length=usual, conversations=1)
    tokens, found = round(workload.tokens / workload.conversations), []
    for rows in SAMPLES:
        share = rows / workload.conversations
        scaled = {name: getattr(workload, name) * share for name in ("rows", "tokens", "computed_tokens")}
        time = course_of(replace(job, max_steps=-1, eval_steps=None), accelerator, replace(workload, **scaled)).time
        usd = usd_per_gpu_hour and time.gpu_hours * usd_per_gpu_hour
        found.append({"rows": rows, "tokens": tokens, "hours": time.hours, "gpu_hours": time.gpu_hours, "usd": usd})
    return found


def time_of(job, accelerator, computed_tokens_per_step, attended_length, steps, validation_tokens=0):
    """`Time` of a job on GPUs of one kind; None where their peak is not known (a CPU, a GPU named by its memory)."""
    if not accelerator.peak_tflops:
        return None
    model, stage, tokens = job.model, job.zero_stage, computed_tokens_per_step / job.gpus
    share, source = compute.utilisation(job.method, accelerator.name, model.hidden_size)

    def seconds(flops):
        return compute.computing_seconds(flops, accelerator.peak_tflops, share, accelerator.name)

    flops = compute.step_flops(
        model, tokens, attended_length, job.lora_r, job.target_modules, job.gradient_checkpointing, loss=job.loss,
        use_reentrant=job.gradient_checkpointing == "unsloth" or stage == 3, tiled_mlp=job.tiled_mlp,
    )  # fmt: skip
    computing = seconds(flops)
    recomputes = job.gradient_checkpointing != "none"
    sent = compute.communication_bytes(
        stage, job.gpus, job.trained_parameters, model.parameters() if job.lora_r else 0, job.gradient_accumulation_steps, recomputes,
        model.layer_parameters(), max_reuse_distance=job.zero.max_reuse_distance,
    )["total"]  # fmt: skip
    link = accelerator.link_gb_per_s if job.gpus <= accelerators.GPUS_PER_NODE else accelerator.node_gb_per_s
    busy = compute.step_seconds(computing, sent, link, overlapped=job.zero.overlap_comm or not stage)  # torch's DDP always overlaps
    if job.sequence_parallel_size > 1:  # attention waits for this exchange, which hides behind nothing
        busy += compute.sequence_parallel_bytes(model, tokens, job.sequence_parallel_size, recomputes) / (link * 1e9)
    mine = job.trained_parameters / (job.gpus if stage else 1)
    if job.zero.offload_optimizer and stage:
        updating = compute.offloaded_optimizer_seconds(job.trained_parameters, mine)
    else:
        states = footprint.of(job, accelerator.memory_gib).parts
        updating = compute.optimizer_seconds(mine * 2, states["optimiser states"], states["gradients"], accelerator.memory_gb_per_s)
    step, evaluating, hours = busy + updating, None, None
    if steps:
        evaluations = steps // job.eval_steps if job.eval_steps else 0
        evaluating = evaluations * seconds(compute.evaluation_flops(model, validation_tokens / job.gpus, attended_length))
        hours = (step * steps + evaluating) / 3600
    return Time(
        computing, busy - computing, updating, step, computed_tokens_per_step / step, flops["total"],
        flops["total"] / computing / (accelerator.peak_tflops * 1e12), source, evaluating, hours, hours and hours * job.gpus,
    )  # fmt: skip


def chosen_gpus(asked, own, ranks):
    """(count, `Accelerator`, where they come from) of --gpus, else as many of the GPUs found as the run has `ranks`, else of its own."""
    if asked:
        return *accelerators.parse(asked), "as asked"
    if found := accelerators.found():
        return ranks, found[1], "found here"
    if own == "cpu":
        return ranks, accelerators.cpu(), "this machine"
    return *accelerators.parse(own), "the recipe's own hardware; no GPU was found here"


def make(job, model_name, accelerator, came_from, workload=None, missing=None, usd_per_gpu_hour=None, tokenizer_bytes=None):
    """The `Plan` of a job on its GPUs, all of one kind. workload: None where the data are unknown, for the reason in `missing`."""
    taken, course = footprint.of(job, accelerator.memory_gib), course_of(job, accelerator, workload)
    changes = [] if taken.fits else footprint.smallest_change(job, accelerator.memory_gib)
    price = usd_per_gpu_hour if course.time else None
    return Plan(
        job, model_name, accelerator, came_from, taken, changes, None if taken.fits else fix(job, accelerator, changes), workload, missing,
        course, course.time.gpu_hours * price if price and course.steps else None,
        job.gpus * price / 3600 / course.time.tokens_per_second * 1e6 if price else None,
        disk_of(job, workload, course.steps, tokenizer_bytes), host_of(job, taken.free),
        [_elsewhere(job, count, kind, workload) for count, kind in accelerators.COMPARED
         if count % job.sequence_parallel_size == 0 and job.divides(count)],
        samples_of(job, accelerator, workload, usd_per_gpu_hour),
    )  # fmt: skip


def _elsewhere(job, count, kind, workload):
    """The same constants on `count` other GPUs: as many rows on each, so with more of them fewer and larger steps, unless TRAIN_BATCH_SIZE
    fixes these."""
    other = job.on(count)
    taken, course = footprint.of(other, kind.memory_gib), course_of(other, kind, workload)
    return {
        "gpus": count, "accelerator": kind.name, "memory_bytes": taken.total, "capacity_bytes": taken.capacity, "fits": taken.fits,
        "steps": course.steps, "hours": course.time.hours, "gpu_hours": course.time.gpu_hours,
        "tokens_per_second": course.time.tokens_per_second,
    }  # fmt: skip


def disk_of(job, workload=None, steps=None, tokenizer_bytes=None):
    """{what: bytes} on this run's disk at its fullest. tokenizer_bytes: None where it is unknown."""
    trained, adapter = job.trained_parameters, job.lora_r > 0
    beside = disk_needs.TOKENIZER_BYTES if tokenizer_bytes is None else tokenizer_bytes
    small = model_states.small_trained(job.model, job.lora_r, job.target_modules)
    one = disk_needs.checkpoint_bytes(trained, job.optim, job.zero_stage, adapter, beside, job.gpus, small, job.model, job.load_in_4bit)
    limit = job.save_total_limit if job.keep_local else 1
    saves = steps and -(-steps // job.save_steps)  # and one at the end
    kept = disk_needs.kept_bytes(one, limit, best=job.load_best_model_at_end and not job.pretraining)
    found = {"checkpoints": kept if not saves or job.pretraining else min(kept, one * saves)}  # files ask for more of pretraining
    found["final_model"] = disk_needs.final_model_bytes(trained, adapter, job.zero_stage, beside)
    if adapter and job.merge:
        found["merged_model"] = disk_needs.merged_model_bytes(job.model, beside)
    if job.downloaded:
        found["the model's download"] = disk_needs.merged_model_bytes(job.model, beside)
    if workload and not job.pretraining:  # whose tokens lie there already
        found["tokens"] = disk_needs.cache_bytes(workload.tokens + workload.validation_tokens)
    return found


def host_of(job, free_bytes):
    """Bytes of host memory that the ranks of one node need, in training or, where that is more, while the adapter is merged.

    free_bytes: to spare on a GPU; merging happens there if twice the 16-bit base fits (`merging.merge_apart`), else in the host's memory.
    """
    ranks = min(job.gpus, accelerators.GPUS_PER_NODE)
    kept = activations.host_bytes(job.model, job.micro_batch_tokens, job.gradient_checkpointing)
    offloaded = {}
    if job.zero.offload_optimizer and job.zero_stage:
        offloaded = model_states.offloaded_bytes(
            job.trained_parameters, job.optim, job.zero_stage, job.gpus, job.model, job.zero.offload_param, job.gradient_accumulation_steps
        )
    training = disk_needs.host_bytes(ranks, kept_activations_bytes=kept, offloaded_bytes=sum(offloaded.values()))
    base = 2 * job.model.parameters()  # in 16 bit, in a process of its own
    merging = disk_needs.host_bytes(ranks + 1) + (0 if free_bytes > 2 * base + 2 * GIB else base)
    return max(training, merging) if job.merge and job.lora_r else training


def fix(job, accelerator, changes):
    """How a job can be made to fit, as a sentence; changes: what `footprint.smallest_change` says."""
    if changes:
        return "Change " + "; and ".join(memory.in_words(job.constants(), change) for change in changes) + "."
    enough = footprint.fewest_gpus(job, accelerator.memory_gib)
    larger = (
        (n, kind) for n, kind in accelerators.ADVISED
        if n % job.sequence_parallel_size == 0 and job.divides(n) and kind.name != accelerator.name
        and footprint.of(job.on(n), kind.memory_gib).fits_well
    )  # fmt: skip
    others = [f"{enough} x {accelerator.name}"] * bool(enough) + [f"{n} x {kind.name}" for n, kind in larger][:1]
    return f"No constant is enough; take {' or '.join(others or ['a smaller model'])}."

"""What a recipe says of itself before it runs: all of it for --plan, two lines before training; and its refusal of what cannot fit."""

from dataclasses import replace
from pathlib import Path

from common import accelerators, chat_rows, footprint, hardware, launch, plan, plan_text, token_counts
from common.log import say_once, warn
from common.refusal import Refusal


def show(job, model_name, settings, own_gpus, files, held_out=0.0, bad_rows="stop", tokenizer=None, cached=None, validation_file=None,
         needs_bf16=True):  # fmt: skip
    """`show_work` of conversations: the rest is for `token_counts.measure`, which is not asked where --tokens says the number.

    validation_file: where the held-out rows have a file of their own.
    """

    def work(job, tokens):
        if tokens:
            return plan.full_rows(tokens, job.max_seq_length, tokens * held_out / (1 - held_out) / 2)
        more = {"bad_rows": bad_rows, "long_documents": job.long_documents}
        counts = token_counts.measure(files, job.max_seq_length, held_out, tokenizer, cached, **more)
        if validation_file and not cached:
            chat_rows.require([validation_file], "VALIDATION_FILE")
            judged = token_counts.measure({validation_file: 1.0}, job.max_seq_length, 0.0, tokenizer, **more)
            counts = replace(counts, validation_rows=judged.rows, validation_tokens=judged.tokens)
        return workload(job, counts)

    return show_work(job, model_name, settings, own_gpus, work, tokenizer, needs_bf16)


def show_work(job, model_name, settings, own_gpus, work_of, tokenizer=None, needs_bf16=True):
    """Print the plan of a job on the GPUs asked for, found, or `own_gpus` ("RTX 3060", "8xH200", "cpu"); returns it as plain values.

    settings: of the `Resolved` ones the switches. work_of(job, tokens): the `Workload`, `tokens` being those of --tokens or None; where
    it refuses, that is said, and the plan made without data.
    """
    count, accelerator, came_from = plan.chosen_gpus(settings.gpus, own_gpus, launch.ranks(settings))
    if needs_bf16:
        require_bf16(accelerator)
    on_hub = model_name.count("/") == 1 and not Path(model_name).is_dir()
    if not job.divides(count):
        raise Refusal(f"TRAIN_BATCH_SIZE = {job.train_batch_size} is no multiple of PER_DEVICE_TRAIN_BATCH_SIZE = "
                      f"{job.per_device_train_batch_size} x {count} GPUs; take another number of them, or change one of the two")
    job, work, missing = replace(job.on(count, accelerator.is_cpu), downloaded=on_hub), None, None
    try:
        work = work_of(job, settings.tokens)
    except Refusal as refusal:
        missing = str(refusal)
    size = sum(file.stat().st_size for file in Path(tokenizer).glob("tokenizer*")) if tokenizer else None
    return plan_text.show(
        plan.make(job, model_name, accelerator, came_from, work, missing, settings.usd_per_gpu_hour, size), settings.json
    )  # fmt: skip


def require(job_of, model_name, settings, needs_bf16=True):
    """The job `job_of(model_name, sharded)` as this start runs it, on GPUs or without any in its memory; None where it cannot be computed.

    Raises `Refusal`, with the smallest change, for one that cannot fit.
    """
    ranks = launch.ranks(settings)
    _, accelerator, _ = plan.chosen_gpus(None, "cpu", ranks)
    if needs_bf16:
        require_bf16(accelerator)
    if hardware.is_mig():
        warn("whether this run fits is not known: the GPU is divided (MIG), and how large the parts are is not known here")
        return None
    try:
        job = job_of(model_name, ranks > 1).on(ranks, accelerator.is_cpu)
    except Refusal as unknown:
        warn(f"whether this run fits is not known: {unknown}")
        return None
    taken = footprint.of(job, accelerator.memory_gib)
    needs, has = f"needs {plan_text.gib(taken.total)} on each GPU", f"{accelerator.name} has {plan_text.gib(taken.capacity)}"
    if not taken.fits:
        changes = footprint.smallest_change(job, accelerator.memory_gib)
        raise Refusal(
            f"this run cannot fit: with these constants it {needs}, and {has}. {plan.fix(job, accelerator, changes)} "
            "--plan shows what takes it; --no-plan starts all the same"
        )
    own = [] if launch.is_distributed() else hardware.gpus()[:ranks]  # later the other ranks would be taken for somebody else's work
    free = min((gpu.free_gib for gpu in own), default=accelerator.memory_gib)  # NaN is never too little
    if free < taken.total / footprint.GIB:
        raise Refusal(
            f"this run {needs}; {has}, but only {plan_text.gib(free * footprint.GIB)} of it are free. End what else runs there "
            "(nvidia-smi lists it), or start all the same with --no-plan"
        )
    host = plan.host_of(job, taken.free)
    if not accelerator.is_cpu and host > hardware.memory_gib() * footprint.GIB:
        warn(f"this run may need {plan_text.gib(host)} of host memory, and this machine has {hardware.memory_gib():.1f} GiB")
    return job


def require_bf16(accelerator):
    """Refuse a GPU that is known to be older than bf16."""
    if not accelerator.bf16:
        raise Refusal(f"{accelerator.name} has no bf16, in which this recipe trains; take an Ampere GPU or newer (RTX 30, A100, L4, H100)")


def announce(job, model_name, data):
    """Say memory and time of what `require` returned, once. data: the `Tokenised` cache."""
    if job is not None:
        announce_work(job, model_name, workload(job, token_counts.measure({}, job.max_seq_length, cached=data)))


def announce_work(job, model_name, work):
    """Say memory and time of what `require` returned, once, for this `Workload`."""
    if job is not None:
        found = accelerators.found()
        say_once(plan_text.summary(plan.make(job, model_name, found[1] if found else accelerators.cpu(), "found here", work)))


def workload(job, counts):
    """The `Workload` of a job on data with these `TokenCounts`: packed, or grouped by length with the padding that is left."""
    attended, computed = token_counts.attended_length(counts), counts.tokens
    if job.packing:
        rows, efficiency = token_counts.packing(counts, job.max_seq_length)
        waste = f"packed into {'' if counts.exact else 'about '}{rows:,} rows that are {efficiency:.1%} full"
    else:
        padding = token_counts.padding_share(counts, job.per_device_train_batch_size, job.gpus, job.seed)
        rows, computed, waste = counts.rows, counts.tokens / (1 - padding), f"{padding:.1%} padding in rows grouped by length"
    return plan.Workload(rows, counts.tokens, computed, attended, counts.validation_tokens, waste, counts.source, counts.rows)

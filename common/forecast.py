"""What a recipe says of itself before it runs: all of it for --plan, two lines before training; and its refusal of what cannot fit."""

import os

from common import footprint, hardware, plan, plan_text, token_counts
from common.log import say_once, warn
from common.refusal import Refusal


def show(job, model_name, switches, own_gpus, files, held_out=0.0, tokenizer=None, cached=None):
    """Print the plan of a job on the GPUs asked for, found, or `own_gpus` ("RTX 3060", "8xH200", "cpu"); returns it as plain values.

    switches: the `Switches` gpus, usd_per_gpu_hour, tokens and json. The rest is for `token_counts.measure`, which is not asked where
    --tokens says the number; what it refuses is said, and the plan made without data.
    """
    count, accelerator, came_from = plan.which_gpus(switches.gpus, own_gpus)
    job, work, missing = job.on(count, accelerator), None, None
    if switches.tokens:
        work = plan.full_rows(switches.tokens, job.max_seq_length)
    else:
        try:
            work = workload(job, token_counts.measure(files, job.max_seq_length, held_out, tokenizer, cached))
        except Refusal as refusal:
            missing = str(refusal)
    return plan_text.show(plan.make(job, model_name, accelerator, came_from, work, missing, switches.usd_per_gpu_hour), switches.json)


def require(job_of, model_name):
    """The job `job_of(model_name)` as it is on the GPUs of this machine, or without any in its memory; None where it cannot be computed.

    Raises `Refusal`, with the smallest change, for one that cannot fit.
    """
    count, accelerator, _ = plan.which_gpus(None, "cpu")
    try:
        job = job_of(model_name).on(max(count, int(os.environ.get("WORLD_SIZE", "1"))), accelerator)
    except Refusal as unknown:
        warn(f"whether this run fits is not known: {unknown}")
        return None
    taken = footprint.of(job, accelerator.memory_gib)
    needs, has = f"needs {plan_text.size(taken.total)} on each GPU", f"{accelerator.name} has {plan_text.size(taken.capacity)}"
    if not taken.fits:
        raise Refusal(
            f"this run cannot fit: with these constants it {needs}, and {has}. {plan.fix(job, accelerator.memory_gib)} "
            "--plan shows what takes it; --no-plan starts all the same"
        )
    free = min((gpu.free_gib for gpu in hardware.gpus()), default=accelerator.memory_gib)  # NaN is never too little
    if free < taken.total / footprint.GIB:
        raise Refusal(
            f"this run {needs}; {has}, but only {plan_text.size(free * footprint.GIB)} of it are free. End what else runs there "
            "(nvidia-smi lists it), or start all the same with --no-plan"
        )
    host = plan.host_of(job)
    if not accelerator.is_cpu and host > hardware.memory_gib() * footprint.GIB:
        warn(f"this run may need {plan_text.size(host)} of host memory, and this machine has {hardware.memory_gib():.0f} GiB")
    return job


def announce(job, model_name, data):
    """Say memory and time of what `require` returned, once. data: the `Tokenised` cache."""
    if job is not None:
        _, accelerator, _ = plan.which_gpus(None, "cpu")
        work = workload(job, token_counts.measure({}, job.max_seq_length, cached=data))
        say_once(plan_text.summary(plan.make(job, model_name, accelerator, "found here", work)))


def workload(job, counts):
    """The `Workload` of a job on data with these `TokenCounts`: packed, or grouped by length with the padding that is left."""
    attended = token_counts.attended_length(counts)
    if job.packing:
        rows, efficiency = token_counts.packing(counts, job.max_seq_length)
        waste = f"packed into {rows:,} rows that are {efficiency:.1%} full"
        return plan.Workload(rows, counts.tokens, counts.tokens, attended, waste, counts.source)
    padding = token_counts.padding_share(counts, job.per_device_train_batch_size, job.gpus, job.seed)
    waste = f"{padding:.1%} padding in rows grouped by length"
    return plan.Workload(counts.rows, counts.tokens, counts.tokens / (1 - padding), attended, waste, counts.source)

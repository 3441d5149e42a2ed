"""What a recipe says of itself before it runs: all of it for --plan, a few lines before training."""

from common import plan, plan_text, token_counts
from common.log import say_once
from common.refusal import Refusal


def show(job, model_name, switches, own_gpus, counts):
    """Print the plan of a job on the GPUs asked for, found, or `own_gpus` ("RTX 3060", "8xH200", "cpu"); returns it as plain values.

    switches: the `Switches` gpus, usd_per_gpu_hour, tokens and json. counts: a function that gives the `TokenCounts`, not called where
    --tokens says their number; what it refuses is said, and the plan made without data.
    """
    count, accelerator, came_from = plan.which_gpus(switches.gpus, own_gpus)
    job, work, missing = job.on(count, accelerator), None, None
    if switches.tokens:
        work = plan.full_rows(switches.tokens, job.max_seq_length)
    else:
        try:
            work = workload(job, counts())
        except Refusal as refusal:
            missing = str(refusal)
    return plan_text.show(plan.make(job, model_name, accelerator, came_from, work, missing, switches.usd_per_gpu_hour), switches.json)


def announce(job, model_name, counts):
    """Say memory, steps and time of a job on the GPUs of this machine, once."""
    count, accelerator, _ = plan.which_gpus(None, "cpu")
    job = job.on(count, accelerator)
    say_once(plan_text.summary(plan.make(job, model_name, accelerator, "found here", workload(job, counts))))


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

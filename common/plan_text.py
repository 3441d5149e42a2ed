"""A plan as a person reads it: a page for --plan, a few lines before training."""

import json
import shutil
import textwrap

from common import hardware
from common.log import say

WIDTH = 56  # characters of the bar
INDENT = " " * 10
MARKS = {  # of the parts of a footprint, in the bar and before their names
    "weights": "W", "gradients": "G", "optimiser states": "O", "quantisation buffer": "Q", "ZeRO buffers": "Z", "activations": "A",
    "logits and loss": "L", "gradients in fp32": "S", "fragmentation": "F", "CUDA context and libraries": "C",
}  # fmt: skip


def show(plan, as_json=False):
    """Print the whole plan, as JSON where asked; returns it as plain values."""
    found = plan.to_dict()
    say(json.dumps(found, indent=2, default=str) if as_json else page(plan))
    return found


def page(plan):
    """The whole plan; the table of other GPUs only where the job is for a GPU."""
    return _wrapped([*_head(plan), *_memory(plan), *_disk(plan), *_run(plan), *([] if plan.accelerator.is_cpu else _table(plan))])


def summary(plan):
    """What stands before a training: memory, and time where it can be told."""
    return _wrapped([_fit(plan), *_time(plan)] if plan.time else [_fit(plan)])


def _wrapped(lines):
    width = max(60, min(shutil.get_terminal_size((120, 24)).columns, 120))
    return "\n".join(textwrap.fill(line, width, subsequent_indent=INDENT) if len(line) > width else line for line in lines)


def size(number_of_bytes):
    return hardware.size(number_of_bytes / 1e9)


def duration(hours):
    """Hours in words: "40 s", "12 min", "5.3 h", "3.1 days"."""
    seconds = hours * 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def _short(hours):
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _head(plan):
    model, trained = plan.job.model, plan.job.trained_parameters
    total = model.parameters() + trained * bool(plan.job.lora_r)
    how = {"qlora": "QLoRA", "lora": "LoRA", "full": "full fine-tuning", "pretraining": "pretraining"}[plan.job.method]
    zero = f", ZeRO-{plan.job.zero_stage}" if plan.job.zero_stage else ""
    return [
        f"model     {plan.model_name}: {total:,} parameters, {trained:,} of them trained ({trained / total:.2%}) by {how}{zero}",
        f"on        {plan.job.gpus} x {plan.accelerator.name}, {plan.accelerator.memory_gib:.1f} GiB each ({plan.came_from})",
    ]


def _fit(plan):
    taken = plan.footprint
    each = "this machine" if plan.accelerator.is_cpu else "each GPU"
    if taken.fits:
        return f"memory    fits: {size(taken.total)} of the {size(taken.capacity)} of {each}, {size(taken.free)} to spare"
    return f"memory    DOES NOT FIT: {size(taken.total)}, and {each} has {size(taken.capacity)}: {size(-taken.free)} too much"


def _memory(plan):
    taken = plan.footprint
    scale = max(taken.total, taken.capacity)
    bar, end = "", 0.0
    for name, amount in taken.parts.items():
        end += amount
        bar += MARKS[name] * (round(end / scale * WIDTH) - len(bar))
    room = round(taken.capacity / scale * WIDTH)
    bar = bar + "·" * (room - len(bar)) if taken.fits else bar[:room] + "|" + bar[room:]
    lines = [_fit(plan), f"          [{bar}]"]
    lines += [f"          {MARKS[name]} {name:<26}{size(amount):>10}" for name, amount in taken.parts.items()]
    for name, amount in taken.not_together.items():
        if amount:
            lines.append(f"            {name:<26}{size(amount):>10}  at another moment")
    return lines + ([f"fix       {plan.fix}"] if plan.fix else [])


def _disk(plan):
    disk = ", ".join(f"{name} {size(amount)}" for name, amount in plan.disk.items())
    return [f"host      {size(plan.host)} of memory", f"disk      {size(sum(plan.disk.values()))}: {disk}"]


def _steps(plan):
    work = plan.workload
    tokens = f"{plan.tokens_per_step:,.0f} tokens a step"
    if plan.steps is None:
        return [f"steps     {tokens}; how many is not known without data", f"          {plan.missing}; or say --tokens 1.4e9"]
    epochs = f"; {plan.epochs:g} epochs of {work.tokens:,} tokens, {work.waste}" if work else ""
    return [f"steps     {plan.steps:,} of {plan.tokens_per_step:,.0f} tokens{epochs}"]


def _run(plan):
    lines = _steps(plan)
    if plan.workload:
        lines.append(f"          tokens from: {plan.workload.source}")
    return lines + _time(plan)


def _time(plan):
    time = plan.time
    if time is None:
        return [f"time      not predicted: how fast {plan.accelerator.name} computes is not known here"]
    seconds = {"computing": time.computing, "sending": time.sending, "updating": time.updating}
    parts = [f"{amount:.2f} s {what}" for what, amount in seconds.items() if amount >= 0.005]
    total = ""
    if time.hours is not None:
        price = f", {plan.dollars:,.2f} dollars" if plan.dollars is not None else ""
        total = f"; {duration(time.hours)} in all, {_short(time.gpu_hours)} GPU-hours{price}"
    return [
        f"time      {time.step:.2f} s a step ({' + '.join(parts)}), {time.tokens_per_second:,.0f} tokens/s{total}",
        f"          {time.flops / 1e12:,.0f} TFLOP a step and GPU at {time.utilisation:.0%} of {plan.accelerator.peak_tflops:g} TFLOP/s "
        f"({time.utilisation_from})",
    ]


def _table(plan):
    known = plan.steps is not None
    head = f"  {'GPUs':<14}{'memory of each':>22}  {'':<8}{'tokens/s':>10}" + (f"{'time':>12}{'GPU-hours':>12}" if known else "")
    lines = ["", "the same constants elsewhere", head]
    for row in plan.elsewhere:
        used = f"{row['memory_gb']:.1f} of {row['capacity_gb']:.1f} GB"
        line = f"  {row['gpus']} x {row['accelerator']:<10}{used:>22}  "
        if row["fits"]:
            total = f"{duration(row['hours']):>12}{_short(row['gpu_hours']):>12}" if known else ""
            line += f"{'fits':<8}{row['tokens_per_second']:>10,.0f}{total}"
        else:
            line += "too much"
        lines.append(line)
    return lines

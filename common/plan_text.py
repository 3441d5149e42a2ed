"""A plan as a person reads it: a page for --plan, two lines before training. At most 78 columns where the terminal has 80."""

import json
import shutil
import textwrap

from common import hardware
from common.hardware import GIB
from common.log import say
from common.plan import SAMPLES, few_steps

WIDTH = 56  # characters of the bar
INDENT = " " * 10
MARKS = {  # of the parts of a footprint, in the bar and before their names
    "weights": "W", "gradients": "G", "optimiser states": "O", "quantisation buffer": "Q", "ZeRO buffers": "Z", "activations": "A",
    "logits and loss": "L", "gradients in fp32": "S", "an evaluation": "E", "fragmentation": "F", "context and libraries": "C",
}  # fmt: skip


def show(plan, as_json=False):
    """Print the whole plan, as JSON where asked; returns it as plain values."""
    found = plan.to_dict()
    say(json.dumps(found, indent=2, default=str) if as_json else page(plan))
    return found


def page(plan):
    """The whole plan; the table of other GPUs only where the job is for a GPU."""
    lines = [*_head(plan), *_memory(plan), *_needs(plan), *_steps(plan), *_time(plan), *_samples(plan)]
    return _wrapped(lines if plan.accelerator.is_cpu else [*lines, *_table(plan)])


def summary(plan):
    """What stands before a training: memory, and time where it can be told."""
    return _wrapped([_fit(plan), *_time(plan)] if plan.course.time else [_fit(plan)])


def measured_samples(tokens_per_second, tokens_per_row, epochs):
    """What 1,000 and more conversations take at the speed of a training that ran, as one sentence, without evaluations.

    tokens_per_second: of all GPUs together, without padding, as metrics.jsonl has them; tokens_per_row: of a conversation on average.
    """
    hours = {rows: rows * tokens_per_row * epochs / tokens_per_second / 3600 for rows in SAMPLES}
    return (f"at the measured {tokens_per_second:,.0f} tokens/s, {_epochs(epochs)} of {tokens_per_row:,.0f} tokens a conversation: "
            f"{_each_take(hours)}")  # fmt: skip


def gib(number_of_bytes):
    """Memory in the unit in which GPUs are sold and nvidia-smi counts: "2.2 GiB", "97 MiB"."""
    return f"{number_of_bytes / GIB:,.1f} GiB" if number_of_bytes >= 0.95 * GIB else f"{number_of_bytes / 2**20:.0f} MiB"


def disk(number_of_bytes):
    return hardware.size(number_of_bytes / 1e9)


def duration(hours):
    """Hours in words: "0.4 s", "40 s", "12 min", "5.3 h", "3.1 days"."""
    seconds = hours * 3600
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def _wrapped(lines):
    width = max(60, min(shutil.get_terminal_size((120, 24)).columns, 120))
    return "\n".join(textwrap.fill(line, width, subsequent_indent=INDENT) if len(line) > width else line for line in lines)


def _short(number):
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def _head(plan):
    model, trained = plan.job.model, plan.job.trained_parameters
    total = model.parameters() + trained * bool(plan.job.lora_r)
    how = {"qlora": "QLoRA", "lora": "LoRA", "full": "full fine-tuning", "pretraining": "pretraining"}[plan.job.method]
    zero = f", ZeRO-{plan.job.zero_stage}" if plan.job.zero_stage else ""
    place = "this machine's CPU" if plan.accelerator.is_cpu else f"{plan.job.gpus} x {plan.accelerator.name} ({plan.came_from})"
    lines = [
        f"model     {plan.model_name}: {total:,} parameters, {trained:,} of them trained ({trained / total:.2%}) by {how}{zero}",
        f"on        {place}",
    ]
    if plan.job.max_seq_length > model.max_position_embeddings:
        lines.append(f"note      rows of {plan.job.max_seq_length:,} tokens are longer than the {model.max_position_embeddings:,} "
                     "that the model was made for")  # fmt: skip
    return lines


def _fit(plan):
    taken, each = plan.footprint, "this machine" if plan.accelerator.is_cpu else "each GPU"
    if not taken.fits:
        return f"memory    DOES NOT FIT: {gib(taken.total)}, and {each} has {gib(taken.capacity)}: {gib(-taken.free)} too much"
    only_just = "" if taken.fits_well else "; only just, this arithmetic errs by as much"
    return f"memory    fits: {gib(taken.total)} of the {gib(taken.capacity)} of {each}, {gib(taken.free)} to spare{only_just}"


def _bar(taken):
    """Each part with its share of the width by largest remainder, so that a larger part never has fewer letters than a smaller one."""
    scale = max(taken.total, taken.capacity) / WIDTH
    letters = {name: int(amount / scale) for name, amount in taken.parts.items()}
    by_remainder = sorted(taken.parts, key=lambda name: letters[name] - taken.parts[name] / scale)
    for name in by_remainder[: round(taken.total / scale) - sum(letters.values())]:
        letters[name] += 1
    bar = "".join(MARKS[name] * count for name, count in letters.items())
    room = round(taken.capacity / scale)
    return bar + "." * (room - len(bar)) if taken.fits else bar[:room] + "|" + bar[room:]


def _memory(plan):
    taken = plan.footprint
    lines = [_fit(plan), f"{INDENT}[{_bar(taken)}]"]
    lines += [f"{INDENT}{MARKS[name]} {name:<22}{gib(amount):>10}" for name, amount in taken.parts.items()]
    lines += [f"{INDENT}  {name:<22}{gib(amount):>10}  at another moment" for name, amount in taken.not_together.items() if amount >= 2**19]
    if plan.fix:
        lines.append(f"fix       {plan.fix}")
    if plan.changes:
        flags = {name: value for change in plan.changes for name, value in change.items()}
        lines.append(INDENT + " ".join(f"--{name.lower().replace('_', '-')} {str(value).lower()}" for name, value in flags.items()))
    return lines


def _needs(plan):
    has, free = "", ""
    if plan.came_from in ("found here", "this machine"):
        has, free = f" (this machine has {hardware.memory_gib():.1f} GiB)", f" ({hardware.size(hardware.free_disk_gb('.'))} are free here)"
    parts = ", ".join(f"{name} {disk(amount)}" for name, amount in plan.disk.items())
    return [f"host      {gib(plan.host)} of memory{has}", f"disk      {disk(sum(plan.disk.values()))}{free}: {parts}"]


def _steps(plan):
    work, course = plan.workload, plan.course
    if course.steps is None:
        unknown = f"steps     {course.tokens_per_step:,.0f} tokens a step; how many is not known"
        return [unknown, f"{INDENT}{plan.missing}; or say --tokens 1.4e9"]
    lines = [f"steps     {course.steps:,} of {course.tokens_per_step:,.0f} tokens"]
    if work:
        lines[0] += f"; {course.epochs:g} epochs of {work.tokens:,.0f} tokens, {work.waste}"
        lines.append(f"{INDENT}tokens from: {work.source}")
    known = work and work.conversations and plan.job.max_steps <= 0  # else steps are a guess
    if known and (few := few_steps(course.steps, plan.job.packing, plan.job.rows_per_step)):
        lines.append(f"warning   {few}")
    return lines


def _time(plan):
    time = plan.course.time
    if time is None:
        return [f"time      not predicted: how fast {plan.accelerator.name} computes is not known here"]
    seconds = {"computing": time.computing, "sending": time.sending, "updating": time.updating}
    parts = [f"{amount:.2g} s {what}" for what, amount in seconds.items() if amount >= 0.005 * time.step]
    lines = [f"time      {time.step:.2g} s a step" if time.step < 10 else f"time      {time.step:,.0f} s a step"]
    lines[0] += (f" ({' + '.join(parts)})" if len(parts) > 1 else "") + f", {time.tokens_per_second:,.0f} tokens/s"
    if not plan.footprint.fits:
        lines[0] += ", if it fitted"
    if time.hours is not None:
        share = f", {duration(time.evaluating / 3600)} of them evaluating" if time.evaluating >= 0.01 * time.hours * 3600 else ""
        lines.append(f"{INDENT}{duration(time.hours)} in all{share}: {_short(time.gpu_hours)} GPU-hours")
    if plan.dollars_per_million_tokens is not None:
        price = f"{_short(plan.dollars_per_million_tokens)} dollars per million tokens"
        lines.append(f"cost      {plan.dollars:,.2f} dollars; {price}" if plan.dollars is not None else f"cost      {price}")
    lines.append(
        f"{INDENT}{_short(time.flops / 1e12)} TFLOP a step and GPU at {time.utilisation:.0%} of {plan.accelerator.peak_tflops:g} TFLOP/s: "
        f"the share that {time.utilisation_from} reached"
    )
    return lines


def _samples(plan):
    if not plan.samples:
        return []
    known, prices = plan.workload and plan.workload.conversations, {s["rows"]: s["usd"] for s in plan.samples if s["usd"] is not None}
    tokens = f"{'of' if known else 'taken to be of'} {plan.samples[0]['tokens']:,} tokens each"
    taken = _each_take({s["rows"]: s["hours"] for s in plan.samples}, prices)
    return [f"samples   {tokens}, {_epochs(plan.job.num_train_epochs)}, without evaluations: {taken}"]


def _epochs(epochs):
    return f"{epochs:g} epoch{'s' if epochs != 1 else ''}"


def _each_take(hours, prices=None):
    """{rows: hours} as "1,000 take 12 min, 10,000 2.0 h", with dollars where there are prices."""
    words = [f"{rows:,} {duration(taken)}" + (f" ({prices[rows]:,.2f} dollars)" if prices else "") for rows, taken in hours.items()]
    return ", ".join([words[0].replace(" ", " take ", 1), *words[1:]])


def _table(plan):
    known = plan.course.steps is not None
    head = f"  {'GPUs':<14}{'memory of each':>20}  {'':<4}{'tokens/s':>9}" + (f"{'steps':>9}{'time':>10}{'GPU-h':>8}" if known else "")
    lines = ["", "the same constants elsewhere, with as many rows on each GPU", head]
    for row in plan.elsewhere:
        used = f"{row['memory_bytes'] / GIB:.1f} of {row['capacity_bytes'] / GIB:.1f} GiB"
        line = f"  {row['gpus']} x {row['accelerator']:<10}{used:>20}  "
        if row["fits"]:
            total = f"{row['steps']:>9,}{duration(row['hours']):>10}{_short(row['gpu_hours']):>8}" if known else ""
            line += f"{'fits':<4}{row['tokens_per_second']:>9,.0f}{total}"
        else:
            line += "too much"
        lines.append(line)
    return lines


"""One self-contained report.html per run, written from the files of its run directory alone.

    python -m common.report [outputs/llama32_qlora]      default: the newest run

It can be written at any time: while training runs, after it failed, before and after evaluation. What is missing is left out or said.
"""

import os
import sys
from datetime import datetime
from functools import cache
from pathlib import Path

from common import judged_view, judgement, measures, pretrained_view, run_facts, side_by_side
from common.charts import Level, Line, chart
from common.refusal import Refusal, guard
from common.run_directory import RunDirectory, newest, step_of
from common.run_facts import as_dict, as_list, figure, is_number
from common.safe_text import setting, shorten, visible, without_machine_paths, without_secrets, without_tokens

MOST_OF_A_SPAN = 3_000  # characters shown of a stretch of the masked example
MOST_SPANS = 60
MOST_OF_A_NOTE = 1_200
STATUSES = {"finished": "finished", "failed": "failed", "stopped": "stopped before its end", "running": "running when this was written"}


def write(run):
    """Write `report.html` of a `RunDirectory` and return its path. A reader sees the old report or the new one, never half of one."""
    page = render(run_facts.read(run))
    temporary = run.report.with_name(f".{run.report.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, run.report)
    return run.report


def render(facts):
    """The page as text."""
    return _template().render(view(facts))


def view(facts):
    """Everything the template shows, as plain values."""
    run, history = facts.run, facts.history
    best = facts.summary.get("best") or run.get("best_checkpoint")
    best = best if isinstance(best, str) else None
    pretraining = measures.is_pretraining(run)
    continuations, samples = pretrained_view.texts(facts) if pretraining else ([], [])
    return {
        "name": facts.name,
        "head": head(facts),
        "status": STATUSES.get(str(run.get("status")), "unknown"),
        "unfinished": run.get("status") != "finished",
        "tiny": run.get("tiny") is True,
        "pretraining": pretraining,
        "training_sentences": training_sentences(facts) + (pretrained_view.progress(facts) if pretraining else []),
        "verdict": (pretrained_view if pretraining else judgement).verdict(facts),
        "tuned": facts.tuned["name"] if facts.tuned else None,
        "shortcomings": [] if pretraining else judgement.shortcomings(facts),
        "curves": curves(facts, best),
        "table": judged_view.table(facts, best),
        "plots": judged_view.plots(facts, best),
        "examples": None if pretraining else side_by_side.examples(facts),
        "continuations": continuations,
        "samples": samples,
        "data": pretrained_view.data_view(facts.data) if pretraining else data_view(facts.data, run),
        "constants": [(k, without_machine_paths(shorten(setting(k, v), MOST_OF_A_NOTE))) for k, v in facts.constants.items()],
        "versions": [(k, v) for k, v in as_dict(run.get("versions")).items()],
        "notes": [told(note) for note in as_list(run.get("notes"))],
        "warnings": [told(w) for w in [*as_list(run.get("warnings")), *damage(facts, history)]],
        "command": told(run.get("command") or ""),
    }


def told(text):
    """What a report says of a run: nothing endless, no secret, no path of the machine, for it is sent around."""
    return without_machine_paths(without_secrets(shorten(text, MOST_OF_A_NOTE)))


def head(facts):
    """The facts under the title: [(name, value), …], only those that are known."""
    run = facts.run
    base = run.get("model_name") or facts.constants.get("MODEL_NAME")
    if str(base).startswith(("/", "\\")):
        base = Path(base).name  # a report is sent around; the machine's paths stay on it
    if base and run.get("model_revision"):
        base = f"{base} at {run['model_revision']}"
    model = ("Base model", base)
    if measures.is_pretraining(run):
        model = ("Model", f"{pretrained_view.model_words(facts)}, trained from scratch")
    rows = [("Recipe", run.get("recipe")), model, ("Status", STATUSES.get(str(run.get("status")), "unknown"))]
    rows += [("Hardware", run.get("hardware")), ("Duration", duration(run.get("seconds")))]
    rows += [("Started", date(run.get("started"))), ("Finished", date(run.get("finished")))]
    return [(name, shorten(value, 300)) for name, value in rows if value]


def duration(seconds):
    if not is_number(seconds) or seconds < 0:
        return None
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def date(text):
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except (AttributeError, TypeError, ValueError):
        return text
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".strip()


def training_sentences(facts):
    """How far training came and what became of its loss, in words."""
    run, history = facts.run, facts.history
    last, planned = history.last_step, run.get("steps")
    sentences = []
    if run.get("status") != "finished":
        state = {"failed": "This run failed", "stopped": "This run was stopped", "running": "This run was still going"}
        words = state.get(str(run.get("status")), "It is not known whether this run came to its end")
        if last is None:
            reached = "; no step of its training has been logged"
        else:
            reached = f"; the last logged step is {last:,}" + (f" of {planned:,}" if is_number(planned) else "")
        sentences.append(f"{words}{reached}. This report shows what it left.")
    losses, held = history.series("loss"), history.series("eval_loss")
    if len(losses) > 1:
        tenth = max(1, len(losses) // 10)
        first, end = (sum(y for _, y in part) / tenth for part in (losses[:tenth], losses[-tenth:]))
        sentence = f"Over {losses[-1][0]:,} steps the training loss went from {figure(first)} to {figure(end)}"
        if len(held) > 1:
            sentence += f" and the held-out loss from {figure(held[0][1])} to {figure(held[-1][1])}"
            perplexity = [y for _, y in history.series("eval_perplexity")]
            if len(perplexity) > 1:
                sentence += f" (perplexity {figure(perplexity[0])} to {figure(perplexity[-1])})"
            lowest = min(held, key=lambda point: point[1])
            if figure(lowest[1]) != figure(held[-1][1]):
                sentence += f", lowest at step {lowest[0]:,} ({figure(lowest[1])})"
        sentences.append(sentence + ".")
    if history.resumes:
        sentences.append(f"The run was resumed {history.resumes} time{'s' if history.resumes > 1 else ''}; undone steps are not shown.")
    return sentences


def damage(facts, history):
    """What could not be read or is not a number, as warnings."""
    sentences = list(facts.unreadable)
    if history.unreadable_lines:
        sentences.append(f"{history.unreadable_lines} line(s) of logs/metrics.jsonl could not be read and are left out.")
    for key, words in (("loss", "training loss"), ("eval_loss", "held-out loss")):
        steps = history.not_finite(key)
        if steps:
            sentences.append(f"The {words} was not a finite number at {len(steps)} logged step(s), first at step {steps[0]:,}.")
    return sentences


def curves(facts, best):
    """[(title, wide chart, narrow chart)] of the training; only those with something to draw."""
    series = facts.history.series
    mark = (step_of(best), "best") if best and step_of(best) is not None else None
    clip = facts.constants.get("MAX_GRAD_NORM")
    norms = series("grad_norm")
    clipped = [Level("clipped", clip)] if is_number(clip) and clip > 0 and norms and max(y for _, y in norms) > clip / 3 else []
    loss = [Line("training", series("loss"), "train", smooth=True), Line("held out", series("eval_loss"), "held", dots=True)]
    of = "token" if measures.is_pretraining(facts.run) else "label token"
    drawn = [("Loss", both_widths(loss, y_label=f"nats per {of}", mark=mark, widths=(860, 400)))]
    for title, key, unit, options in (
        ("Bits per byte on held-out tokens", "eval_bits_per_byte", "of UTF-8 text", {"kind": "held", "mark": mark}),
        ("Learning rate", "learning_rate", "as scheduled, no unit", {"zero": True}),
        ("Gradient norm", "grad_norm", "before clipping", {"zero": True, "levels": clipped}),
        ("Speed", "tokens_per_second", "tokens per second", {"zero": True}),
        ("Model FLOPs utilisation", "mfu", "% of the GPUs' peak", {"zero": True, "percent": True}),
        ("GPU busy", "gpu_utilisation", "% of the time", {"zero": True, "percent": True}),
        ("Files trained to their end", "files", "files", {"zero": True}),
        ("Memory", "memory_gb", "GB", {"zero": True}),
    ):
        kind = options.pop("kind", "train")
        line = Line("", series(key), kind, smooth=key in ("grad_norm", "tokens_per_second", "mfu", "gpu_utilisation"), dots=kind == "held")
        drawn.append((title, both_widths([line], y_label=unit, widths=(400,), **options)))
    return [(title, charts) for title, charts in drawn if charts[0]]


def both_widths(lines, *, widths, **options):
    return [chart(lines, width=width, height=260 if width > 600 else 236, **options) for width in widths]


def data_view(data, run):
    """The statistics of the data, how much of it was padding in training, and the masked example."""
    count = lambda value: f"{value:,}" if is_number(value) else "–"  # noqa: E731
    files = []
    for name, found in as_dict(data.get("files")).items():
        found = as_dict(found)
        formats = ", ".join(f"{kind} {count(n)}" for kind, n in as_dict(found.get("format_counts")).items())
        weight = found.get("weight")
        cells = [count(found.get("rows")), f"{weight:g}" if is_number(weight) else "–", count(found.get("rows_after_weighting")), formats]
        files.append((name, cells))
    bad, too_long = ([as_dict(row) for row in as_list(data.get(name))[:10]] for name in ("bad_rows", "too_long"))
    example = as_dict(data.get("example"))
    spans = [(s.get("label") is True, str(s.get("text") or "")) for s in as_list(example.get("spans")) if isinstance(s, dict)]
    spans = side_by_side.joined(spans)
    return {
        "files": files,
        "splits": splits_view({name: as_dict(found) for name, found in as_dict(data.get("splits")).items()}, count),
        "rows_read": count(data.get("rows_read")) if "rows_read" in data else None,
        "bad_row_count": data.get("bad_row_count") if is_number(data.get("bad_row_count")) else len(bad),
        "too_long": count(data["too_long_count"]) if is_number(data.get("too_long_count")) and data["too_long_count"] else None,
        "left_out": [(title, [(row.get("file", ""), row.get("line", ""), shorten(row.get("reason", ""), 300)) for row in rows])
                     for title, rows in (("bad rows", bad), ("rows that are too long", too_long)) if rows],
        "padding": f"{100 * run['padding_share']:.1f} %" if is_number(run.get("padding_share")) else None,
        "split": run_facts.split_sentence(data),
        "example_id": shorten(example.get("id") or "", 120),
        "spans": [(label, shorten(text, MOST_OF_A_SPAN)) for label, text in spans[:MOST_SPANS]],
        "spans_left_out": max(0, len(spans) - MOST_SPANS),
    }  # fmt: skip


def splits_view(splits, count):
    """The table of the splits, {"titles", "rows": [(name, [(figure, [further words])])]}; {} without any. count(value): a number in words.

    What shortening took and how many rows were too long have columns only where there are any.
    """
    taken = {name: as_dict(found.get("taken")) for name, found in splits.items()}
    columns = {"Rows": "rows", "Groups": "groups", "Tokens": "tokens", "Label tokens": "label_tokens"}
    columns |= {"Length p50": "50", "p90": "90", "p99": "99", "longest": "100", "Duplicates": "duplicates", "Shortened": "shortened"}
    columns |= {"Tokens taken": "taken"} if any(taken.values()) else {}
    too_long = any(is_number(found.get("too_long")) and found["too_long"] for found in splits.values())
    columns |= {"Dropped": "dropped"} | ({"Too long": "too_long"} if too_long else {})

    def cell(name, found, key):
        if key == "taken":
            share, *ends = (taken[name].get(part) for part in ("share", "50", "100"))
            if not is_number(share):
                return ("0" if found.get("taken", 0) is None else "–", [])
            return (count(taken[name].get("tokens")), [f"{100 * share:.1f} %", f"median {count(ends[0])}", f"most {count(ends[1])}"])
        return (count(as_dict(found.get("length_percentiles")).get(key) if key.isdigit() else found.get(key)), [])

    rows = [(name, [cell(name, found, key) for key in columns.values()]) for name, found in splits.items()]
    return {"titles": list(columns), "rows": rows} if rows else {}


@cache
def _template():
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value):
        return value if isinstance(value, Markup) else without_tokens(visible(value))

    place, blocks = FileSystemLoader(Path(__file__).parent), {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=place, autoescape=True, finalize=shown, undefined=StrictUndefined, **blocks)
    return environment.get_template("report.html.j2")


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) > 1 or any(a.startswith("-") for a in arguments):
        raise Refusal(f"unknown arguments {' '.join(arguments)}; usage: python -m common.report [RUN_DIR] (default: the newest run)")
    print(write(RunDirectory(Path(arguments[0])) if arguments else newest()))


if __name__ == "__main__":
    guard(main)

"""The judged models of a run as a report shows them: a table, and every figure over the steps of training."""

from common import measures, run_facts
from common.charts import Level, Line, chart
from common.run_directory import step_of
from common.run_facts import as_dict, figure, interval, is_number
from common.safe_text import shorten

MOST_OF_A_NOTE = 1_200
# Figures, or what they are about; perplexity is loss again.
PLOTTED = ("loss", "exact", "fact", "rougeL", "rouge1", "rouge2", "numbers", "document", "validation_loss", "bits_per_byte")
ARROWS = {"lower": "↓", "higher": "↑"}


def shown(facts):
    """{key: Metric} of what any of the judged models has."""
    metrics = measures.shown(facts.run, [as_dict(judged.get("metrics")) for judged in facts.judged.values()])
    return {key: metric for key, metric in metrics.items() if any(interval(judged, key) for judged in facts.judged.values())}


def table(facts, best):
    """The judged models, one row each, with those that could not be judged."""
    metrics, pretraining = shown(facts), measures.is_pretraining(facts.run)
    rows, speeds = [], [("Tokens/s", "tokens_per_second", 0), ("Seconds per answer", "seconds_per_answer", 2)][: 1 if pretraining else 2]
    for name, judged in facts.judged.items():
        speed = as_dict(judged.get("speed"))
        differ = run_facts.differing_settings(facts.tuned, judged) if facts.tuned else ""
        cells = [cell(interval(judged, key), metric.percent, metric.digits if pretraining else 2) for key, metric in metrics.items()]
        rows.append({"name": name, "step": judged.get("step"), "best": name == best, "cells": cells, "differ": differ})
        found = [(speed.get(key), digits) for _, key, digits in speeds]
        rows[-1]["speed"] = [figure(value, digits) if digits or not is_number(value) else f"{value:,.0f}" for value, digits in found]
    failed = [(name, shorten(why, MOST_OF_A_NOTE)) for name, why in as_dict(facts.summary.get("failed")).items()]
    names = [(heading(metric), ARROWS.get(metric.better, "")) for metric in metrics.values()]
    return {"metrics": names, "rows": rows, "failed": failed, "best": best, "best_by": facts.summary.get("best_by"), "n": facts.tuned,
            "speeds": [name for name, _, _ in speeds], "about": {metric.about for metric in metrics.values()},
            "figures": list(metrics), "usual": usual(facts)}  # fmt: skip


def heading(metric):
    """A metric's name as the report shows it; shares are shown in percent."""
    return metric.name + (", %" if metric.percent else "")


def cell(found, percent=False, digits=2):
    """A mean and its interval (low, high) as text, of `run_facts.interval`."""
    if not found:
        return {"mean": "–", "interval": ""}
    mean, low, high = found
    digits = 3 if low is not None and high - low < 0.02 and mean < 1 else digits
    mean, low, high = (figure(v, digits, percent) for v in found)
    return {"mean": mean, "interval": "" if found[1] is None else f"{low}–{high}"}


def usual(facts):
    """The copy rate of the reference answers, in percent; None where it was not measured."""
    rate = next((as_dict(j["of_references"]).get("copy_rate") for j in facts.judged.values() if as_dict(j.get("of_references"))), None)
    return figure(rate, percent=True) if is_number(rate) else None


def plots(facts, best):
    """[(title, [chart])] of every metric over steps, the base model dashed."""
    drawn = []
    last = facts.history.last_step or facts.run.get("steps")
    mark = (step_of(best), "best") if best and step_of(best) is not None else None
    metrics = shown(facts)
    order = [key for first in PLOTTED for key in metrics if key == first or first == metrics[key].about]
    for key, metric in ((key, metrics[key]) for key in order):
        checkpoints = Line("saved" if measures.is_pretraining(facts.run) else "tuned", [], "held", dots=True)
        final = Line("final", [], "final", dots=True)
        for name, judged in facts.judged.items():
            found = interval(judged, key)
            step = step_of(name) if step_of(name) is not None else judged.get("step") or last
            if not found or not is_number(step) or name in ("base", "merged_model"):
                continue
            line = final if name == "final_model" else checkpoints
            line.points.append((step, found[0]))
            if found[1] is not None:
                line.band.append((step, found[1], found[2]))
        base = interval(facts.base, key)
        levels = [Level("base", *base)] if base else []
        if checkpoints.points or final.points:
            options = {"percent": metric.percent, "zero": key not in ("loss", "bits_per_byte")}
            picture = chart([checkpoints, final], y_label=metric.unit, levels=levels, mark=mark, **options)
            drawn.append((heading(metric) + (f" ({metric.better} is better)" if metric.better else ""), [picture]))
    return drawn

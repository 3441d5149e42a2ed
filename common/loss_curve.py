"""The losses of a training drawn with characters, for the terminal and training.log."""

import math
import shutil
import sys

import plotext

from common.charts import moving_average, thinned, tick_texts, ticks, y_range

LINES = 14  # two of them are the axis below
NARROWEST, WIDEST = 40, 100  # columns
BOXES = str.maketrans("─│┌┐└┘├┤┬┴┼", "-|+++++++++")


def drawn(history):
    """The training and held-out losses of a Trainer's `log_history` as text; empty where neither has two steps with finite numbers.

    A curve with more points than the text has columns for is its moving average.
    """
    series = {"training": _points(history, "loss"), "held out": _points(history, "eval_loss")}
    if max(map(len, series.values())) < 2:
        return ""
    width = min(max(shutil.get_terminal_size((80, 24)).columns, NARROWEST), WIDEST)
    braille = _can_print("⣿")
    trained = thinned(moving_average(series["training"])) if len(series["training"]) > 2 * width else series["training"]
    steps, losses = zip(*trained, *series["held out"], strict=True)
    last = max(*steps, 1)
    low, high, y_ticks = y_range(losses, zero=False)
    x_ticks = [step for step in ticks(0, last, width // 15) if step % 1 == 0]
    plotext.clear_figure()  # it is one for the whole process
    plotext.limit_size(False, False)
    plotext.plot_size(width, LINES)
    plotext.theme("clear")
    if trained:
        plotext.plot(*zip(*trained, strict=True), marker="braille" if braille else "*")
    if series["held out"]:
        plotext.scatter(*zip(*series["held out"], strict=True), marker="o")
    plotext.xlim(0, last)
    plotext.ylim(low, high)
    plotext.xticks(x_ticks, tick_texts(x_ticks))
    plotext.yticks(y_ticks, tick_texts(y_ticks))
    plotext.xlabel("optimiser step")
    text = plotext.uncolorize(plotext.build())
    plotext.clear_figure()
    names = [f"{'⠒⠒' if braille else '**'} training{', moving average' if trained is not series['training'] else ''}"] if trained else []
    names += ["oo held out"] if series["held out"] else []
    text = "\n".join(line.rstrip() for line in ("   ".join(["nats per label token:", *names]), *text.splitlines()))
    return text if braille else text.translate(BOXES)


def _points(history, key):
    """[(step, loss)] of what is finite."""
    return [(entry["step"], entry[key]) for entry in history if math.isfinite(entry.get(key, math.nan))]


def _can_print(text):
    """Whether the terminal's encoding has these characters; where it is not known, it is taken to have."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True

"""curves.png: every metric over the steps of a run, with its intervals, beside the base model."""

from table import best

from common import measures
from common.run_directory import step_of

TUNED, BASE, BEST = "#1f5f8b", "#8a8a8a", "#c8553d"


def draw(results, name, path, last_step=None):
    """Write `path`. The final model stands at `last_step` where it is no checkpoint's twin."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    base = next((r for r in results if r["name"] == "base"), None)
    points = [(step_of(r["name"]), r) for r in results if step_of(r["name"]) is not None]
    final = next((r for r in results if r["name"] == "final_model"), None)
    if final and (not points or (last_step or 0) > points[-1][0]):
        points.append((last_step or 1, final))
    if not points and not base:
        return False
    chosen = best(results)
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6"}
    with pyplot.rc_context(style):
        shown = measures.judged(results)
        panels = len(shown) + 1  # and one for the legend
        rows = 1 if panels <= 4 else 2 if panels <= 10 else -(-panels // 4)
        columns = max(4, -(-panels // rows))
        figure, axes = pyplot.subplots(rows, columns, figsize=(3.75 * columns, 3.5 * rows + 0.3 * (rows == 1)), layout="constrained")
        for panel, (key, metric) in zip(axes.flat, shown.items(), strict=False):
            _panel(panel, key, points, base, chosen, metric)
            better = ", lower is better" if metric.better == "lower" else ""
            panel.set_title(metric.name + better, loc="left", fontsize=11)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            panel.set_xlabel("step")
        for panel in axes.flat[len(shown) : -1]:
            panel.axis("off")
        _legend(axes.flat[-1], results, chosen)
        figure.suptitle(f"{name}: held-out figures over training", x=0.012, ha="left", fontsize=14)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
    return True


def _panel(panel, key, points, base, chosen, metric):
    before = base["metrics"].get(key) if base else None
    if before:
        panel.axhspan(before["low"], before["high"], color=BASE, alpha=0.15, lw=0)
        panel.axhline(before["mean"], color=BASE, ls="--", lw=1.5)
    found = [(step, r, r["metrics"][key]) for step, r in points if r["metrics"].get(key)]
    if before:
        found.insert(0, (0, base, before))  # training starts from it
    if not found:
        panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color=BASE)
        return
    steps = [step for step, _, _ in found]
    means, lows, highs = ([f[side] for _, _, f in found] for side in ("mean", "low", "high"))
    panel.fill_between(steps, lows, highs, color=TUNED, alpha=0.18, lw=0)
    reach = [[m - low for m, low in zip(means, lows, strict=True)], [high - m for m, high in zip(means, highs, strict=True)]]
    panel.errorbar(steps, means, reach, color=TUNED, marker="o", ms=4, lw=1.8, elinewidth=0.8, capsize=2)
    panel.set_xlim(-0.03 * max(steps[-1], 1), 1.08 * max(steps[-1], 1))
    middle, span = (min(lows) + max(highs)) / 2, max(max(highs) - min(lows), 0.02)  # equal figures are no cliff
    panel.set_ylim(middle - 0.56 * span, middle + 0.62 * span)
    if metric.about == "fact":  # places compare
        panel.set_ylim(-0.03, 1.12)
    if key == "perplexity" and max(highs) > 20 * min(means):
        panel.set_yscale("log")
        panel.set_ylim(0.9 * min(lows), 1.15 * max(highs))
    for step, r, figures in found:
        if r["name"] == chosen:
            panel.plot([step], [figures["mean"]], marker="o", ms=9, mfc="none", mec=BEST, mew=2)
            behind = {"fc": "white", "ec": "none", "alpha": 0.75, "pad": 1}
            place = {"xytext": (0, 10), "textcoords": "offset points", "ha": "center"}
            text = f"{figures['mean']:.{metric.digits}f}"
            panel.annotate(text, (step, figures["mean"]), color=BEST, fontweight="bold", bbox=behind, **place)


def _legend(panel, results, chosen):
    from matplotlib.lines import Line2D

    panel.axis("off")
    handles = [
        Line2D([], [], color=TUNED, marker="o", ms=4, lw=1.8, label="checkpoints, with 95 % intervals"),
    ]
    if not measures.is_pretraining(results[0]):
        handles.append(Line2D([], [], color=BASE, ls="--", label="base model (step 0), with its interval"))
    if chosen:
        label = f"best: {chosen}\n(lowest {'held-out' if measures.is_pretraining(results[0]) else 'validation'} loss)"
        handles.append(Line2D([], [], ls="", marker="o", ms=9, mfc="none", mec=BEST, mew=2, label=label))
    panel.legend(handles=handles, loc="upper left", frameon=False, fontsize=11, labelspacing=1)
    rows, groups, tokens = results[0]["rows"], results[0]["groups"], results[0].get("tokens")
    counts = f"{rows} test rows of {groups} groups;\nintervals resample the groups"
    if tokens:
        counts = f"{tokens:,} held-out tokens in {rows} rows of {groups} groups;\nintervals resample {results[0]['resampled']}"
    panel.text(0.02, 0.28, counts, transform=panel.transAxes, color="#555555")

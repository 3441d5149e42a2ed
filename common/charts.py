"""Line charts as inline SVG: few ticks, labels at the lines, colours left to the page's style sheet so that dark and print follow it."""

import math
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from common.safe_text import visible

CHARACTER = 6.3  # width of one at font size 11, a little generous
MOST_POINTS = 600


@dataclass
class Line:
    """One line. `kind` is its CSS class and so its colour and dash; `band` holds (x, low, high)."""

    label: str
    points: list
    kind: str = "train"
    smooth: bool = False  # draw the values thin and their moving average thick
    dots: bool = False
    band: list = field(default_factory=list)


@dataclass
class Level:
    """A dashed horizontal line at a value, such as the base model's."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


def chart(lines, *, y_label, x_label="optimiser step", levels=(), mark=None, zero=False, percent=False, width=400, height=236):
    """An SVG of `lines` and `levels`; `mark` = (x, label) draws a thin vertical line; empty when there is nothing to draw."""
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    scale = 100 if percent else 1
    xs = [x for line in lines for x, _ in line.points]
    ys = [y * scale for line in lines for _, y in line.points]
    ys += [y * scale for line in lines for _, low, high in line.band for y in (low, high)]
    ys += [y * scale for level in levels for y in (level.value, level.low, level.high) if y is not None]
    x_low, x_high = 0, max(max(xs), 1)
    x_ticks = ticks(x_low, x_high, 5 if width < 600 else 8)
    y_low, y_high, y_ticks = y_range(ys, zero)
    y_texts = tick_texts(y_ticks)
    left = 10 + CHARACTER * max(map(len, y_texts))
    right = 12 + CHARACTER * max(len(visible(named.label)) for named in (*lines, *levels))
    top, bottom = 26, 38

    def at(x, y):
        return (
            left + (width - left - right) * (x - x_low) / (x_high - x_low),
            top + (height - top - bottom) * (1 - (y * scale - y_low) / (y_high - y_low)),
        )

    out = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(visible(described(lines, y_label)))}">']
    out.append(f'<text class="axis-label" x="0" y="12">{escape(y_label)}</text>')
    for value, text in zip(y_ticks, y_texts, strict=True):
        y = at(0, value / scale)[1]
        out.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{width - right:.1f}"/>')
        out.append(f'<text class="tick" text-anchor="end" x="{left - 6:.1f}" y="{y + 3.8:.1f}">{text}</text>')
    for value, text in zip(x_ticks, tick_texts(x_ticks), strict=True):
        x = at(value, 0)[0]
        out.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{height - bottom + 16:.1f}">{text}</text>')
    middle = (left + width - right) / 2
    out.append(f'<text class="axis-label" text-anchor="middle" x="{middle:.1f}" y="{height - 4}">{escape(x_label)}</text>')
    if mark and x_low <= mark[0] <= x_high:
        x = at(mark[0], 0)[0]
        out.append(f'<path class="mark" d="M{x:.1f} {top}V{height - bottom}"/>')
        out.append(f'<text class="tick" text-anchor="end" x="{x - 3:.1f}" y="{top - 3}">{escape(visible(mark[1]))}</text>')
    names = []
    for level in levels:
        if level.low is not None and level.high is not None:
            y1, y2 = at(0, level.high)[1], at(0, level.low)[1]
            out.append(f'<rect class="band base" x="{left:.1f}" y="{y1:.1f}" width="{width - left - right:.1f}" height="{y2 - y1:.1f}"/>')
        y = at(0, level.value)[1]
        out.append(f'<path class="line base" d="M{left:.1f} {y:.1f}H{width - right:.1f}"/>')
        names.append((y, "base", level.label))
    for line in lines:
        out.extend(_drawn(line, at))
        ends = moving_average(line.points) if line.smooth else line.points
        names.append((at(*ends[-1])[1], line.kind, line.label))
    for y, kind, label in spread(names, top + 4, height - bottom + 4):
        out.append(f'<text class="name {kind}" x="{width - right + 7:.1f}" y="{y + 3.8:.1f}">{escape(visible(label))}</text>')
    out.append("</svg>")
    return Markup("".join(out))


def _drawn(line, at):
    if len(line.band) > 1:
        edge = [at(x, high) for x, _, high in line.band] + [at(x, low) for x, low, _ in reversed(line.band)]
        yield f'<polygon class="band {line.kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in edge)}"/>'
    for x, low, high in line.band:
        (x1, y1), (_, y2) = at(x, high), at(x, low)
        yield f'<path class="whisker {line.kind}" d="M{x1:.1f} {y1:.1f}V{y2:.1f}"/>'
    if line.smooth and len(line.points) >= 8:
        yield _path(thinned(line.points), f"raw {line.kind}", at)
        yield _path(thinned(moving_average(line.points)), f"line {line.kind}", at)
    elif len(line.points) > 1:
        yield _path(thinned(line.points), f"line {line.kind}", at)
    if len(line.points) == 1 or line.dots and len(line.points) <= 60:
        for x, y in line.points:
            cx, cy = at(x, y)
            yield f'<circle class="dot {line.kind}" cx="{cx:.1f}" cy="{cy:.1f}" r="3"><title>{x:,}: {y:.4g}</title></circle>'


def _path(points, kind, at):
    return f'<path class="{kind}" d="M' + "L".join("{:.1f} {:.1f}".format(*at(x, y)) for x, y in points) + '"/>'


def described(lines, y_label):
    """The chart for somebody who can't see it."""
    ends = ((line.label, *line.points[0], *line.points[-1]) for line in lines)
    spans = (f"{label} from {y0:.4g} at step {x0:,} to {y1:.4g} at step {x1:,}".strip() for label, x0, y0, x1, y1 in ends)
    return f"{y_label}: {'; '.join(spans)}"


def moving_average(points):
    """Each value averaged with its neighbours, a twentieth of the points wide; fewer than 8 points stay as they are."""
    half = max(2, len(points) // 40)
    if len(points) < 8:
        return points
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    spans = [(max(0, i - half), min(len(points), i + half + 1)) for i in range(len(points))]
    return [(points[i][0], (sums[b] - sums[a]) / (b - a)) for i, (a, b) in enumerate(spans)]


def thinned(points):
    """At most about MOST_POINTS of the points, with the lowest and highest of each stretch kept so that no spike disappears."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / MOST_POINTS)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def y_range(values, zero):
    """(low, high, ticks) of the vertical axis: from 0 where the values come near it, and up to a whole tick."""
    low, high = min(values), max(values)
    if zero or 0 <= low < 0.3 * high:
        low = min(0, low)
    marks = ticks(low, high, 4)
    if len(marks) > 1 and high > marks[-1] + 1e-9 * abs(high):
        marks.append(2 * marks[-1] - marks[-2])
    return min(low, marks[0]), max(high, marks[-1]), marks


def ticks(low, high, wanted):
    """Round values inside low … high, about `wanted` of them."""
    if not high > low:
        low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)] or [low]


def tick_texts(values):
    """The ticks as text, all with as many decimals as the finest needs; very small and very large ones as 2e-4."""
    largest = max(map(abs, values))
    if 0 < largest < 0.005 or largest >= 1e7:
        return ["0" if v == 0 else f"{v:.2g}".replace("e-0", "e-").replace("e+0", "e") for v in values]
    decimals = max(len(f"{v:.6f}".rstrip("0").partition(".")[2]) for v in values)
    return [f"{v:,.{decimals}f}" for v in values]


def spread(names, low, high, gap=13):
    """Labels (y, …) moved apart so that none covers another, and kept within low … high."""
    placed = []
    for y, *rest in sorted(names, key=lambda name: name[0]):
        y = min(max(y, low), high)
        placed.append([max(y, placed[-1][0] + gap) if placed else y, *rest])
    for i in range(len(placed) - 1, -1, -1):  # pushed past the end: move back up
        limit = high if i == len(placed) - 1 else placed[i + 1][0] - gap
        placed[i][0] = min(placed[i][0], limit)
    return placed

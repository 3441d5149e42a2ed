"""What the files of a run directory say, whatever is there: settings, training history, judged checkpoints."""

import json
import math
from dataclasses import dataclass, field

from common.refusal import Refusal
from common.run_directory import read_json, step_of
from common.safe_text import shorten

ROUGH_BELOW = 10  # groups; a bootstrap over fewer gives intervals that are too narrow
# What data.json's split_by names: the thing that rows share, and several of it. Any other word is a field of the rows.
SHARED = {"id": ("source question", "source questions"), "family": ("family", "families"), "source": ("source", "sources"),
          "source_id": ("source", "sources"), "topic": ("topic", "topics"), "group": ("group", "groups")}  # fmt: skip


@dataclass
class History:
    """The logged steps of a training, one entry per step, as the run that counts logged them."""

    entries: dict = field(default_factory=dict)  # step -> {"loss": …, "eval_loss": …, …}
    resumes: int = 0
    unreadable_lines: int = 0

    def series(self, key):
        """[(step, value), …] of one logged figure, finite values only."""
        return [(step, entry[key]) for step, entry in sorted(self.entries.items()) if is_number(entry.get(key))]

    def not_finite(self, key):
        """The steps at which a figure was logged as NaN or infinite."""
        return [s for s, e in sorted(self.entries.items()) if isinstance(e.get(key), float) and not math.isfinite(e[key])]

    last_step = property(lambda self: max(self.entries, default=None))


@dataclass
class RunFacts:
    name: str
    run: dict
    constants: dict
    data: dict
    history: History
    judged: dict  # name -> the JSON of eval/<name>.json, base first, then by step, then final and merged
    summary: dict
    unreadable: list  # sentences about files that could not be read
    samples: list = field(default_factory=list)  # what a pretrained model wrote: {"beginning", "text"}

    base = property(lambda self: self.judged.get("base"))

    @property
    def tuned(self):
        """What the headline speaks of: the final model, else the best checkpoint, else the last that was judged."""
        checkpoints = [name for name in self.judged if step_of(name) is not None]
        for name in ("final_model", self.summary.get("best"), *reversed(checkpoints), "merged_model"):
            if isinstance(name, str) and name in self.judged and name != "base":
                return self.judged[name]
        return None


def read(run):
    """The facts of a run directory. A missing file is no fact; a broken one becomes a sentence in `unreadable`."""
    if not run.path.is_dir():
        raise Refusal(f"{run.path} is not a directory; a report is written from a run directory such as outputs/llama32_qlora")
    unreadable = []

    def mapping(path, kind=dict):
        try:
            value = read_json(path, default=kind())
        except (Refusal, OSError, RecursionError) as error:
            unreadable.append(f"{path.relative_to(run.path)} could not be read: {error}")
            return kind()
        if not isinstance(value, kind):
            unreadable.append(f"{path.relative_to(run.path)} holds no JSON {'object' if kind is dict else 'list'}")
            return kind()
        return value

    judged = {path.stem: mapping(path) for path in sorted(run.eval.glob("*.json")) if path.name != "summary.json"}
    judged = {name: facts for name, facts in judged.items() if as_dict(facts.get("metrics"))}
    order = {"base": (0, 0), "final_model": (2, 0), "merged_model": (3, 0)}
    names = sorted(judged, key=lambda name: (*order.get(name, (1, step_of(name) or 0)), name))
    return RunFacts(
        name=run.path.resolve().name,
        run=mapping(run.run),
        constants=mapping(run.constants),
        data=mapping(run.data),
        history=read_history(run.metrics),
        judged={name: judged[name] | {"name": name} for name in names},
        summary=mapping(run.eval / "summary.json"),
        samples=mapping(run.samples, list),
        unreadable=unreadable,
    )


def read_history(path):
    """The training history. When steps go back the run was resumed: what had been logged beyond that step was undone."""
    history = History()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return history
    newest = -1
    for line in lines:
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step = entry["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            history.unreadable_lines += 1
            continue
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            history.unreadable_lines += 1
            continue
        if step < newest:
            history.resumes += 1
            history.entries = {s: e for s, e in history.entries.items() if s <= step}
        newest = step
        history.entries.setdefault(step, {}).update(entry)
    return history


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # neither NaN nor beyond a float


def as_dict(value):
    return value if isinstance(value, dict) else {}


def as_list(value):
    return value if isinstance(value, list) else []


def interval(judged, metric):
    """(mean, low, high) of a judged model's metric; low and high are None without an interval; None without a mean."""
    figures = as_dict(as_dict(as_dict(judged).get("metrics")).get(metric))
    if not is_number(figures.get("mean")):
        return None
    low, high = figures.get("low"), figures.get("high")
    return (figures["mean"], low, high) if is_number(low) and is_number(high) else (figures["mean"], None, None)


def figure(value, digits=2, percent=False):
    if not is_number(value):
        return "–"
    if percent:
        return f"{100 * value:.{max(0, digits - 2)}f}"
    return f"{value:.{digits}f}" if abs(value) < 10_000 else f"{value:.2e}"


def with_interval(found, digits=2, percent=False):
    """0.63 [0.58, 0.67], or 41 % [35, 47]."""
    if not found:
        return "–"
    mean, low, high = (figure(v, digits, percent) for v in found)
    unit = " %" if percent else ""
    return f"{mean}{unit}" if found[1] is None else f"{mean}{unit} [{low}, {high}]"


def differing_settings(one, other):
    """What was not the same when two models were judged, in words; empty when their figures may be compared."""
    if one.get("settings_key") == other.get("settings_key"):
        return ""
    a, b = as_dict(one.get("settings")), as_dict(other.get("settings"))
    names = [str(k) for k in sorted({*a, *b}, key=str) if a.get(k) != b.get(k)]
    if names == ["max_new_tokens"] and 0 in (a["max_new_tokens"], b["max_new_tokens"]):
        return ""  # one of them was judged by its losses alone
    return ", ".join(names) or "settings_key"


def split_sentence(data):
    """What the sides of the split do not share; "" where data.json does not say."""
    split_by = data.get("split_by")
    if not isinstance(split_by, str) or not split_by:
        return ""
    return f"Rows of one {SHARED[split_by][0] if split_by in SHARED else shorten(split_by, 60)} are on one side of the split."

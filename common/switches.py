"""Switches: what is asked of a recipe beside its constants. Each is a flag, and a keyword of the recipe's `main`."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from pydantic import PositiveFloat, PositiveInt

from common import accelerators
from common.declarations import checked
from common.refusal import Refusal

MODEL = "MODEL_NAME"  # declared by what loads a model
TRAINING = "LEARNING_RATE"  # declared by what trains; the scripts of prepare/ have constants too, and train nothing


def _switch(help, needs=None, default=False, example=None):
    """A field with what --help says of it, the constant that a script must declare to have it, and a value as one types it."""
    return field(default=default, metadata={"help": help, "needs": needs, "example": example})


@dataclass(frozen=True, kw_only=True)
class Switches:
    """The switches as given. `usd_per_gpu_hour` is dollars an hour for one GPU, `tokens` those of the training data, read once."""

    tiny: bool = _switch("the same code, small, on a CPU: see TINY in the file")
    prefetch: bool = _switch("download the model and stop, for nodes without network", MODEL)
    config: str | Path | None = _switch("YAML or JSON with constants", None, None, "FILE")
    plan: bool = _switch("say what memory, disk, time and money this run needs, and stop; takes no GPU, no weights, no network", TRAINING)
    gpus: str | None = _switch("with --plan: for these GPUs, not those found here; none found: the recipe's own", TRAINING, None, "8xH200")
    usd_per_gpu_hour: PositiveFloat | None = _switch("with --plan: the price of one GPU, in dollars an hour", TRAINING, None, "3.5")
    tokens: PositiveInt | None = _switch("with --plan: tokens of the training data, whose files are then not read", TRAINING, None, "1.4e9")
    json: bool = _switch("with --plan: the plan as JSON", TRAINING)
    no_plan: bool = _switch("train without first working out whether the run fits this machine", TRAINING)

    def changed(self):
        """{switch: value} of those that were given."""
        return {f.name: getattr(self, f.name) for f in fields(Switches) if getattr(self, f.name) != f.default}


def available(constants):
    """The switches (dataclass fields) of a script that declares these constants."""
    return [f for f in fields(Switches) if f.metadata["needs"] is None or f.metadata["needs"] in constants]


def flag(name):
    """A switch or constant as it is typed: "no_plan" is "--no-plan"."""
    return "--" + name.lower().replace("_", "-")


def read(given):
    """`Switches` of {name: value}, values as text from a shell or as objects from Python; None is not given.

    Raises `Refusal` for a wrong value and for switches that contradict each other or do nothing without --plan.
    """
    switches = Switches(**{f.name: _value(f, given[f.name]) for f in fields(Switches) if given.get(f.name) is not None})
    if switches.plan and switches.no_plan:
        raise Refusal("--plan and --no-plan are given together; --plan says what the run needs and stops, --no-plan trains without asking: "
                      "leave one out")  # fmt: skip
    if switches.plan and switches.prefetch:
        raise Refusal("--plan and --prefetch are given together; each does its work and stops: run one after the other")
    idle = [flag(name) for name in ("gpus", "usd_per_gpu_hour", "tokens", "json") if name in switches.changed()]
    if idle and not switches.plan:
        verb, them = ("is", "it") if len(idle) == 1 else ("are", "them")
        raise Refusal(f"{' and '.join(idle)} {verb} given without --plan; training takes the GPUs and the data it finds: "
                      f"add --plan, or leave {them} out")  # fmt: skip
    return switches


def _value(switch, value):
    if switch.name == "config":  # its reader says what is wrong with it
        return value
    name, example = flag(switch.name), switch.metadata["example"]
    wanted = switch.type if example is None else switch.type.__args__[0]  # "or none" is said by leaving it out
    try:
        value = checked(name, _whole(value) if wanted is PositiveInt else value, wanted)
    except Refusal as refusal:
        raise Refusal(f"{refusal} For example: {name} {example}" if example else str(refusal)) from None
    if switch.name == "gpus":
        try:
            accelerators.parse(value)  # what is misspelt is said before anything is read
        except Refusal as refusal:
            raise Refusal(f"{name} {refusal}") from None
    return value


def _whole(value):
    """1.4e9 and "1.4e9" as the whole number they are; anything else as it came, for `checked` to convert or refuse."""
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?e\+?\d+", value.strip(), re.IGNORECASE):
        value = float(value) if float(value).is_integer() else value
    return int(value) if isinstance(value, float) and value.is_integer() else value

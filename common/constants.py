"""A recipe's constants: the capitals at its top, each also a flag and a key of a config file.

Order of power: flag (or keyword of `main`) > config file > `--tiny` > the recipe file itself. Every value is checked
against the constant's annotation, whatever it came from; unknown names are refused with the nearest known one.
"""

import shlex
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path

import annotated_types

from common import config_file, declarations, flags, switches
from common.declarations import in_words, known

Share = typing.Annotated[float, annotated_types.Ge(0), annotated_types.Lt(1)]


@dataclass(frozen=True, kw_only=True)
class Resolved(switches.Switches):
    """What `resolve` decided: values by constant, where each came from, and the switches, which are no constants."""

    recipe: str  # file name without .py
    values: dict
    origins: dict  # constant -> "file" | "tiny" | "config" | "flag", or who decided it later
    argv: list | None  # the flags this was called with, None when main() was called from Python
    usual: dict = field(default_factory=dict)  # constant -> its value in the file, or in TINY

    @property
    def default_run_name(self):
        """The recipe's name; a tiny run has a directory of its own."""
        return self.recipe + ("_tiny" if self.tiny else "")

    @property
    def command(self):
        """The command line as one would type it again; for a call from Python, that call."""
        if self.argv is None:
            changed = self.changed() | {n.lower(): self.values[n] for n, o in self.origins.items() if o == "flag"}
            return f"{self.recipe}.main({', '.join(f'{name}={value!r}' for name, value in changed.items())})"
        typed = [flag for flag in self.argv if not flag.startswith("--local")]  # the launcher's
        return shlex.join(["python", f"recipes/{self.recipe}.py", *typed])

    def decide(self, namespace, why, **values):
        """Give constants that are None these values, in the recipe's `globals()` too; why: where they come from, for the table."""
        for name, value in values.items():
            if self.values[name] is None:
                self.values[name] = namespace[name] = value
                self.origins[name] = why

    def beside_others(self, namespace, own, **values):
        """Give constants whose values in the file, or in TINY, belong to that of `own`, these values where `own` has another one."""
        if self.values[own] != self.usual[own]:
            for name, value in values.items():
                if self.origins[name] in ("file", "tiny"):
                    self.values[name] = namespace[name] = value
                    self.origins[name] = f"beside these {own}"

    def show(self):
        """The table printed once at the start; what did not come from the file says from where."""
        width = max(map(len, self.values))
        came = {name: "" if origin == "file" else f"   <- {origin}" for name, origin in self.origins.items()}
        rows = (f"  {name:<{width}}  {in_words(value)}{came[name]}" for name, value in self.values.items())
        return "\n".join([f"{self.recipe}: constants", *rows])


def resolve(namespace, overrides=None):
    """Set the recipe's constants in `namespace` (its `globals()`) to their resolved values.

    Flags are read from `sys.argv` when the recipe is the script that runs; `overrides` are the keywords of its `main`
    (constants and switches, in either case). A second call starts from the file again.

    Raises `Refusal` for a wrong type or range, an unknown flag or key, an unreadable config file, switches that contradict each other.
    """
    annotations = declarations.annotations(namespace)
    original = namespace.setdefault("_CONSTANTS_IN_FILE", {n: namespace[n] for n in annotations})
    script = Path(namespace["__file__"])
    argv = sys.argv[1:] if namespace["__name__"] == "__main__" else None
    given, typed, aliases = {}, {}, namespace.get("ALIASES", {})  # other names of constants, as flags and in config files
    if argv is not None:
        given, typed = flags.read(argv, annotations, original, script, namespace.get("__doc__") or "", aliases)
    names = [switch.name for switch in switches.available(annotations)]
    for key, value in (overrides or {}).items():
        if key.lower() in names:
            given[key.lower()] = value
        else:
            name = known(key.upper(), [*annotations, *aliases, *map(str.upper, names)], f"main() has no argument {key!r}")
            typed[aliases.get(name, name)] = value
    asked = switches.read(given)

    values, origins = dict(original), dict.fromkeys(original, "file")
    sources = [("config", config_file.read(asked.config, annotations, aliases)), ("flag", typed)]
    if asked.tiny:
        sources.insert(0, ("tiny", namespace.get("TINY", {})))
    for origin, found in sources:
        for name, value in found.items():
            values[known(name, annotations, f"{origin} names {name}")] = value
            origins[name] = origin
    for name, value in values.items():
        values[name] = namespace[name] = declarations.checked(name, value, annotations[name])
    usual = original | (namespace.get("TINY", {}) if asked.tiny else {})
    return Resolved(**vars(asked), recipe=script.stem, values=values, origins=origins, usual=usual, argv=argv)

"""A recipe's constants: the capitals at its top, each also a flag and a key of a config file.

Order of power: flag (or keyword of `main`) > config file > `--tiny` > the recipe file itself. Every value is checked
against the constant's annotation, whatever it came from; unknown names are refused with the nearest known one.
"""

import argparse
import difflib
import inspect
import json
import re
import shlex
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path

import annotated_types
from pydantic import ConfigDict, TypeAdapter, ValidationError

from common.refusal import Refusal

FINITE = ConfigDict(allow_inf_nan=False)
Share = typing.Annotated[float, annotated_types.Ge(0), annotated_types.Lt(1)]


@dataclass(frozen=True)
class Resolved:
    """What `resolve` decided: values by constant, where each came from, and the switches that are no constants."""

    recipe: str  # file name without .py
    values: dict
    origins: dict  # constant -> "file" | "tiny" | "config" | "flag"
    tiny: bool
    prefetch: bool
    argv: list | None  # the flags this was called with, None when main() was called from Python

    @property
    def default_run_name(self):
        """The recipe's name; a tiny run has a directory of its own."""
        return self.recipe + ("_tiny" if self.tiny else "")

    @property
    def command(self):
        """The command line as one would type it again; for a call from Python, that call."""
        if self.argv is None:
            changed = ", ".join(f"{n.lower()}={self.values[n]!r}" for n, o in self.origins.items() if o == "flag")
            return f"{self.recipe}.main({', '.join(filter(None, ['tiny=True' if self.tiny else '', changed]))})"
        typed = [flag for flag in self.argv if not flag.startswith("--local")]  # the launcher's
        return shlex.join(["python", f"recipes/{self.recipe}.py", *typed])

    def show(self):
        """The table printed once at the start; what did not come from the file says from where."""
        width = max(map(len, self.values))
        came = {name: "" if origin == "file" else f"   <- {origin}" for name, origin in self.origins.items()}
        rows = (f"  {name:<{width}}  {_text(value)}{came[name]}" for name, value in self.values.items())
        return "\n".join([f"{self.recipe}: constants", *rows])


def resolve(namespace, overrides=None):
    """Set the recipe's constants in `namespace` (its `globals()`) to their resolved values.

    Flags are read from `sys.argv` when the recipe is the script that runs; `overrides` are the keywords of its `main`
    (constants in either case, and `tiny`, `prefetch`, `config`). A second call starts from the file again.

    Raises `Refusal` for a wrong type or range, an unknown flag or key, an unreadable config file.
    """
    annotations = {n: a for n, a in _annotations(namespace).items() if n.isupper()}
    original = namespace.setdefault("_CONSTANTS_IN_FILE", {n: namespace[n] for n in annotations})
    missing = [n for n in namespace if n.isupper() and not n.startswith("_") and n not in annotations and n != "TINY"]
    if missing:
        raise Refusal(f"{missing[0]} has no type; a constant is written NAME: type = value, for example {missing[0]}: int = 1")
    script = Path(namespace["__file__"])
    overrides = dict(overrides or {})
    argv = sys.argv[1:] if namespace["__name__"] == "__main__" else None
    switches = {"tiny": False, "prefetch": False, "config": None}
    flags = {}
    if argv is not None:
        found, flags = _read_flags(argv, annotations, original, script, namespace.get("__doc__") or "")
        switches.update(found)
    for key, value in overrides.items():
        if key.lower() in switches:
            switches[key.lower()] = value
        else:
            flags[_known(key.upper(), annotations, f"main() has no argument {key!r}")] = value

    values, origins = dict(original), dict.fromkeys(original, "file")
    sources = [("config", _read_config(switches["config"], annotations)), ("flag", flags)]
    if switches["tiny"]:
        sources.insert(0, ("tiny", namespace.get("TINY", {})))
    for origin, found in sources:
        for name, value in found.items():
            values[_known(name, annotations, f"{origin} names {name}")] = value
            origins[name] = origin
    for name, value in values.items():
        values[name] = namespace[name] = checked(name, value, annotations[name])
    return Resolved(script.stem, values, origins, bool(switches["tiny"]), bool(switches["prefetch"]), argv)


def checked(name, value, annotation):
    """`value` as the annotation wants it. Text is converted ("2e-4" is a number, also in YAML); nothing else is.

    Raises `Refusal` with the name, what was given and what is wanted.
    """
    if isinstance(value, str):
        value = _parse(value, annotation)
    elif isinstance(value, dict):
        value = {k: _number(v) if isinstance(v, str) else v for k, v in value.items()}
    try:
        return TypeAdapter(annotation, config=FINITE).validate_python(value, strict=not isinstance(value, str))
    except ValidationError as error:
        problem = error.errors()[0]
        where = "".join(f"[{part!r}]" for part in problem["loc"] if part in (value if isinstance(value, dict) else ())) or ""
        given = value[problem["loc"][0]] if where else value
        hint = " It must be finite." if problem["type"] == "finite_number" else ""
        if isinstance(value, tuple):
            hint = f" A stray comma makes a tuple: write {name} = {value[0]!r}." if len(value) == 1 else " Use [..] for a list."
        kind, wanted = type(given).__name__, wanted_type(annotation, inner=bool(where))
        kind = f", {_article(kind)} {kind}" if not isinstance(given, str) else ""  # text was typed: its type says nothing
        raise Refusal(f"{name}{where} is {given!r}{kind}; it must be {wanted}.{hint}") from None


def wanted_type(annotation, inner=False):
    """An annotation in words: `PositiveInt | None` is "a whole number above 0, or none"."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join("none" if a is type(None) else wanted_type(a) for a in arguments)
    if origin is typing.Annotated:
        limits = [
            text.format(getattr(m, attribute))
            for m in arguments[1:]
            for kind, attribute, text in (
                (annotated_types.Gt, "gt", " above {}"),
                (annotated_types.Ge, "ge", " of {} or more"),
                (annotated_types.Lt, "lt", " below {}"),
                (annotated_types.Le, "le", " of {} or less"),
            )
            if isinstance(m, kind)
        ]
        return wanted_type(arguments[0]) + " and".join(limits)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is list:
        return wanted_type(arguments[0]) if inner else "a list, each " + wanted_type(arguments[0])
    if origin is dict:
        return wanted_type(arguments[1]) if inner else f"names with values, each {wanted_type(arguments[1])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(annotation, str(annotation))


def _annotations(namespace):
    module = sys.modules.get(namespace["__name__"])
    if module is not None and vars(module) is namespace:
        return inspect.get_annotations(module)
    return namespace.get("__annotations__", {})


def _known(name, known, found):
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    raise Refusal(f"{found}, which is no constant of this recipe" + (f"; the nearest is {close[0]}" if close else ""))


def _parse(text, annotation):
    """Text from a shell or a config file, as the list, mapping or none that the annotation admits."""
    options = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)
    if type(None) in options and text.lower() in ("none", "null", ""):
        return None
    for option in options:
        origin = typing.get_origin(option)
        if origin in (list, dict) and text[:1] in ("[", "{"):
            try:
                return json.loads(text)
            except json.JSONDecodeError:
                return text
        if origin is list:
            return [part.strip() for part in text.split(",") if part.strip()]
        if origin is dict and "=" in text:
            pairs = (part.rsplit("=", 1) for part in text.split(",") if part.strip())
            return {p[0].strip(): _number(p[1]) if len(p) == 2 else None for p in pairs}
    return text


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def _read_config(path, annotations):
    """{constant: value} of a YAML or JSON file. Sections are dropped or joined: `lora: {r: 16}` is LORA_R."""
    if not path:
        return {}
    import yaml

    def unique(pairs):
        names = [str(key) for key, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise Refusal(f"{path} sets {twice[0]} twice; keep one of them")
        return dict(pairs)

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):  # the last of two equal keys would win
            unique([(key.value, value) for key, value in node.value])
            return super().construct_mapping(node, deep)

    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=unique) if str(path).endswith(".json") else yaml.load(text, Loader)
    except OSError as error:
        raise Refusal(f"--config {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise Refusal(f"--config {path} is neither YAML nor JSON: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | types.NoneType):
        raise Refusal(f"--config {path} holds {_article(type(content).__name__)} {type(content).__name__}; it must hold names with values")
    found = {}

    def walk(section, mapping):
        for key, value in mapping.items():
            name = str(key).upper()
            joined = f"{section}_{name}".upper() if section else name
            name = name if name in annotations else joined if joined in annotations else name
            if name not in annotations and isinstance(value, dict):
                walk(str(key), value)
                continue
            _known(name, annotations, f"{path} has the key {key!r}" + (f" in {section!r}" if section else ""))
            if name in found:
                raise Refusal(f"{path} sets {name} twice; keep one of them")
            found[name] = value

    walk("", content or {})
    return found


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Refusal(f"{message}; see --help")


def _read_flags(argv, annotations, original, script, doc):
    parser = _Parser(prog=f"python {script.parent.name}/{script.name}", description=doc, allow_abbrev=False, add_help=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    switch = parser.add_argument_group("switches")
    switch.add_argument("--help", "-h", action="store_true", help="this text")
    switch.add_argument("--tiny", action="store_true", help="the same code, small, on a CPU: see TINY in the file")
    if "MODEL_NAME" in annotations:
        switch.add_argument("--prefetch", action="store_true", help="download the model and stop, for nodes without network")
    switch.add_argument("--config", metavar="FILE", help="YAML or JSON with constants")
    parser.add_argument("--local_rank", "--local-rank", default=None, help=argparse.SUPPRESS)  # appended by launchers
    comments = _comments(script)
    group = parser
    for name, annotation in annotations.items():
        section, comment = comments.get(name, (None, ""))
        if section:
            group = parser.add_argument_group(section)
        text = f"{comment} [{_text(original[name])}]".replace("%", "%%")
        options = {"dest": name, "default": argparse.SUPPRESS, "metavar": "VALUE", "help": text}
        off = {"dest": name, "action": "store_const", "const": "false", "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        kebab = name.lower().replace("_", "-")
        if annotation is bool:
            group.add_argument(f"--{kebab}", f"--{name.lower()}", nargs="?", const="true", **options)
            group.add_argument(f"--no-{kebab}", **off)
        else:
            group.add_argument(f"--{kebab}", *([f"--{name.lower()}"] if "_" in name else []), **options)
    known, unknown = parser.parse_known_args(argv)
    if known.help:
        parser.print_help()
        sys.exit(0)
    if unknown:
        flag = unknown[0].split("=")[0]
        flags = [option for action in parser._actions for option in action.option_strings if "_" not in option]
        close = difflib.get_close_matches(flag, flags, n=1, cutoff=0.5)
        raise Refusal(f"there is no flag {flag}" + (f"; the nearest is {close[0]}" if close else "") + "; see --help")
    found = vars(known)
    for name in ("help", "local_rank"):
        found.pop(name)
    return {name: found.pop(name) for name in ("tiny", "prefetch", "config") if name in found}, found


def _comments(script):
    """{constant: (group that starts here or None, comment)} read from the recipe's own lines."""
    section, found = None, {}
    for line in script.read_text(encoding="utf-8").splitlines():
        if re.match(r"(TINY|def )", line):
            break
        if line.startswith("# "):
            section = line[2:]
        elif match := re.match(r"([A-Z][A-Z0-9_]*): .*?(?:  # (.*))?$", line):
            found[match[1]] = (section, match[2] or "")
            section = None
    return found


def _text(value):
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _article(word):
    return "an" if word[0] in "aeiou" else "a"

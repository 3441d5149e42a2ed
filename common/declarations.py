"""What a recipe declares, NAME: type = value: names that are not declared are refused, values are checked against the type."""

import difflib
import inspect
import json
import sys
import types
import typing

import annotated_types
from pydantic import ConfigDict, TypeAdapter, ValidationError

from common.refusal import Refusal

FINITE = ConfigDict(allow_inf_nan=False)
TABLES = ("TINY", "ALIASES", "GPU_PRESETS")  # capitals that are about constants and none themselves


def annotations(namespace):
    """{constant: type} of a recipe's `globals()`, in the order of its file.

    Raises `Refusal` for a capital without a type.
    """
    found = {n: a for n, a in _annotated(namespace).items() if n.isupper()}
    missing = [n for n in namespace if n.isupper() and not n.startswith("_") and n not in found and n not in TABLES]
    if missing:
        raise Refusal(f"{missing[0]} has no type; a constant is written NAME: type = value, for example {missing[0]}: int = 1")
    return found


def _annotated(namespace):
    module = sys.modules.get(namespace["__name__"])
    if module is not None and vars(module) is namespace:
        return inspect.get_annotations(module)
    return namespace.get("__annotations__", {})


def known(name, names, found):
    """`name` if it is one of `names`; otherwise a `Refusal` that begins with `found` and ends with the nearest of them."""
    if name in names:
        return name
    raise Refusal(f"{found}, which is no constant of this recipe{nearest(name, names)}")


def nearest(name, names):
    """The end of a sentence, "; the nearest is X", or nothing where no name is near."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; the nearest is {close[0]}" if close else ""


def checked(name, value, annotation):
    """`value` as the annotation wants it. Text is converted ("2e-4" is a number, also in YAML); of names without weights each has 1;
    yes and no are "true" and "none" where these are words to choose from. Nothing else is converted.

    Raises `Refusal` with the name, what was given and what is wanted.
    """
    words = _words(annotation)
    if {"true", "none"} <= set(words) and str(value).lower() in ("true", "false"):
        value = "true" if str(value).lower() == "true" else "none"
    if value is False and "no" in words:  # as YAML reads it without quotes
        value = "no"
    if isinstance(value, list) and all(isinstance(name, str) for name in value) and typing.get_origin(annotation) is dict:
        value = dict.fromkeys(value, 1.0)
    if isinstance(value, str) and value not in words:
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
        kind = f", {article(kind)} {kind}" if not isinstance(given, str) else ""  # text was typed: its type says nothing
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
        return wanted_type(arguments[1]) if inner else f"names with values, each {wanted_type(arguments[1])}, such as path=1.0,other=0.5"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(annotation, str(annotation))


def _options(annotation):
    return typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)


def _words(annotation):
    """The words that an annotation lets one choose from; none where it is of another kind."""
    return [word for option in _options(annotation) if typing.get_origin(option) is typing.Literal for word in typing.get_args(option)]


def _parse(text, annotation):
    """Text from a shell or a config file, as the list, mapping or none that the annotation admits."""
    options = _options(annotation)
    if type(None) in options and text.lower() in ("none", "null", ""):
        return None
    for option in options:
        origin = typing.get_origin(option)
        if origin in (list, dict) and text[:1] in ("[", "{"):
            try:
                return json.loads(text)
            except json.JSONDecodeError:
                return text
        if origin is list and text.lower() == "none":
            return []
        if origin is list:
            return [part.strip() for part in text.split(",") if part.strip()]
        if origin is dict:
            pairs = (part.rsplit("=", 1) for part in text.split(",") if part.strip())
            return {p[0].strip(): _number(p[1]) if len(p) == 2 else 1.0 for p in pairs}
    return text


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def in_words(value):
    """A value as the table and --help show it."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def article(word):
    return "an" if word[0] in "aeiou" else "a"

"""A JSON file that somebody else wrote and that has to hold an object: a model's config.json, a ZeRO JSON."""

import json
from pathlib import Path

from common.refusal import Refusal


def read(path, fix):
    """The object in `path` as a dict, its values unchecked. Raises `Refusal`, ending with `fix`, where there is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror}); {fix}") from None
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} is not UTF-8 (byte {error.start}); {fix}") from None
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and brackets in thousands of brackets
        raise Refusal(f"{path} is not JSON ({error}); {fix}") from None
    if not isinstance(content, dict):
        raise Refusal(f"{path} holds {kind(content)}, where an object {{...}} belongs; {fix}")
    return content


def kind(value):
    """What JSON calls a value that `json` has read, with its article."""
    names = {list: "a list", dict: "an object", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")

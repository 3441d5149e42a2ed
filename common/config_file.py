"""A config file: a recipe's constants in YAML or JSON, in sections or without."""

import json
import types
from pathlib import Path

from common.declarations import article, known
from common.refusal import Refusal


def read(path, annotations, aliases=()):
    """{constant: value} of a YAML or JSON file, unchecked. Sections are dropped or joined: `lora: {r: 16}` is LORA_R.

    aliases: {other name that a key may have: constant}.

    Raises `Refusal` for an unreadable file, a key that is none of `annotations`, and what is said twice.
    """
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
        raise Refusal(f"--config {path} holds {article(type(content).__name__)} {type(content).__name__}; it must hold names with values")
    found, names = {}, {**dict.fromkeys(annotations), **dict(aliases)}

    def walk(section, mapping):
        for key, value in mapping.items():
            name = str(key).upper()
            joined = f"{section}_{name}".upper() if section else name
            name = name if name in names else joined if joined in names else name
            if name not in names and isinstance(value, dict):
                walk(str(key), value)
                continue
            if name not in names and value is None:
                raise Refusal(f"{path} has {key!r} with nothing in it; leave it out, or indent what belongs to it")
            known(name, names, f"{path} has the key {key!r}" + (f" in {section!r}" if section else ""))
            name = names[name] or name
            if name in found:
                raise Refusal(f"{path} sets {name} twice; keep one of them")
            found[name] = value

    walk("", content or {})
    return found

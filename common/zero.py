"""DeepSpeed's JSON against the constants: "auto" is decided by the constants, only what the file says otherwise is checked."""

from common.refusal import Refusal
from common.run_directory import read_json


def check(path, **constants):
    """The JSON in `path` when it contradicts no constant; `Refusal` naming both values when it does.

    constants: {JSON key, nested with __: value}, for example gradient_clipping=1.0, bf16__enabled=True.
    """
    config = read_json(path)
    if config is None:
        raise Refusal(f"DS_CONFIG names {path}, which does not exist; ds_configs/ holds one JSON for each sharded recipe")
    for key, wanted in constants.items():
        found = config
        for part in key.split("__"):
            found = found.get(part, "auto") if isinstance(found, dict) else "auto"
        if found not in ("auto", wanted):
            name = key.replace("__", ".")
            raise Refusal(f'{path} says {name} = {found!r}, the constants say {wanted!r}; write "auto" there, or change the constant')
    return config

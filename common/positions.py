"""How long a row a model can tell positions in: what its config.json says of rotary positions, and whether a run keeps to it.

Beyond the length that a config allows, Unsloth puts linear scaling in the place of whatever the config asks, on a GPU alone and
with one line in the log; so lengths are checked here, and scaling that the config asks for is handed to it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from common import json_object
from common.refusal import Refusal

FACTORS = ("linear", "dynamic", "yarn")  # types whose factor counts beyond what the config declares
SCALED_BY_UNSLOTH = ("linear", "yarn", "llama3")  # its `rope_scaling` argument takes these over as they are; others it ignores


@dataclass(frozen=True)
class Positions:
    """Of one model, in tokens. `longest`: with the config's own scaling; `pretrained`: before it was scaled, None where that is not said;
    `scaling`: the config's rope_parameters, {} without scaling."""

    longest: int
    declared: int  # max_position_embeddings
    pretrained: int | None
    scaling: dict

    kind = property(lambda self: self.scaling.get("rope_type", "default"))


def of_config(config, source="config.json"):
    """`Positions` of the content of a config.json. The factor of linear, dynamic and YaRN scaling counts from the length before it;
    Llama 3's and LongRoPE's configs declare the longer one. source: its path, for `Refusal`s of values that no model has."""
    config = config.get("text_config") or config
    declared = config.get("max_position_embeddings") or config.get("n_positions")
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if type(declared) is not int or declared < 1:
        raise Refusal(f"{source} says max_position_embeddings = {declared!r}; it must be a whole number of tokens, as the model has it")
    kind = "?" if not isinstance(found, dict) else found.get("rope_type") or found.get("type") or "default"
    if kind == "default":
        return Positions(declared, declared, None, {})
    factor, before = (found.get(name) for name in ("factor", "original_max_position_embeddings")) if kind != "?" else (None, None)
    before = before or config.get("original_max_position_embeddings")
    numbers = [value for value in (factor, before) if value is not None]
    if kind == "?" or not all(type(value) in (int, float) and value >= 1 for value in numbers) or (factor is None and kind in FACTORS):
        raise Refusal(f"{source} says rope_scaling = {json.dumps(found, default=str)[:120]}; it must be an object with rope_type and, from "
                      "1, the numbers of that type, such as factor")  # fmt: skip
    scaling = {**{name: value for name, value in found.items() if name != "type"}, "rope_type": kind}
    if kind not in FACTORS:
        return Positions(declared, declared, before, scaling)
    before = before or declared
    return Positions(max(declared, round(factor * before)), declared, before, scaling)


def of(directory, dimensions):
    """`Positions` of the config.json in `directory`; where there is none on this machine, of the model's `Dimensions`."""
    path = Path(directory or "") / "config.json"
    if directory and path.is_file():
        return _of_file(path)
    return Positions(dimensions.max_position_embeddings, dimensions.max_position_embeddings, None, {})


def _of_file(path):
    return of_config(json_object.read(path, "save the model's whole config.json there"), path)


def require(directory, max_seq_length, model_name):
    """(the scaling (dict) that the loader has to be given for rows of `max_seq_length` tokens, None where it needs none; what is to be
    warned of, None for nothing).

    directory: with the model's config.json. Raises `Refusal` for rows longer than the config allows, and for an adapter's directory.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise Refusal(f"{directory} has no config.json, so it is no model; an adapter is gone on from by its run: --resume-from-checkpoint")
    found = _of_file(path)
    require_length(found, max_seq_length, model_name)
    if not found.scaling:
        return None, None
    warning = None
    if found.pretrained and max_seq_length > found.pretrained and found.kind != "llama3":
        warning = (
            f"{model_name} was pretrained on {found.pretrained:,} positions; up to {max_seq_length:,} they are scaled by {found.kind}, "
            f"factor {found.scaling.get('factor')}, as its config.json asks. Shorter rows are scaled too: serve it with this config"
        )
    return (found.scaling if max_seq_length > found.declared else None), warning


def require_length(found, max_seq_length, model_name):
    """Refuse rows longer than `Positions` allow, or for which Unsloth would not scale as they ask."""
    if max_seq_length > found.longest:
        factor = -(-max_seq_length // (found.pretrained or found.declared))
        raise Refusal(
            f"MAX_SEQ_LENGTH is {max_seq_length:,}, and the config.json of {model_name} allows {found.longest:,} positions; lower it, or "
            f'have positions scaled: in a copy of the model write "rope_scaling": {{"rope_type": "yarn", "factor": {factor}.0, '
            f'"original_max_position_embeddings": {found.pretrained or found.declared}}} into config.json, and name the copy as MODEL_NAME'
        )
    if max_seq_length > found.declared and found.kind not in SCALED_BY_UNSLOTH:
        raise Refusal(
            f"MAX_SEQ_LENGTH is {max_seq_length:,}, for which the config.json of {model_name} scales positions by {found.kind!r}; Unsloth "
            f"takes over {', '.join(SCALED_BY_UNSLOTH)} alone: stay within {found.declared:,}, or have them scaled by yarn"
        )

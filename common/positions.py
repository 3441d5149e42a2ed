"""How long a row a model can tell positions in: what its config.json says of rotary positions, and whether a run keeps to it.

Beyond the length that a config allows, Unsloth puts linear scaling in the place of whatever the config asks, on a GPU alone and
with one line in the log; so lengths are checked here, and scaling that the config asks for is handed to it.
"""

from dataclasses import dataclass
from pathlib import Path

from common import json_object
from common.log import say_once
from common.refusal import Refusal

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


def of_config(config):
    """`Positions` of the content of a config.json. The factor of linear, dynamic and YaRN scaling counts from the length before it;
    Llama 3's and LongRoPE's configs declare the longer one."""
    declared = config.get("max_position_embeddings") or config.get("n_positions") or 0
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = found.get("rope_type") or found.get("type") or "default"
    if kind == "default":
        return Positions(declared, declared, None, {})
    scaling = {**{name: value for name, value in found.items() if name != "type"}, "rope_type": kind}
    before = found.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if kind in ("llama3", "longrope"):
        return Positions(declared, declared, before, scaling)
    before = before or declared
    return Positions(max(declared, round(float(found.get("factor", 1)) * before)), declared, before, scaling)


def require(directory, max_seq_length, model_name):
    """The scaling (dict) that the loader has to be given for rows of `max_seq_length` tokens, None where it needs none.

    directory: with the model's config.json. Says it where positions are scaled beyond what the model was pretrained on; raises
    `Refusal` for rows longer than the config allows.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():  # an adapter's directory
        return None
    found = of_config(json_object.read(path, "save the model's whole config.json there"))
    if max_seq_length > found.longest:
        factor = -(-max_seq_length // (found.pretrained or found.declared))
        raise Refusal(
            f"MAX_SEQ_LENGTH is {max_seq_length:,}, and the config.json of {model_name} allows {found.longest:,} positions; lower it, or "
            f'have positions scaled: in a copy of the model write "rope_scaling": {{"rope_type": "yarn", "factor": {factor}.0, '
            f'"original_max_position_embeddings": {found.pretrained or found.declared}}} into config.json, and name the copy as MODEL_NAME'
        )
    if not found.scaling:
        return None
    if max_seq_length > found.declared and found.kind not in SCALED_BY_UNSLOTH:
        raise Refusal(
            f"MAX_SEQ_LENGTH is {max_seq_length:,}, for which the config.json of {model_name} scales positions by {found.kind!r}; Unsloth "
            f"takes over {', '.join(SCALED_BY_UNSLOTH)} alone: stay within {found.declared:,}, or have them scaled by yarn"
        )
    if found.pretrained and max_seq_length > found.pretrained and found.kind != "llama3":
        say_once(
            f"warning: {model_name} was pretrained on {found.pretrained:,} positions; up to {max_seq_length:,} they are scaled by "
            f"{found.kind}, factor {found.scaling.get('factor')}, as its config.json asks. Shorter rows are scaled too: serve it with this "
            "config"
        )
    return found.scaling if max_seq_length > found.declared else None

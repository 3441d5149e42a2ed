"""Two runs compared to the last bit: what was logged, what was saved, and what a resume would go on from."""

import json

import numpy as np
import torch

from common import manifest
from common.run_directory import read_json


def logged(run):
    """The lines of metrics.jsonl; without a last one that is being written."""
    return [json.loads(line) for line in run.metrics.read_text().split("\n")[:-1]] if run.metrics.exists() else []


def figures(lines):
    """{(step, name): value} of losses, grad norms, learning rates and held-out losses; the last one counts where there are several."""
    kept = ("loss", "grad_norm", "learning_rate", "eval_loss")
    return {(line["step"], name): line[name] for line in lines for name in kept if name in line}


def differences(whole, other, history=True):
    """What differs between two finished runs, in words; empty where every figure and every bit is the same.

    Compared: the logged figures, the final model, and what is in the last checkpoint: weights, optimiser, schedule, random states,
    and, if `history`, the figures so far and the place in the data.
    """
    found = [f"figures: {what}" for what in _unequal(figures(logged(whole)), figures(logged(other)))]
    found += [f"final_model: {what}" for what in _unequal(_tensors(whole.final_model), _tensors(other.final_model))]
    last = [run.whole_checkpoints()[-1][1] for run in (whole, other)]
    parts = {"weights": _tensors, "state": _state, **({"history": _history, "position": _position} if history else {})}
    for what, read in parts.items():
        found += [f"{last[1].name}, {what}: {where}" for where in _unequal(*map(read, last))]
    return found


def _tensors(directory):
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def _state(checkpoint):
    """Of everything that torch wrote; our own files, so they may be unpickled."""
    names = [p for p in sorted(checkpoint.rglob("*")) if p.suffix in (".pt", ".pth")]
    return {str(path.relative_to(checkpoint)): torch.load(path, weights_only=False) for path in names}


def _history(checkpoint):
    state = read_json(checkpoint / "trainer_state.json")
    kept = ("global_step", "epoch", "best_global_step", "best_metric", "num_input_tokens_seen")  # total_flos is rounded at every save
    return {"figures": figures(state["log_history"]), **{name: state[name] for name in kept}}


def _position(checkpoint):
    return manifest.read(checkpoint)["position"]


def _unequal(one, other, where=""):
    """The places at which two nested values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{where}/{key} is only in one" for key in one.keys() ^ other.keys()]
        return found + [text for key in one if key in other for text in _unequal(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [text for n, pair in enumerate(zip(one, other, strict=True)) for text in _unequal(*pair, f"{where}/{n}")]
    if torch.is_tensor(one) and torch.is_tensor(other):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [f"{where} (tensor)"]
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return [] if np.array_equal(one, other) else [f"{where} (array)"]
    if type(one) is type(other) and type(one).__eq__ is object.__eq__ and hasattr(one, "__dict__"):
        return _unequal(vars(one), vars(other), where)
    return [] if type(one) is type(other) and one == other else [f"{where}: {str(one)[:60]} and {str(other)[:60]}"]

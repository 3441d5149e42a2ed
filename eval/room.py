"""How many rows a model takes at a time: what their keys and values, activations and masks need, beside the memory that is free."""

from collections import Counter
from dataclasses import dataclass

from common import dimensions, hardware
from common.refusal import Refusal

READ = 4096  # tokens of a prompt read at a time where the whole of it would not fit
ALONE = 1 << 16  # tokens from which on a row goes alone: under a mask each step writes keys and values once more for every query head
OF_A_GPU, OF_A_CPU = 0.9, 0.25  # of the free memory: several processes and the system share a CPU's
FOR_THE_REST = 1 << 30  # bytes: the last logits, what kernels need, fragments


@dataclass(frozen=True)
class Needs:
    """Bytes that reading and writing take, from a model's dimensions; of the whole model, or of its `share` on the fullest device."""

    cache: float  # of a token: the keys and values of all layers
    appended: float  # of a token: those of one layer again, which are copied when they grow
    repeated: float  # of a token: those of one layer for every query head, as attention under a mask has them
    activations: float  # of a token that is being read: inputs, MLP and the fp32 that an adapter computes in
    mask: float  # of a token being read and one that it looks at: a boolean, its number in the model's dtype, a copy of both

    @classmethod
    def of(cls, found, itemsize, share=1.0):
        """found: `Dimensions`; itemsize: bytes of a number of the model's dtype."""
        cache = 2 * found.num_hidden_layers * found.key_value_size * itemsize * share
        activations = 4 * (3 * found.intermediate_size + 8 * found.hidden_size)
        return cls(cache, 2 * found.key_value_size * itemsize, 2 * found.query_size * itemsize, activations, 2 * (1 + itemsize))

    def bytes(self, rows, length, read, cached=True):
        """Of `rows` of `length` tokens, prompt and answer, read `read` at a time. cached: whether keys and values stay, as in writing.

        One row read at once needs no mask, for attention is told that it is causal; several are padded on the left, and pieces look back.
        """
        masked = rows > 1 or read < length
        of_tokens = self.cache * (cached or read < length) + self.appended + self.repeated * masked
        return rows * (length * of_tokens + read * self.activations + masked * read * length * self.mask)


class Room:
    """The memory beside a model's weights, and what of a number of rows fits into it. needs: None where the kind of model is unknown."""

    def __init__(self, needs, free):
        self.needs, self.free, self.piecewise = needs, free, False

    @classmethod
    def of(cls, model):
        """As it is now, the model being loaded; where it is on several devices, that of the fullest."""
        try:
            found = dimensions.from_config(model.config.get_text_config().to_dict())
        except Refusal:  # a kind of model whose arithmetic is not known: batches are halved when memory ends
            return cls(None, 0)
        layers = Counter(layer_devices(model, found.num_hidden_layers))
        share = max(layers.values()) / found.num_hidden_layers
        return cls(Needs.of(found, next(model.parameters()).dtype.itemsize, share), min(map(free_bytes, layers)) - FOR_THE_REST)

    def batch(self, rows, longest, new=0, cached=True, beside=0):
        """(rows of at most `rows`, tokens read at a time or None for all at once) where the longest prompt has `longest` tokens.

        new: tokens written behind it; beside: bytes that each row needs besides. At least 1 row: whether it fits is seen by trying.
        """
        rows = 1 if longest > ALONE else rows
        if self.needs is None:
            return rows, READ if self.piecewise and longest > READ else None
        whole = self._fit(rows, longest + new, longest + new, cached, beside)
        if longest <= READ:
            return max(1, whole), None
        pieces = max(1, self._fit(rows, longest + new, READ, cached, beside))
        if whole >= pieces and not self.piecewise:
            return whole, None
        return pieces, READ

    def _fit(self, rows, length, read, cached, beside):
        several = int(self.free // (self.needs.bytes(2, length, read, cached) / 2 + beside))
        if several > 1:
            return min(rows, several)
        return int(self.needs.bytes(1, length, read, cached) + beside <= self.free)

    def tighten(self):
        """After memory ended with one row: read prompts in pieces from now on. False where that is done already."""
        before, self.piecewise = self.piecewise, True
        return not before


def layer_devices(model, count):
    """The device of each of the model's `count` layers."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return [next(layer.parameters()).device for layer in module]
    return [next(model.parameters()).device]


def free_bytes(device):
    """What may be used of the memory that is free on a torch device, and of what torch holds there without using it."""
    import torch

    if device.type != "cuda":
        return OF_A_CPU * hardware.free_memory_gib() * hardware.GIB
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return OF_A_GPU * (torch.cuda.mem_get_info(device)[0] + held)

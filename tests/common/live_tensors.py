"""What a training step holds in memory, counted on a CPU: every storage that an operation returns, from its making to its end."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Live(TorchDispatchMode):
    """Bytes of the storages made inside and still alive (`now`), and the most there were (`peak`); `known` tensors are left out."""

    def __init__(self, known):
        super().__init__()
        self.now = self.peak = 0
        self.alive = {}
        self.known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or key in self.alive:
            return
        self.alive[key] = weakref.ref(storage, lambda _: self._end(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _end(self, key, size):
        del self.alive[key]
        self.now -= size


def saved_bytes(forward, known):
    """Bytes that autograd saves while `forward` runs, each storage once, `known` tensors (parameters, inputs) left out."""
    known, seen = {tensor.untyped_storage()._cdata for tensor in known}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            seen[storage._cdata] = storage  # held, so that no later storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(storage.nbytes() for storage in seen.values())

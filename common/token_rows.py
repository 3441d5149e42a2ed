"""Rows of tokens for training and evaluation: every token is learned once an epoch, in an order that the seed and the epoch decide."""

import numpy as np

IGNORED = -100  # a label that counts nowhere
OPEN = 64  # files at once; each keeps a descriptor, of which a process often has 1,024


class TokenRows:
    """The rows of `shards`, a dataset for a DataLoader.

    A row is `context` tokens and, as labels, the tokens after them. A shard of N tokens has ceil((N - 1) / context) rows; the last one
    begins where it ends with the shard, and what the row before learned is -100 in it. So every token but a shard's first is a label
    exactly once. limit_tokens: of that many tokens only, the first of each shard in equal parts.
    """

    def __init__(self, shards, context, end_of_text, limit_tokens=None):
        self.shards, self.context, self.end_of_text = shards, context, end_of_text
        self.sizes = np.array([shard.tokens for shard in shards], dtype=np.int64)
        if limit_tokens is not None:
            self.sizes = np.minimum(self.sizes, max(2, limit_tokens // len(shards)))
        self.rows = -(-(self.sizes - 1) // context)
        self.starts = np.concatenate([[0], np.cumsum(self.rows)])
        self.tokens, self.targets = int(self.sizes.sum()), int((self.sizes - 1).sum())
        wide = end_of_text >= 1 << 16 or any(shard.dtype.itemsize > 2 for shard in shards)
        self._dtype = np.uint32 if wide else np.uint16
        self._arrays = {}  # open files by shard, the one used last at the end

    def __len__(self):
        return int(self.starts[-1])

    def steps(self, rows_per_step):
        """Optimiser steps of an epoch."""
        return -(-len(self) // rows_per_step)

    def __getitems__(self, indices):
        """{"input_ids", "labels"}: int64 [n, context] each, for n row numbers. Number len(self) is a row in which nothing is learned."""
        import torch

        indices = np.asarray(indices, dtype=np.int64)
        ids = np.full((len(indices), self.context + 1), self.end_of_text, dtype=self._dtype)
        fresh = np.zeros(len(indices), dtype=np.int64)  # the first label of each row that no other row has
        known = np.full(len(indices), 1, dtype=np.int64)  # tokens of the row that are the shard's
        shard_of = np.searchsorted(self.starts, indices, side="right") - 1
        for shard in np.unique(shard_of[indices < len(self)]):
            mine = np.flatnonzero((shard_of == shard) & (indices < len(self)))
            size, first = self.sizes[shard], (indices[mine] - self.starts[shard]) * self.context
            begin = np.maximum(np.minimum(first, size - 1 - self.context), 0)
            width = min(self.context + 1, int(size))
            ids[mine, :width] = np.lib.stride_tricks.sliding_window_view(self._array(shard), width)[begin]
            fresh[mine], known[mine] = first - begin, width
        labels, place = ids[:, 1:].astype(np.int64), np.arange(self.context)
        if fresh.any() or (known <= self.context).any():  # rows at a shard's end
            labels[(place < fresh[:, None]) | (place + 1 >= known[:, None])] = IGNORED
        return {"input_ids": torch.from_numpy(ids[:, :-1].astype(np.int64)), "labels": torch.from_numpy(labels)}

    def __getitem__(self, indices):
        return self.__getitems__(np.atleast_1d(indices))

    def __getstate__(self):
        return {**vars(self), "_arrays": {}}  # a loader's process opens its own

    def _array(self, shard):
        array = self._arrays.pop(shard, None)
        if array is None:
            array = np.asarray(self.shards[shard].array())
        self._arrays[shard] = array
        if len(self._arrays) > OPEN:
            del self._arrays[next(iter(self._arrays))]
        return array

    def order(self, seed, epoch, multiple):
        """int64 [k x multiple]: shards one after another in a drawn order, the rows of each shuffled; then rows that teach nothing."""
        found = [
            self.starts[shard] + np.random.default_rng([seed, epoch, shard]).permutation(self.rows[shard])
            for shard in self._shuffled(seed, epoch)
        ]
        return np.concatenate([*found, np.full(-len(self) % multiple, len(self), dtype=np.int64)])

    def shard_ends(self, seed, epoch):
        """int64 [shards]: of the order of this epoch, how many rows stand before the end of each shard."""
        return np.cumsum(self.rows[self._shuffled(seed, epoch)])

    def _shuffled(self, seed, epoch):
        return np.random.default_rng([seed, epoch]).permutation(len(self.shards))


def collate(batch):
    """A batch as `__getitems__` made it: nothing is left to put together."""
    return batch

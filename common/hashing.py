"""Checksums of what `torch.save` writes, taken from memory on its way to the disk."""

import os
from contextlib import contextmanager

import torch

from common import manifest


class _Hashing:
    """A file that hashes what passes through it."""

    def __init__(self, file):
        self.file, self.checksum, self.size = file, manifest.Crc32c(), 0

    def write(self, data):
        view = memoryview(data).cast("B")
        for start in range(0, len(view), manifest.BLOCK):
            self.checksum.update(bytes(view[start : start + manifest.BLOCK]))
        self.size += len(view)
        return self.file.write(view)

    def flush(self):
        self.file.flush()


@contextmanager
def hashed_writes():
    """While inside, what `torch.save` writes to a path is hashed on its way and flushed to disk: {path: {"size", "crc32c"}}.

    These are the shards of optimiser and weights, nearly all of a large checkpoint: each rank hashes its own, from memory,
    so that the manifest says what was meant to be written and nothing is read again.
    """
    written, plainly = {}, torch.save

    def save(obj, f, *arguments, **keywords):
        if not isinstance(f, str | os.PathLike):
            return plainly(obj, f, *arguments, **keywords)
        with open(f, "wb") as file:
            hashing = _Hashing(file)
            plainly(obj, hashing, *arguments, **keywords)
            file.flush()
            os.fsync(file.fileno())
        written[os.fspath(f)] = {"size": hashing.size, "crc32c": hashing.checksum.text()}
        return None

    torch.save = save
    try:
        yield written
    finally:
        torch.save = plainly

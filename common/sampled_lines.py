"""Lines of a file without reading all of it: those that begin in blocks drawn at random."""

from pathlib import Path

import numpy as np

BLOCK = 1 << 17  # bytes of a file read at one place
BLOCKS = 512  # places read in all files together: 64 MB, so that the lengths of a long tail are told
LINES = 100_000  # looked at in all files: where lines are short fewer places suffice


def read(file, size, share, seed):
    """(lines of a file of `size` bytes as bytes, whether these are all). share: of `BLOCKS` that may be read, None for all.

    Blocks are drawn, not lines, and a line belongs to the block in which it begins: so a long line is drawn as often as a
    short one. (Of the lines at random places most would be long.)
    """
    places, blocks = -(-size // BLOCK), None if share is None else max(8, round(BLOCKS * share))
    whole = blocks is None or blocks >= places
    with Path(file).open("rb") as content:
        if whole:
            return _split(content.read()), True
        found, looked_at = {}, 0
        for place in np.random.default_rng(seed).choice(places, blocks, replace=False).tolist():
            if looked_at <= LINES * blocks / BLOCKS:
                found[place] = begun_in(content, place * BLOCK)
                looked_at += len(found[place])
        lines = [line for place in sorted(found) for line in found[place]]
        content.seek(0)
        return lines or _split(content.readline()), False  # so long may lines be that none begins where we looked


def begun_in(content, start):
    """The lines of the open file that begin in the block at byte `start`, the last one to its end."""
    content.seek(max(0, start - 1))
    if start:
        content.readline(BLOCK + 1)  # the end of a line that began before, or the newline at the block's edge
    text = content.read(max(0, start + BLOCK - content.tell()))
    return _split(text if text.endswith(b"\n") or not text else text + content.readline())


def _split(text):
    return text.removesuffix(b"\n").split(b"\n") if text else []

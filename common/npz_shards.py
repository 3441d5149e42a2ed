"""Tokens that were saved as .npz, in two layouts, unpacked once into plain shards in the cache.

`tokens`: one row of them. `input_ids` [windows, length] with `sequence_lengths` [windows]: windows of a document that begin every 512
tokens and so overlap, padded on the right; each token is taken once.
"""

import hashlib
import zipfile
import zlib

import numpy as np

from common import cache, hardware, manifest
from common.refusal import Refusal

STRIDE = 512


def unpacked(paths):
    """The directory of what is in these files, each as a .bin of uint16, or where that is too narrow a .ds of uint32; written once.

    Raises `Refusal` for a file that is no such archive, that holds pickles, and where the disk of the cache has too little room.
    """
    stamps, needed = zip(*map(_measured, paths), strict=True)
    target = cache.root() / "unpacked" / hashlib.sha256(repr(stamps).encode()).hexdigest()[:24]
    if not target.is_dir():
        hardware.require_disk(target, sum(needed) / 1e9, f"unpacking {len(paths)} .npz", "RECIPES_CACHE")
        cache.build_once(target, lambda directory: _unpack(paths, directory))
    return target


def _measured(path):
    """((path, bytes, time) of an archive, bytes of its tokens when they are unpacked, at most)."""
    try:
        state = path.stat()
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist() if entry.filename in ("tokens.npy", "input_ids.npy"))
        return (str(path.resolve()), state.st_size, state.st_mtime_ns), size
    except (OSError, zipfile.BadZipFile) as error:
        raise Refusal(f"{path} cannot be read as .npz ({error}); it was cut short or is something else: copy it again") from None


def _unpack(paths, directory):
    for number, path in enumerate(paths):
        tokens = read(path)
        wide = tokens.max(initial=0) >= 1 << 16
        name = f"{number:05d}-{path.stem}"  # names stay in order, and say "val" where the file did
        if wide:
            ends = np.array([len(tokens)], dtype="<u8")
            manifest.write_whole(directory / f"{name}.ds.index", ends.tobytes())
        manifest.write_whole(directory / f"{name}{'.ds' if wide else '.bin'}", tokens.astype("<u4" if wide else "<u2").tobytes())


def read(path):
    """The tokens of one .npz, each once: int64 [tokens]. Raises `Refusal` for another layout, and for pickles, which are not opened."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "tokens" in archive:
                tokens = archive["tokens"]
                _require(path, tokens.ndim == 1 and tokens.dtype.kind in "iu", f"tokens is {tokens.dtype} {tokens.shape}")
                found = tokens.astype(np.int64)
            elif "input_ids" in archive and "sequence_lengths" in archive:
                windows, lengths = archive["input_ids"], archive["sequence_lengths"]
                whole = windows.dtype.kind in "iu" and lengths.dtype.kind in "iu"
                right = whole and windows.ndim == 2 and lengths.shape == windows.shape[:1]
                _require(path, right, f"input_ids is {windows.dtype} {windows.shape} and sequence_lengths {lengths.dtype} {lengths.shape}")
                shortest, longest = (lengths.min(), lengths.max()) if len(lengths) else (0, 0)
                inside = shortest >= 0 and longest <= windows.shape[1]
                _require(path, inside, f"sequence_lengths go from {shortest} to {longest} in windows of {windows.shape[1]}")
                found = joined(windows, lengths)
            else:
                raise Refusal(f"{path} has {', '.join(archive.files) or 'nothing'}, neither tokens nor input_ids with sequence_lengths")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        pickled = "; it holds Python objects, which are never loaded here" if "pickle" in str(error).lower() else ""
        raise Refusal(f"{path} cannot be read as .npz of numbers ({str(error).splitlines()[0]}){pickled}; save plain arrays") from None
    if not len(found):
        raise Refusal(f"{path} holds no tokens; remove it, or leave it out of TRAIN_FILES")
    _require(path, found.min() >= 0, f"it has the token {found.min()}")
    return found


def _require(path, right, said):
    if not right:
        raise Refusal(f"{path}: {said}; tokens int [n], or input_ids int [windows, length] with sequence_lengths int [windows], are read")


def joined(windows, lengths):
    """The tokens of overlapping windows, each once: int64 [tokens].

    A window that goes on from the one before begins with what that one has after its first STRIDE tokens: all of its own where that
    one was the document's last full piece, its first half where that one was full.
    """
    lengths, width = lengths.astype(np.int64), windows.shape[1]
    repeated = np.zeros(len(windows), dtype=np.int64)  # tokens at the beginning of each that the one before has
    overlap = lengths[:-1] - STRIDE
    fits = np.where(lengths[:-1] == width, lengths[1:] >= overlap, lengths[1:] == overlap) & (overlap > 0)
    candidates = np.flatnonzero(fits)
    for start in range(0, len(candidates), 4096):
        rows = candidates[start : start + 4096]
        tail, head = windows[rows, STRIDE:], windows[rows + 1, : width - STRIDE]
        counted = np.arange(width - STRIDE) < overlap[rows, None]
        same = ((tail == head) | ~counted).all(axis=1)
        repeated[rows[same] + 1] = overlap[rows[same]]
    places = np.arange(width)
    kept = (places >= repeated[:, None]) & (places < lengths[:, None])
    return windows[kept].astype(np.int64)

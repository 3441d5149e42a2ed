"""Shards of tokens: written whole or not at all, found in directories, and examined once.

    shard-00000-000.bin         tokens, little-endian, without a header: uint16 where they fit, else uint32; end-of-text after each document
    shard-00000-000.docs.npy    int64 [documents]: one past each document's end-of-text
    shard-00000-000.json        written last: {"format", "dtype", "tokens", "documents", "text_bytes", "largest_token", "xxh3_128",
                                "tokenizer", "vocab_size", "end_of_text", "sources"}

A shard may begin and end within a document.
"""

import glob
import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from common import cache, hardware, manifest, npz_shards, shard_formats
from common.refusal import Refusal
from common.run_directory import read_json, write_json

ENDINGS = (".bin", ".ds", ".npz")
BLOCK = 1 << 22  # tokens examined at once


def write(directory, name, tokens, ends, *, text_bytes, tokenizer, vocab_size, end_of_text, sources):
    """Write a shard's three files, the JSON last. tokens: unsigned [tokens]; ends: int64 [documents]; text_bytes: of its documents.

    Raises `Refusal` where the disk has too little room.
    """
    import xxhash

    directory = Path(directory)
    data = np.ascontiguousarray(tokens, shard_formats.WIDTHS["uint16" if vocab_size <= 1 << 16 else "uint32"])
    hardware.require_disk(directory, (data.nbytes + 8 * len(ends) + 4096) / 1e9, f"the shard {name}", "OUTPUT")
    boundaries = io.BytesIO()
    np.save(boundaries, np.asarray(ends, dtype="<i8"), allow_pickle=False)
    facts = {
        "format": shard_formats.FORMAT, "dtype": data.dtype.name, "tokens": len(data), "documents": len(ends), "text_bytes": text_bytes,
        "largest_token": int(data.max(initial=0)), "xxh3_128": xxhash.xxh3_128_hexdigest(data), "tokenizer": tokenizer,
        "vocab_size": vocab_size, "end_of_text": end_of_text, "sources": sources,
    }  # fmt: skip
    manifest.write_whole(directory / f"{name}.bin", data)
    manifest.write_whole(directory / f"{name}.docs.npy", boundaries.getvalue())
    manifest.write_whole(directory / f"{name}.json", (json.dumps(facts, ensure_ascii=False) + "\n").encode())


def is_written(directory, name):
    """Whether the shard `name` is there whole, by the sizes of its files."""
    directory = Path(directory)
    try:
        shard_formats.recognise(directory / f"{name}.bin")
    except Refusal:
        return False
    return (directory / f"{name}.json").is_file() and (directory / f"{name}.docs.npy").is_file()


def find(places, max_files=None):
    """[Shard], sorted by path, of files, directories and globs; .npz are unpacked into the cache first, when they are not yet.

    max_files: so many of the files. Raises `Refusal` where there are none, or one is not whole.
    """
    files = files_of(places)[:max_files]
    packed = [path for path in files if path.suffix == ".npz"]
    with ThreadPoolExecutor(16) as threads:  # a network disk answers many questions at once
        found = list(threads.map(shard_formats.recognise, [path for path in files if path.suffix != ".npz"]))
    return found + (find([npz_shards.unpacked(packed)]) if packed else [])


def files_of(places):
    """[Path] of every file with tokens in files, directories and globs, each once; `Refusal` where there are none."""
    try:
        found = {}
        for path in (path for place in places for path in _files(place)):
            found.setdefault(path.resolve(), path)
        return list(found.values())
    except OSError as error:
        raise Refusal(f"{error.filename} cannot be read ({error.strerror}); correct TRAIN_FILES, or the permissions") from None


def _files(place):
    path = Path(place)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in ENDINGS and not file.name.startswith("."))
        if not found:
            raise Refusal(f"TRAIN_FILES names {place}, a directory without shards ({', '.join(ENDINGS)}); write some there with "
                          f"prepare/pretrain_tokens.py --output {place}")  # fmt: skip
        lost = [file for file in path.glob("shard-*.json") if not file.with_suffix(".bin").is_file()]
        if lost:
            raise Refusal(f"{min(lost)} is there, but not its {min(lost).stem}.bin; copy that again, or remove the .json as well and "
                          "write it again with prepare/pretrain_tokens.py")  # fmt: skip
        if list(path.glob("task-*.json")) and not (path / "index.json").is_file():
            raise Refusal(f"{place} is not finished: shards are there, but not its index.json, which prepare/pretrain_tokens.py writes "
                          f"last; start that again, or name what is there as {place}/*.bin")  # fmt: skip
        return found
    found = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(str(place)))
    wrong = [file for file in found if file.suffix not in ENDINGS]
    if wrong:
        raise Refusal(f"TRAIN_FILES names {wrong[0]}, which is no file of tokens ({', '.join(ENDINGS)}); text becomes tokens with "
                      "prepare/pretrain_tokens.py")  # fmt: skip
    if not found:
        raise Refusal(f"TRAIN_FILES names {place}, and there is no such file or directory; python prepare/pretrain_tokens.py writes "
                      "data/tokens/, --download brings shards that exist")  # fmt: skip
    return found


def examine(shards):
    """{path: {"xxh3_128", "largest_token"}} after every file was read whole: once, for as long as its size and time stay.

    Raises `Refusal` for one of our own that is not as it was written.
    """
    from filelock import FileLock

    remembered = cache.root() / "examined"
    remembered.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{remembered}.lock"), ThreadPoolExecutor(hardware.cpu_cores()) as threads:  # the ranks of a machine: one reads
        found = dict(zip([shard.path for shard in shards], threads.map(_examined, shards), strict=True))
    for shard in shards:
        if shard.xxh3_128 and found[shard.path]["xxh3_128"] != shard.xxh3_128:
            raise Refusal(f"{shard.path} is not as it was written (its checksum is not that of its .json); copy it again, or remove it "
                          "with its .json and write it again with prepare/pretrain_tokens.py")  # fmt: skip
    return found


def _examined(shard):
    import xxhash

    state, place = shard.path.stat(), str(shard.path.resolve())
    stamp = [place, state.st_size, state.st_mtime_ns, shard.dtype.name, shard.offset]
    remembered = cache.root() / "examined" / f"{hashlib.sha256(place.encode()).hexdigest()[:24]}.json"
    try:
        known = read_json(remembered, {})
    except Refusal:
        known = {}
    if isinstance(known, dict) and known.get("stamp") == stamp:
        return known["facts"]
    digest, largest = xxhash.xxh3_128(), 0
    try:
        tokens = shard.array()
        for start in range(0, len(tokens), BLOCK):
            block = tokens[start : start + BLOCK]
            digest.update(block)
            largest = max(largest, int(block.max()))
    except (OSError, ValueError) as error:  # ValueError: shorter than it was a moment ago
        raise Refusal(f"{shard.path} cannot be read ({error}); correct TRAIN_FILES, or the file's permissions") from None
    facts = {"xxh3_128": digest.hexdigest(), "largest_token": largest}
    write_json(remembered, {"stamp": stamp, "facts": facts})
    return facts

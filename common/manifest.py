"""manifest.json: what makes a directory whole. It names every file with size and checksum, and is written last.

    {"format": 1, "files": {"adapter_model.safetensors": {"size": 9874, "crc32c": "yZRlqg=="}}, "step": 96, …, "crc32c": "…"}

The checksum is CRC32C (RFC 3720, section 12.1), big-endian, in base64: what object stores report of their objects, so that
one figure follows a file from the process that wrote it to the store and back. The last key is that of the manifest itself.
"""

import base64
import errno
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from common.refusal import Refusal

NAME = "manifest.json"
FORMAT = 1
BLOCK = 1 << 22  # bytes read at a time


class Crc32c:
    """A running CRC32C: `update(bytes)`, then `text()`."""

    def __init__(self):
        import google_crc32c

        self._extend, self._value = google_crc32c.extend, 0

    def update(self, data):
        self._value = self._extend(self._value, data)

    def text(self):
        """base64 of the four bytes, big-endian: "AAAAAA==" for nothing."""
        return base64.b64encode(self._value.to_bytes(4, "big")).decode()


def crc32c(path):
    """The checksum of the file `path`, in base64. The interpreter is free for other threads meanwhile."""
    found = Crc32c()
    with open(path, "rb") as content:
        while block := content.read(BLOCK):
            found.update(block)
    return found.text()


def describe(path):
    """{"size": bytes, "crc32c": base64} of the file `path`, after it was forced to disk."""
    with open(path, "rb") as content:
        os.fsync(content.fileno())
    return {"size": os.path.getsize(path), "crc32c": crc32c(path)}


def files_in(directory):
    """The names of all files below `directory`, relative, with /; but not the manifest and temporary files."""
    directory = Path(directory)
    found = (p for p in sorted(directory.rglob("*")) if p.is_file() and not p.is_symlink())
    names = (p.relative_to(directory).as_posix() for p in found)
    return [name for name in names if name != NAME and not PurePosixPath(name).name.startswith(f".{NAME}")]


def write(directory, files, **facts):
    """Write the manifest of `directory`: flushed to disk, then renamed, so that it is there whole or not at all.

    files: {relative name: {"size", "crc32c"}}, as `describe` gives; facts: whatever else belongs to it, as JSON.
    """
    directory = Path(directory)
    for parent in {directory.parent, directory, *((directory / name).parent for name in files)}:
        sync_directory(parent)
    write_whole(directory / NAME, _text({"format": FORMAT, "written": int(time.time()), **facts, "files": files}))


def write_whole(path, data):
    """Write the bytes `data` to `path` so that, whatever happens, the old file is there or the new one; flushed to disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk has no room for half a file
        raise
    sync_directory(path.parent)


def sync_directory(path):
    """Force the names in `path` to disk: a file is safe only when its directory is. Some network disks cannot, and do without."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def exists(directory):
    """True where `directory` has a manifest, whatever it says."""
    return (Path(directory) / NAME).is_file()


def read(directory):
    """The manifest of `directory`; `Refusal` where there is none or it is not as it was written."""
    path = Path(directory) / NAME
    try:
        return parse(path.read_bytes(), path)
    except FileNotFoundError:
        raise Refusal(f"{directory} has no {NAME}, which is written last: its save was interrupted; take another checkpoint") from None


def parse(data, source):
    """The manifest in the bytes `data`, `Refusal` naming `source` where they are not those that were written."""
    try:
        found = json.loads(data)
        if found["format"] == FORMAT and _text({k: v for k, v in found.items() if k != "crc32c"}) == data:
            for name in found["files"]:
                check_name(name, source)
            return found
        wrong = f"is of format {found['format']}" if found["format"] != FORMAT else "does not have its own checksum"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        wrong = "cannot be read"
    raise Refusal(f"{source} {wrong}: it was changed or damaged after it was written; take another checkpoint")


def check_name(name, source):
    """Refuse a file name that would lead out of its directory."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name:
        raise Refusal(f"{source} names the file {name!r}, which is not inside its directory; it was not written by this repository")


def verify(directory, threads=4):
    """What is wrong with `directory`, in sentences; empty when every file has the size and checksum of the manifest."""
    directory = Path(directory)
    try:
        files = read(directory)["files"]
    except Refusal as refusal:
        return [str(refusal)]
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda name: _wrong(directory / name, files[name]), files)
        return [f"{name} {problem}" for name, problem in zip(files, found, strict=True) if problem]


def _wrong(path, expected):
    try:
        size = os.path.getsize(path)
        if size != expected["size"]:
            return f"has {size:,} bytes of {expected['size']:,}"
        return "" if crc32c(path) == expected["crc32c"] else "has another checksum than when it was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _text(content):
    checksum = Crc32c()
    checksum.update(json.dumps(content, sort_keys=True).encode())
    return (json.dumps({**content, "crc32c": checksum.text()}, indent=1, ensure_ascii=False) + "\n").encode()

"""Files of raw text and where they lie: paths, directories, globs, and addresses, which are read through fsspec.

    for source in text_sources.find(["data/fineweb", "gs://bucket/notes.jsonl.gz"]):
        with text_sources.opened(source) as file: ...                      # binary, decompressed

gs:// and s3:// are reached as buckets.py says: with credentials, or without any where a bucket is public, and with patience. file://, http(s)://
and hf:// are what fsspec makes of them.
"""

import io
import os
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from common import buckets
from common.refusal import Refusal

COMPRESSED = (".gz", ".bz2", ".xz")
GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Source:
    """A file of raw text. name: path or address; size in bytes as stored; stamp: changes when the file does."""

    name: str
    size: int
    stamp: str

    @property
    def shown(self):
        """The name without what may be secret: keys before an @, and what stands after the ? of an address (signatures, tokens)."""
        return _shown(self.name)

    def facts(self):
        """Which file it is, as it may be written down."""
        return {"name": self.shown, "size": self.size, "stamp": self.stamp}

    @property
    def suffix(self):
        """What kind of file it is, without the compression: ".jsonl"."""
        parts = Path(self.name.partition("?")[0].lower())
        return Path(parts.stem).suffix if parts.suffix in COMPRESSED else parts.suffix

    @property
    def compression(self):
        """ "gz", "bz2", "xz" or None."""
        suffix = Path(self.name.partition("?")[0].lower()).suffix
        return suffix[1:] if suffix in COMPRESSED else None


def find(paths, max_files=None):
    """The `Source`s of files, directories (all below them but hidden files), globs and addresses, sorted by name, the first `max_files`.

    `Refusal` for what is not there, cannot be reached or listed, and where there is nothing at all.
    """
    if not paths:
        raise Refusal("SOURCES is empty; name files, directories or addresses of text: --sources data/fineweb,gs://bucket/notes.jsonl")
    found = {source.name: source for path in paths for source in (_remote(path) if "://" in str(path) else _local(Path(path)))}
    sources = [found[name] for name in sorted(found)]
    if not sources:
        raise Refusal(f"there are no files in {', '.join(map(str, paths))}; correct SOURCES")
    return sources[:max_files]


def opened(source):
    """`source` as a binary file, decompressed."""
    if "://" not in source.name:
        file = open(source.name, "rb", buffering=1 << 20)  # noqa: SIM115 - closed by whoever reads it
    else:
        fs, path = _connected(source.name)
        file = fs.open(path, "rb")
        if source.suffix != ".parquet":
            file = io.BufferedReader(file, 1 << 20)
    if source.compression is None:
        return file
    import bz2
    import gzip
    import lzma

    return io.BufferedReader({"gz": gzip, "bz2": bz2, "xz": lzma}[source.compression].open(file), 1 << 20)


def refusal(name, error):
    """The `Refusal` for what cannot be read, in words that no server said; `error` itself where it is no fault of a file or an address."""
    import asyncio
    import lzma
    import zlib

    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and (getattr(cause, "status", 404) != 404 or "Connect" in type(cause).__name__):
        error = cause  # fsspec's HTTP takes every failure for a file that is not there
    words = str(error).replace(name, "…")
    name, kind = _shown(name), type(error).__name__
    remote = "://" in name and not name.startswith("file://")
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(error, FileNotFoundError):
        why = "is not there; correct SOURCES"
    elif isinstance(error, (EOFError, zlib.error, lzma.LZMAError)) or kind == "BadGzipFile" or "Invalid data stream" in words:
        why = f"is cut short or damaged ({kind}); bring it here once more"
    elif kind.startswith("Arrow"):
        why = "is no parquet file, or cut short or damaged; bring it here once more"
    elif "://" in name and isinstance(error, (ValueError, ImportError)):
        why = "is an address of a kind that is not known here or needs another package; gs://, s3://, http(s)://, hf:// and file:// are"
    elif kind in ("NoCredentialsError", "PermissionError") or (remote and status in (401, 403)):
        why = "may not be read by this account; look at the credentials (GOOGLE_APPLICATION_CREDENTIALS, AWS_PROFILE) and permissions"
    elif "Client" in kind or "Http" in kind or (remote and isinstance(error, (OSError, asyncio.TimeoutError))):
        why = f"cannot be reached ({kind}); check the address and this machine's network"
    elif isinstance(error, OSError):
        why = f"cannot be read ({error.strerror or kind}); mend that, or leave it out of SOURCES"
    else:
        return error
    return Refusal(f"{name} {why}")


def _shown(name):
    return buckets.masked(name.partition("?")[0] if "://" in name else name)


# finding


def _local(path):
    pattern = str(path)
    if GLOB.search(pattern) and not path.exists():
        import glob

        files = sorted(Path(file) for file in glob.glob(pattern, recursive=True))
        if not files:
            raise Refusal(f"no file is called {pattern}; correct SOURCES")
        return chain.from_iterable(_local(file) for file in files)
    if path.is_dir():
        files = [Path(top, name) for top, directories, names in os.walk(path, followlinks=True) for name in names
                 if not name.startswith(".") and not _hides(directories)]  # fmt: skip
        return [_stat(file) for file in sorted(files) if file.is_file()]
    return [_stat(path)]


def _hides(directories):
    """Leaves hidden directories out of a walk; False."""
    directories[:] = sorted(name for name in directories if not name.startswith("."))
    return False


def _stat(path):
    try:
        facts = path.stat()
    except OSError as error:
        raise refusal(str(path), error) from None
    return Source(str(path), facts.st_size, f"mtime {facts.st_mtime_ns}")


def _remote(address):
    address = str(address)
    fs, path = _connected(address)
    try:
        if GLOB.search(path) and not address.startswith("http"):
            files = [facts for facts in fs.glob(path, detail=True).values() if facts["type"] == "file"]
        elif address.startswith("http") or fs.isfile(path):
            files = [{**fs.info(path), "name": path, "type": "file"}]
        else:
            files = [facts for facts in fs.find(path, detail=True).values() if not facts["name"].endswith("/")]
            if not files:
                raise FileNotFoundError(address)
    except Refusal:
        raise
    except Exception as error:
        raise refusal(address, error) from None
    return [Source(_address(address, facts["name"]), facts.get("size") or 0, _stamp(facts)) for facts in files]


def _stamp(facts):
    """What a store says of an object that changes when the object does."""
    keys = ("crc32c", "etag", "ETag", "md5Hash", "generation", "blob_id", "updated", "LastModified", "mtime")
    return next((f"{key} {facts[key]}" for key in keys if facts.get(key)), "")


def _address(address, path):
    scheme = address.partition("://")[0]
    return address if scheme.startswith("http") else f"{scheme}://{path}"


def _connected(address):
    """(file system, path in it) of an address."""
    scheme, _, path = address.partition("://")
    if scheme in ("gs", "s3"):
        buckets.parse(GLOB.split(address)[0].rstrip("/"))
        return buckets.connect(scheme, buckets.PATIENT), path.rstrip("/")
    try:
        if scheme.startswith("http"):
            import aiohttp
            import fsspec

            limits = aiohttp.ClientTimeout(total=None, sock_connect=buckets.PATIENT.connect, sock_read=buckets.PATIENT.stall)
            return fsspec.filesystem(scheme, client_kwargs={"timeout": limits}), address
        from fsspec.core import url_to_fs

        return url_to_fs(address)
    except Exception as error:
        raise refusal(address, error) from None


def is_same(source):
    """False where a file on this machine's disks is not as it was found."""
    return "://" in source.name or _stat(Path(source.name)) == source

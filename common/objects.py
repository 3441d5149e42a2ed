"""Objects of a store, one at a time: none counts as stored before the store itself reports its size and checksum."""

import os
import threading
from contextlib import suppress

from common import buckets, manifest
from common.buckets import Damaged, StorageError

MOST_PARTS = 9_000  # of one object; S3 takes 10,000


class Objects:
    """Objects below one prefix. Keys are relative to it, with /. Its methods may be called from several threads."""

    def __init__(self, uri, scheme, root, patience, part):
        self._uri, self._scheme, self._root = uri.rstrip("/"), scheme, root
        self._patience, self._part = patience, part
        self._lock, self._opened = threading.Lock(), (None, None)

    def uri(self, key=""):
        """The address of `key`, for messages."""
        return f"{self._uri}/{key}" if key else self._uri

    def names(self, key=""):
        """The names directly below `key`, sorted: of objects and of what would be directories. Empty where there are none."""
        path = self._path(key)

        def listed():
            try:
                return self._fs.ls(path, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []

        found = (p.rstrip("/") for p in self._persist(f"{self.uri(key)} could not be listed", listed))
        return sorted(p[len(path) + 1 :] for p in found if p.startswith(f"{path}/"))

    def read(self, key):
        """The bytes of the object `key`, compared with the store's checksum; None where there is no such object."""

        def fetched():
            try:
                data = self._fs.cat_file(self._path(key))
            except FileNotFoundError:
                return None
            if not self._holds(key, facts_of(data)):
                raise Damaged("it changed on the way")
            return data

        return self._persist(f"{self.uri(key)} could not be read", fetched)

    def upload_bytes(self, data, key):
        """Store the bytes `data` as `key` and verify them there. Raises StorageError when the retries are used up."""
        expected = facts_of(data)
        what = f"{self.uri(key)} could not be written"
        self._persist(what, lambda: self._holds(key, expected) or self._send([data], key, expected, what), len(data))

    def claim(self, data, key):
        """True where the object `key` is `data` now; False where there was another one first, which stays. Raises StorageError."""

        def created():
            try:
                buckets.create(self._fs, self._scheme, self._path(key), data)
            except Exception:
                if not self._fs.exists(self._path(key)):  # what is there decides, not how each library says so
                    raise

        if self.read(key) is None:
            self._persist(f"{self.uri(key)} could not be written", created, len(data))
        return self.read(key) == data

    def upload(self, path, key, expected=None):
        """Store the file `path` as `key`, in parts if large, and verify it there; what is there already is not sent again.

        expected: {"size", "crc32c"} of the manifest, else those of the file now. Raises StorageError when the file is not (or no
        longer) what is expected, or when the retries are used up.
        """
        what = f"{path} could not be stored as {self.uri(key)}"
        try:
            expected = expected or {"size": os.path.getsize(path), "crc32c": manifest.crc32c(path)}
            open(path, "rb").close()
        except OSError as error:
            raise StorageError(f"{what}: it cannot be read ({error.strerror})") from None
        self._persist(what, lambda: self._holds(key, expected) or self._send(self._blocks(path), key, expected, what), expected["size"])

    def download(self, key, target, expected, moved=lambda count: None):
        """Bring the object `key` to the file `target` (a Path), which is there only when it is as expected: {"size", "crc32c"}.

        A part that an earlier call left beside it is gone on with. moved: called with the bytes that came. Raises StorageError.
        """
        what, partial = f"{self.uri(key)} could not be brought to {target}", part_of(target)

        def fetched():
            target.parent.mkdir(parents=True, exist_ok=True)
            if size_up_to(partial, expected["size"]) == 0:
                partial.unlink(missing_ok=True)  # there is none, or it is longer than the file
            with partial.open("ab") as out:
                for start in range(out.tell(), expected["size"], self._part):
                    end = min(start + self._part, expected["size"])
                    data = self._fs.cat_file(self._path(key), start=start, end=end)
                    if len(data) != end - start:
                        raise Damaged("less came than was asked for")
                    out.write(data)
                    moved(len(data))
                out.flush()
                os.fsync(out.fileno())
            if not is_whole(partial, expected):
                partial.unlink()
                raise Damaged("what came has another checksum")
            os.replace(partial, target)

        self._persist(what, fetched, expected["size"])

    def delete(self, key):
        """Remove the object `key`, where there is one. Raises StorageError."""

        def deleted():
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._path(key))

        self._persist(f"{self.uri(key)} could not be deleted", deleted)

    @property
    def _fs(self):
        with self._lock:
            if self._opened[0] != os.getpid():  # a forked child has none of its parent's threads
                self._opened = os.getpid(), buckets.connect(self._scheme, self._patience)
            return self._opened[1]

    def _path(self, key=""):
        return f"{self._root}/{key}".rstrip("/")

    def _persist(self, what, operation, size=0):
        return buckets.persist(what, operation, self._patience, size)

    def _describe(self, key):
        """{"size", "crc32c"} of the object `key` as the store has it; where it reports no checksum the object is read back."""
        size, crc32c = buckets.stat(self._fs, self._scheme, self._path(key))
        return {"size": size, "crc32c": crc32c or self._hashed(key, size)}

    def _hashed(self, key, size):
        found = manifest.Crc32c()
        for start in range(0, size, self._part):
            found.update(self._fs.cat_file(self._path(key), start=start, end=min(start + self._part, size)))
        return found.text()

    def _holds(self, key, expected):
        """True where the store has `key` with the size and checksum expected."""
        try:
            size, crc32c = buckets.stat(self._fs, self._scheme, self._path(key))
            return size == expected["size"] and (crc32c or self._hashed(key, size)) == expected["crc32c"]
        except FileNotFoundError:
            return False

    def _blocks(self, path):
        with open(path, "rb") as content:
            while block := content.read(self._part):
                yield block

    def _send(self, blocks, key, expected, what):
        """Write `blocks` as `key` and ask the store what it has then."""
        self._write(blocks, key, expected, what)
        if not self._holds(key, expected):
            raise Damaged("what arrived has another size or checksum")

    def _write(self, blocks, key, expected, what):
        """Write `blocks` as `key`; where they turn out to be others than expected, nothing is stored."""
        part = max(self._part, -(-expected["size"] // MOST_PARTS // 2**18) * 2**18)
        size, found = 0, manifest.Crc32c()
        with buckets.writing(self._fs, self._scheme, self._path(key), part) as out:
            for block in blocks:
                size += len(block)
                found.update(block)
                out.write(block)
            if (size, found.text()) != (expected["size"], expected["crc32c"]):
                raise StorageError(f"{what}: it is not what its manifest says any more; it was changed or damaged after it was written")


def facts_of(data):
    """{"size", "crc32c"} of the bytes `data`."""
    found = manifest.Crc32c()
    found.update(data)
    return {"size": len(data), "crc32c": found.text()}


def part_of(target):
    """Where what has come of the file `target` stands until it is whole."""
    return target.with_name(f"{target.name}.part")


def size_up_to(path, most):
    """Bytes of the file `path`; 0 where there is none or it has more than `most`."""
    size = path.stat().st_size if path.is_file() else 0
    return size if size <= most else 0


def is_whole(path, expected):
    """True where the file `path` has the size and checksum expected."""
    return path.is_file() and path.stat().st_size == expected["size"] and manifest.crc32c(path) == expected["crc32c"]

"""An object store, gs://, s3:// or file://, in which nothing counts before the store itself reports its size and checksum.

    store = storage.open_store("gs://bucket/prefix")
    store.check()                                             # before a training that will need it
    store.upload_directory("outputs/run/checkpoint-96", "run/checkpoint-96")
    store.download_directory("run/checkpoint-96", "outputs/run/checkpoint-96")

Credentials are found as the provider's own tools find them (GOOGLE_APPLICATION_CREDENTIALS, the machine's account, AWS_PROFILE, …);
STORAGE_EMULATOR_HOST and AWS_ENDPOINT_URL lead to another server. How a server is reached and how long it is waited for: buckets.py.
"""

import json
import os
import queue
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from common import buckets, hardware, log, manifest
from common.buckets import CHECKING, PATIENT, Damaged, StorageError
from common.refusal import Refusal

PART = 16 << 20  # bytes that one request moves; GCS wants a multiple of 256 KiB
MOST_PARTS = 9_000  # of one object; S3 takes 10,000
FILES_AT_ONCE = 4  # of one directory; memory: three parts for each
CHECK_SECONDS = 30  # within which a store must answer before a training starts
SAY_SECONDS = 30  # between two lines about a download where there is no terminal for a bar


def open_store(uri, patience=PATIENT, part=PART):
    """The `Store` at `uri`; nothing is asked of it yet. `Refusal` for another scheme, no bucket, or a package that is not installed.

    patience: how long it is waited for, a `buckets.Patience`; part: bytes that one request moves, a multiple of 2**18.
    """
    return Store(uri, *buckets.parse(uri), patience, part)


class Store:
    """Objects below one prefix. Keys are relative to it, with /. Its methods may be called from several threads."""

    def __init__(self, uri, scheme, root, patience, part):
        self._uri, self._scheme, self._root = uri.rstrip("/"), scheme, root
        self._patience, self._part = patience, part
        self._lock, self._opened = threading.Lock(), (None, None)

    def uri(self, key=""):
        """The address of `key`, for messages."""
        return f"{self._uri}/{key}" if key else self._uri

    def check(self):
        """Write, read, list and delete a small object; `Refusal` in one sentence where that fails or takes over CHECK_SECONDS."""
        self._answers_in_time(self._probe)

    def check_readable(self):
        """The same for a store that is only read: list it."""
        self._answers_in_time(lambda quick: quick._try("list", lambda: quick._fs.ls(quick._path())))

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
            if not self._holds(key, _facts(data)):
                raise Damaged("it changed on the way")
            return data

        return self._persist(f"{self.uri(key)} could not be read", fetched)

    def upload_bytes(self, data, key):
        """Store the bytes `data` as `key` and verify them there. Raises StorageError when the retries are used up."""
        expected = _facts(data)
        what = f"{self.uri(key)} could not be written"
        self._persist(what, lambda: self._holds(key, expected) or self._send([data], key, expected, what), len(data))

    def upload(self, path, key, expected=None):
        """Store the file `path` as `key`, in parts if large, and verify it there; what is there already is not sent again.

        expected: {"size", "crc32c"} of the manifest, else those of the file now. Raises StorageError when the file is not (or no
        longer) what is expected, or when the retries are used up.
        """
        what = f"{path} could not be stored as {self.uri(key)}"
        with _reading(path, what):
            expected = expected or {"size": os.path.getsize(path), "crc32c": manifest.crc32c(path)}
            self._persist(what, lambda: self._holds(key, expected) or self._send(self._blocks(path), key, expected, what), expected["size"])

    def upload_directory(self, directory, key):
        """Store what the manifest of `directory` names below `key`, several files at once, and the manifest when all are verified.

        Raises StorageError or Refusal; then there is no manifest in the store, or that of the same files.
        """
        directory = Path(directory)
        files = manifest.read(directory)["files"]
        text = (directory / manifest.NAME).read_bytes()
        if self.read(f"{key}/{manifest.NAME}") not in (None, text):  # of another directory of this name, whose files change now
            self._delete(f"{key}/{manifest.NAME}")
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            sent = [pool.submit(self.upload, directory / name, f"{key}/{name}", files[name]) for name in files]
            try:
                for one in sent:
                    one.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self.upload_bytes(text, f"{key}/{manifest.NAME}")

    def download_directory(self, key, directory, progress=None):
        """Bring what the manifest below `key` names into `directory`, verified, its manifest last; returns the manifest.

        Whole files that are there stay, parts of files are gone on with. progress: called with the bytes that came, of all files.
        `Refusal` where there is no manifest, it names files outside, or the disk is too small; StorageError for the rest.
        """
        text = self.read(f"{key}/{manifest.NAME}")
        if text is None:
            raise Refusal(f"{self.uri(key)} has no {manifest.NAME}, which is written last: its upload was not finished; take another one")
        found = manifest.parse(text, self.uri(f"{key}/{manifest.NAME}"))
        self._fetch(key, directory, found["files"], progress)
        manifest.write_whole(Path(directory) / manifest.NAME, text)
        return found

    def download_files(self, key, directory, max_files=None, progress=None):
        """Bring the first `max_files` (None: all) objects below `key`, by name, that no manifest of ours describes; returns one.

        They are compared with the size and checksum that the store reports, and written down in a manifest.json of `directory`.
        """
        path, what = self._path(key), f"{self.uri(key)} could not be listed"
        names = [p[len(path) + 1 :] for p in sorted(self._persist(what, lambda: self._fs.find(path))) if p.startswith(f"{path}/")]
        names = [name for name in names if not name.endswith("/") and name != manifest.NAME][:max_files]
        if not names:
            raise Refusal(f"there is nothing below {self.uri(key)}; correct the address")
        for name in names:
            manifest.check_name(name, self.uri(key))
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            facts = pool.map(lambda n: self._persist(what, lambda: self._describe(f"{key}/{n}".lstrip("/"))), names)
            files = dict(zip(names, facts, strict=True))
        self._fetch(key, directory, files, progress)
        manifest.write(directory, files, source=self.uri(key))
        return manifest.read(directory)

    # objects

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

    def _delete(self, key):
        def deleted():
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._path(key))

        self._persist(f"{self.uri(key)} could not be deleted", deleted)

    def _blocks(self, path):
        with open(path, "rb") as content:
            while block := content.read(self._part):
                yield block

    def _send(self, blocks, key, expected, what):
        """Write `blocks` as `key`, unless they turn out to be others than expected, and ask the store what it has then."""
        part = max(self._part, -(-expected["size"] // MOST_PARTS // 2**18) * 2**18)
        size, found = 0, manifest.Crc32c()
        with buckets.writing(self._fs, self._scheme, self._path(key), part) as out:
            for block in blocks:
                size += len(block)
                found.update(block)
                out.write(block)
            if {"size": size, "crc32c": found.text()} != {name: expected[name] for name in ("size", "crc32c")}:
                raise StorageError(f"{what}: it is not what its manifest says any more; it was changed or damaged after it was written")
        if not self._holds(key, expected):
            raise Damaged("what arrived has another size or checksum")

    # directories

    def _fetch(self, key, directory, files, progress):
        """Bring `files` ({name: {"size", "crc32c"}}) from below `key` into `directory`, several at once, each verified."""
        directory = Path(directory)
        missing = {name: facts for name, facts in files.items() if not _is_whole(directory / name, facts)}
        left = sum(facts["size"] - _size(_partial(directory / name), facts["size"]) for name, facts in missing.items())
        hardware.require_disk(directory, left / 1e9, f"the download of {self.uri(key)}")
        with _progress(f"downloading {self.uri(key)}", left, progress) as moved, ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            came = [pool.submit(self._download, f"{key}/{name}".lstrip("/"), directory / name, facts, moved) for name, facts in missing.items()]
            try:
                for one in came:
                    one.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for parent in {directory, *((directory / name).parent for name in files)}:
            manifest.sync_directory(parent)

    def _download(self, key, target, expected, moved):
        what, partial = f"{self.uri(key)} could not be brought to {target}", _partial(target)

        def fetched():
            target.parent.mkdir(parents=True, exist_ok=True)
            if _size(partial, expected["size"]) == 0:
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
            if not _is_whole(partial, expected):
                partial.unlink()
                raise Damaged("what came has another checksum")
            os.replace(partial, target)

        self._persist(what, fetched, expected["size"])

    # checks before there is something to lose

    def _answers_in_time(self, question):
        """Ask in a thread that nobody waits for, since a name server or a metadata server may hang in ways no timeout covers."""
        quick, said = Store(self._uri, self._scheme, self._root, CHECKING, self._part), queue.Queue()

        def ask():
            try:
                said.put(question(quick))
            except BaseException as error:
                said.put(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer = said.get(timeout=CHECK_SECONDS)
        except queue.Empty:
            raise Refusal(f"{self._uri} did not answer within {CHECK_SECONDS} s; check the network of this machine and the address") from None
        if isinstance(answer, BaseException):
            raise answer from None

    def _try(self, verb, operation):
        try:
            return buckets.persist("", operation, self._patience, sentence=lambda error: buckets.refusal(self._uri, self._scheme, verb, error))
        except StorageError as error:
            raise Refusal(str(error)) from None

    def _probe(self, quick):
        key, data = f".probe-{uuid.uuid4().hex}", json.dumps({"probe": time.time()}).encode()
        quick._try("write", lambda: quick._send([data], key, _facts(data), "the probe"))
        came = quick._try("read", lambda: quick._fs.cat_file(quick._path(key)))
        quick._try("delete", lambda: quick._fs.rm_file(quick._path(key)))
        if came != data:
            raise Refusal(f"{self._uri} gave back something else than was written to it; it cannot be trusted with checkpoints")

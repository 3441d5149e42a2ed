"""An object store, gs://, s3:// or file://, in which nothing counts before the store itself reports its size and checksum.

    store = storage.open_store("gs://bucket/prefix")
    store.check()                                             # before a training that will need it
    store.upload_directory("outputs/run/checkpoint-96", "run/checkpoint-96")
    store.download_directory("run/checkpoint-96", "outputs/run/checkpoint-96")

Credentials are found as the provider's own tools find them (GOOGLE_APPLICATION_CREDENTIALS, the machine's account, AWS_PROFILE, …);
STORAGE_EMULATOR_HOST and AWS_ENDPOINT_URL lead to another server. How a server is reached and how long it is waited for: buckets.py.
"""

import json
import queue
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from common import buckets, hardware, log, manifest
from common.buckets import CHECKING, PATIENT, StorageError
from common.objects import Objects, facts_of, is_whole, part_of, size_up_to
from common.refusal import Refusal

PART = 16 << 20  # bytes that one request moves; GCS wants a multiple of 256 KiB
FILES_AT_ONCE = 4  # of one directory; memory: three parts for each
CHECK_SECONDS = 30  # within which a store must answer before a training starts
SAY_SECONDS = 30  # between two lines about a download where there is no terminal for a bar


def open_store(uri, patience=PATIENT, part=PART):
    """The `Store` at `uri`; nothing is asked of it yet. `Refusal` for another scheme, no bucket, or a package that is not installed.

    patience: how long it is waited for, a `buckets.Patience`; part: bytes that one request moves, a multiple of 2**18.
    """
    return Store(uri, *buckets.parse(uri), patience, part)


class Store(Objects):
    """Objects below one prefix, and whole directories of them. Keys are relative to it, with /."""

    def check(self):
        """Write, read, list and delete a small object; `Refusal` in one sentence where that fails or takes over CHECK_SECONDS."""
        self._answers_in_time(self._probe)

    def check_readable(self):
        """The same for a store that is only read: list it."""
        self._answers_in_time(lambda quick: quick._try("list", quick._list))

    def upload_directory(self, directory, key):
        """Store what the manifest of `directory` names below `key`, several files at once, and the manifest when all are verified.

        Raises StorageError or Refusal; then there is no manifest in the store, or that of the same files.
        """
        directory = Path(directory)
        files = manifest.read(directory)["files"]
        text = (directory / manifest.NAME).read_bytes()
        seal = _join(key, manifest.NAME)
        if self.read(seal) not in (None, text):  # of another directory of this name, whose files change now
            self.delete(seal)
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            _finish([pool.submit(self.upload, directory / name, _join(key, name), files[name]) for name in files])
        if (directory / manifest.NAME).read_bytes() != text:
            raise StorageError(f"{directory} was written anew while it was stored as {self.uri(key)}; it will have to be stored again")
        self.upload_bytes(text, seal)

    def download_directory(self, key, directory, progress=None):
        """Bring what the manifest below `key` names into `directory`, verified, its manifest last; returns the manifest.

        Whole files that are there stay, parts of files are gone on with. progress: called with the bytes that came, of all files.
        `Refusal` where there is no manifest, it names files outside, or the disk is too small; StorageError for the rest.
        """
        text = self.read(_join(key, manifest.NAME))
        if text is None:
            raise Refusal(f"{self.uri(key)} has no {manifest.NAME}: it is not there, or its upload was not finished; take another one")
        found = manifest.parse(text, self.uri(_join(key, manifest.NAME)))
        self._fetch(key, directory, found["files"], progress)
        manifest.write_whole(Path(directory) / manifest.NAME, text)
        return found

    def download_files(self, key, directory, max_files=None, progress=None, choose=None, setting="OUTPUT_DIR"):
        """Bring the first `max_files` (None: all) objects below `key`, by name, that no manifest of ours describes; returns one.

        choose: names -> those wanted, before they are counted. They are compared with the size and checksum that the store reports, and
        written down in a manifest.json of `directory`.
        """
        path, what = self._path(key), f"{self.uri(key)} could not be listed"
        names = [p[len(path) + 1 :] for p in sorted(self._persist(what, lambda: self._fs.find(path))) if p.startswith(f"{path}/")]
        names = [name for name in names if not name.endswith("/") and name != manifest.NAME]
        names = (choose(names) if choose and names else names)[:max_files]
        if not names:
            raise Refusal(f"there is nothing below {self.uri(key)}; correct the address")
        for name in names:
            manifest.check_name(name, self.uri(key))
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            facts = pool.map(lambda n: self._persist(what, lambda: self._describe(_join(key, n))), names)
            files = dict(zip(names, facts, strict=True))
        self._fetch(key, directory, files, progress, setting)
        manifest.write(directory, files, source=self.uri(key))
        return manifest.read(directory)

    # directories

    def _fetch(self, key, directory, files, progress, setting="OUTPUT_DIR"):
        """Bring `files` ({name: {"size", "crc32c"}}) from below `key` into `directory`, several at once, each verified."""
        directory = Path(directory)
        missing = {name: facts for name, facts in files.items() if not is_whole(directory / name, facts)}
        left = sum(facts["size"] - size_up_to(part_of(directory / name), facts["size"]) for name, facts in missing.items())
        hardware.require_disk(directory, left / 1e9, f"the download of {self.uri(key)}", setting)
        stopped = threading.Event()
        with _progress(f"downloading {self.uri(key)}", left, progress) as moved, ThreadPoolExecutor(FILES_AT_ONCE) as pool:

            def came(count):
                if stopped.is_set():  # another file failed, or Ctrl-C
                    raise StorageError(f"the download of {self.uri(key)} was stopped")
                moved(count)

            _finish([pool.submit(self.download, _join(key, name), directory / name, missing[name], came) for name in missing], stopped)
        for parent in {directory, *((directory / name).parent for name in files)}:
            manifest.sync_directory(parent)

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
            raise Refusal(f"{self._uri} did not answer within {CHECK_SECONDS} s; check this machine's network and the address") from None
        if isinstance(answer, BaseException):
            raise answer from None

    def _try(self, verb, operation):
        def sentence(error):
            return buckets.refusal(self._uri, self._scheme, verb, error)

        return buckets.persist("", operation, self._patience, sentence=sentence)

    def _list(self):
        try:
            self._fs.ls(self._path())
        except FileNotFoundError:
            self._fs.ls(self._root.partition("/")[0] or self._root)  # nothing is there yet, or is there no bucket?

    def _probe(self, quick):
        key, data = f".probe-{uuid.uuid4().hex}", json.dumps({"probe": time.time()}).encode()
        quick._try("write", lambda: quick._write([data], key, facts_of(data), "the probe"))
        came = quick._try("read", lambda: quick._fs.cat_file(quick._path(key)))
        quick._try("list", quick._list)
        quick._try("delete", lambda: quick._fs.rm_file(quick._path(key)))
        if came != data:
            raise Refusal(f"{self._uri} gave back something else than was written to it; it cannot be trusted with checkpoints")


def _join(key, name):
    return f"{key}/{name}" if key else name


def _finish(futures, stopped=None):
    """Wait for all; at the first exception those that did not begin are dropped, `stopped` tells the others, and it is raised."""
    try:
        for future in futures:
            future.result()
    except BaseException:
        if stopped:
            stopped.set()
        for future in futures:
            future.cancel()
        raise


@contextmanager
def _progress(what, total, progress):
    """A function that is told of bytes that came: `progress`, else a bar on a terminal, else a line now and then; rank 0 only."""
    if progress is not None or total == 0:
        yield progress or (lambda count: None)
        return
    from tqdm import tqdm

    lock, came, said = threading.Lock(), 0, time.monotonic()
    with tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=None if log.is_rank_0() else True) as bar:

        def moved(count):
            nonlocal came, said
            with lock:
                came += count
                bar.update(count)
                if bar.disable and time.monotonic() - said > SAY_SECONDS:
                    said = time.monotonic()
                    log.say(f"{what}: {came / 1e9:.1f} of {total / 1e9:.1f} GB")

        yield moved

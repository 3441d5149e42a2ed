"""The object store of the tests behind a line whose speed can be set, which knows what is on its way at a moment."""

import json
import threading
import time
import urllib.parse
import urllib.request

from object_store import BUCKET, ObjectStore

from common import manifest
from common.run_directory import step_of

RUNS = "runs"  # where in the bucket the runs are


class Store(ObjectStore):
    """The object store behind a line whose speed can be set; it knows which bodies are on their way."""

    pace = None  # bytes a second and upload; None: as fast as it goes

    def __enter__(self):
        super().__enter__()
        self._lock, self._coming = threading.Lock(), {}
        self._proxy.RequestHandlerClass = type("Slow", (_Slow, self._proxy.RequestHandlerClass), {"line": self})
        return self

    def coming(self):
        """{number of the request: (name of the object, bytes that came, bytes that will)} of checkpoints' files on their way."""
        with self._lock:
            return {number: tuple(found) for number, found in self._coming.items() if "/checkpoint-" in found[0]}

    def names(self):
        """Of all objects, as the emulator lists them."""
        address = f"http://127.0.0.1:{self._emulator_port}/storage/v1/b/{BUCKET}/o?prefix={RUNS}/"
        with urllib.request.urlopen(address) as answer:
            return [item["name"] for item in json.load(answer).get("items", [])]

    def committed(self, run):
        """[(step, sentences about what is wrong with it)] of the checkpoints of `run` that have a manifest here, read past the proxy."""
        found = []
        for name in self.names():
            directory, _, last = name.rpartition("/")
            if directory.startswith(f"{RUNS}/{run}/checkpoint-") and last == manifest.NAME:
                files = manifest.parse(self.contents(name), name)["files"]
                wrong = [f"{directory}/{file}" for file, facts in files.items() if _facts(self.contents(f"{directory}/{file}")) != facts]
                found.append((step_of(directory), wrong))
        return sorted(found)


class _Slow:
    """Goes before the proxy's handler: reads a body at the pace of `line` and keeps account of it."""

    line, number = None, 0

    def setup(self):
        super().setup()
        self.rfile = _Metered(self.rfile, self)

    def read(self, plainly, length):
        line, name = self.line, urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query).get("name", [""])[0]
        if "upload_id=" not in self.path:
            return plainly(length)
        body, account = b"", [name, 0, length]
        with line._lock:
            _Slow.number += 1
            number = _Slow.number
            line._coming[number] = account
        try:
            while len(body) < length:
                part = plainly(min(8192, length - len(body)))
                if not part:
                    raise ConnectionResetError
                body += part
                account[1] = len(body)
                if line.pace:
                    time.sleep(len(part) / line.pace)
            return body
        finally:
            with line._lock:
                del line._coming[number]


class _Metered:
    def __init__(self, file, handler):
        self._file, self._handler = file, handler

    def read(self, length):
        return self._handler.read(self._file.read, length)

    def __getattr__(self, name):
        return getattr(self._file, name)


def _facts(data):
    if data is None:
        return None
    found = manifest.Crc32c()
    found.update(data)
    return {"size": len(data), "crc32c": found.text()}

"""A real object store on this machine (gcp-storage-emulator) and in front of it a proxy that breaks things by seed.

    with ObjectStore() as store:                       # store.environment leads gcsfs of any process to it
        with store.faults(seed=0, rate=0.3) as faults: # faults.injected counts them by kind
            ...

Which request is broken, and how, depends on the seed and on the request: its method, its object, and how often it came before.
"""

import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "bucket"

# What can go wrong with each kind of request.
UPLOAD = (
    "503 to an upload",
    "reset while a body is sent",
    "body cut short, passed on as whole",
    "byte changed in a body sent",
    "stalled upload",
)
DOWNLOAD = (
    "503 to a download",
    "reset while a body comes",
    "body that comes cut short",
    "byte changed in a body that comes",
    "stalled download",
)
FACTS = ("503 to a question", "wrong checksum reported")
START = ("503 to the start of an upload",)
KINDS = (*UPLOAD, *DOWNLOAD, *FACTS, *START)

# The emulator ends when this process does, even by SIGKILL: its stdin ends then.
EMULATOR = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from gcp_storage_emulator.__main__ import main
main(sys.argv[1:])
"""


class Faults:
    """Which faults are injected now, and what was injected."""

    def __init__(self, seed, rate, kinds, stall):
        self.seed, self.rate, self.kinds, self.stall = seed, rate, kinds, stall
        self.injected, self._seen, self._forced, self._lock = Counter(), Counter(), [], threading.Lock()

    def force(self, kind, part_of_path=""):
        """Inject `kind` into the next request that it fits and whose path holds `part_of_path`."""
        self._forced.append((kind, part_of_path))

    def choose(self, identity, path, fitting):
        """The fault for this request, or None."""
        with self._lock:
            for entry in self._forced:
                if entry[0] in fitting and entry[1] in path:
                    self._forced.remove(entry)
                    return entry[0]
            self._seen[identity] += 1
            draw = random.Random(f"{self.seed} {identity} {self._seen[identity]}")
            fitting = [kind for kind in fitting if kind in self.kinds]
            return draw.choice(fitting) if fitting and draw.random() < self.rate else None

    def count(self, kind):
        with self._lock:
            self.injected[kind] += 1


class ObjectStore:
    """The emulator and the proxy, while the `with` block runs. authorizations: the headers of that name that came."""

    def __enter__(self):
        self._emulator_port = free_port()
        options = ["start", "--host=127.0.0.1", f"--port={self._emulator_port}", "--in-memory", f"--default-bucket={BUCKET}", "--quiet"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._emulator = subprocess.Popen([sys.executable, "-c", EMULATOR, *options], **pipes)
        wait_until(lambda: answers(self._emulator_port), 20)
        self.current, self.authorizations = Faults(0, 0.0, (), 0.0), set()
        handler = type("Handler", (_Handler,), {"store": self, "upstream": self._emulator_port})
        self._proxy = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._proxy.server_port}"
        self.environment = {"STORAGE_EMULATOR_HOST": self.endpoint}
        return self

    def __exit__(self, *_):
        self._proxy.shutdown()
        self._proxy.server_close()
        self._emulator.stdin.close()
        self._emulator.wait(10)

    @contextmanager
    def faults(self, seed=0, rate=0.0, kinds=KINDS, stall=2.0):
        """Break requests in the block. rate: of those that a kind fits; stall: seconds that a stalled one is left waiting."""
        self.current, before = Faults(seed, rate, kinds, stall), self.current
        try:
            yield self.current
        finally:
            self.current = before

    def contents(self, key):
        """The bytes of an object as the store has them, past the proxy; None where there is none."""
        address = f"http://127.0.0.1:{self._emulator_port}/download/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(key, safe='')}"
        try:
            with urllib.request.urlopen(address) as answer:
                return answer.read()
        except urllib.error.HTTPError:
            return None

    def put(self, key, data):
        """Store an object, past the proxy and past any check."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": key})
        address = f"http://127.0.0.1:{self._emulator_port}/upload/storage/v1/b/{BUCKET}/o?{query}"
        headers = {"Content-Type": "application/octet-stream"}
        urllib.request.urlopen(urllib.request.Request(address, data=data, headers=headers, method="POST")).close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):  # broken connections are what this server is for
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store, upstream = None, None

    def log_message(self, *_):
        pass

    def _pass_on(self):
        self.store.authorizations.add(self.headers.get("Authorization"))
        faults, length = self.store.current, int(self.headers.get("Content-Length") or 0)
        address = urllib.parse.urlsplit(self.path)
        query = {k: v for k, v in urllib.parse.parse_qsl(address.query) if k != "upload_id"}
        fitting = self._fitting(address.path, "upload_id=" in address.query)
        identity = (self.command, address.path, tuple(sorted(query.items())), self.headers.get("Content-Range"), self.headers.get("Range"))
        kind = faults.choose(identity, urllib.parse.unquote(self.path), fitting)
        if kind and kind.startswith("stalled"):
            faults.count(kind)
            time.sleep(faults.stall)
            return self._reset()
        if kind == "reset while a body is sent":
            self.rfile.read(length // 2)
            faults.count(kind)
            return self._reset()
        body = self.rfile.read(length) if length else None
        if kind and kind.startswith("503"):
            faults.count(kind)
            return self._answer(503, {}, b"busy")
        if kind == "body cut short, passed on as whole" and body:
            body = self._cut(body)
            faults.count(kind)
        if kind == "byte changed in a body sent" and body:
            body = changed(body, faults.seed)
            faults.count(kind)
        status, headers, answer = self._ask(body)
        if kind == "wrong checksum reported" and status == 200 and b'"crc32c"' in answer:
            facts = json.loads(answer)
            answer = json.dumps({**facts, "crc32c": "AAAAAA==", "md5Hash": "AAAAAAAAAAAAAAAAAAAAAA=="}).encode()
            faults.count(kind)
        if kind in DOWNLOAD and status in (200, 206) and answer:
            faults.count(kind)
            if kind == "reset while a body comes":
                return self._answer(status, headers, answer, sent=len(answer) // 2)
            answer = answer[: len(answer) // 2] if kind == "body that comes cut short" else changed(answer, faults.seed)
        return self._answer(status, headers, answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _pass_on

    def _fitting(self, path, session):
        if self.command in ("POST", "PUT") and path.startswith("/upload/"):
            return UPLOAD if session else START
        if self.command == "GET" and path.startswith("/download/"):
            return DOWNLOAD
        return FACTS if self.command == "GET" and "/o/" in path else ("503 to a question",)

    def _cut(self, body):
        """The first half of `body`, with a Content-Range that calls it all there is, so that the store keeps it."""
        half, sent = body[: len(body) // 2], self.headers.get("Content-Range", "")
        if match := re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", sent):
            end = int(match[1]) + len(half)
            del self.headers["Content-Range"]
            self.headers["Content-Range"] = f"bytes {match[1]}-{end - 1}/{'*' if match[2] == '*' else end}"
        return half

    def _ask(self, body):
        connection = HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("content-length", "connection")}
        connection.request(self.command, self.path, body=body, headers=kept)
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def _answer(self, status, headers, body, sent=None):
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])
        if sent is not None:
            self._reset()

    def _reset(self):
        """End the connection with RST, as a crash or a firewall does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()


def changed(body, seed):
    """`body` with one bit flipped."""
    place = random.Random(f"{seed} {len(body)}").randrange(len(body))
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def wait_until(condition, seconds):
    """Wait for `condition()`; AssertionError when it does not come within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for nothing"
        time.sleep(0.02)


@contextmanager
def environment(**values):
    """os.environ with `values` (None: without) while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    try:
        for name, value in values.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)

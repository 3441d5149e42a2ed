"""Where models come from. The hub is a real HTTP server on this machine that answers as the real one does."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common import hub
from common.refusal import Refusal

COMMIT = "a" * 40
CONFIG = b'{"model_type": "llama"}'


class Hub(http.server.BaseHTTPRequestHandler):
    """Models owner/open (whole), owner/gated (listed, its files refused), owner/closed (refused at once), owner/broken (error 500)."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization")))
        name = next((n for n in ("open", "gated", "closed", "broken") if f"/owner/{n}/" in self.path.split("?")[0] + "/"), None)
        if name is None:
            return self.answer(404, b"Repository not found", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if name == "closed" or (name == "gated" and "/resolve/" in self.path):
            return self.answer(
                403, b"Access restricted", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}
            )
        if name == "broken":
            return self.answer(400, b"Bad", {"X-Error-Message": "Bad revision"})
        if "/revision/missing" in self.path:
            return self.answer(404, b"no", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id: missing"})
        if "/tree/" in self.path:
            files = [{"type": "file", "path": "config.json", "size": len(CONFIG), "oid": "b" * 40}]
            return self.answer(200, json.dumps(files).encode())
        if self.path.startswith("/api/"):
            files = [{"rfilename": "config.json", "size": len(CONFIG)}, {"rfilename": "model.safetensors", "size": 3 * 2**30}]
            return self.answer(
                200,
                json.dumps(
                    {
                        "id": f"owner/{name}",
                        "modelId": f"owner/{name}",
                        "sha": COMMIT,
                        "siblings": files,
                        "private": False,
                        "tags": [],
                        "downloads": 0,
                    }
                ).encode(),
            )
        return self.answer(200, CONFIG, {"X-Repo-Commit": COMMIT, "ETag": '"etag"'})

    def answer(self, code, body, headers=None):
        self.send_response(code)
        for key, value in {"Content-Length": len(body), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        running.asked = []
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture
def ask(tmp_path, server):
    """`ask("hub.find('owner/x')")` in a process of its own, with an empty Hugging Face home; returns the ended process."""

    def run(call, endpoint=None, **environment):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
        home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_ETAG_TIMEOUT": "5"}
        endpoint = endpoint or f"http://127.0.0.1:{server.server_address[1]}"
        program = f"from common import hub, refusal\nrefusal.guard(lambda: print({call}))"
        return subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=120,
            env={**kept, **home, "HF_ENDPOINT": endpoint, **environment},
        )

    return run


def sentence(ended):
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.startswith("error: ")
    return ended.stderr


def test_a_gated_model_without_a_token(ask):
    said = sentence(ask("hub.find('owner/gated', ungated='unsloth/copy')"))
    for part in (
        "owner/gated is gated and HF_TOKEN is not set, nor is there a token of `hf auth login`",
        "https://huggingface.co/owner/gated",
        "settings/tokens",
        "--model-name unsloth/copy",
    ):
        assert part in said


def test_a_gated_model_that_is_refused_at_once_with_a_token_that_has_no_access(ask, server):
    said = sentence(ask("hub.find('owner/closed')", HF_TOKEN="hf_" + "x" * 30))
    assert "owner/closed is gated and your HF_TOKEN has no access to it" in said
    assert "ungated copy" not in said
    assert any(authorization == "Bearer hf_" + "x" * 30 for _, path, authorization in server.asked if "closed" in path)


def test_a_gated_model_after_a_login(ask, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_" + "y" * 30)
    said = sentence(ask("hub.find('owner/closed')"))
    assert "owner/closed is gated and the token of your `hf auth login` has no access to it" in said


def test_the_tokenizer_of_a_hub_model_is_in_its_snapshot(ask, tmp_path):
    online = ask("hub.tokenizer_directory(hub.find('owner/open'))").stdout.strip()
    assert online.endswith(f"models--owner--open/snapshots/{COMMIT}")
    offline = ask("hub.tokenizer_directory('owner/open')", HF_HUB_OFFLINE="1").stdout.strip()
    assert offline == online
    assert (Path(offline) / "config.json").read_bytes() == CONFIG
    assert hub.tokenizer_directory(str(tmp_path)) == str(tmp_path)


def test_the_constant_that_holds_the_name_is_named(ask, tmp_path):
    for name in ("no/model/here", str(tmp_path)):
        with pytest.raises(Refusal, match="INITIAL_MODEL is"):
            hub.find(name, constant="INITIAL_MODEL")
    assert "INITIAL_MODEL is 'owner/--x'" in sentence(ask("hub.find('owner/--x', constant='INITIAL_MODEL')"))


def test_a_model_that_is_not_there(ask):
    assert "the hub has no model owner/nothing" in sentence(ask("hub.find('owner/nothing')"))


def test_a_revision_that_is_not_there(ask):
    said = sentence(ask("hub.find('owner/open', revision='missing')"))
    assert "owner/open" in said
    assert "MODEL_REVISION" in said


def test_another_refusal_of_the_hub(ask):
    said = sentence(ask("hub.find('owner/broken')"))
    assert "owner/broken is not in the local cache and the hub answered" in said
    assert "Bad revision" in said
    assert "cannot be reached" not in said


@pytest.mark.parametrize("name", ["owner/na me", "owner/--x", "owner/" + "x" * 100])
def test_a_name_the_hub_cannot_have(ask, name):
    assert repr(name)[1:-1] in sentence(ask(f"hub.find({name!r})"))


def test_without_network(ask):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        said = sentence(ask("hub.find('owner/open')", endpoint=f"http://127.0.0.1:{nobody.getsockname()[1]}"))
    assert "owner/open is not in the local cache and the hub cannot be reached" in said
    assert "--prefetch" in said


def test_what_was_found_once_is_found_without_network(ask, server):
    assert ask("hub.find('owner/open')").stdout == "owner/open\n"
    fetched = [path for _, path, _ in server.asked if "/owner/open/resolve/" in path]
    assert fetched
    assert not [path for path in fetched if "safetensors" in path]  # find() asks for the small files only
    assert ask("hub.find('owner/open')", HF_HUB_OFFLINE="1").stdout == "owner/open\n"
    assert ask("hub.find('owner/open')", endpoint="http://127.0.0.1:9").stdout == "owner/open\n"
    said = sentence(ask("hub.find('owner/other')", HF_HUB_OFFLINE="1"))
    assert "--prefetch" in said


def test_sizes(ask, tmp_path):
    assert ask("hub.weights_gib('owner/open')").stdout == "3.0\n"
    assert ask("hub.weights_gib('owner/nothing')").stdout == "None\n"
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 2**20)
    assert hub.weights_gib(str(tmp_path)) == 1 / 1024
    (tmp_path / "empty").mkdir()
    assert hub.weights_gib(str(tmp_path / "empty")) is None


def test_local_directories(tmp_path):
    with pytest.raises(Refusal, match="neither config.json nor adapter_config.json"):
        hub.find(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert hub.find(str(tmp_path)) == hub.prefetch(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("name", ["models/there/is/none", "./none", "/none/at/all", "plain", ""])
def test_what_is_neither_a_directory_nor_a_hub_name(name):
    with pytest.raises(Refusal, match="MODEL_NAME is .*owner/name; embedded are tiny-llama"):
        hub.find(name)


def test_an_unknown_embedded_model():
    with pytest.raises(Refusal, match="no embedded model 'tiny-lama'; known are tiny-llama"):
        hub.find("tiny-lama")


def test_nothing_heavy_is_loaded():
    program = "import sys; from common import hub; print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert ended.stdout == "[]\n"

"""Dimensions against transformers' own models, built on the meta device where they take no memory."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from common import dimensions
from common.dimensions import KNOWN, from_config, read
from common.refusal import Refusal


def config_of(d):
    """transformers' config with the dimensions of `d`."""
    from transformers import GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

    if d.family == "gpt2":
        return GPT2Config(vocab_size=d.vocab_size, n_positions=d.max_position_embeddings, n_embd=d.hidden_size, n_layer=d.num_hidden_layers,
                          n_head=d.num_attention_heads, n_inner=d.intermediate_size, tie_word_embeddings=d.tie_word_embeddings,
                          activation_function="gelu" if d.fused_gelu else "gelu_new")  # fmt: skip
    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[d.family]
    biases = {"attention_bias": d.o_bias, "mlp_bias": d.mlp_bias} if d.family == "llama" else {}
    return kind(vocab_size=d.vocab_size, hidden_size=d.hidden_size, intermediate_size=d.intermediate_size,
                num_hidden_layers=d.num_hidden_layers, num_attention_heads=d.num_attention_heads,
                num_key_value_heads=d.num_key_value_heads, head_dim=d.head_dim, max_position_embeddings=d.max_position_embeddings,
                tie_word_embeddings=d.tie_word_embeddings, **biases)  # fmt: skip


def on_meta(d):
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(d))


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_equal_the_real_model_s(name):
    d = KNOWN[name]
    model = on_meta(d)
    assert d.parameters() == sum(p.numel() for p in model.parameters())
    linear = {n.rsplit(".", 1)[-1]: p.weight.shape for n, p in model.named_modules() if n.endswith("_proj") and ".0." in n}
    if d.family != "gpt2":  # which has fused matrices that transformers calls Conv1D
        assert {n: tuple(shape) for n, shape in linear.items()} == d.matrices()


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], [*dimensions.ATTENTION, *dimensions.MLP]])
@pytest.mark.parametrize("name", [n for n in KNOWN if not n.startswith("gpt")])
def test_lora_parameters_equal_peft_s(name, targets):
    import torch
    from peft import LoraConfig, get_peft_model

    with torch.device("meta"):
        adapted = get_peft_model(on_meta(KNOWN[name]), LoraConfig(r=8, target_modules=targets), low_cpu_mem_usage=True)
    assert KNOWN[name].lora_parameters(8, targets) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("targets", [["c_attn"], ["c_fc", "c_proj"], ["c_attn", "c_proj", "c_fc"]])
def test_lora_parameters_of_fused_matrices_equal_peft_s(targets):
    import torch
    from peft import LoraConfig, get_peft_model

    d = KNOWN["gpt-125M"]
    with torch.device("meta"):
        config = LoraConfig(r=8, target_modules=targets, fan_in_fan_out=True)
        adapted = get_peft_model(on_meta(d), config, low_cpu_mem_usage=True)
    assert d.lora_parameters(8, d.named(targets)) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", KNOWN)
def test_a_config_gives_the_known_dimensions(name):
    assert from_config(config_of(KNOWN[name]).to_dict()) == KNOWN[name]


def test_llama_with_biases_everywhere():
    d = dimensions.Dimensions("llama", 64, 96, 2, 4, 2, 16, 512, 128, False, True, True, True)
    assert from_config(config_of(d).to_dict()) == d
    assert d.parameters() == sum(p.numel() for p in on_meta(d).parameters())


def test_a_directory_and_an_adapter_on_it(tmp_path):
    d = KNOWN["Qwen/Qwen3-4B-Instruct-2507"]
    (tmp_path / "base").mkdir()
    config_of(d).save_pretrained(tmp_path / "base")
    write(tmp_path / "adapter" / "adapter_config.json", {"base_model_name_or_path": str(tmp_path / "base")})
    write(tmp_path / "on the adapter" / "adapter_config.json", {"base_model_name_or_path": str(tmp_path / "adapter")})
    assert read(str(tmp_path / "base")) == read(str(tmp_path / "adapter")) == read(str(tmp_path / "on the adapter")) == d


def test_unsloths_copies_and_bare_names_are_known():
    for copy in ("Qwen3-4B-Instruct-2507", "qwen3-4b-instruct-2507-unsloth-bnb-4bit", "Qwen3-4B-Instruct-2507-bnb-4bit"):
        assert read(f"unsloth/{copy}") == KNOWN["Qwen/Qwen3-4B-Instruct-2507"]
    assert read("gpt-125M") == KNOWN["gpt-125M"]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def refused(call, *arguments):
    with pytest.raises(Refusal) as raised:
        call(*arguments)
    return str(raised.value)


LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 128,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "vocab_size": 512, "n_positions": 128}
WHOLE = "it must be a whole number from 1 to 2147483647"


def test_the_configs_that_are_broken_below_are_whole():
    assert from_config(LLAMA) == dimensions.Dimensions("llama", 64, 96, 2, 4, 2, 16, 512, 128, False)
    assert from_config(GPT2 | {"n_inner": None}).intermediate_size == 256


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "is of model_type None, whose memory and time are not computed here"),
        ({"model_type": "mamba"}, "is of model_type 'mamba', whose memory and time are not computed here"),
        ({"model_type": ["llama"]}, "is of model_type ['llama'], whose memory and time are not computed here"),
        ({"model_type": "llama", "hidden_size": 8}, "has no num_attention_heads"),
        (LLAMA | {"hidden_size": None}, "has no hidden_size"),
        (LLAMA | {"hidden_size": "64"}, f'says hidden_size = "64"; {WHOLE}'),
        (LLAMA | {"hidden_size": 64.0}, f"says hidden_size = 64.0; {WHOLE}"),
        (LLAMA | {"intermediate_size": [96]}, f"says intermediate_size = [96]; {WHOLE}"),
        (LLAMA | {"num_hidden_layers": -2}, f"says num_hidden_layers = -2; {WHOLE}"),
        (LLAMA | {"num_hidden_layers": True}, f"says num_hidden_layers = true; {WHOLE}"),
        (LLAMA | {"num_attention_heads": 0}, f"says num_attention_heads = 0; {WHOLE}"),
        (LLAMA | {"num_key_value_heads": 0}, f"says num_key_value_heads = 0; {WHOLE}"),
        (LLAMA | {"head_dim": 0}, f"says head_dim = 0; {WHOLE}"),
        (LLAMA | {"vocab_size": 10**400}, f"says vocab_size = 1{'0' * 59}; {WHOLE}"),
        (LLAMA | {"num_attention_heads": 6}, "says num_attention_heads = 6, which does not divide hidden_size = 64"),
        (LLAMA | {"num_key_value_heads": 3}, "says num_key_value_heads = 3, which does not divide num_attention_heads = 4"),
        (LLAMA | {"num_key_value_heads": 8}, "says num_key_value_heads = 8, which does not divide num_attention_heads = 4"),
        (LLAMA | {"tie_word_embeddings": "no"}, 'says tie_word_embeddings = "no"; it must be true or false'),
        (LLAMA | {"mlp_bias": 1}, "says mlp_bias = 1; it must be true or false"),
        (GPT2 | {"n_head": 0}, f"says n_head = 0; {WHOLE}"),
        (GPT2 | {"n_head": 5}, "says n_head = 5, which does not divide n_embd = 64"),
        (GPT2 | {"n_inner": "4x"}, f'says n_inner = "4x"; {WHOLE}'),
        ([LLAMA], "holds a list, where an object {...} belongs"),
        (b"null", "holds null, where an object {...} belongs"),
        (b"{", "is not JSON (Expecting property name"),
        (b"", "is not JSON (Expecting value"),
        (b"\xff\xfe{}", "is not UTF-8 (byte 0)"),
        (b"[" * 100_000, "is not JSON (maximum recursion depth"),
        (b'{"hidden_size": ' + b"1" * 5000 + b"}", "is not JSON (Exceeds the limit"),
    ],
)
def test_a_config_that_no_model_has_is_refused_with_file_key_and_value(tmp_path, config, said):
    path = write(tmp_path / "config.json", config)
    assert refused(read, str(tmp_path)).startswith(f"{path} {said}")


def test_a_config_that_is_a_directory(tmp_path):
    (tmp_path / "config.json").mkdir()
    assert refused(read, str(tmp_path)).startswith(f"{tmp_path / 'config.json'} cannot be read (Is a directory); save")


def test_a_directory_without_a_config(tmp_path):
    said = refused(read, str(tmp_path))
    assert said.startswith(f"MODEL_NAME is '{tmp_path}', which has neither config.json nor adapter_config.json")


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (b"{", "is not JSON"),
        ([], "holds a list"),
        ({}, "has no base_model_name_or_path; write"),
        ({"base_model_name_or_path": None}, "has no base_model_name_or_path; write"),
        ({"base_model_name_or_path": 7}, "says base_model_name_or_path = 7; write"),
    ],
)
def test_an_adapter_without_a_base(tmp_path, adapter, said):
    path = write(tmp_path / "adapter_config.json", adapter)
    assert refused(read, str(tmp_path)).startswith(f"{path} {said}")


def test_the_base_of_an_adapter_that_is_not_there_is_named_by_its_file(tmp_path):
    path = write(tmp_path / "adapter_config.json", {"base_model_name_or_path": "/no/base"})
    assert refused(read, str(tmp_path)).startswith(f"base_model_name_or_path in {path} is '/no/base': no such directory")


def test_adapters_in_a_circle(tmp_path):
    for name, base in (("own", "a/../own"), ("a", "b"), ("b", "a")):
        write(tmp_path / name / "adapter_config.json", {"base_model_name_or_path": str(tmp_path / base)})
    for name, last in (("own", "own"), ("a", "b"), ("b", "a")):
        said = refused(read, str(tmp_path / name))
        assert said.startswith(f"{tmp_path / last / 'adapter_config.json'} says base_model_name_or_path = ")
        assert "which leads back to itself" in said


@pytest.mark.parametrize("name", ["", "./nope", "/tmp/nope", "no slash", "gpt-126M", "a/b/c", "x" * 5000, "nul\0l"])
def test_what_is_neither_a_directory_nor_a_hub_name(name):
    said = refused(read, name)
    assert said.startswith(f"MODEL_NAME is {name!r}: no such directory, and a hub name has the form owner/name; known without")


@pytest.mark.parametrize("name", ["a b/c", "a/..", "own er/-x-", "/".join("ab") * 90])
def test_what_cannot_be_a_hub_name(name):
    assert f"MODEL_NAME is {name!r}" in refused(read, name)


@pytest.mark.parametrize("targets", [["gate_proj"], ["q_proj", "gate_proj"], ["c_attn"], "q"])
def test_target_modules_that_a_family_does_not_have(targets):
    said = refused(KNOWN["gpt-125M"].lora_parameters, 8, targets)
    assert said == f"TARGET_MODULES names {targets[-1]}, which a layer of gpt2 does not have; take some of " + (
        "c_attn, c_proj, c_fc"
    )


# A model of the hub that is not known here: the hub is a real HTTP server on this machine


class Hub(http.server.BaseHTTPRequestHandler):
    """owner/open has a config.json, owner/list a broken one, owner/adapter none, owner/gated is gated, owner/slow never answers."""

    def do_GET(self):
        self.server.asked.append(self.path)
        name = self.path.split("/")[2]
        errors = {"gated": (403, "GatedRepo"), "adapter": (404, "EntryNotFound"), "nothing": (404, "RepoNotFound")}
        if "/missing/" in self.path:
            errors["open"] = (404, "RevisionNotFound")
        if name == "slow":
            return self.server.over.wait()
        body = json.dumps([] if name == "list" else LLAMA).encode()
        code, error = errors.get(name, (200, None))
        self.send_response(code)
        headers = {"X-Error-Code": error, "X-Error-Message": error} if error else {"X-Repo-Commit": "a" * 40, "ETag": '"etag"'}
        for key, value in {"Content-Length": 0 if error else len(body), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET" and not error:
            self.wfile.write(body)
        return None

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        running.asked, running.over, running.daemon_threads = [], threading.Event(), True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.over.set()
        running.shutdown()


PROGRAM = "import sys; from common import dimensions, refusal; refusal.guard(lambda: print(dimensions.read(*sys.argv[1:])))"


@pytest.fixture
def ask(server, tmp_path):
    """Exit code and last line of `dimensions.read(*arguments)` in a process of its own, for the endpoint is read once at import."""

    def run(*arguments, **environment):
        address = f"http://127.0.0.1:{server.server_port}"
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")}
        ours = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), **environment}
        done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], env=kept | ours, capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        return done.returncode, (done.stdout if done.returncode == 0 else done.stderr).splitlines()[-1]

    return run


CHEAP = "save that file of 1 kB in a directory and pass it as --model-name DIR, or where there is network run once with --prefetch"


def test_the_config_alone_is_fetched_and_then_cached(ask, server):
    assert ask("owner/open") == (0, str(from_config(LLAMA)))
    asked = server.asked[:]
    assert {path for path in asked if "owner" in path} == {"/owner/open/resolve/main/config.json"}
    assert ask("owner/open", HF_HUB_OFFLINE="1") == (0, str(from_config(LLAMA)))
    assert server.asked == asked


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gated", "owner/gated is gated: accept its licence at https://huggingface.co/owner/gated and set HF_TOKEN"),
        ("nothing", "the hub has no such model that you may see (check the spelling"),
        ("adapter", "on the hub it has none"),
        ("slow", "the hub did not "),
    ],
)
def test_a_config_that_the_hub_does_not_give(ask, name, said):
    code, sentence = ask(f"owner/{name}")
    start = f"error: the dimensions of owner/{name} are not known here, its config.json is not on this machine, and "
    assert code == 2 and sentence.startswith(start + said) and sentence.endswith(CHEAP)


def test_a_revision_that_is_not_there(ask):
    code, sentence = ask("owner/open", "missing")
    assert code == 2 and "and the hub has no revision 'missing' of it" in sentence


def test_a_broken_config_of_the_hub(ask, tmp_path):
    code, sentence = ask("owner/list")
    assert code == 2 and sentence.startswith(f"error: {tmp_path}") and "config.json holds a list" in sentence
    assert sentence.endswith("remove it, and run once with --prefetch to download owner/list again")


def test_without_network(ask):
    assert "HF_HUB_OFFLINE is set" in ask("owner/open", HF_HUB_OFFLINE="1")[1]
    code, sentence = ask("owner/open", HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 2 and "and the hub did not send it ([Errno 111] Connection refused)" in sentence


@pytest.mark.parametrize(
    "name", ["owner/gpt-125M", "owner/Llama-3.2-3B-Instruct", "unsloth/gpt-125M", "meta-llama/Llama-3.2-3B-Instruct-bnb-4bit"]
)
def test_a_model_of_somebody_else_is_not_ours(ask, name):
    assert f"the dimensions of {name} are not known here" in ask(name, HF_HUB_OFFLINE="1")[1]


def test_a_known_model_asks_nobody(ask, server):
    before = server.asked[:]
    assert ask("unsloth/Llama-3.2-3B-Instruct")[0] == 0 and server.asked == before

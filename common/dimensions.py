"""A language model by its dimensions alone: what its config says, and how many parameters that makes. No weights, no torch.

The models of the recipes are known offline, by the dimensions their authors published; any other is read from its config.json,
in a directory, in the hub's cache, or fetched alone.
"""

import json
import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from common import json_object
from common.refusal import Refusal

SECONDS_FOR_THE_HUB = 3  # to send a config.json of 1 kB; a plan is not to wait for a network that is not there
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
FUSED = {"c_attn": ATTENTION[:3], "c_proj": ("o_proj", "down_proj"), "c_fc": ("up_proj",)}  # GPT-2's names for the same matrices


@dataclass(frozen=True)
class Dimensions:
    """A decoder of equal layers. Widths in features, `max_position_embeddings` in tokens; the names are Hugging Face's."""

    family: str  # "llama", "qwen2", "qwen3", "gpt2"
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    fused_gelu: bool = False  # GELU in one kernel (PyTorch's own), where transformers' gelu_new is eight

    query_size = property(lambda self: self.num_attention_heads * self.head_dim)
    key_value_size = property(lambda self: self.num_key_value_heads * self.head_dim)  # of the keys; the values take as much
    gated = property(lambda self: self.family != "gpt2")  # SwiGLU with three matrices, where GPT-2 has GELU with two
    qk_norm = property(lambda self: self.family == "qwen3")  # an RMSNorm over each head of queries and keys
    learned_positions = property(lambda self: self.family == "gpt2")

    def matrices(self):
        """{name: (out_features, in_features)} of the linear layers of one layer; GPT-2's fused ones taken apart."""
        hidden, wide, kv = self.hidden_size, self.intermediate_size, self.key_value_size
        shapes = {"q_proj": (self.query_size, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, self.query_size)}
        if self.gated:
            shapes["gate_proj"] = (wide, hidden)
        return shapes | {"up_proj": (wide, hidden), "down_proj": (hidden, wide)}

    def linear_parameters(self):
        """Weights of all linear layers of all layers, without biases, embeddings and output layer: what NF4 quantises."""
        return self.num_hidden_layers * sum(rows * columns for rows, columns in self.matrices().values())

    def embedding_parameters(self):
        """Token embeddings, the output layer where it is not the same tensor, and learned positions."""
        tables = 1 if self.tie_word_embeddings else 2
        return tables * self.vocab_size * self.hidden_size + self.learned_positions * self.max_position_embeddings * self.hidden_size

    def layer_parameters(self):
        """All parameters of one layer: matrices, biases, norms."""
        shapes = self.matrices()
        norm = self.hidden_size * (2 if self.family == "gpt2" else 1)  # LayerNorm has a bias, RMSNorm has none
        biases = (
            self.qkv_bias * sum(shapes[name][0] for name in ATTENTION[:3])
            + self.o_bias * shapes["o_proj"][0]
            + self.mlp_bias * sum(shapes[name][0] for name in MLP if name in shapes)
        )
        return sum(rows * columns for rows, columns in shapes.values()) + biases + 2 * norm + self.qk_norm * 2 * self.head_dim

    def parameters(self):
        """All parameters; a tied output layer is counted once."""
        last_norm = self.hidden_size * (2 if self.family == "gpt2" else 1)
        return self.embedding_parameters() + self.num_hidden_layers * self.layer_parameters() + last_norm

    def named(self, target_modules):
        """These TARGET_MODULES by the names of `matrices`; a GPT-2's fused ones taken apart."""
        if self.family != "gpt2":
            return tuple(target_modules)
        return tuple(part for name in target_modules for part in FUSED.get(name, (name,)))

    def lora_parameters(self, r, target_modules):
        """Of an adapter of rank `r`: A is [r, in_features] and B [out_features, r] for each matrix that is named.

        Raises `Refusal` for one that these layers do not have.
        """
        shapes = self.matrices()
        if missing := [name for name in target_modules if name not in shapes]:
            raise Refusal(
                f"TARGET_MODULES names {', '.join(map(str, missing))}, which a layer of {self.family} does not have; take some of "
                f"{', '.join(FUSED if self.family == 'gpt2' else shapes)}"
            )
        shared = 2 * self.hidden_size * (self.family == "gpt2" and set(ATTENTION[:3]) <= set(target_modules))  # one A for c_attn
        return self.num_hidden_layers * r * (sum(sum(shapes[name]) for name in target_modules) - shared)


def _gpt(layers, heads, width):
    """One size of the GPT that is trained from scratch: vocabulary 50,257 padded to a multiple of 128, 2,048 positions."""
    return Dimensions("gpt2", width, 4 * width, layers, heads, heads, width // heads, 50304, 2048, True, True, True, True, True)


KNOWN = {  # from each model's config.json on the hub; checked against transformers' own models in the tests
    "meta-llama/Llama-3.2-1B-Instruct": Dimensions("llama", 2048, 8192, 16, 32, 8, 64, 128256, 131072, True),
    "meta-llama/Llama-3.2-3B-Instruct": Dimensions("llama", 3072, 8192, 28, 24, 8, 128, 128256, 131072, True),
    "qihoo360/TinyR1-32B": Dimensions("qwen2", 5120, 27648, 64, 40, 8, 128, 152064, 131072, False, qkv_bias=True),
    "Qwen/Qwen3-4B-Instruct-2507": Dimensions("qwen3", 2560, 9728, 36, 32, 8, 128, 151936, 262144, True),
    "Qwen/Qwen2.5-7B-Instruct": Dimensions("qwen2", 3584, 18944, 28, 28, 4, 128, 152064, 32768, False, qkv_bias=True),
    "Qwen/Qwen2.5-14B-Instruct": Dimensions("qwen2", 5120, 13824, 48, 40, 8, 128, 152064, 32768, False, qkv_bias=True),
    "gpt-125M": _gpt(12, 12, 768),
    "gpt-350M": _gpt(24, 16, 1024),
    "gpt-760M": _gpt(24, 16, 1536),
    "gpt-1.2B": _gpt(24, 16, 2048),
}


def padded(vocab_size):
    """Rows of a GPT's embeddings: a multiple of 128 multiplies faster."""
    return -(-vocab_size // 128) * 128


def gpt(name, layers=None, heads=None, width=None, vocab_size=None, positions=None):
    """The `Dimensions` of a GPT to train from scratch: those of the size called `name` where nothing else is said.

    vocab_size: padded here to a multiple of 128. Raises `Refusal` where the heads do not divide the width.
    """
    known = KNOWN[name]
    layers, heads, width = layers or known.num_hidden_layers, heads or known.num_attention_heads, width or known.hidden_size
    if width % heads:
        fits = max(n for n in range(1, heads) if width % n == 0)
        raise Refusal(
            f"HIDDEN_SIZE = {width} is no multiple of NUM_ATTENTION_HEADS = {heads}; each head has the same width: take {fits} heads, or "
            f"HIDDEN_SIZE = {-(-width // heads) * heads}"
        )
    vocab_size = padded(vocab_size or known.vocab_size)
    return replace(_gpt(layers, heads, width), vocab_size=vocab_size, max_position_embeddings=positions or known.max_position_embeddings)


def read(name, revision=None, constant="MODEL_NAME"):
    """The `Dimensions` of a model named as in MODEL_NAME: a directory, a model known here, or one on the hub.

    Unsloth's copies, quantised or not, have the dimensions of the original. Of other hub models config.json is read, from the cache or
    fetched alone, for which at most `SECONDS_FOR_THE_HUB` are waited. constant: where `name` came from, for `Refusal`s, which are raised
    where there is no such config, where it is not a whole one, or of a kind that the arithmetic does not know.
    """
    return _read(name, revision, constant, ())


def _read(name, revision, constant, adapters):
    if name and os.path.isdir(name):
        return _from_directory(Path(name), constant, adapters)
    if found := _known(name):
        return found
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise Refusal(f"{constant} is {name!r}: no such directory, and a hub name has the form owner/name; known without a hub are "
                      f"{', '.join(KNOWN)}")  # fmt: skip
    path = _cached(name, revision, constant) or _fetched(name, revision)
    return from_config(json_object.read(path, f"remove it, and run once with --prefetch to download {name} again"), path)


def _known(name):
    """What is known here of a model by its exact name, or as Unsloth's copy of it."""
    owner, _, last = name.lower().rpartition("/")
    if owner == "unsloth":
        copied = last.removesuffix("-unsloth-bnb-4bit").removesuffix("-bnb-4bit")
        return next((found for known, found in KNOWN.items() if "/" in known and known.lower().rpartition("/")[2] == copied), None)
    return next((found for known, found in KNOWN.items() if known.lower() == name.lower()), None)


def _cached(name, revision, constant):
    """The path of a hub model's config.json in the local cache, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError as error:
        raise Refusal(f"{constant} is {name!r}, which cannot be a hub name: {str(error).splitlines()[0]}") from None
    return path if isinstance(path, str) else None  # else None, or the mark of a file that the hub does not have


def _fetched(name, revision):
    """The path of a hub model's config.json after it was downloaded into the cache."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    answer = []

    def ask():
        try:  # without a network the first fails at once, where the second would try again for half a minute
            get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=SECONDS_FOR_THE_HUB - 1)
            answer.append(hf_hub_download(name, "config.json", revision=revision, etag_timeout=SECONDS_FOR_THE_HUB - 1))
        except Exception as error:  # whatever it is, the config was not fetched
            answer.append(error)

    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set"
    else:
        asking = threading.Thread(target=ask, daemon=True)  # looking up a name or a trickle of bytes has no time limit of its own
        asking.start()
        asking.join(SECONDS_FOR_THE_HUB)
        if answer and isinstance(answer[0], str):
            return answer[0]
        error = answer[0] if answer else None
        if isinstance(error, GatedRepoError):
            why = f"{name} is gated: accept its licence at https://huggingface.co/{name} and set HF_TOKEN to a token that may read it"
        elif isinstance(error, RepositoryNotFoundError):
            why = "the hub has no such model that you may see (check the spelling, or set HF_TOKEN for a private one)"
        elif isinstance(error, RevisionNotFoundError):
            why = f"the hub has no revision {revision!r} of it"
        elif isinstance(error, EntryNotFoundError):
            why = "on the hub it has none"
        else:
            why = f"the hub did not send it ({(str(error) or repr(error)).splitlines()[0]})" if error else "the hub did not answer in time"
    raise Refusal(
        f"the dimensions of {name} are not known here, its config.json is not on this machine, and {why}; save that file of 1 kB in a "
        "directory and pass it as --model-name DIR, or where there is network run once with --prefetch"
    )


def _from_directory(path, constant, adapters):
    config, adapter = path / "config.json", path / "adapter_config.json"
    if config.exists():
        return from_config(json_object.read(config, "save the model's whole config.json there"), config)
    if not adapter.exists():
        raise Refusal(f"{constant} is '{path}', which has neither config.json nor adapter_config.json, so it is no model directory")
    key = "base_model_name_or_path"
    base = json_object.read(adapter, "save the adapter's own adapter_config.json there").get(key)
    if not isinstance(base, str) or not base:
        found = f"says {key} = {base!r}" if base else f"has no {key}"
        raise Refusal(f"{adapter} {found}; write the directory or the hub name of the adapter's base there")
    adapters = (*adapters, os.path.realpath(path))
    if os.path.realpath(base) in adapters:
        raise Refusal(f"{adapter} says {key} = {base!r}, which leads back to itself; write the directory or the hub name of the base there")
    return _read(base, None, f"{key} in {adapter}", adapters)


def from_config(config, source="config.json"):
    """`Dimensions` from the content of a config.json. source: its path, for `Refusal`s, which are raised for a kind of model that is not
    one of the four and for values that no model has."""
    if not isinstance(config, dict):
        raise Refusal(f"{source} holds {json_object.kind(config)}, where an object {{...}} belongs; save the model's config.json there")
    family = config.get("model_type")
    if family == "gpt2":
        width, heads = _whole(config, source, "n_embd"), _whole(config, source, "n_head")
        _divides(source, "n_head", heads, "n_embd", width)
        return Dimensions(
            family, width, _whole(config, source, "n_inner", 4 * width), _whole(config, source, "n_layer"), heads, heads, width // heads,
            _whole(config, source, "vocab_size"), _whole(config, source, "n_positions"), _flag(config, source, "tie_word_embeddings", True),
            True, True, True, config.get("activation_function", "gelu_new") in ("gelu", "gelu_pytorch_tanh"),
        )  # fmt: skip
    family = "llama" if family == "mistral" else family  # the same layers
    if family not in ("llama", "qwen2", "qwen3"):
        raise Refusal(
            f"{source} is of model_type {family!r}, whose memory and time are not computed here; those of llama, mistral, qwen2, qwen3 "
            "and gpt2 are. Go on with --no-plan"
        )
    width, heads = _whole(config, source, "hidden_size"), _whole(config, source, "num_attention_heads")
    shared = _whole(config, source, "num_key_value_heads", heads)
    _divides(source, "num_key_value_heads", shared, "num_attention_heads", heads)
    if config.get("head_dim") is None:
        _divides(source, "num_attention_heads", heads, "hidden_size", width)
    bias = _flag(config, source, "attention_bias", False)
    return Dimensions(
        family, width, _whole(config, source, "intermediate_size"), _whole(config, source, "num_hidden_layers"), heads, shared,
        _whole(config, source, "head_dim", width // heads), _whole(config, source, "vocab_size"),
        _whole(config, source, "max_position_embeddings"), _flag(config, source, "tie_word_embeddings", False),
        qkv_bias=bias or family == "qwen2", o_bias=bias, mlp_bias=_flag(config, source, "mlp_bias", False),
    )  # fmt: skip


def _whole(config, source, key, default=None):
    """A whole number of a config.json; `default` where it is absent or null."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        raise Refusal(f"{source} has no {key}, which models of its model_type have; save the model's whole config.json there")
    if type(value) is not int or not 1 <= value < 2**31:
        found = json.dumps(value, default=str)[:60]
        raise Refusal(f"{source} says {key} = {found}; it must be a whole number from 1 to {2**31 - 1}, as the model has it")
    return value


def _flag(config, source, key, default):
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not bool:
        raise Refusal(f"{source} says {key} = {json.dumps(value, default=str)[:60]}; it must be true or false, as the model has it")
    return value


def _divides(source, key, value, whole_key, whole):
    if whole % value:
        raise Refusal(f"{source} says {key} = {value}, which does not divide {whole_key} = {whole}; save the model's own config.json there")

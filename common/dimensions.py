"""A language model by its dimensions alone: what its config says, and how many parameters that makes. No weights, no torch.

The models of the recipes are known offline, by the dimensions their authors published; any other is read from its config.json,
in a directory or in the hub's cache.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from common.refusal import Refusal

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


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

    def largest_module_parameters(self):
        """Of what ZeRO-3 gathers at once: a whole layer, or the table of embeddings."""
        return max(self.layer_parameters(), self.vocab_size * self.hidden_size)

    def lora_parameters(self, r, target_modules):
        """Of an adapter of rank `r`: A is [r, in_features] and B [out_features, r] for each matrix that is named."""
        shapes = self.matrices()
        return self.num_hidden_layers * r * sum(sum(shapes[name]) for name in target_modules)


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


def read(name, revision=None):
    """The `Dimensions` of a model named as in MODEL_NAME: known here, a directory with config.json, or in the hub's cache.

    A copy under another owner ("unsloth/Llama-3.2-3B-Instruct") has the dimensions of the original. Asks no network. Raises `Refusal`
    where the config is not on this machine, or is of a kind that the arithmetic does not know.
    """
    if Path(name).is_dir():
        return _from_directory(Path(name))
    by_last_part = {known.rsplit("/", 1)[-1].lower(): found for known, found in KNOWN.items()}
    if found := by_last_part.get(name.rsplit("/", 1)[-1].lower().removesuffix("-unsloth-bnb-4bit").removesuffix("-bnb-4bit")):
        return found
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json", revision=revision) if name.count("/") == 1 else None
    if not isinstance(cached, str):
        raise Refusal(
            f"the dimensions of {name} are not known here and its config.json is not on this machine; run once with --prefetch, "
            f"or plan with one of {', '.join(KNOWN)}"
        )
    return from_config(json.loads(Path(cached).read_text(encoding="utf-8")), name)


def _from_directory(path):
    adapter = path / "adapter_config.json"
    if not (path / "config.json").is_file() and adapter.is_file():  # of an adapter, those of its base
        return read(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
    try:
        return from_config(json.loads((path / "config.json").read_text(encoding="utf-8")), str(path))
    except (OSError, json.JSONDecodeError) as error:
        raise Refusal(f"{path / 'config.json'} cannot be read: {error}") from None


def from_config(config, name="the model"):
    """`Dimensions` from the content of a config.json. Raises `Refusal` for a kind of model that is not one of the four."""
    family = config.get("model_type")
    try:
        if family == "gpt2":
            width, heads = config["n_embd"], config["n_head"]
            wide = config.get("n_inner") or 4 * width
            return Dimensions(family, width, wide, config["n_layer"], heads, heads, width // heads, config["vocab_size"],
                              config["n_positions"], config.get("tie_word_embeddings", True), True, True, True,
                              config.get("activation_function", "gelu_new") in ("gelu", "gelu_pytorch_tanh"))  # fmt: skip
        family = "llama" if family == "mistral" else family  # the same layers
        if family not in ("llama", "qwen2", "qwen3"):
            raise Refusal(
                f"{name} is of model_type {family!r}, whose memory and time are not computed here; those of llama, mistral, qwen2, qwen3 "
                "and gpt2 are. Go on with --no-plan"
            )
        heads = config["num_attention_heads"]
        bias = config.get("attention_bias", False)
        return Dimensions(
            family, config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"], heads,
            config.get("num_key_value_heads") or heads, config.get("head_dim") or config["hidden_size"] // heads, config["vocab_size"],
            config["max_position_embeddings"], config.get("tie_word_embeddings", False), qkv_bias=bias or family == "qwen2",
            o_bias=bias, mlp_bias=config.get("mlp_bias", False),
        )  # fmt: skip
    except KeyError as missing:
        raise Refusal(f"the config.json of {name} has no {missing}, which {family} models have; it is not a whole config") from None

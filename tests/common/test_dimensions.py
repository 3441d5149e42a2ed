"""Dimensions against transformers' own models, built on the meta device where they take no memory."""

import json

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


@pytest.mark.parametrize("name", KNOWN)
def test_a_config_gives_the_known_dimensions(name):
    assert from_config(config_of(KNOWN[name]).to_dict()) == KNOWN[name]


def test_llama_with_biases_everywhere():
    d = dimensions.Dimensions("llama", 64, 96, 2, 4, 2, 16, 512, 128, False, True, True, True)
    assert from_config(config_of(d).to_dict()) == d
    assert d.parameters() == sum(p.numel() for p in on_meta(d).parameters())


def test_a_directory_an_adapter_on_it_and_a_copy_under_another_owner(tmp_path):
    d = KNOWN["Qwen/Qwen3-4B-Instruct-2507"]
    (tmp_path / "base").mkdir()
    config_of(d).save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    assert read(str(tmp_path / "base")) == read(str(tmp_path / "adapter")) == d
    assert read("unsloth/Qwen3-4B-Instruct-2507-unsloth-bnb-4bit") == d


def test_what_cannot_be_known_is_said(tmp_path):
    with pytest.raises(Refusal, match="nobody/nothing-7B are not known here and its config.json is not on this machine; run once with"):
        read("nobody/nothing-7B")
    with pytest.raises(Refusal, match="model_type 'mamba', whose memory and time are not computed"):
        from_config({"model_type": "mamba"})
    with pytest.raises(Refusal, match="has no 'num_attention_heads'"):
        from_config({"model_type": "llama", "hidden_size": 8})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Refusal, match="config.json cannot be read"):
        read(str(tmp_path))

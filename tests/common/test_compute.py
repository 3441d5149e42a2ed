"""The FLOPs of common/compute.py against torch's own counter on Hugging Face's models; its bytes against the ZeRO paper's."""

from dataclasses import replace

import pytest

from common import compute, dimensions
from common.dimensions import ATTENTION, KNOWN, MLP, Dimensions

ALL = ATTENTION + MLP
SMALL = {
    "llama": Dimensions("llama", 256, 640, 2, 8, 2, 32, 1000, 512, False),
    "qwen2": Dimensions("qwen2", 192, 512, 3, 6, 3, 32, 2000, 512, True, qkv_bias=True),
    "qwen3": Dimensions("qwen3", 128, 384, 2, 4, 2, 64, 3000, 512, True),  # queries wider than the model
    "gpt2": Dimensions("gpt2", 192, 768, 3, 6, 6, 32, 1500, 512, True, True, True, True),
    "one layer": Dimensions("llama", 128, 512, 1, 4, 4, 32, 500, 512, True),
}
TRUE_SIZE = {
    name: replace(KNOWN[name], num_hidden_layers=3)
    for name in ("meta-llama/Llama-3.2-3B-Instruct", "Qwen/Qwen3-4B-Instruct-2507", "qihoo360/TinyR1-32B", "gpt-1.2B")
}


def counted(model, batch, length, targets=(), r=8, kernel="eager", checkpointing=None, trains_embeddings=True):
    """{"forward", "total"}: FLOPs that torch's counter sees in a training step of Hugging Face's model of these dimensions, on meta."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def fused(module, query, key, value, attention_mask, **kwargs):
        """The kernel that sdpa chooses on a GPU, named because meta tensors get the plain products."""
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True)[0].transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register("fused", fused)
    if model.family == "gpt2":
        config = {
            "n_embd": model.hidden_size, "n_inner": model.intermediate_size, "n_layer": model.num_hidden_layers,
            "n_head": model.num_attention_heads, "n_positions": model.max_position_embeddings, "vocab_size": model.vocab_size,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        }  # fmt: skip
    else:
        names = (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
            "max_position_embeddings", "tie_word_embeddings",
        )  # fmt: skip
        config = {name: getattr(model, name) for name in names}
    config = AutoConfig.for_model(model.family, **config)
    assert dimensions.from_config(config.to_dict()) == model
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, attn_implementation=kernel, dtype=torch.bfloat16).train()
        if targets:
            network = get_peft_model(network, LoraConfig(r=r, target_modules=list(targets), task_type="CAUSAL_LM"))
        if not trains_embeddings:
            network.get_input_embeddings().requires_grad_(False)
            network.get_output_embeddings().requires_grad_(False)
        if checkpointing:
            reentrant = checkpointing == "reentrant"
            network.gradient_checkpointing_enable({"use_reentrant": reentrant, "preserve_rng_state": False})
            network.enable_input_require_grads()
        tokens = torch.zeros(batch, length, dtype=torch.long)
        mask = torch.zeros(batch, 1, length, length, dtype=torch.bfloat16)  # given, because making one looks at values
        with FlopCounterMode(display=False) as counter:
            logits = network(input_ids=tokens, attention_mask=mask, position_ids=tokens, use_cache=False).logits
            forward = counter.get_total_flops()
            logits.sum().backward()
    return {"forward": forward, "total": counter.get_total_flops()}


def assert_equal(found, wanted):
    assert found["forward"] == pytest.approx(wanted["forward"], rel=0.01)
    assert found["total"] == pytest.approx(wanted["total"], rel=0.01)


@pytest.mark.parametrize("kernel", ["eager", "fused"])
@pytest.mark.parametrize("name", SMALL)
def test_everything_trained(name, kernel):
    model, batch, length = SMALL[name], 2, 192
    found = compute.step_flops(model, batch * length, length, causal=False, flash=kernel == "fused")
    assert_equal(found, counted(model, batch, length, kernel=kernel))
    assert compute.forward_flops(model, batch * length, length, causal=False) == found["forward"]
    assert found["model"] == found["total"] == found["forward"] + found["backward"] and found["recomputation"] == 0


@pytest.mark.parametrize("targets", [ALL, ("q_proj", "v_proj"), ("v_proj",), ("o_proj",), MLP, ("down_proj",)], ids=str)
@pytest.mark.parametrize("name, kernel", [("llama", "eager"), ("qwen3", "fused"), ("one layer", "eager")])
def test_an_adapter(name, kernel, targets):
    model, length, r = SMALL[name], 128, 16
    found = compute.step_flops(model, length, length, r, targets, causal=False, flash=kernel == "fused")
    assert_equal(found, counted(model, 1, length, targets, r, kernel))


@pytest.mark.parametrize("checkpointing", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("name, targets", [("llama", ()), ("gpt2", ()), ("qwen2", ALL), ("llama", ("q_proj", "v_proj"))], ids=str)
def test_gradient_checkpointing(name, targets, checkpointing):
    model, length, r = SMALL[name], 128, 8 * bool(targets)
    found = compute.step_flops(
        model, length, length, r, targets, "true", causal=False, flash=False, use_reentrant=checkpointing == "reentrant"
    )
    assert_equal(found, counted(model, 1, length, targets, r, checkpointing=checkpointing))
    assert found == compute.step_flops(
        model, length, length, r, targets, "unsloth", causal=False, flash=False, use_reentrant=checkpointing == "reentrant"
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_frozen_embeddings(name):
    model = SMALL[name]
    found = compute.step_flops(model, 128, 128, trains_embeddings=False, causal=False, flash=False)
    assert_equal(found, counted(model, 1, 128, trains_embeddings=False))


@pytest.mark.parametrize("name", TRUE_SIZE)
def test_models_of_true_width(name):
    model, length = TRUE_SIZE[name], 2048
    targets, r = ((), 0) if model.family == "gpt2" else (ALL, 16)
    found = compute.step_flops(model, 2 * length, length, r, targets, "true", causal=False)
    assert_equal(found, counted(model, 2, length, targets, r, "fused", "reentrant"))

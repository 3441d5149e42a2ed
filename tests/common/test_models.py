"""Saved adapters are looked at tensor by tensor; merged models are compared with their adapter, or refused."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from common import hub, merging, models
from common.refusal import Refusal

MESSAGES = [[{"role": "user", "content": "What is a rate of 5 in 100?"}, {"role": "assistant", "content": "It is 0.05."}]]


@pytest.fixture(scope="module")
def base():
    return hub.find("tiny-llama")


@pytest.fixture(scope="module")
def trained(base):
    """An adapter model as after training: every B matrix moved away from zero."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "down_proj"]))
    before = models.fingerprint(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    return model, before


@pytest.fixture
def adapter(trained, base, tmp_path):
    model, before = trained
    models.save_adapter(model, AutoTokenizer.from_pretrained(base), tmp_path / "final_model", before)
    return tmp_path / "final_model"


def test_what_training_left_unchanged_is_refused(trained, base, tmp_path):
    model, _ = trained
    with pytest.raises(Refusal, match="8 adapter tensors are unchanged by training"):
        models.save_adapter(model, AutoTokenizer.from_pretrained(base), tmp_path / "adapter", models.fingerprint(model))
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t: t.zero_(), "is all zero"),
        (lambda t: t.fill_(float("nan")), "holds NaN"),
        (lambda t: t[:0].clone(), "is empty"),
    ],
)
def test_damaged_tensors_are_refused(adapter, damage, words):
    file = adapter / "adapter_model.safetensors"
    state = load_file(file)
    name = next(n for n in state if "lora_B" in n)
    state[name] = damage(state[name].clone())
    save_file(state, file)
    with pytest.raises(Refusal, match=words):
        models.check_adapter(adapter)


def test_a_file_cut_short_or_with_fewer_tensors_is_refused(adapter):
    file = adapter / "adapter_model.safetensors"
    with pytest.raises(Refusal, match="holds 16 tensors where the model has 17"):
        models.check_adapter(adapter, 17)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Refusal, match="cut short"):
        models.check_adapter(adapter)


def test_the_merged_model_says_what_the_adapter_says(adapter, tmp_path):
    figures = merging.merge(adapter, tmp_path / "merged_model", MESSAGES)
    assert 0 < figures["relative_rms"] < figures["tolerance"]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged_model")
    plain = AutoModelForCausalLM.from_pretrained(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    assert merged.dtype == torch.bfloat16
    assert not torch.equal(merged.model.layers[0].self_attn.q_proj.weight, plain.model.layers[0].self_attn.q_proj.weight)
    assert torch.equal(merged.model.layers[0].self_attn.k_proj.weight, plain.model.layers[0].self_attn.k_proj.weight)


def test_a_merged_model_that_says_something_else_is_refused_and_kept_aside(adapter, tmp_path, monkeypatch):
    real = AutoModelForCausalLM.from_pretrained

    def damaged(name, *arguments, **options):  # a save that loses something shows when the directory is loaded again
        if str(name).endswith(".unverified"):
            file = tmp_path / "merged_model.unverified" / "model.safetensors"
            state = load_file(file)
            state["model.layers.0.mlp.down_proj.weight"].zero_()
            save_file(state, file, metadata={"format": "pt"})
        return real(name, *arguments, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", damaged)
    with pytest.raises(Refusal, match="so it would not say the same"):
        merging.merge(adapter, tmp_path / "merged_model", MESSAGES)
    assert not (tmp_path / "merged_model").exists() and (tmp_path / "merged_model.refused" / "config.json").is_file()


def test_merging_into_a_quantised_base_is_refused(adapter, base, tmp_path):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    AutoModelForCausalLM.from_pretrained(base, quantization_config=config).save_pretrained(tmp_path / "base-4bit")
    written = json.loads((adapter / "adapter_config.json").read_text())
    shutil.copytree(adapter, tmp_path / "other")
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps(written | {"base_model_name_or_path": str(tmp_path / "base-4bit")}))
    with pytest.raises(Refusal, match="is quantised"):
        merging.merge(tmp_path / "other", tmp_path / "merged_model", MESSAGES)


def test_padding_gets_a_token_of_its_own(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    models.set_pad_token(tokenizer, model)
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>" and model.config.pad_token_id == tokenizer.pad_token_id


def test_the_trained_tensors_are_held_in_fp32(trained):
    model, _ = trained
    model.to(torch.bfloat16)
    models.train_in_fp32(model)
    kinds = {p.requires_grad: p.dtype for p in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}

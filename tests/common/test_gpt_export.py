"""The export read back by plain transformers, and what must not be passed on."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_gpt import made, some_rows
from transformers import AutoModelForCausalLM

from common import gpt_export
from common.refusal import Refusal


def saved(tmp_path, dtype=torch.float32):
    model = made().to(dtype)
    gpt_export.save(model.state_dict(), model.shape, tmp_path, end_of_text=3)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_transformers_reads_the_same_model(tmp_path, dtype):
    model, (ids, _) = saved(tmp_path, dtype), some_rows()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype == dtype and theirs.config.eos_token_id == 3 and theirs.config.vocab_size == 500
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    assert gpt_export.check(model, tmp_path, ids) <= gpt_export.NEAR


def test_there_and_back_nothing_changes(tmp_path):
    model = saved(tmp_path)
    back = gpt_export.from_hugging_face(load_file(tmp_path / "model.safetensors"), model.shape.padded_vocab_size)
    state = model.state_dict()
    assert back.keys() == state.keys()
    assert not back["wte.weight"][500:].any()
    back["wte.weight"][500:] = state["wte.weight"][500:]  # no token has these
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_an_export_with_other_numbers_is_refused(tmp_path):
    model, (ids, _) = saved(tmp_path), some_rows()
    state = load_file(tmp_path / "model.safetensors")
    state["transformer.h.1.mlp.c_fc.weight"] = state["transformer.h.1.mlp.c_fc.weight"] * 1.01
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refusal, match=r"differ from the trained model's by .*; it was not saved right"):
        gpt_export.check(model, tmp_path, ids)


def test_an_export_with_nan_is_refused(tmp_path):
    model, (ids, _) = saved(tmp_path), some_rows()
    state = load_file(tmp_path / "model.safetensors")
    state["transformer.ln_f.bias"][0] = torch.nan
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refusal, match="holds NaN"):
        gpt_export.check(model, tmp_path, ids)

"""The commands that serve a model: one shell word for every path and name, flags within what the servers take."""

import ast
import json
import shlex

import pytest

from common import serving

NASTY = "it's; $(touch x) & \"y\" ü/merged_model"


def after(words, flag):
    return words[words.index(flag) + 1]


def test_a_path_is_one_word_whatever_is_in_it():
    assert shlex.split(serving.vllm(NASTY, "a", 2048))[:3] == ["vllm", "serve", NASTY]
    assert shlex.split(serving.transformers(NASTY)) == ["transformers", "serve", NASTY]
    code, file = serving.gguf(NASTY)
    assert shlex.split(serving.llama_server(file, 512)) == [serving.LLAMA_SERVER, "-m", file, "-c", "512"]
    calls = [node for node in ast.walk(ast.parse("\n".join(code))) if isinstance(node, ast.Call)]
    assert sorted(ast.literal_eval(call.args[0]) for call in calls) == [NASTY, NASTY]


def test_a_name_needs_no_quotes_and_is_the_same_everywhere():
    for name in (NASTY, "-rf /", "a=b,c", "llama32_qlora-2"):
        served = serving.served_name(name)
        assert shlex.quote(served) == served and served[0] not in "-."
        assert after(shlex.split(serving.vllm("m", name, 1)), "--served-model-name") == served
        assert json.loads(shlex.split(serving.curl(name, "?", "1 Jan"))[-1])["model"] == served
    assert serving.served_name("llama32_qlora-2") == "llama32_qlora-2" and serving.served_name("…") == "model"


@pytest.mark.parametrize(("rank", "most"), [(1, "8"), (8, "8"), (24, "32"), (64, "64"), (300, "320")])
def test_an_adapters_rank_is_one_that_vllm_takes(rank, most):
    words = shlex.split(serving.vllm_adapter("owner/base", "out/final_model", "run", rank, 2048))
    assert after(words, "--max-lora-rank") == most and after(words, "--lora-modules") == "run=out/final_model"
    assert "--enable-lora" in words and after(words, "--max-model-len") == "2048" and "--revision" not in words
    assert serving.vllm_adapter("owner/base", "out/final_model", "run", 513, 2048) is None


def test_a_path_that_vllm_would_take_apart_goes_as_json():
    words = shlex.split(serving.vllm_adapter("owner/base", "lr=1,r=2/final_model", "run", 8, 64, "main"))
    assert json.loads(after(words, "--lora-modules")) == {"name": "run", "path": "lr=1,r=2/final_model"}
    assert after(words, "--revision") == "main"


def test_the_file_is_where_unsloth_puts_it():
    """unsloth/save.py: the directory's sibling …_gguf; the name is that of the directory it was loaded from, of "." "model"."""
    assert serving.gguf("outputs/a/merged_model/")[1] == "outputs/a/merged_model_gguf/merged_model.Q4_K_M.gguf"
    code, file = serving.gguf(".")
    assert file == "model_gguf/model.Q4_K_M.gguf" and 'save_pretrained_gguf("model", ' in code[-1] and 'from_pretrained(".", ' in code[1]


def test_what_a_recipe_says_at_its_end():
    said = serving.lines("outputs/it's/merged_model", "run", 2048)
    assert len(said) == 6 and said[1].strip() == serving.vllm("outputs/it's/merged_model", "run", 2048)
    assert said[3].strip() == serving.transformers("outputs/it's/merged_model")
    python = shlex.split(said[5])
    assert python[:2] == ["python", "-c"]
    ast.parse(python[2])
    said = serving.lines("outputs/a/final_model", "run", 2048, base="owner/base", rank=16)
    assert len(said) == 3 and "vllm serve owner/base --enable-lora" in said[1] and "MERGE" in said[2]
    assert len(serving.lines("outputs/a/final_model", "run", 2048, base="owner/base", rank=1024)) == 1

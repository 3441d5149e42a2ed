"""Positions are taken as a model's config.json says, and rows longer than that are refused."""

import json

import pytest

from common import dimensions, positions
from common.refusal import Refusal

QWEN3 = {"max_position_embeddings": 40_960, "rope_theta": 1_000_000}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}


@pytest.fixture
def model(tmp_path):
    def write(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("config", "length", "given"),
    [
        (QWEN3, 40_960, None),
        ({"max_position_embeddings": 262_144}, 262_144, None),
        (QWEN3 | {"rope_scaling": None}, 2048, None),
        (QWEN3 | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}, 40_960, None),
        (QWEN3 | {"rope_scaling": YARN}, 131_072, YARN),
        (QWEN3 | {"rope_scaling": YARN}, 40_960, None),  # Unsloth takes what the config says of itself up to its declared length
        (QWEN3 | {"rope_parameters": {**YARN, "rope_theta": 1e6}}, 131_072, {**YARN, "rope_theta": 1e6}),
        (QWEN3 | {"rope_scaling": {"type": "linear", "factor": 2}}, 81_920, {"rope_type": "linear", "factor": 2}),
        ({"max_position_embeddings": 131_072, "rope_scaling": LLAMA3}, 131_072, None),
    ],
)
def test_the_loader_is_given_what_the_config_asks_for(model, config, length, given):
    assert positions.require(model(config), length, "m")[0] == given


@pytest.mark.parametrize(
    ("config", "length", "allowed"),
    [
        (QWEN3, 131_072, "40,960"),
        (QWEN3 | {"rope_scaling": YARN}, 131_073, "131,072"),
        ({"max_position_embeddings": 131_072, "rope_scaling": LLAMA3}, 262_144, "131,072"),
    ],
)
def test_a_length_beyond_the_models_positions_is_refused_with_what_to_write(model, config, length, allowed):
    with pytest.raises(Refusal) as refusal:
        positions.require(model(config), length, "Qwen/Qwen3-4B")
    assert f"MAX_SEQ_LENGTH is {length:,}, and the config.json of Qwen/Qwen3-4B allows {allowed} positions" in str(refusal.value)
    written = json.loads("{" + str(refusal.value).split("model write ")[1].split(" into config.json")[0] + "}")
    helped = model({**config, **written, "rope_parameters": None})
    assert positions.require(helped, length, "copy")[0] == written["rope_scaling"]


def test_scaling_that_unsloth_would_ignore_is_refused(model):
    with pytest.raises(Refusal, match="scales positions by 'dynamic'; Unsloth takes over linear, yarn, llama3 alone"):
        positions.require(model(QWEN3 | {"rope_scaling": {"type": "dynamic", "factor": 4.0}}), 100_000, "m")


@pytest.mark.parametrize(("length", "warned"), [(131_072, True), (32_768, False)])
def test_scaling_beyond_what_was_pretrained_is_said(model, length, warned):
    _, warning = positions.require(model(QWEN3 | {"rope_scaling": YARN}), length, "m")
    assert bool(warning) == warned
    if warned:
        assert warning.startswith("m was pretrained on 32,768 positions; up to 131,072 they are scaled by yarn, factor 4.0, as its config")


def test_an_adapter_is_no_model_to_start_from(tmp_path):
    with pytest.raises(Refusal, match="has no config.json, so it is no model"):
        positions.require(tmp_path, 10**6, "m")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "max_position_embeddings = None; it must be a whole number"),
        ({"max_position_embeddings": "4096"}, "max_position_embeddings = '4096'"),
        (QWEN3 | {"rope_scaling": "yarn"}, 'rope_scaling = "yarn"; it must be an object'),
        (QWEN3 | {"rope_scaling": YARN | {"factor": None}}, "rope_scaling = "),
        (QWEN3 | {"rope_scaling": {"type": "linear"}}, "rope_scaling = "),
        (QWEN3 | {"rope_scaling": YARN | {"factor": "4"}}, "rope_scaling = "),
    ],
)
def test_a_config_that_no_model_has_is_refused(model, config, said):
    with pytest.raises(Refusal) as refusal:
        positions.require(model(config), 4096, "m")
    assert said in str(refusal.value) and "config.json says" in str(refusal.value)


def test_a_config_inside_a_config_is_read(model):
    assert positions.of_config({"text_config": QWEN3 | {"rope_scaling": YARN}}).longest == 131_072


def test_without_a_config_the_dimensions_count(model, tmp_path):
    known = dimensions.read("Qwen/Qwen3-4B-Instruct-2507")
    for directory in (None, tmp_path):
        assert positions.of(directory, known) == positions.Positions(262_144, 262_144, None, {})
    assert positions.of(model(QWEN3), known).longest == 40_960


def test_unsloth_keeps_to_the_scaling_that_the_config_asks_for(warm, tmp_path):
    """On its CPU backend; on a GPU it would scale linearly if it were not given the config's scaling."""
    code, said = warm.call(["tests/common/scaled_positions.py", str(tmp_path / "copy")], tmp_path)
    assert code == 0, said
    assert json.loads(said.rsplit("RESULT", 1)[1]) == {"scaling": "yarn", "as plain transformers": True, "as without scaling": False}

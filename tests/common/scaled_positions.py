"""A script for a test: a model whose config asks for YaRN, loaded by Unsloth as a recipe loads it, against plain transformers."""

import json
import shutil
import sys
from pathlib import Path

import torch
import unsloth  # noqa: F401 - before transformers
from transformers import AutoModelForCausalLM

from common import models, positions, tiny_models

LENGTH = 12_000  # beyond the 8,192 positions that the config declares
copy = Path(sys.argv[1])
shutil.copytree(tiny_models.ensure("tiny-qwen3"), copy)
config = json.loads((copy / "config.json").read_text())
yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8192}
config["rope_parameters"] = {**config["rope_parameters"], **yarn}
(copy / "config.json").write_text(json.dumps(config))

scaling, _ = positions.require(copy, LENGTH, "copy")
model, _ = models.load(str(copy), LENGTH, load_in_4bit=False, gradient_checkpointing="none", rope_scaling=scaling)
ids = torch.randint(3, 900, (1, 64), generator=torch.Generator().manual_seed(0))
far = torch.arange(LENGTH - 64, LENGTH)[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=ids, position_ids=far).logits.float()


plain = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.bfloat16).eval()
unscaled = AutoModelForCausalLM.from_pretrained(tiny_models.ensure("tiny-qwen3"), dtype=torch.bfloat16).eval()
print("RESULT", json.dumps({
    "scaling": scaling["rope_type"],
    "as plain transformers": torch.allclose(logits(model.eval()), logits(plain), atol=1e-3),
    "as without scaling": torch.allclose(logits(plain), logits(unscaled), atol=1e-3),
}))  # fmt: skip

"""`--plan` as a user runs it: without torch, without a network, and with the steps and tokens that training then has."""

import json
import re
import sys

from user_commands import call

ALONE = """
import socket, sys

def refuse(*_):
    raise OSError("no network here")

socket.socket.connect = socket.getaddrinfo = refuse
from recipes import llama32_qlora
found = llama32_qlora.main(plan=True, gpus="8xH200", tokens=10_000_000, json=True)
heavy = {"torch", "transformers", "unsloth", "datasets", "deepspeed"} & set(sys.modules)
assert not heavy, heavy
assert found["job"]["gpus"] == 8
"""


def test_a_plan_needs_no_network_and_loads_nothing_heavy(tmp_path):
    code, said = call([sys.executable, "-c", ALONE], tmp_path, RECIPES_CACHE=str(tmp_path / "cache"))
    assert code == 0, said
    found = json.loads(said)
    assert found["parameters"] == {"total": 3_212_749_824 + 24_313_856, "trainable": 24_313_856}
    assert not (tmp_path / "cache").exists()  # nothing is built, nothing written


def test_the_plan_has_the_steps_and_tokens_that_training_has(tiny_run, tmp_path):
    code, said = call([sys.executable, "recipes/llama32_qlora.py", "--tiny", "--plan"], tmp_path)
    assert code == 0, said
    assert "tokens from: tokenised cache" in said
    announced = r"^([\d,]+) steps of 8 x 1 x 1 rank\(s\) rows, about ([\d,]+) tokens each; 2 epochs; ([\d.]+%) padding"
    steps, tokens, padding = re.search(announced, tiny_run.output, re.MULTILINE).groups()
    assert f"steps     {steps} of {tokens} tokens; 2 epochs of " in said
    assert f"{padding} padding in rows grouped by length" in said
    planned = re.search(r"([\d,]+) parameters, ([\d,]+) of them trained", said)
    assert f"{planned[2]} of {planned[1]} parameters are trained" in tiny_run.output
    assert re.search(r"^memory    fits: .* of this machine", tiny_run.output, re.M)  # said before the training as well


"""A run directory as training leaves it, around a random two-layer Llama: two LoRA checkpoints, one of them trained, and a final model."""

import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: for a model this small a second thread only waits for the first
REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "eval"), str(REPOSITORY)]

WORDS = ["mean", "variance", "sample", "test", "power", "effect", "control", "treatment", "error", "rate", "size", "group", "week", "user"]


def conversations(count, seed):
    """Rows of five families; the answer can be read off the question."""
    draw = random.Random(seed)
    for n in range(count):
        first, second, number = draw.choice(WORDS), draw.choice(WORDS), draw.randrange(10, 99)
        question = f"What is the {first} of the {second} for n = {number}?"
        answer = f"The {first} of the {second} is {number}, and the {second} has {2 * number}."
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if n % 2:
            messages.insert(0, {"role": "system", "content": "You are an expert in statistics."})
        yield {"id": f"q{seed}_{n}", "group": f"family-{n % 5}", "topics": [], "messages": messages}


def write_tokenizer():
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from common.chat_text import template_path

    special = ["<|begin_of_text|>", "<|eot_id|>", "<|pad|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer = Tokenizer(models.BPE())
    split = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")  # line ends go together, as Llama's do
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    lines = [m["content"] for row in conversations(60, 9) for m in row["messages"]]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[2])
    fast.chat_template = template_path("llama3").read_text(encoding="utf-8")
    return fast


def write_rows(path, count, seed):
    path.write_text("".join(json.dumps(row) + "\n" for row in conversations(count, seed)), encoding="utf-8")


def train(model, tokenizer, steps):
    import torch

    from common import chat_text

    rows = [chat_text.encode(tokenizer, row["messages"], 256) for row in conversations(64, 1)]
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for step in range(steps):
        batch = [rows[(8 * step + n) % len(rows)] for n in range(8)]
        width = max(len(row.input_ids) for row in batch)
        ids = torch.tensor([row.input_ids + [0] * (width - len(row.input_ids)) for row in batch])
        labels = torch.tensor([row.labels + [-100] * (width - len(row.labels)) for row in batch])
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A finished run; tests that change anything take `run`, a copy."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from common.run_directory import RunDirectory, write_json

    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("outputs")
    tokenizer = write_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    train(model, tokenizer, 30)  # a base that knows words and how to stop, not the numbers
    model.save_pretrained(home / "base")
    tokenizer.save_pretrained(home / "base")
    run = RunDirectory(home / "tiny")
    constants = {"MODEL_NAME": "tiny", "MAX_SEQ_LENGTH": 256, "LOAD_IN_4BIT": False, "REPORT_TO": ["tensorboard"]}
    tuned = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM")
    )
    for step in (5, 10):
        if step == 5:
            with torch.no_grad():
                for name, parameter in tuned.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(std=0.05)
        else:
            train(tuned, tokenizer, 40)
        place = run.path / f"checkpoint-{step}"
        tuned.save_pretrained(place)
        tokenizer.save_pretrained(place)
        write_json(place / "constants.json", constants)
    shutil.copytree(run.path / "checkpoint-10", run.final_model)
    write_json(run.constants, constants)
    write_json(run.run, {"recipe": "tiny", "model_name": str(home / "base"), "model_revision": None, "steps": 10, "status": "finished"})
    write_rows(run.test, 15, 2)
    write_rows(run.validation, 10, 3)
    return run


@pytest.fixture
def run(made, tmp_path):
    """A copy of the run that a test may break."""
    from common.run_directory import RunDirectory

    shutil.copytree(made.path, tmp_path / "tiny")
    return RunDirectory(tmp_path / "tiny")


@pytest.fixture
def evaluate(capsys, monkeypatch):
    """eval_all.main in this process: (exit code, what it printed)."""
    import eval_all

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["eval_all.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            eval_all.main()
        return stop.value.code, capsys.readouterr().out

    return call


@pytest.fixture
def options():
    """The flags of a judgement, as a function."""
    import eval_all

    return lambda *arguments: eval_all.parse(["--max-new-tokens", "24", *map(str, arguments)])

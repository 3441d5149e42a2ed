"""Tokens a second of recipes/gpt_pretrain.py beside a plain PyTorch loop in fp32 in nanoGPT's manner, on the same rows from the same start.

python bench/pretraining.py                five minutes on two cores; writes bench/results/pretraining.md
python bench/pretraining.py --quick        a small model and a few steps, to see that it runs; prints only
python bench/pretraining.py --gpu          on a GPU: model FLOPs utilisation of the 1.3 billion parameters; writes pretraining_gpu.md

Both sides train 6 layers of width 384, 50,257 tokens, 8 rows of 256, dropout 0, in turn and in a fresh process each. The recipe's side is
its own main(): DeepSpeed's engine, bf16 with fp32 masters, logging, and the last checkpoint after the clock has stopped. The tokens are
those of Python's standard library. Speed counts from the fifth logged step, so that neither side's start is in it.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY, LEARNING_RATE, WARMUP, EVERY = 50_257, 6e-4, 10, 5
FULL = {"layers": 6, "width": 384, "heads": 6, "length": 256, "rows": 8, "steps": 40}
QUICK = {"layers": 2, "width": 64, "heads": 2, "length": 64, "rows": 4, "steps": 20}


def write_tokens(directory, tokens):
    """Two shards of the standard library's tokens, said to be of a vocabulary of 50,257."""
    import numpy as np

    from common import corpus, shards

    found = np.concatenate([shard.array()[:] for shard in shards.find([str(corpus.python_library())])])[:tokens]
    for number, part in enumerate(np.array_split(found, 2)):
        shards.write(directory, f"shard-{number:05d}-000", part, np.array([len(part)]), text_bytes=len(part), tokenizer="none",
                     vocab_size=VOCABULARY, end_of_text=0, sources=["standard library"])  # fmt: skip


def recipe(shape, directory, output):
    """The recipe's own main(); seconds and losses from its metrics.jsonl."""
    sys.path.insert(0, str(ROOT / "recipes"))
    import gpt_pretrain

    done = gpt_pretrain.main(
        num_hidden_layers=shape["layers"], hidden_size=shape["width"], num_attention_heads=shape["heads"], max_seq_length=shape["length"],
        dropout=0.0, train_files=[directory], validation_files=0, train_batch_size=shape["rows"], max_steps=shape["steps"],
        per_device_train_batch_size=shape["rows"], learning_rate=LEARNING_RATE, warmup_steps=WARMUP, checkpoint_every_files=None,
        save_total_limit=1, logging_steps=EVERY, report_to=[], samples=[], output_dir=output,
        ds_config=str(ROOT / "ds_configs/gpt_pretrain.json"),
    )  # fmt: skip
    lines = [json.loads(line) for line in (Path(done["run"]) / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["seconds"], line["loss"]) for line in lines if "loss" in line]


def plain(shape, directory, _):
    """A loop as in nanoGPT: fp32, logits of all tokens at once, torch.optim.AdamW, the same schedule."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from common import gpt, hardware, token_data

    hardware.prepare_torch()
    rows, width = shape["rows"], shape["width"]
    data = token_data.read([directory], tokenizer=None, context=shape["length"], validation_files=0, max_files=None, eval_tokens=1, seed=42)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
            self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

        def forward(self, x):
            b, t, c = x.shape
            q, k, v = (h.view(b, t, shape["heads"], -1).transpose(1, 2) for h in self.attn["c_attn"](self.ln_1(x)).split(c, 2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
            x = x + self.attn["c_proj"](y)
            return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(50_304, width), nn.Embedding(shape["length"], width)
            self.h, self.ln_f = nn.ModuleList(Block() for _ in range(shape["layers"])), nn.LayerNorm(width)

        def forward(self, ids):
            x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
            for block in self.h:
                x = block(x)
            return self.ln_f(x) @ self.wte.weight.t()

    model = Plain()
    torch.manual_seed(42)  # as the recipe does before it makes its own
    start = gpt.GPT(gpt.Shape(VOCABULARY, shape["length"], width, shape["layers"], shape["heads"]))
    model.load_state_dict(start.state_dict())
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    order, found, losses, began = data.train.order(42, 0, rows), [], [], time.time()
    for step in range(shape["steps"]):
        share = (step - WARMUP) / max(1, shape["steps"] - WARMUP)
        scale = step / WARMUP if step < WARMUP else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * scale
        batch = data.train[order[step * rows : (step + 1) * rows]]
        loss = F.cross_entropy(model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % EVERY == 0:
            found.append((step + 1, time.time() - began, sum(losses[-EVERY:]) / EVERY))
    return found


def measured(side, shape, directory):
    """(tokens a second, last loss) of one side, in a process of its own."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, __file__, "--side", side, "--shape", json.dumps(shape), "--directory", directory, "--output", output]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if ran.returncode:
            sys.exit(ran.stdout[-2000:] + ran.stderr[-4000:])
        found = json.loads(ran.stdout.splitlines()[-1])
    (first, start, _), (last, end, loss) = found[0], found[-1]
    return (last - first) * shape["rows"] * shape["length"] / (end - start), loss


def cpu_model():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())


def versions():
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "deepspeed"))


def compare(shape, rounds):
    with tempfile.TemporaryDirectory() as directory:
        write_tokens(directory, 2_000_000 if shape is FULL else 100_000)
        pairs = [(measured("plain", shape, directory), measured("recipe", shape, directory)) for _ in range(rounds)]
    ratios = [ours / theirs for (theirs, _), (ours, _) in pairs]
    size = "{layers} layers of width {width}, {rows} rows of {length}".format(**shape)
    return [
        f"# Pretraining on a CPU: {size}, vocabulary {VOCABULARY:,}, dropout 0",
        "",
        f"{cpu_model()}, {os.cpu_count()} cores. Python {platform.python_version()}, {versions()}.",
        f"Loss: mean of the last {EVERY} of {shape['steps']} steps, {shape['steps'] * shape['rows'] * shape['length']:,} tokens.",
        "",
        "| round | plain fp32, tokens/s | recipe, tokens/s | times as fast | plain loss | recipe's loss |",
        "|---|---|---|---|---|---|",
        *(
            f"| {n} | {theirs:,.0f} | {ours:,.0f} | {ours / theirs:.2f} | {their_loss:.4f} | {our_loss:.4f} |"
            for n, ((theirs, their_loss), (ours, our_loss)) in enumerate(pairs, 1)
        ),
        f"| median | | | **{statistics.median(ratios):.2f}** | | |",
    ]


def on_gpu(steps=60):
    """The recipe with its own constants on one GPU, on random tokens: MFU as the run itself logs it, the first half left out."""
    import numpy as np
    import torch

    from common import shards

    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as output:
        tokens = np.random.default_rng(0).integers(0, 50_000, 20_000_000)
        shards.write(directory, "shard-00000-000", tokens, np.array([len(tokens)]), text_bytes=len(tokens), tokenizer="none",
                     vocab_size=VOCABULARY, end_of_text=0, sources=["random"])  # fmt: skip
        sys.path.insert(0, str(ROOT / "recipes"))
        import gpt_pretrain

        done = gpt_pretrain.main(train_files=[directory], validation_files=0, max_steps=steps, warmup_steps=10, logging_steps=5,
                                 report_to=[], samples=[], checkpoint_every_files=None, dropout=0.0, output_dir=output)  # fmt: skip
        lines = [json.loads(line) for line in (Path(done["run"]) / "logs" / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line.get("mfu") and line["step"] > steps // 2]
    if not found:
        sys.exit(f"no MFU was logged: the peak of {torch.cuda.get_device_name()} is not known to common/accelerators.py")
    speed, mfu = (statistics.median(line[key] for line in found) for key in ("tokens_per_second", "mfu"))
    return [
        "# Pretraining gpt-1.2B on one GPU",
        "",
        f"{torch.cuda.get_device_name()}. Python {platform.python_version()}, {versions()}.",
        "",
        "| tokens/s | MFU (6 N + 12 L H T) | most memory, GB |",
        "|---|---|---|",
        f"| {speed:,.0f} | {mfu:.1%} | {max(line['memory_gb'] for line in found):.1f} |",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="each round runs one side after the other and gives one ratio")
    parser.add_argument("--side", choices=["plain", "recipe"], help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps({"plain": plain, "recipe": recipe}[args.side](args.shape, args.directory, args.output)))
        return
    table = on_gpu() if args.gpu else compare(QUICK if args.quick else FULL, 1 if args.quick else args.rounds)
    print("\n".join(table))
    if not args.quick:
        name = "pretraining_gpu.md" if args.gpu else "pretraining.md"
        (Path(__file__).parent / "results" / name).write_text("\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

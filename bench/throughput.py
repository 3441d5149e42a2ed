"""Tokens a second that are not padding: the training of recipes/llama32_qlora.py on a CPU beside TRL's stock `SFTTrainer`.

python bench/throughput.py               eight minutes or more on two cores; writes bench/results/throughput.md
python bench/throughput.py --quick       a few short rows and a smaller model, to see that it runs; prints only

Rows have the lengths of bench/lengths_mtg.csv. Both sides train QLoRA on the same model (built here, random weights) and the
same rows for one epoch, in turn and in a fresh process each; an epoch over a few short rows before it is not timed.
The recipe's side goes through the recipe's own helpers and constants. The stock side never imports Unsloth: trl,
transformers, peft and bitsandbytes, with their defaults for order, padding and loss.
"""

import argparse
import csv
import datetime
import importlib.metadata
import json
import os
import random
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = Path(__file__).parent / "lengths_mtg.csv"
SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4}
QUICK_SHAPE = {**SHAPE, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
VOCABULARY = 4096  # the output layer is 19 % of the weights; in Llama 3.2 3B it is 12 %
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "unsloth_zoo")


def lengths():
    """[(system, user, answer), …] in characters, one entry per conversation of the table, shortest first."""
    with LENGTHS.open(encoding="utf-8") as file:
        table = csv.DictReader(line for line in file if not line.startswith("#"))
        columns = ("system_characters", "user_characters", "answer_characters")
        return sorted((tuple(int(row[c]) for c in columns) for row in table for _ in range(int(row["count"]))), key=sum)


def prose():
    from pydoc_data.topics import topics  # English that comes with every Python

    return " ".join(" ".join(topics.values()).split())


def conversations(count, shrink, seed):
    """`count` rows of messages standing evenly over the sorted lengths, in random order; each seed draws others."""
    draw, every, text, rows = random.Random(seed), lengths(), prose(), []
    offset = draw.random()
    for place in range(count):
        sizes = [max(2, size // shrink) for size in every[int((place + offset) * len(every) / count)]]
        starts = [draw.randrange(len(text) - size) for size in sizes]
        pieces = zip(("system", "user", "assistant"), starts, sizes, strict=True)
        rows.append([{"role": role, "content": text[start : start + size]} for role, start, size in pieces])
    draw.shuffle(rows)
    return rows


def build_model(directory, shape):
    """A Llama of random weights with the embedded models' kind of tokenizer and Llama 3's real template; its millions of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from common import tiny_models

    tokenizer = tiny_models._train_tokenizer(replace(tiny_models.KNOWN["tiny-llama"], vocab_size=VOCABULARY), prose().splitlines(), [])
    control = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=2048, tie_word_embeddings=True, **control, **shape)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model.num_parameters() / 1e6


def common_settings(job, recipe):
    """What both sides are given: the recipe's constants, a larger step for the small model, and a loss at each step."""
    names = ("LR_SCHEDULER_TYPE", "WEIGHT_DECAY", "MAX_GRAD_NORM", "SEED")
    return {name.lower(): recipe[name] for name in names} | {
        "output_dir": job["scratch"], "num_train_epochs": 1, "per_device_train_batch_size": job["batch"], "learning_rate": 5e-3,
        "gradient_accumulation_steps": job["accumulation"], "warmup_steps": recipe["WARMUP_RATIO"], "data_seed": recipe["SEED"],
        "optim": "adamw_torch_fused", "bf16": True, "gradient_checkpointing": True, "max_length": recipe["MAX_SEQ_LENGTH"],
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip


def recipe_trainer(job, recipe, rows):
    import unsloth  # noqa: F401, I001 - before trl, transformers and peft, as in the recipe
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from common import batches, chat_text, models

    args = SFTConfig(**common_settings(job, recipe), packing=False, dataset_kwargs={"skip_prepare_dataset": True}, loss_type="nll",
                     logging_nan_inf_filter=False, include_num_input_tokens_seen="non_padding")  # fmt: skip
    checkpointing = recipe["GRADIENT_CHECKPOINTING"]
    model, tokenizer = models.load(job["model"], args.max_length, recipe["LOAD_IN_4BIT"], None, checkpointing)
    model = models.add_lora(model, recipe["LORA_R"], recipe["LORA_ALPHA"], recipe["LORA_DROPOUT"], recipe["TARGET_MODULES"], checkpointing)
    encoded = [chat_text.encode(tokenizer, row, args.max_length) for row in rows]
    data = Dataset.from_dict({"input_ids": [e.input_ids for e in encoded], "labels": [e.labels for e in encoded]})
    trainer = SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    return trainer, lambda rows: batches.group_by_length(trainer, [len(ids) for ids in rows["input_ids"]], job["batch"], recipe["SEED"])


def stock_trainer(job, recipe, rows):
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    # keep_end: the default cuts from the right and then drops rows whose answer is gone, which would be other rows than ours
    args = SFTConfig(**common_settings(job, recipe), assistant_only_loss=True, truncation_mode="keep_end", use_cpu=True)
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    quantised = BitsAndBytesConfig(load_in_4bit=recipe["LOAD_IN_4BIT"], **nf4)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16, quantization_config=quantised)
    lora = LoraConfig(r=recipe["LORA_R"], lora_alpha=recipe["LORA_ALPHA"], lora_dropout=recipe["LORA_DROPOUT"],
                      target_modules=recipe["TARGET_MODULES"], task_type="CAUSAL_LM")  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    data = Dataset.from_dict({"messages": rows})
    return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=lora), lambda rows: None


def run_side(job):
    """Train one side in this process; the figures of the timed epoch."""
    recipe = runpy.run_path(str(ROOT / "recipes" / "llama32_qlora.py"))
    make = {"recipe": recipe_trainer, "stock": stock_trainer}[job["side"]]
    trainer, set_order = make(job, recipe, json.loads(Path(job["rows"]).read_text()))
    assert ("unsloth" in sys.modules) == (job["side"] == "recipe")
    import torch
    from transformers import TrainerCallback

    seen, collate, padding = {}, trainer.data_collator, trainer.processing_class.pad_token_id

    def counting(features):
        batch = collate(features)
        counts = {"tokens": batch["input_ids"] != padding, "all": batch["input_ids"] >= 0, "labels": batch["labels"] != -100}
        seen.update({name: seen.get(name, 0) + int(mask.sum()) for name, mask in counts.items()})
        return batch

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.start = time.perf_counter(), time.process_time()
            seen.clear()

        def on_step_end(self, *_, **__):
            self.stop = time.perf_counter(), time.process_time()

    trainer.data_collator, clock = counting, Clock()
    trainer.add_callback(clock)
    everything = trainer.train_dataset
    shortest = sorted(range(len(everything)), key=lambda i: len(everything[i]["input_ids"]))
    for data in (everything.select(shortest[: 2 * job["batch"] * job["accumulation"]]), everything):  # the first warms up
        trainer.train_dataset = data
        set_order(data)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seconds, cpu_seconds = (stop - start for start, stop in zip(clock.start, clock.stop, strict=True))
    return {**seen, "seconds": seconds, "cpu_seconds": cpu_seconds, "rows": len(everything), "first_loss": losses[0],
            "last_loss": losses[-1], "loss_type": str(trainer.args.loss_type), "threads": torch.get_num_threads()}  # fmt: skip


def measure(job):
    """`run_side` in a fresh process."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "UNSLOTH_COMPILE_LOCATION": f"{job['scratch']}/compiled"}
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, env=environment, cwd=job["scratch"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the {job['side']} side ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(pairs):
    """The results' lines; pairs: [(batch, recipe's figures, stock's figures), …]."""
    titles = ("batch", "tokens/s, recipe", "tokens/s, stock", "ratio", "ratio by CPU time", "padding, recipe", "padding, stock",
              "loss, recipe", "loss, stock")  # fmt: skip
    yield from (f"| {' | '.join(titles)} |", "|---" * len(titles) + "|")
    ratios = {}
    for batch, *sides in pairs:
        wall, cpu = ([side["tokens"] / side[clock] for side in sides] for clock in ("seconds", "cpu_seconds"))
        ratios.setdefault(batch, []).append((wall[0] / wall[1], cpu[0] / cpu[1]))
        cells = [f"{speed:,.0f}" for speed in wall] + [f"{a / b:.2f}" for a, b in (wall, cpu)]
        cells += [f"{1 - s['tokens'] / s['all']:.1%}" for s in sides] + [f"{s['first_loss']:.2f} to {s['last_loss']:.2f}" for s in sides]
        yield f"| {' | '.join([batch, *cells])} |"
    yield ""
    for batch, found in ratios.items():
        by_clock, by_cpu = (statistics.median(ratio) for ratio in zip(*found, strict=True))
        yield f"Batch {batch}: median ratio **{by_clock:.2f}**, by CPU time **{by_cpu:.2f}**, {len(found)} measured;"
        yield f"the difference in padding alone, over 9,600 rows of the table, gives {by_padding(int(batch.split()[0])):.2f}."


def by_padding(batch):
    """The ratio that the difference in padding alone gives over 9,600 rows of the table, were every position equally dear."""
    import numpy as np

    from common import batches

    draw = np.random.default_rng(0)
    tokens = draw.permutation([min(2048, 16 + sum(row) // 4) for row in lengths()])[:9600]
    orders = batches.grouped_order(tokens, batch, 0, 0), np.arange(9600)
    grouped, shuffled = (1 - batches.padding_share(tokens, order, batch) for order in orders)
    return grouped / shuffled


def conditions(pairs, million):
    """Where, with what and on what the table was measured."""
    from rouge import cpu_model

    from common.hardware import cpu_cores, memory_gib

    _, a, b = pairs[0]
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    yield f"{cpu_model()}, {cpu_cores()} cores, {memory_gib():.0f} GiB; {a['threads']} threads on one side, {b['threads']} on the other."
    yield f"Load average of the last 15 minutes when done: {os.getloadavg()[2]:.1f} (2.0 is this measurement alone on two cores)."
    yield f"{datetime.date.today()}, commit {git.stdout.strip() or 'unknown'}, Python {sys.version.split()[0]}, {versions}."
    yield ""
    yield f"QLoRA as the recipe's constants say (optimiser: fused AdamW) of a Llama with {million:.1f} million parameters. {a['rows']} rows"
    yield "each time, drawn evenly over lengths_mtg.csv, at most 2048 tokens; rows and label tokens are the same on both sides. Loss:"
    yield f"{a['loss_type']} on the recipe's side, {b['loss_type']} on the other; shown at the first and last step. Where others used"
    yield "the machine, trust the ratio by CPU time, which counts only the seconds a side really ran."


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="drawn evenly over the lengths, others for each pair")
    parser.add_argument("--pairs", type=int, default=3, help="of batch 8; the recipe's 2 x 4 is measured twice")
    parser.add_argument("--quick", action="store_true", help="24 rows of a sixteenth of the length, one pair, nothing written")
    parser.add_argument("--output", default=Path(__file__).parent / "results" / "throughput.md", help="- for the terminal only")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        return print(json.dumps(run_side(json.loads(args.job))))
    plan = [(4, 1)] if args.quick else [(8, 1)] * args.pairs + [(2, 4)] * 2
    with tempfile.TemporaryDirectory() as scratch:
        million = build_model(f"{scratch}/model", QUICK_SHAPE if args.quick else SHAPE)
        pairs, rows = [], Path(scratch) / "rows.json"
        for seed, (batch, accumulation) in enumerate(plan):
            rows.write_text(json.dumps(conversations(24 if args.quick else args.rows, 16 if args.quick else 1, seed)))
            job = {"model": f"{scratch}/model", "rows": str(rows), "scratch": scratch, "batch": batch, "accumulation": accumulation}
            a, b = (measure({**job, "side": side}) for side in ("recipe", "stock"))
            if (a["rows"], a["labels"]) != (b["rows"], b["labels"]):
                sys.exit(f"the sides trained on different data: {a} {b}")
            pairs.append((f"{batch} x {accumulation}", a, b))
            speeds = " and ".join(f"{side['tokens'] / side['seconds']:,.0f}" for side in (a, b))
            print(f"{seed + 1} of {len(plan)}: {speeds} tokens/s", file=sys.stderr)
        lines = ["# Tokens a second: the recipe and TRL's stock SFTTrainer", "", *conditions(pairs, million), "", *table(pairs)]
    print("\n".join(lines))
    if not args.quick and args.output != "-":
        Path(args.output).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()

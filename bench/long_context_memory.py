"""Peak memory of training as rows grow: the path of recipes/qwen3_4b_longctx.py beside TRL's plain cross-entropy, on a CPU.

python bench/long_context_memory.py               ten minutes on two cores, up to 7 GB; writes bench/results/long_context_memory.md
python bench/long_context_memory.py --quick       one short length, to see that it runs; prints only

LoRA of a small Qwen3 (random weights) with the real vocabulary of 151,936, the recipe's constants for the adapter, one row a step. Every
figure is of a process of its own: its largest resident memory (getrusage's ru_maxrss) and its resident memory just before the first step,
weights included. The plain side never imports Unsloth: TRL's SFTTrainer with loss_type="nll" on transformers and peft, with the same
rows, the same adapter and the same checkpointing. Both sides run with glibc told to give large blocks back to the system at once, from
one arena, so that resident memory follows the tensors that are alive.
"""

import argparse
import datetime
import json
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from throughput import ROOT, prose

VOCABULARY = 151_936  # Qwen3's
SHAPE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SHORT = 16  # labels of the rows that show the layers: fewer than one chunk of the loss
LENGTHS, QUICK_LENGTHS = (512, 1024, 2048, 3072, 6144, 12288), (512,)
SIDES = {
    "plain": "plain nll",
    "recipe": "recipe",
    "held_out": "recipe, with held-out losses",
    "short": f"recipe, {SHORT} labels a row",
}
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def build_model(directory):
    """A Qwen3 of random weights in bf16, a tokenizer beside it that only lends its padding token; its millions of parameters."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from common import tiny_models

    tokenizer = tiny_models._train_tokenizer(replace(tiny_models.KNOWN["tiny-llama"], vocab_size=512), [prose()[:10_000]], [])
    control = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=VOCABULARY, head_dim=64, max_position_embeddings=262_144, rope_theta=5e6, tie_word_embeddings=True,
                         **control, **SHAPE)  # fmt: skip
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model.num_parameters() / 1e6


def rows(length, labels, seed):
    """One row of `length` random tokens, of which the last `labels` are to be learned."""
    import numpy as np
    from datasets import Dataset

    ids = np.random.default_rng(seed).integers(512, VOCABULARY, length)
    learned = np.where(np.arange(length) < length - labels, -100, ids)
    return Dataset.from_dict({"input_ids": [ids.tolist()], "labels": [learned.tolist()], "length": [length]})


def recipe_constants():
    return runpy.run_path(str(ROOT / "recipes" / "qwen3_4b_longctx.py"))


def trainer(job, recipe):
    """The side's trainer, as its users make it."""
    ours = job["side"] != "plain"
    if ours:
        import unsloth  # noqa: F401, I001 - before trl, transformers and peft, as in the recipe
    import torch
    from trl import SFTConfig, SFTTrainer

    judged = job["side"] == "held_out"
    args = SFTConfig(
        output_dir=job["scratch"], max_steps=2, per_device_train_batch_size=1, per_device_eval_batch_size=1, bf16=True,
        gradient_checkpointing=True, max_length=job["length"], packing=False, dataset_kwargs={"skip_prepare_dataset": True},
        loss_type="nll", eval_strategy="steps" if judged else "no", eval_steps=1, prediction_loss_only=True, save_strategy="no",
        logging_steps=1, optim="adamw_torch_fused", learning_rate=recipe["LEARNING_RATE"], report_to="none", disable_tqdm=True,
        use_cpu=True,
    )  # fmt: skip
    r, alpha, dropout, modules = (recipe[name] for name in ("LORA_R", "LORA_ALPHA", "LORA_DROPOUT", "TARGET_MODULES"))
    data = rows(job["length"], SHORT if job["side"] == "short" else job["length"], 0)
    held_out = rows(job["length"], job["length"], 1) if judged else None
    if ours:
        from common import held_out_loss, models

        checkpointing = recipe["GRADIENT_CHECKPOINTING"]
        model, tokenizer = models.load(job["model"], job["length"], False, None, checkpointing, recipe["TILED_MLP"])
        model = models.add_lora(model, r, alpha, dropout, modules, checkpointing)
        made = held_out_loss.HeldOutLoss(model=model, args=args, train_dataset=data, eval_dataset=held_out, processing_class=tokenizer)
        models.train_in_fp32(model)
        return made
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    args.gradient_checkpointing_kwargs = {"use_reentrant": False}
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16)
    lora = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=modules, task_type="CAUSAL_LM")
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer, peft_config=lora)


def run_side(job):
    """Two steps in this process, the second with the optimiser's state: bytes before them and at the peak, and the first loss."""
    from common import hardware

    hardware.prepare_torch()
    import psutil

    made = trainer(job, recipe_constants())
    assert ("unsloth" in sys.modules) == (job["side"] != "plain")
    for parameter in made.model.parameters():
        parameter.sum()  # weights are read from the disk when they are first touched: now
    before = psutil.Process().memory_info().rss
    until = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.perf_counter()
    made.train()
    first_loss = next(entry["loss"] for entry in made.state.log_history if "loss" in entry)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if peak <= until:
        sys.exit(f"the largest resident memory, {until / 1e6:.0f} MB, was before the first step: take longer rows")
    return {"before": before, "peak": peak, "seconds": time.perf_counter() - started, "loss": first_loss}


def measure(job):
    """`run_side` in a fresh process."""
    environment = {**os.environ, **MALLOC, "UNSLOTH_COMPILE_LOCATION": f"{job['scratch']}/compiled"}
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, env=environment, cwd=job["scratch"], capture_output=True, text=True)
    if done.returncode:
        what = f"{SIDES[job['side']]} at {job['length']:,} tokens"
        sys.exit(f"{what} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(directory, lengths, sides, most_gb):
    """{side: {length: figures}}; a plain step is left out where the shorter ones say it would need more than `most_gb` or is free."""
    from common.hardware import GIB, free_memory_gib

    found = {side: {} for side in sides}
    for side in sides:
        for length in lengths:
            done = found[side]
            if side == "plain" and len(done) > 1:
                slope, start, _ = line({n: figures["peak"] for n, figures in done.items()})
                if start + slope * length > min(most_gb * 1e9, 0.8 * free_memory_gib() * GIB):
                    break
            job = {"side": side, "length": length, "model": f"{directory}/model", "scratch": directory}
            done[length] = figures = measure(job)
            seconds = f"{figures['seconds']:.0f} s"
            print(f"{SIDES[side]}, {length:,} tokens: {figures['peak'] / 1e9:.2f} GB, {seconds}", file=sys.stderr)
    return found


def step(figures):
    """Bytes that training needed beside what was there before it."""
    return figures["peak"] - figures["before"]


def line(values):
    """(bytes a token, bytes at 0 tokens, largest residual) of the least-squares line through {tokens: bytes}."""
    import numpy as np

    tokens, amounts = (np.array(list(part), dtype=float) for part in (values, values.values()))
    slope, start = np.polyfit(tokens, amounts, 1)
    return slope, start, float(abs(amounts - start - slope * tokens).max())


def table(found, lengths):
    """The absolute peaks, in GB of 10^9 bytes."""
    titles = ("tokens a row", "logits alone in fp32", *(SIDES[side] for side in found), "plain / recipe")
    yield from (f"| {' | '.join(titles)} |", "|---" * len(titles) + "|")
    for length in lengths:
        cells = [f"{length:,}", f"{4 * length * VOCABULARY / 1e9:.2f}"]
        cells += [f"{found[side][length]['peak'] / 1e9:.2f}" if length in found[side] else "" for side in found]
        pair = [found[side][length]["peak"] for side in ("plain", "recipe") if length in found[side]]
        yield f"| {' | '.join(cells)} | {f'{pair[0] / pair[1]:.1f}' if len(pair) == 2 else ''} |"


def lines(found):
    """What a token costs each side."""
    yield "What training adds to the memory before it, as a line over the lengths:"
    yield from ("", "| | before, GB | KB a token | at 0 tokens, MB | largest residual, MB |", "|---|---|---|---|---|")
    for side in found:
        slope, start, residual = line({length: step(figures) for length, figures in found[side].items()})
        before = max(figures["before"] for figures in found[side].values())
        yield f"| {SIDES[side]} | {before / 1e9:.2f} | {slope / 1e3:,.1f} | {start / 1e6:,.0f} | {residual / 1e6:.1f} |"


def remarks(found):
    """What the figures say, from the figures."""
    slopes = {side: line({length: step(figures) for length, figures in found[side].items()})[0] / 1e3 for side in found}
    counted = counted_layers(max(found["short"])) / 1e3
    more = max(figures["peak"] - found["recipe"][length]["peak"] for length, figures in found["held_out"].items())
    apart = max(abs(figures["loss"] - found["recipe"][length]["loss"]) for length, figures in found["plain"].items())
    whole, chunk, plain = 4 * VOCABULARY / 1e3, 2**24 // VOCABULARY, slopes["plain"]
    yield f"- Logits of every token in fp32 are {whole:,.0f} KB a token; plain cross-entropy takes {plain:,.0f}. The recipe's loss"
    yield f"  (Unsloth's, on a CPU 16 Mi logits at a time) makes those of {chunk} tokens, whatever the length, and not while a layer"
    yield "  is computed: its peak is that of one chunk until a layer needs more."
    yield f"- With {SHORT} labels a chunk is small and the layers are all that grows: {slopes['short']:.1f} KB a token, where the plan's"
    yield f"  arithmetic (`common/activations.py`) counts {counted:.1f}."
    yield f"- Held-out losses during training, every token a label, raise the peak by at most {more / 1e6:.0f} MB, at any length."
    yield f"- Plain and recipe differ by {apart:.1g} at most in the first loss of the same row."


def counted_layers(tokens):
    """Bytes a token that the plan's arithmetic counts for the layers of this model on a CPU."""
    from common.activations import Training, kept_bytes, working_bytes
    from common.dimensions import Dimensions

    recipe = recipe_constants()
    model = Dimensions("qwen3", **SHAPE, head_dim=64, vocab_size=VOCABULARY, max_position_embeddings=262_144, tie_word_embeddings=True)
    layers = Training(lora_r=recipe["LORA_R"], target_modules=tuple(recipe["TARGET_MODULES"]), cpu=True)
    return (kept_bytes(model, tokens, "true", layers) + working_bytes(model, tokens, "true", layers)) / tokens


def conditions(million):
    """Where, with what and on what the table was measured."""
    import importlib.metadata

    from rouge import cpu_model

    from common.hardware import cpu_cores, memory_gib

    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    names = ("torch", "transformers", "trl", "peft", "unsloth", "unsloth_zoo")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    yield f"{cpu_model()}, {cpu_cores()} cores, {memory_gib():.0f} GiB. {datetime.date.today()}, commit {git.stdout.strip() or 'unknown'},"
    yield f"Python {sys.version.split()[0]}, {versions}."
    yield ""
    shape = "{num_hidden_layers} layers of width {hidden_size}, feed-forward {intermediate_size}".format(**SHAPE)
    yield "Largest resident memory of a process in which two steps of one row are trained, GB of 10^9 bytes: LoRA with the recipe's"
    yield f"constants of a Qwen3 of {shape}, {million:.0f} million parameters, vocabulary {VOCABULARY:,}."
    yield "Every token is a label where nothing else is said. Empty: not run, for want of memory. On a GPU Unsloth runs other kernels."


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(map(str, QUICK_LENGTHS))} tokens, nothing written")
    parser.add_argument("--most-gb", type=float, default=7.0, help="a plain step expected to need more is left out")
    parser.add_argument("--output", default=Path(__file__).parent / "results" / "long_context_memory.md", help="- for the terminal only")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        return print(json.dumps(run_side(json.loads(args.job))))
    lengths, sides = (QUICK_LENGTHS, ["plain", "recipe"]) if args.quick else (LENGTHS, list(SIDES))
    with tempfile.TemporaryDirectory() as directory:
        million = build_model(f"{directory}/model")
        found = measure_all(directory, lengths, sides, args.most_gb)
    title = "# Peak memory of training as rows grow: chunked loss and plain cross-entropy"
    text = [title, "", *conditions(million), "", *table(found, lengths)]
    if not args.quick:
        text += ["", *lines(found), "", *remarks(found)]
    print("\n".join(text))
    if not args.quick and args.output != "-":
        Path(args.output).write_text("\n".join(text) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()

"""Longest rows on one GPU: recipes/qwen3_4b_longctx.py itself on a Qwen3-4B of random weights, at 32k to 262,144 tokens.

python bench/long_context_gpu.py                            one GPU of 80 GB, 100 GB of host memory; an hour on an H100
python bench/long_context_gpu.py -- --tiled-mlp false       the same with other constants of the recipe, after --
python bench/long_context_gpu.py --tiny                     small shapes on a CPU, to see that it runs; prints only

Each length is a run of the recipe's own command in a process of its own, four steps of one row of exactly that length, with a held-out
loss after the second. Memory is what the run logs, the most that torch allocated; seconds and tokens/s are the median of the steps after
the first. Beside it stands what `--plan` says of the same command. A length that runs out of memory is said, and the longest that fits is
then looked for between it and the longest that did. Writes bench/results/long_context_gpu.md and .json.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import random
import re
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import hardware, refusal
from common.refusal import Refusal

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "qwen3_4b_longctx.py"
SHAPED_LIKE = "Qwen/Qwen3-4B-Instruct-2507"
LENGTHS, TINY_LENGTHS = (32_768, 65_536, 131_072, 200_000, 262_144), (700, 1_500)
TINY_SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 16, "vocab_size": 4096}  # fmt: skip
ROUND = 4096  # tokens; the longest length that fits is found to this
PACKAGES = ("torch", "transformers", "trl", "peft", "unsloth", "unsloth_zoo")


def build_model(directory, tiny):
    """Random weights in bf16 of the true shape, with the recipe's small tokenizer, whose template is Qwen3's own."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from common import dimensions, hub

    known = dimensions.KNOWN[SHAPED_LIKE]
    shape = TINY_SHAPE if tiny else {name: getattr(known, name) for name in TINY_SHAPE}
    tokenizer = AutoTokenizer.from_pretrained(hub.find(runpy.run_path(str(RECIPE))["TINY"]["MODEL_NAME"]))
    control = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    positions = {"max_position_embeddings": known.max_position_embeddings, "rope_theta": 5e6}
    config = Qwen3Config(**shape, **positions, **control, tie_word_embeddings=known.tie_word_embeddings)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def write_rows(file, tokenizer, length, count, seed):
    """`count` conversations of exactly `length` tokens: a document of digits, each of which is one token, and an answer of 64 of them."""
    from common import chat_text

    draw = random.Random(seed)

    def row(digits):
        document, answer = ("".join(draw.choices("0123456789", k=k)) for k in (digits, 64))
        return [{"role": "system", "content": "You are a legal assistant. Summarise the document."}, {"role": "user", "content": document},
                {"role": "assistant", "content": answer}]  # fmt: skip

    def tokens(messages):
        return len(chat_text.encode(tokenizer, messages, 2 * length).input_ids)

    frame = tokens(row(8)) - 8
    rows = [row(length - frame) for _ in range(count)]
    if (found := tokens(rows[0])) != length:
        raise Refusal(
            f"a row meant to have {length:,} tokens has {found:,}; a digit has to be one token of the tokenizer in {tokenizer.name_or_path}"
        )
    with Path(file).open("w", encoding="utf-8") as out:
        out.writelines(json.dumps({"messages": messages}) + "\n" for messages in rows)


def command(directory, length, steps, flags, tiny):
    """The recipe's command line for rows of `length` tokens."""
    constants = {
        "model-name": f"{directory}/model", "train-files": json.dumps({f"{directory}/train-{length}.jsonl": 1.0}),
        "validation-file": f"{directory}/held-out-{length}.jsonl", "test-file": "none", "max-seq-length": length,
        "max-steps": steps, "warmup-steps": 1, "gradient-accumulation-steps": 1, "eval-steps": 2, "save-steps": 1000, "logging-steps": 1,
        "report-to": "[]", "merge": "false", "output-dir": f"{directory}/outputs", "run-name": f"rows-of-{length}",
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in constants.items()]
    return [sys.executable, str(RECIPE), *(["--tiny"] if tiny else []), *words, *flags]


def run(directory, tokenizer, length, args):
    """One length: {"length", "ran": True, "memory_gb", …} or {"ran": False, "why": …}, the plan's prediction in both."""
    write_rows(f"{directory}/train-{length}.jsonl", tokenizer, length, args.steps, 0)
    write_rows(f"{directory}/held-out-{length}.jsonl", tokenizer, length, 1, 1)
    words = command(directory, length, args.steps, args.flags, args.tiny)
    # one GPU: with several, the recipe would start itself on all
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    options = {"capture_output": True, "text": True, "env": environment, "cwd": ROOT}  # where the recipe's own files are
    planned = subprocess.run([*words, "--plan", "--json"], **options)
    if planned.returncode:
        raise Refusal(f"the recipe's --plan ended with {planned.returncode} at {length:,} tokens:\n{tail(planned)}")
    found = {"length": length, **prediction(json.loads(planned.stdout))}
    ran = subprocess.run([*words, "--no-plan"], **options)
    outputs = Path(directory) / "outputs"
    if ran.returncode == 0:
        found |= {"ran": True} | figures(outputs / f"rows-of-{length}", length)
        shutil.rmtree(outputs)  # gigabytes of checkpoints
        return found
    said = ran.stdout + ran.stderr
    if not re.search(r"out of memory|can't allocate memory", said):
        raise Refusal(f"the recipe ended with {ran.returncode} at {length:,} tokens, and not for want of memory:\n{tail(ran)}")
    return found | {"ran": False, "why": "out of memory"}


def tail(done):
    return (done.stdout + done.stderr)[-3000:]


def prediction(plan):
    return {"planned_gb": plan["memory_bytes_per_gpu"]["total"] / 1e9, "planned_seconds": plan["time"]["step"] if plan["time"] else None}


def figures(run_directory, length):
    """From the run's own log: GB before and after the held-out loss, seconds a step and tokens/s of the later steps."""
    lines = [json.loads(line) for line in (run_directory / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps, judged = [line for line in lines if line.get("loss") is not None], [line for line in lines if "eval_loss" in line]
    if len(steps) < 4 or not judged:
        raise Refusal(f"{run_directory} has {len(steps)} steps and {len(judged)} held-out losses in its log; four and one are needed")
    speed = statistics.median(line["tokens_per_second"] for line in steps[1:])
    until = [line["memory_gb"] for line in steps if line["step"] <= judged[0]["step"]]
    return {"memory_gb": max(line["memory_gb"] for line in steps), "memory_gb_before_held_out": max(until), "tokens_per_second": speed,
            "seconds": length / speed, "loss": steps[-1]["loss"], "eval_loss": judged[0]["eval_loss"]}  # fmt: skip


def longest(results):
    """(longest length that ran, shortest that did not, None where all ran)."""
    ran = [row["length"] for row in results if row["ran"]]
    over = [row["length"] for row in results if not row["ran"]]
    return max(ran, default=None), min(over, default=None)


def measure(directory, tokenizer, args):
    """The results of all lengths, shortest first, and of those tried between the longest that fits and the shortest that does not."""
    results = []
    for length in args.lengths:
        results.append(said(run(directory, tokenizer, length, args)))
    for _ in range(args.search):
        fits, over = longest(results)
        middle = (fits + over) // 2 // ROUND * ROUND if fits and over else 0
        if not fits or middle <= fits:
            break
        results.append(said(run(directory, tokenizer, middle, args)))
    return sorted(results, key=lambda row: row["length"])


def said(row):
    words = f"{row['memory_gb']:.1f} GB, {row['seconds']:.1f} s a step" if row["ran"] else row["why"]
    print(f"{row['length']:,} tokens: {words}", file=sys.stderr)
    return row


def table(results):
    titles = ("tokens a row", "peak, GB", "planned, GB", "seconds a step", "planned", "tokens/s", "held-out loss adds, GB")
    yield from (f"| {' | '.join(titles)} |", "|---" * len(titles) + "|")
    for row in results:
        planned, seconds = f"{row['planned_gb']:.1f}", f"{row['planned_seconds']:.1f}" if row["planned_seconds"] else ""
        if row["ran"]:
            more = row["memory_gb"] - row["memory_gb_before_held_out"]
            own = [f"{row['memory_gb']:.1f}", planned, f"{row['seconds']:.1f}", seconds, f"{row['tokens_per_second']:,.0f}", f"{more:.1f}"]
        else:
            own = [row["why"], planned, "", seconds, "", ""]
        yield f"| {row['length']:,} | {' | '.join(own)} |"
    fits, over = longest(results)
    yield ""
    if fits:
        yield f"Longest row that fits: **{fits:,}** tokens" + (f"; {over:,} did not." if over else ", the longest tried.")
    else:
        yield f"None of these lengths fits; {over:,} was the shortest."


def conditions(args):
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    yield f"{hardware.describe()}, {hardware.memory_gib():.0f} GiB of host memory. {datetime.date.today()},"
    yield f"commit {git.stdout.strip() or 'unknown'}, Python {sys.version.split()[0]}, {versions}."
    yield ""
    words, shape = " ".join([f"recipes/{RECIPE.name}", *args.flags]), "a small shape" if args.tiny else f"the shape of {SHAPED_LIKE}"
    yield f"`{words}`, one process, {args.steps} steps of one row each, random weights of {shape}."
    yield "Peak: the most that torch allocated, GB of 10^9 bytes; the driver shows more, the context and what the allocator keeps."
    yield "On a CPU it is the process's resident memory."


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="two short lengths and a small model, on a CPU")
    parser.add_argument("--lengths", type=int, nargs="+", help=f"tokens; else {', '.join(map(str, LENGTHS))}")
    parser.add_argument("--steps", type=int, default=4, help="of each length, at least 4")
    parser.add_argument("--search", type=int, default=3, help="more runs, to find the longest row that fits after one did not")
    parser.add_argument("--output", default=Path(__file__).parent / "results" / "long_context_gpu.md", help="- for the terminal only")
    parser.add_argument("--build", help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help="after --: constants of the recipe")
    args = parser.parse_args()
    args.lengths = sorted(args.lengths or (TINY_LENGTHS if args.tiny else LENGTHS))
    if args.steps < 4:
        raise Refusal(
            f"--steps is {args.steps}; the first is not timed, and two are wanted before and after a held-out loss: take 4 or more"
        )
    if not args.tiny and not hardware.gpus():
        raise Refusal("no GPU was found, and a Qwen3-4B of 262,144 tokens needs one of 80 GB; --tiny runs small shapes on a CPU")
    if args.build:
        return build_model(args.build, args.tiny)
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory:
        # in a process of its own, which leaves nothing on the GPU
        build = [sys.executable, __file__, "--build", f"{directory}/model", *(["--tiny"] if args.tiny else [])]
        subprocess.run(build, check=True, stdout=sys.stderr)
        results = measure(directory, AutoTokenizer.from_pretrained(f"{directory}/model"), args)
    text = ["# Qwen3-4B, LoRA, one row a step: memory and speed by length", "", *conditions(args), "", *table(results)]
    print("\n".join(text))
    if not args.tiny and args.output != "-":
        Path(args.output).write_text("\n".join(text) + "\n", encoding="utf-8")
        Path(args.output).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    hardware.prepare_torch()
    refusal.guard(main)

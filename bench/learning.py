"""Do the tiny recipes learn? Three seeds each, beside the untuned base.

    python bench/learning.py                   nine minutes on two cores; writes bench/results/learning.md
    python bench/learning.py --long-context    five more, of qwen3_4b_longctx; writes bench/results/learning_long_context.md
    python bench/learning.py --own-data        three more, of qwen25_7b_lora; writes bench/results/learning_own_data.md

llama32_qlora and qwen25_7b_lora: every seed holds out other question templates, and starts another adapter. It counts as learned where
the 95 % intervals of base and tuned model do not overlap, in loss and in ROUGE-L. mtg_full_32b, in two ranks under ZeRO-3: every seed has
another order of rows. It counts as learned where most facts are answered exactly in words never trained on, of which the base answers
hardly any. qwen3_4b_longctx: every seed starts another adapter and has another order of rows. It counts as learned where, at each place
of the documents, the interval of the facts named lies above the base's, and above a half. The exit code is 1 where one seed did not
learn.
"""

import argparse
import datetime
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from common import hardware, versions
from common.run_directory import RunDirectory, read_json

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (1, 2, 3)
AT = "fact_recall_"


def learn(seed, home, recipe="llama32_qlora"):
    """{"base": metrics, "final_model": metrics, "rows", "groups"} of one seed's tiny run in `home`."""
    name = f"{recipe}-{seed}"
    place = [str(home / name)] if recipe == "qwen25_7b_lora" else [str(home), "--run-name", name]
    flags = ["--tiny", "--seed", str(seed), "--no-merge", "--report-to", "[]", "--output-dir", *place]
    subprocess.run([sys.executable, f"recipes/{recipe}.py", *flags], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    judge = [sys.executable, "eval/eval_checkpoint.py", "--checkpoint", str(home / name / "final_model")]
    subprocess.run(judge, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    judged = {model: read_json(RunDirectory(home / name).eval / f"{model}.json") for model in ("base", "final_model")}
    return {model: found["metrics"] for model, found in judged.items()} | {k: judged["base"][k] for k in ("rows", "groups")}


def recall(seed, home):
    """{"before", "valid", "test"}: shares of facts answered exactly, by the base and after one seed's tiny run in two ranks."""
    name = f"facts-{seed}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        launcher = [Path(sys.executable).with_name("deepspeed"), "--num_gpus=2", f"--master_port={probe.getsockname()[1]}"]
    flags = ["--tiny", "--seed", str(seed), "--output-dir", str(home), "--run-name", name, "--report-to", "[]"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([*launcher, "recipes/mtg_full_32b.py", *flags], cwd=ROOT, check=True, env=environment, stdout=subprocess.DEVNULL)
    run = RunDirectory(home / name)
    judged = [line["eval_exact_match"] for line in map(json.loads, run.metrics.open()) if "eval_exact_match" in line]
    return {"before": judged[0], "valid": judged[-1], "test": read_json(run.run)["test_exact_match"]}


def recalled(found):
    """True where the base knew next to nothing and the tuned model most of it."""
    return found["before"] < 0.1 and found["valid"] > 0.6 and found["test"] > 0.6


def named(found):
    """True where at each place of the documents the tuned model names most facts, and more than the base by the intervals."""
    base, tuned = ({key: value for key, value in found[model].items() if key.startswith(AT)} for model in ("base", "final_model"))
    return all(tuned[key]["low"] > max(0.5, base[key]["high"]) for key in base) and len(base) == 3


def apart(found):
    """True where the tuned model's intervals of loss and ROUGE-L lie wholly on the better side of the base's."""
    base, tuned = found["base"], found["final_model"]
    return tuned["loss"]["high"] < base["loss"]["low"] and tuned["rougeL"]["low"] > base["rougeL"]["high"]


def table(results, facts):
    lines = ["# What the tiny recipes learn, over three seeds", "", machine(), "", "## llama32_qlora", "", *answered(results)]
    lines += [
        "", "## mtg_full_32b, two ranks under ZeRO-3", "",
        "Facts of 100 invented cards, trained in six wordings each and asked in a seventh (validation) and an eighth (test); 300 questions",
        "each. The share of answers that are exactly right:", "",
        "| seed | base | validation | test |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [f"| {seed} | {found['before']:.1%} | {found['valid']:.1%} | {found['test']:.1%} |" for seed, found in facts.items()]
    return "\n".join(lines) + "\n"


def own_table(results):
    return "\n".join(["# What the tiny qwen25_7b_lora learns, over three seeds", "", machine(), "", *answered(results)]) + "\n"


def answered(results):
    """The lines on questions that are answered before and after."""
    lines = [
        "Held-out rows of question templates never trained on; mean [95 % bootstrap interval over templates]. Loss in nats per answer",
        "token; numbers is the share of the reference's numbers that the answer has: the arithmetic of so small a model is mostly",
        "wrong.", "",
        "| seed | rows, templates | model | loss | ROUGE-L | numbers | intervals |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for seed, found in results.items():
        for model in ("base", "final_model"):
            cells = [cell(found[model][metric]) for metric in ("loss", "rougeL", "numbers")]
            verdict = "" if model == "base" else "apart" if apart(found) else "overlap"
            lines.append(f"| {seed} | {found['rows']}, {found['groups']} | {model} | {' | '.join(cells)} | {verdict} |")
    return lines


def long_table(results):
    lines = [
        "# What the tiny long-context recipe learns, over three seeds", "", machine(), "",
        "Facts that summaries of held-out case files of 1,700 to 3,400 tokens name, by where they stand in the document; the base was",
        "trained on cases of up to 300 tokens. Share of the facts [95 % bootstrap interval over cases]; stopped: of the summaries that",
        "ended by themselves.", "",
        "| seed | cases | model | beginning | middle | end | ROUGE-L | stopped |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for seed, found in results.items():
        for model in ("base", "final_model"):
            keys = (*(AT + place for place in ("beginning", "middle", "end")), "rougeL", "stopped")
            cells = [cell(found[model][key]) for key in keys]
            lines.append(f"| {seed} | {found['rows']} | {model} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(figure):
    return f"{figure['mean']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def machine():
    pinned = versions.installed()
    packages = ", ".join(f"{name} {pinned[name]}" for name in ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth"))
    return f"{hardware.describe()}; Python {pinned['python']}, {packages}; {datetime.date.today().isoformat()}."


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--long-context", action="store_true", help="qwen3_4b_longctx alone")
    one.add_argument("--own-data", action="store_true", help="qwen25_7b_lora alone")
    given = parser.parse_args()
    output = given.output or ROOT / "bench/results" / f"learning{'_long_context' * given.long_context}{'_own_data' * given.own_data}.md"
    with tempfile.TemporaryDirectory() as home:
        if given.long_context or given.own_data:
            recipe, write, learned = ("qwen3_4b_longctx", long_table, named) if given.long_context else ("qwen25_7b_lora", own_table, apart)
            results, facts = {seed: learn(seed, Path(home), recipe) for seed in SEEDS}, {}
            text = write(results)
        else:
            results, learned = {seed: learn(seed, Path(home)) for seed in SEEDS}, apart
            facts = {seed: recall(seed, Path(home)) for seed in SEEDS}
            text = table(results, facts)
    output.write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(map(learned, results.values())) and all(map(recalled, facts.values())) else 1


if __name__ == "__main__":
    sys.exit(main())

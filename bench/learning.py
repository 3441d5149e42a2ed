"""Does the tiny recipe learn? Three seeds of split, adapter and order, each judged against its own untuned base.

    python bench/learning.py        six minutes on two cores; writes bench/results/learning.md

Every seed holds out other question templates. A seed counts as learned where the 95 % intervals of base and tuned model
do not overlap, in loss and in ROUGE-L; the exit code is 1 where one seed does not.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
from pathlib import Path

from common import hardware, versions
from common.run_directory import RunDirectory, read_json

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (1, 2, 3)


def learn(seed, home):
    """{"base": metrics, "final_model": metrics, "rows", "groups"} of one seed's tiny run in `home`."""
    name = f"seed-{seed}"
    flags = ["--tiny", "--seed", str(seed), "--output-dir", str(home), "--run-name", name, "--no-merge", "--report-to", "[]"]
    subprocess.run([sys.executable, "recipes/llama32_qlora.py", *flags], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    judge = [sys.executable, "eval/eval_checkpoint.py", "--checkpoint", str(home / name / "final_model")]
    subprocess.run(judge, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    judged = {model: read_json(RunDirectory(home / name).eval / f"{model}.json") for model in ("base", "final_model")}
    return {model: found["metrics"] for model, found in judged.items()} | {k: judged["base"][k] for k in ("rows", "groups")}


def apart(found):
    """True where the tuned model's intervals of loss and ROUGE-L lie wholly on the better side of the base's."""
    base, tuned = found["base"], found["final_model"]
    return tuned["loss"]["high"] < base["loss"]["low"] and tuned["rougeL"]["low"] > base["rougeL"]["high"]


def table(results):
    pinned = versions.installed()
    packages = ", ".join(f"{name} {pinned[name]}" for name in ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth"))
    lines = [
        "# What the tiny recipe learns, over three seeds", "",
        f"{hardware.describe()}; Python {pinned['python']}, {packages}; {datetime.date.today().isoformat()}.", "",
        "Held-out rows of question templates never trained on; mean [95 % bootstrap interval over templates]. Loss in nats per answer",
        "token; numbers is the share of the reference's numbers that the answer has: the arithmetic of so small a model is mostly",
        "wrong.", "",
        "| seed | rows, templates | model | loss | ROUGE-L | numbers | intervals |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for seed, found in results.items():
        for model in ("base", "final_model"):
            figures = (found[model][metric] for metric in ("loss", "rougeL", "numbers"))
            cells = [f"{f['mean']:.2f} [{f['low']:.2f}, {f['high']:.2f}]" for f in figures]
            verdict = "" if model == "base" else "apart" if apart(found) else "overlap"
            lines.append(f"| {seed} | {found['rows']}, {found['groups']} | {model} | {' | '.join(cells)} | {verdict} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "learning.md")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as home:
        results = {seed: learn(seed, Path(home)) for seed in SEEDS}
    output.write_text(table(results), encoding="utf-8")
    print(table(results))
    return 0 if all(map(apart, results.values())) else 1


if __name__ == "__main__":
    sys.exit(main())

"""How long --plan takes, from the shell and back: without data, on a tokenised cache, and on half a gigabyte of rows.

    python bench/plan_seconds.py        a minute; writes bench/results/plan_seconds.md

The exit code is 1 where a plan takes more than 3 s.
"""

import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import hardware, versions

ROOT = Path(__file__).resolve().parents[1]
LIMIT, REPEATS, MEGABYTES = 3.0, 5, 500


def rows(path, megabytes):
    """A JSONL file of conversations whose lengths have a long tail; its words are those of the samples."""
    words = [row["content"] for line in (ROOT / "samples/arxiv.jsonl").open() for row in json.loads(line)["messages"]]
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as out:
        while out.tell() < megabytes * 1e6:
            answer = " ".join(chance.choices(words, k=max(1, int(chance.paretovariate(1.1)))))[:100_000]
            out.write(json.dumps({"question": chance.choice(words), "answer": answer}) + "\n")


def seconds(*flags):
    """Wall seconds of one plan, process start included, the median of REPEATS; and where it says that its tokens come from."""
    command = [sys.executable, "recipes/llama32_qlora.py", "--plan", "--json", *flags]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    took = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=environment).stdout
        took.append(time.perf_counter() - start)
    return statistics.median(took), (json.loads(said)["data"] or {"source": "no data"})["source"]


def main():
    with tempfile.TemporaryDirectory() as home:
        large = Path(home) / "large.jsonl"
        rows(large, MEGABYTES)
        from common import tiny_models

        tokenizer = tiny_models.ensure("tiny-llama")
        cases = {
            "without data": seconds(),
            "--tokens 1e9, eight H200": seconds("--tokens", "1e9", "--gpus", "8xH200"),
            "--tiny, on its samples": seconds("--tiny"),
            f"{MEGABYTES} MB of rows, no tokenizer": seconds("--train-files", f"{large}=1"),
            f"{MEGABYTES} MB of rows, a tokenizer": seconds("--train-files", f"{large}=1", "--model-name", tokenizer),
        }
    found = versions.installed()
    lines = [
        "# How long a plan takes", "",
        f"{hardware.describe()}; Python {found['python']}; {datetime.date.today()}. `python bench/plan_seconds.py` makes it anew.", "",
        f"Wall seconds of the whole process, median of {REPEATS}; at most {LIMIT:g} s is the promise.", "",
        "| plan | seconds | tokens counted from |", "|---|---|---|",
        *(f"| {name} | {took:.2f} | {source} |" for name, (took, source) in cases.items()),
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    (ROOT / "bench/results/plan_seconds.md").write_text(text, encoding="utf-8")
    sys.exit(int(max(took for took, _ in cases.values()) > LIMIT))


if __name__ == "__main__":
    main()

"""ROUGE-1/2/L with stemmer on 200 pairs of 800 words: `common.scores` beside the `rouge-score` package, in one run, in turn.

python bench/rouge.py                    two minutes; writes bench/results/rouge.md
python bench/rouge.py --pairs 20 --rounds 1 --output -
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from common import scores


def texts(pairs, words, seed):
    """(reference, answer) pairs over a vocabulary of 20,000 words used by Zipf's law; an answer keeps seven words of ten."""
    draw = np.random.default_rng(seed)
    endings = ["", "s", "ed", "ing", "ation", "ly", "ness", "ful", "izer", "ities"]
    vocabulary = ["".join(draw.choice(list("aeioulnrstdcmp"), size=draw.integers(2, 8))) + draw.choice(endings) for _ in range(20_000)]
    use = 1 / np.arange(1, len(vocabulary) + 1)
    for _ in range(pairs):
        reference, fresh = draw.choice(vocabulary, size=(2, words), p=use / use.sum())
        yield " ".join(reference), " ".join(np.where(draw.random(words) < 0.7, reference, fresh))


def seconds(score, pairs):
    start = time.perf_counter()
    found = [score(reference, answer) for reference, answer in pairs]
    return time.perf_counter() - start, found


def cpu_model():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--words", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3, help="each round runs one side after the other and gives one ratio")
    parser.add_argument("--output", default=Path(__file__).parent / "results" / "rouge.md", help="- for the terminal only")
    args = parser.parse_args()
    package = RougeScorer(list(scores.ROUGE_NAMES), use_stemmer=True)
    rounds = []
    for seed in range(args.rounds):  # fresh texts each round; the stems remembered in a round are used in the next, as in a real run
        pairs = list(texts(args.pairs, args.words, seed))
        ours, ours_found = seconds(scores.rouge, pairs)
        theirs, theirs_found = seconds(package.score, pairs)
        same = all(a[name] == b[name].fmeasure for a, b in zip(ours_found, theirs_found, strict=True) for name in scores.ROUGE_NAMES)
        rounds.append((theirs, ours, theirs / ours, same))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("rouge-score", "rapidfuzz", "nltk", "numpy"))
    table = [
        f"# ROUGE-1/2/L, stemmer, {args.pairs} pairs of {args.words} words",
        "",
        f"{cpu_model()}, {os.cpu_count()} cores, one used. Python {platform.python_version()}, {versions}.",
        "",
        "| round | rouge-score, seconds | common.scores, seconds | times faster | all scores equal |",
        "|---|---|---|---|---|",
        *(
            f"| {n} | {theirs:.2f} | {ours:.2f} | {ratio:.1f} | {'yes' if same else 'no'} |"
            for n, (theirs, ours, ratio, same) in enumerate(rounds, 1)
        ),
        f"| median | | | **{statistics.median(ratio for *_, ratio, _ in rounds):.1f}** | |",
    ]
    print("\n".join(table))
    if args.output != "-":
        Path(args.output).write_text("\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

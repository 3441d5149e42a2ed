"""Python's standard library to token ids: `common.encoding` beside Hugging Face's fast tokenizer, in one run, in turn, same ids.

python bench/tokenising.py                    two minutes; writes bench/results/tokenising.md
python bench/tokenising.py --rounds 1 --vocabulary 2048 --output -

Both get the documents as they take them, bytes and str, and use all cores. A round times each side in a process of its own, so that neither
finds the other's threads or words that it has seen. Ours ends with one array and end-of-text, theirs with its own objects.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from common import corpus, encoding


def documents():
    """The library's files that are UTF-8 and not empty, as bytes."""
    found = []
    for path in corpus.library_files():
        content = path.read_bytes()
        try:
            if content.strip() and content.decode():
                found.append(content)
        except UnicodeDecodeError:
            continue
    return found


def ours(directory):
    """Seconds for all documents; the ids are written beside the tokenizer."""
    texts, encoder = documents(), encoding.Encoder(directory)
    if encoder.engine != "gigatoken":
        raise SystemExit("gigatoken is not used here, so there is nothing to compare")
    start = time.perf_counter()
    tokens, _ = encoder.encode(texts)
    seconds = time.perf_counter() - start
    np.save(f"{directory}/ours.npy", tokens)
    return seconds


def theirs(directory):
    """The same through `tokenizers`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{directory}/tokenizer.json")
    tokenizer.encode_special_tokens = True
    texts = [document.decode() for document in documents()]
    tokenizer.encode_batch_fast(texts[:2], add_special_tokens=False)
    start = time.perf_counter()
    found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    seconds = time.perf_counter() - start
    end = [tokenizer.token_to_id(encoding.END_OF_TEXT)]
    np.save(f"{directory}/theirs.npy", np.concatenate([part for encoded in found for part in (encoded.ids, end)]).astype(np.uint16))
    return seconds


def timed(side, directory):
    """Seconds of `side`, a name, in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--side", side, directory], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout)


def cpu_model():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="each round runs one side after the other and gives one ratio")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[50_257, 2048])
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)  # one side, for a round
    parser.add_argument("--output", default=Path(__file__).parent / "results" / "tokenising.md", help="- for the terminal only")
    args = parser.parse_args()
    if args.side:
        print({"ours": ours, "theirs": theirs}[args.side[0]](args.side[1]))
        return
    texts = documents()
    size, rows, medians = sum(map(len, texts)) / 2**20, [], []
    for vocabulary in args.vocabulary:
        ratios = []
        with tempfile.TemporaryDirectory() as home:
            encoding.train(texts, vocabulary, home)
            for number in range(1, args.rounds + 1):
                slow, fast = timed("theirs", home), timed("ours", home)
                tokens = np.load(f"{home}/ours.npy")
                same = "yes" if np.array_equal(np.load(f"{home}/theirs.npy"), tokens) else "no"
                ratios.append(slow / fast)
                cells = f"{len(tokens):,} | {size / slow:.1f} | {size / fast:.0f} | {slow / fast:.1f} | {same}"
                rows.append(f"| {vocabulary:,} | {number} | {cells} |")
        medians.append(f"| {vocabulary:,} | median | | | | **{statistics.median(ratios):.1f}** | |")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("gigatoken", "tokenizers", "awkward", "numpy"))
    table = [
        "# Tokenising Python's standard library",
        "",
        f"{len(texts):,} documents, {size:.1f} MiB. {cpu_model()}, {len(os.sched_getaffinity(0))} cores. "
        f"Python {platform.python_version()}, {versions}.",
        "",
        "| vocabulary | round | tokens | tokenizers, MiB/s | common.encoding, MiB/s | times faster | same ids |",
        "|---|---|---|---|---|---|---|",
        *rows,
        *medians,
    ]
    print("\n".join(table))
    if args.output != "-":
        Path(args.output).write_text("\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

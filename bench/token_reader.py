"""Tokens a second of `common.token_rows` from local files, through a DataLoader too, beside nanoGPT's `get_batch`; a start on 1,000 files.

python bench/token_reader.py                     two minutes, 0.4 GB in a temporary directory; writes bench/results/token_reader.md
python bench/token_reader.py --million-tokens 10 --files 100 --rounds 1 --output -

Each reader takes one epoch of rows of 2,048 in the order of a training run (nanoGPT's: as many random ones); they take turns. Every label
is added up, so that nothing is left unread.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from common import hardware, shards, token_data, token_rows

CONTEXT, VOCABULARY = 2048, 50_257
MIB = 1024


def write(directory, files, tokens):
    """`files` shards of `tokens` random tokens each."""
    for number in range(files):
        ids = np.random.default_rng(number).integers(0, VOCABULARY, tokens, dtype=np.uint16)
        shards.write(directory, f"shard-{number:05d}-000", ids, np.array([tokens]), text_bytes=4 * tokens, tokenizer="random",
                     vocab_size=VOCABULARY, end_of_text=VOCABULARY - 1, sources=["random"])  # fmt: skip


def own_mib():
    """MiB of memory that are this process's own: without the files that it has mapped, which the system may drop at any time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / MIB


def alone(rows, order, batch_rows):
    return (rows.__getitems__(order[start : start + batch_rows]) for start in range(0, len(order), batch_rows))


def loader(rows, order, batch_rows, workers):
    from torch.utils.data import DataLoader

    return DataLoader(rows, batch_rows, sampler=order, collate_fn=token_rows.collate, num_workers=workers)


def nanogpt(rows, order, batch_rows):
    """train.py's get_batch on the first file, which has as many tokens as the others: a memmap each time, a copy for each row."""
    import torch

    shard = rows.shards[0]
    for _ in range(len(order) // batch_rows):
        data = np.memmap(shard.path, dtype=np.uint16, mode="r")
        starts = torch.randint(len(data) - CONTEXT, (batch_rows,))
        x = torch.stack([torch.from_numpy(data[i : i + CONTEXT].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + CONTEXT].astype(np.int64)) for i in starts])
        yield {"input_ids": x, "labels": y}


READERS = {
    "TokenRows": alone,
    "DataLoader in this process": partial(loader, workers=0),
    "DataLoader with 2 processes": partial(loader, workers=2),
    "nanoGPT's get_batch": nanogpt,
}


def measured(batches):
    """(tokens a second, seconds, sum of all labels, MiB that memory grew from the tenth batch to the last)."""
    start, tokens, total, before = time.perf_counter(), 0, 0, None
    for number, batch in enumerate(batches):
        tokens += batch["labels"].numel()
        total += int(batch["labels"].numpy().sum())  # by numpy: torch would wake its threads for it
        if number == 10:
            before = own_mib()
    seconds = time.perf_counter() - start
    return tokens / seconds, seconds, total, own_mib() - before


def started(directory):
    """Seconds of everything between the constants and the first row."""
    start = time.perf_counter()
    data = token_data.read([directory], tokenizer=None, context=CONTEXT, validation_files=1, max_files=None, eval_tokens=10_000, seed=1)
    data.train.__getitems__(data.train.order(1, 0, 128)[:8])
    return time.perf_counter() - start


def cpu_model():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million-tokens", type=int, default=100, help="2 bytes each, in five files")
    parser.add_argument("--files", type=int, default=1000, help="of 100,000 tokens each, that a start finds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default=Path(__file__).parent / "results" / "token_reader.md", help="- for the terminal only")
    args = parser.parse_args()
    hardware.prepare_torch()
    with tempfile.TemporaryDirectory() as place:
        os.environ["RECIPES_CACHE"] = f"{place}/cache"
        large, many = Path(place, "large"), Path(place, "many")
        for directory, files, tokens in ((large, 5, args.million_tokens * 200_000), (many, args.files, 100_000)):
            directory.mkdir()
            write(directory, files, tokens)
        first = started(many)
        again = statistics.median(started(many) for _ in range(args.rounds))
        rows = token_rows.TokenRows(shards.find([large]), CONTEXT, VOCABULARY - 1)
        order = rows.order(1, 0, 64)
        readers = {
            f"{name}, {count} rows at a time": partial(reader, rows, order, count) for count in (8, 64) for name, reader in READERS.items()
        }
        plain = {name: [measured(reader()) for _ in range(args.rounds)] for name, reader in readers.items() if "64 rows" in name}
        hardware.keep_freed_memory()  # from here on, as the recipe does on a CPU
        found = {name: [] for name in readers}
        for _ in range(args.rounds):
            for name, reader in readers.items():
                found[name].append(measured(reader()))
        found |= {f"{name}, freed memory given back": rounds for name, rounds in plain.items()}
        alike = {total for name, rounds in found.items() if "nanoGPT" not in name for *_, total, _ in rounds}
        alike = "the same in every reader of ours and every round" if len(alike) == 1 else f"DIFFERENT: {alike}"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "torch", "xxhash"))
    table = [
        f"# Reading tokens: {rows.tokens / 1e6:,.0f} million of 2 bytes in 5 files, rows of {CONTEXT:,}",
        "",
        f"{cpu_model()}, {os.cpu_count()} cores, local disk, files in the system's cache; load average at the end "
        f"{os.getloadavg()[0]:.1f}. Python {platform.python_version()}, {versions}.",
        "",
        "| reader | million tokens a second, median | slowest to fastest | memory, from the tenth batch to the last |",
        "|---|---|---|---|",
        *(
            f"| {name} | **{statistics.median(r[0] for r in rounds) / 1e6:,.0f}** | {min(r[0] for r in rounds) / 1e6:,.0f} to "
            f"{max(r[0] for r in rounds) / 1e6:,.0f} | {max(r[3] for r in rounds):+.1f} MiB |"
            for name, rounds in found.items()
        ),
        "",
        f"Labels added up: {alike}. Adding them up is in the time. The recipe reads through a "
        "DataLoader in its own process and, on a CPU, lets that keep memory that it frees.",
        "",
        f"Start on {args.files:,} files of 100,000 tokens, from the constants to the first 8 rows: **{again:.2f} s**; the very first time, "
        f"when every file is read whole and its checksum compared, {first:.2f} s.",
    ]
    print("\n".join(table))
    if args.output != "-":
        Path(args.output).write_text("\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

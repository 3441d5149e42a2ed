"""17lands drafts to conversations on one core: prepare/mtg_drafts.py beside readers with Python's csv module and with pandas.

python bench/mtg_drafts.py                          two minutes; writes bench/results/mtg_drafts.md
python bench/mtg_drafts.py --megabytes 20 --rounds 1 --output -

The peers only read: they collect pack and pool of each row and write nothing. Each side is a process of its own on one core, from its
start to its end; they run in turn. Rates are bytes of the uncompressed CSV over seconds of processor time, which other programs on the
machine disturb less than the seconds on the clock, given beside it.
"""

import argparse
import gzip
import importlib.metadata
import os
import platform
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rouge import cpu_model

CARDS = 300
PACK_SIZE, PACKS = 14, 3
DRAFTS_AT_ONCE = 100
CONVERTER = Path(__file__).resolve().parents[1] / "prepare" / "mtg_drafts.py"


def table(file, size, seed=0):
    """Write drafts of 300 invented cards until the CSV has `size` bytes; returns the rows. About 1.3 KB a row, as in the real files."""
    draw = np.random.default_rng(seed)
    names = [f"Card {n}, the Tested" if n % 7 == 0 else f"Card {n}" for n in range(CARDS)]
    header = "expansion,event_type,draft_id,draft_time,rank,event_match_wins,event_match_losses,pack_number,pick_number,pick"
    header += ",pick_maindeck_rate,pick_sideboard_in_rate,user_n_games_bucket,user_game_win_rate_bucket,"
    file.write((header + ",".join(f'"{prefix}{name}"' for prefix in ("pack_card_", "pool_") for name in names) + "\n").encode())
    per_draft = PACK_SIZE * PACKS
    popularity = draw.normal(size=CARDS)
    place = np.arange(per_draft)
    digits = np.full((DRAFTS_AT_ONCE * per_draft, 4 * CARDS), ord(","), np.uint8)
    digits[:, -1] = ord("\n")
    rows = 0
    while file.tell() < size:
        key = popularity + draw.gumbel(size=(DRAFTS_AT_ONCE * per_draft, CARDS)) * 2
        shown = np.argpartition(-draw.random(key.shape), PACK_SIZE, axis=1)[:, :PACK_SIZE]
        there = np.tile(np.arange(PACK_SIZE) < (PACK_SIZE - place % PACK_SIZE)[:, None], (DRAFTS_AT_ONCE, 1))
        picks = shown[np.arange(len(shown)), np.where(there, np.take_along_axis(key, shown, 1), -np.inf).argmax(1)]
        pack = np.zeros((len(shown), CARDS + 1), np.uint8)
        np.put_along_axis(pack, np.where(there, shown, CARDS), 1, axis=1)
        taken = np.eye(CARDS, dtype=np.uint8)[picks].reshape(DRAFTS_AT_ONCE, per_draft, CARDS)
        pool = (np.cumsum(taken, axis=1, dtype=np.uint8) - taken).reshape(-1, CARDS)
        digits[:, ::2] = np.concatenate([np.minimum(pack[:, :CARDS], 9), np.minimum(pool, 9)], axis=1) + ord("0")
        lines = []
        for at, (pick, counts) in enumerate(zip(picks.tolist(), digits, strict=True)):
            number, nth = divmod(at, per_draft)
            if nth == 0:
                wins, losses = draw.integers(0, 8), draw.integers(0, 4)
            start = f'INV,PremierDraft,{rows // per_draft + number:032x},2025-01-01 12:00:00,mythic,{wins},{losses},{nth // PACK_SIZE},'
            lines.append(f'{start}{nth % PACK_SIZE},"{names[pick]}",0.87,0.0,100,0.56,'.encode() + counts.tobytes())
        file.write(b"".join(lines))
        rows += len(lines)
    return rows


def ours(path, output, *flags):
    sys.argv = [str(CONVERTER), "--drafts", str(path), "--output", str(output), *flags]
    runpy.run_path(str(CONVERTER), run_name="__main__")


def with_csv(path, output):
    import csv

    entries = 0
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader)
        pack = [(at, name.removeprefix("pack_card_")) for at, name in enumerate(header) if name.startswith("pack_card_")]
        pool = [(at, name.removeprefix("pool_")) for at, name in enumerate(header) if name.startswith("pool_")]
        for row in reader:
            entries += len([(name, int(row[at])) for at, name in pack if row[at] != "0"])
            entries += len([(name, int(row[at])) for at, name in pool if row[at] != "0"])
    print(entries)


def with_pandas(path, output):
    import pandas

    names = pandas.read_csv(path, nrows=0).columns
    counts = [name for name in names if name.startswith(("pack_card_", "pool_"))]
    entries = 0
    for chunk in pandas.read_csv(path, chunksize=5000, dtype=dict.fromkeys(counts, "int8")):
        entries += len(np.nonzero(chunk[counts].to_numpy())[0])
    print(entries)


def measured(side, path, output):
    """(seconds of processor time, seconds on the clock, peak memory in MB) of a side in a process of its own on one core."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, "--side", side, "--file", str(path), "--output", str(output)]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(found.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    memory = float(found.stderr.strip().splitlines()[-1])
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - start, memory


SIDES = {
    "prepare/mtg_drafts.py, .csv": lambda path, output: ours(path, output),
    "prepare/mtg_drafts.py, .csv.gz": lambda path, output: ours(f"{path}.gz", output),
    "prepare/mtg_drafts.py, .csv, --no-facts": lambda path, output: ours(path, output, "--no-facts"),
    "csv module, reads only": with_csv,
    "pandas in chunks, reads only": with_pandas,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", default=Path(__file__).parent / "results" / "mtg_drafts.md", help="- for the terminal only")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
        SIDES[args.side](args.file, args.output)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, file=sys.stderr)  # Linux gives kilobytes
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "drafts.csv"
        with path.open("wb") as file:
            rows = table(file, args.megabytes * 10**6)
        size = path.stat().st_size / 1e6
        with path.open("rb") as file, gzip.open(f"{path}.gz", "wb", compresslevel=6) as zipped:
            while block := file.read(1 << 22):
                zipped.write(block)
        found = {side: [] for side in SIDES}
        for _ in range(args.rounds):
            for side in SIDES:
                found[side].append(measured(side, path, Path(directory) / "out"))
    middle = {side: [statistics.median(values) for values in zip(*runs, strict=True)] for side, runs in found.items()}
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("pyarrow", "pandas", "numpy"))
    slowest = middle["csv module, reads only"][0]
    lines = [
        f"# 17lands drafts to conversations, {rows:,} picks, {size:.0f} MB of CSV, {2 * CARDS} count columns",
        "",
        f"{cpu_model()}, {os.cpu_count()} cores, one used; {args.rounds} rounds. Python {platform.python_version()}, {versions}.",
        "Load of the machine at the end: " + ", ".join(f"{load:.1f}" for load in os.getloadavg()) + ".",
        "",
        "| | processor, seconds | MB/s | times csv module | clock, seconds | peak memory, MB |",
        "|---|---|---|---|---|---|",
        *(
            f"| {side} | {spent:.1f} | **{size / spent:.0f}** | {slowest / spent:.2f} | {clock:.1f} | {memory:.0f} |"
            for side, (spent, clock, memory) in middle.items()
        ),
    ]
    print("\n".join(lines))
    if args.output != "-":
        Path(args.output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

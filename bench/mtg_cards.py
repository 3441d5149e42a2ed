"""Seconds and memory of prepare/mtg_cards.py on a dump as large as Scryfall's, beside `json.load` of the whole of it.

python bench/mtg_cards.py                    four minutes; writes bench/results/mtg_cards.md
python bench/mtg_cards.py --megabytes 10 --rounds 1 --output -
"""

import argparse
import gzip
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "samples"))

import mtg  # noqa: E402

BYTES_OF_A_CARD = 4_450  # of Scryfall's 35,000 in 156 MB; most of it are addresses, prices and legalities
RULINGS_OF_A_CARD = 2
ENTRIES = "import sys; from common import mtg_files; print(sum(1 for _ in mtg_files.entries(sys.argv[1])))"
WHOLE = "import json, sys; print(len(json.load(open(sys.argv[1], encoding='utf-8'))))"


def write_dump(directory, megabytes):
    """The same cards as an array and as JSON lines in gzip, AtomicCards of them, and rulings on them."""
    generator = random.Random(42)
    cards = mtg.invented_cards(megabytes * 1_000_000 // BYTES_OF_A_CARD)
    for card in cards:
        missing = BYTES_OF_A_CARD - len(json.dumps(card, ensure_ascii=False).encode()) - 20
        addresses = [f"https://cards.example/{generator.getrandbits(256):064x}.jpg" for _ in range(missing // 94 + 1)]
        card["addresses"] = json.dumps(addresses)[: missing - 2 * len(addresses)].replace('"', "'").split(", ")
    lines = [json.dumps(card, ensure_ascii=False) for card in cards]
    (directory / "array.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    with gzip.open(directory / "lines.jsonl.gz", "wt", encoding="utf-8", compresslevel=6) as file:
        file.writelines(line + "\n" for line in lines)
    rulings = [
        {"object": "ruling", "oracle_id": card["oracle_id"], "source": "wotc", "published_at": f"20{n + 10}-01-01", "comment": text * 4}
        for card in cards
        for n, text in enumerate(generator.sample(mtg.RULINGS, RULINGS_OF_A_CARD))
    ]
    (directory / "rulings.json").write_text(mtg.array(rulings), encoding="utf-8")
    (directory / "atomic.json").write_text(json.dumps(mtg.atomic(cards, rulings), ensure_ascii=False), encoding="utf-8")


def measured(*words):
    """(seconds, peak MB of the resident set) of a Python process that ends well."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{words} ended with {process.returncode}")
    return time.perf_counter() - start, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def cpu_model():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=156, help="of the array; Scryfall's oracle_cards have 156")
    parser.add_argument("--rounds", type=int, default=3, help="each measures every line of the table once; the median is given")
    parser.add_argument("--output", default=Path(__file__).parent / "results" / "mtg_cards.md", help="- for the terminal only")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write_dump(Path(args.write), args.megabytes)
        return
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        # in a process of its own, as a child's peak begins with what its parent held
        subprocess.run([sys.executable, __file__, "--megabytes", str(args.megabytes), "--write", scratch], check=True)
        array, lines, atomic, rulings = (str(directory / name) for name in ("array.json", "lines.jsonl.gz", "atomic.json", "rulings.json"))
        convert = ("prepare/mtg_cards.py", "--output", str(directory / "out"), "--cards")
        sides = {
            "json.load of the array, nothing else": ("-c", WHOLE, array),
            "its entries one by one, nothing else": ("-c", ENTRIES, array),
            "array and rulings to rows": (*convert, array, "--rulings", rulings),
            "JSON lines in gzip and rulings to rows": (*convert, lines, "--rulings", rulings),
            "AtomicCards to rows": (*convert, atomic),
            "array and rulings to rows, split by wording": (*convert, array, "--rulings", rulings, "--split-by", "wording"),
        }
        read = {name: sum(Path(word).stat().st_size for word in words if word.startswith(scratch) and Path(word).is_file()) / 1e6
                for name, words in sides.items()}  # fmt: skip
        rounds = [{name: measured(*words) for name, words in sides.items()} for _ in range(args.rounds)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("ijson", "pydantic"))
    table = [
        f"# {args.megabytes} MB of invented cards in Scryfall's shape",
        "",
        f"{cpu_model()}, {os.cpu_count()} cores, one used. Python {platform.python_version()}, {versions}. A process each, its",
        f"start included; medians of {args.rounds} rounds. Eight kinds of questions, two wordings each unless split by wording.",
        "",
        "| | MB | seconds | MB/s | peak of memory, MB |",
        "|---|---|---|---|---|",
    ]
    for name in sides:
        seconds, peak = (statistics.median(one[name][n] for one in rounds) for n in (0, 1))
        table.append(f"| {name} | {read[name]:.0f} | {seconds:.1f} | {read[name] / seconds:.0f} | {peak:.0f} |")
    print("\n".join(table))
    if args.output != "-":
        Path(args.output).write_text("\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Uploads and downloads through a network that breaks by seed: what is injected, what is lost, what is accepted corrupted.

    python bench/storage_faults.py       a minute; writes bench/results/storage_faults.md

The store is gcp-storage-emulator, a real HTTP object store, behind the proxy of tests/object_store.py. Each round stores a
directory and brings it back, several files at a time; the larger files go in several parts. The exit code is 1 where one file
was lost or differs.
"""

import argparse
import datetime
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from object_store import BUCKET, KINDS, ObjectStore, environment  # noqa: E402

from common import hardware, manifest, storage, versions  # noqa: E402
from common.buckets import Patience  # noqa: E402

PART = 1 << 18  # bytes; the smallest that GCS takes
SIZES = (0, 1, 70_000, PART, 2 * PART + 1, 4 * PART, 1_400_000)  # of the files of a directory, bytes
RATE = 0.3  # of the requests are broken
STALL = 0.3  # seconds without a byte after which a request is given up; a stalled one is left waiting for twice as long
# The waits of real life, shortened; nothing else differs from what a training uses.
HASTY = Patience(connect=2, stall=STALL, request=3, request_attempts=3, attempts=20, total=120, first_wait=0.01, longest_wait=0.05)
PACKAGES = ("gcsfs", "fsspec", "aiohttp", "tenacity", "google-crc32c", "gcp-storage-emulator")


def run(home, rounds, seed, say=lambda text: None):
    """{"uploads", "downloads", "in_parts", "lost", "corrupted", "seconds", "injected": Counter} of `rounds` directories in `home`.

    lost: files that did not arrive, or whose transfer raised; corrupted: files that count as arrived and differ.
    """
    found = Counter(uploads=0, downloads=0, in_parts=0, lost=0, corrupted=0)
    injected, start = Counter(), time.monotonic()
    with ObjectStore() as server, environment(**server.environment):
        store = storage.open_store(f"gs://{BUCKET}/faults", HASTY, PART)
        for number in range(rounds):
            sent, came = home / f"sent-{number}", home / f"came-{number}"
            names = _fill(sent, seed + number)
            with server.faults(seed + number, RATE, stall=2 * STALL) as faults:
                for transfer in (lambda: store.upload_directory(sent, sent.name), lambda: store.download_directory(sent.name, came)):  # noqa: B023
                    try:
                        transfer()
                    except storage.StorageError as error:
                        say(str(error))
            injected += faults.injected
            for name in names:
                data = (sent / name).read_bytes()
                _judge(found, "uploads", data, server.contents(f"faults/{sent.name}/{name}"))
                _judge(found, "downloads", data, (came / name).read_bytes() if (came / name).exists() else None)
                found["in_parts"] += 2 * (len(data) > PART)
            say(f"round {number + 1} of {rounds}: {sum(injected.values())} faults so far")
    return {**found, "injected": injected, "seconds": time.monotonic() - start}


def _fill(directory, seed):
    """Files of SIZES with random bytes, and their manifest; the names of all."""
    draw = random.Random(seed)
    directory.mkdir(parents=True)
    for number, size in enumerate(SIZES):
        (directory / f"file-{number}").write_bytes(draw.randbytes(size))
    manifest.write(directory, {name: manifest.describe(directory / name) for name in manifest.files_in(directory)})
    return [*manifest.files_in(directory), manifest.NAME]


def _judge(found, direction, data, arrived):
    found[direction] += 1
    if arrived is None:
        found["lost"] += 1
    elif arrived != data:
        found["corrupted"] += 1


def table(found, seed, rounds):
    """The lines of storage_faults.md."""
    packages = ", ".join(f"{name} {version}" for name, version in versions.installed(PACKAGES).items() if name != "python")
    return [
        "# Transfers through a network that breaks",
        "",
        f"{hardware.describe()}; Python {platform.python_version()}, {packages}; {datetime.date.today()}. Seed {seed}, {rounds} rounds, "
        f"{found['seconds']:.0f} s.",
        "",
        f"{found['uploads']} uploads and {found['downloads']} downloads, {found['in_parts']} in parts of {PART >> 10} KiB. "
        f"{sum(found['injected'].values())} faults: {RATE:.0%} of all requests, chosen by the seed. Waits are shortened, a request is "
        f"given up after {STALL} s of silence; the rest is what a training runs with.",
        "",
        f"**Lost: {found['lost']}. Accepted corrupted: {found['corrupted']}.**",
        "",
        "| fault | injected |",
        "|---|---|",
        *(f"| {kind} | {found['injected'][kind]} |" for kind in KINDS),
        f"| all | {sum(found['injected'].values())} |",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help=f"directories of {len(SIZES) + 1} files, each stored and brought back")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=Path(__file__).parent / "results" / "storage_faults.md", help="- for the terminal only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        found = run(Path(home), args.rounds, args.seed, say=print)
    lines = table(found, args.seed, args.rounds)
    print("\n".join(lines))
    if args.output != "-":
        Path(args.output).write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(bool(found["lost"] or found["corrupted"] or any(found["injected"][kind] == 0 for kind in KINDS)))


if __name__ == "__main__":
    main()

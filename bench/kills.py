"""The tiny recipe killed in a step, in a save and in an upload, stopped by signals, and resumed: does it end in the same bits?

    python bench/kills.py        at most 25 minutes on two cores; writes bench/results/kills.md

The commands are a user's, the signals are real, the store is an HTTP server behind a slow line. A moment counts only where the disk or
the store proves it afterwards (tests/interrupted_runs.py). The exit code is 1 where one figure or one bit differs.
"""

import argparse
import datetime
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from compared_runs import differences  # noqa: E402
from interrupted_runs import Chain, flags, uninterrupted  # noqa: E402
from slow_store import Store  # noqa: E402

from common import hardware, manifest, versions  # noqa: E402

MOMENTS = ("step", "save", "upload")
ENOUGH = 15  # kills in each
A_RUN = 12  # kills of one run, at most
STEPS, RANK_STEPS = 40, 25  # an epoch has 12 steps
FEW = (*flags(RANK_STEPS), "--per-device-train-batch-size", "3")  # of two ranks: as many rows a step
POLITE = (
    ("accumulation", signal.SIGTERM), ("evaluation", signal.SIGUSR1), ("accumulation", signal.SIGINT), ("evaluation", signal.SIGINT),
    ("accumulation", signal.SIGUSR1), ("evaluation", signal.SIGTERM),
)  # fmt: skip
LAST = ("the last evaluation", signal.SIGUSR1)
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "unsloth", "deepspeed", "gcsfs", "gcp-storage-emulator")


@dataclass
class Row:
    """One run: what ended its sessions, how many of them were resumed, what was wrong in the end, and what to say where nothing was."""

    run: str
    ended: list = field(default_factory=list)
    resumed: int = 0
    wrong: list = field(default_factory=list)
    same: str = "yes"

    @contextmanager
    def judging(self, chain):
        """What the block asserts in vain is wrong with this run."""
        try:
            yield
        except AssertionError as error:
            self.wrong.append(" ".join(str(error)[-300:].split()))
        finally:
            chain.end()

    def compare(self, whole, chain, **how):
        """With the run that nothing stopped; every session but the first was a resume, and the last one reached the end."""
        self.resumed = chain.sessions - 1
        self.wrong += differences(whole.run, chain.run, **how)
        shutil.rmtree(chain.run.path)

    def verdict(self):
        """For the table."""
        return " ".join("; ".join(self.wrong[:3]).split()) or self.same


class Kills:
    """Chains of killed runs, by seed, until there are enough in every moment or the time is over."""

    def __init__(self, home, whole, seed, until, say):
        self.home, self.whole, self.until, self.say = home, whole, until, say
        self._lock, self._seed, self.proven = threading.Lock(), seed, Counter()

    def work(self):
        """The rows of one thread."""
        rows = []
        while (missing := self.missing()) and time.monotonic() < self.until:
            with self._lock:
                seed, self._seed = self._seed, self._seed + 1
            rows.append(self._chain(seed))
            self.say(f"seed {seed}: {' '.join(rows[-1].ended)}; {'; '.join(rows[-1].wrong[:3]) or 'the same bits'}; missing {missing}")
        return rows

    def missing(self):
        """{moment: kills that are still wanted}"""
        with self._lock:
            return {moment: ENOUGH - self.proven[moment] for moment in MOMENTS if self.proven[moment] < ENOUGH}

    def _chain(self, seed):
        draw, row, name = random.Random(seed), Row(f"killed, seed {seed}"), f"killed-by-{seed}"
        with Store() as store:
            chain = Chain(self.home, name, flags(STEPS), store)
            with row.judging(chain):
                lose_disk_after = draw.randrange(3, 7)
                chain.resume()
                while len(chain.proven) < A_RUN and time.monotonic() < self.until and (missing := self.missing()):
                    proven = chain.kill_in(draw.choice(sorted(missing)), draw)
                    if proven is None:
                        break
                    with self._lock:
                        self.proven[proven] += 1
                    row.ended.append(proven)
                    row.wrong += broken(store, name)
                    if len(row.ended) == lose_disk_after and store.committed(name):
                        chain.forget()
                        row.ended.append("disk lost")
                    chain.resume()
                chain.finish()
                row.wrong += broken(store, name)
                row.wrong += [] if store.committed(name)[-1:] == [(STEPS, [])] else ["the end is not in the store"]
                row.compare(self.whole.result(), chain)
        return row


def broken(store, name):
    """Sentences about checkpoints that count as whole in the store and are not."""
    return [f"{file} is not what its manifest in the store says" for _, files in store.committed(name) for file in files]


def stopped(home, whole, moments, name):
    """The row of a run that is stopped politely in each of `moments`."""
    chain, row, draw = Chain(home, name, flags(STEPS)), Row("stopped"), random.Random(0)
    with row.judging(chain):
        chain.resume()
        for moment, number in moments:
            last = moment == LAST[0]
            code, checkpoint = chain.stop_in("last_evaluation" if last else moment, number, draw)
            row.ended.append(f"{signal.Signals(number).name} in {'' if last else 'an '}{moment}")
            if code != 75 or checkpoint["position"]["evaluation_due"] != ("evaluation" in moment):
                row.wrong.append(f"{row.ended[-1]}: exit code {code}, {checkpoint and checkpoint['position']}")
            chain.resume()
        chain.finish()
        row.compare(whole.result(), chain, history=LAST not in moments)  # that evaluation comes after the last save
    return row


def control(home, whole):
    """The row of a run that is resumed with another random state than it was saved with: it has to differ."""
    chain, row = Chain(home, "control", flags(STEPS)), Row("control: another random state", ["at a checkpoint"])
    with row.judging(chain):
        shutil.copytree(whole.result().run.path, chain.run.path)
        shutil.rmtree(chain.run.final_model)
        shutil.rmtree(chain.run.whole_checkpoints()[-1][1])
        forge_random_state(chain.run.whole_checkpoints()[-1][1])
        chain.resume()
        chain.finish()
        found = differences(whole.result().run, chain.run)
        row.wrong = [] if any(text.startswith("figures") for text in found) else ["another random state was not noticed"]
        row.resumed, row.same = 1, "no, as it must"
    return row


def forge_random_state(checkpoint):
    """Give `checkpoint` the random state of another seed, and a manifest that is right."""
    import torch

    path, found = checkpoint / "rng_state.pth", manifest.read(checkpoint)
    state = torch.load(path, weights_only=False)
    torch.save({**state, "cpu": torch.Generator().manual_seed(1).get_state()}, path)
    files = {**found["files"], path.name: manifest.describe(path)}
    facts = {name: value for name, value in found.items() if name not in ("format", "written", "files", "crc32c")}
    manifest.write(checkpoint, files, **facts)


def two_ranks(home, until, say):
    """The row of a run of two ranks under ZeRO-2, of which one rank or what launched it is killed or stopped."""
    whole, chain, row = Chain(home, "two-whole", FEW, ranks=2), Chain(home, "two-killed", FEW, ranks=2), Row("two ranks, ZeRO-2")
    with row.judging(chain):
        whole.resume()
        whole.finish()
        say("two ranks: the whole run is there")
        stop, kill, term, usr1 = chain.stop_in, chain.kill_in, signal.SIGTERM, signal.SIGUSR1
        events = (
            ("SIGTERM to rank 1", lambda draw: stop("accumulation", term, draw, lambda: chain.rank(1))[0]),
            ("SIGKILL of rank 0 in a", lambda draw: kill("save", draw, lambda: chain.rank(0))),
            ("SIGTERM to the runner", lambda draw: stop("accumulation", term, draw)[0]),
            ("SIGKILL of rank 1 in a", lambda draw: kill("step", draw, lambda: chain.rank(1))),
            ("SIGUSR1 to rank 0 in an evaluation", lambda draw: stop("evaluation", usr1, draw, lambda: chain.rank(0))[0]),
        )
        chain.resume()
        for number, (what, happen) in enumerate(events):
            if time.monotonic() > until:
                break
            found = happen(random.Random(number))
            row.ended.append(f"{what} {found}" if isinstance(found, str) else f"{what} ({found})")
            say(f"two ranks: {row.ended[-1]}")
            if found is None or found not in ("save", "step", 75, -signal.SIGTERM):
                row.wrong.append(row.ended[-1])
            chain.resume()
        chain.finish()
        row.compare(whole, chain)
    return row


def run(home, seconds, seed, say=lambda text: None):
    """The rows of all runs; what was not reached within `seconds` is left out, and whoever is on the way then is let through to its end."""
    start = time.monotonic()
    with ThreadPoolExecutor(2) as pool:  # one core each
        whole = pool.submit(uninterrupted, home, flags(STEPS))
        kills = Kills(home, whole, seed, start + 0.55 * seconds, say)
        jobs = [pool.submit(kills.work), pool.submit(kills.work)]
        jobs += [pool.submit(stopped, home, whole, moments, name) for moments, name in ((POLITE, "stopped"), ((LAST,), "stopped-last"))]
        jobs += [pool.submit(control, home, whole)]
        rows = [row for job in jobs for row in (job.result() if isinstance(job.result(), list) else [job.result()])]
    rows.append(two_ranks(home, start + 0.9 * seconds, say))
    return rows, time.monotonic() - start


def proven(rows):
    """{moment: kills}, of the runs of one process."""
    return Counter(moment for row in rows if row.run.startswith("killed") for moment in row.ended)


def is_good(rows):
    return all(proven(rows)[moment] >= ENOUGH for moment in MOMENTS) and not any(row.wrong for row in rows)


def table(rows, seed, seconds):
    """The lines of kills.md."""
    packages = ", ".join(f"{name} {version}" for name, version in versions.installed(PACKAGES).items() if name != "python")
    kills, killed = proven(rows), [row for row in rows if row.run.startswith("killed")]
    said = {True: "all", False: "not all"}[not any(row.wrong for row in killed)]
    return [
        "# Killed and stopped, resumed, compared",
        "",
        f"{hardware.describe()}; Python {versions.installed()['python']}, {packages}; {datetime.date.today()}. Seeds from {seed}, "
        f"{seconds / 60:.0f} minutes, two runs at a time.",
        "",
        f"`llama32_qlora --tiny`, {STEPS} steps ({RANK_STEPS} on two ranks), an epoch in 12, accumulation 2, dropout 0.1, a save",
        "every 5 steps, a logged loss every 2; uploads to an HTTP store. A kill counts for what disk and store prove of its moment",
        "afterwards; where that is none of the three, it was in between.",
        "",
        "| SIGKILL in | kills | resumed | run ended bit-identical |",
        "|---|---|---|---|",
        *(f"| {'a' if moment != 'upload' else 'an'} {moment} | {kills[moment]} | {kills[moment]} | {said} |" for moment in MOMENTS),
        f"| in between | {kills['between']} | {kills['between']} | {said} |",
        "",
        "Bit-identical to a run that was never stopped: losses, grad norms, learning rates and held-out losses by step; the final",
        "model; in the last checkpoint weights, optimiser, schedule, random states, history and place in the data. After every kill: no",
        "process left, every checkpoint with a manifest in the store is what that says, an unfinished save is kept under another name.",
        "Where the disk was lost, the run directory was removed and what the store had went on.",
        "",
        "| run | ended by | resumes | bit-identical |",
        "|---|---|---|---|",
        *(f"| {row.run} | {', '.join(row.ended)} | {row.resumed} | {row.verdict()} |" for row in rows),
    ]


def write(output, rows, seed, seconds):
    Path(output).write_text("\n".join(table(rows, seed, seconds)) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1400, help="after which nothing new is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "kills.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        rows, seconds = run(Path(home), args.seconds, args.seed, say=lambda text: print(text, flush=True))
    write(args.output, rows, args.seed, seconds)
    print(args.output.read_text())
    return 0 if is_good(rows) else 1


if __name__ == "__main__":
    sys.exit(main())

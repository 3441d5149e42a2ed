"""How much uploading holds training up: the tiny recipe, a save every four steps, into a real object store over HTTP.

    python bench/uploads.py        two minutes on two cores; writes bench/results/uploads.md

Counted is the time the training process spends in calls that have to do with uploading, not wall time: what a busy machine does to
both processes is not blocking. The exit code is 1 where it is 1 % of the training or more.
"""

import datetime
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import hardware, manifest, versions
from common.run_directory import RunDirectory, read_json

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from object_store import BUCKET, ObjectStore  # noqa: E402

STEPS, SAVE_STEPS, REPEATS = 40, 4, 3


def upload(store, home, number):
    """{"seconds", "blocked", "checkpoints", "megabytes"} of one run with uploads."""
    flags = ["--tiny", "--max-steps", str(STEPS), "--save-steps", str(SAVE_STEPS), "--eval-steps", str(STEPS)]
    flags += ["--no-load-best-model-at-end", "--output-dir", str(home), "--run-name", f"run-{number}", "--checkpoint-uri", f"gs://{BUCKET}/bench"]
    command = [sys.executable, "recipes/llama32_qlora.py", *flags, "--no-merge", "--report-to", "[]"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **store.environment})
    run = RunDirectory(home / f"run-{number}")
    facts, (_, newest) = read_json(run.run), run.whole_checkpoints()[-1]
    size = sum(file["size"] for file in manifest.read(newest)["files"].values())
    blocked = facts["uploads_blocked_seconds"]
    return {"seconds": facts["seconds"], "blocked": blocked, "checkpoints": STEPS // SAVE_STEPS, "megabytes": size / 1e6}


def table(results):
    lines = [
        "# What uploading costs the steps", "",
        f"{hardware.describe()}; {', '.join(f'{n} {v}' for n, v in versions.installed(('torch', 'transformers', 'gcsfs')).items())}; "
        f"{datetime.date.today().isoformat()}.", "",
        f"The tiny recipe, {STEPS} steps, a checkpoint every {SAVE_STEPS}, uploaded to gcp-storage-emulator over HTTP by the background",
        "process. Blocked: the seconds that the training process spent in calls for uploading; training: its seconds with saves, without",
        "the waiting for the last uploads after it.", "",
        "| run | checkpoints | MB each | training, s | blocked, s | share |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for number, r in enumerate(results, start=1):
        cells = [number, r["checkpoints"], f"{r['megabytes']:.1f}", f"{r['seconds']:.1f}", f"{r['blocked']:.3f}"]
        lines.append(f"| {' | '.join(map(str, cells))} | {r['blocked'] / r['seconds']:.2%} |")
    return "\n".join(lines) + "\n"


def main():
    with tempfile.TemporaryDirectory() as home, ObjectStore() as store:
        results = [upload(store, Path(home), number) for number in range(REPEATS)]
    text = table(results)
    (ROOT / "bench" / "results" / "uploads.md").write_text(text, encoding="utf-8")
    print(text)
    sys.exit(int(any(r["blocked"] >= 0.01 * r["seconds"] for r in results)))


if __name__ == "__main__":
    main()

"""What is measured of long rows: the tables hold what was measured, and both measurements run."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.refusal import Refusal

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def imported():
    sys.path.insert(0, str(BENCH))
    try:
        import long_context_gpu
        import long_context_memory
    finally:
        sys.path.remove(str(BENCH))
    return SimpleNamespace(memory=long_context_memory, gpu=long_context_gpu)


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def call(script, *flags, cwd=None):
    return subprocess.run([sys.executable, BENCH / script, *flags], cwd=cwd, capture_output=True, text=True)


@pytest.mark.soak
def test_quick_measures_both_sides(tmp_path):
    done = call("long_context_memory.py", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    titles, _, row = (cells(line) for line in done.stdout.splitlines() if line.startswith("|"))
    assert titles == ["tokens a row", "logits alone in fp32", "plain nll", "recipe", "plain / recipe"]
    tokens, logits, plain, recipe, ratio = (float(cell.replace(",", "")) for cell in row)
    assert logits == pytest.approx(4 * tokens * 151_936 / 1e9, abs=0.01)
    assert plain - recipe > logits, "the logits, their gradient and more are on one side alone"
    assert ratio == pytest.approx(plain / recipe, abs=0.1) and ratio > 1.3
    assert not list(tmp_path.iterdir())


def test_the_line_through_the_peaks_and_what_lies_off_it(imported):
    slope, start, residual = imported.memory.line({1000: 5e6, 2000: 7e6, 3000: 9e6})
    assert (slope, start) == (pytest.approx(2000), pytest.approx(3e6)) and residual < 1
    assert imported.memory.line({1000: 5e6, 2000: 7e6, 3000: 9.3e6})[2] == pytest.approx(1e5)


def test_what_was_not_run_for_want_of_memory_is_empty(imported):
    def side(*peaks):
        return {1024 * 2**n: {"before": 6e8, "peak": peak, "loss": 12.0} for n, peak in enumerate(peaks)}

    found = {"plain": side(3e9), "recipe": side(8e8, 8.1e8), "held_out": side(8e8, 8.2e8), "short": side(7e8, 7.2e8)}
    first, second = [cells(line) for line in imported.memory.table(found, (1024, 2048))][2:]
    assert first == ["1,024", "0.62", "3.00", "0.80", "0.80", "0.70", "3.8"]
    assert second == ["2,048", "1.24", "", "0.81", "0.82", "0.72", ""]


def test_the_written_table_shows_what_the_recipe_promises():
    text = (BENCH / "results" / "long_context_memory.md").read_text(encoding="utf-8")
    rows = [cells(line) for line in text.splitlines() if line.startswith("| ") and line[2].isdecimal()]
    lengths = [int(row[0].replace(",", "")) for row in rows]
    assert len(rows) >= 4 and lengths == sorted(lengths)
    for tokens, row in zip(lengths, rows, strict=True):
        logits, recipe, held_out = float(row[1]), float(row[3]), float(row[4])
        assert logits == pytest.approx(4 * tokens * 151_936 / 1e9, abs=0.01)
        assert recipe < max(1.2, logits) and held_out < recipe + 0.05
    ratios = [float(row[-1]) for row in rows if row[-1]]
    assert len(ratios) >= 3 and ratios == sorted(ratios) and ratios[-1] > 4


def run_of(length, ran=True):
    measured = {"memory_gb": length / 5000, "memory_gb_before_held_out": length / 5000, "tokens_per_second": 900.0, "seconds": length / 900}
    return {"length": length, "ran": ran, "planned_gb": length / 4000, "planned_seconds": None} | (
        measured if ran else {"why": "out of memory"}
    )


def test_the_longest_row_is_looked_for_between_what_fits_and_what_does_not(imported, monkeypatch):
    tried = []
    monkeypatch.setattr(
        imported.gpu, "run", lambda directory, tokenizer, length, args: tried.append(length) or run_of(length, length <= 170_000)
    )
    args = SimpleNamespace(lengths=[65_536, 131_072, 200_000, 262_144], search=4)
    results = imported.gpu.measure(None, None, args)
    assert tried[:4] == args.lengths, "it goes on after a length that does not fit"
    fits, over = imported.gpu.longest(results)
    assert fits <= 170_000 < over and over - fits <= 3 * imported.gpu.ROUND
    table = list(imported.gpu.table(results))
    assert cells(next(line for line in table if line.startswith("| 200,000 |")))[1] == "out of memory"
    assert table[-1] == f"Longest row that fits: **{fits:,}** tokens; {over:,} did not."
    assert [row["length"] for row in results] == sorted(tried)


def test_memory_before_and_after_the_held_out_loss_is_told_apart(imported, tmp_path):
    lines = [{"step": n, "loss": 9.0, "memory_gb": gb, "tokens_per_second": speed} for n, gb, speed in ((1, 20.0, 5), (2, 21.0, 100))]
    lines += [{"step": 2, "eval_loss": 9.1}]
    lines += [{"step": n, "loss": 8.0, "memory_gb": 22.5, "tokens_per_second": speed} for n, speed in ((3, 50), (4, 102))]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = imported.gpu.figures(tmp_path, 1000)
    assert (found["memory_gb"], found["memory_gb_before_held_out"], found["tokens_per_second"], found["seconds"]) == (22.5, 21.0, 100, 10.0)
    (tmp_path / "logs" / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(Refusal, match="1 steps and 0 held-out losses"):
        imported.gpu.figures(tmp_path, 1000)


@pytest.mark.parametrize(("flags", "words"), [((), "no GPU was found"), (("--tiny", "--steps", "3"), "--steps is 3")])
def test_what_cannot_be_measured_is_refused_in_a_sentence(flags, words, tmp_path):
    if not flags:
        from common import hardware

        if hardware.gpus():
            pytest.skip("there is a GPU")
    done = call("long_context_gpu.py", *flags, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.soak
def test_the_recipe_is_measured_at_every_length(tmp_path):
    done = call("long_context_gpu.py", "--tiny", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [cells(line) for line in done.stdout.splitlines() if line.startswith("| ") and line[2].isdecimal()]
    assert [row[0] for row in rows] == ["700", "1,500"]
    for row in rows:
        peak, planned, _, _, speed, more = (float(cell.replace(",", "") or 0) for cell in row[1:])
        assert 0.1 < peak < 4 and 0.1 < planned < 4 and speed > 10 and more < 0.2
    assert done.stdout.endswith("Longest row that fits: **1,500** tokens, the longest tried.\n")
    assert not list(tmp_path.iterdir())

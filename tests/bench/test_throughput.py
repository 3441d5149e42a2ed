"""The table of lengths is what its header claims, and the measurement runs on both sides."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def throughput():
    sys.path.insert(0, str(BENCH))
    try:
        import throughput
    finally:
        sys.path.remove(str(BENCH))
    return throughput


def test_lengths_are_those_of_the_published_figures(throughput):
    rows = throughput.lengths()
    assert len(rows) == 10_000
    assert statistics.mean(16 + sum(row) / 4 for row in rows) == pytest.approx(516, abs=1)
    messages = [size for row in rows for size in row]
    assert statistics.median(messages) == pytest.approx(113, abs=1)
    assert max(messages) == 159_368
    assert max(answer for *_, answer in rows) <= 7_000  # or the recipe would refuse what stock TRL trains on


def test_a_sample_has_the_mean_of_the_table(throughput):
    cut = [min(2048, 16 + sum(row) / 4) for row in throughput.lengths()]
    for seed in range(3):
        sample = throughput.conversations(64, shrink=1, seed=seed)
        found = [min(2048, 16 + sum(len(m["content"]) for m in row) / 4) for row in sample]
        assert statistics.mean(found) == pytest.approx(statistics.mean(cut), rel=0.03)
    assert sample != throughput.conversations(64, shrink=1, seed=0)


def test_the_table_has_what_both_sides_report(throughput, monkeypatch, capsys, tmp_path):
    """`python bench/throughput.py --quick`, but for the training: of the table's arithmetic, and of sides that trained on other rows."""
    losses = {"recipe": (8.31, 8.2), "stock": (8.3, 8.25)}
    found = {"recipe": {"seconds": 2.0, "cpu_seconds": 2.0, "all": 8_000}, "stock": {"seconds": 4.0, "cpu_seconds": 5.0, "all": 12_000}}
    for side, (first, last) in losses.items():
        found[side] |= {"first_loss": first, "last_loss": last, "loss_type": "nll"}
    jobs = []

    def measured(job):
        jobs.append(job | {"given": json.loads(Path(job["rows"]).read_text())})
        return {"tokens": 6_000, "labels": 900, "rows": 24, "threads": 1, **found[job["side"]]}

    monkeypatch.setattr(throughput, "measure", measured)
    monkeypatch.setattr(throughput, "build_model", lambda *_: 0.9)
    monkeypatch.syspath_prepend(str(BENCH))  # as for a script
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--quick"])
    monkeypatch.chdir(tmp_path)
    throughput.main()
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| 4 x 1 |"))
    assert [cell.strip() for cell in row.strip("|").split("|")][1:] == [
        "3,000", "1,500", "2.00", "2.50", "25.0%", "50.0%", "8.31 to 8.20", "8.30 to 8.25",
    ]  # fmt: skip
    assert [job["side"] for job in jobs] == ["recipe", "stock"] and jobs[0]["given"] == jobs[1]["given"] and len(jobs[0]["given"]) == 24
    assert not list(tmp_path.iterdir())
    found["stock"]["labels"] = 901
    with pytest.raises(SystemExit, match="the sides trained on different data"):
        throughput.main()


@pytest.mark.soak
def test_quick_measures_both_sides(tmp_path):
    done = subprocess.run([sys.executable, BENCH / "throughput.py", "--quick"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("| 4 x 1 |"))
    _, ours, stock, ratio, by_cpu, padding_ours, padding_stock, loss_ours, loss_stock = (cell.strip() for cell in row.strip("|").split("|"))
    assert float(ratio) == pytest.approx(float(ours.replace(",", "")) / float(stock.replace(",", "")), abs=0.02)
    assert float(by_cpu) > 0
    assert float(padding_ours.rstrip("%")) < float(padding_stock.rstrip("%"))
    losses = [tuple(map(float, loss.split(" to "))) for loss in (loss_ours, loss_stock)]
    assert all(7.5 < value < 8.5 for loss in losses for value in loss)  # guessing gives log 4096 = 8.3; a few steps change little
    assert losses[0][1] < losses[0][0]
    assert not list(tmp_path.iterdir())

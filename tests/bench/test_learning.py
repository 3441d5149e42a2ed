"""The claim that the tiny recipe learns, over three seeds: `make soak`. The single run of `make test` is in tests/recipes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.soak
@pytest.mark.parametrize("flags", [[], ["--own-data"]], ids=["all", "own data"])
def test_three_seeds_learn(tmp_path, flags):
    command = [sys.executable, "bench/learning.py", *flags, "--output", str(tmp_path / "learning.md")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "learning.md").read_text().count("| apart |") == 3


@pytest.mark.soak
def test_three_seeds_find_facts_in_long_documents(tmp_path):
    command = [sys.executable, "bench/learning.py", "--long-context", "--output", str(tmp_path / "learning.md")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "learning.md").read_text().count("| final_model |") == 3

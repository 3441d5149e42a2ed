"""The mixture written to one file: its rows, where it goes, and that it never replaces what it was made of."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from common.refusal import Refusal

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def combine():
    spec = importlib.util.spec_from_file_location("combine", REPOSITORY / "prepare" / "combine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def ids(path):
    return [json.loads(line)["id"] for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def rows(tmp_path):
    def write(name, count):
        turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
        path = tmp_path / name
        path.write_text("".join(json.dumps({"id": f"{name}_{n}", "messages": turns}) + "\n" for n in range(count)))
        return str(path)

    return write


def test_the_mixture_is_all_rows_by_weight(combine, rows, tmp_path):
    output = tmp_path / "new" / "out.jsonl"
    found = combine(train_files={rows("a", 4): 2.0, rows("b", 4): 0.5, rows("c", 4): 0.0}, output=str(output))
    written = ids(output)
    assert found == {"rows": 10, "output": str(output)}
    assert [sum(name.startswith(file) for name in written) for file in "abc"] == [8, 2, 0]
    assert [p.name for p in output.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("spelled", ["plain", "with a detour", "through a link"])
def test_an_output_that_is_an_input_is_refused(combine, rows, tmp_path, spelled):
    path = rows("a.jsonl", 3)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.jsonl").symlink_to(path)
    output = {"plain": path, "with a detour": f"{tmp_path}/sub/../a.jsonl", "through a link": f"{tmp_path}/link.jsonl"}[spelled]
    before = Path(path).read_bytes()
    with pytest.raises(Refusal, match="would be written over") as refused:
        combine(train_files={path: 2.0}, output=output)
    assert f"OUTPUT is {output}" in str(refused.value)
    assert Path(path).read_bytes() == before


def test_the_tiny_mixture_has_a_file_of_its_own(combine, tmp_path, monkeypatch):
    shutil.copytree(REPOSITORY / "samples", tmp_path / "samples", ignore=shutil.ignore_patterns("base*", "*.py", "__pycache__"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "combined.jsonl").write_text("the real one")
    monkeypatch.chdir(tmp_path)
    assert combine(tiny=True) == {"rows": 640, "output": "data/combined_tiny.jsonl"}
    assert len(set(ids("data/combined_tiny.jsonl"))) == 640
    assert (tmp_path / "data" / "combined.jsonl").read_text() == "the real one"

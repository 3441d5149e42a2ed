"""The version check: what it compares, what it says, and how it is turned off."""

import importlib.metadata
import subprocess
import sys
import time

import pytest

from common import versions
from common.refusal import Refusal


@pytest.fixture
def other_lock(tmp_path):
    """A copy of the real lock with some lines changed, as if the repository had been tested with those."""

    def write(**changed):
        lines = versions.LOCK.read_text(encoding="utf-8").splitlines()
        for name, version in changed.items():
            place = [n for n, line in enumerate(lines) if line.startswith(f"{name}==")]
            assert len(place) == 1, f"{name} is on {len(place)} lines of the lock"
            lines[place[0]] = f"{name}=={version}"
        path = tmp_path / "requirements.lock"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


def test_tested_versions_pass_silently(capsys):
    versions.check(environ={})
    assert capsys.readouterr() == ("", "")


def test_every_package_that_matters_is_in_the_lock():
    assert {versions.normalised(name) for name in versions.THAT_MATTER} <= set(versions.tested())


def test_a_difference_is_refused_with_both_versions_and_the_pip_lines(other_lock):
    lock = other_lock(transformers="5.16.1", trl="1.13.0", torch="2.12.0")
    with pytest.raises(Refusal) as refused:
        versions.check(environ={}, lock=lock)
    sentence = str(refused.value)
    assert f"transformers {importlib.metadata.version('transformers')} (tested: 5.16.1)" in sentence
    assert "pip install torch==2.12.0\n" in sentence
    assert "pip install --no-deps transformers==5.16.1 trl==1.13.0\n" in sentence
    assert "RECIPES_SKIP_VERSION_CHECK=1" in sentence
    assert "peft" not in sentence


def test_without_torch_in_it_the_fix_does_not_touch_torch(other_lock):
    with pytest.raises(Refusal) as refused:
        versions.check(environ={}, lock=other_lock(peft="0.20.0"))
    assert "pip install torch" not in str(refused.value)


def test_a_package_that_is_absent_is_named_as_absent(other_lock, monkeypatch):
    monkeypatch.setattr(versions, "THAT_MATTER", (*versions.THAT_MATTER, "no-such-package"))
    lock = other_lock()
    lock.write_text(lock.read_text() + "\nno-such-package==1.0\n")
    with pytest.raises(Refusal, match=r"no-such-package is not installed \(tested: 1.0\)"):
        versions.check(environ={}, lock=lock)


def test_one_environment_variable_turns_it_off_and_says_so(other_lock, capsys):
    lock = other_lock(torch="1.0")
    versions.check(environ={"RECIPES_SKIP_VERSION_CHECK": "1"}, lock=lock)
    said = capsys.readouterr()
    assert said.err == "RECIPES_SKIP_VERSION_CHECK is set: versions are not compared with requirements.lock\n"
    assert said.out == ""  # where --json answers
    for off in ("", "0"):
        with pytest.raises(Refusal):
            versions.check(environ={"RECIPES_SKIP_VERSION_CHECK": off}, lock=lock)


@pytest.mark.parametrize(("found", "refused"), [("2.13.0+cpu", False), ("2.13.0+cu126", False), ("2.13.0", False), ("2.13.1+cpu", True)])
def test_a_build_of_the_tested_version_is_the_tested_version(tmp_path, found, refused):
    """Real metadata of a made-up torch, found before the installed one because it stands first on the path."""
    installed = tmp_path / f"torch-{found}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {found}\n")
    program = "import sys; sys.path.insert(0, sys.argv[1]); from common import versions; versions.check(environ={})"
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert (run.returncode != 0) == refused, run.stderr
    if refused:
        assert f"torch {found} (tested: {versions.tested()['torch']})" in run.stderr


def test_a_missing_lock_is_a_sentence(tmp_path):
    with pytest.raises(Refusal, match="requirements.lock is missing"):
        versions.check(environ={}, lock=tmp_path / "requirements.lock")


def test_installed_names_python_and_what_is_there():
    found = versions.installed()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == importlib.metadata.version("torch")
    assert versions.installed(["pytest", "no-such-package"]).keys() == {"python", "pytest"}


def test_it_is_fast_and_loads_nothing_heavy():
    program = "import sys; from common import versions; versions.check(environ={}); print([m for m in ['torch'] if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    best = min(_seconds(lambda: versions.check(environ={})) for _ in range(5))
    assert best < 0.05, f"{best * 1000:.0f} ms"


def _seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

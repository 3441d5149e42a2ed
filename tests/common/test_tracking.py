"""Trackers: W&B without an account writes offline and says so; a resumed run keeps its id."""

import os
import subprocess
import sys

import pytest

from common import tracking
from common.run_directory import RunDirectory

NAMES = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_NAME", "WANDB_SILENT")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run, a home without .netrc, and none of W&B's variables; all are put back afterwards."""
    for name in (*NAMES, "WANDB_BASE_URL", "TENSORBOARD_LOGGING_DIR", "NETRC"):
        monkeypatch.setenv(name, "")  # so that what the code sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return RunDirectory(tmp_path / "outputs" / "qlora")


def test_without_a_login_it_falls_back_to_offline_and_says_so(run, capsys):
    run_id = tracking.prepare(["tensorboard", "wandb"], run)
    said = capsys.readouterr().out
    assert "W&B is not logged in" in said
    assert f"wandb sync {run.path}/logs/wandb/offline-run-*" in said
    assert os.environ["WANDB_MODE"] == "offline"
    assert os.environ["WANDB_RUN_ID"] == run_id
    assert os.environ["WANDB_NAME"] == "qlora"
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(run.path / "logs" / "tensorboard")


@pytest.mark.parametrize("how", ["key", "netrc", "own server"])
def test_with_a_login_it_stays_online(run, capsys, monkeypatch, tmp_path, how):
    if how == "key":
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    elif how == "netrc":
        (tmp_path / "home" / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password 0000\n")
    else:
        monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080/")
        (tmp_path / "netrc").write_text("machine wandb.example.org\n  login user\n  password 0000\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    tracking.prepare(["wandb"], run)
    assert "WANDB_MODE" not in os.environ
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("netrc", ["machine github.com\n  login user\n  password 0000\n", "no netrc at all"])
def test_another_or_a_broken_netrc_is_no_login(run, capsys, tmp_path, netrc):
    (tmp_path / "home" / ".netrc").write_text(netrc)
    tracking.prepare(["wandb"], run)
    assert "not logged in" in capsys.readouterr().out


def test_who_chose_offline_is_told_nothing(run, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracking.prepare(["wandb"], run)
    assert os.environ["WANDB_MODE"] == "disabled"
    assert capsys.readouterr().out == ""


def test_a_resumed_run_keeps_its_id_and_a_fresh_one_gets_its_own(run):
    assert tracking.prepare(["wandb"], run, previous_id="abcd1234") == "abcd1234"
    assert os.environ["WANDB_RUN_ID"] == "abcd1234"
    assert os.environ["WANDB_RESUME"] == "allow"
    first, second = tracking.prepare(["wandb"], run), tracking.prepare(["wandb"], run)
    assert len({first, second, "abcd1234"}) == 3


def test_without_wandb_nothing_of_it_is_set(run):
    assert tracking.prepare(["tensorboard"], run) is None
    assert tracking.prepare([], run) is None
    assert not [name for name in NAMES if name in os.environ]


def test_the_real_wandb_writes_where_the_sentence_says(run):
    """The real library, in a process of its own, without network: exit 0, files that `wandb sync` takes, the id that was given."""
    program = f"""
from pathlib import Path
from common import run_directory, tracking
run_id = tracking.prepare(["wandb"], run_directory.RunDirectory(Path({str(run.path)!r})))
import wandb
started = wandb.init()
assert started.id == run_id, (started.id, run_id)
started.log({{"loss": 1.0}})
wandb.finish()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("W&B is not logged in")
    (directory,) = (run.path / "logs" / "wandb").glob("offline-run-*")
    (file,) = directory.glob("run-*.wandb")
    assert file.stat().st_size > 0

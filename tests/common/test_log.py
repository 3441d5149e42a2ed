"""What is said: once, by rank 0, on the terminal and in training.log from the first line on."""

import re

import pytest

from common import log


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    log.close()
    yield
    log.close()


def test_the_file_begins_with_what_was_said_before_it_was_known(tmp_path, capsys):
    log.say("first\nsecond")
    log.say("only in the file", terminal=False)
    log.write_to(tmp_path / "logs" / "training.log")
    log.say("third")
    assert capsys.readouterr().out == "first\nsecond\nthird\n"
    lines = (tmp_path / "logs" / "training.log").read_text().splitlines()
    assert [line[21:] for line in lines] == ["first", "second", "only in the file", "third"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in lines)


def test_a_resumed_run_appends(tmp_path):
    path = tmp_path / "training.log"
    for text in ("first run", "second run"):
        log.say(text)
        log.write_to(path)
        log.close()
    assert [line[21:] for line in path.read_text().splitlines()] == ["first run", "second run"]


@pytest.mark.parametrize(
    ("rank", "local", "speaks"), [("0", "0", True), ("1", "1", False), ("8", "0", False), (None, "1", False), (None, None, True)]
)
def test_only_rank_0_speaks(tmp_path, capsys, monkeypatch, rank, local, speaks):
    for name, value in (("RANK", rank), ("LOCAL_RANK", local)):
        if value is not None:
            monkeypatch.setenv(name, value)
    log.write_to(tmp_path / "training.log")
    log.say("hello")
    assert capsys.readouterr().out == ("hello\n" if speaks else "")
    assert (tmp_path / "training.log").exists() == speaks


def test_a_warning_is_said_once_and_remembered(capsys):
    assert log.warn("too much padding")
    assert not log.warn("too much padding")
    assert capsys.readouterr().out == "warning: too much padding\n"
    assert log.warnings == ["too much padding"]
    log.close()
    assert log.warnings == []

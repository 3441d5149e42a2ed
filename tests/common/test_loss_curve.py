"""The loss curve on a terminal: a real pseudo-terminal of several widths, no terminal, one without UTF-8, and losses that are odd."""

import fcntl
import math
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from common import loss_curve

TRAINED = [{"step": step, "loss": 4.5 * math.exp(-step / 40) + 0.3} for step in range(2, 151, 2)]
JUDGED = [{"step": step, "eval_loss": 4.5 * math.exp(-step / 40) + 0.5} for step in range(10, 151, 10)]


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(loss_curve, "_can_print", lambda text: True)


def dots(text):
    """[(column, row from above)] of the canvas where something of the training loss is drawn."""
    return [(column, row) for row, line in enumerate(text.splitlines()[2:-3]) for column, c in enumerate(line) if "\u2800" < c <= "\u28ff"]


def test_the_curve_falls_between_its_axes_and_its_names_stand_above_it():
    text = loss_curve.drawn(TRAINED + JUDGED)
    lines = text.splitlines()
    assert lines[0] == "nats per label token:   ⠒⠒ training   oo held out"
    assert lines[-1].strip() == "optimiser step"
    assert lines[-2].split() == ["0", "50", "100", "150"]
    assert [line.split("┤")[0].strip() for line in lines if "┤" in line] == ["6", "4", "2", "0"]
    assert max(map(len, lines)) == 80 and len(lines) == loss_curve.LINES + 1
    assert dots(text)[0][0] < 6 and dots(text)[-1][0] > 75
    heights = [min(row for c, row in dots(text) if c == column) for column in sorted({column for column, _ in dots(text)})]
    assert heights == sorted(heights) and heights[-1] - heights[0] >= 6
    assert "".join(lines[1:-1]).count("o") == len(JUDGED)
    assert "\x1b" not in text


def test_one_curve_leaves_nothing_in_the_next():
    alone = loss_curve.drawn(TRAINED)
    loss_curve.drawn([{"step": 9000, "loss": 70.0}, {"step": 9001, "eval_loss": 80.0}, {"step": 9002, "loss": 90.0}])
    assert loss_curve.drawn(TRAINED) == alone
    assert "held out" not in alone


def test_only_held_out_losses_are_a_curve_too():
    assert loss_curve.drawn(JUDGED).startswith("nats per label token:   oo held out\n")


@pytest.mark.parametrize("history", [[], TRAINED[:1], [TRAINED[0], JUDGED[0]], [TRAINED[0], {"step": 4, "loss": math.nan}], [{"step": 3}]])
def test_fewer_than_two_points_are_no_curve(history):
    assert loss_curve.drawn(history) == ""


def test_what_is_not_finite_is_left_out():
    broken = [{"step": 151, "loss": math.nan}, {"step": 152, "loss": math.inf}, {"step": 150, "eval_loss": -math.inf}]
    assert loss_curve.drawn(TRAINED + broken) == loss_curve.drawn(TRAINED)


def test_a_long_training_is_averaged_and_says_so():
    noisy = [{"step": step, "loss": 2 + (step % 2) - step / 4000} for step in range(4000)]
    text = loss_curve.drawn(noisy)
    assert "⠒⠒ training, moving average" in text
    assert len(dots(text)) < 2 * 80  # a line, where every second value is one higher


@pytest.mark.parametrize("losses", [[0.0, 0.0], [2.0, 2.0, 2.0], [1e30, 1e-30], [3e38, 1.0], [1e-9, 3e-9], [-1.0, 1.0], [12345.6, 30000.0]])
def test_odd_losses_are_drawn(losses):
    text = loss_curve.drawn([{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)])
    assert dots(text) and max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[-2].split()[0] == "0"


@pytest.mark.parametrize(("columns", "drawn"), [("1", 40), ("60", 60), ("300", 100)])
def test_its_width_has_limits(monkeypatch, columns, drawn):
    monkeypatch.setenv("COLUMNS", columns)
    assert max(map(len, loss_curve.drawn(TRAINED).splitlines()[1:])) == drawn


PROGRAM = """
from common import log, loss_curve
history = [{"step": step, "loss": 5 / step} for step in range(1, 60)] + [{"step": step, "eval_loss": 6 / step} for step in (20, 40, 60)]
log.say(loss_curve.drawn(history))
"""


def on_a_terminal(columns, **environ):
    """What PROGRAM writes on a real pseudo-terminal of `columns`."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL")}
    ran = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=theirs, stderr=subprocess.PIPE, env=clean | environ)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    errors = ran.communicate()[1]
    assert ran.returncode == 0, errors.decode()
    return said.decode("utf-8").replace("\r\n", "\n")


@pytest.mark.parametrize(("columns", "drawn"), [(60, 60), (120, 100)])
def test_it_is_as_wide_as_the_terminal_and_100_columns_at_most(columns, drawn):
    text = on_a_terminal(columns, LC_ALL="C.UTF-8")
    assert max(map(len, text.splitlines())) == drawn
    assert "⠒⠒ training" in text and "\x1b" not in text


def test_a_terminal_without_utf_8_gets_ascii():
    text = on_a_terminal(80, PYTHONIOENCODING="ascii")
    assert text.isascii() and "** training   oo held out" in text and text.count("*") > 40 and "|" in text and "+-" in text

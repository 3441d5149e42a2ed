"""Commands that say no: sentences, exit codes, and a full disk in whatever words a library puts it."""

import subprocess
import sys
import textwrap

import pytest

from common.refusal import is_disk_full


def ended(program, **environment):
    """(exit code, stderr) of `refusal.guard(main)` with this body of main."""
    body = textwrap.indent(textwrap.dedent(program), "    ")
    text = f"import os\nfrom common import refusal\ndef main():\n{body}\nrefusal.guard(main)"
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_a_refusal_is_its_sentence():
    assert ended("raise refusal.Refusal('SEED is x')") == (2, "error: SEED is x\n")
    assert ended("raise refusal.Refusal('SEED is x')", RANK="1") == (2, "")
    assert ended("try: 1 / 0\nexcept ZeroDivisionError as error: raise refusal.Refusal('here alone') from error", RANK="1") == (
        2, "error: here alone\n",
    )  # fmt: skip


def test_a_bug_keeps_its_traceback():
    code, said = ended("1 / 0")
    assert code == 1 and "Traceback" in said and "ZeroDivisionError" in said
    code, said = ended("open('/no/such/file')")
    assert code == 1 and "Traceback" in said


@pytest.mark.parametrize(
    ("program", "named"),
    [
        ("with open('/dev/full', 'w') as out: out.write('x')", ""),
        ("raise OSError(28, 'No space left on device', '/disk/run.json')", " (/disk/run.json)"),
        ("raise OSError(122, 'Disk quota exceeded')", ""),
        ("try: os.write(os.open('/dev/full', os.O_WRONLY), b'x')\nexcept OSError: raise RuntimeError('the writer failed')", ""),
        ("raise RuntimeError('I/O error: No space left on device (os error 28)')", ""),
    ],
)
def test_a_full_disk_is_a_sentence(program, named):
    for rank in ("0", "1"):  # it may have happened on one alone
        code, said = ended(program, RANK=rank)
        assert code == 2 and "Traceback" not in said
        assert said.startswith(f"error: the disk is full, or a quota used up{named}; free some space there and start again")


def test_what_is_no_full_disk():
    assert not is_disk_full(None) and not is_disk_full(ValueError("device")) and not is_disk_full(OSError(5, "Input/output error"))

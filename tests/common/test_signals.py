"""Signals to every process that a user or Slurm would signal, under the real launchers: who ends, when, with what code, what is left.

The ranks are light (tests/signalled_rank.py); the launchers and the signals are real. The runs of all chosen tests are made
side by side before the first test looks at its own.
"""

import fcntl
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil
import pytest
from user_commands import ROOT, user_environment

SCRIPT = str(ROOT / "tests" / "signalled_rank.py")
AT_ONCE = 5  # runs
PATIENCE = 150  # seconds for anything to happen


@dataclass(frozen=True)
class Case:
    """One run.

    under: parent (our own), deepspeed, torchrun or alone. send: the signal. to: the processes it is sent to, one after another
    later than `REPEAT`. code: the exit code of the command. saves: every rank has saved in the end. when: all ranks train ("started"),
    or the launcher has just begun ("early"). flags: of the script; options: of the launcher.
    """

    under: str
    send: str
    to: tuple
    code: int
    saves: bool = True
    when: str = "started"
    flags: tuple = ()
    options: tuple = ()

    def __str__(self):
        words = [self.under, self.send, "to", *self.to, *([self.when] if self.when != "started" else []), *self.flags, *self.options]
        return "-".join(word.strip("-") for word in words)


LONG, PREPARING, CRASHING, HANGING = ("--save", "50"), ("--does", "prepare"), ("--does", "crash"), ("--does", "hang")
SAVING = ("--does", "save")
QUICK = [
    # Our own parent: 75 whoever is signalled, but for SIGKILL to itself
    Case("parent", "TERM", ("top",), 75),
    Case("parent", "USR1", ("everything",), 75),
    Case("parent", "KILL", ("top",), -9),
    Case("parent", "TERM", ("top", "top"), 143, saves=False, flags=LONG),
    Case("parent", "TERM", ("top",), 75, saves=False, when="early"),
    Case("parent", "none", (), 1, saves=False, flags=CRASHING),
    # DeepSpeed's: the runner dies of a signal, launch.py says 1; the ranks save all the same
    Case("deepspeed", "TERM", ("top",), -15),
    Case("deepspeed", "TERM", ("launch.py",), 1),
    # torchrun forwards SIGTERM and SIGINT and says 1; it dies of SIGUSR1
    Case("torchrun", "TERM", ("top",), 1, flags=("--save", "5"), options=("--shutdown-timeout=2",)),
    Case("torchrun", "TERM", ("top", "top"), 1, saves=False, flags=LONG),
    Case("torchrun", "KILL", ("top",), -9, saves=False, flags=HANGING),
    # One process
    Case("alone", "TERM", ("top",), 75),
    Case("alone", "INT", ("terminal",), 75),
    Case("alone", "INT", ("top", "top"), 130, saves=False, flags=LONG),
    Case("alone", "TERM", ("top",), 75, saves=False, flags=PREPARING),
]
SOAK = [
    Case("parent", "KILL", ("launch.py",), 75),
    Case("parent", "INT", ("terminal",), 75),
    Case("torchrun", "TERM", ("guard", "top"), 1, flags=("--save", "4")),  # its late repetition is nobody's impatience
    Case("torchrun", "KILL", ("rank",), 1, saves=False),
    Case("torchrun", "KILL", ("top",), -9, flags=SAVING),
    Case("alone", "USR1", ("everything",), 75),
    Case("alone", "TERM", ("top", "top"), 143, saves=False, flags=HANGING),
    Case("deepspeed", "USR1", ("rank",), 75),
    Case("parent", "INT", ("top",), 75),
    Case("parent", "USR1", ("top",), 75),
    Case("parent", "TERM", ("launch.py",), 75),
    Case("parent", "TERM", ("launch.py",), 75, flags=LONG),
    Case("parent", "TERM", ("rank",), 75),
    Case("parent", "KILL", ("guard",), 75),
    Case("parent", "INT", ("top",), 75, saves=False, flags=PREPARING),
    Case("parent", "KILL", ("top",), -9, saves=False, when="early"),
    Case("parent", "KILL", ("launch.py",), 137, saves=False, when="early"),
    Case("parent", "KILL", ("rank",), 137, saves=False),
    Case("deepspeed", "INT", ("top",), -2),
    Case("deepspeed", "USR1", ("top",), -10),
    Case("deepspeed", "KILL", ("top",), -9),
    Case("deepspeed", "INT", ("launch.py",), 1),
    Case("deepspeed", "USR1", ("launch.py",), 0),  # to the runner, whatever killed launch.py is success
    Case("deepspeed", "KILL", ("launch.py",), 0),
    Case("deepspeed", "INT", ("terminal",), -2),
    Case("deepspeed", "TERM", ("group",), -15),
    Case("deepspeed", "TERM", ("everything",), -15),
    Case("deepspeed", "TERM", ("guard",), 75),
    Case("deepspeed", "KILL", ("guard",), 247),
    Case("deepspeed", "KILL", ("rank",), 137, saves=False),
    Case("deepspeed", "TERM", ("launch.py",), 1, saves=False, flags=PREPARING),
    Case("deepspeed", "none", (), 1, saves=False, flags=CRASHING),
    Case("deepspeed", "TERM", ("launch.py",), 1, flags=("--save", "40")),  # longer than its patience of 30 seconds
    Case("deepspeed", "TERM", ("group",), -15, flags=("--save", "70")),
    Case("deepspeed", "KILL", ("top",), -9, saves=False, when="early"),
    Case("torchrun", "INT", ("top",), 1),
    Case("torchrun", "INT", ("terminal",), 1),
    Case("torchrun", "TERM", ("rank",), 1),
    Case("torchrun", "KILL", ("top",), -9),
    Case("torchrun", "USR1", ("top",), -10),
    Case("torchrun", "KILL", ("guard",), 1),
    Case("torchrun", "TERM", ("top",), 1, saves=False, flags=PREPARING),
    Case("torchrun", "none", (), 1, saves=False, flags=CRASHING),
]


class Run:
    """The run of one case. Its processes are told from others by its directory, which is among their arguments."""

    def __init__(self, case, out):
        self.case, self.out, self.size = case, out, 1 if case.under == "alone" else 2
        self.has_tree = case.when == "started" and case.under != "alone" and case.to  # one that crashes is soon gone
        self.terminal, self.theirs = pty.openpty()

    def go(self):
        """Start, signal, wait for the end of the command, and of every process of it."""
        case = self.case
        try:
            self.process = self.start()
            self.wait_until(lambda: self.count("started") == self.size if case.when == "started" else self.launch_py())
            self.above_rank = self.ours_among(self.rank().parents()) if self.has_tree else None
            for n, target in enumerate(case.to):
                time.sleep(2.5 if n else 0)
                self.send(target)
            self.code = self.process.wait(PATIENCE)
            self.wait_until(lambda: not self.alive())
        finally:
            for process in self.alive():
                process.kill()
            os.close(self.terminal)
        return self

    def start(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = {
            "deepspeed": ["deepspeed", "--num_gpus=2", f"--master_port={port}"],
            "torchrun": ["torchrun", "--nproc-per-node=2", f"--master-port={port}"],
        }.get(self.case.under, [sys.executable])
        ranks = ["--ranks", "2"] if self.case.under == "parent" else []
        environment = {**user_environment(self.out), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

        def own_terminal():
            os.setsid()
            fcntl.ioctl(self.theirs, termios.TIOCSCTTY, 0)

        with (self.out / "output").open("wb") as output:
            process = subprocess.Popen(
                [*launcher, *self.case.options, SCRIPT, str(self.out), *ranks, *self.case.flags],
                cwd=self.out, env=environment, stdin=self.theirs, stdout=self.theirs, stderr=output, preexec_fn=own_terminal,
            )  # fmt: skip
        os.close(self.theirs)
        return process

    def send(self, target):
        number = getattr(signal, f"SIG{self.case.send}")
        if target == "terminal":
            os.write(self.terminal, b"\x03")  # Ctrl-C
        elif target == "group":
            os.killpg(self.process.pid, number)
        else:
            processes = {"top": lambda: [self.process], "launch.py": self.launch_py, "rank": lambda: [self.rank()]}
            processes |= {"guard": self.guard, "everything": self.alive}
            for process in processes[target]():
                process.send_signal(number)

    def launch_py(self):
        return [process for process in self.alive() if "deepspeed.launcher.launch" in process.cmdline()]

    def rank(self):
        return psutil.Process(int((self.out / "pid-1").read_text()))

    def guard(self):
        rank = self.rank()
        return [p for p in self.alive() if p.environ().get("RANK") == "1" and os.getsid(p.pid) != os.getsid(rank.pid)]

    def alive(self):
        return self.ours_among(psutil.process_iter())

    def ours_among(self, processes):
        found = []
        for process in processes:
            try:
                if str(self.out) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                pass
        return found

    def count(self, word):
        return len(list(self.out.glob(f"{word}-*")))

    def words(self, word):
        return {path.read_text() for path in self.out.glob(f"{word}-*")}

    def wait_until(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                tree = [(p.pid, p.ppid(), p.cmdline()[1:4]) for p in self.alive()]
                raise AssertionError(f"{self.case}: {tree}\n{(self.out / 'output').read_text()}")
            time.sleep(0.2)


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """The runs of the chosen tests, by case."""
    chosen = [item.callspec.params["case"] for item in request.session.items if item.module is request.module and hasattr(item, "callspec")]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return {case: pool.submit(Run(case, tmp_path_factory.mktemp("signals")).go) for case in chosen}


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(case, marks=pytest.mark.soak) for case in SOAK)], ids=str)
def test_signal(case, runs):
    run = runs[case].result()  # raises where a process stayed behind
    said = (run.out / "output").read_text()
    assert run.code == case.code, said
    assert run.count("saved") == (run.size if case.saves else 0), said
    if case.saves:
        names = run.words("asked") - {"None"}  # None: told by another rank
        assert names and names <= {f"SIG{case.send}", "SIGTERM", "SIGHUP"}, said  # launch.py's; of a launcher that died
        assert run.words("worker") == ({"True"} if case.send != "TERM" or "everything" not in case.to else {"False"})
    if case.when == "started":
        assert run.words("tty") == {"True"}
    if run.has_tree:
        above = [process.pid for process in run.above_rank]
        assert above == ([run.process.pid] if case.under == "parent" else []), "a launcher would kill this rank with its tree"


def test_a_child_that_is_ended_while_it_is_forked_ends(tmp_path):
    """SIGTERM in the first moments of a fork; lost, the child would sleep on."""
    code = """
import os, signal, time
from common import signals
signals.listen()
lost = 0
for n in range(60):
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    os.kill(pid, signal.SIGTERM)
    for _ in range(300):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        lost += 1
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if done and os.waitstatus_to_exitcode(status) != -signal.SIGTERM:
        lost += 1
print("LOST", lost)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert "LOST 0\n" in ran.stdout and "ignored" not in ran.stderr, ran.stdout + ran.stderr

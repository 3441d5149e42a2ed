"""The recipe ended at a moment that is proven afterwards, resumed until it ends by itself, and compared with a run never stopped.

    chain = Chain(home, "killed", flags(20), store)
    chain.resume()
    chain.kill_in("save", random.Random(1))     # "save": what the disk says the moment was
    chain.resume()
    chain.finish()
    assert not compared_runs.differences(whole, chain.run)

What the moments are proven by, all of it looked at after the process is dead:
save: there is a checkpoint-N without a manifest. upload: the store has received a part of a checkpoint's file and not the rest.
step: neither, and the last figure that was logged is that of a step after which no evaluation and no save is due before the next.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time

import psutil
from compared_runs import logged
from object_store import BUCKET, free_port, wait_until
from slow_store import RUNS
from user_commands import ROOT, user_environment

from common import manifest
from common.run_directory import RunDirectory

SAVE_STEPS, LOGGING_STEPS = 5, 2  # the loss of one or two steps is not logged yet when a checkpoint is written
SAVING = 0.07  # seconds that a save takes, about
PATIENCE = 240  # seconds for anything to happen
RECIPE = "recipes/llama32_qlora.py"
MARK = "INTERRUPTED_RUN"  # in the environment of every process that a run starts


def flags(steps):
    """Of a run of `steps` steps, an epoch in 12: accumulation, dropout, a long evaluation every `SAVE_STEPS`."""
    files = json.dumps({"samples/cross_validated.jsonl": 0.25, "samples/arxiv.jsonl": 0.25})
    return (
        *("--max-steps", str(steps), "--save-steps", str(SAVE_STEPS), "--eval-steps", str(SAVE_STEPS), "--train-files", files),
        *("--logging-steps", str(LOGGING_STEPS), "--per-device-train-batch-size", "6", "--gradient-accumulation-steps", "2"),
        *("--per-device-eval-batch-size", "1", "--held-out", "0.1", "--lora-dropout", "0.1", "--no-merge", "--report-to", "[]"),
    )  # fmt: skip


def uninterrupted(home, flags):
    """The chain of a run that nothing stops."""
    chain = Chain(home, "whole", flags)
    chain.resume()
    chain.finish()
    return chain


class Chain:
    """One run of the recipe below `home`, of which each session ends at a chosen moment. ranks: above 1 under `deepspeed`.

    warm: the WarmStart that all sessions but the first `fresh` are started by; None starts each in a fresh interpreter.
    """

    def __init__(self, home, name, flags, store=None, ranks=1, warm=None, fresh=1):
        self.run, self.home, self.flags, self.store, self.ranks = RunDirectory(home / name), home, flags, store, ranks
        self.warm, self.fresh, self._started = warm if ranks == 1 else None, fresh, set()  # the pids of its starts
        self.mark, self.process, self.sessions, self.proven, self._left = f"{name}-{secrets.token_hex(6)}", None, 0, [], []
        self.output = home / f"{name}.log"  # of all sessions
        self._begins = self._logged = 0

    # sessions

    def resume(self):
        """Start the recipe; where there is something, it goes on from there."""
        launcher = [sys.executable] if self.ranks == 1 else ["deepspeed", f"--num_gpus={self.ranks}", f"--master_port={free_port()}"]
        where = ["--output-dir", str(self.home), "--run-name", self.run.path.name, "--resume-from-checkpoint", "auto"]
        where += ["--checkpoint-uri", f"gs://{BUCKET}/{RUNS}"] if self.store else []
        temporary = self.home / f"{self.run.path.name}.tmp"  # what a killed process leaves in /tmp
        temporary.mkdir(exist_ok=True)
        environment = {**user_environment(self.home), **(self.store.environment if self.store else {}), MARK: self.mark}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)}
        self.output.touch()
        self.sessions, self._begins = self.sessions + 1, self.output.stat().st_size
        script = [RECIPE, "--tiny", *where, *self.flags]
        if self.warm and self.sessions > self.fresh:
            self.process = self.warm.start(script, environment, self.output)
            self._started.add(self.process.pid)
        else:
            with self.output.open("ab") as out:
                self.process = subprocess.Popen([*launcher, *script], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)

    def said(self):
        """What this session has printed."""
        with self.output.open("rb") as content:
            content.seek(self._begins)
            return content.read().decode()

    def finish(self):
        """Let this session come to its end."""
        code = self.process.wait(PATIENCE)
        assert code == 0, self.said()
        self.require_nobody()
        self._require_set_aside()

    def forget(self):
        """Lose the disk: remove the run directory."""
        shutil.rmtree(self.run.path)
        self._left = []

    def end(self):
        """End what is still running."""
        for process in self._processes():
            process.kill()

    # moments

    def kill_in(self, moment, draw, target=None):
        """SIGKILL in `moment` ("step", "save" or "upload"), at a place of it that `draw` chooses; what it proves to be afterwards.

        "between" where it is none of these, None where the run ended by itself before. target: what gets the signal, else the process
        that was started.
        """
        try:
            if not (self._begin() and getattr(self, f"_reach_{moment}")(draw)):
                self.finish()
                return None
            coming = set(self.store.coming()) if self.store else set()
            (target() if target else self.process).kill()
            self.process.wait(PATIENCE)
            coming &= set(self.store.coming()) if self.store else set()
        finally:
            if self.store:
                self.store.pace = None
        self.require_nobody()
        self._left = [path.name for path in self.unfinished()]
        self.proven.append(self._moment(coming))
        return self.proven[-1]

    def stop_in(self, moment, number, draw, target=None):
        """Send the signal `number` in "accumulation" or "evaluation"; (exit code, manifest of the newest checkpoint, None without one)."""
        assert self._begin() and getattr(self, f"_reach_{moment}")(draw), self.said()
        (target() if target else self.process).send_signal(number)
        code = self.process.wait(PATIENCE)
        self.require_nobody(PATIENCE)
        whole = self.run.whole_checkpoints()
        return code, manifest.read(whole[-1][1]) if whole else None

    def rank(self, number):
        """The process that does the work of rank `number`: the one that no process of this run is above."""
        ours = self._processes()
        pids = {process.pid for process in ours}
        found = [p for p in ours if p.ppid() not in pids and RECIPE in p.cmdline() and p.environ().get("RANK") == str(number)]
        assert len(found) == 1, self.said()
        return found[0]

    def _begin(self):
        """Wait until this session trains."""
        if not self._until(lambda: "rank(s) rows, about" in self.said(), 0.05):
            return False
        self._logged = len(self._lines())
        self._require_set_aside()
        return True

    def _require_set_aside(self):
        """What a kill in a save left is still there, under a name that says what it is."""
        for name in self._left:
            assert list(self.run.path.glob(f"unfinished-{name}-*")), f"{name} is gone\n{self.said()}"

    def _reach_step(self, draw):
        skipped = draw.randrange(3)
        reached = self._until(lambda: sum(map(_only_steps_follow, self._lines()[self._logged :])) > skipped, 0.005)
        time.sleep(draw.uniform(0, 0.6))
        return reached

    def _reach_save(self, draw):
        known = {step for step, _ in self.run.checkpoints()}
        reached = self._until(lambda: any(step not in known for step, _ in self.run.checkpoints()))
        time.sleep(draw.uniform(0, SAVING))
        return reached

    def _reach_upload(self, draw):
        self.store.pace, share = 400_000, draw.uniform(0.02, 0.9)
        return self._until(lambda: any(came > share * size and size > 1e5 for _, came, size in self.store.coming().values()))

    def _reach_accumulation(self, draw):
        """A third of the way through a step whose accumulation has two halves."""
        reached = self._until(lambda: any(map(_only_steps_follow, self._lines()[self._logged :])))
        time.sleep(draw.uniform(0.1, 0.2))
        return reached

    def _reach_evaluation(self, draw):
        """The figures of a step are logged, and then it is evaluated; the signal is seen there, be it a little early."""
        reached = self._until(lambda: any("loss" in line and line["step"] % SAVE_STEPS == 0 for line in self._lines()[self._logged :]))
        time.sleep(draw.uniform(0, 0.2))
        return reached

    def _reach_last_evaluation(self, draw):
        steps = int(self.flags[self.flags.index("--max-steps") + 1])
        reached = self._until(lambda: any("loss" in line and line["step"] == steps for line in self._lines()[self._logged :]))
        time.sleep(draw.uniform(0, 0.2))
        return reached

    def _until(self, condition, pause=0.001):
        """Wait for `condition()`; False where the process ended before."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.said()
            time.sleep(pause)
        return True

    def _moment(self, coming):
        if self.unfinished():
            return "save"
        if coming:
            return "upload"
        lines = self._lines()[self._logged :]
        return "step" if lines and _only_steps_follow(lines[-1]) else "between"

    # what is there

    def unfinished(self):
        """The checkpoint directories without a manifest."""
        return [path for _, path in self.run.checkpoints() if not manifest.exists(path)]

    def set_aside(self):
        """The names of what resumes found unfinished."""
        return sorted(path.name for path in self.run.path.glob("unfinished-checkpoint-*"))

    def require_nobody(self, seconds=20):
        """AssertionError where a process of this run is still there after `seconds`; those are ended then."""
        try:
            wait_until(lambda: not self._processes(), seconds)
        except AssertionError:
            left = self._processes()
            told = [process.cmdline()[:4] for process in left]
            for process in left:
                process.kill()
            raise AssertionError(f"left behind: {told}") from None

    def _processes(self):
        found = []
        for process in psutil.process_iter():
            try:
                ours = os.getsid(process.pid) in self._started or process.environ().get(MARK) == self.mark  # a fork shows no environment
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.Error, ProcessLookupError):
                pass
        return found

    def _lines(self):
        return logged(self.run)


def _only_steps_follow(line):
    """True for the figures of a step after which nothing but steps comes until the next ones are logged."""
    due = range(line["step"], line["step"] + LOGGING_STEPS)
    return "loss" in line and not any(step % SAVE_STEPS == 0 for step in due)

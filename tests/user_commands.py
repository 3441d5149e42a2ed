"""Running the repository's commands as a user would."""

import importlib
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Ran:
    """A command that was run: exit code, what it printed, and the run directory it wrote."""

    returncode: int
    output: str
    run: RunDirectory


@contextmanager
def imported(recipe):
    """A recipe's `main` as a function of this process, whose environment is put back after each call: a call may make it a rank."""
    sys.path.insert(0, str(ROOT / "recipes"))
    module, before = importlib.import_module(recipe), dict(os.environ)

    def main(**keywords):
        try:
            return module.main(report_to=[], **keywords)
        finally:
            os.environ.clear()
            os.environ.update(before)

    yield main
    sys.path.remove(str(ROOT / "recipes"))


def user_environment(home):
    """The environment of a user without accounts: no W&B key, no hub token, nothing of a launcher, and a terminal of the usual width."""
    others = ("WANDB", "HF_TOKEN", "COLUMNS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(others)}
    return {**kept, "NETRC": str(home / "no-netrc"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def call(command, home, timeout=300, **environment):
    """Run a command line in the repository; (exit code, stdout and stderr together)."""
    environment = {**user_environment(home), **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=ROOT, env=environment, **pipes, text=True, timeout=timeout)
    return done.returncode, done.stdout


def train(home, *flags, name, launcher=("python",), recipe="llama32_qlora", warm=None, ranks=0, **options):
    """A recipe's tiny run with more flags, into `home`/`name`; warm: the WarmStart that starts it, as so many `ranks` if any."""
    script = [f"recipes/{recipe}.py", "--tiny", "--output-dir", str(home), "--run-name", name, *flags]
    code, output = warm.call(script, home, ranks=ranks) if warm else call([*launcher, *script], home, **options)
    return Ran(code, output, RunDirectory(home / name))

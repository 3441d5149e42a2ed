"""What several rooms' tests look at: one tiny run, trained and judged once by the user's own commands."""

import os
import signal
import subprocess
from contextlib import suppress

import pytest
from full_disks import Disks
from object_store import wait_until
from user_commands import ROOT, Ran, user_environment
from warm_start import WarmStart

from common import hardware
from common.run_directory import RunDirectory

hardware.prepare_torch()  # before any test imports it: beside others on two cores it has taken a hundred times as long without
TINY = "llama32_qlora_tiny"
TRAIN = f"python recipes/llama32_qlora.py --tiny --output-dir {{home}} --run-name {TINY}"
JUDGE = f"bash eval/eval_all_checkpoints.sh {{home}}/{TINY}"


def pytest_collection_modifyitems(items):
    """The longest tests first, so that two processes that share the files of tests (-n 2 --dist loadfile) end together."""
    items.sort(key=lambda item: item.path.parent.name != "recipes")


@pytest.fixture(scope="session", autouse=True)
def ahead(request, tmp_path_factory):
    """Begins the commands above beside the first test, where a chosen one will look at what they leave: what they said, as a function."""
    wanted = {name for item in request.session.items for name in item.fixturenames}
    process = getattr(request.config, "workerinput", {}).get("workerid")  # of those that share the tests, the first one begins them
    home = tmp_path_factory.getbasetemp().parent / "tiny" if process else tmp_path_factory.mktemp("tiny")
    home.mkdir(exist_ok=True)
    if process not in (None, "gw0"):
        wanted = set()
    steps = [TRAIN] * ("tiny_run" in wanted) + [JUDGE] * ("judged_run" in wanted)
    script = "".join(f"{step} >{{home}}/{n}.said 2>&1; echo $? >{{home}}/{n}.code\n" for n, step in enumerate(steps)).format(home=home)
    # One thread: a second would only wait for the first, and the other core has the other tests
    environment = {**user_environment(home), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(["bash", "-c", script], cwd=ROOT, env=environment, start_new_session=True) if steps else None

    def ran(n):
        code = home / f"{n}.code"
        wait_until(lambda: code.exists() and code.read_text(), 300)
        found = Ran(int(code.read_text()), (home / f"{n}.said").read_text(), RunDirectory(home / TINY))
        assert found.returncode == 0, found.output
        return found

    yield ran
    if process:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def tiny_run(ahead):
    """`python recipes/llama32_qlora.py --tiny`, once for all tests."""
    return ahead(0)


@pytest.fixture(scope="session")
def judged_run(ahead, tiny_run):
    """The tiny run after `bash eval/eval_all_checkpoints.sh RUN_DIR`."""
    return ahead(1)


@pytest.fixture(scope="session")
def warm():
    """Starts a recipe within a second; not for the first run of its kind, see warm_start.py."""
    with WarmStart() as started:
        yield started


@pytest.fixture
def full_disk(tmp_path):
    """A disk of so many megabytes, as a function; skips where this machine lets nobody mount one."""
    disks = Disks(tmp_path)

    def make(megabytes):
        disk = disks.make(megabytes)
        return disk or pytest.skip(disks.why_not)

    yield make
    disks.close()


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU, and torch sees none here")

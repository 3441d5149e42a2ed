"""What several rooms' tests look at: one tiny run, trained and judged once by the user's own commands."""

import pytest
from full_disks import Disks
from user_commands import Ran, call, train


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """`python recipes/llama32_qlora.py --tiny`, once for all tests."""
    home = tmp_path_factory.mktemp("tiny")
    ran = train(home, name="llama32_qlora_tiny")
    assert ran.returncode == 0, ran.output
    return ran


@pytest.fixture(scope="session")
def judged_run(tiny_run):
    """The tiny run after `bash eval/eval_all_checkpoints.sh RUN_DIR`."""
    code, output = call(["bash", "eval/eval_all_checkpoints.sh", str(tiny_run.run.path)], tiny_run.run.path.parent)
    assert code == 0, output
    return Ran(code, output, tiny_run.run)


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

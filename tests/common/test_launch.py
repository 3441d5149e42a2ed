"""Launching: the real DeepSpeed launcher starts one rank for each GPU that nvidia-smi lists; ranks agree with rank 0."""

import os
import subprocess
import sys

import pytest

from common import launch
from common.hardware import Gpu

SCRIPT = """
import os, sys, time
from pathlib import Path
from common import constants, launch, log

STEPS: int = 1

def main():
    settings = constants.resolve(globals(), {})
    out = Path(os.environ["OUT"])
    with (out / "started").open("a") as started:
        started.write("x")
    launch.on_all_gpus(settings)
    log.say(f"rank 0 of {os.environ.get('WORLD_SIZE')} speaks, STEPS = {STEPS}")
    if launch.is_distributed():
        import torch
        import torch.distributed as dist
        dist.init_process_group("gloo")
        here = dist.get_rank()
    else:
        here = "alone"
    decided = launch.rank_0_decides(lambda: f"decided by {here}")
    if here == 1:
        (out / "last").write_text("")
    launch.wait_for_all()
    assert here == "alone" or (out / "last").exists()
    agreed = [launch.agree(False), launch.agree(here in (1, "alone")), launch.agree(False)]
    (out / f"rank-{here}").write_text(f"{decided} {STEPS} {agreed}")
    if here == 1 and STEPS == 71:
        os._exit(9)
    if here == 0:
        (out / "gpus").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        time.sleep(2)
        (out / "first").write_text("")
    launch.exit_together()
    assert here != 1 or (out / "first").exists()
    sys.exit(7 if STEPS >= 70 else 0)

launch.command(main)
"""


@pytest.fixture
def start(tmp_path):
    """Run the script with an nvidia-smi first on the PATH that lists so many GPUs."""

    def run(gpus, *argv, **environment):
        (tmp_path / "script.py").write_text(SCRIPT)
        smi = tmp_path / "bin" / "nvidia-smi"
        smi.parent.mkdir(exist_ok=True)
        lines = "".join(f"{n}, GPU-{n}, NVIDIA H200, 143771, 143100, 580.95.05\\n" for n in range(gpus))
        smi.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
        smi.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES")}
        return subprocess.run(
            [sys.executable, str(tmp_path / "script.py"), *argv],
            capture_output=True,
            text=True,
            timeout=180,
            env={**kept, "PATH": f"{smi.parent}:{os.environ['PATH']}", "OUT": str(tmp_path), "OMP_NUM_THREADS": "1", **environment},
        )

    return run


def test_two_gpus_start_two_ranks_with_the_same_flags_and_pass_on_the_exit_code(start, tmp_path):
    ended = start(2, "--steps", "70")
    assert "2 GPUs: starting one process on each (deepspeed --num_gpus=2" in ended.stdout
    assert (tmp_path / "rank-0").read_text() == "decided by 0 70 [False, True, False]", ended.stderr
    assert (tmp_path / "rank-1").read_text() == "decided by 0 70 [False, True, False]"
    assert (tmp_path / "started").read_text() == "xxx"  # the first process and two ranks
    assert ended.stdout.count("rank 0 of 2 speaks, STEPS = 70") == 1
    assert ended.returncode == 7


def test_a_rank_that_dies_keeps_nobody_waiting_at_the_end(start, tmp_path):
    ended = start(2, "--steps", "71", CUDA_VISIBLE_DEVICES="1,0")
    assert (tmp_path / "gpus").read_text() == "1,0"  # and nobody else's
    assert ended.returncode == 137, ended.stderr  # without a word to its guard


def test_an_end_by_a_signal_is_128_and_its_number_whoever_reports_it():
    assert [launch._exit_code(code) for code in (0, 2, 75, -15, 256 - 15, 137)] == [0, 2, 75, 143, 143, 137]


@pytest.mark.parametrize(
    ("gpus", "argv", "environment"), [(0, [], {}), (1, [], {}), (2, ["--tiny"], {}), (2, [], {"CUDA_VISIBLE_DEVICES": "1"})]
)
def test_one_process_where_one_is_enough(start, tmp_path, gpus, argv, environment):
    ended = start(gpus, *argv, **environment)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "rank-alone").read_text() == "decided by alone 1 [False, True, False]"
    assert (tmp_path / "started").read_text() == "x"


def test_somebody_elses_gpus_are_not_taken():
    """DeepSpeed ignores CUDA_VISIBLE_DEVICES beside --num_gpus, so the visible ones are named."""
    both = [Gpu("NVIDIA L4", 22.5, 22.0, "570.1", 2), Gpu("NVIDIA L4", 22.5, 22.0, "570.1", 3)]
    assert launch.which_gpus(both, "2,3") == "--include=localhost:2,3"
    assert launch.which_gpus(both, None) == "--num_gpus=2"


@pytest.mark.parametrize(("machines", "start"), [("1", "deepspeed --num_gpus=16"), ("2", "deepspeed --hostfile=hosts")])
def test_ranks_of_several_machines_are_told_to_start_again_on_all_of_them(monkeypatch, machines, start):
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("CROSS_SIZE", machines)
    assert launch.starter() == start

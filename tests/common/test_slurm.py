"""srun as the launcher: real processes with the variables that srun of Slurm 22.05 gave its tasks become ranks that agree over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BATCH = Path(__file__).parents[2] / "recipes" / "mtg_full_32b.sbatch"
SCRIPT = """
import os
from common import launch, log

def main():
    log.say("rank 0 speaks")
    if not launch.is_distributed():
        return print("alone", launch.ranks(type("Tiny", (), {"argv": [], "tiny": True})))
    if os.environ.get("ONLY_LOOK"):
        return print(*(os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")))
    import torch.distributed as dist
    dist.init_process_group("gloo")
    here = dist.get_rank()
    print(launch.rank_0_decides(lambda: f"rank {here} decided"), launch.gather(here), launch.agree(here == 1), launch.starter())
    launch.exit_together()
    raise SystemExit(launch.STOPPED)

launch.command(main)
"""


@pytest.fixture
def task(tmp_path):
    """Start the script as task `number` of a step, with scontrol and nvidia-smi of this test's; None takes a variable away."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def start(number, tasks=2, nodes=1, gpus=0, stdin=subprocess.DEVNULL, **more):
        tools = tmp_path / "bin"
        tools.mkdir(exist_ok=True)
        listed = "".join(f"{n}, GPU-{n}, NVIDIA H200, 143771, 143100, 580.95.05\\n" for n in range(gpus))
        for name, answer in (("nvidia-smi", listed), ("scontrol", "n1\\nn2\\n")):
            (tools / name).write_text(f"#!/bin/sh\n[ -z '{answer}' ] && exit 9\nprintf '{answer}'\n")
            (tools / name).chmod(0o755)
        each, node = tasks // nodes, number * nodes // tasks
        said = {
            "SLURM_JOB_ID": "7000", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_NUM_NODES": nodes,
            "SLURM_STEP_TASKS_PER_NODE": each if nodes == 1 else f"{each}(x{nodes})", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NODEID": node,
            "SLURM_GTIDS": ",".join(str(node * each + n) for n in range(each)), "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.9",
            "SLURM_PROCID": number, "SLURM_LOCALID": number % each, "SLURM_NNODES": nodes,
        }  # fmt: skip
        others = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM", "CUDA_VISIBLE")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
        said = {key: str(value) for key, value in (said | more).items() if value is not None}
        path = f"{tools}:{os.environ['PATH']}"
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py")], env=kept | {"PATH": path, "OMP_NUM_THREADS": "1"} | said,
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def ends(process):
    """(exit code, what it printed, its error)."""
    printed, error = process.communicate(timeout=60)
    return process.returncode, printed.split("\n")[:-1], error


def test_the_tasks_of_a_step_are_ranks_that_agree_and_their_exit_code_is_their_own(task):
    job = {"SLURM_JOB_ID": os.getpid()}  # whose port is not that of another run of this test
    first, second = [ends(process) for process in [task(0, **job), task(1, **job)]]
    assert first[:2] == (75, ["rank 0 speaks", "rank 0 decided [0, 1] True srun --ntasks=2 python"]), first[2]
    assert second[:2] == (75, ["rank 0 decided [0, 1] True srun --ntasks=2 python"]), second[2]


def looks(task, number, **more):
    code, printed, error = ends(task(number, ONLY_LOOK="1", **more))
    assert code == 0, error
    return printed[-1]


def test_what_a_rank_knows(task):
    """Port 10000 + (7000 * 31 + 0) % 20000; the address is that of the first node, where rank 0 is."""
    sixteen = {"tasks": 16, "nodes": 2}
    assert looks(task, 3, tasks=8, gpus=8) == "3 8 3 8 127.0.0.1 27000"
    assert looks(task, 11, **sixteen, gpus=8) == "11 16 3 8 n1 27000"
    assert looks(task, 3, tasks=5, nodes=2, SLURM_STEP_TASKS_PER_NODE="3,2", SLURM_NODEID=1, SLURM_GTIDS="3,4") == "3 5 1 2 n1 27000"


def test_where_a_task_sees_one_gpu_it_is_number_0(task):
    one = {"tasks": 2, "gpus": 8}
    assert looks(task, 1, **one, CUDA_VISIBLE_DEVICES="5") == "1 2 0 2 127.0.0.1 27000"
    assert looks(task, 1, **one, CUDA_VISIBLE_DEVICES="0,1") == "1 2 1 2 127.0.0.1 27000"
    assert looks(task, 1, gpus=1) == "1 2 0 2 127.0.0.1 27000"  # one GPU a node, or hidden by control groups


def test_what_somebody_set_stays(task):
    assert looks(task, 1, MASTER_ADDR="n9", MASTER_PORT="29500") == "1 2 1 2 n9 29500"
    assert looks(task, 0, RANK="3", WORLD_SIZE="4", LOCAL_RANK="3", LOCAL_WORLD_SIZE="4", MASTER_ADDR="a", MASTER_PORT="1") == "3 4 3 4 a 1"


def test_one_task_for_eight_gpus_on_each_of_two_nodes_is_refused_once(task):
    first, second = [ends(process) for process in [task(0, nodes=2, gpus=8), task(1, nodes=2, gpus=8)]]
    assert first == (2, [], "error: srun started one task on each of 2 nodes, and this one has 8 GPUs, of which a task would use one; "
                            "ask for one task per GPU: #SBATCH --ntasks-per-node=8, or srun --ntasks-per-node=8\n")  # fmt: skip
    assert second == (2, [], "")
    assert looks(task, 1, nodes=2, gpus=1) == "1 2 0 1 n1 27000"  # nodes of one GPU


def test_a_batch_script_and_a_step_of_one_task_are_no_ranks(task):
    step = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST")
    for process in [task(0, **dict.fromkeys(step)), task(0, tasks=1), task(0, SLURM_GTIDS="0")]:  # the last was queued from inside a step
        assert ends(process)[:2] == (0, ["rank 0 speaks", "alone 1"])


def test_the_shell_of_srun_pty_is_no_rank_but_what_srun_starts_from_it_is(task):
    shell, terminal = os.openpty()
    try:
        assert ends(task(0, stdin=terminal, SLURM_PTY_PORT="4000", SLURM_TASK_PID="1"))[1] == ["rank 0 speaks", "alone 1"]
    finally:
        os.close(shell)
        os.close(terminal)
    assert looks(task, 1, SLURM_PTY_PORT="4000", SLURM_TASK_PID="1").startswith("1 2 1 2 ")


@pytest.mark.parametrize(("code", "requeued"), [(75, "requeue 7000\n"), (0, ""), (2, ""), (137, "")])
def test_the_batch_file_queues_itself_again_after_a_polite_stop_only(tmp_path, code, requeued):
    """With an srun and an scontrol that write down how they were called."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    for name in ("srun", "scontrol"):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.called\nexit {code if name == "srun" else 0}\n')
        tool.chmod(0o755)
        (tmp_path / f"{name}.called").touch()
    slurm = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7000"}
    ended = subprocess.run(["bash", BATCH, "--run-name", "two nodes"], env=slurm, cwd="/", capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (code, "")
    assert (tmp_path / "scontrol.called").read_text() == requeued
    called = (tmp_path / "srun.called").read_text()
    assert called == "--kill-on-bad-exit=0 --wait=0 python recipes/mtg_full_32b.py --resume-from-checkpoint auto --run-name two nodes\n"

"""Slurm's srun as the launcher: each of its tasks becomes a rank, for srun says in its own words what a launcher tells its ranks."""

import os
import re
import subprocess

from common import hardware
from common.refusal import Refusal

_joined = False


def join():
    """Make this process a rank where srun started it as one task of several: RANK, WORLD_SIZE and so on are set, as torchrun would.

    Nothing happens where a launcher did that already, in a batch script, in a step of one task (which starts itself on all GPUs of
    its node), and in the shell of `srun --pty`, whose other tasks are gone. MASTER_ADDR and MASTER_PORT stay where somebody set them.
    Raises `Refusal` for one task on each of several nodes with more than one GPU, after RANK is set: one task says it, not all.
    """
    global _joined
    step = os.environ
    tasks, nodes = int(step.get("SLURM_STEP_NUM_TASKS", "1")), int(step.get("SLURM_STEP_NUM_NODES", "1"))
    if "RANK" in step or tasks == 1 or _in_a_shell():
        return
    here = _tasks_per_node(step["SLURM_STEP_TASKS_PER_NODE"])[int(step["SLURM_NODEID"])]
    if len(step["SLURM_GTIDS"].split(",")) != here:  # a batch script that was queued from inside a step inherits all but this
        return
    _joined = True
    local_rank = 0 if _sees_one_gpu() else int(step["SLURM_LOCALID"])
    step.update(RANK=step["SLURM_PROCID"], WORLD_SIZE=str(tasks), LOCAL_RANK=str(local_rank), LOCAL_WORLD_SIZE=str(here))
    step.setdefault("MASTER_ADDR", _first_host() if nodes > 1 else "127.0.0.1")  # one node need not know its own name
    step.setdefault("MASTER_PORT", str(_port(int(step["SLURM_JOB_ID"]), int(step["SLURM_STEP_ID"]))))
    gpus = len(hardware.gpus())
    if tasks == nodes and gpus > 1:
        raise Refusal(
            f"srun started one task on each of {nodes} nodes, and this one has {gpus} GPUs, of which a task would use one; "
            f"ask for one task per GPU: #SBATCH --ntasks-per-node={gpus}, or srun --ntasks-per-node={gpus}"
        )


def is_task():
    """True in a rank that `join` made, False in one that another launcher started inside a task."""
    return _joined


def _in_a_shell():
    """True below the shell of `srun --pty bash`. Its variables go down to the steps that are started there, its terminal does not."""
    return "SLURM_PTY_PORT" in os.environ and os.isatty(0) and os.environ.get("SLURM_TASK_PID") != str(os.getpid())


def _tasks_per_node(counts):
    """Tasks of each node: [8, 8, 4] for "8(x2),4"."""
    found = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        found += [int(count)] * int(times or 1)
    return found


def _sees_one_gpu():
    """True where Slurm shows this task one GPU alone (--gpus-per-task, --gpu-bind), which then is number 0, or the node has but one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return len(hardware.gpus() if visible is None else visible.split(",")) == 1


def _first_host():
    """The node of rank 0. Where there is no scontrol, as in a container, the node that srun was called on, which a batch script shares."""
    try:
        command = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return os.environ["SLURM_LAUNCH_NODE_IPADDR"]


def _port(job, step):
    """The same in all tasks of a step, another for the next job, and below what systems give to connections (32768)."""
    return 10000 + (job * 31 + step) % 20000

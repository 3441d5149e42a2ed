"""Starting on all GPUs, and what ranks must agree on."""

import os
import socket
import subprocess
import sys

from common import hardware
from common.log import say


def is_distributed():
    """True in a rank that a launcher (deepspeed, torchrun, accelerate) started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def on_all_gpus(constants):
    """Where several GPUs are visible and no launcher ran, start this script under DeepSpeed on all and exit as it does.

    Returns at once in a rank, on one GPU or none, with `--tiny`, and when `main()` was called from Python.
    constants: the `Resolved` ones; their flags are passed on.
    """
    if is_distributed() or constants.argv is None or constants.tiny:
        return
    count = len(hardware.gpus())
    if count < 2:
        return
    with socket.socket() as probe:  # a free port: two runs on one machine must not meet on the default one
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", f"--num_gpus={count}", f"--master_port={port}"]
    say(f"{count} GPUs: starting one process on each (deepspeed --num_gpus={count} {sys.argv[0]})")
    sys.exit(subprocess.run([*launcher, sys.argv[0], *constants.argv]).returncode)


def rank_0_decides(function):
    """The value of `function()` on rank 0, in every rank."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return function()
    box = [function() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def wait_for_all():
    """Return when every rank is here."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()

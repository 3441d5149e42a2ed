"""Starting on all GPUs, and what ranks must agree on."""

import atexit
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile

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
    gpus = hardware.gpus()
    if len(gpus) < 2:
        return
    with socket.socket() as probe:  # a free port: two runs on one machine must not meet on the default one
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "RECIPES_ANNOUNCED": "1"}
    chosen = which_gpus(gpus, environment.pop("CUDA_VISIBLE_DEVICES", None))
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", chosen, f"--master_port={port}"]
    say(f"{len(gpus)} GPUs: starting one process on each (deepspeed {chosen} {sys.argv[0]})")
    sys.exit(subprocess.run([*launcher, sys.argv[0], *constants.argv], env=environment).returncode)


def which_gpus(gpus, visible):
    """DeepSpeed's flag for `gpus`. It ignores CUDA_VISIBLE_DEVICES beside --num_gpus and would take other people's: they are named."""
    return f"--num_gpus={len(gpus)}" if visible is None else "--include=localhost:" + ",".join(str(gpu.index) for gpu in gpus)


def prepare_process():
    """What must be set before torch and unsloth are imported: threads that sleep, and a compile cache of this process's own.

    Unsloth writes its compiled modules into the working directory, where runs and ranks would overwrite each other's.
    """
    hardware.prepare_torch()
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # a faster kernel for CPUs is not on PyPI
    if "UNSLOTH_COMPILE_LOCATION" not in os.environ:
        os.environ["UNSLOTH_COMPILE_LOCATION"] = tempfile.mkdtemp(prefix="unsloth_compiled_")
        atexit.register(shutil.rmtree, os.environ["UNSLOTH_COMPILE_LOCATION"], ignore_errors=True)


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

"""Running a recipe as a command, starting it on all GPUs, and what ranks must agree on."""

import atexit
import base64
import ctypes
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import timedelta

from common import guard, hardware, refusal, signals, slurm
from common.log import is_rank_0, say

STOPPED = 75  # exit code after a polite stop: sysexits.h's EX_TEMPFAIL, try again later
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_groups = {}  # the gloo group by the default group it was made beside


def command(main):
    """Run a recipe's `main()` as a command, in a rank as well, and end the process with the exit code the caller sees.

    0: done. 2: refused, in a sentence. 75: stopped politely by SIGTERM, SIGINT, SIGUSR1 or SIGHUP, or because its launcher vanished, and
    saved where there was something to save; with --resume-from-checkpoint auto it goes on. 128 + n: ended at once by signal n, which came
    a second time. 137: a rank was killed. 1: a bug, with its traceback.

    So it is for one process, for srun's tasks, and for `python recipes/x.py` on several GPUs whichever of its processes is signalled.
    Under `deepspeed` and `torchrun` the ranks do the same, and save as long as they need, but the code is the launcher's. A signal to a
    rank: deepspeed 75, torchrun 1 (with --max-restarts it starts the ranks anew). To torchrun, or to DeepSpeed's launch.py: 1; after 30
    seconds they return while the ranks still save. To the `deepspeed` runner, or SIGUSR1 to torchrun: they die of it at once, the ranks
    save and end alone. A launch.py that dies of SIGUSR1 or SIGKILL is a 0 to the runner above it.
    """
    code = 1
    try:
        refusal.guard(slurm.join)  # before anybody asks whether this is a rank
        signals.listen(guard.shield())  # before anything heavy is imported, for it forks
        refusal.guard(main)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except signals.Stopped as stopped:
        code = STOPPED
        if is_rank_0():
            print(f"stopped by {stopped}: no training was going on that needed saving; start again with the same command", file=sys.stderr)
        for child in multiprocessing.active_children():
            child.terminate()  # Python would wait for it
        sys.exit(code)
    finally:
        signals.report(code)


def is_distributed():
    """True in a rank that a launcher (deepspeed, torchrun, accelerate, srun) started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def starter():
    """What stood in the place of `python` where ranks were not started by `python`: for the command that starts them again."""
    if slurm.is_task():
        return f"srun --ntasks={os.environ['WORLD_SIZE']} python"
    if int(os.environ.get("CROSS_SIZE", "1")) > 1:  # DeepSpeed's word for the machines
        return "deepspeed --hostfile=hosts"
    return f"deepspeed --num_gpus={os.environ['WORLD_SIZE']}"


def ranks(constants):
    """In how many processes this start trains: a launcher's; one with --tiny, without GPUs, and for a call from Python; else one a GPU."""
    if is_distributed():
        return int(os.environ["WORLD_SIZE"])
    return 1 if constants.argv is None or constants.tiny else max(1, len(hardware.gpus()))


def on_all_gpus(constants):
    """Where several GPUs are visible and no launcher ran, start this script under DeepSpeed on all and exit as it does.

    Returns at once in a rank, on one GPU or none, with `--tiny`, and when `main()` was called from Python.
    constants: the `Resolved` ones; their flags are passed on.
    """
    if is_distributed() or ranks(constants) == 1:
        return
    gpus = hardware.gpus()
    chosen = which_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    say(f"{len(gpus)} GPUs: starting one process on each (deepspeed {chosen} {sys.argv[0]})")
    sys.exit(supervise([gpu.index for gpu in gpus], [sys.argv[0], *constants.argv]))


def which_gpus(gpus, visible):
    """DeepSpeed's flag for `gpus`. It ignores CUDA_VISIBLE_DEVICES beside --num_gpus and would take other people's: they are named."""
    return f"--num_gpus={len(gpus)}" if visible is None else "--include=localhost:" + ",".join(str(gpu.index) for gpu in gpus)


def supervise(gpus, script):
    """Run `script` (path and arguments) under DeepSpeed's launcher, a rank for each of `gpus` (indices); its exit code.

    The ranks become children of this process (see `guard.shield`): it asks them itself, which the launcher would do with 30 seconds'
    notice, and waits for them also where the launcher was killed. What `deepspeed` puts above its launcher is left out: it reports a
    killed launcher as success. Raises `signals.Stopped` where a signal came before all ranks had started.
    """
    with socket.socket() as probe:  # a free port: two runs on one machine must not meet on the default one
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = base64.urlsafe_b64encode(json.dumps({"localhost": gpus}).encode()).decode()
    command = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}", f"--master_port={port}"]
    environment = {**os.environ, "RECIPES_ANNOUNCED": "1"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)  # the launcher sets it to `gpus`
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ranks, asked = {}, False  # exit codes by pid, None while it runs
    signals.before_leaving(_kill_everything)
    with signals.politely():
        launcher = subprocess.Popen([*command, *script], env=environment, start_new_session=True)  # Ctrl-C comes to this process alone
        while True:
            name, ended = signals.requested(), launcher.poll() is not None
            if len(ranks) < len(gpus):
                ranks |= {pid: None for pid in _adopted(script[0], launcher.pid) if pid not in ranks}
            if (name or ended) and len(ranks) < len(gpus):
                break
            for pid in [pid for pid, code in ranks.items() if code is None]:
                if name and not asked:
                    os.kill(pid, signal.Signals[name])
                gone, status = os.waitpid(pid, os.WNOHANG)
                if gone:
                    ranks[pid] = os.waitstatus_to_exitcode(status)
            asked = asked or bool(name)
            if ended and None not in ranks.values():
                break
            time.sleep(0.2)
    if len(ranks) < len(gpus):  # not all had started: no step was taken
        _kill_everything()
        if signals.requested():
            raise signals.Stopped(signal.Signals[signals.requested()])
    codes = set(ranks.values())
    return _exit_code(codes.pop() if len(codes) == 1 and len(ranks) == len(gpus) else launcher.returncode)


def _adopted(script, launcher):
    """The pids of the ranks, which have left the launcher's tree; their guards come here too when it dies, and stay in its session."""
    import psutil

    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error, ProcessLookupError):
            if script in child.cmdline() and os.getsid(child.pid) != launcher:
                found.append(child.pid)
    return found


def _exit_code(code):
    """128 + n for an end by signal n, which is -n in Python and 256 - n from DeepSpeed's launcher."""
    return 128 - code if code < 0 else 384 - code if code > 192 else code


def _kill_everything():
    """SIGKILL to every process below this one, until none is left."""
    import psutil

    deadline = time.monotonic() + 5
    while (below := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in below:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(below, timeout=1)


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
    """The value of `function()` on rank 0, in every rank; its `Refusal` too. It may take up to a day, and its value must be picklable."""
    import torch.distributed as dist

    group = _group_on_cpu()
    if group is None:
        return function()
    box = [None]
    if dist.get_rank() == 0:
        try:
            box = [function()]
        except refusal.Refusal as refused:
            box = [refused]
    dist.broadcast_object_list(box, src=0, group=group)
    if isinstance(box[0], refusal.Refusal):
        raise box[0]
    return box[0]


def gather(value):
    """[`value` of rank 0, of rank 1, …] in every rank; values must be picklable."""
    import torch.distributed as dist

    group = _group_on_cpu()
    if group is None:
        return [value]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value, group=group)
    return found


def wait_for_all():
    """Return when every rank is here."""
    gather(None)


def agree(flag):
    """True in every rank where `flag` is true in any; all ranks must call it. No GPU waits for it. One process agrees with itself."""
    import torch

    group = _group_on_cpu()
    if group is None:
        return bool(flag)
    flags = torch.tensor([int(bool(flag))])
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX, group=group)
    return bool(flags.item())


def exit_together():
    """Return when every rank is here, or is dead: DeepSpeed kills the others 30 seconds after the first that ends with a code but 0.

    To be called last, in all ranks: it waits up to a day, for rank 0 may have much to upload.
    """
    import torch

    group = _group_on_cpu()
    if group is not None:
        with suppress(RuntimeError):  # a connection that closed: that rank's code is its own affair
            torch.distributed.barrier(group=group)


def _group_on_cpu():
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    world = dist.group.WORLD
    if world not in _groups:
        _groups[world] = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    return _groups[world]

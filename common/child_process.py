"""Work in a process of its own, so that what it imports and allocates is gone when it ends.

Unsloth must be imported before transformers. Tokenising and building the embedded models need transformers earlier,
so they run in a forked child of the still light parent.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import traceback

from common.refusal import Refusal


def run(function, *arguments):
    """`function(*arguments)` in a forked child; its return value (picklable), or its `Refusal`, comes back.

    Where torch is loaded already (main() called from a notebook) forking is unsafe and the call is made right here.
    Raises RuntimeError with the child's traceback when it failed in any other way, or was killed.
    """
    if "torch" in sys.modules or "fork" not in multiprocessing.get_all_start_methods():
        return function(*arguments)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_call, args=(sender, function, arguments))
    child.start()
    sender.close()
    try:
        kind, value = receiver.recv()
    except EOFError:
        kind, value = "error", "it ended without a word (killed, or out of memory)"
    child.join()
    if kind == "refusal":
        raise Refusal(value)
    if kind == "error":
        raise RuntimeError(f"{function.__name__} failed in its own process (exit code {child.exitcode}):\n{value}")
    return value


OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_module(module, *arguments, without=(), **environment):
    """What `python -m module …` prints last, as JSON, in a fresh process that is no rank; its `Refusal` comes back.

    without: further environment variables that it does not get. Raises RuntimeError with the end of its stderr when it failed otherwise.
    """
    alone = {k: v for k, v in os.environ.items() if k not in (*OF_RANKS, *without)} | environment
    done = subprocess.run([sys.executable, "-m", module, *map(str, arguments)], env=alone, capture_output=True, text=True)
    if done.returncode == 2:
        raise Refusal(done.stderr.rsplit("error: ", 1)[-1].strip())
    if done.returncode:
        raise RuntimeError(f"{module} {arguments[0]} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _call(sender, function, arguments):
    try:
        sender.send(("value", function(*arguments)))
    except Refusal as refusal:
        sender.send(("refusal", str(refusal)))
    except BaseException:
        sender.send(("error", traceback.format_exc()))

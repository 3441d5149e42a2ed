"""Work on all cores, in processes that end when this one does, however it ends."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from common.refusal import Refusal


def results(function, tasks, processes):
    """`function(task)` of every task as it comes, in any order; with one process, or for one task, in this process.

    An exception of a task, a `Refusal` as it is, ends all others at once: what they do must be whole or not at all.
    Processes are spawned, not forked: libraries that were used here may hold threads.
    """
    tasks = list(tasks)
    if min(processes, len(tasks)) < 2:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(tasks)), context, _begin)
    before = set(multiprocessing.active_children())
    whole = False
    try:
        waiting = {pool.submit(function, task) for task in tasks}
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                yield future.result()
        whole = True
    except BrokenProcessPool:
        raise Refusal("a process ended without a word, most likely because memory ran out; start again with fewer cores (taskset -c 0-3 …) "
                      "or more memory: what is done stays") from None  # fmt: skip
    finally:
        if not whole:
            for child in set(multiprocessing.active_children()) - before:
                child.kill()
        pool.shutdown(cancel_futures=True)


def _begin():
    """In each process: Ctrl-C is for the parent, and with the parent ends this one (a pool's processes would wait for ever)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()

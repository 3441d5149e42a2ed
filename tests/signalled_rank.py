"""Plays a rank, or the parent of ranks, for tests that send signals: no torch; the ranks agree by files in OUT instead of a network.

python signalled_rank.py OUT [--ranks 2] runs under `launch.supervise`; with a launcher before it, it is a rank.
"""

import argparse
import ctypes
import multiprocessing
import os
import sys
import time
from pathlib import Path

from common import launch, signals

signals.REPEAT, signals.DEADLINE = 1.0, 3.0  # seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--local_rank")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--save", type=float, default=1.0, help="seconds that saving takes")
    parser.add_argument("--does", choices=["train", "prepare", "crash", "hang", "save"], default="train")
    args = parser.parse_args()
    if "RANK" not in os.environ and args.ranks > 1:
        sys.exit(launch.supervise(list(range(args.ranks)), sys.argv))
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    def write(word, text=""):
        with (args.out / f"{word}-{rank}").open("x") as file:  # "x": nothing may happen twice
            file.write(str(text))

    def everyone(word):
        return len(list(args.out.glob(f"{word}-*"))) == ranks

    def begin():
        write("pid", os.getpid())
        write("tty", sys.stdout.isatty())
        while not everyone("pid"):
            time.sleep(0.02)
        write("started")

    if args.does == "prepare":
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))  # no daemon: Python would wait for it
        worker.start()
        begin()
        worker.join()
    with signals.politely():
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)  # as a DataLoader has them
        worker.start()
        begin()
        if args.does == "save":  # one that was due, longer than DEADLINE
            with signals.unhurried():
                time.sleep(5)
        while not (signals.requested() or list(args.out.glob("asked-*"))):  # a micro-step
            time.sleep(0.02)
            if args.does == "crash" and rank == 1:
                raise RuntimeError("rank 1 breaks")
        if args.does == "hang":  # in a call that no handler interrupts, as in a collective whose other end is dead
            mutex = ctypes.create_string_buffer(64)
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
            ctypes.CDLL(None).pthread_mutex_lock(mutex)
        signals.agreed()
        write("asked", signals.requested())
        time.sleep(args.save)
        write("worker", worker.is_alive())
        write("saved")
        while not everyone("saved"):
            time.sleep(0.02)
    sys.exit(75)


if __name__ == "__main__":
    launch.command(main)

"""Requests to stop this process: SIGTERM, SIGINT, SIGUSR1, and SIGHUP of a terminal that is closed.

`listen()` takes these signals. While training, inside `politely()`, the first one only sets what `requested()` returns;
anywhere else it raises `Stopped`, for there is nothing to save. A second one ends the process at once with 128 + its number.
A rank is asked by its guard as well (see there); a guard or a launcher that vanishes asks it to stop, too.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress

POLITE = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
FROM_GUARD = signal.SIGURG  # wakes the main thread; otherwise unused, and ignored where nobody listens
REPEAT = 5.0  # seconds; what comes sooner after the first is the same request: a group, a terminal and a launcher all pass it on
DEADLINE = 60.0  # seconds, at least, that a rank without a guard is given to agree with the others: they may be dead

_name, _first = None, None  # the request, and when it came
_politely = _unhurried = 0
_agreed = False
_asked_at, _longest = None, 0.0  # when `requested` was last called; the longest time between two calls, in seconds
_before_leaving = None
_guard, _from_guard = None, None  # the socket to it; the number of the signal that it passes on
_terminals = []  # of standard output and errors those that were terminals when `listen` was called
_held = threading.local()  # the signals that a thread held back before it forked


class Stopped(BaseException):
    """A request to stop outside of `politely()`. number: the signal's; `str()` is its name."""

    def __init__(self, number):
        self.number = number
        super().__init__(signal.Signals(number).name)


def listen(guard=None):
    """Take SIGTERM, SIGINT and SIGUSR1 from now on, also where they were ignored, and SIGHUP unless it was (nohup). Only the main thread
    may call it.

    guard: the socket to the process that shields this one (`guard.shield()`), None where there is none.
    """
    global _guard
    _guard = guard
    for number in POLITE:
        signal.signal(number, _take)
    _terminals[:] = [stream for stream in (1, 2) if os.isatty(stream)]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _hang_up)
    signal.signal(FROM_GUARD, lambda number, frame: _take(_from_guard, frame, direct=False))
    wake, woken = socket.socketpair()
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_leave_where_stuck, args=(wake,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, POLITE | {signal.SIGQUIT})  # what starts a process may have held them back
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget)
    if guard is not None:
        threading.Thread(target=_hear, args=(guard,), daemon=True).start()


def requested():
    """The name of the signal that asks this process to stop, else None. SIGHUP: the terminal, the launcher or the guard is gone."""
    global _asked_at, _longest
    now = time.monotonic()
    _longest = max(_longest, now - (_asked_at or now))
    _asked_at = now
    return _name


@contextmanager
def politely():
    """Inside, a first signal interrupts nothing: whoever trains looks at `requested()`. One that came before is kept."""
    global _politely
    _politely += 1
    try:
        yield
    finally:
        _politely -= 1


@contextmanager
def unhurried():
    """Around what takes long without a look at `requested()`, like a save: a rank without its guard is not taken for hung there."""
    global _unhurried, _asked_at
    _unhurried += 1
    try:
        yield
    finally:
        _unhurried -= 1
        _asked_at = time.monotonic()


def agreed():
    """To be called when all ranks know of the request: from here on saving may take as long as it needs."""
    global _agreed
    _agreed = True
    _tell_guard(b"agreed")


def report(code):
    """Tell the guard, where there is one, with which exit code this process ends."""
    _tell_guard(str(code & 0xFF).encode())


def before_leaving(function):
    """Call `function()` when a second signal ends this process: for what it started and would leave behind."""
    global _before_leaving
    _before_leaving = function


def _take(number, frame, direct=True):
    global _name, _first
    now = time.monotonic()
    if _name is None:
        _name, _first = signal.Signals(number).name, now
        if not _politely and not _agreed:  # what another rank was asked is being done
            raise Stopped(number)
    elif now - _first > REPEAT and direct:  # the guard counts for itself
        _leave(number)


def _hang_up(number, frame):
    """The terminal is closed: what is written to it from here on, a progress bar too, would be an error in the middle of a save."""
    for stream in _terminals:  # which are none any more
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    _take(number, frame)


def _leave(number):
    _say(f"{signal.Signals(number).name} again: ended at once; what is committed is whole, --resume-from-checkpoint auto goes on from it")
    report(128 + number)
    if _before_leaving is not None:
        _before_leaving()
    with suppress(Exception):  # a loader's workers, which Python ends only where it ends by itself
        for child in multiprocessing.active_children():
            child.kill()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # the signal may have come in the middle of a print
            stream.flush()
    os._exit(128 + number)


def _leave_where_stuck(wake):
    """A thread: a second signal ends the process also when the main thread is in a call that runs no handlers, on a GPU or a network."""
    first = None
    while True:
        number = wake.recv(1)[0]
        now = time.monotonic()
        if number in POLITE:
            if first is None and _politely:
                _say(f"{signal.Signals(number).name}: stopping after this micro-batch, then saving; again after {REPEAT:g} s ends unsaved")
            first = first or _first or now
            if now - first > REPEAT:
                time.sleep(1)  # the main thread, if it can
                _leave(number)


def _say(text):
    """On rank 0, or in the parent of ranks that it announces for; past Python's own streams, which may be in use."""
    if os.environ.get("RANK", "0") == "0" and "RECIPES_ANNOUNCED" not in os.environ:
        with suppress(OSError):
            os.write(2, f"\n{text}\n".encode())


def _hold():
    """Before a fork: a signal to the child before `_forget` would raise `Stopped` in a hook, where Python drops it, and be lost."""
    _held.before = signal.pthread_sigmask(signal.SIG_BLOCK, POLITE)


def _release():
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.before)


def _forget():
    """In a forked child: not killed by what a terminal or Slurm send to all processes, but by its parent; the link is not its own."""
    global _guard
    if _guard is not None:
        _guard.close()
        _guard = None
    if signal.getsignal(signal.SIGTERM) is _take:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what multiprocessing ends its children with
    _release()


def _hear(guard):
    """A thread of the rank: takes what the guard passes on; where launcher or guard are gone, nobody else would end a rank that hangs."""
    number = None
    while number != signal.SIGHUP:
        try:
            number = int(guard.recv(16) or signal.SIGHUP)
        except OSError:
            number = signal.SIGHUP
        _interrupt(number)
    alone = time.monotonic()
    while not _agreed:
        time.sleep(0.2)
        waited = time.monotonic() - max(alone, _asked_at or 0)
        if not _unhurried and waited > max(DEADLINE, 5 * _longest):
            rank = os.environ["RANK"]
            print(f"error: rank {rank} lost its launcher and no longer moves; it ends, unsaved", file=sys.stderr, flush=True)
            os.killpg(os.getpgrp(), signal.SIGKILL)


def _interrupt(number):
    global _from_guard
    _from_guard = number
    signal.pthread_kill(threading.main_thread().ident, FROM_GUARD)  # wakes the main thread from a system call too


def _tell_guard(word):
    if _guard is not None:
        with suppress(OSError):  # it is gone
            _guard.send(word)

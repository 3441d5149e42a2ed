"""The guard of a rank: what its launcher knows and kills, while the work goes on in a process out of the launcher's reach.

Launchers give ranks 30 seconds to end, and then kill them with everything below them in the process tree (DeepSpeed) or in
their process group (torchrun). A save can take longer. So `shield()` splits a rank in two: the process that was started stays
behind as a guard, light, which passes on requests to stop and the exit code. Each notices at once when the other is gone, so
that neither is left behind; and when a launcher is gone, the guard asks its rank to stop.
"""

import itertools
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress

from common import signals


def shield():
    """Return in a process out of reach of the launcher that started this rank, with the socket to the guard for `signals.listen`.

    None, and nothing happens, in a process that no launcher started, where Slurm's srun did, and in one where another program did:
    a launcher is a Python process above this one that has this script, or module, among its arguments.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    launchers = _launchers()
    if _is_orphan(launchers):
        raise signals.Stopped(signal.SIGHUP)
    if not launchers:
        return None
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.POLITE | {signal.SIGQUIT})  # before there are two, so that none is lost
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    group = os.fork()
    if group == 0:
        os.setsid()  # out of the launcher's process group ...
        if os.fork():
            os._exit(0)  # ... and out of its tree: an orphan belongs to init
        here.close()
        return there
    os.waitpid(group, 0)
    there.close()
    code = 1
    try:
        code = _stand_guard(here, group, launchers)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _stand_guard(link, group, launchers):
    """Pass on one request; return the rank's exit code when it has ended. A second request from one sender kills the rank.

    group: the rank's process group. Launchers signal late, again, and one rank after another, which is not impatience of
    somebody who waits: each sender is counted apart.
    """
    senders, settled, code = {}, False, None
    link.setblocking(False)
    while True:
        got = signal.sigtimedwait(signals.POLITE | {signal.SIGQUIT}, 0.2)
        now = time.monotonic()
        while word := _receive(link):
            settled = True
            code = code if word == b"agreed" else int(word)
        if word == b"":
            if code is None:
                print(f"error: rank {os.environ['RANK']} was killed, or crashed without a word; exit code 137", file=sys.stderr)
                _kill_group(group)  # what it had started
            return 137 if code is None else code
        if got is None:
            if not senders and not all(_is_alive(process) for process in launchers):
                senders["gone"] = now
                _pass_on(link, signal.SIGHUP)
            continue
        sender = got.si_pid if got.si_pid in {process.pid for process in launchers} else "somebody"
        again = now - senders.get(sender, now) > signals.REPEAT
        too_late = sender != "somebody" and not senders and not settled and _a_rank_is_dead()  # no agreement is possible any more
        if got.si_signo == signal.SIGQUIT or again or too_late:
            _kill_group(group)
            return 128 + got.si_signo
        if not senders:
            _pass_on(link, got.si_signo)
        senders.setdefault(sender, now)


def _receive(link):
    """The rank's next word; None when there is none now, b"" when it has ended."""
    while True:
        try:
            return link.recv(16)
        except BlockingIOError:
            return None
        except ConnectionResetError:  # it ended without reading a request; its last word follows
            continue


def _pass_on(link, number):
    with suppress(OSError):
        link.send(str(int(number)).encode())


def _kill_group(group):
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _launchers():
    """The launchers above this process, the nearest first."""
    import psutil

    def above():
        process = psutil.Process()
        with suppress(psutil.Error):
            while process := process.parent():
                yield process

    def launches(process):
        argv = _argv(process)
        return _runs_this(argv[1:]) and "python" in os.path.basename(argv[0])

    return list(itertools.takewhile(launches, above()))


def _is_orphan(launchers):
    """True where a launcher was killed before this process got here: torchrun, DeepSpeed's launch.py, or what started that."""
    if not launchers:
        return os.getppid() == 1 and ("TORCHELASTIC_RUN_ID" in os.environ or "CROSS_RANK" in os.environ)
    import psutil

    with suppress(psutil.Error):
        return "deepspeed.launcher.launch" in _argv(launchers[-1]) and launchers[-1].ppid() == 1
    return True


def _runs_this(argv):
    module = getattr(sys.modules["__main__"].__spec__, "name", None)  # of `python -m`
    return sys.argv[0] in argv or module in argv


def _argv(process):
    import psutil

    with suppress(psutil.Error):
        return process.cmdline()
    return []


def _is_alive(process):
    import psutil

    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _a_rank_is_dead():
    """True when fewer ranks of this run are alive on this machine than were started: why the launcher ends the others."""
    import psutil

    meeting = ("MASTER_ADDR", "MASTER_PORT")
    alive = set()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            try:
                theirs = process.environ() if _runs_this(process.cmdline()) and _is_alive(process) else {}
            except psutil.AccessDenied:  # somebody else's
                continue
            if all(theirs.get(name) == os.environ.get(name) for name in meeting):
                alive.add(theirs.get("RANK"))
    return len(alive - {None}) < int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)

"""Starts of a recipe without its ten seconds of imports: one process has imported what the recipe imports, and each start is a fork of it.

    with WarmStart() as warm:
        process = warm.start(["recipes/x.py", "--tiny"], environment, output)   # poll, wait, kill, send_signal and pid as Popen has them

A fork runs the whole file as `__main__`, with its own arguments, environment, session and output. What is not as in a fresh
interpreter: the seed of Python's hashes is that of the one process, what `child_process` would fork runs in the process itself, and
the modules that it would start (`python -m common.merging`, `common.saved_logits`) are forks too, of a process that has imported plain
transformers and never Unsloth; `plainly` runs other scripts in such a fork. So the first start of anything is better a fresh one.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from object_store import free_port
from user_commands import ROOT, user_environment


class WarmStart:
    """The one process; it begins to import when it is made, and ends with this one."""

    def __init__(self):
        self._home = tempfile.TemporaryDirectory(prefix="warm_start_")
        place = Path(self._home.name)
        self._plain = place / "plain"
        environment = {**user_environment(place), "OMP_NUM_THREADS": "1", "UNSLOTH_COMPILE_LOCATION": str(place / "compiled")}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self._plain))
            listening.listen()
            command = [sys.executable, __file__, str(self._plain), str(listening.fileno())]
            pipes["pass_fds"] = [listening.fileno()]
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
        self._lock, self._count = threading.Lock(), 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.communicate()  # the end of its stdin ends it
        self._home.cleanup()

    def start(self, arguments, environment, output):
        """Run `arguments` (a script and its flags) in a fork; `output` is the file to append to."""
        with self._lock:
            self._count += 1
            ended = Path(self._home.name, f"ended-{self._count}")
            request = {"arguments": arguments, "environment": environment, "output": str(output), "ended": str(ended)}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return Started(int(self._process.stdout.readline()), ended)

    def ranks(self, count, arguments, environment, output):
        """Run `arguments` in `count` forks that are ranks, with what torchrun would tell them."""
        world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [self.start(arguments, environment | world | {"RANK": str(n), "LOCAL_RANK": str(n)}, output) for n in range(count)]

    def modules(self):
        """What has the place of the module `subprocess` in `child_process`: the modules that it starts are forks."""
        return SimpleNamespace(run=partial(run_plain, str(self._plain)))

    def plainly(self, arguments, home):
        """Run a script to its end in a fork that never imported Unsloth; (exit code, stdout and stderr)."""
        done = run_plain(str(self._plain), [sys.executable, *arguments], {**user_environment(home), "OMP_NUM_THREADS": "1"})
        return done.returncode, done.stdout + done.stderr

    def call(self, arguments, home, timeout=300, ranks=0):
        """Run `arguments` to their end, in one process or as so many ranks; (largest exit code, stdout and stderr together)."""
        descriptor, output = tempfile.mkstemp(dir=self._home.name)
        os.close(descriptor)
        environment = {**user_environment(home), "OMP_NUM_THREADS": "1"}
        processes = self.ranks(ranks, arguments, environment, output) if ranks else [self.start(arguments, environment, output)]
        try:
            codes = [process.wait(timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()
        return max(codes, key=abs), Path(output).read_text()


class Started:
    """A process that was started, and later its exit code, as subprocess.Popen says it."""

    def __init__(self, pid, ended):
        self.pid, self._ended, self.returncode = pid, ended, None

    def poll(self):
        if self.returncode is None and self._ended.exists():
            self.returncode = int(self._ended.read_text())
        return self.returncode

    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            with suppress(ProcessLookupError):  # its code is being written
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def serve():
    """Import; then, for each line of stdin, fork a process that runs what it asks for, and say its pid."""
    plain, descriptor = sys.argv[1:]
    with socket.socket(fileno=int(descriptor)) as listening:
        if os.fork() == 0:  # before anything is imported
            serve_modules(listening)
    from common import launch

    answers = os.dup(1)
    os.dup2(2, 1)  # imports print
    launch.prepare_process()
    import unsloth  # noqa: F401, I001 - in the recipe's order
    import torch  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401

    from common import batches, checkpoints, child_process, merging, model_card, models, report, tracking, watching  # noqa: F401

    child_process.subprocess = SimpleNamespace(run=partial(run_plain, plain))
    require_one_thread()
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.flush()
        keeper = os.fork()
        if keeper == 0:  # waits for the one that works, so that this loop need not
            if os.fork() == 0:
                keep(request, answers)
            os._exit(0)
        os.waitpid(keeper, 0)


def require_one_thread():
    threads = sorted(file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm"))
    threads = [name for name in threads if name != "jemalloc_bg_thd"]  # of pyarrow's allocator, which sees to forks
    assert len(threads) == 1, f"a fork would lack all but one of {threads}"


def serve_modules(listening):
    """For each connection, fork a process that runs the module or script it asks for, and answer its exit code; ends with the above."""
    parent, nothing = os.getppid(), os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0), os.dup2(nothing, 1)
    listening.settimeout(0.5)
    while os.getppid() == parent:
        with suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        if "torch" not in sys.modules:  # the first one
            from common import hardware

            hardware.prepare_torch()
            import peft  # noqa: F401
            import torch  # noqa: F401
            from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

            require_one_thread()
        if os.fork() == 0:
            pid = os.fork()
            if pid == 0:
                request = json.loads(connection.makefile().readline())
                os.chdir(request["directory"])
                module = None if (name := request["arguments"][0]).endswith(".py") else name
                become(request, module and partial(runpy.run_module, module, run_name="__main__", alter_sys=True))
            connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
            os._exit(0)
        connection.close()
    os._exit(0)


def run_plain(plain, command, env, **_):
    """What `subprocess.run([python, …], env=env, capture_output=True, text=True)` returns for a module ("-m", …) or a script, as a fork."""
    arguments = command[2:] if command[1] == "-m" else command[1:]
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as connection:
        out, err = Path(place, "out"), Path(place, "err")
        connection.connect(plain)
        request = {"arguments": arguments, "environment": env, "directory": os.getcwd(), "output": str(out), "errors": str(err)}
        connection.sendall((json.dumps(request) + "\n").encode())
        code = int(connection.makefile().readline())
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


def keep(request, answers):
    """Run the request in a child, say its pid, and write its exit code."""
    pid = os.fork()
    if pid == 0:
        os.close(answers)
        become(request)
    os.write(answers, f"{pid}\n".encode())
    os.close(answers)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    written = Path(request["ended"] + ".new")
    written.write_text(str(code))
    written.rename(request["ended"])
    os._exit(0)


def become(request, work=None):
    """Be the script, or what `work()` runs: its arguments, environment, session, output, and the end that a Python process has."""
    os.setsid()
    nothing, output = os.open(os.devnull, os.O_RDONLY), written(request["output"])
    for source, stream in ((nothing, 0), (output, 1), (written(request["errors"]) if "errors" in request else output, 2)):
        os.dup2(source, stream)
    ours = os.environ["UNSLOTH_COMPILE_LOCATION"]
    os.environ.clear()
    os.environ.update(request["environment"], UNSLOTH_COMPILE_LOCATION=ours)
    tempfile.tempdir = None
    script, sys.argv = request["arguments"][0], request["arguments"]
    code = 1
    try:
        if work:
            work()
        else:
            sys.path[0] = str((ROOT / script).parent)
            runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        import atexit

        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def written(path):
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


if __name__ == "__main__":
    serve()
    os._exit(0)  # an orderly end of all that was imported takes two seconds

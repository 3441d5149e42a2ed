"""Work in a forked child. The tests are programs of their own: in a process that has torch, nothing is forked."""

import subprocess
import sys
import textwrap


def run(program):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)


def test_the_value_comes_back_and_the_import_does_not():
    ended = run("""
        import os, sys
        from common import child_process
        def work(a, b):
            import wave
            return {"sum": a + b, "pid": os.getpid()}
        value = child_process.run(work, 2, 3)
        print(value["sum"], value["pid"] != os.getpid(), "wave" in sys.modules)
    """)
    assert ended.stdout == "5 True False\n", ended.stderr


def test_a_refusal_comes_back_as_one():
    ended = run("""
        from common import child_process, refusal
        def work():
            raise refusal.Refusal("data.jsonl line 3: no")
        refusal.guard(lambda: child_process.run(work))
    """)
    assert (ended.returncode, ended.stderr) == (2, "error: data.jsonl line 3: no\n")


def test_an_error_comes_back_with_its_traceback():
    ended = run("""
        from common import child_process
        def work():
            return {}["absent"]
        try:
            child_process.run(work)
        except RuntimeError as error:
            print(error)
    """)
    assert "work failed in its own process" in ended.stdout
    assert "KeyError: 'absent'" in ended.stdout


def test_what_cannot_be_sent_is_an_error_too():
    ended = run("""
        from common import child_process
        try:
            child_process.run(lambda: (lambda: 1))
        except RuntimeError as error:
            print(error)
    """)
    assert "failed in its own process" in ended.stdout
    assert "pickle" in ended.stdout


def test_a_killed_child_is_named_with_its_exit_code():
    ended = run("""
        import os, signal
        from common import child_process
        def work():
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            child_process.run(work)
        except RuntimeError as error:
            print(error)
    """)
    assert "work failed in its own process (exit code -9)" in ended.stdout
    assert "killed, or out of memory" in ended.stdout


def test_a_value_larger_than_a_pipe_holds():
    assert (
        run("""
        from common import child_process
        print(len(child_process.run(lambda: b"x" * 10_000_000)))
    """).stdout
        == "10000000\n"
    )


def test_where_torch_is_loaded_it_runs_right_here():
    ended = run("""
        import os, sys, types
        sys.modules["torch"] = types.ModuleType("torch")
        from common import child_process
        print(child_process.run(os.getpid) == os.getpid())
    """)
    assert ended.stdout == "True\n", ended.stderr

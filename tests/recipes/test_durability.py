"""A run that is ended at any moment and resumed ends in the same bits as one that never was: the recipe itself, real signals.

The run that is killed is begun by the user's own command, and so is the one it is compared with; the one that is stopped, and what goes
on from a checkpoint, are forks (see warm_start.py); the one that is stopped is part of `make soak`. Moments are chosen by seed and proven
afterwards, see interrupted_runs.py. Many more of them, and two ranks under ZeRO-2: `make soak`, whose table is bench/results/kills.md.
"""

import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from compared_runs import differences
from interrupted_runs import Chain, flags, uninterrupted
from slow_store import Store
from user_commands import ROOT

from common import manifest

STEPS = 20  # an epoch has 12


def whole(home, warm):
    """The run that nothing stops."""
    return uninterrupted(home, flags(STEPS))


def killed(home, warm):
    """SIGKILL in a step, in a save and in an upload; then the disk is lost as well; in the end it is resumed though it is over."""
    with Store() as store:
        chain, committed = Chain(home, "killed", flags(STEPS), store, warm=warm), []
        draw = random.Random(0)
        for moment in ("step", "save", "upload"):
            while moment not in chain.proven and len(chain.proven) < 6:  # a save is short: it may be over
                chain.resume()
                chain.kill_in(moment, draw)
                committed.append(store.committed("killed"))
        aside = chain.set_aside()
        chain.forget()
        said = []
        for _ in range(2):
            chain.resume()
            chain.finish()
            said.append(chain.said())
        return chain, [*committed, store.committed("killed")], aside, said


def stopped(home, warm):
    """SIGTERM in the middle of an accumulation, SIGUSR1 inside the last evaluation, which decides which checkpoint is the best."""
    chain, found = Chain(home, "stopped", flags(STEPS), warm=warm, fresh=0), []
    for moment, number in (("accumulation", signal.SIGTERM), ("last_evaluation", signal.SIGUSR1)):
        chain.resume()
        found.append((*chain.stop_in(moment, number, random.Random(0)), chain.said()))
    chain.resume()
    chain.finish()
    return chain, found


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory, warm):
    """What each of the functions above will return that a chosen test asks for; two run at a time, one core each."""
    home, chosen = tmp_path_factory.mktemp("durability"), [item.name for item in request.session.items]
    wanted = [function for function in (killed, whole, stopped) if any(function.__name__ in name for name in chosen) or function is whole]
    with ThreadPoolExecutor(2) as pool:
        yield {function.__name__: pool.submit(function, home, warm) for function in wanted}


def test_killed_in_a_step_a_save_and_an_upload_it_ends_in_the_same_bits(runs):
    chain, committed, aside, said = runs["killed"].result()
    assert {"step", "save", "upload"} <= set(chain.proven)
    assert differences(runs["whole"].result().run, chain.run) == []
    assert len(aside) == chain.proven.count("save"), "what a kill in a save left is kept under another name"
    assert [wrong for found in committed for _, wrong in found if wrong] == [], "what has a manifest in the store is whole there"
    assert [step for step, _ in committed[-1]] == [5, 10, 15, 20]
    assert "bringing gs://" in said[0], "the disk was lost: it went on from the store"
    assert "checkpoint-20 is the end of this run: nothing is left to train" in said[1]


@pytest.mark.soak  # every moment of a training of the same parts, and launchers: tests/common/test_stopping.py, test_signals.py
def test_stopped_by_signals_it_saves_the_last_step_and_ends_in_the_same_bits(runs):
    chain, found = runs["stopped"].result()
    for (code, checkpoint, said), name, evaluating in zip(found, ("SIGTERM", "SIGUSR1"), (False, True), strict=True):
        assert code == 75 and f"{name}: stopped after step {checkpoint['step']}" in said, said
        assert checkpoint["position"]["evaluation_due"] is evaluating
        assert "to go on: python recipes/llama32_qlora.py" in said and f"--resume-from-checkpoint {chain.run.path}/checkpoint-" in said
    assert found[-1][1]["step"] == STEPS
    assert differences(runs["whole"].result().run, chain.run, history=False) == [], "but for what came after the last save"


def test_what_is_saved_has_a_manifest_and_verifies(runs):
    run = runs["whole"].result().run
    assert [step for step, _ in run.whole_checkpoints()] == [step for step, _ in run.checkpoints()]
    assert all(manifest.verify(path) == [] for _, path in run.checkpoints())


@pytest.mark.soak
def test_fifteen_kills_in_each_moment_and_two_ranks():
    done = subprocess.run([sys.executable, "bench/kills.py"], cwd=ROOT, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr

"""Stopping and being killed at every forward pass of a small training, evaluations too: it ends as if nothing had happened."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from example_training import ROWS, STEPS, training
from user_commands import ROOT

from common import signals, stopping
from common.run_directory import RunDirectory


@pytest.fixture(scope="module", params=[2, pytest.param(1, marks=pytest.mark.soak)], ids=["every second pass", "every pass"])
def everywhere(request, tmp_path_factory):
    """[facts of the interruption at each place], the places, and what was printed."""
    home = tmp_path_factory.mktemp("everywhere")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("example_training.py")), str(home), str(request.param)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    found = [json.loads(line.removeprefix("RESULT ")) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert found and done.returncode == 0, done.stdout + done.stderr
    return found[:-1], range(1, found[-1]["passes"] + 1, request.param), done.stdout


def test_wherever_it_is_interrupted_it_ends_in_the_same_bits(everywhere):
    found, places, output = everywhere
    assert [facts["place"] for facts in found] == list(places) and places[-1] > ROWS / 2 + STEPS
    for facts in found:
        assert facts["again"] == 0 and all(facts["same"].values()), (facts, output)


def test_a_signal_ends_it_with_75_and_a_checkpoint_a_kill_with_what_was_there(everywhere):
    found, places, _ = everywhere
    for facts in found:
        assert facts["code"] == (-9 if facts["signal"] == "SIGKILL" else 75), facts
        if facts["signal"] == "SIGKILL":
            assert [name for name in facts["saved"] if int(re.sub(r"\D", "", name)) % 2] == []
        else:
            assert facts["passes"] <= places.stop - facts["place"] + 4, "no more is done again than a step and an evaluation"
            assert facts["saved"] or facts["place"] <= 2
    assert {facts["signal"] for facts in found} == {"SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGKILL"}


def test_an_evaluation_draws_no_random_numbers_from_training(tmp_path):
    trainer, _ = training(RunDirectory(tmp_path))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = stopping.random_state()
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    stopping.set_random_state(before)
    trainer.model.before_forward = lambda: (random.random(), np.random.rand(), torch.rand(1))
    assert trainer.evaluate()["eval_loss"] > 0
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_the_state_of_the_generators_is_put_back():
    before = stopping.random_state()
    drawn = [random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()]
    stopping.set_random_state(before)
    assert [random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()] == drawn


def test_what_a_stop_drops_is_the_unfinished_accumulation(tmp_path, monkeypatch):
    """The loss summed since the last log is that of whole steps."""
    run = RunDirectory(tmp_path)
    trainer, kept = training(run, logging_steps=100, eval_strategy="no", load_best_model_at_end=False, metric_for_best_model=None)
    sums = []

    def in_the_third_step():
        sums.append(trainer._tr_loss.item())
        if len(sums) == 5:  # of two passes a step
            monkeypatch.setattr(signals, "_name", "SIGTERM")

    trainer.model.before_forward = in_the_third_step
    with pytest.raises(stopping.Stop) as stop:
        trainer.train()
    assert trainer.state.global_step == 2 and len(sums) == 5 and not stop.value.evaluating
    assert trainer._tr_loss.item() > sums[-1] > 0, "half a step is in it"
    kept.between.drop_unfinished_step(stop.value)
    assert trainer._tr_loss.item() == sums[-1]
    position = kept.between.position()
    assert (position["epoch"], position["micro_batches"]) == (0, 2 * 2)

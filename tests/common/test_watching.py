"""What a run says about itself: its steps, what its numbers make pointless, a loss that rises or stays, tokens a second."""

import json
import os
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from common import hardware, log, watching
from common.gpu_load import GpuLoad
from common.run_directory import RunDirectory

ARGS = SimpleNamespace(
    get_warmup_steps=lambda steps: 3, learning_rate=2e-4, per_device_train_batch_size=2, gradient_accumulation_steps=4, world_size=1,
    logging_steps=5,
)  # fmt: skip


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """A `Watch` at the start of a run of 100 steps with 3 of warmup, without a GPU, and a clock that the test sets."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(watching.time, "time", lambda: clock.now)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = RunDirectory(tmp_path)
    run.logs.mkdir()
    log.close()
    watch, state = watching.Watch(run), TrainerState(max_steps=100)
    watch.on_train_begin(ARGS, state, TrainerControl())
    yield SimpleNamespace(watch=watch, state=state, clock=clock, run=run)
    watch.on_train_end(ARGS, state, TrainerControl())
    log.close()


def feed(watch, losses, start=0):
    control = TrainerControl()
    for number, loss in enumerate(losses, start=1):
        watch.state.global_step = start + 5 * number
        watch.watch.on_log(None, watch.state, control, {"loss": loss, "learning_rate": 1e-4, "grad_norm": 1.0})
    return control


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        ((20, 0.03, None, 10, 0.0), "WARMUP_RATIO above 0.05"),
        ((86, 100, None, 50, 0.0), "never ends in 86 steps"),
        ((86, 0.03, 200, 50, 0.0), "EVAL_STEPS = 200 is never reached in 86 steps; 21"),
        ((334, 0.03, 100, 500, 0.0), "SAVE_STEPS = 500 is never reached in 334 steps"),
        ((334, 0.03, 100, 300, 0.31), "31% of the tokens are padding"),
    ],
)
def test_what_the_numbers_make_pointless_is_said(numbers, word):
    (sentence,) = watching.pointless(*numbers)
    assert word in sentence


def test_sound_numbers_are_not_commented():
    assert watching.pointless(334, 0.03, 100, 300, 0.1) == []


def test_the_best_checkpoint_is_one_that_was_saved(tmp_path):
    """A better loss at a step that is not saved must not hide the best saved one."""
    args = TrainingArguments(
        output_dir=str(tmp_path), save_steps=48, eval_steps=24, eval_strategy="steps", load_best_model_at_end=True, report_to="none",
        metric_for_best_model="eval_loss", use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(torch.nn.Linear(2, 2), args, train_dataset=[1], eval_dataset=[1])
    watching.attach(trainer, RunDirectory(tmp_path), {})
    trainer.state.max_steps = 130
    for step, loss in ((24, 0.8), (48, 0.9), (72, 0.5), (96, 0.6), (120, 0.4), (130, 0.7)):
        trainer.state.global_step = step
        trainer._determine_best_metric({"eval_loss": loss}, None)
    assert (trainer.state.best_global_step, trainer.state.best_metric) == (96, 0.6)


def test_a_rising_loss_is_said_once(watch):
    feed(watch, [2.0] * 5 + [1.0] * 5 + [2.5] * 10)
    assert len(log.warnings) == 1 and "rising (1.000 ->" in log.warnings[0] and "lower LEARNING_RATE" in log.warnings[0]


def test_what_was_logged_before_a_resume_counts(watch):
    watch.state.log_history = [{"loss": 1.0, "step": step} for step in range(5, 55, 5)] + [{"eval_loss": 1.1, "step": 50}]
    watch.watch.on_train_begin(ARGS, watch.state, TrainerControl())
    feed(watch, [1.6] * 5, start=50)
    assert len(log.warnings) == 1 and "rising (1.000 -> 1.600 by step 75); lower LEARNING_RATE (now 0.0002)" in log.warnings[0]


def test_memory_near_its_edge_is_said_once_with_the_constants(watch, monkeypatch):
    monkeypatch.setattr(watching, "memory_taken", lambda: (77.0, 79.0))
    watch.watch.constants = {"PER_DEVICE_TRAIN_BATCH_SIZE": 2, "GRADIENT_ACCUMULATION_STEPS": 4}
    watch.watch.on_train_begin(ARGS, watch.state, TrainerControl())
    feed(watch, [3.0, 2.9, 2.8])
    assert len(log.warnings) == 1 and "77.0 of the 79.0 GB" in log.warnings[0] and "BATCH_SIZE 2 -> 1" in log.warnings[0]


def test_memory_of_a_cpu_is_what_the_process_has_of_what_it_could_have(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(watching.hardware, "free_memory_gib", lambda: 1.0)
    taken, total = watching.memory_taken()
    assert taken == pytest.approx(watching.memory_gb(), abs=0.1) and total == pytest.approx(taken + 1.0737, abs=0.01)
    monkeypatch.setattr(watching.hardware, "memory_gib", lambda: 0.5)  # a container's limit
    assert watching.memory_taken()[1] == pytest.approx(0.5369, abs=0.001)


@pytest.fixture
def gpus(watch, tmp_path, monkeypatch):
    """Two GPUs that compute as `busy` says, asked every hundredth of a second."""

    def busy(*shares):
        (tmp_path / "new").write_text("".join(f"{n}, GPU-{n}, {share}\n" for n, share in enumerate(shares)))
        os.replace(tmp_path / "new", tmp_path / "answer")
        until(lambda: load.shares and load.shares[-1] == pytest.approx(sum(shares) / len(shares) / 100))
        load.since_last()  # those before
        until(lambda: load.shares)

    load, program = watch.watch.gpus, tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncase "$*" in *utilization.gpu*) cat "{tmp_path}/answer";; *) exit 9;; esac\n')
    program.chmod(0o755)
    (tmp_path / "answer").write_text("0, GPU-0, 0\n")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in (("max_memory_allocated", 10e9), ("max_memory_reserved", 12e9)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(total_memory=80e9))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    load.seconds = 0.01
    watch.watch.on_train_begin(ARGS, watch.state, TrainerControl())
    yield busy
    load.end()
    until(lambda: not samplers())


def until(done, seconds=10):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def samplers():
    return [thread for thread in threading.enumerate() if thread.name == "gpu_load"]


def test_how_busy_the_gpus_are_stands_in_the_line_the_metrics_and_the_trackers(watch, gpus, capsys):
    gpus(40, 46)
    logs = {"loss": 1.0, "learning_rate": 1e-4, "grad_norm": 1.0}
    watch.state.global_step = 5
    watch.watch.on_log(ARGS, watch.state, TrainerControl(), logs)
    assert "GPU busy 43%" in capsys.readouterr().out
    assert json.loads(watch.run.metrics.read_text())["gpu_utilisation"] == logs["gpu_utilisation"] == 0.43
    watch.watch.on_train_begin(ARGS, watch.state, TrainerControl())  # once more, after memory ran out for example
    until(lambda: len(samplers()) == 1)
    watch.watch.on_train_end(ARGS, watch.state, TrainerControl())
    until(lambda: not samplers())


def test_gpus_that_wait_are_said(watch, gpus, monkeypatch):
    monkeypatch.setattr(watch.watch.gpus, "since_last", lambda: 0.31)
    feed(watch, [3.0 - 0.1 * n for n in range(9)])
    assert len(log.warnings) == 1 and "the GPUs computed 31% of the time" in log.warnings[0]
    assert "PER_DEVICE_TRAIN_BATCH_SIZE from 2 to 4 with GRADIENT_ACCUMULATION_STEPS from 4 to 2" in log.warnings[0]


def test_without_a_gpu_nothing_is_asked(watch, capsys):
    feed(watch, [1.0])
    assert samplers() == [] and "GPU busy" not in capsys.readouterr().out


def test_where_nvidia_smi_does_not_tell_asking_ends(monkeypatch):
    monkeypatch.setattr(hardware, "utilisation", lambda: None)
    load = GpuLoad()
    load.start()
    for thread in samplers():
        thread.join(5)
    assert samplers() == [] and load.since_last() is None


def test_a_flat_loss_is_said(watch):
    feed(watch, [2.0, 2.01] * 9)
    assert log.warnings and "flat" in log.warnings[0] and "raise LEARNING_RATE" in log.warnings[0]


def test_a_falling_loss_is_not_commented(watch):
    feed(watch, [3.0 - 0.1 * n for n in range(18)])
    assert log.warnings == []


def test_nan_stops_the_training_and_is_written_as_null(watch):
    control = feed(watch, [2.0, float("nan")])
    assert control.should_training_stop
    assert json.loads(watch.run.metrics.read_text().splitlines()[1])["loss"] is None


def test_tokens_a_second_leave_out_the_evaluation(watch):
    control = TrainerControl()
    watch.clock.now, watch.state.global_step, watch.state.num_input_tokens_seen = 1010.0, 5, 10_000
    watch.watch.on_log(None, watch.state, control, {"loss": 1.0, "learning_rate": 1e-4, "grad_norm": 1.0})
    watch.clock.now = 1030.0
    watch.watch.on_log(None, watch.state, control, {"eval_loss": 1.5, "eval_runtime": 20.0})
    watch.clock.now, watch.state.global_step, watch.state.num_input_tokens_seen = 1040.0, 10, 20_000
    watch.watch.on_log(None, watch.state, control, {"loss": 0.9, "learning_rate": 1e-4, "grad_norm": 1.0})
    lines = [json.loads(line) for line in watch.run.metrics.read_text().splitlines()]
    assert [line.get("tokens_per_second") for line in lines] == [1000.0, None, 1000.0]
    assert lines[1]["eval_loss"] == 1.5


def left(watch, *logged):
    """What is said to be left after each (step, seconds since the start)."""
    found = []
    for step, seconds in logged:
        watch.clock.now, watch.state.global_step = 1000.0 + seconds, step
        found.append(watch.watch._left(watch.clock.now, watch.state))
    return found


def test_the_time_left_is_of_the_steps_after_the_slow_first_ones(watch):
    """10 steps with a minute of compilation, then one a second, an evaluation of 20 s at step 50."""
    assert left(watch, (10, 70), (20, 80), (30, 90), (60, 140), (100, 180)) == ["10 min", "80 s", "70 s", "56 s", "0 s"]


def test_the_time_left_after_a_resume_is_of_the_steps_since(watch):
    watch.state.global_step = 80
    watch.watch.on_train_begin(ARGS, watch.state, TrainerControl())
    assert left(watch, (85, 20), (90, 30), (95, 40)) == ["60 s", "20 s", "10 s"]


def test_the_curve_stands_before_the_figures_on_the_terminal_and_in_the_log(tmp_path, capsys):
    trainer = Trainer(torch.nn.Linear(2, 2), TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True))
    trainer.state.log_history = [{"loss": 4.0 / step, "step": step} for step in range(1, 9)] + [{"eval_loss": 1.0, "step": 8}]
    trainer.state.global_step = 8
    log.close()
    log.write_to(tmp_path / "training.log")
    assert watching.figures(trainer) == {"steps": 8, "train_loss": 0.5, "eval_loss": 1.0, "best_checkpoint": None}
    printed = capsys.readouterr().out
    log.close()
    assert printed.startswith("nats per label token:   ⠒⠒ training   oo held out\n")
    assert [line[21:] for line in (tmp_path / "training.log").read_text().splitlines()] == printed.splitlines()


def test_with_packing_it_says_how_many_conversations_a_step_would_have(tmp_path, capsys):
    """64 packed rows of 2,048 tokens beside 64 conversations of 500."""
    from types import SimpleNamespace as Some

    args = Some(per_device_train_batch_size=2, gradient_accumulation_steps=4, world_size=8, num_train_epochs=3, max_steps=-1, packing=True,
                eval_steps=500, save_steps=500)  # fmt: skip
    run = RunDirectory(tmp_path)
    run.logs.mkdir()
    statistics = {"splits": {"train": {"rows": 1_000_000, "tokens": 500_000_000}}}
    steps = watching.announce(Some(args=args, train_dataset=range(250_000), eval_dataset=[1]), run, statistics, 100)
    said = capsys.readouterr().out
    assert steps == 11_721 and "11,721 steps of 2 x 4 x 8 rank(s) rows, about 127,975 tokens each; 3 epochs; packed" in said
    assert "a step has 4.0 times the tokens of 64 conversations, about 32,000; PACKING = False takes those, and 15,625 steps" in said

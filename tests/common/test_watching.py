"""What a run says about itself: its steps, what its numbers make pointless, a loss that rises or stays, tokens a second."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from common import log, watching
from common.run_directory import RunDirectory


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """A `Watch` at the start of a run of 100 steps with 3 of warmup, and a clock that the test sets."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(watching.time, "time", lambda: clock.now)
    run = RunDirectory(tmp_path)
    run.logs.mkdir()
    log.close()
    watch, state = watching.Watch(run), TrainerState(max_steps=100)
    watch.on_train_begin(SimpleNamespace(get_warmup_steps=lambda steps: 3), state, TrainerControl())
    yield SimpleNamespace(watch=watch, state=state, clock=clock, run=run)
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

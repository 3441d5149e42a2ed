"""When full fine-tuning looks whether its weights move: once a learning rate is felt, and only at a run's beginning."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from common import full_training, full_weights


@pytest.fixture
def training():
    """A model of two matrices, the callback, and a function that takes a step of a learning rate, moving the first of them or both."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False))
    trainer = SimpleNamespace(model=model, accelerator=SimpleNamespace(unwrap_model=lambda model: model), _get_learning_rate=lambda: 0.0)
    moving, args = full_training.Beginning(trainer, None), SimpleNamespace(learning_rate=2e-5, deepspeed=None)
    state = TrainerState(max_steps=600)

    def step(rate, both=True):
        trainer._get_learning_rate = lambda: rate
        moving.on_step_begin(args, state, TrainerControl())
        for matrix in list(model.parameters())[: 1 + both]:
            matrix.data += rate
        state.global_step += 1
        moving.on_step_end(args, state, TrainerControl())

    return SimpleNamespace(begin=lambda: moving.on_train_begin(args, state, TrainerControl()), step=step, state=state, args=args)


def test_a_tensor_that_no_gradient_reaches_is_named_once_the_rate_is_felt(training):
    training.begin()
    for rate in (0.0, 2e-7, 4e-7):  # a warmup
        training.step(rate, both=False)
    with pytest.raises(full_weights.Unmoved, match="1 of 2 tensors have not moved after 4 steps, 1.weight the first"):
        training.step(1e-6, both=False)


def test_what_moves_is_said_once(training, capsys):
    training.begin()
    for rate in (0.0, 2e-5, 2e-5):
        training.step(rate)
    assert capsys.readouterr().out.count("all 2 tensors have moved after 2 steps") == 1


def test_a_small_learning_rate_is_looked_at_at_half_its_peak(training):
    training.args.learning_rate = 1e-8
    training.begin()
    with pytest.raises(full_weights.Unmoved):
        training.step(5e-9, both=False)


def test_a_resume_at_the_end_of_a_cosine_need_not_move_any_more(training):
    training.state.global_step = 595
    training.begin()
    training.step(2e-6, both=False)

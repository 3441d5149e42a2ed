"""A micro-batch that shrinks: wherever memory runs out the training ends as one without; what a smaller one cannot help stops."""

import pytest
import torch
from example_training import STEPS, training

from common import log, memory, micro_batch
from common.refusal import Refusal
from common.run_directory import RunDirectory, read_json

pytestmark = pytest.mark.usefixtures("said")
ROWS = {"PER_DEVICE_TRAIN_BATCH_SIZE": 4, "GRADIENT_ACCUMULATION_STEPS": 1, "MAX_SEQ_LENGTH": 2048}


@pytest.fixture
def trained(tmp_path):
    """Trains steps of four rows; `fails(passes, rows, training)` says whether memory runs out in a forward pass. (run, its Checkpoints)"""

    def train(name, fails=lambda *_: False, auto_batch=True, rows=4, **arguments):
        run = RunDirectory(tmp_path / name)
        run.begin(ROWS, command="python example.py")
        trainer, kept = training(run, per_device_train_batch_size=rows, gradient_accumulation_steps=4 // rows, **arguments)
        kept.constants = {**ROWS, "PER_DEVICE_TRAIN_BATCH_SIZE": rows, "GRADIENT_ACCUMULATION_STEPS": 4 // rows}
        model, passes = trainer.model, 0
        model.layers[1].p = 0.0  # its draws would depend on how rows are divided

        def before(module, inputs):
            nonlocal passes
            passes += model.training
            if fails(passes, len(inputs[0]), model.training):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        model.layers[0].register_forward_pre_hook(before)
        micro_batch.train(kept, None, STEPS, auto_batch)
        return run, kept

    return train


def weights(kept):
    return torch.cat([parameter.detach().flatten() for parameter in kept.trainer.model.parameters()])


@pytest.mark.parametrize("place", [1, 2, 5, 7])
def test_wherever_memory_runs_out_the_training_ends_as_without(trained, place):
    _, whole = trained("whole")
    before = list(log.warnings)
    run, kept = trained("shrunk", lambda passes, rows, _: passes >= place and rows > 2)
    assert torch.allclose(weights(kept), weights(whole), atol=1e-6)
    of = {k.trainer: [e["loss"] for e in k.trainer.state.log_history if "loss" in e] for k in (whole, kept)}
    assert of[kept.trainer] == pytest.approx(of[whole.trainer], rel=1e-4) and len(of[kept.trainer]) == 2
    assert read_json(run.constants)["PER_DEVICE_TRAIN_BATCH_SIZE"] == 2 == kept.constants["GRADIENT_ACCUMULATION_STEPS"]
    assert read_json(run.path / f"checkpoint-{STEPS}" / "constants.json")["PER_DEVICE_TRAIN_BATCH_SIZE"] == 2
    [said] = [warning for warning in log.warnings if warning not in before]
    assert said.startswith(f"memory ran out in step {place} with PER_DEVICE_TRAIN_BATCH_SIZE = 4; from here on ")
    assert "PER_DEVICE_TRAIN_BATCH_SIZE = 2 and GRADIENT_ACCUMULATION_STEPS = 2, the same rows a step" in said


def test_it_shrinks_until_it_fits(trained):
    _, kept = trained("twice", lambda passes, rows, training: training and rows > 1)
    assert kept.constants["PER_DEVICE_TRAIN_BATCH_SIZE"] == 1 and kept.constants["GRADIENT_ACCUMULATION_STEPS"] == 4
    assert kept.trainer.state.global_step == STEPS


def test_what_a_smaller_batch_cannot_help_stops_with_advice(trained, monkeypatch):
    too_much = lambda passes, rows, training: True  # noqa: E731
    with pytest.raises(Refusal, match="out of memory. Change in this order"):
        trained("one row", too_much, rows=1)
    with pytest.raises(Refusal, match="PER_DEVICE_TRAIN_BATCH_SIZE 4 -> 2 and GRADIENT_ACCUMULATION_STEPS 1 -> 2"):
        trained("off", too_much, auto_batch=False)
    with pytest.raises(Refusal, match="out of memory"):
        trained("evaluation", lambda passes, rows, training: not training)

    def step(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(Refusal, match="out of memory"):
        trained("optimiser")


def test_another_error_is_no_lack_of_memory(trained):
    def fails(*_):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        trained("bug", fails)


def test_smaller_batches_divide_the_rows_of_a_step():
    assert memory.smaller_batch({"PER_DEVICE_TRAIN_BATCH_SIZE": 6, "GRADIENT_ACCUMULATION_STEPS": 2}) == {
        "PER_DEVICE_TRAIN_BATCH_SIZE": 3, "GRADIENT_ACCUMULATION_STEPS": 4}  # fmt: skip
    assert memory.smaller_batch({"PER_DEVICE_TRAIN_BATCH_SIZE": 1, "GRADIENT_ACCUMULATION_STEPS": 8, "LORA_R": 16}) is None

"""A micro-batch that shrinks where memory runs out: as many rows a step, in smaller pieces."""

import gc

from common import memory, models
from common.log import say, warn
from common.refusal import Refusal
from common.run_directory import step_of, write_json


def train(kept, checkpoint, steps, auto_batch=True):
    """`kept.train(checkpoint, steps)` of `checkpoints.Checkpoints`; where a step runs out of memory, on with the next smaller micro-batch.

    The last whole step is saved and loaded again, and gradient accumulation grows, so that a step keeps its rows and their order. Raises
    the `Refusal` of `memory.advice` where this cannot help: with auto_batch False, with one row, among several ranks, which cannot agree
    when one of them failed, and for memory that ran out in the optimiser or in an evaluation, which a smaller micro-batch does not spare.
    """
    while True:
        try:
            with memory.advice(**kept.constants):
                return kept.train(checkpoint, steps)
        except Refusal as refused:
            smaller = memory.smaller_batch(kept.constants) if auto_batch and memory.ran_out(refused.__cause__) else None
            if not smaller or not kept.can_repeat_step():
                raise
        checkpoint = _shrink(kept, smaller)  # here, where the error is gone, and with it all that its frames held


def _shrink(kept, smaller):
    """Make `kept` and its trainer ready to train with {CONSTANT: value} `smaller`; the checkpoint to go on from, None before the first."""
    import torch

    trainer, args, before = kept.trainer, kept.trainer.args, kept.constants["PER_DEVICE_TRAIN_BATCH_SIZE"]
    trainer.model.zero_grad(set_to_none=True)
    models.reset_offloading()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # or the peak would stay that at which memory ran out
    checkpoint = kept.last_step()
    args.per_device_train_batch_size, args.gradient_accumulation_steps = smaller.values()
    trainer._train_batch_size = args.train_batch_size
    trainer.optimizer = trainer.lr_scheduler = None  # made anew, and filled from the checkpoint
    kept.constants.update(smaller)
    write_json(kept.run.constants, kept.constants)
    now = " and ".join(f"{name} = {value}" for name, value in smaller.items())
    warn(f"memory ran out in step {trainer.state.global_step + 1} with PER_DEVICE_TRAIN_BATCH_SIZE = {before}; from here on {now}, the "
         "same rows a step. AUTO_BATCH = False stops instead")  # fmt: skip
    say(f"going on from {checkpoint.name if step_of(checkpoint or '') else 'the beginning'}")
    return checkpoint

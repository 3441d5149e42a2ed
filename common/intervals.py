"""Warmup and intervals that fit the steps a run has: a warmup that ends, evaluations and checkpoints that come."""

from common import plan
from common.refusal import Refusal

WARMUP = 0.1  # of the steps, where the constant leaves it open
LONGEST_WARMUP = 100  # steps
EVERY = 100  # steps between evaluations, and between checkpoints, where the constants leave it open
QUARTERS = 4  # evaluations and checkpoints of a run that is too short for its intervals


def steps(rows, rows_per_step, epochs, max_steps):
    """Optimiser steps of a run, as `plan.steps_of` counts them."""
    return plan.steps_of(rows, 0, rows_per_step, epochs, max_steps)["steps"]


def fit(steps, warmup_steps, eval_steps, save_steps):
    """({"warmup_steps", "eval_steps", "save_steps"}, [what was changed, in sentences]) for a run of `steps` optimiser steps.

    warmup_steps: None takes a tenth of the steps, at most 100. eval_steps: None where nothing is evaluated. An interval that would come
    less than twice becomes a quarter of the steps. Raises `Refusal` for a warmup that would not end.
    """
    if warmup_steps is not None and warmup_steps >= steps:
        raise Refusal(f"WARMUP_STEPS is {warmup_steps}, and the run has {steps} steps, so LEARNING_RATE would never be reached; take "
                      "fewer, or None for a tenth of them")  # fmt: skip
    found, said = {"warmup_steps": warmup_steps, "eval_steps": eval_steps, "save_steps": save_steps}, []
    if warmup_steps is None:
        found["warmup_steps"] = min(LONGEST_WARMUP, round(WARMUP * steps))
        said.append(f"warmup of {found['warmup_steps']} of {steps:,} steps")
    short = max(1, steps // QUARTERS)
    for name in ("eval_steps", "save_steps"):
        if found[name] and found[name] > max(1, steps // 2):
            said.append(f"{name.upper()} is {short} in place of {found[name]}, which {steps:,} steps do not reach twice")
            found[name] = short
    return found, said


def require(save_strategy, save_steps, eval_strategy, eval_steps, best=False):
    """`Refusal` for strategies and steps that contradict each other; sentences on what is not used.

    best: whether the best saved step is to be chosen, for which every save needs an evaluation.
    """
    if save_strategy == "epoch" and save_steps:
        raise Refusal(f'SAVE_STRATEGY is "epoch" and SAVE_STEPS is {save_steps}; a checkpoint comes after each epoch or after so many '
                      'steps: leave SAVE_STEPS out (none), or set SAVE_STRATEGY = "steps"')  # fmt: skip
    last = "or set LOAD_BEST_MODEL_AT_END = False"
    if best and eval_strategy not in ("no", save_strategy):
        raise Refusal(f'SAVE_STRATEGY is "{save_strategy}" and EVAL_STRATEGY "{eval_strategy}"; a checkpoint without its held-out loss '
                      f"cannot be the best: make them equal, {last}")  # fmt: skip
    if best and eval_strategy == "steps" and save_steps and eval_steps and save_steps % eval_steps:
        raise Refusal(f"SAVE_STEPS = {save_steps} is no multiple of EVAL_STEPS = {eval_steps}; a checkpoint without its held-out loss "
                      f"cannot be the best: change one, {last}")  # fmt: skip
    unused = eval_steps and eval_strategy != "steps"
    return [f'EVAL_STEPS = {eval_steps} is not used: EVAL_STRATEGY is "{eval_strategy}"'] if unused else []


def place(trainer, save_strategy, save_steps, eval_strategy, eval_steps):
    """Set the trainer's save_steps and eval_steps; what was left open and is not `EVERY`, in a list of sentences.

    A strategy is "no", "steps" or "epoch", which comes in steps too: those of an epoch. Steps that are None are `EVERY`, a quarter of a
    run that would not reach these twice, or fit the other one, so that every save has an evaluation.
    """
    args, rows = trainer.args, len(trainer.train_dataset)
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    there_are, epoch = steps(rows, rows_per_step, args.num_train_epochs, args.max_steps), steps(rows, rows_per_step, 1, -1)
    usual = EVERY if there_are >= 2 * EVERY else max(1, there_are // QUARTERS)
    evaluates, said = args.eval_strategy != "no", []
    if evaluates:
        fits_saves = usual if not save_steps or save_steps % usual == 0 else save_steps
        args.eval_steps = epoch if eval_strategy == "epoch" else eval_steps or fits_saves
    fits_evaluations = max(1, round(usual / args.eval_steps)) * args.eval_steps if evaluates else usual
    args.save_steps = epoch if save_strategy == "epoch" else save_steps or fits_evaluations
    if save_strategy == "steps" and not save_steps and args.save_steps != EVERY:
        said.append(f"SAVE_STEPS is {args.save_steps}, of {there_are:,} steps")
    if evaluates and eval_strategy == "steps" and not eval_steps and args.eval_steps != EVERY:
        said.append(f"EVAL_STEPS is {args.eval_steps}, of {there_are:,} steps")
    return said

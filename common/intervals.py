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


def require(save_strategy, save_steps, eval_strategy, eval_steps):
    """`Refusal` for steps between checkpoints beside a strategy that has none; sentences on what is not used."""
    if save_strategy == "epoch" and save_steps:
        raise Refusal(f'SAVE_STRATEGY is "epoch" and SAVE_STEPS is {save_steps}; a checkpoint comes after each epoch or after so many '
                      'steps: leave SAVE_STEPS out (none), or set SAVE_STRATEGY = "steps"')  # fmt: skip
    unused = eval_steps and eval_strategy != "steps"
    return [f'EVAL_STEPS = {eval_steps} is not used: EVAL_STRATEGY is "{eval_strategy}"'] if unused else []


def place(trainer, save_strategy, save_steps, eval_strategy, eval_steps):
    """Set the trainer's save_steps and eval_steps; what was not as the constants say, in sentences.

    A strategy is "no", "steps" or "epoch", which comes in steps too: those of an epoch. None steps are `EVERY`. Where the best saved step
    is to be chosen, every save has an evaluation.
    """
    args, rows = trainer.args, len(trainer.train_dataset)
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    there_are, epoch = steps(rows, rows_per_step, args.num_train_epochs, args.max_steps), steps(rows, rows_per_step, 1, -1)
    evaluates = args.eval_strategy != "no"
    by_steps = {"eval": (eval_steps or EVERY) if evaluates and eval_strategy == "steps" else None,
                "save": (save_steps or EVERY) if save_strategy == "steps" else None}  # fmt: skip
    fitted, said = fit(there_are, 0, by_steps["eval"], by_steps["save"])
    args.save_steps, args.eval_steps = fitted["save_steps"] or epoch, fitted["eval_steps"] or (epoch if evaluates else None)
    if args.load_best_model_at_end and args.save_steps % args.eval_steps:
        said.append(f"EVAL_STEPS is {args.save_steps}, as SAVE_STEPS, in place of {args.eval_steps}: a checkpoint without its held-out "
                    "loss could not be the best")  # fmt: skip
        args.eval_steps = args.save_steps
    return said

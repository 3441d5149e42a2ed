"""Stopping in the middle of a step or an evaluation, and going on from there to the same bits."""

import random

import numpy as np
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from common import launch, signals


class Stop(Exception):
    """A signal was seen, in every rank at the same micro-step; evaluating: inside an evaluation."""

    def __init__(self, evaluating=False):
        super().__init__()
        self.evaluating = evaluating


class Done(Exception):
    """The evaluation in which a run was stopped turned out to be its end: there is no step left to take."""


class Between(TrainerCallback):
    """What a Trainer holds between two steps and its own checkpoint does not: put back on resume, and after half a step.

    TRL's counters, the patience of early stopping, the loss since it was last logged, an evaluation that is due.

    At every micro-step, of an evaluation too, it looks whether a signal asks to stop, and then raises `Stop` out of the trainer.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.resumed = {}  # what `position` gave when the checkpoint was written that is resumed
        self.random = self.clean = None
        self.updating = False  # the optimiser may have changed some of the weights
        self.evaluation_due = False
        self.evaluate_plainly = trainer.evaluate
        trainer.evaluate = self.evaluate
        trainer.add_callback(self)

    def position(self):
        """Where the last step ended, as JSON."""
        args, state, trainer = self.trainer.args, self.trainer.state, self.trainer
        epoch = int(state.epoch)
        return {
            "epoch": epoch,
            "micro_batches": round((state.epoch - epoch) * len(trainer.callback_handler.train_dataloader)),  # of this epoch, of each rank
            "accumulation": args.gradient_accumulation_steps,
            "input_tokens": state.num_input_tokens_seen,
            "total_loss": trainer._total_loss_scalar,
            "last_logged_step": trainer._globalstep_last_logged,
            "evaluation_due": self.evaluation_due,
            "over": trainer.control.should_training_stop and state.global_step < state.max_steps,  # stopped early
            "patience": [callback.early_stopping_patience_counter for callback in self._early_stopping()],
            "train_tokens": getattr(trainer, "_total_train_tokens", 0),
            "metrics": {name: [float(value) for value in values] for name, values in self._metrics().items()},
        }

    def own_loss(self):
        """This rank's loss, summed since it was last logged."""
        return self.trainer._tr_loss.item()

    def _metrics(self):
        """What TRL averages when it logs next: {name: [one value for each micro-batch]}."""
        return getattr(self.trainer, "_metrics", {}).get("train", {})

    def _early_stopping(self):
        return [found for found in self.trainer.callback_handler.callbacks if isinstance(found, EarlyStoppingCallback)]

    def drop_unfinished_step(self, stop):
        """Put everything back to where the last step ended: the unfinished accumulation, or evaluation, never was."""
        trainer = self.trainer
        if self.random is not None:
            set_random_state(self.random)
        if self.clean is not None:
            loss, trainer.state.num_input_tokens_seen, trainer.current_flos, train_tokens, metrics = self.clean
            trainer._tr_loss.copy_(loss)
            self._set_counters(train_tokens, metrics)
            self.clean = None
        self.evaluation_due = stop.evaluating

    def _set_counters(self, train_tokens, metrics):
        if hasattr(self.trainer, "_total_train_tokens"):
            self.trainer._total_train_tokens = train_tokens
        self._metrics().clear()
        self._metrics().update({name: list(values) for name, values in metrics.items()})

    def on_train_begin(self, args, state, control, **kwargs):
        if not self.resumed:
            return
        trainer, losses = self.trainer, self.resumed["loss_since_log"]
        mine = losses[args.process_index] if len(losses) == args.world_size else sum(losses) / len(losses)
        trainer._tr_loss.fill_(mine)
        trainer._total_loss_scalar, trainer._globalstep_last_logged = self.resumed["total_loss"], self.resumed["last_logged_step"]
        self._set_counters(self.resumed["train_tokens"], self.resumed["metrics"])
        for callback, count in zip(self._early_stopping(), self.resumed["patience"], strict=False):  # one may have been added since
            callback.early_stopping_patience_counter = count
        if self.resumed["evaluation_due"]:
            trainer._determine_best_metric(trainer._evaluate(None, None), None)
            if state.global_step >= state.max_steps or trainer.control.should_training_stop:
                raise Done

    def on_step_begin(self, args, state, control, **kwargs):
        self._heed_signals()
        trainer, metrics = self.trainer, {name: list(values) for name, values in self._metrics().items()}
        counters = getattr(trainer, "_total_train_tokens", 0), metrics
        self.clean = (trainer._tr_loss.clone(), state.num_input_tokens_seen, trainer.current_flos, *counters)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.updating = True

    def on_substep_end(self, args, state, control, **kwargs):
        self._heed_signals()

    def on_step_end(self, args, state, control, **kwargs):
        self.random, self.clean, self.updating = random_state(), None, False

    def on_prediction_step(self, args, state, control, **kwargs):
        self._heed_signals(evaluating=True)

    def in_micro_batch(self):
        """Whether a step has begun whose optimiser has not."""
        return self.clean is not None and not self.updating

    def _heed_signals(self, evaluating=False):
        if launch.agree(signals.requested() is not None):
            signals.agreed()
            raise Stop(evaluating)

    def evaluate(self, *arguments, **keywords):
        """The trainer's own, which draws random numbers for its loader: training goes on as if it had not."""
        before = random_state()
        try:
            return self.evaluate_plainly(*arguments, **keywords)
        finally:
            set_random_state(before)


def random_state():
    """The state of every generator that training draws from in this process."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def set_random_state(state):
    """Put back what `random_state` gave."""
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state(state[3])

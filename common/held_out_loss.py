"""Judging held-out rows while training: by their loss alone, per label token, the same on any number of ranks and in any batches.

Import this after `import unsloth`, which replaces TRL's trainer.
"""

import math
import time

import numpy as np
import torch
from trl import SFTTrainer

from common.chat_text import IGNORED


class HeldOutLoss(SFTTrainer):
    """An SFTTrainer whose evaluation makes no logits of length x vocabulary, and so takes less memory than a training step."""

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """{eval_loss: nats a label token, eval_perplexity, …} over every held-out row, once each.

        The Trainer's own is the mean of its batches' means, with rows repeated to fill the last batch of all ranks.
        """
        rows, args, start = eval_dataset or self.eval_dataset, self.args, time.time()
        model = self._judged_model()
        training = model.training
        model.eval()
        order = np.argsort(np.asarray(rows["length"][:]), kind="stable")  # neighbours of like length need little padding
        batches, sums = np.split(order, range(args.per_device_eval_batch_size, len(order), args.per_device_eval_batch_size)), 0.0
        for first in range(0, len(batches), args.world_size):  # as many times in every rank, for each may have a part of the weights
            mine = first + args.process_index
            sums += self._judged([rows[int(row)] for row in batches[min(mine, len(batches) - 1)]], model) * (mine < len(batches))
            self.control = self.callback_handler.on_prediction_step(args, self.state, self.control)
        found = self._figures(*self.accelerator.reduce(sums.to(args.device), "sum").tolist(), len(rows))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.time() - start, 3)
        self.log(metrics)  # still as a model that is judged: TRL would take what training counts for it
        model.train(training)
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics

    def _judged_model(self):
        return self.model

    def _figures(self, nats, labels, rows):
        """{name: value} of what `_judged` summed over all rows."""
        loss = nats / max(labels, 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}

    def _judged(self, rows, model):
        """float64 [2]: summed loss in nats and count of the labels of `rows`."""
        batch = self.data_collator([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])
        count = int((batch["labels"][..., 1:] != IGNORED).sum())
        if torch.cuda.is_available():
            averaged, self.args.average_tokens_across_devices = self.args.average_tokens_across_devices, False  # of this rank's rows alone
            loss = self.prediction_step(model, batch, prediction_loss_only=True)[0]
            self.args.average_tokens_across_devices = averaged
        else:
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = _loss_without_logits(self.accelerator.unwrap_model(model), self._prepare_inputs(batch))
        return torch.tensor([loss.item() * count if count else 0.0, count], dtype=torch.float64)  # without a label it is NaN


def _loss_without_logits(model, batch):
    """Mean loss of the labels in `batch`, as Unsloth computes it in training; its CPU backend evaluates with whole logits."""
    from unsloth_zoo.cpu.ops import chunked_linear_cross_entropy

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    labels = batch.pop("labels")
    states = causal.get_decoder()(**batch, use_cache=False).last_hidden_state
    return chunked_linear_cross_entropy(states, causal.get_output_embeddings().weight, labels, None)

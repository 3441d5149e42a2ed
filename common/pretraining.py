"""Pretraining on rows of tokens: transformers' Trainer where it has to differ, and what such a run says of itself."""

import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from common import accelerators, batches, chunked_loss, compute, gpt_export, plan, run_directory, safe_text, token_rows, watching
from common.log import is_rank_0, say, warn

CHAT_TEMPLATE = """{%- for message in messages -%}
{{- message['role'] + ':\\n' + message['content'] + eos_token -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'assistant:\\n' -}}{%- endif -%}
"""  # of a tokenizer that has none: the model knows no chats, but can be fine-tuned to them


class Pretraining(Trainer):
    """A Trainer for a `gpt.GPT` and `token_rows.TokenRows`, whose checkpoints plain transformers can load.

    bytes_of_tokens: int32 [vocab_size], UTF-8 bytes of each token; None where the tokenizer is not known: then no bits per byte.
    rows_per_step: over all ranks and micro-batches; the order of rows depends on it and the seed alone, not on how many ranks share them.
    """

    def __init__(self, *, end_of_text, bytes_of_tokens, rows_per_step, **keywords):
        super().__init__(data_collator=token_rows.collate, **keywords)
        self.end_of_text = end_of_text
        if self.processing_class is not None and not self.processing_class.chat_template:
            self.processing_class.chat_template = CHAT_TEMPLATE
        self.bytes_of_tokens = None if bytes_of_tokens is None else torch.from_numpy(np.asarray(bytes_of_tokens, dtype=np.int64))
        rows, seed = self.train_dataset, self.args.seed
        batches.draw(self, rows.steps(rows_per_step) * rows_per_step, lambda epoch: rows.order(seed, epoch, rows_per_step))

    def get_decay_parameter_names(self, model):
        """Matrices and embeddings; biases and norms are not pulled to zero."""
        return [name for name, parameter in model.named_parameters() if parameter.dim() >= 2]

    def _get_num_items_in_batch(self, batch_samples, device):
        """Labels of this optimiser step over all ranks; transformers would leave out the first of each row, which here is learned."""
        count = sum((batch["labels"] != chunked_loss.IGNORED).sum() for batch in batch_samples).to(device)
        return self.accelerator.reduce(count, "sum").clamp(min=1)

    def export(self, directory):
        """Write the model as it is, and its tokenizer, on rank 0: under ZeRO-2 every rank has it whole, and after a run's end no engine."""
        if self.args.should_save:
            self._save(directory)

    def _save(self, output_dir=None, state_dict=None):
        model = self.accelerator.unwrap_model(self.model)
        gpt_export.save(model.state_dict() if state_dict is None else state_dict, model.shape, Path(output_dir), self.end_of_text)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        model = self.accelerator.unwrap_model(model or self.model)
        state = load_file(Path(resume_from_checkpoint) / "model.safetensors")
        model.to(state["transformer.ln_f.weight"].dtype)
        model.load_state_dict(gpt_export.from_hugging_face(state, model.shape.padded_vocab_size))

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """{eval_loss: nats a token, eval_perplexity, eval_bits_per_byte, …} over every held-out label, whatever the number of ranks."""
        rows, args, start = eval_dataset or self.eval_dataset, self.args, time.time()
        at_once, model = args.per_device_eval_batch_size, self.model
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64)  # nats, labels, bytes
        for first in range(0, len(rows), at_once * args.world_size):  # as many times in every rank
            mine = first + args.process_index * at_once + np.arange(at_once)
            batch = rows[np.minimum(mine, len(rows))]
            learned = batch["labels"][batch["labels"] != chunked_loss.IGNORED]
            with torch.no_grad():
                nats = model(batch["input_ids"].to(args.device), batch["labels"].to(args.device), num_items_in_batch=1)["loss"].item()
            size = 0 if self.bytes_of_tokens is None else self.bytes_of_tokens[learned].sum().item()
            sums += torch.tensor([nats, len(learned), size], dtype=torch.float64)
            self.control = self.callback_handler.on_prediction_step(args, self.state, self.control)
        model.train()
        nats, learned, size = self.accelerator.reduce(sums.to(args.device), "sum").tolist()
        loss, name = nats / max(learned, 1), metric_key_prefix
        metrics = {f"{name}_loss": loss, f"{name}_perplexity": math.exp(min(loss, 700))}
        if size:
            metrics[f"{name}_bits_per_byte"] = nats / math.log(2) / size
        metrics[f"{name}_runtime"] = round(time.time() - start, 3)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics


class Files(TrainerCallback):
    """Counts tokens and files; asks for a checkpoint at the end, and whenever `every` more files are done (None never does)."""

    def __init__(self, rows, rows_per_step, seed, every=None):
        self.rows, self.rows_per_step, self.seed, self.every = rows, rows_per_step, seed, every
        self.epoch, self.ends = None, None
        self.now = self.all = self.tokens_now = 0

    def on_step_end(self, args, state, control, **kwargs):
        before, self.now = self.done(state.global_step - 1), self.done(state.global_step)
        state.num_input_tokens_seen = self.tokens_now = self.tokens(state.global_step)
        self.all = math.ceil(len(self.rows.shards) * state.max_steps / self.rows.steps(self.rows_per_step))
        if state.global_step >= state.max_steps or (self.every and self.now // self.every > before // self.every):
            control.should_save = True

    def done(self, step):
        """Files that are wholly trained after `step` optimiser steps; one that comes again in the next epoch counts again."""
        epoch, step = divmod(step, self.rows.steps(self.rows_per_step))
        if epoch != self.epoch:
            self.epoch, self.ends = epoch, self.rows.shard_ends(self.seed, epoch)
        return epoch * len(self.ends) + int(np.searchsorted(self.ends, step * self.rows_per_step, side="right"))

    def tokens(self, step):
        """Tokens learned after `step` optimiser steps, but for the few that stand twice at the ends of files."""
        epochs, step = divmod(step, self.rows.steps(self.rows_per_step))
        return epochs * self.rows.targets + min(step * self.rows_per_step * self.rows.context, self.rows.targets)


def not_covered():
    """What a run on this machine does not show of a run on a GPU, in sentences."""
    if torch.cuda.is_available():
        return []
    return ["no GPU: FlashAttention, torch.compile, fp16 and the exchange between GPUs are not exercised by this run"]


def meter(files, model, ranks):
    """more(tokens_per_second) for `watching.attach`: files done, model FLOPs utilisation.

    model: `Dimensions`. Of a GPU whose peak is not known there is no utilisation; `announce` says so.
    """
    found = accelerators.found()
    peak = found[1].peak_tflops * 1e12 * ranks if found and found[1].peak_tflops else None
    each = compute.palm_flops_per_token(model, model.max_position_embeddings)

    def more(speed):
        figures = {"files": files.now, "tokens": files.tokens_now}
        words = f"files {files.now} of {files.all}  "
        if peak:
            figures["mfu"] = round(speed * each / peak, 4)
            words += f"MFU {figures['mfu']:.1%}  "
        return figures, words

    return more


def announce(trainer, files, data):
    """Say what is really run - parameters, steps, tokens a step, files - and warn of what its numbers make pointless; returns the steps."""
    args, shape, rows = trainer.args, trainer.model.shape, data.train
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    planned = plan.steps_of(len(rows), rows.targets, per_step, args.num_train_epochs, args.max_steps)
    steps, save = planned["steps"], args.save_strategy != "no"
    say(
        f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters: {shape.n_layer} layers of width {shape.n_embd} with "
        f"{shape.n_head} heads, {shape.n_positions:,} positions, {shape.padded_vocab_size:,} rows for {shape.vocab_size:,} tokens"
    )
    say(
        f"{steps:,} steps of {args.per_device_train_batch_size} x {args.gradient_accumulation_steps} x {args.world_size} rank(s) rows of "
        f"{rows.context:,} = {per_step * rows.context:,} tokens; {planned['epochs']:g} epochs of {rows.targets:,} tokens in "
        f"{len(rows.shards):,} files"
    )
    found = accelerators.found()
    if found and not found[1].peak_tflops:
        say(f"MFU is not told: the peak of {found[1].name} is not known here")
    elif found:
        say(f"MFU is of {found[1].peak_tflops:g} TFLOP/s ({found[1].name}), counting 6 N + 12 x layers x width x length FLOPs a token")
    if is_rank_0():
        for text in pointless(steps, args.warmup_steps, args.eval_steps if data.validation else None, args.save_steps if save else None):
            warn(text)
        if not save and not (files.every and files.done(steps) >= files.every):
            warn(f"the first checkpoint is the end's: {files.done(steps)} of CHECKPOINT_EVERY_FILES = {files.every} files are done by "
                 f"then; set SAVE_STEPS, to {max(1, steps // 10)} for example")  # fmt: skip
    return steps


def pointless(steps, warmup_steps, eval_steps, save_steps):
    """Sentences about intervals never reached and a warmup that never ends."""
    found = []
    if warmup_steps >= steps:
        found.append(f"WARMUP_STEPS = {warmup_steps} never end in {steps} steps, so LEARNING_RATE is never reached; take {steps // 50}")
    found += watching.pointless(steps, 0, eval_steps, 0, 0.0)
    if save_steps and save_steps > steps:
        found.append(f"SAVE_STEPS = {save_steps} is never reached in {steps} steps; try {max(1, steps // 3)}")
    return found


def finish(trainer, run, data, constants, beginnings, seed):
    """Check the saved model's logits against the trained one's, let it write, say both; figures for run.json. On rank 0.

    constants: the resolved ones, saved beside the model; beginnings: texts that it goes on from. Raises `Refusal` where they
    differ.
    """
    rows = data.validation or data.train
    run_directory.write_json(run.final_model / "constants.json", constants)
    some = rows[np.arange(1)]["input_ids"][:, :256]
    distance = gpt_export.check(trainer.accelerator.unwrap_model(trainer.model), run.final_model, some)
    say(f"final model written to {run.final_model}; plain transformers' logits of it are within {distance:.1g} of the trained model's")
    written = gpt_export.samples(run.final_model, beginnings, seed) if data.tokenizer else []
    run_directory.write_json(run.samples, written)
    for sample in written:
        say(f"  | {safe_text.visible(sample['beginning'])}[[{safe_text.visible(sample['text'])}]]".replace("\n", "\n  | "))
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return {"export_difference": distance, "eval_loss": losses[-1] if losses else None}

"""Full fine-tuning of conversations: TRL's trainer where it has to differ when the weights are divided among ranks.

Import this after `import unsloth`, which replaces TRL's trainer.
"""

import shutil

import torch
from transformers import TrainerCallback

from common import full_weights, launch, models, saved_logits, watching
from common.chat_text import IGNORED
from common.held_out_loss import HeldOutLoss
from common.log import is_rank_0, say
from common.refusal import Refusal
from common.run_directory import write_json

FELT = 1e-6  # a learning rate at which fp32 shows Adam's update of every weight below 32


class FullFineTuning(HeldOutLoss):
    """A trainer that saves in shards without gathering the model anywhere, and judges held-out rows by loss and exact answers."""

    def save_model(self, output_dir=None, _internal_call=False):
        """Config, weights as the model computes with them, and tokenizer; all ranks must call it. DeepSpeed saves its fp32 masters."""
        full_weights.save(self.accelerator.unwrap_model(self.model), output_dir)
        if self.args.should_save:
            self.processing_class.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        full_weights.read(self.accelerator.unwrap_model(model or self.model), resume_from_checkpoint)

    def _judged_model(self):
        return self.model if self.is_in_train or not self.is_deepspeed_enabled else self._prepared()

    def _figures(self, nats, labels, exact, rows):
        """exact_match: the share of rows of which every label is the most likely token, which greedy generation would then write."""
        return super()._figures(nats, labels, rows) | {"exact_match": exact / rows}

    def _prepared(self):
        """The model after a run's end, when the engine that gathered its parts for each layer may never have been."""
        if self.deepspeed is None:
            from transformers.integrations.deepspeed import deepspeed_init

            deepspeed_init(self, num_training_steps=0, inference=True)
            self.deepspeed = self.accelerator.prepare(self.model)
        return self.deepspeed

    def _judged(self, rows, model):
        """float64 [3]: summed loss and count of the labels of `rows`, and rows with every label the most likely token."""
        longest = max(row["length"] for row in rows)
        ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), IGNORED)
        for place, row in enumerate(rows):
            ids[place, : row["length"]], labels[place, : row["length"]] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        mask = torch.arange(longest) < torch.tensor([[row["length"]] for row in rows])
        device = self.args.device
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False).logits
        found, labels = torch.zeros(3, dtype=torch.float64), labels.to(device)
        for row, wanted in zip(logits, labels, strict=True):  # one at a time: float32 of a large vocabulary takes a gigabyte
            learned = wanted[1:] != IGNORED
            row, wanted = row[:-1][learned].float(), wanted[1:][learned]
            nats = torch.nn.functional.cross_entropy(row, wanted, reduction="sum").item()
            found += torch.tensor([nats, len(wanted), bool((row.argmax(-1) == wanted).all())], dtype=torch.float64)
        return found


class Beginning(TrainerCallback):
    """At the beginning: writes what DeepSpeed was told to the `run`'s ds_config.json, and refuses a training in which a tensor does not
    move, or whose masters are not fp32.

    That is looked at when a step has had a learning rate that is felt, `FELT` or half of the peak, which in a warmup takes some steps.
    """

    def __init__(self, trainer, run):
        self.trainer, self.run, self.before, self.rate = trainer, run, None, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        if args.deepspeed and is_rank_0():
            write_json(self.run.ds_config, resolved_ds_config(self.trainer))
        if state.global_step == 0:  # at the end of a cosine nothing need move any more
            self.before = full_weights.checksums(self.trainer.accelerator.unwrap_model(self.trainer.model))

    def on_step_begin(self, args, state, control, **kwargs):
        self.rate = self.trainer._get_learning_rate() if self.before is not None else 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if self.before is not None and self.rate >= min(FELT, args.learning_rate / 2):
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            count = full_weights.require_moved(model, self.before, state.global_step)
            self.before = None
            say(f"all {count} tensors have moved after {state.global_step} steps; what the optimiser moves is fp32")


def not_covered(packing):
    """What a run on this machine does not show of a run on GPUs, in sentences."""
    if torch.cuda.is_available():
        return watching.not_covered(packing)
    return [
        "no GPU: rows are grouped by length in place of packing, plain transformers load the model in place of Unsloth, whose CPU loader "
        "ZeRO-3 refuses, and its GPU kernels, NCCL and several nodes are not exercised by this run"
    ]


def resolved_ds_config(trainer):
    """The ZeRO JSON with every "auto" decided, as the engine has it."""
    config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    return {key: value for key, value in config.items() if key != "checkpoint"}  # what a resume put there


def finish(trainer, run, rows, dtype, constants):
    """Write final_model/, compare it with the live model on the first of `rows` (Dataset), say both; figures for run.json. All ranks.

    dtype: of the saved weights. Raises `Refusal` where it is not whole or says something else; it is then final_model.refused/.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    working, refused = (run.final_model.with_name(f"final_model.{state}") for state in ("unverified", "refused"))
    live = model if trainer.is_in_train or not trainer.is_deepspeed_enabled else trainer._prepared()
    samples = [rows[number]["input_ids"][:64] for number in range(min(4, len(rows)))]
    launch.rank_0_decides(lambda: shutil.rmtree(working, ignore_errors=True))
    try:
        full_weights.save(model, working, dtype)
        launch.rank_0_decides(lambda: _check(trainer, model, working, constants))
        figures = saved_logits.compare(live, working, samples, trainer.args.device)
    except Refusal as why:
        launch.rank_0_decides(lambda: _replace(working, refused))
        raise Refusal(f"{why}. The checkpoints are as they were; what was written is now {refused}") from None
    launch.rank_0_decides(lambda: _replace(working, run.final_model))
    if figures:
        say(f"final model written to {run.final_model}; plain transformers' logits of it are within {figures['relative_rms']:.2%} of the "
            "trained model's")  # fmt: skip
    else:
        say(f"final model written to {run.final_model}; it was not loaded again for a comparison: this machine's memory is too small")
    return {"export": figures}


def _check(trainer, model, directory, constants):
    full_weights.check(model, directory)
    if not models.is_finite(directory):
        raise Refusal(f"{directory} holds NaN or infinite numbers; take an earlier checkpoint and a lower LEARNING_RATE")
    trainer.processing_class.save_pretrained(directory)
    write_json(directory / "constants.json", constants)


def _replace(source, target):
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        source.rename(target)


def test(trainer, rows):
    """Loss, perplexity and exact answers of the test rows (Dataset), once at the end; {"test_loss", …} for run.json, {} without rows."""
    if rows is None:
        return {}
    found = trainer.evaluate(rows, metric_key_prefix="test")
    if is_rank_0():
        say(f"test file: loss {found['test_loss']:.4f}, perplexity {found['test_perplexity']:.2f}, {found['test_exact_match']:.1%} exact "
            f"on {len(rows):,} rows")  # fmt: skip
    return {name: value for name, value in found.items() if not name.endswith("runtime")}

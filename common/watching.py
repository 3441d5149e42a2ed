"""Watching a run: one progress bar, figures per logged step, warnings in words."""

import json
import math
import sys
import time
from pathlib import Path
from statistics import median

from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from common import batches, hardware, log, loss_curve, models, plan, plan_text, tracking, versions
from common.gpu_load import GpuLoad
from common.log import is_rank_0, say, warn
from common.refusal import Refusal
from common.run_directory import read_json
from common.warning_signs import WarningSigns, unusual_rate

BYTES_A_CHECKPOINT = 12  # a trainable parameter: fp32 weight and two fp32 Adam moments at most
BYTES_A_FULL_ONE = 16  # where all are trained under ZeRO-2: the bf16 weights twice besides; under ZeRO-3 once


def begin(run, checkpoint, settings, model, model_name, data, report_to, notes, wandb=None, **facts):
    """Open the run directory, on rank 0: constants, run.json, statistics, held-out rows, training.log, trackers.

    data: what is trained on, with `key` and `copy_to`; notes: sentences on what this run does not show; wandb: its entity, project and
    run_name; facts: more for run.json.
    """
    total, trainable = models.count_parameters(model)
    divided = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    each = BYTES_A_FULL_ONE - 2 * divided if trainable == total else BYTES_A_CHECKPOINT
    hardware.require_disk(run.path, trainable * each / 1e9, "one checkpoint")
    abandoned = run.set_aside_newer(checkpoint) if checkpoint else []
    run_id = tracking.prepare(report_to, run, (read_json(run.run) or {}).get("wandb_run_id"), **wandb or {})
    run.begin(
        settings.values, recipe=settings.recipe, model_name=str(model_name), model_revision=settings.values.get("MODEL_REVISION"),
        tiny=settings.tiny, command=settings.command, hardware=hardware.describe(), versions=versions.installed(), wandb_run_id=run_id,
        notes=notes, data_key=data.key, **facts,
    )  # fmt: skip
    data.copy_to(run)
    log.write_to(run.training_log)
    say(f"{trainable:,} of {total:,} parameters are trained ({trainable / total:.2%}); the run goes to {run.path}/")
    for note in notes:
        say(f"note: {note}")
    if checkpoint:
        after = f"; what came after it is now {', '.join(abandoned)}" if abandoned else ""
        say(f"resuming from {checkpoint.name}{after}")
    rate = "LEARNING_RATE"
    if unusual := unusual_rate(settings.values[rate], settings.usual[rate]):
        warn(unusual)
    tracking.start(report_to, run_id, settings.values)


def not_covered(packing, tiled_mlp=None):
    """What a run on this machine does not show of a run on a GPU, in sentences. tiled_mlp: None where the recipe has no such constant."""
    import torch

    if torch.cuda.is_available():
        unmeasured = "that packed rows cannot see each other has not been measured on this GPU: pytest tests/common/test_packing.py"
        return [unmeasured] if packing else []
    if tiled_mlp is not None:
        tiled = ", without its tiled MLP" if tiled_mlp else ""
        return [
            f"no GPU: Unsloth trains on the CPU with plain AdamW, layer inputs kept where they are{tiled} and without its GPU kernels; "
            "those parts of the recipe are not exercised by this run"
        ]
    return [
        "no GPU: Unsloth trains on the CPU with plain AdamW in place of 8-bit AdamW, never packs rows, which are grouped by length, and is "
        "without its GPU kernels; those parts of the recipe are not exercised by this run"
    ]


def attach(trainer, run, early_stopping_patience=None, more=None, larger="LEARNING_RATE or LORA_R", constants=None):
    """Put this module's callbacks in place of the Trainer's printing.

    more(tokens_per_second) -> ({name: figure}, words), to log as well; larger: the constants to raise where nothing is learned;
    constants: the resolved ones, so that a warning names those that cost memory.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.create_model_card = lambda *_, **__: None  # TRL writes one of its own into every checkpoint
    watch = Watch(run, more, larger, constants)
    trainer.callback_handler.callbacks.insert(0, watch)  # before the trackers: it adds tokens a second and memory to the logs
    determine = trainer._determine_best_metric

    def of_saved_steps(metrics, trial):  # transformers counts any evaluation, and then loads the best of those it happened to save
        state, args = trainer.state, trainer.args
        return determine(metrics, trial) if state.global_step % args.save_steps == 0 or state.global_step >= state.max_steps else False

    trainer._determine_best_metric = of_saved_steps
    if early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience))


def announce(trainer, run, statistics, warmup_ratio):
    """Print what is really run - steps, tokens a step, epochs - and warn of what its numbers make pointless; returns the steps."""
    args, rows = trainer.args, trainer.train_dataset
    tokens = statistics["splits"]["train"]["tokens"]
    per_rank = args.per_device_train_batch_size
    rows_per_step = per_rank * args.gradient_accumulation_steps * args.world_size
    planned = plan.steps_of(len(rows), tokens, rows_per_step, args.num_train_epochs, args.max_steps)
    if args.packing:
        padding = 0.0  # rows end to end; what packing leaves free at a row's end is never computed
    else:
        order = batches.grouped_order(rows["length"], per_rank * args.world_size, args.seed, 0)
        padding = float(batches.padding_share(rows["length"], order, per_rank))
    waste = "packed" if args.packing else f"{padding:.1%} padding"
    say(
        f"{planned['steps']:,} steps of {per_rank} x {args.gradient_accumulation_steps} x {args.world_size} rank(s) rows, about "
        f"{planned['tokens_per_step']:,} tokens each; {planned['epochs']:g} epochs; {waste}"
    )
    if args.packing:
        conversations = statistics["splits"]["train"]["rows"]
        unpacked = rows_per_step * tokens / conversations
        say(f"packed, a step has {planned['tokens_per_step'] / unpacked:.1f} times the tokens of {rows_per_step} conversations, about "
            f"{unpacked:,.0f}; PACKING = False takes those, and {conversations / rows_per_step:,.0f} steps an epoch")
    if is_rank_0():
        run.update(padding_share=round(padding, 4))
        if args.max_steps <= 0 and (text := plan.few_steps(planned["steps"], args.packing, rows_per_step)):
            warn(text)
        for text in pointless(planned["steps"], warmup_ratio, args.eval_steps if trainer.eval_dataset else None, args.save_steps, padding):
            warn(text)
    return planned["steps"]


def figures(trainer, statistics=None):
    """The figures of a training that ended, also for run.json; `Refusal` where its loss became NaN.

    Says its curve, and with the data's statistics what other numbers of conversations would take at the speed that was measured.
    """
    state = trainer.state
    if curve := loss_curve.drawn(state.log_history):
        say(curve)
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    if losses and not math.isfinite(losses[-1]):
        raise Refusal(
            f"the loss became NaN at step {state.global_step} and training was stopped; lower LEARNING_RATE "
            f"(now {trainer.args.learning_rate:g}) or set MAX_GRAD_NORM, and resume from the last checkpoint"
        )
    best = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None
    last = losses[-1] if losses else None
    judged = next((entry["eval_loss"] for entry in reversed(state.log_history) if "eval_loss" in entry), None)
    held_out = judged if state.best_metric is None else state.best_metric
    found = {"steps": state.global_step, "train_loss": last, "eval_loss": held_out, "best_checkpoint": best}
    speeds = [speed for watch in trainer.callback_handler.callbacks if isinstance(watch, Watch) for speed in watch.speeds]
    if speeds and statistics:
        train = statistics["splits"]["train"]
        found["tokens_per_second"] = median(speeds)
        say(plan_text.measured_samples(median(speeds), train["tokens"] / train["rows"], trainer.args.num_train_epochs))
    if best and trainer.args.load_best_model_at_end:
        say(f"of the saved steps the held-out loss was lowest at {best} ({state.best_metric:.4f}): that is the final model")
    return found


class Watch(TrainerCallback):
    """A line for each logged step, with a bar below them on a terminal; metrics.jsonl; `WarningSigns`; an end where the loss is NaN."""

    def __init__(self, run, more=None, larger="LEARNING_RATE", constants=None):
        self.run, self.more, self.larger, self.constants, self.bar, self.gpus = run, more, larger, constants, None, GpuLoad()
        self.signs = None
        self.speeds = []  # tokens a second between two logs

    def on_train_begin(self, args, state, control, **kwargs):
        import torch

        self.start = self.last_time = time.time()
        self.last_tokens = state.num_input_tokens_seen
        self.pace_from = self.start, state.global_step
        if not is_rank_0():
            return
        said = self.signs.said if self.signs else set()  # before a smaller micro-batch began
        batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
        self.signs = WarningSigns(
            args.learning_rate, batch, accumulation, batch * accumulation * args.world_size * args.logging_steps,
            state.max_steps, args.get_warmup_steps(state.max_steps), self.larger, self.constants,
            [entry["loss"] for entry in state.log_history if math.isfinite(entry.get("loss", math.nan))], said=said,
        )  # fmt: skip
        if torch.cuda.is_available():
            self.gpus.start()
        from tqdm import tqdm

        if self.bar is not None:  # a training that began once more, with a smaller micro-batch
            self.bar.close()
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=not sys.stderr.isatty())

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "train_loss" in logs:  # the summary at the end
            return
        loss = logs.get("loss")
        if loss is not None and not math.isfinite(loss):
            control.should_training_stop = True
        if not is_rank_0():
            return
        now = time.time()
        figures = {"step": state.global_step, "epoch": round(state.epoch or 0, 4), "seconds": round(now - self.start, 2)}
        if "eval_loss" in logs:
            judged = ("eval_loss", "eval_perplexity", "eval_bits_per_byte", "eval_exact_match")
            figures |= {name: logs[name] for name in judged if name in logs}
            more = f"  perplexity {logs['eval_perplexity']:.2f}" if "eval_perplexity" in logs else ""
            more += f"  {logs['eval_bits_per_byte']:.4f} bits per byte" if "eval_bits_per_byte" in logs else ""
            more += f"  {logs['eval_exact_match']:.1%} answered exactly" if "eval_exact_match" in logs else ""
            self._write(f"held-out loss {logs['eval_loss']:.4f}{more}", state)
            self.last_time += logs.get("eval_runtime", 0)  # evaluation is not training time
        elif "test_loss" in logs:
            figures |= {name: value for name, value in logs.items() if name.startswith("test_")}
        elif loss is not None:
            speed = (state.num_input_tokens_seen - self.last_tokens) / max(now - self.last_time, 1e-9)
            self.last_time, self.last_tokens = now, state.num_input_tokens_seen
            self.speeds += [speed] if speed > 0 else []
            figures |= {"loss": loss, "learning_rate": logs.get("learning_rate"), "grad_norm": logs.get("grad_norm")}
            figures |= {"tokens_per_second": round(speed, 1), "memory_gb": memory_gb()}
            found, words = self.more(speed) if self.more else ({}, "")
            busy = self.gpus.since_last()
            if busy is not None:
                found |= {"gpu_utilisation": round(busy, 2)}
                words += f"GPU busy {busy:.0%}  "
            figures |= found
            logs |= {name: figures[name] for name in ("tokens_per_second", "memory_gb", *found)}  # for the trackers too
            norm = f"grad {figures['grad_norm']:.2f}  " if isinstance(figures["grad_norm"], float) else ""
            self._write(
                f"loss {loss:.4f}  lr {figures['learning_rate']:.2e}  {norm}{speed:,.0f} tokens/s  {figures['memory_gb']:.1f} GB  {words}"
                f"{self._left(now, state)} left", state,
            )  # fmt: skip
            if math.isfinite(loss):
                for sentence in self.signs.at(state.global_step, loss, busy, *memory_taken()):
                    warn(sentence)
        with self.run.metrics.open("a", encoding="utf-8") as out:
            out.write(json.dumps({k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in figures.items()}) + "\n")

    def on_train_end(self, args, state, control, **kwargs):
        self.gpus.end()
        if self.bar is not None:
            self.bar.close()

    def _left(self, now, state):
        """The time left in words, evaluations included, from the steps after the first logged one: those before it compile and warm up."""
        start, step = self.pace_from
        seconds = (now - start) / max(state.global_step - step, 1) * (state.max_steps - state.global_step)
        if start == self.start:
            self.pace_from = now, state.global_step
        return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"

    def _write(self, text, state):
        with self.bar.external_write_mode():  # the bar makes room, and comes again below
            say(f"step {state.global_step}/{state.max_steps}  {text}")


def memory_gb():
    """Peak GB (10^9 bytes) allocated on this rank's GPU; without a GPU the process's resident memory now."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e9, 2)
    import psutil

    return round(psutil.Process().memory_info().rss / 1e9, 2)


def memory_taken():
    """(peak, all) GB of this rank's GPU, with what torch keeps to use again; without one, this process's now and what it could have."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 1e9, torch.cuda.get_device_properties().total_memory / 1e9
    taken = memory_gb()
    return taken, min(taken + hardware.free_memory_gib() * hardware.GIB / 1e9, hardware.memory_gib() * hardware.GIB / 1e9)


def pointless(steps, warmup, eval_steps, save_steps, padding):
    """Sentences about intervals never reached, a warmup that never starts or ends, and padding above a tenth."""
    found = []
    if 0 < warmup < 1 and warmup * steps < 1:
        found.append(f"the warmup is {warmup} of {steps} steps, less than one, so there is none; raise WARMUP_RATIO above {1 / steps:.2g}")
    if warmup >= max(steps, 1):
        found.append(f"the warmup of {warmup:g} steps never ends in {steps} steps, so the peak learning rate is never reached; take 0.03")
    if eval_steps and eval_steps > steps:
        found.append(f"EVAL_STEPS = {eval_steps} is never reached in {steps} steps; {max(1, steps // 4)} would show the held-out loss")
    if save_steps > steps:
        found.append(f"SAVE_STEPS = {save_steps} is never reached in {steps} steps, so only the end is saved; try {max(1, steps // 3)}")
    if padding > 0.10:
        found.append(f"{padding:.0%} of the tokens are padding; a smaller PER_DEVICE_TRAIN_BATCH_SIZE, or PACKING on a GPU, wastes less")
    return found

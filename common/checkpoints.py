"""Checkpoints of a training: written whole or not counted, uploaded beside it, pruned when newer ones are safe, exact to resume.

A recipe makes `kept = checkpoints.Checkpoints(trainer, run, …)` after the trainer, calls `kept.train(checkpoint, steps)` in place of
`trainer.train`, and `kept.finish()` at the end, inside `with kept.secured()`. Which checkpoint to go on from: resume.py.
"""

import os
import re
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from transformers import TrainerCallback

from common import copies, hardware, hashing, launch, loading, manifest, models, signals, stopping, versions
from common.log import is_rank_0, say, warn
from common.refusal import Refusal, is_disk_full
from common.run_directory import read_json, step_of, write_json

ROOM = 1.1  # free disk that a save wants, as a multiple of the checkpoint before it


class Checkpoints(TrainerCallback):
    """Everything between a Trainer and its checkpoint-N/ directories.

    run: RunDirectory; constants: the resolved ones, a dict; data_key: of the tokenised data; micro_batch: rows of one
    micro-batch over all ranks that the order of rows is made for; the rest as in `copies.Copies`.
    """

    def __init__(self, trainer, run, constants, data_key, micro_batch, save_total_limit, uri=None, keep_local=True):
        if trainer.args.save_total_limit is not None or Path(trainer.args.output_dir) != run.path:
            raise ValueError("the trainer must leave pruning to Checkpoints (save_total_limit=None) and save into the run's directory")
        self.trainer, self.run, self.constants, self.data_key = trainer, run, constants, data_key
        self.micro_batch, self.versions = micro_batch, versions.installed()
        self.without_room = None  # the step whose save found no room
        self.copies = copies.Copies(run, save_total_limit, uri, keep_local, active=is_rank_0())
        self.loading = loading.Loading(trainer, run)
        self.save_plainly, trainer._save_checkpoint = trainer._save_checkpoint, self.save
        trainer.add_callback(self)  # before `Between`, which may evaluate at once
        self.between = stopping.Between(trainer)

    # The training

    def train(self, checkpoint, steps):
        """Train to the end, from `checkpoint` where there is one; a signal saves the last step and ends the process with code 75.

        steps: all steps of the run. A checkpoint of its end is only loaded: given such a one, transformers 5.17 would take one
        step more than the run has. Where its evaluation was interrupted, that comes first.
        """
        resumed = self.between.resumed = manifest.read(checkpoint)["position"] if checkpoint else {}
        self.copies.begin(checkpoint)
        if checkpoint is not None and (step_of(checkpoint) >= steps or resumed["over"]) and not resumed["evaluation_due"]:
            taken = self.loading.end(checkpoint)
            say(f"{checkpoint.name} is the end of this run: nothing is left to train; checkpoint-{taken} is loaded")
            return
        with signals.politely():
            try:
                self.trainer.train(resume_from_checkpoint=self.loading.path_for(checkpoint))
            except stopping.Stop as stop:
                self._stop(stop)
            except stopping.Done:
                self.trainer._finalize_training(None, 1, time.time())
            if launch.agree(signals.requested() is not None):  # in the last step, or after it
                self._stop(stopping.Stop())
        if self.without_room == self.trainer.state.global_step:
            raise Refusal(f"the training is done, but checkpoint-{self.without_room} could not be saved for lack of room, and the steps "
                          f"since the one before it are lost. Free some space there; {self.command()} trains them again")  # fmt: skip

    def on_train_begin(self, args, state, control, **kwargs):
        self.loading.loaded()
        state.compute_steps(args, state.max_steps)  # transformers goes on with the intervals of the checkpoint
        self.loading.find_best(state)

    def on_step_end(self, args, state, control, **kwargs):
        self.loading.done()
        self.copies.prune_what_is_safe(state.best_model_checkpoint)

    # Saving

    def save(self, model, trial):
        """In place of the trainer's `_save_checkpoint`: the same files, then their manifest, then upload and pruning."""
        directory = self.run.path / f"checkpoint-{self.trainer.state.global_step}"
        best = self.trainer.state.best_model_checkpoint  # which transformers sets in the middle of its save
        if not launch.rank_0_decides(lambda: self._has_room(directory)):
            self.without_room = self.trainer.state.global_step
            self._not_saved(best)
            return
        try:
            with signals.unhurried():
                with hashing.hashed_writes() as written:
                    self.save_plainly(model, trial)
                self._commit(directory, written)
        except Exception as error:
            if not is_disk_full(error) or manifest.exists(directory):  # what is committed stays
                raise
            self.without_room = self.trainer.state.global_step
            self._disk_was_full(directory, error)
        if not launch.rank_0_decides(lambda: manifest.exists(directory)):
            self._not_saved(best)

    def _has_room(self, directory):
        if directory.exists():
            self.run.set_aside(directory, "unfinished")
        before = [path for _, path in self.run.whole_checkpoints()[-1:]]
        needed = ROOM * sum(file.stat().st_size for path in before for file in path.rglob("*") if file.is_file()) / 1e9
        free = hardware.free_disk_gb(self.run.path)
        if free < needed:
            warn(f"{directory.name} was not saved: it needs {hardware.size(needed)} and the disk of {self.run.path} has "
                 f"{hardware.size(free)} free; training goes on and the next save tries again. Free some space there")  # fmt: skip
        return free >= needed

    def _disk_was_full(self, directory, error):
        """Half a checkpoint on a full disk is no use to anybody and in the way of the next one."""
        whole = [path.name for _, path in self.run.whole_checkpoints()]
        newest = whole[-1] if whole else "none"
        said = f"{directory.name} was not saved: the disk of {self.run.path} is full; the newest whole one is {newest}"
        if self.trainer.args.world_size > 1:  # the other ranks wait for this one's part, so the run ends here
            raise Refusal(f"{said}. Free some space there, then: {self.command()}") from error
        shutil.rmtree(directory, ignore_errors=True)
        warn(f"{said}. Training goes on and the next save tries again. Free some space there")

    def _not_saved(self, best):
        """What is not there cannot be the best: that is again the checkpoint in the path `best`, or none."""
        state = self.trainer.state
        if state.best_global_step == state.global_step:
            before = step_of(best or "")
            losses = [entry["eval_loss"] for entry in state.log_history if entry["step"] == before and "eval_loss" in entry]
            state.best_global_step, state.best_model_checkpoint, state.best_metric = before, best, losses[-1] if losses else None

    def _commit(self, directory, written):
        """Every rank hashed what it wrote; what is left - safetensors, JSON - is shared out, hashed, and the manifest written."""
        if is_rank_0():
            write_json(directory / "constants.json", self.constants)  # for whoever judges it
        mine = {os.path.relpath(path, directory).replace(os.sep, "/"): facts for path, facts in written.items()}
        files = {name: facts for part in launch.gather(mine) for name, facts in part.items()}  # also a barrier: all have written
        args, state = self.trainer.args, self.trainer.state
        others = [name for name in launch.rank_0_decides(lambda: manifest.files_in(directory)) if name not in files]
        hashed = {name: manifest.describe(directory / name) for name in others[args.process_index :: args.world_size]}
        finite = all(models.is_finite_file(directory / name) for name in hashed if name.endswith(".safetensors"))
        parts = launch.gather((hashed, finite, self.between.own_loss()))
        if is_rank_0():
            for part, _, _ in parts:
                files |= part
            if all(finite for _, finite, _ in parts):
                position = self.between.position() | {"micro_batch": self.micro_batch, "loss_since_log": [loss for *_, loss in parts]}
                manifest.write(
                    directory, dict(sorted(files.items())), step=state.global_step, world_size=args.world_size, data_key=self.data_key,
                    sharded=self.trainer.is_deepspeed_enabled, optimizer=optimizer_name(self.trainer.optimizer), position=position,
                    packing=getattr(args, "packing", False), versions=self.versions, constants=self.constants,
                )  # fmt: skip
                say(f"saved {directory.name}", terminal=not sys.stderr.isatty())
                self.copies.committed(directory, state.best_model_checkpoint)
            else:
                aside = self.run.set_aside(directory, "not-finite")
                warn(f"{directory.name} holds NaN or infinite numbers; it is now {aside.name} and nothing resumes from it")

    # The end

    def can_repeat_step(self):
        """Whether what failed was a micro-batch of one process, before which the weights are still those of the last step."""
        return self.between.in_micro_batch() and self.trainer.args.world_size == 1 and not self.trainer.is_deepspeed_enabled

    def last_step(self, stop=None):
        """The checkpoint of the last optimiser step as it was when it ended, saved where it is not yet; None before the first step."""
        trainer, state = self.trainer, self.trainer.state
        directory = self.run.path / f"checkpoint-{state.global_step}"
        unsaved = state.global_step and not launch.rank_0_decides(lambda: manifest.exists(directory))
        if stop is None or unsaved:
            self.between.drop_unfinished_step(stop or stopping.Stop())
        if unsaved:
            trainer._save_checkpoint(trainer.model_wrapped, None)
            if stop is None and not manifest.exists(directory):
                raise Refusal(f"memory ran out after step {state.global_step}, and {directory.name} could not be saved for lack of room on "
                              f"the disk. Free some there; {self.command()} goes on from the one before it")  # fmt: skip
        return directory if state.global_step else None

    def _stop(self, stop):
        """Save the last step, upload it, say how to go on; ends the process."""
        self.last_step(stop)
        if is_rank_0():
            self.end_resumable(signals.requested())
        launch.exit_together()
        raise SystemExit(launch.STOPPED)

    def end_resumable(self, name):
        """Wait for the uploads of what is committed and say how to go on. name: of the signal."""
        trainer, whole = self.trainer, self.run.whole_checkpoints()
        step = trainer.state.global_step
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)  # ends the bar and the trackers
        self.run.update(status="stopped")
        said = {"SIGHUP": "the terminal or the launcher is gone", None: "a signal to another rank"}
        say(f"{said.get(name, name)}: stopped after step {step}")
        for key, why in sorted(self.copies.wait().items()):
            warn(f"{key} is not safe in the store: {why}; it is whole in {self.run.path}")
        if whole and whole[-1][0] < step:
            warn(f"steps {whole[-1][0] + 1} to {step} could not be saved and will be trained again")
        say(f"to go on: {self.command()}" if whole else "nothing was trained yet, and nothing is lost: start again with the same command")

    def command(self):
        """What to type to go on from the newest whole checkpoint."""
        whole = [path for _, path in self.run.whole_checkpoints()]
        command, newest = read_json(self.run.run, {}).get("command", ""), whole[-1] if whole else "auto"
        if self.trainer.args.world_size > 1 and "RECIPES_ANNOUNCED" not in os.environ:  # started by hand, as the next start must be
            command = command.replace("python ", f"{launch.starter()} ", 1)
        if command.startswith(("python ", "deepspeed ", "srun ")):
            return f"{re.sub(' --resume-from-checkpoint[= ][^ ]+', '', command)} --resume-from-checkpoint {newest}"
        return f"the same call with resume_from_checkpoint={str(newest)!r}"

    @contextmanager
    def secured(self):
        """Whatever ends the recipe inside, after training too: what is committed gets to the store first (rank 0).

        A signal after the training ends with code 75 like one in it: a resume trains nothing more and does the rest.
        """
        try:
            yield
        except signals.Stopped as stopped:
            if is_rank_0():
                self.end_resumable(str(stopped))
            raise SystemExit(launch.STOPPED) from None
        except Exception:
            for key, why in sorted(self.copies.wait().items()):
                warn(f"{key} is not safe in the store: {why}; it is in {self.run.path}")
            raise

    def finish(self, directories=()):
        """Wait until everything is in the store: checkpoints, the run's files, and the saved models in `directories` (rank 0 only).

        Raises `Refusal` where something is not safe. Without a store it does nothing.
        """
        self.copies.finish(directories, self.trainer.state.best_model_checkpoint, self.command())


def optimizer_name(optimizer):
    """Where its class is defined, below what accelerate and DeepSpeed wrap around it: "torch.optim.adamw.AdamW"."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"

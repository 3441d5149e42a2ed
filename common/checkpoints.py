"""Checkpoints of a training: written whole or not counted, uploaded beside it, pruned when newer ones are safe, exact to resume.

A recipe needs three lines: `kept = checkpoints.Checkpoints(trainer, run, …)` after the trainer is made, `kept.train(checkpoint)`
in place of `trainer.train`, and `kept.finish()` at the end.
"""

import os
import shutil
import sys
import time
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainerState

from common import hardware, hashing, launch, manifest, models, remote_runs, signals, stopping, storage, versions, zero
from common.log import is_rank_0, say, warn
from common.refusal import Refusal, is_disk_full
from common.run_directory import read_json, step_of, write_json
from common.uploads import Uploads

STOPPED = 75  # exit code after a polite stop: sysexits.h's EX_TEMPFAIL, try again later
ROOM = 1.1  # free disk that a save wants, as a multiple of the checkpoint before it


class Checkpoints(TrainerCallback):
    """Everything between a Trainer and its checkpoint-N/ directories.

    run: RunDirectory; constants: the resolved ones, a dict; data_key: of the tokenised data; micro_batch: rows of one
    micro-batch over all ranks that the order of rows is made for; save_total_limit: how many stay on this disk, the best one
    besides; uri: the store to upload to, None for none; keep_local: False removes from this disk what is verified in the store,
    but for the newest and the best.
    """

    def __init__(self, trainer, run, constants, data_key, micro_batch, save_total_limit, uri=None, keep_local=True):
        self.trainer, self.run, self.constants, self.data_key = trainer, run, constants, data_key
        self.limit, self.keep_local, self.uri = save_total_limit, keep_local, uri
        self.uploads = Uploads(uri, run.path.name) if uri and is_rank_0() else None
        self.micro_batch = micro_batch
        self.between, self.regrouped, self.seen_safe = stopping.Between(trainer), None, 0
        self.save_plainly, self.load_best_plainly = trainer._save_checkpoint, trainer._load_best_model
        trainer._save_checkpoint, trainer._load_best_model = self.save, self.load_best
        trainer.add_callback(self)

    # The training

    def train(self, checkpoint, steps):
        """Train to the end, from `checkpoint` where there is one; a signal saves the last step and ends the process with code 75.

        steps: all steps of the run. A checkpoint of the last one is only loaded, its best or itself: given such a one,
        transformers 5.17 would take one step more than the run has. Where its evaluation was interrupted, that comes first.
        """
        self.between.resumed = manifest.read(checkpoint)["position"] if checkpoint else {}
        if self.uploads:
            self._continue_uploads(checkpoint)
        if checkpoint is not None and step_of(checkpoint) >= steps and not self.between.resumed["evaluation_due"]:
            self._load_the_end(checkpoint)
            return
        with signals.politely():
            try:
                self.trainer.train(resume_from_checkpoint=self._loadable(checkpoint))
            except stopping.Stop as stop:
                self._stop(stop)
            except stopping.Done:
                self.trainer._finalize_training(None, 1, time.time())

    def _continue_uploads(self, checkpoint):
        """Send what an interrupted run had not; what is in the store already is not sent again, what this resume abandons is marked."""
        try:
            if checkpoint is not None:
                remote_runs.abandon_newer(storage.open_store(self.uri), self.run.path.name, step_of(checkpoint))
        except storage.StorageError as error:
            warn(f"newer checkpoints of another line may still be in the store ({error}); \"auto\" on another disk would take them")
        for _, whole in self.run.whole_checkpoints():
            self.uploads.submit(whole, whole.name)

    def _loadable(self, checkpoint):
        """The path to load: of what another number of ranks wrote, a copy that these can read."""
        if checkpoint is None or manifest.read(checkpoint)["world_size"] == self.trainer.args.world_size:
            return str(checkpoint) if checkpoint else None
        self.trainer.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
        self.regrouped = launch.rank_0_decides(lambda: zero.regroup(checkpoint, self.trainer.args.world_size))
        return str(self.regrouped)

    def _regrouped_was_loaded(self):
        """From here on DeepSpeed reads its ordinary checkpoints again."""
        engine = self.trainer.model_wrapped
        engine._config.load_universal_checkpoint = False
        for state in engine.optimizer.optimizer.state.values():  # under ZeRO-3 one tensor is shared and would count double
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()
        if is_rank_0():
            shutil.rmtree(self.regrouped, ignore_errors=True)

    def load_best(self):
        """In place of the trainer's `_load_best_model`, which cannot read what another number of ranks wrote."""
        best = self.trainer.state.best_model_checkpoint
        path = self._loadable(Path(best))
        if path == best:
            self.load_best_plainly()
            return
        engine = self.trainer.model_wrapped
        engine._config.load_universal_checkpoint = True
        engine.load_checkpoint(path, load_module_strict=False, load_optimizer_states=True, load_lr_scheduler_states=False)
        launch.wait_for_all()
        self._regrouped_was_loaded()

    def _load_the_end(self, checkpoint):
        trainer = self.trainer
        trainer.state = TrainerState.load_from_json(checkpoint / "trainer_state.json")
        self._find_best(trainer.state)
        best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
        trainer._load_from_checkpoint(best or str(checkpoint))
        say(f"{checkpoint.name} is the end of this run: nothing is left to train")

    def on_train_begin(self, args, state, control, **kwargs):
        if self.regrouped:
            self._regrouped_was_loaded()
        self._find_best(state)
        over = state.global_step >= state.max_steps or self.trainer.control.should_training_stop  # early, by that evaluation
        if over and self.between.resumed.get("evaluation_due"):
            raise stopping.Done

    def on_step_end(self, args, state, control, **kwargs):
        if self.uploads and len(self.uploads.safe()) != self.seen_safe:
            self.prune()

    def _find_best(self, state):
        """The best checkpoint so far where it is now: the run may have moved, or come from a store."""
        best = self.run.path / f"checkpoint-{state.best_global_step}"
        if state.best_global_step and manifest.exists(best):
            state.best_model_checkpoint = str(best)
        elif state.best_global_step:
            warn(f"{best.name}, the best one so far, is not here any more; the best of what comes now will be the final model")
            state.best_global_step = state.best_model_checkpoint = state.best_metric = None

    # Saving

    def save(self, model, trial):
        """In place of the trainer's `_save_checkpoint`: the same files, then their manifest, then upload and pruning."""
        directory = self.run.path / f"checkpoint-{self.trainer.state.global_step}"
        best = self.trainer.state.best_model_checkpoint  # which transformers sets in the middle of its save
        if not launch.rank_0_decides(lambda: self._has_room(directory)):
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
            self._disk_was_full(directory, error)
        if not launch.rank_0_decides(lambda: manifest.exists(directory)):
            self._not_saved(best)

    def _has_room(self, directory):
        if directory.exists():
            self.run.set_aside(directory, "unfinished")
        sizes = [sum(f["size"] for f in manifest.read(path)["files"].values()) for _, path in self.run.whole_checkpoints()[-1:]]
        needed, free = ROOM * sum(sizes) / 1e9, hardware.free_disk_gb(self.run.path)
        if free < needed:
            warn(f"{directory.name} was not saved: it needs {needed:.3g} GB and the disk of {self.run.path} has {free:.3g} GB free; "
                 "training goes on and the next save tries again. Free some space there")  # fmt: skip
        return free >= needed

    def _disk_was_full(self, directory, error):
        """Half a checkpoint on a full disk is no use to anybody and in the way of the next one."""
        whole = [path.name for _, path in self.run.whole_checkpoints()]
        newest = whole[-1] if whole else "none"
        said = f"{directory.name} was not saved: the disk of {self.run.path} is full; the newest whole one is {newest}"
        if self.trainer.args.world_size > 1:  # the other ranks wait for this one's part, so the run ends here
            raise Refusal(f"{said}. Free some space there, then: {self._command()}") from error
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
        others = [name for name in manifest.files_in(directory) if name not in files]
        hashed = {name: manifest.describe(directory / name) for name in others[args.process_index :: args.world_size]}
        parts = launch.gather((hashed, self.trainer._tr_loss.item()))
        if is_rank_0():
            for part, _ in parts:
                files |= part
            if models.is_finite(directory):
                position = self.between.position() | {"micro_batch": self.micro_batch, "loss_since_log": [loss for _, loss in parts]}
                manifest.write(
                    directory, dict(sorted(files.items())), step=state.global_step, world_size=args.world_size, data_key=self.data_key,
                    sharded=self.trainer.is_deepspeed_enabled, optimizer=optimizer_name(self.trainer.optimizer), position=position,
                    versions=versions.installed(), constants=self.constants,
                )  # fmt: skip
                say(f"saved {directory.name}", terminal=not sys.stderr.isatty())
                self._upload(directory)
                self.prune()
            else:
                aside = self.run.set_aside(directory, "not-finite")
                warn(f"{directory.name} holds NaN or infinite numbers; it is now {aside.name} and nothing resumes from it")

    def _upload(self, directory):
        if not self.uploads:
            return
        self.uploads.retry_failed()
        self.uploads.submit(directory, directory.name)
        self._upload_run_files()

    def _upload_run_files(self):
        paths = {name: self.run.path / name for name in remote_runs.FILES}
        self.uploads.submit_files({name: path for name, path in paths.items() if path.is_file()})

    def prune(self):
        """Remove the oldest beyond the limit; never the best, and none before a newer one is committed, and uploaded where that is on."""
        whole = self.run.whole_checkpoints()
        safe, failed = (self.uploads.safe(), self.uploads.failed()) if self.uploads else (set(), {})
        self.seen_safe = len(safe)
        best = Path(self.trainer.state.best_model_checkpoint or "").name
        for index, (_, path) in enumerate(whole[:-1]):
            too_many = index < len(whole) - self.limit
            newer_is_safe = not self.uploads or any(newer.name in safe for _, newer in whole[index + 1 :])
            settled = not self.uploads or path.name in safe or path.name in failed  # not under way
            stored = not self.keep_local and path.name in safe
            if path.name != best and newer_is_safe and (stored or (too_many and settled)):
                path.rename(path.with_name(f".pruned-{path.name}"))  # in one move no checkpoint any more
                if self.uploads:
                    self.uploads.withdraw(path.name)  # where it failed, it will not be tried again
        for gone in self.run.path.glob(".pruned-*"):  # also what an interrupted run did not finish
            shutil.rmtree(gone, ignore_errors=True)

    # The end

    def _stop(self, stop):
        """Save the last optimiser step as it was when it ended, upload it, say how to go on; ends the process."""
        trainer = self.trainer
        state = trainer.state
        say(f"{signals.requested() or 'a signal to another process'}: stopping after step {state.global_step}")
        directory = self.run.path / f"checkpoint-{state.global_step}"
        if state.global_step and not manifest.exists(directory):
            self.between.drop_unfinished_step(stop)
            trainer._save_checkpoint(trainer.model_wrapped, None)
        if is_rank_0():
            self.run.update(status="stopped")
            whole = [path.name for _, path in self.run.whole_checkpoints()]
            if self.uploads:
                self._upload_run_files()
                unsafe = self._wait()
                for key, why in sorted(unsafe.items()):
                    warn(f"{key} is not safe in the store: {why}; it is whole in {self.run.path}")
            if whole:
                say(f"stopped after {whole[-1]}; to go on: {self._command()}")
            else:
                say("stopped before the first step; nothing was lost: start again with the same command")
        launch.exit_together()
        sys.stdout.flush()
        raise SystemExit(STOPPED)

    def _command(self):
        """What to type to go on from the newest whole checkpoint."""
        whole = [path for _, path in self.run.whole_checkpoints()]
        command, newest = read_json(self.run.run, {}).get("command", ""), whole[-1] if whole else "auto"
        if command.startswith("python "):
            return f"{command} --resume-from-checkpoint {newest}"
        return f"the same call with resume_from_checkpoint={str(newest)!r}"

    def _wait(self):
        unsafe = self.uploads.wait(say=say)
        self.uploads.close()
        self.run.update(uploads_blocked_seconds=round(self.uploads.blocked_seconds, 4))
        if not unsafe:
            say(f"everything is verified in the store; uploading held the training up for {self.uploads.blocked_seconds:.2f} s in all")
        return unsafe

    def finish(self, directories=()):
        """Wait until everything is in the store: checkpoints, the run's files, and the saved models in `directories` (rank 0 only).

        Raises `Refusal` where something is not safe. Without a store it does nothing.
        """
        if not self.uploads:
            return
        for directory in directories:
            manifest.write(directory, {name: manifest.describe(directory / name) for name in manifest.files_in(directory)})
            self.uploads.submit(directory, directory.name)
        self.uploads.retry_failed()
        self._upload_run_files()
        unsafe = self._wait()
        self.prune()
        if unsafe:
            listed = "; ".join(f"{key}: {why}" for key, why in sorted(unsafe.items()))
            raise Refusal(f"training is done and everything is in {self.run.path}, but not all of it is in the store ({listed}). Nothing "
                          f"was removed here; {self._command()} trains nothing more and uploads the rest")  # fmt: skip


def optimizer_name(optimizer):
    """Where its class is defined, below what accelerate and DeepSpeed wrap around it: "torch.optim.adamw.AdamW"."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"

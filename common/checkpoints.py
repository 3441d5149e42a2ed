"""Checkpoints of a training: written whole or not counted, uploaded beside it, pruned when newer ones are safe, exact to resume.

A recipe needs three lines: `kept = checkpoints.Checkpoints(trainer, run, …)` after the trainer is made, `kept.train(checkpoint)`
in place of `trainer.train`, and `kept.finish()` at the end.
"""

import os
import random
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback, TrainerState

from common import hardware, launch, manifest, models, resume, signals, versions, zero
from common.log import is_rank_0, say, warn
from common.refusal import Refusal
from common.run_directory import read_json, step_of, write_json
from common.uploads import Uploads

STOPPED = 75  # exit code after a polite stop: sysexits.h's EX_TEMPFAIL, try again later
ROOM = 1.1  # free disk that a save wants, as a multiple of the checkpoint before it


class Stop(Exception):
    """A signal was seen at a micro-step, in every rank at the same one; evaluating: inside an evaluation."""

    def __init__(self, evaluating=False):
        super().__init__()
        self.evaluating = evaluating


class Checkpoints(TrainerCallback):
    """Everything between a Trainer and its checkpoint-N/ directories.

    run: RunDirectory; constants: the resolved ones, a dict; data_key: of the tokenised data; micro_batch: rows of one
    micro-batch over all ranks that the order of rows is made for; save_total_limit: how many stay on this disk, the best one
    besides; uri: the store to upload to, None for none; keep_local: False removes all but the newest and the best from this
    disk once they are verified in the store.
    """

    def __init__(self, trainer, run, constants, data_key, micro_batch, save_total_limit, uri=None, keep_local=True):
        self.trainer, self.run, self.constants, self.data_key = trainer, run, constants, data_key
        self.limit = save_total_limit if keep_local or not uri else 1
        self.uploads = Uploads(uri, run.path.name) if uri and is_rank_0() else None
        self.micro_batch = micro_batch
        self.position, self.regrouped = {}, None  # of the checkpoint that is resumed
        self.random = self.clean = None
        self.seen_safe = 0
        self.save_plainly, self.evaluate_plainly, self.load_best_plainly = trainer._save_checkpoint, trainer.evaluate, trainer._load_best_model
        trainer._save_checkpoint, trainer.evaluate, trainer._load_best_model = self.save, self.evaluate, self.load_best
        trainer.add_callback(self)

    # The training

    def train(self, checkpoint, steps):
        """Train to the end, from `checkpoint` where there is one; a signal saves the last step and ends the process with code 75.

        steps: all steps of the run. A checkpoint of the last one is only loaded, its best or itself: given such a one,
        transformers 5.17 would take one step more than the run has.
        """
        if checkpoint is not None:
            self.position = manifest.read(checkpoint)["position"]
        if self.uploads:
            for _, whole in self.run.whole_checkpoints():
                self.uploads.submit(whole, whole.name)  # what an interrupted run had not finished; what is there is not sent again
        if checkpoint is not None and step_of(checkpoint) >= steps:
            self._load_the_end(checkpoint)
            return
        try:
            with signals.politely():
                self.trainer.train(resume_from_checkpoint=self._loadable(checkpoint))
        except Stop as stop:
            self._stop(stop)

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
        best = trainer.state.best_model_checkpoint
        best = checkpoint.parent / Path(best).name if best and trainer.args.load_best_model_at_end else checkpoint
        trainer._load_from_checkpoint(str(best if best.is_dir() else checkpoint))
        say(f"{checkpoint.name} is the end of this run: nothing is left to train")

    def on_train_begin(self, args, state, control, **kwargs):
        """Go on in the middle of what the resumed checkpoint was in: a logging interval, an evaluation."""
        position, trainer = self.position, self.trainer
        if not position:
            return
        if self.regrouped:
            self._regrouped_was_loaded()
        losses = position["loss_since_log"]
        mine = losses[args.process_index] if len(losses) == args.world_size else sum(losses) / len(losses)
        trainer._tr_loss.fill_(mine)
        trainer._total_loss_scalar, trainer._globalstep_last_logged = position["total_loss"], position["last_logged_step"]
        if position["evaluation_due"]:
            trainer._determine_best_metric(trainer._evaluate(None, None), None)

    def on_step_begin(self, args, state, control, **kwargs):
        self._heed_signals()
        trainer = self.trainer
        self.clean = (trainer._tr_loss.clone(), state.num_input_tokens_seen, trainer.current_flos)

    def on_substep_end(self, args, state, control, **kwargs):
        self._heed_signals()

    def on_step_end(self, args, state, control, **kwargs):
        self.random, self.clean = random_state(), None
        if self.uploads and len(self.uploads.safe()) != self.seen_safe:
            self.prune()

    def on_prediction_step(self, args, state, control, **kwargs):
        self._heed_signals(evaluating=True)

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

    # Saving

    def save(self, model, trial):
        """In place of the trainer's `_save_checkpoint`: the same files, then their manifest, then upload and pruning."""
        directory = self.run.path / f"checkpoint-{self.trainer.state.global_step}"
        if not launch.rank_0_decides(lambda: self._has_room(directory)):
            return
        try:
            with hashed_writes() as written:
                self.save_plainly(model, trial)
            self._commit(directory, written)
        except Exception as error:
            if not is_disk_full(error):
                raise
            self._disk_was_full(directory, error)

    def _has_room(self, directory):
        if directory.exists():
            resume.set_aside(directory, "unfinished")
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

    def _commit(self, directory, written):
        """Every rank hashed what it wrote; what is left - safetensors, JSON - is shared out, hashed, and the manifest written."""
        if is_rank_0():
            write_json(directory / "constants.json", self.constants)  # for whoever judges it
        mine = {os.path.relpath(path, directory).replace(os.sep, "/"): facts for path, facts in written.items()}
        files = {name: facts for part in gather(mine) for name, facts in part.items()}  # also a barrier: all have written
        args, state = self.trainer.args, self.trainer.state
        others = [name for name in manifest.files_in(directory) if name not in files]
        hashed = {name: manifest.describe(directory / name) for name in others[args.process_index :: args.world_size]}
        parts = gather((hashed, self.trainer._tr_loss.item()))
        if is_rank_0():
            for part, _ in parts:
                files |= part
            if models.is_finite(directory):
                manifest.write(
                    directory, dict(sorted(files.items())), step=state.global_step, world_size=args.world_size, data_key=self.data_key,
                    sharded=self.trainer.is_deepspeed_enabled, optimizer=optimizer_name(self.trainer.optimizer),
                    position=self._position([loss for _, loss in parts]), versions=versions.installed(), constants=self.constants,
                )  # fmt: skip
                say(f"saved {directory.name}", terminal=not sys.stderr.isatty())
                self._upload(directory)
                self.prune()
            else:
                aside = resume.set_aside(directory, "not-finite")
                warn(f"{directory.name} holds NaN or infinite numbers; it is now {aside.name} and nothing resumes from it")
        launch.wait_for_all()

    def _position(self, losses):
        """Where in the data and in what the trainer does between two steps this checkpoint stands."""
        trainer = self.trainer
        args, state = trainer.args, trainer.state
        return {
            "epoch": state.epoch, "rows": state.global_step * args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "micro_batch": self.micro_batch, "input_tokens": state.num_input_tokens_seen, "loss_since_log": losses,
            "total_loss": trainer._total_loss_scalar, "last_logged_step": trainer._globalstep_last_logged,
            "evaluation_due": getattr(self, "evaluation_due", False),
        }  # fmt: skip

    def _upload(self, directory):
        if not self.uploads:
            return
        self.uploads.retry_failed()
        self.uploads.submit(directory, directory.name)
        self._upload_run_files()

    def _upload_run_files(self):
        paths = {name: self.run.path / name for name in resume.RUN_FILES}
        self.uploads.submit_files({name: path for name, path in paths.items() if path.is_file()})

    def prune(self):
        """Remove the oldest beyond the limit; never the best, and none before a newer one is committed, and uploaded where that is on."""
        whole = self.run.whole_checkpoints()
        safe, failed = (self.uploads.safe(), self.uploads.failed()) if self.uploads else (set(), {})
        self.seen_safe = len(safe)
        best = Path(self.trainer.state.best_model_checkpoint or "").name
        for index, (_, path) in enumerate(whole[: -self.limit]):
            newer_is_safe = not self.uploads or any(newer.name in safe for _, newer in whole[index + 1 :])
            settled = not self.uploads or path.name in safe or path.name in failed  # not under way
            if path.name != best and newer_is_safe and settled:
                going = path.with_name(f".pruned-{path.name}")
                path.rename(going)  # in one move no checkpoint any more, whenever the removing is interrupted
                shutil.rmtree(going, ignore_errors=True)

    # The end

    def _stop(self, stop):
        """Save the last optimiser step as it was when it ended, upload it, say how to go on; ends the process."""
        trainer = self.trainer
        state = trainer.state
        say(f"{signals.requested() or 'a signal to another process'}: stopping after step {state.global_step}")
        directory = self.run.path / f"checkpoint-{state.global_step}"
        if state.global_step and not manifest.exists(directory):
            set_random_state(self.random)
            if self.clean is not None:  # the unfinished accumulation never was
                loss, state.num_input_tokens_seen, trainer.current_flos = self.clean
                trainer._tr_loss.copy_(loss)
            self.evaluation_due = stop.evaluating
            trainer._save_checkpoint(trainer.model_wrapped, None)
        if is_rank_0():
            self.run.update(status="stopped")
            whole = [path.name for _, path in self.run.whole_checkpoints()]
            if self.uploads:
                self._upload_run_files()
                self._wait()
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
        return unsafe

    def finish(self, directories=()):
        """Wait until everything is in the store: checkpoints, the run's files, and the saved models in `directories` (rank 0 only).

        Returns what uploading cost the training, {} without a store. Raises `Refusal` where something is not safe.
        """
        if not self.uploads:
            return {}
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
        return {"uploads_blocked_seconds": round(self.uploads.blocked_seconds, 4)}


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


class _Hashing:
    """A file that hashes what passes through it."""

    def __init__(self, file):
        self.file, self.checksum, self.size = file, manifest.Crc32c(), 0

    def write(self, data):
        view = memoryview(data).cast("B")
        for start in range(0, len(view), manifest.BLOCK):
            self.checksum.update(bytes(view[start : start + manifest.BLOCK]))
        self.size += len(view)
        return self.file.write(view)

    def flush(self):
        self.file.flush()


@contextmanager
def hashed_writes():
    """While inside, what `torch.save` writes to a path is hashed on its way and flushed to disk: {path: {"size", "crc32c"}}.

    These are the shards of optimiser and weights, nearly all of a large checkpoint: each rank hashes its own, from memory,
    so that the manifest says what was meant to be written and nothing is read again.
    """
    written, plainly = {}, torch.save

    def save(obj, f, *arguments, **keywords):
        if not isinstance(f, str | os.PathLike):
            return plainly(obj, f, *arguments, **keywords)
        with open(f, "wb") as file:
            hashing = _Hashing(file)
            plainly(obj, hashing, *arguments, **keywords)
            file.flush()
            os.fsync(file.fileno())
        written[os.fspath(f)] = {"size": hashing.size, "crc32c": hashing.checksum.text()}
        return None

    torch.save = save
    try:
        yield written
    finally:
        torch.save = plainly


def optimizer_name(optimizer):
    """Where its class is defined, below what accelerate and DeepSpeed wrap around it: "torch.optim.adamw.AdamW"."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def gather(value):
    """[`value` of rank 0, of rank 1, …] in every rank."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [value]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def is_disk_full(error):
    """True where this error, or one that led to it, is a full disk or an exceeded quota, in whatever words a library puts it."""
    while error is not None:
        if any(words in str(error) for words in ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")):
            return True
        error = error.__cause__ or error.__context__
    return False

"""Loading a checkpoint into a Trainer: also what another number of ranks wrote, and the best one at the end, verified first."""

import shutil
from pathlib import Path

import torch
from transformers import TrainerState

from common import launch, manifest, zero
from common.log import is_rank_0, warn
from common.run_directory import step_of


class Loading:
    """Takes the place of the trainer's `_load_best_model`. run: RunDirectory."""

    def __init__(self, trainer, run):
        self.trainer, self.run = trainer, run
        self.copy = None  # regrouped for these ranks, to be removed
        self.best_plainly, trainer._load_best_model = trainer._load_best_model, self.best

    def path_for(self, checkpoint):
        """The path for `trainer.train`: of what another number of ranks wrote, a copy that these can read."""
        if checkpoint is None or manifest.read(checkpoint)["world_size"] == self.trainer.args.world_size:
            return str(checkpoint) if checkpoint else None
        config = self.trainer.accelerator.state.deepspeed_plugin.deepspeed_config
        config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": True}
        self.copy = launch.rank_0_decides(lambda: zero.regroup(checkpoint, self.trainer.args.world_size))
        return str(self.copy)

    def loaded(self):
        """To be called when weights and optimiser are loaded: from here on DeepSpeed reads its ordinary checkpoints again."""
        if self.copy is None:
            return
        engine = self.trainer.model_wrapped
        engine._config.load_universal_checkpoint = False
        for state in engine.optimizer.optimizer.state.values():  # under ZeRO-3 one tensor is shared and would count double
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()

    def done(self):
        """To be called when nothing of the checkpoint is needed any more, the random state included."""
        if self.copy is None:
            return
        launch.wait_for_all()
        if is_rank_0():
            shutil.rmtree(self.copy, ignore_errors=True)
        self.copy = None

    def find_best(self, state):
        """Let `state` (TrainerState) name the best checkpoint where it is now: the run may have moved, or come from a store."""
        best = self.run.path / f"checkpoint-{state.best_global_step}"
        if state.best_global_step and launch.rank_0_decides(lambda: manifest.exists(best)):
            state.best_model_checkpoint = str(best)
        elif state.best_global_step:
            warn(f"{best.name}, the best one so far, is not here any more; the best of what comes now will be the final model")
            state.best_global_step = state.best_model_checkpoint = state.best_metric = None

    def best(self):
        """Load the checkpoint with the lowest held-out loss of those that are whole; none where no other is than the last."""
        state = self.trainer.state
        path = launch.rank_0_decides(self._best_that_is_whole)
        if path is None:
            warn("no checkpoint with a held-out loss is whole; the final model is the last one trained")
        elif manifest.read(path)["world_size"] != self.trainer.args.world_size:
            engine, copy = self.trainer.model_wrapped, self.path_for(path)
            engine._config.load_universal_checkpoint = True
            engine.load_checkpoint(copy, load_module_strict=False, load_optimizer_states=True, load_lr_scheduler_states=False)
            self.loaded()
            self.done()
        else:
            state.best_model_checkpoint = str(path)
            self.best_plainly()

    def _best_that_is_whole(self):
        """The path of the best checkpoint that verifies, which `state` then names; what does not is set aside. None without one."""
        state = self.trainer.state
        losses = {e["step"]: e["eval_loss"] for e in state.log_history if "eval_loss" in e}
        saved = sorted((losses[step], step, path) for step, path in self.run.whole_checkpoints() if step in losses)
        for loss, step, path in sorted(saved, key=lambda found: found[1] != state.best_global_step):  # the one so called first
            problems = manifest.verify(path)
            if not problems:
                state.best_metric, state.best_global_step = loss, step
                return path
            aside = self.run.set_aside(path, "damaged")
            warn(f"{path.name} is not as it was written ({problems[0]}); it is now {aside.name}, and another one is the best")
        return None

    def end(self, checkpoint):
        """Load the end of a run that `checkpoint` is: its best checkpoint where that is wanted, else itself."""
        trainer = self.trainer
        trainer.state = TrainerState.load_from_json(checkpoint / "trainer_state.json")
        path = launch.rank_0_decides(self._best_that_is_whole) if trainer.args.load_best_model_at_end else None
        trainer.state.best_model_checkpoint = str(path) if path else None
        trainer._load_from_checkpoint(str(path or checkpoint))
        return step_of(Path(path or checkpoint))

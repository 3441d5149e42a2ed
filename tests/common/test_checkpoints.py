"""Checkpoints of a training: what a save leaves, what is pruned and when, and what is not there and cannot be the best."""

import json
import os
import re
import shutil
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from example_checkpoints import contents, flip
from example_training import CONSTANTS, training
from user_commands import ROOT

from common import checkpoints, hardware, manifest, resume
from common.refusal import Refusal
from common.run_directory import RunDirectory, read_json

pytestmark = pytest.mark.usefixtures("said")


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.begin(CONSTANTS, command="python example.py")
    return run


def steps(run):
    return [step for step, _ in run.whole_checkpoints()]


def save(kept, step, loss=None):
    """Save as of `step`, after an evaluation with `loss`."""
    trainer = kept.trainer
    trainer.state.global_step = step
    if loss is not None:
        trainer.state.log_history.append({"step": step, "eval_loss": loss})
        trainer._determine_best_metric({"eval_loss": loss}, None)
    trainer._save_checkpoint(trainer.model, None)


@pytest.fixture
def keeping(run):
    """A trainer that took one step, as a function of the options of `Checkpoints`; nothing is saved yet."""

    def make(**options):
        trainer, kept = training(run, max_steps=1, **options)
        trainer.args.eval_strategy, trainer.args.load_best_model_at_end = "no", False
        trainer.args.save_strategy = "no"
        trainer.train()
        trainer.args.save_strategy = "steps"
        shutil.rmtree(run.path / "checkpoint-1", ignore_errors=True)
        return kept

    return make


def best(kept):
    state = kept.trainer.state
    return state.best_global_step, state.best_metric, os.path.basename(state.best_model_checkpoint or "")


def gone(run):
    """Wait until what was pruned is removed, which a thread does."""
    end = time.monotonic() + 20
    while found := list(run.path.glob(".pruned-*")):
        assert time.monotonic() < end, found
        time.sleep(0.01)


# a save


def test_what_a_save_leaves(run, keeping):
    kept = keeping()
    save(kept, 4, 0.5)
    checkpoint = run.path / "checkpoint-4"
    found = manifest.read(checkpoint)
    assert manifest.verify(checkpoint) == [] and set(found["files"]) == set(contents(checkpoint)) - {manifest.NAME}
    names = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "constants.json"}
    assert names <= set(found["files"])
    assert (found["step"], found["world_size"], found["sharded"], found["data_key"]) == (4, 1, False, "key")
    assert found["constants"] == read_json(checkpoint / "constants.json") == CONSTANTS
    assert found["optimizer"] == "torch.optim.adamw.AdamW"
    position = found["position"]
    assert (position["micro_batch"], position["evaluation_due"], len(position["loss_since_log"])) == (2, False, 1)
    assert resume.micro_batch(checkpoint, 16) == 2


def test_what_was_hashed_in_memory_is_what_is_noticed(run, keeping, monkeypatch):
    """A disk that keeps something else than was written is found out, since the file is not what is hashed."""
    kept = keeping()
    plainly = kept.save_plainly

    def then_flip(model, trial):
        plainly(model, trial)
        flip(run.path / "checkpoint-4" / "optimizer.pt", 700)

    kept.save_plainly = then_flip
    save(kept, 4)
    assert manifest.verify(run.path / "checkpoint-4") == ["optimizer.pt has another checksum than when it was written"]


def test_a_half_saved_directory_in_the_way_is_set_aside(run, keeping):
    kept = keeping()
    (run.path / "checkpoint-4").mkdir()
    (run.path / "checkpoint-4" / "model.safetensors").write_text("half")
    save(kept, 4)
    (aside,) = run.path.glob("unfinished-checkpoint-4-*")
    assert contents(aside) == {"model.safetensors": b"half"} and manifest.verify(run.path / "checkpoint-4") == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_checkpoint_and_not_the_best(run, keeping, said, value):
    kept = keeping()
    save(kept, 4, 0.5)
    with torch.no_grad():
        kept.trainer.model.layers[0].weight[0, 0] = value
    save(kept, 8, 0.4)
    assert steps(run) == [4] and best(kept) == (4, 0.5, "checkpoint-4")
    (aside,) = run.path.glob("not-finite-checkpoint-8-*")
    assert (aside / "model.safetensors").is_file() and not manifest.exists(aside)
    assert said == [f"checkpoint-8 holds NaN or infinite numbers; it is now {aside.name} and nothing resumes from it"]


# pruning


def test_the_newest_and_the_best_stay(run, keeping):
    kept = keeping(limit=2)
    for step, loss in ((1, 0.9), (2, 0.1), (3, 0.8), (4, 0.7), (5, 0.6)):
        save(kept, step, loss)
    assert steps(run) == [2, 4, 5] and best(kept)[2] == "checkpoint-2"
    save(kept, 6, 0.05)
    assert steps(run) == [5, 6], "a better one frees the old best"
    gone(run)
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoint-5", "checkpoint-6", "constants.json", "logs", "run.json"]


def test_nothing_goes_before_the_newer_one_is_committed(run, keeping, monkeypatch):
    kept = keeping(limit=1)
    save(kept, 1)
    there = []
    write = manifest.write
    monkeypatch.setattr(manifest, "write", lambda *a, **k: (there.append(steps(run)), write(*a, **k), there.append(steps(run))))
    save(kept, 2)
    assert there == [[1], [1, 2]] and steps(run) == [2]
    kept.save_plainly = lambda model, trial: (_ for _ in ()).throw(RuntimeError("it broke"))
    with pytest.raises(RuntimeError):
        save(kept, 3)
    assert steps(run) == [2]


def test_what_an_interrupted_pruning_left_goes(run, keeping):
    (run.path / ".pruned-checkpoint-1").mkdir()
    (run.path / ".pruned-checkpoint-1" / "optimizer.pt").write_bytes(b"large")
    save(keeping(), 2)
    gone(run)


@contextmanager
def held_up(store):
    """A store, a directory, that takes nothing while the block runs."""
    store.mkdir(parents=True, exist_ok=True)
    store.rename(store.with_name("away"))
    store.write_text("a file where the directory was")
    try:
        yield
    finally:
        store.unlink()
        store.with_name("away").rename(store)


def test_with_a_store_nothing_goes_before_a_newer_one_is_verified_there(run, keeping, tmp_path):
    store = tmp_path / "store"
    kept = keeping(limit=1, uri=f"file://{store}")
    with held_up(store):
        for step in (1, 2, 3):
            save(kept, step)
        kept.copies.uploads.wait(timeout=0.5)
        kept.copies.prune(kept.trainer.state.best_model_checkpoint)
        assert steps(run) == [1, 2, 3], "none is safe"
    kept.copies.uploads.retry_failed()
    assert kept.copies.uploads.wait() == {}
    for step in (1, 2, 3):
        assert contents(store / "run" / f"checkpoint-{step}") == contents(run.path / f"checkpoint-{step}")
    kept.copies.prune(kept.trainer.state.best_model_checkpoint)
    assert steps(run) == [3]
    kept.finish()
    assert 0 < read_json(run.run)["uploads_blocked_seconds"] < 5
    assert read_json(store / "run" / "run.json")["run_id"] == read_json(run.run)["run_id"]


@pytest.mark.parametrize("keep_local", [True, False])
def test_keep_local_says_what_stays_of_what_is_in_the_store(run, keeping, tmp_path, keep_local):
    kept = keeping(limit=3, uri=f"file://{tmp_path}/store", keep_local=keep_local)
    for step, loss in ((1, 0.2), (2, 0.5), (3, 0.4)):
        save(kept, step, loss)
    assert kept.copies.uploads.wait() == {}
    kept.copies.prune(kept.trainer.state.best_model_checkpoint)
    assert steps(run) == ([1, 2, 3] if keep_local else [1, 3])
    assert sorted(p.name for p in (tmp_path / "store" / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    kept.finish()


def damaged_before_its_upload(kept, step):
    """Save as of `step`; before it is uploaded a bit of it flips, and no retry helps."""
    plainly = kept.copies.committed
    kept.copies.committed = lambda checkpoint, best: (flip(checkpoint / "optimizer.pt", 700), plainly(checkpoint, best))
    save(kept, step)
    kept.copies.committed = plainly


def test_what_could_not_be_stored_stays_although_keep_local_is_off(run, keeping, tmp_path):
    """Within SAVE_TOTAL_LIMIT; beyond, a newer one that is safe is enough, and what is gone is not asked for at the end."""
    kept = keeping(limit=2, uri=f"file://{tmp_path}/store", keep_local=False)
    save(kept, 1)
    damaged_before_its_upload(kept, 2)
    save(kept, 3)
    assert set(kept.copies.uploads.wait()) == {"checkpoint-2"}
    kept.copies.prune(kept.trainer.state.best_model_checkpoint)
    assert steps(run) == [2, 3]
    save(kept, 4)
    kept.copies.uploads.wait()
    kept.copies.prune(kept.trainer.state.best_model_checkpoint)
    assert steps(run) == [4]
    kept.finish()


def test_a_failed_upload_is_said_at_the_end_as_a_refusal(run, keeping, tmp_path):
    kept = keeping(uri=f"file://{tmp_path}/store")
    save(kept, 1)
    damaged_before_its_upload(kept, 2)
    run.final_model.mkdir()
    (run.final_model / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(Refusal) as refused:
        kept.finish([run.final_model])
    sentence = str(refused.value)
    assert f"everything is in {run.path}, but not all of it is in the store (checkpoint-2: " in sentence
    assert f"python example.py --resume-from-checkpoint {run.path}/checkpoint-2 trains nothing more and uploads the rest" in sentence
    assert steps(run) == [1, 2] and not (tmp_path / "store" / "run" / "checkpoint-2" / manifest.NAME).exists()
    assert contents(tmp_path / "store" / "run" / "final_model") == contents(run.final_model)


def test_a_resumed_run_uploads_what_the_store_lacks(run, keeping, tmp_path):
    kept = keeping()
    save(kept, 1)
    uri = f"file://{tmp_path}/store"
    trainer, kept = training(run, max_steps=1, uri=uri, load_best_model_at_end=False)
    kept.train(run.path / "checkpoint-1", 1)
    kept.finish()
    assert contents(tmp_path / "store" / "run" / "checkpoint-1") == contents(run.path / "checkpoint-1")


# no room


def test_without_room_training_goes_on_and_the_unsaved_one_is_not_the_best(run, keeping, said, monkeypatch):
    kept = keeping()
    save(kept, 1, 0.9)
    monkeypatch.setattr(hardware, "free_disk_gb", lambda path: 1e-9)
    save(kept, 2, 0.1)
    assert steps(run) == [1] and best(kept) == (1, 0.9, "checkpoint-1") and not (run.path / "checkpoint-2").exists()
    assert re.match(r"checkpoint-2 was not saved: it needs \S+ MB and the disk of .* training goes on and the next save tries", said[0])
    monkeypatch.undo()
    save(kept, 3, 0.5)
    assert steps(run) == [1, 3] and best(kept) == (3, 0.5, "checkpoint-3")


def test_the_first_one_that_finds_no_room_leaves_no_best(run, keeping, monkeypatch):
    kept = keeping()
    broken = OSError(28, "No space left on device")
    monkeypatch.setattr(kept, "save_plainly", lambda model, trial: (_ for _ in ()).throw(broken))
    save(kept, 2, 0.1)
    assert steps(run) == [] and best(kept) == (None, None, "")
    monkeypatch.undo()
    save(kept, 3, 0.5)
    assert best(kept) == (3, 0.5, "checkpoint-3")


FULL = """
import json, os, sys
from pathlib import Path
from example_checkpoints import contents
from example_training import CONSTANTS, training
from test_checkpoints import best, save, steps
from common import log, manifest
from common.run_directory import RunDirectory
import torch

torch.set_num_threads(1)
home = Path(sys.argv[1])
run = RunDirectory(home / "run")
run.begin(CONSTANTS, command="python example.py")
trainer, kept = training(run, width=4000, limit=9, max_steps=1, eval_strategy="no", load_best_model_at_end=False, save_strategy="no")
trainer.train()
trainer.args.save_strategy = "steps"
save(kept, 1, 0.9)
first, size = contents(run.path / "checkpoint-1"), sum(map(len, contents(run.path / "checkpoint-1").values()))
tried = []
for number, share in enumerate((0.02, 0.1, 0.25, 0.4, 0.6, 0.8, 0.99, 1.05), start=2):
    disk = os.statvfs(home)
    filler = home / "filler"
    filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize - int(share * size)))
    before = log.warnings[:]
    kept._has_room = lambda directory: True  # as where another process fills the disk while this one saves
    save(kept, number, 0.5 - number / 100)
    del kept._has_room
    tried.append({"share": share, "steps": steps(run), "best": best(kept), "said": log.warnings[len(before):],
                  "left": sorted(p.name for p in run.path.glob("*checkpoint-*")), "first": contents(run.path / "checkpoint-1") == first,
                  "wrong": [p for _, path in run.whole_checkpoints() for p in manifest.verify(path)]})
    filler.unlink()
save(kept, 20, 0.2)
print("RESULT", json.dumps({"tried": tried, "steps": steps(run), "wrong": manifest.verify(run.path / "checkpoint-20")}))
"""


def test_a_disk_that_fills_up_in_the_middle_of_a_save(tmp_path, full_disk):
    """At every stage of it: while the weights are written, the optimiser, the small files, the manifest."""
    home = full_disk(8)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests/common:{ROOT}/tests"}
    done = home.run([sys.executable, "-c", FULL, str(home.path)], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.rsplit("RESULT ", 1)[1])
    failed = [facts for facts in found["tried"] if facts["said"]]
    assert len(failed) >= 6
    for number, facts in enumerate(found["tried"], start=2):
        assert facts["first"] and facts["wrong"] == [], facts
        if facts["said"]:
            assert facts["steps"] == [1] and facts["left"] == ["checkpoint-1"] and facts["best"] == [1, 0.9, "checkpoint-1"], facts
            sentence = f"checkpoint-{number} was not saved: the disk of {home.path}/run is full; the newest whole one is checkpoint-1"
            assert facts["said"][0].startswith(sentence)
    assert found["steps"][-1] == 20 and found["wrong"] == []


def test_the_class_of_an_optimiser_is_found_below_its_wrappers():
    plain = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    wrapped = type("Wrapper", (), {"optimizer": type("Inner", (), {"optimizer": plain})()})()
    assert checkpoints.optimizer_name(wrapped) == checkpoints.optimizer_name(plain) == "torch.optim.adamw.AdamW"


def test_a_resume_saves_and_evaluates_at_the_intervals_of_now(run):
    trainer, kept = training(run, logging_steps=4)
    trainer.args.max_steps = 8
    kept.train(None, 8)
    trainer, kept = training(run, save_steps=3, eval_steps=3, logging_steps=1)
    run.set_aside_newer(run.path / "checkpoint-4")
    kept.train(run.path / "checkpoint-4", 8)
    assert steps(run) == [4, 6, 8]
    history = trainer.state.log_history
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [2, 4, 6, 8]
    assert [entry["step"] for entry in history if "loss" in entry] == [4, 5, 6, 7, 8]

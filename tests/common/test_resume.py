"""What a start goes on from: the newest checkpoint that is whole, here or in a store, of the right run, with constants that fit."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from example_checkpoints import CONSTANTS, contents, flip, run_id, store_run, write_checkpoint, write_run

from common import manifest, remote_runs, resume, storage, versions
from common.refusal import Refusal
from common.resume import open_run
from common.run_directory import RunDirectory, read_json

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("said")


def names(path, prefix):
    """What in the run directory begins with `prefix`, without the time at its end."""
    return sorted(re.sub(r"-\d{8}-\d{6}x*$", "", p.name) for p in path.glob(f"{prefix}*"))


# which run


def test_a_fresh_run_takes_a_name_of_its_own(tmp_path):
    found = []
    for _ in range(3):
        run, checkpoint = open_run(tmp_path, "qlora")
        assert checkpoint is None
        run.begin({})
        found.append(run.path.name)
    assert found == ["qlora", "qlora-2", "qlora-3"]
    assert open_run(tmp_path, "qlora_tiny")[0].path.name == "qlora_tiny"
    assert open_run(tmp_path, "qlor")[0].path.name == "qlor"


def test_an_empty_directory_and_a_file_of_that_name(tmp_path):
    (tmp_path / "qlora").mkdir()
    assert open_run(tmp_path, "qlora")[0].path.name == "qlora"
    (tmp_path / "other").write_text("a file")
    assert open_run(tmp_path, "other")[0].path.name == "other-2"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a b", "a\nb"])
def test_odd_names(tmp_path, name):
    with pytest.raises(Refusal, match="RUN_NAME is"):
        open_run(tmp_path, name)


def test_auto_takes_the_newest_whole_checkpoint_of_the_newest_run(tmp_path):
    write_run(tmp_path / "qlora", steps=(5, 900), time=1000)
    write_run(tmp_path / "qlora-2", steps=(9, 100), half=(200,), time=3000)
    write_run(tmp_path / "qlora-3", steps=(1,), time=2000)
    write_run(tmp_path / "qlora_tiny", steps=(7,), time=9000)
    assert resume.peek(tmp_path, "qlora", "auto")["step"] == 100
    run, checkpoint = open_run(tmp_path, "qlora", "auto")
    assert run.path == tmp_path / "qlora-2"
    assert checkpoint == tmp_path / "qlora-2" / "checkpoint-100"


def test_auto_without_anything_starts_afresh(tmp_path):
    assert resume.peek(tmp_path, "qlora", "auto") is None
    run, checkpoint = open_run(tmp_path, "qlora", "auto")
    assert (run.path, checkpoint) == (tmp_path / "qlora", None)
    write_run(tmp_path / "qlora", half=(5,))
    assert open_run(tmp_path, "qlora", "auto")[1] is None


def test_a_directory_that_was_given_is_taken_or_refused(tmp_path, uri):
    write_run(tmp_path / "faq-2", steps=(9,))
    run, checkpoint = open_run(tmp_path, "faq", exact=True)
    assert (run.path, checkpoint) == (tmp_path / "faq", None), "a neighbour's number says nothing"
    run.begin({})
    with pytest.raises(Refusal, match=r"OUTPUT_DIR .*/faq is another run's, or its name is taken in the store"):
        open_run(tmp_path, "faq", exact=True)
    assert resume.peek(tmp_path, "faq", "auto", exact=True) is None and open_run(tmp_path, "faq", "auto", exact=True)[0].path == run.path
    store_run(uri, write_run(tmp_path / "there" / "faq", steps=(3,)))
    with pytest.raises(Refusal, match="its name is taken in the store"):
        open_run(tmp_path / "elsewhere", "faq", uri=uri, exact=True)
    assert open_run(tmp_path / "again", "faq", "auto", uri, exact=True)[1].name == "checkpoint-3"
    with pytest.raises(Refusal, match="RESUME_FROM_CHECKPOINT is of the run faq, and OUTPUT_DIR is .*; a run keeps its name"):
        resume.check("mine", f"{uri}/faq", check_store=False, directory=tmp_path / "mine")


def test_auto_leaves_alone_what_was_asked_for_under_another_name(tmp_path, uri):
    """abl-2024 was somebody's choice; abl-2 is the second run of abl; abl-3 is of a time when that was not written down."""
    for name, asked, time in (("abl-3", None, 1000), ("abl-2", "abl", 2000), ("abl-2024", "abl-2024", 3000)):
        run = write_run(tmp_path / "here" / name, steps=(time,))
        run.update(started=f"{time}", **({"asked_name": asked} if asked else {}))
        store_run(uri, run)
        os.utime(run.run, (time, time))
    taken = {name: open_run(tmp_path / "here", name, "auto")[0].path.name for name in ("abl", "abl-2", "abl-2024", "abl-3")}
    assert taken == {"abl": "abl-2", "abl-2": "abl-2", "abl-2024": "abl-2024", "abl-3": "abl-3"}
    assert open_run(tmp_path / "empty", "abl", "auto", uri)[0].path.name == "abl-2"
    (tmp_path / "here" / "abl-3" / "run.json").write_text("{")
    assert open_run(tmp_path / "here", "abl", "auto")[0].path.name == "abl-3", "damaged, written last, and its checkpoint is whole"


def test_a_fresh_run_remembers_the_name_that_was_asked_for(tmp_path):
    for expected in ("abl", "abl-2"):
        run, _ = open_run(tmp_path, "abl")
        run.begin({})
        assert (run.path.name, read_json(run.run)["asked_name"]) == (expected, "abl")
        assert not run.claim.exists()


def test_what_is_looked_at_before_the_start_skips_what_cannot_be_read(tmp_path, uri):
    run = write_run(tmp_path / "here" / "qlora", steps=(5, 9, 12))
    store_run(uri, run)
    flip(run.path / "checkpoint-12" / manifest.NAME, 40)
    assert resume.peek(tmp_path / "here", "qlora", "auto")["step"] == 9
    flip(tmp_path / "store" / "qlora" / "checkpoint-12" / manifest.NAME, 40)
    for resumed in ("auto", f"{uri}/qlora"):
        assert resume.peek(tmp_path / "empty", "qlora", resumed, uri)["step"] == 9
    for step in (5, 9):
        flip(run.path / f"checkpoint-{step}" / manifest.NAME, 40)
    assert resume.peek(tmp_path / "here", "qlora", "auto") is None
    assert resume.peek(tmp_path / "here", "qlora", "auto", uri)["step"] == 9
    with pytest.raises(Refusal, match="checkpoint-12 does not have its own checksum|checkpoint-12 cannot be read"):
        resume.peek(tmp_path / "here", "qlora", f"{uri}/qlora/checkpoint-12")


def test_a_named_checkpoint_belongs_to_the_run_above_it(tmp_path):
    write_run(tmp_path / "elsewhere", steps=(5, 9))
    run, checkpoint = open_run(tmp_path / "outputs", "qlora", str(tmp_path / "elsewhere" / "checkpoint-5"))
    assert (run.path, checkpoint) == (tmp_path / "elsewhere", tmp_path / "elsewhere" / "checkpoint-5")


def test_checkpoints_that_are_none(tmp_path):
    run = write_run(tmp_path / "run", steps=(5,), half=(6,))
    (run.path / "checkpoint-7").write_text("a file")
    for path, why in [
        (tmp_path / "no" / "checkpoint-5", "does not exist"),
        (run.path, "named checkpoint-N"),
        (run.path / "checkpoint-6", "has no manifest.json, which is written last: its save was interrupted"),
        (run.path / "checkpoint-7", "does not exist"),
    ]:
        for call in (partial(open_run, tmp_path, "qlora"), partial(resume.check, "qlora")):
            with pytest.raises(Refusal) as refused:
                call(str(path))
            assert str(path) in str(refused.value) and why in str(refused.value)


HOLDER = """
import sys, time
from common import resume
run, checkpoint = resume.open_run(sys.argv[1], "qlora", "auto")
print(checkpoint.name, flush=True)
time.sleep(60)
"""


def test_a_run_that_another_process_goes_on_with_is_refused_until_that_was_killed(tmp_path):
    run = write_run(tmp_path / "qlora", steps=(5,))
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "checkpoint-5\n"
        write_checkpoint(run.path / "checkpoint-9", whole=False)  # the other one saves
        for what in ("auto", str(run.path / "checkpoint-5")):
            with pytest.raises(Refusal, match="in use by another process, which may still be saving"):
                open_run(tmp_path, "qlora", what)
        assert names(run.path, "") == [".lock", "checkpoint-5", "checkpoint-9", "constants.json", "logs", "run.json"], "nothing was touched"
        assert open_run(tmp_path, "qlora")[0].path.name == "qlora-2"
    finally:
        holder.kill()
        holder.wait()
    assert open_run(tmp_path, "qlora", "auto")[1] == run.path / "checkpoint-5"


STARTER = HOLDER.replace(', "auto")', ")").replace("checkpoint.name", "run.path.name")


def test_a_second_start_before_the_first_has_begun_takes_the_next_name(tmp_path):
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert starter.stdout.readline() == "qlora\n"
        run, _ = open_run(tmp_path, "qlora")
        assert run.path.name == "qlora-2"
    finally:
        starter.kill()
        starter.wait()


# damage


def test_what_is_not_whole_is_renamed_and_says_why(tmp_path, said):
    run = write_run(tmp_path / "qlora", steps=(5, 9, 12, 16), half=(20,))
    flip(run.path / "checkpoint-9" / "optimizer.pt", 1500)  # older than what is taken: nobody asks
    flip(run.path / "checkpoint-16" / "optimizer.pt", 1500)
    (run.path / "checkpoint-16" / "adapter_model.safetensors").unlink()
    before = {step: contents(run.path / f"checkpoint-{step}") for step in (16, 20)}
    assert open_run(tmp_path, "qlora", "auto")[1] == run.path / "checkpoint-12"
    whole = ["checkpoint-12", "checkpoint-5", "checkpoint-9"]
    assert names(run.path, "*checkpoint-") == [*whole, "damaged-checkpoint-16", "unfinished-checkpoint-20"]
    (damaged,), (unfinished,) = run.path.glob("damaged-*"), run.path.glob("unfinished-*")
    assert (contents(damaged), contents(unfinished)) == (before[16], before[20]), "nothing is deleted"
    assert "the save of step 20 was interrupted" in said[0] and unfinished.name in said[0]
    assert "adapter_model.safetensors is missing; optimizer.pt has another checksum than when it was written" in said[1]
    assert damaged.name in said[1]


def test_a_named_checkpoint_that_is_damaged_is_refused_and_set_aside(tmp_path):
    run = write_run(tmp_path / "qlora", steps=(5, 9))
    flip(run.path / "checkpoint-9" / "adapter_model.safetensors", 0, bit=7)
    with pytest.raises(Refusal) as refused:
        open_run(tmp_path, "qlora", str(run.path / "checkpoint-9"))
    (damaged,) = run.path.glob("damaged-checkpoint-9-*")
    sentence = str(refused.value)
    assert "checkpoint-9 is not as it was written (adapter_model.safetensors has another checksum than when it was written)" in sentence
    assert f"it is now {damaged.name}" in sentence
    assert open_run(tmp_path, "qlora", "auto")[1] == run.path / "checkpoint-5"


def test_every_damage_to_a_real_checkpoint_is_found_and_the_older_one_taken(tiny_run, tmp_path, capsys):
    """First, middle and last byte flipped, cut by one byte, emptied, deleted: of every file that training writes."""
    run = RunDirectory(tmp_path / "qlora")
    steps = [step for step, _ in tiny_run.run.whole_checkpoints()][-2:]
    for step in steps:
        shutil.copytree(tiny_run.run.path / f"checkpoint-{step}", run.path / f"checkpoint-{step}")
    shutil.copy(tiny_run.run.run, run.run)
    older, newest = (run.path / f"checkpoint-{step}" for step in steps)
    files = [*manifest.files_in(newest), manifest.NAME]
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < set(files)
    assert manifest.verify(newest) == []
    tried = 0
    for name in files:
        whole = (newest / name).read_bytes()
        middle, last = len(whole) // 2, len(whole) - 1
        for damage in (
            *(partial(flip, offset=offset, bit=bit) for offset, bit in ((0, 0), (middle, 3), (last, 7))),
            *(partial(os.truncate, length=length) for length in (last, 0)),
            Path.unlink,
        ):
            damage(newest / name)
            problems = manifest.verify(newest)
            assert len(problems) == 1 and name in problems[0], (name, damage)
            assert open_run(tmp_path, "qlora", "auto") == (run, older), (name, damage)
            (aside,) = [p for p in run.path.iterdir() if re.match("(damaged|unfinished)-checkpoint", p.name)]
            assert aside.name.startswith("unfinished" if name == manifest.NAME and damage is Path.unlink else "damaged")
            aside.rename(newest)
            (newest / name).write_bytes(whole)
            tried += 1
    assert tried == 6 * len(files) and manifest.verify(newest) == []
    assert open_run(tmp_path, "qlora", "auto") == (run, newest)
    capsys.readouterr()


# the store


def test_a_fresh_run_takes_a_name_that_the_store_does_not_have_either(tmp_path, uri):
    other = write_run(tmp_path / "elsewhere" / "qlora", steps=(5,))
    store = store_run(uri, other)
    before = contents(tmp_path / "store")
    run, checkpoint = open_run(tmp_path / "here", "qlora", uri=uri)
    assert (run.path.name, checkpoint) == ("qlora-2", None)
    after = contents(tmp_path / "store")
    claim = json.loads(after.pop("qlora-2/run.json"))
    assert after == before and store.names() == ["qlora", "qlora-2"]
    run.begin({})
    assert run_id(run) == claim["run_id"] != run_id(other)
    remote_runs.require_same(store, run)


def test_two_machines_that_start_at_once_take_two_names(tmp_path, uri, monkeypatch):
    """The second asks what there is before the first has written anything there."""
    store = storage.open_store(uri)
    first, _ = open_run(tmp_path / "one", "qlora", uri=uri)
    monkeypatch.setattr(storage.Store, "names", lambda *_: [])
    monkeypatch.setattr(storage.Store, "read", blind_once(storage.Store.read))
    second, _ = open_run(tmp_path / "two", "qlora", uri=uri)
    assert [first.path, second.path] == [tmp_path / "one" / "qlora", tmp_path / "two" / "qlora-2"]
    for run in (first, second):
        run.begin({})
        assert remote_runs.facts(store, run.path.name)["run_id"] == run_id(run)


def blind_once(read):
    """`read`, which finds nothing the first time: the other machine is about to write."""
    seen = []
    return lambda store, key: read(store, key) if seen else seen.append(key)


def test_a_start_that_did_not_come_to_training_keeps_its_name_for_the_next(tmp_path, uri):
    for _ in range(2):
        open_run(tmp_path / "here", "qlora", uri=uri)
    assert storage.open_store(uri).names() == ["qlora"]
    assert open_run(tmp_path / "there", "qlora", uri=uri)[0].path.name == "qlora-2", "to other machines it is taken"
    run, checkpoint = open_run(tmp_path / "elsewhere", "qlora", "auto", uri)
    assert (run.path.name, checkpoint) == ("qlora-3", None), "there is nothing to go on from under a name that was only taken"


def test_a_taken_name_does_not_hide_the_run_that_has_checkpoints(tmp_path, uri):
    store_run(uri, write_run(tmp_path / "elsewhere" / "qlora", steps=(5,)))
    assert open_run(tmp_path / "there", "qlora", uri=uri)[0].path.name == "qlora-2"
    assert open_run(tmp_path / "here", "qlora", "auto", uri)[1] == tmp_path / "here" / "qlora" / "checkpoint-5"


def copy_run(run, path, *steps):
    """The run as another machine has it, with the checkpoints of `steps` only."""
    shutil.copytree(run.path, path, ignore=lambda _, found: [name for name in found if name.startswith("checkpoint-")])
    for step in steps:
        shutil.copytree(run.path / f"checkpoint-{step}", path / f"checkpoint-{step}")
    return RunDirectory(path)


def test_what_the_store_has_newer_comes_here(tmp_path, uri):
    run = write_run(tmp_path / "elsewhere" / "qlora", steps=(5, 9))
    store_run(uri, run)
    copy_run(run, tmp_path / "here" / "qlora", 5)
    found, checkpoint = open_run(tmp_path / "here", "qlora", "auto", uri)
    assert checkpoint == tmp_path / "here" / "qlora" / "checkpoint-9" and run_id(found) == run_id(run)
    assert contents(checkpoint) == contents(run.path / "checkpoint-9")


def test_of_a_damaged_checkpoint_the_store_has_it_whole(tmp_path, uri, said):
    run = write_run(tmp_path / "here" / "qlora", steps=(5, 9))
    store_run(uri, run)
    before = contents(run.path / "checkpoint-9")
    flip(run.path / "checkpoint-9" / "optimizer.pt", 100)
    assert open_run(tmp_path / "here", "qlora", "auto", uri) == (run, run.path / "checkpoint-9")
    assert contents(run.path / "checkpoint-9") == before and names(run.path, "damaged-") == ["damaged-checkpoint-9"]


def test_what_is_newer_here_stays(tmp_path, uri, said):
    run = write_run(tmp_path / "here" / "qlora", steps=(5,))
    store_run(uri, run)
    shutil.rmtree(run.path / "checkpoint-5")  # an older one would only be in the way
    write_checkpoint(run.path / "checkpoint-9")
    before = contents(run.path)
    assert open_run(tmp_path / "here", "qlora", "auto", uri) == (run, run.path / "checkpoint-9")
    assert contents(run.path) == {**before, ".lock": b""} and said == []


def test_an_empty_disk_gets_the_newest_run_of_this_name_with_its_best_checkpoint(tmp_path, uri):
    for number, name in enumerate(("qlora", "qlora-2", "qlora_tiny")):
        run = write_run(tmp_path / "elsewhere" / name, steps=(5, 9, 12), best=5)
        run.update(started=f"2026-01-01T00:00:0{number}+00:00")
        run.validation.write_text('{"row": 1}\n')
        run.metrics.write_text('{"step": 5}\n')
        store_run(uri, run)
    assert resume.peek(tmp_path / "here", "qlora", "auto", uri)["step"] == 12
    there = RunDirectory(tmp_path / "elsewhere" / "qlora-2")
    run, checkpoint = open_run(tmp_path / "here", "qlora", "auto", uri)
    assert (run.path, checkpoint.name, run_id(run)) == (tmp_path / "here" / "qlora-2", "checkpoint-12", run_id(there))
    assert [step for step, _ in run.whole_checkpoints()] == [5, 12]
    expected = {name: data for name, data in contents(there.path).items() if not name.startswith("checkpoint-9/")}
    assert {**contents(run.path), ".lock": b""} == {**expected, ".lock": b""}


def test_without_anything_anywhere_auto_starts_afresh(tmp_path, uri):
    assert resume.peek(tmp_path / "here", "qlora", "auto", uri) is None
    run, checkpoint = open_run(tmp_path / "here", "qlora", "auto", uri)
    assert (run.path, checkpoint) == (tmp_path / "here" / "qlora", None)


def test_damage_in_the_store_leaves_what_is_here(tmp_path, uri, said):
    run = write_run(tmp_path / "elsewhere" / "qlora", steps=(5, 9, 12))
    store_run(uri, run)
    here = copy_run(run, tmp_path / "here" / "qlora", 9)
    flip(tmp_path / "store" / "qlora" / "checkpoint-12" / "optimizer.pt", 100)
    assert open_run(tmp_path / "here", "qlora", "auto", uri) == (here, here.path / "checkpoint-9")
    assert "checkpoint-12 could not be brought here whole" in said[0]
    write_checkpoint(here.path / "checkpoint-10")
    shutil.rmtree(here.path / "checkpoint-9")
    assert open_run(tmp_path / "here", "qlora", "auto", uri) == (here, here.path / "checkpoint-10"), "not the older 9"
    for step in (5, 9):  # then nothing there is whole
        flip(tmp_path / "store" / "qlora" / f"checkpoint-{step}" / "optimizer.pt", 100)
        shutil.rmtree(here.path / f"checkpoint-{step}", ignore_errors=True)
    assert open_run(tmp_path / "here", "qlora", "auto", uri) == (here, here.path / "checkpoint-10")
    assert "going on with checkpoint-10" in said[-1]
    shutil.rmtree(here.path / "checkpoint-10")
    with pytest.raises(Refusal, match="nothing to resume from in"):
        open_run(tmp_path / "here", "qlora", "auto", uri)


def test_another_run_of_this_name_in_the_store_is_neither_taken_nor_overwritten(tmp_path, uri):
    store_run(uri, write_run(tmp_path / "elsewhere" / "qlora", steps=(5, 100)))
    here = write_run(tmp_path / "here" / "qlora", steps=(9,))
    before = contents(here.path)
    for what in ("auto", str(here.path / "checkpoint-9")):
        with pytest.raises(Refusal, match="is another run than .* and would be overwritten; take another CHECKPOINT_URI"):
            open_run(tmp_path / "here", "qlora", what, uri)
    with pytest.raises(Refusal, match="is another run than"):
        open_run(tmp_path / "here", "qlora", f"{uri}/qlora")
    assert contents(here.path) == {**before, ".lock": b""}


def test_a_run_from_one_store_does_not_overwrite_another_run_in_a_second(tmp_path, uri):
    store_run(uri, write_run(tmp_path / "a" / "qlora", steps=(5,)))
    second = f"file://{tmp_path}/second"
    store_run(second, write_run(tmp_path / "b" / "qlora", steps=(5,)))
    with pytest.raises(Refusal, match="second/qlora is another run than"):
        open_run(tmp_path / "here", "qlora", f"{uri}/qlora", second)
    run, checkpoint = open_run(tmp_path / "here", "qlora", f"{uri}/qlora", f"file://{tmp_path}/third")
    assert checkpoint == tmp_path / "here" / "qlora" / "checkpoint-5"


def test_a_store_that_does_not_answer(tmp_path, uri, said):
    run = write_run(tmp_path / "here" / "qlora", steps=(5,))
    (tmp_path / "store" / "qlora").mkdir(parents=True)
    (tmp_path / "store" / "qlora" / "run.json").mkdir()  # reading it fails, as does reading a disk that is gone
    assert open_run(tmp_path / "here", "qlora", "auto", uri) == (run, run.path / "checkpoint-5")
    assert "whether the store has a newer checkpoint is unknown" in said[0] and "going on with checkpoint-5" in said[0]
    shutil.rmtree(run.path / "checkpoint-5")
    with pytest.raises(Refusal, match="there is no checkpoint on this disk, and what is in the store cannot be found out"):
        open_run(tmp_path / "here", "qlora", "auto", uri)


# constants


def changed(checkpoint, data_key="key", world_size=1, sharded=False, packing=False, **constants):
    return resume.changed_constants(checkpoint, {**CONSTANTS, **constants}, data_key, world_size, sharded, packing)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        *(("SEED", 42, 7), ("TRAIN_FILES", {"a.jsonl": 1.0}, {"b.jsonl": 1.0}), ("LORA_R", 16, 8), ("LEARNING_RATE", 1e-4, 5e-3)),
        ("LONG_DOCUMENTS", "shorten", "drop"),
    ],
)
def test_a_resume_with_another_split_or_shape_is_refused(tmp_path, name, old, new):
    checkpoint = write_checkpoint(tmp_path / "checkpoint-8", {name: old})
    assert changed(checkpoint, **{name: old}) == []
    with pytest.raises(Refusal) as refused:
        changed(checkpoint, **{name: new})
    assert f"was trained with {name} = {old!r}, now it is {new!r}; a resume keeps it: set it back" in str(refused.value)


def test_a_resume_says_which_constants_changed_and_which_matter(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint-8", {"SAVE_STEPS": 48, "RESUME_FROM_CHECKPOINT": None})
    again = {"RUN_NAME": "b", "RESUME_FROM_CHECKPOINT": "auto", "SAVE_STEPS": 24}
    assert changed(checkpoint, MAX_GRAD_NORM=0.3, LOAD_BEST_MODEL_AT_END=True, **again) == [
        "MAX_GRAD_NORM was 1.0 and is 0.3 from here on; the weights will not be those of a run without this change",
        "SAVE_STEPS was 48 and is 24 from here on; no step's weights depend on it, but which step becomes the final model may",
    ]
    assert changed(checkpoint, **again) == ["SAVE_STEPS was 48 and is 24 from here on; no weight depends on it"]  # the end counts
    assert changed(write_checkpoint(tmp_path / "checkpoint-9", {"OUTPUT_DIR": "a"}), OUTPUT_DIR="b") == [
        "OUTPUT_DIR was 'a' and is 'b' from here on; no weight depends on it"
    ]
    assert changed(write_checkpoint(tmp_path / "checkpoint-10", {"DATALOADER_NUM_WORKERS": 4}), DATALOADER_NUM_WORKERS=0) == [
        "DATALOADER_NUM_WORKERS was 4 and is 0 from here on; no weight depends on it"
    ]
    with pytest.raises(Refusal, match="the training files, their split, the tokenizer, its library's version or this repository's code"):
        changed(checkpoint, data_key="other key")


def test_packed_rows_and_rows_by_length_are_not_one_run(tmp_path):
    for number, (there, here) in enumerate([(True, False), (False, True)]):
        checkpoint = write_checkpoint(tmp_path / f"checkpoint-{number}", packing=there)
        assert changed(checkpoint, packing=there) == []
        with pytest.raises(Refusal, match="other rows in another order; resume on the same kind of device"):
            changed(checkpoint, packing=here)
    assert changed(write_checkpoint(tmp_path / "checkpoint-8"), packing=True) == [], "of a time when that was not written down"


def test_a_resume_with_other_versions_says_which(tmp_path):
    assert changed(write_checkpoint(tmp_path / "checkpoint-8", versions=versions.installed())) == []
    there = {**versions.installed(), "torch": "2.0.1", "gone": "1.0"}
    (sentence,) = changed(write_checkpoint(tmp_path / "checkpoint-9", versions=there))
    here = versions.installed()["torch"]
    assert sentence == (
        f"checkpoint-9 was written with other versions (torch 2.0.1 there, {here} here, gone 1.0 there, none here): "
        "bits may differ from here on"
    )


# Constants that a resume may change and on which weights depend from there on, or whose change is seen elsewhere: the rows of files in
# the key of the tokenised data, ranks in the manifest; and those of trackers, which are said like these.
OTHERS = {
    *("ATTENTION", "GRADIENT_ACCUMULATION_STEPS", "GRADIENT_CHECKPOINTING", "LORA_DROPOUT", "LR_SCHEDULER_TYPE", "MAX_GRAD_NORM"),
    *("MAX_STEPS", "MIN_LR_RATE", "NUM_TRAIN_EPOCHS", "TILED_MLP", "TORCH_COMPILE", "WARMUP_RATIO", "WARMUP_STEPS"),
    *("DS_CONFIG", "USE_DEEPSPEED", "MAX_FILES", "TOKENIZER", "VALIDATION_FILE", "VALIDATION_FILES", "TEST_FILE", "UNGATED_COPY"),
    *("WANDB_ENTITY", "WANDB_PROJECT", "WANDB_RUN_NAME", "RESUME_FROM_CHECKPOINT", "RUN_NAME"),
}


def test_of_every_constant_it_is_decided_what_its_change_means():
    names = {name for path in (ROOT / "recipes").glob("*.py") for name in re.findall(r"^([A-Z]\w*): ", path.read_text(), re.MULTILINE)}
    assert names == {*resume.FIXED, *resume.CHOOSING, *resume.HARMLESS, *OTHERS}


def test_every_constant_that_is_judged_is_one_of_a_recipe():
    """A renamed constant would be judged no more."""
    source = "".join(path.read_text() for path in (ROOT / "recipes").glob("*.py"))
    judged = [*resume.FIXED, *resume.CHOOSING, *resume.HARMLESS]
    assert [name for name in judged if not re.search(rf"^{name}\b", source, re.MULTILINE)] == []
    assert len(set(judged)) == len(judged)


@pytest.mark.parametrize(
    ("written_by", "accumulation", "ranks", "now", "said"),
    [
        (2, 2, 1, 4, None),
        (2, 2, 4, 1, None),
        (1, 4, 2, 2, None),
        (2, 2, 1, 2, "GRADIENT_ACCUMULATION_STEPS = 2 on 2 rank(s), now it is 2 on 1: a step would have other rows; set it to 4"),
        (1, 2, 1, 3, "now it is 3 on 1: a step would have other rows; set it to 2"),
        (2, 1, 4, 1, "a step would have other rows; take another number of GPUs"),
    ],
)
def test_another_number_of_ranks_wants_another_accumulation(tmp_path, written_by, accumulation, ranks, now, said):
    constants = {"GRADIENT_ACCUMULATION_STEPS": accumulation}
    checkpoint = write_checkpoint(tmp_path / "checkpoint-8", constants, world_size=written_by, sharded=True)
    if said is None:
        (sentence,) = changed(checkpoint, world_size=ranks, sharded=True, GRADIENT_ACCUMULATION_STEPS=now)
        assert f"written by {written_by} rank(s) and goes on with {ranks}" in sentence
        return
    with pytest.raises(Refusal) as refused:
        changed(checkpoint, world_size=ranks, sharded=True, GRADIENT_ACCUMULATION_STEPS=now)
    assert said in str(refused.value)


def test_what_one_process_wrote_is_not_divided_among_ranks(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint-8")
    with pytest.raises(Refusal, match="written by one process without ZeRO.*INITIAL_MODEL"):
        changed(checkpoint, world_size=2, sharded=True, GRADIENT_ACCUMULATION_STEPS=1)


def test_the_order_of_rows_stays_that_of_the_run_that_is_resumed(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint-8", position={"micro_batch": 24})
    assert (resume.micro_batch(checkpoint, 8), resume.micro_batch(None, 8)) == (24, 8)

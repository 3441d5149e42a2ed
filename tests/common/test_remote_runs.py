"""Runs in a store: finding them, and bringing one to this disk whole. The store is a directory; faults of a network: test_storage."""

import json
import re
import shutil
from functools import partial

import pytest
from example_checkpoints import contents, flip, run_id, store_run, write_checkpoint, write_run

from common import manifest, remote_runs, resume, storage
from common.refusal import Refusal
from common.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("said")


@pytest.fixture
def there(tmp_path, uri):
    """A run whose checkpoints 5, 9 and 12 are in the store; 5 is the best. The directory of the run is another machine's."""
    run = write_run(tmp_path / "elsewhere" / "qlora", steps=(5, 9, 12), best=5)
    run.validation.write_text('{"row": 1}\n')
    run.metrics.write_text('{"step": 5}\n')
    store_run(uri, run)
    return run


@pytest.fixture
def stored(tmp_path, there):
    """The directory of the run in the store."""
    return tmp_path / "store" / "qlora"


def names(path, pattern):
    return sorted(re.sub(r"-\d{8}-\d{6}x*$", "", p.name) for p in path.glob(pattern))


@pytest.mark.parametrize(
    ("uri", "key", "step"),
    [
        ("gs://bucket/qlora", "qlora", None),
        ("gs://bucket/prefix/deep/qlora-2/", "qlora-2", None),
        ("gs://bucket/prefix/qlora/checkpoint-96", "qlora", 96),
        ("file:///data/qlora/checkpoint-8/", "qlora", 8),
    ],
)
def test_what_an_address_names(monkeypatch, uri, key, step):
    store, *found = remote_runs.named(uri)
    assert found == [key, step]
    rest = f"{key}/checkpoint-{step}" if step else key
    assert store.uri(rest) == uri.rstrip("/")


def test_keys_in_an_address_are_not_repeated():
    for uri in ("s3://AKIA77:SE/CRET@bucket", "s3://AKIA77:SE/CRET@", "gs://user:SECRET@bucket/run", "AKIA77:SE/CRET@bucket"):
        for call in (storage.open_store, remote_runs.named):
            with pytest.raises(Refusal) as refused:
                call(uri)
            assert not re.search("AKIA|SE|CRET|user", str(refused.value).replace("RESUME", "")), str(refused.value)
            assert "…@" in str(refused.value)


@pytest.mark.parametrize("uri", ["gs://bucket", "gs://bucket/", "gs://bucket/checkpoint-9", "file:///", "file:///-x", "gs://bucket/-x"])
def test_addresses_that_name_no_run(uri):
    for call in (remote_runs.named, partial(resume.check, "qlora")):
        with pytest.raises(Refusal) as refused:
            call(uri)
        assert "it must name a run in a store, such as gs://bucket/runs/llama32_qlora" in str(refused.value)


def test_what_is_in_a_store(there, uri, stored):
    store = storage.open_store(uri)
    (stored / "checkpoint-12" / manifest.NAME).unlink()  # as while it is uploaded
    (stored / "checkpoint-x").mkdir()
    assert remote_runs.steps(store, "qlora") == [5, 9]
    assert remote_runs.peek(store, "qlora")["step"] == 9 and remote_runs.peek(store, "qlora", 5)["step"] == 5
    assert remote_runs.peek(store, "qlora", 12) is None and remote_runs.peek(store, "other") is None
    assert remote_runs.facts(store, "qlora")["run_id"] == run_id(there) and remote_runs.facts(store, "other") == {}
    assert remote_runs.newest(store, "qlora") == "qlora" and remote_runs.newest(store, "other") is None


@pytest.mark.parametrize("address", ["", "/checkpoint-9"])
def test_a_run_comes_whole_with_its_best_checkpoint_and_its_files(tmp_path, uri, there, address):
    newest = 9 if address else 12
    run, checkpoint = resume.open_run(tmp_path / "here", "any", f"{uri}/qlora{address}")
    assert (run.path, checkpoint) == (tmp_path / "here" / "qlora", tmp_path / "here" / "qlora" / f"checkpoint-{newest}")
    assert [step for step, _ in run.whole_checkpoints()] == [5, newest]
    for name in (f"checkpoint-{newest}", "checkpoint-5"):
        assert contents(run.path / name) == contents(there.path / name)
    for name in ("run.json", "constants.json", "validation.jsonl", "logs/metrics.jsonl"):
        assert (run.path / name).read_bytes() == (there.path / name).read_bytes()
    assert names(run.path, ".*") == [".lock"]


def test_what_is_here_whole_is_not_brought_again(tmp_path, uri, there, stored, said):
    here = tmp_path / "here" / "qlora"
    shutil.copytree(there.path, here)
    (stored / "checkpoint-12" / "optimizer.pt").unlink()  # so bringing it would fail
    before = contents(here)
    assert remote_runs.restore(storage.open_store(uri), "qlora", tmp_path / "here")[1] == here / "checkpoint-12"
    assert contents(here) == {**before, ".lock": b""} and said == []


def test_what_is_here_and_not_whole_is_set_aside_and_brought(tmp_path, uri, there):
    here = tmp_path / "here" / "qlora"
    shutil.copytree(there.path, here)
    flip(here / "checkpoint-12" / "optimizer.pt", 5)
    (here / "checkpoint-5" / manifest.NAME).unlink()
    run, checkpoint = remote_runs.restore(storage.open_store(uri), "qlora", tmp_path / "here")
    assert contents(checkpoint) == contents(there.path / "checkpoint-12")
    assert names(here, "*-checkpoint-*") == ["damaged-checkpoint-12", "unfinished-checkpoint-5"]
    assert manifest.verify(here / "checkpoint-5") == []


def test_a_download_that_broke_off_goes_on(tmp_path, uri, there):
    here = RunDirectory(tmp_path / "here" / "qlora")
    coming = here.path / ".coming-checkpoint-12"
    coming.mkdir(parents=True)
    shutil.copy(there.path / "checkpoint-12" / "adapter_model.safetensors", coming)
    (coming / "optimizer.pt.part").write_bytes((there.path / "checkpoint-12" / "optimizer.pt").read_bytes()[:1000])
    inode = (coming / "adapter_model.safetensors").stat().st_ino
    _, checkpoint = remote_runs.restore(storage.open_store(uri), "qlora", tmp_path / "here")
    assert contents(checkpoint) == contents(there.path / "checkpoint-12") and not coming.exists()
    assert (checkpoint / "adapter_model.safetensors").stat().st_ino == inode, "what had come whole was kept"


@pytest.mark.parametrize("damage", ["a file", "a file is missing", "the manifest", "another manifest"])
def test_of_what_is_damaged_in_the_store_the_one_before_is_taken(tmp_path, uri, there, stored, said, damage):
    if damage == "a file":
        flip(stored / "checkpoint-12" / "global_step12" / "states.pt", 1999, 6)
    elif damage == "a file is missing":
        (stored / "checkpoint-12" / "optimizer.pt").unlink()
    elif damage == "the manifest":
        flip(stored / "checkpoint-12" / manifest.NAME, 40)
    else:
        shutil.copy(stored / "checkpoint-9" / manifest.NAME, stored / "checkpoint-12")
    run, checkpoint = resume.open_run(tmp_path / "here", "qlora", "auto", uri)
    assert checkpoint == run.path / "checkpoint-9" and manifest.verify(checkpoint) == []
    assert [step for step, _ in run.checkpoints()] == [5, 9]
    assert "checkpoint-12 could not be brought here whole" in said[0]
    assert run_id(run) == run_id(there)


@pytest.mark.parametrize("damage", ["a file", "the manifest", "all of it"])
def test_without_its_best_checkpoint_the_run_goes_on(tmp_path, uri, stored, said, damage):
    if damage == "all of it":
        shutil.rmtree(stored / "checkpoint-5")
    else:
        flip(stored / "checkpoint-5" / ("optimizer.pt" if damage == "a file" else manifest.NAME), 40)
    run, checkpoint = resume.open_run(tmp_path / "here", "qlora", f"{uri}/qlora")
    assert checkpoint == run.path / "checkpoint-12" and [step for step, _ in run.checkpoints()] == [12]
    if damage == "all of it":
        assert said == [], "training says that it is not here any more"
    else:
        assert len(said) == 1 and "checkpoint-5, the best one, could not be brought here whole" in said[0]


class Killed(BaseException):
    """Nothing catches it, as nothing does a SIGKILL."""


def killed_at(name, read):
    def reading(store, key):
        if key.endswith(name):
            raise Killed
        return read(store, key)

    return reading


@pytest.mark.parametrize("moment", ["checkpoint-12/manifest.json", "checkpoint-5/manifest.json", "logs/metrics.jsonl"])
def test_a_restore_that_is_killed_is_finished_by_the_next(tmp_path, uri, there, monkeypatch, moment):
    with monkeypatch.context() as patched:
        patched.setattr(storage.Store, "read", killed_at(moment, storage.Store.read))
        with pytest.raises(Killed):
            resume.open_run(tmp_path / "here", "qlora", "auto", uri)
    run, checkpoint = resume.open_run(tmp_path / "here", "qlora", "auto", uri)
    assert checkpoint.name == "checkpoint-12" and [step for step, _ in run.whole_checkpoints()] == [5, 12]
    assert run_id(run) == run_id(there) and run.validation.is_file()
    assert names(run.path, ".coming-*") == []


def test_a_checkpoint_that_came_belongs_to_its_run_even_where_the_rest_did_not(tmp_path, uri, there, stored, monkeypatch):
    """The best one meets a full disk, in a way that is no refusal; what is here by then can be gone on with."""
    downloads = storage.Store.download_directory

    def full(store, key, directory):
        if key.endswith("checkpoint-5"):
            raise OSError(28, "No space left on device")
        return downloads(store, key, directory)

    with monkeypatch.context() as patched:
        patched.setattr(storage.Store, "download_directory", full)
        with pytest.raises(OSError):
            resume.open_run(tmp_path / "here", "qlora", "auto", uri)
    assert run_id(RunDirectory(tmp_path / "here" / "qlora")) == run_id(there)
    run, checkpoint = resume.open_run(tmp_path / "here", "qlora", "auto", uri)
    assert [step for step, _ in run.whole_checkpoints()] == [5, 12]


def test_where_nothing_in_the_store_is_whole_it_is_said(tmp_path, uri, stored):
    for step in (5, 9, 12):
        flip(stored / f"checkpoint-{step}" / "optimizer.pt", 40)
    for resumed, stores in ((f"{uri}/qlora", None), (f"{uri}/qlora/checkpoint-9", None), ("auto", uri)):
        with pytest.raises(Refusal, match="nothing to resume from in .*/qlora: checkpoint-(5|9) could not be brought here whole"):
            resume.open_run(tmp_path / "here", "qlora", resumed, stores)
    with pytest.raises(Refusal, match="nothing to resume from in .*it holds no committed checkpoint"):
        resume.open_run(tmp_path / "here", "qlora", f"{uri}/other")


def test_another_run_of_that_name_is_here(tmp_path, uri, there):
    here = write_run(tmp_path / "here" / "qlora", steps=(3,))
    before = contents(here.path)
    with pytest.raises(Refusal, match="is another run than .*; move one of them away, or set OUTPUT_DIR"):
        remote_runs.restore(storage.open_store(uri), "qlora", tmp_path / "here")
    assert contents(here.path) == {**before, ".lock": b""}


def test_a_crafted_manifest_in_the_store_writes_nothing_outside(tmp_path, uri, stored):
    (tmp_path / "store" / "secret").write_bytes(b"outside")
    found = json.loads((stored / "checkpoint-12" / manifest.NAME).read_text())
    files = {**found["files"], "../../../escaped": {"size": 7, "crc32c": manifest.crc32c(tmp_path / "store" / "secret")}}
    (tmp_path / "forged").mkdir()
    manifest.write_whole(tmp_path / "forged" / manifest.NAME, manifest._text({"format": 1, "files": files}))
    shutil.copy(tmp_path / "forged" / manifest.NAME, stored / "checkpoint-12")
    with pytest.raises(Refusal, match="could not be brought here whole: .*not inside its directory"):
        resume.open_run(tmp_path / "here", "qlora", f"{uri}/qlora/checkpoint-12")
    assert not list(tmp_path.rglob("escaped"))


def test_an_upload_after_a_resume_adds_to_the_run_in_the_store(tmp_path, uri, there, stored):
    """The same run may write there again: its identity came with it."""
    run, _ = resume.open_run(tmp_path / "here", "qlora", "auto", uri)
    write_checkpoint(run.path / "checkpoint-16")
    store_run(uri, run)
    remote_runs.require_same(storage.open_store(uri), run)
    assert remote_runs.steps(storage.open_store(uri), "qlora") == [5, 9, 12, 16]
    assert contents(stored / "checkpoint-9") == contents(there.path / "checkpoint-9")

"""What is hashed on its way to the disk is what is on the disk."""

import os
from pathlib import Path

import pytest
import torch

from common import hashing, manifest
from common.refusal import is_disk_full

STATE = {
    "moments": torch.arange(3_000_001, dtype=torch.float32),  # more than one block
    "few": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.empty(0),
    "step": 7,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["new serialisation", "old serialisation"])
@pytest.mark.parametrize("kind", [str, Path], ids=["str", "Path"])
def test_what_is_written_is_what_was_hashed(tmp_path, zipped, kind):
    path = tmp_path / "state.pt"
    with hashing.hashed_writes() as written:
        torch.save(STATE, kind(path), _use_new_zipfile_serialization=zipped)
        torch.save([1, 2], f=kind(tmp_path / "small.pt"), _use_new_zipfile_serialization=zipped)
    assert written == {str(p): manifest.describe(p) for p in (path, tmp_path / "small.pt")}
    assert path.stat().st_size > 12_000_000
    found = torch.load(path, weights_only=True)
    assert found.keys() == STATE.keys() and found["step"] == 7
    assert all(torch.equal(found[name], value) for name, value in STATE.items() if name != "step")
    assert torch.load(tmp_path / "small.pt", weights_only=True) == [1, 2]


def test_the_bytes_are_those_that_torch_alone_writes(tmp_path):
    torch.save(STATE, tmp_path / "state.pt")
    plainly = (tmp_path / "state.pt").read_bytes()
    with hashing.hashed_writes():
        torch.save(STATE, tmp_path / "state.pt")
    found = torch.load(tmp_path / "state.pt", mmap=True, weights_only=True)  # what torch.load needs of the format to map it
    assert torch.equal(found["moments"], STATE["moments"])
    assert abs(len((tmp_path / "state.pt").read_bytes()) - len(plainly)) < 1000  # the archive's inner name differs


def test_a_file_written_twice_counts_as_it_is_last_and_open_files_are_left_alone(tmp_path):
    with hashing.hashed_writes() as written:
        torch.save(torch.zeros(100), tmp_path / "a")
        torch.save(torch.ones(7), tmp_path / "a")
        with open(tmp_path / "b", "wb") as file:
            torch.save(torch.zeros(100), file)
    assert written == {str(tmp_path / "a"): manifest.describe(tmp_path / "a")}
    assert torch.equal(torch.load(tmp_path / "b", weights_only=True), torch.zeros(100))


def test_torch_save_is_put_back_after_an_exception(tmp_path):
    plainly = torch.save
    with pytest.raises(ZeroDivisionError), hashing.hashed_writes():
        assert torch.save is not plainly
        raise ZeroDivisionError
    assert torch.save is plainly
    with pytest.raises(FileNotFoundError), hashing.hashed_writes():
        torch.save(1, tmp_path / "no" / "directory")
    assert torch.save is plainly


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_full_disk_is_known_for_one(zipped):
    with pytest.raises(Exception) as failed, hashing.hashed_writes() as written:
        torch.save(STATE, "/dev/full", _use_new_zipfile_serialization=zipped)
    assert is_disk_full(failed.value) and written == {}

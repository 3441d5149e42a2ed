"""What makes a directory whole: a manifest that names every file, notices every change, and is there whole or not at all."""

import base64
import errno
import json
import os
import random
import re
import subprocess
import sys
import textwrap

import pytest
from example_checkpoints import contents, flip, write_checkpoint

from common import manifest
from common.refusal import Refusal


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint-8")


def seal(directory, files=None, **facts):
    """Write the manifest of what is there now."""
    manifest.write(directory, files or {name: manifest.describe(directory / name) for name in manifest.files_in(directory)}, **facts)


@pytest.mark.parametrize(
    ("data", "checksum"),
    [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (bytes([255] * 32), 0x62A8AB43), (bytes(range(32)), 0x46DD794E)],
)
def test_the_checksum_is_that_of_the_standard(tmp_path, data, checksum):
    """The vectors of RFC 3720, appendix B.4, and the usual check value."""
    (tmp_path / "file").write_bytes(data)
    assert base64.b64decode(manifest.crc32c(tmp_path / "file")) == checksum.to_bytes(4, "big")


def test_a_file_of_several_blocks(tmp_path):
    data = random.Random(1).randbytes(2 * manifest.BLOCK + 17)
    (tmp_path / "file").write_bytes(data)
    at_once = manifest.Crc32c()
    at_once.update(data)
    assert manifest.describe(tmp_path / "file") == {"size": len(data), "crc32c": at_once.text()}


def test_it_names_every_file_and_keeps_the_facts(checkpoint):
    (checkpoint / ".manifest.json.123").write_text("left by a writer that was killed")
    (checkpoint / "link").symlink_to(checkpoint / "optimizer.pt")
    (checkpoint / ".hidden").write_text("a file like any other")
    seal(checkpoint, step=8, constants={"NAME": "naïve"})
    found = manifest.read(checkpoint)
    assert (found["format"], found["step"], found["constants"]) == (1, 8, {"NAME": "naïve"})
    names = {".hidden", "adapter_model.safetensors", "constants.json", "global_step8/states.pt", "optimizer.pt", "trainer_state.json"}
    assert set(found["files"]) == names and manifest.verify(checkpoint) == []
    assert found["files"]["optimizer.pt"] == {"size": 3000, "crc32c": manifest.crc32c(checkpoint / "optimizer.pt")}


def test_every_bit_flip_and_every_cut_of_the_manifest_is_noticed(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    seal(tmp_path, step=8)
    whole = (tmp_path / manifest.NAME).read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            with pytest.raises(Refusal, match="it was changed or damaged after it was written"):
                manifest.parse(bytes(changed), "manifest.json")
        with pytest.raises(Refusal):
            manifest.parse(whole[:place], "manifest.json")
    for more in (b"\n", b" ", b"\0", b"{}"):
        with pytest.raises(Refusal):
            manifest.parse(whole + more, "manifest.json")
    assert manifest.parse(whole, "manifest.json")["step"] == 8


def test_a_flip_of_any_byte_of_a_real_manifest_is_noticed(tiny_run, tmp_path):
    dice, (_, checkpoint) = random.Random(3), tiny_run.run.whole_checkpoints()[-1]
    path = tmp_path / manifest.NAME
    whole = (checkpoint / manifest.NAME).read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole)
        flip(path, place, dice.randrange(8))
        (sentence,) = manifest.verify(tmp_path)
        assert str(path) in sentence and "take another checkpoint" in sentence, place


def test_a_real_checkpoint_is_named_whole_and_its_manifest_was_written_last(tiny_run):
    for step, checkpoint in tiny_run.run.whole_checkpoints():
        found = manifest.read(checkpoint)
        assert list(found["files"]) == manifest.files_in(checkpoint)
        last = max((checkpoint / name).stat().st_mtime_ns for name in found["files"])
        assert (checkpoint / manifest.NAME).stat().st_mtime_ns >= last
        assert (found["step"], found["world_size"], found["sharded"]) == (step, 1, False)
        assert found["constants"]["LORA_R"] == 16 and found["versions"]["torch"]
        position = found["position"]
        assert (position["epoch"], position["micro_batches"], position["micro_batch"]) == (*divmod(step, 64), 8), "64 of 8 rows an epoch"
        assert found["data_key"] == json.loads(tiny_run.run.run.read_text())["data_key"]


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/etc/passwd", "..", "", ".", "a\\..\\outside"])
def test_a_name_that_leads_outside_is_refused(tmp_path, name):
    (tmp_path / "a").mkdir()
    seal(tmp_path, {name: {"size": 0, "crc32c": "AAAAAA=="}})
    (sentence,) = manifest.verify(tmp_path)
    assert repr(name) in sentence and "is not inside its directory; it was not written by this repository" in sentence
    with pytest.raises(Refusal, match="not inside its directory"):
        manifest.read(tmp_path)


def test_all_that_is_wrong_is_said(checkpoint):
    (checkpoint / "adapter_model.safetensors").unlink()
    os.truncate(checkpoint / "optimizer.pt", 2999)
    flip(checkpoint / "global_step8" / "states.pt", 1999)
    (checkpoint / "trainer_state.json").unlink()
    (checkpoint / "trainer_state.json").mkdir()
    said = dict(sentence.split(" ", 1) for sentence in manifest.verify(checkpoint))
    assert said["adapter_model.safetensors"] == "is missing"
    assert said["optimizer.pt"] == "has 2,999 bytes of 3,000"
    assert said["global_step8/states.pt"] == "has another checksum than when it was written"
    assert set(said) == {"adapter_model.safetensors", "optimizer.pt", "global_step8/states.pt", "trainer_state.json"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "has no manifest.json, which is written last"),
        (b"", "cannot be read"),
        (b"[]", "cannot be read"),
        (b"null", "cannot be read"),
        (b'{"format": 1}', "does not have its own checksum"),
        (b'{"format": 2, "files": {}}', "is of format 2"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
    ],
)
def test_what_is_no_manifest(tmp_path, data, said):
    if data is not None:
        (tmp_path / manifest.NAME).write_bytes(data)
    (sentence,) = manifest.verify(tmp_path)
    assert said in sentence


def test_a_writer_that_is_killed_leaves_the_old_manifest_or_the_new_one(tmp_path):
    program = f"""
        from pathlib import Path
        from common import manifest
        place = Path({str(tmp_path)!r})
        n = 0
        while True:
            n += 1
            manifest.write(place, {{f"file-{{i}}": {{"size": n, "crc32c": "AAAAAA=="}} for i in range(800)}}, n=n)
            if n == 1:
                print("ready", flush=True)
    """
    seen = set()
    for delay in (0.003, 0.011, 0.017, 0.029, 0.041):
        writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        for _ in range(5):
            found = manifest.read(tmp_path)
            assert {facts["size"] for facts in found["files"].values()} == {found["n"]}
        try:
            writer.wait(delay)
        except subprocess.TimeoutExpired:
            writer.kill()
        writer.wait()
        found = manifest.read(tmp_path)
        assert {facts["size"] for facts in found["files"].values()} == {found["n"]}
        seen.add(found["n"])
        assert manifest.files_in(tmp_path) == [], "what the killed one left is no file of the directory"
    assert len(seen) > 1, "it was killed at different moments"


class Synced:
    """os.fsync that writes down which directories it was asked for, and answers with the error `refusing`, as some disks do."""

    def __init__(self):
        self.plainly, self.paths, self.refusing = os.fsync, [], None

    def __call__(self, descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isdir(path):
            self.paths.append(path)
            if self.refusing:
                raise OSError(self.refusing, os.strerror(self.refusing))
        self.plainly(descriptor)


@pytest.fixture
def synced(monkeypatch):
    found = Synced()
    monkeypatch.setattr(os, "fsync", found)
    return found


def test_the_checkpoints_own_name_is_forced_to_disk_too(checkpoint, synced):
    seal(checkpoint)
    assert set(synced.paths) == {str(path) for path in (checkpoint.parent, checkpoint, checkpoint / "global_step8")}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_disk_that_cannot_force_directories_saves_all_the_same(checkpoint, synced, number):
    synced.refusing = number
    if number == errno.EIO:  # that is a disk which fails
        with pytest.raises(OSError):
            seal(checkpoint, step=9)
        return
    seal(checkpoint, step=9)
    assert manifest.read(checkpoint)["step"] == 9


def test_where_the_write_fails_the_old_file_stays_and_no_half_of_a_new_one(tmp_path):
    """A limit on the size of files, which the kernel enforces in the middle of the write."""
    path = tmp_path / "run.json"
    manifest.write_whole(path, b"old")
    program = f"""
        import resource, signal
        from pathlib import Path
        from common import manifest
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        manifest.write_whole(Path({str(path)!r}), b"x" * 100_000)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert re.search(rf"OSError: \[Errno {errno.EFBIG}\]", done.stderr)
    assert contents(tmp_path) == {"run.json": b"old"}

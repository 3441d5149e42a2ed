"""Saved .npz come back as the documents that were cut into windows, whatever their lengths; nothing pickled is ever opened."""

import pickle

import numpy as np
import pytest
import token_files
from token_files import drawn

from common import npz_shards, shards
from common.refusal import Refusal

LENGTHS = (1, 2, 511, 512, 513, 1023, 1024, 1025, 1100, 1535, 1536, 1537, 2000, 2048, 5000)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPES_CACHE", str(tmp_path / "cache"))


class Opened:
    """Unpickling one is seen."""

    count = 0

    def __reduce__(self):
        return (setattr, (Opened, "count", 1))


def test_the_windows_of_the_test_overlap_as_they_should():
    found = token_files.windowed([drawn(1100, 50_000)])
    assert found["sequence_lengths"].tolist() == [1024, 588, 76] and found["input_ids"].shape == (3, 1024)
    assert token_files.windowed([drawn(1100, 50_000)], stop_early=True)["sequence_lengths"].tolist() == [1024, 588]


@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_one_document(length, stop_early):
    tokens = drawn(length, 50_000)
    windows = token_files.windowed([tokens], stop_early)
    assert np.array_equal(npz_shards.joined(windows["input_ids"], windows["sequence_lengths"]), tokens)


@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_many_documents_one_after_another(seed, stop_early):
    draw = np.random.default_rng(seed)
    sizes = [*draw.permutation(np.repeat(LENGTHS, 3)), *draw.integers(1, 4000, 60)]
    documents = [draw.integers(0, 50_257, size) for size in sizes]
    windows = token_files.windowed(documents, stop_early)
    assert len(windows["input_ids"]) > 200
    assert np.array_equal(npz_shards.joined(windows["input_ids"], windows["sequence_lengths"]), np.concatenate(documents))


def test_more_windows_than_are_compared_at_once():
    documents = [drawn(600_000, 50_000, seed) for seed in range(5)]
    windows = token_files.windowed(documents)
    assert len(windows["input_ids"]) > 4096 + 512
    assert np.array_equal(npz_shards.joined(windows["input_ids"], windows["sequence_lengths"]), np.concatenate(documents))


def test_padding_is_left_out_and_zeros_that_are_tokens_are_not():
    documents = [np.zeros(1030, dtype=int), drawn(5), np.zeros(3, dtype=int)]
    windows = token_files.windowed(documents)
    assert np.array_equal(npz_shards.joined(windows["input_ids"], windows["sequence_lengths"]), np.concatenate(documents))


def test_windows_that_only_follow_one_another_keep_all_their_tokens():
    ids, lengths = np.stack([drawn(1024, 50_000, seed) for seed in range(4)]), np.array([1024, 1024, 700, 188])
    assert len(npz_shards.joined(ids, lengths)) == lengths.sum()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_both_layouts_become_shards_in_order(tmp_path, save):
    documents = [drawn(size, 50_000, size) for size in (1025, 30, 2000)]
    save(tmp_path / "tokenized_0.npz", **token_files.windowed(documents[:2]))
    save(tmp_path / "tokenized_1.npz", **token_files.windowed(documents[2:]))
    save(tmp_path / "shard_0.npz", tokens=drawn(777, 60_000).astype(np.int64))
    found = shards.find([tmp_path])
    assert [shard.path.name for shard in found] == ["00000-shard_0.bin", "00001-tokenized_0.bin", "00002-tokenized_1.bin"]
    assert np.array_equal(found[0].array(), drawn(777, 60_000))
    assert np.array_equal(found[1].array(), np.concatenate(documents[:2])) and np.array_equal(found[2].array(), documents[2])


def test_large_ids_become_wide_shards(tmp_path):
    np.savez(tmp_path / "a.npz", tokens=np.array([1, 200_000, 3]))
    [shard] = shards.find([tmp_path])
    assert shard.array().tolist() == [1, 200_000, 3] and shard.dtype.itemsize == 4


def test_they_are_unpacked_once_until_one_changes(tmp_path, monkeypatch):
    reads, plainly = [], npz_shards._unpack
    monkeypatch.setattr(npz_shards, "_unpack", lambda paths, directory: reads.append(len(paths)) or plainly(paths, directory))
    monkeypatch.setattr("common.child_process.run", lambda function, *arguments: function(*arguments))
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", tokens=drawn(100))
    first = [shard.path for shard in shards.find([tmp_path])]
    assert [shard.path for shard in shards.find([tmp_path])] == first and reads == [2]
    np.savez(tmp_path / "b.npz", tokens=drawn(101))
    assert [shard.tokens for shard in shards.find([tmp_path])] == [100, 101] and reads == [2, 2]


def test_files_are_counted_before_they_are_unpacked(tmp_path):
    np.savez(tmp_path / "a.npz", tokens=drawn(100))
    (tmp_path / "b.npz").write_bytes(b"never looked at")
    assert [shard.tokens for shard in shards.find([tmp_path], max_files=1)] == [100]


def test_a_cache_too_small_is_said_first(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", tokens=np.zeros(10_000_000, dtype=np.int64))
    monkeypatch.setattr("common.hardware.free_disk_gb", lambda path: 0.01)
    with pytest.raises(Refusal, match=r"unpacking 1 .npz needs 80.0 MB and .* has 10.0 MB free; .*set RECIPES_CACHE"):
        shards.find([tmp_path])
    assert not list((tmp_path / "cache").rglob("*.bin"))


# bad input


@pytest.mark.parametrize("arrays", [{"tokens": np.array([Opened()], dtype=object)},
                                    {"input_ids": np.array([[Opened()]], dtype=object), "sequence_lengths": np.array([1])}])  # fmt: skip
def test_pickles_are_never_opened(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(Refusal, match=r"a.npz cannot be read as .npz of numbers .*; it holds Python objects, which are never loaded here"):
        shards.find([tmp_path])
    assert not Opened.count


def test_a_pickle_that_is_called_npz(tmp_path):
    (tmp_path / "a.npz").write_bytes(pickle.dumps([Opened()]))
    with pytest.raises(Refusal, match="a.npz cannot be read as .npz .*; it was cut short or is something else: copy it again"):
        shards.find([tmp_path])
    assert not Opened.count
    pickle.loads(pickle.dumps([Opened()]))
    assert Opened.count  # it would have been seen
    Opened.count = 0


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_archive(tmp_path, save, damage):
    path = tmp_path / "a.npz"
    save(path, tokens=drawn(10_000))
    content = bytearray(path.read_bytes())
    content[5000:5100] = b"\xff" * 100
    path.write_bytes(content[:9000] if damage == "cut" else content)
    with pytest.raises(Refusal, match="a.npz cannot be read as .npz"):
        shards.find([tmp_path])


WRONG = [
    ({"weights": np.zeros(3)}, "a.npz has weights, neither tokens nor input_ids with sequence_lengths"),
    ({}, "a.npz has nothing, neither"),
    ({"tokens": np.zeros(0, dtype=int)}, "a.npz holds no tokens; remove it"),
    ({"input_ids": np.zeros((2, 4), dtype=int)}, "a.npz has input_ids, neither"),
    ({"tokens": np.zeros((2, 2), dtype=int)}, r"tokens is int64 \(2, 2\); tokens int \[n\], or"),
    ({"tokens": np.zeros(3)}, "tokens is float64"),
    ({"tokens": np.array([5, -1])}, "it has the token -1; tokens int"),
    ({"input_ids": np.zeros((2, 4), dtype=int), "sequence_lengths": np.array([4, 5])}, "sequence_lengths go from 4 to 5 in windows of 4"),
    ({"input_ids": np.zeros((2, 4), dtype=int), "sequence_lengths": np.array([-1, 4])}, "sequence_lengths go from -1 to 4"),
    ({"input_ids": np.zeros((2, 4), dtype=int), "sequence_lengths": np.array([4])}, r"sequence_lengths int64 \(1,\)"),
    ({"input_ids": np.zeros((2, 4)), "sequence_lengths": np.array([4, 4])}, "input_ids is float64"),
]


@pytest.mark.parametrize(("arrays", "said"), WRONG)
def test_other_layouts(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(Refusal, match=said):
        shards.find([tmp_path])
    assert not list((tmp_path / "cache").rglob("*.bin"))

"""Files of tokens: each format gives back exactly what was written, and what is not whole is refused in a sentence."""

import errno
import importlib.util
import json
import os

import numpy as np
import pytest
import token_files
from token_files import drawn

from common import manifest, shard_formats, shards
from common.refusal import Refusal


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPES_CACHE", str(tmp_path / "cache"))


def only(path):
    [shard] = shards.find([path])
    return shard


# our own


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1000, "uint16"), (65_536, "uint16"), (65_537, "uint32"), (200_000, "uint32")])
def test_a_shard_comes_back_as_it_was_written(tmp_path, vocab_size, dtype):
    tokens = np.random.default_rng(1).integers(0, vocab_size, 5000).astype(np.uint32)
    tokens[0] = vocab_size - 1
    path = token_files.own(tmp_path / "a", "shard-00003-001", tokens, vocab_size, ends=[10, 5000])
    shard = only(tmp_path / "a")
    assert np.array_equal(shard.array(), tokens) and shard.path == path
    assert (shard.kind, shard.dtype.name, shard.tokens, shard.documents) == ("own", dtype, 5000, 2)
    assert (shard.vocab_size, shard.end_of_text, shard.text_bytes) == (vocab_size, vocab_size - 1, 20_000)
    assert np.fromfile(path, f"<u{2 if dtype == 'uint16' else 4}").tolist() == tokens.tolist()  # no header, little-endian
    ends = np.load(path.with_suffix(".docs.npy"), allow_pickle=False)
    assert ends.dtype == np.int64 and ends.tolist() == [10, 5000]
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["largest_token"] == vocab_size - 1 and facts["sources"] == ["a.txt"] and facts["format"] == 1
    assert shards.examine([shard])[path] == {"xxh3_128": facts["xxh3_128"], "largest_token": vocab_size - 1}


def test_its_tokens_cannot_be_written_to(tmp_path):
    token_files.own(tmp_path / "a", "shard-00000-000", drawn(10))
    with pytest.raises(ValueError, match="read-only"):
        only(tmp_path / "a").array()[0] = 1


def test_the_json_comes_last_and_makes_it_whole(tmp_path, monkeypatch):
    written, plainly = [], manifest.write_whole

    def watched(path, data):
        assert not shards.is_written(tmp_path, "shard-00000-000")
        plainly(path, data)
        written.append(path.name)

    monkeypatch.setattr(manifest, "write_whole", watched)
    token_files.own(tmp_path, "shard-00000-000", drawn(10))
    assert written[-1] == "shard-00000-000.json" and sorted(written) == sorted(p.name for p in tmp_path.iterdir())
    assert shards.is_written(tmp_path, "shard-00000-000") and not shards.is_written(tmp_path, "shard-00000-001")


def test_one_without_its_json_was_never_finished(tmp_path):
    path = token_files.own(tmp_path, "shard-00000-000", drawn(10))
    path.with_suffix(".json").unlink()
    with pytest.raises(Refusal, match=r"has no shard-00000-000.json, which is written last.*start prepare/pretrain_tokens.py again"):
        shards.find([tmp_path])


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("common.hardware.free_disk_gb", lambda path: 1e-6)
    with pytest.raises(Refusal, match="the shard shard-00000-000 needs .* has .* free; .*set OUTPUT"):
        token_files.own(tmp_path, "shard-00000-000", drawn(100_000))
    assert not list(tmp_path.iterdir())


def test_truncated(tmp_path):
    path = token_files.own(tmp_path, "shard-00000-000", drawn(1000))
    os.truncate(path, 1998)
    with pytest.raises(Refusal, match=r"has 1,998 bytes, and its shard-00000-000.json says 1,000 tokens of 2; it was cut short or changed"):
        shards.find([tmp_path])


def test_one_changed_byte(tmp_path):
    path = token_files.own(tmp_path, "shard-00000-000", drawn(100_000))
    content = bytearray(path.read_bytes())
    content[77_777] ^= 1
    path.write_bytes(content)
    with pytest.raises(Refusal, match=r"shard-00000-000.bin is not as it was written \(its checksum .*\); copy it again"):
        shards.examine(shards.find([tmp_path]))


@pytest.mark.parametrize("change", [{"format": 2}, {"dtype": "int64"}, {"tokens": "10"}, {"end_of_text": None}, {"vocab_size": "x"}])
def test_a_json_that_describes_no_shard(tmp_path, change):
    path = token_files.own(tmp_path, "shard-00000-000", drawn(10)).with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Refusal, match=r"shard-00000-000.json does not describe a shard \(.*\); write shard-00000-000.bin again"):
        shards.find([tmp_path])


@pytest.mark.parametrize("content", ["", "[1]", "{", "{}", b"\xff\xfe"])
def test_a_json_that_is_none(tmp_path, content):
    path = token_files.own(tmp_path, "shard-00000-000", drawn(10)).with_suffix(".json")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Refusal, match="does not describe a shard"):
        shards.find([tmp_path])


# others' files


def test_nanogpt(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 50_257, 3001).astype(np.uint16)
    shard = only(token_files.nanogpt(tmp_path / "train.bin", tokens))
    assert shard.kind == "nanogpt" and np.array_equal(shard.array(), tokens)


@pytest.mark.parametrize("count", [1, 2, 3, 255, 512])
def test_nanogpt_files_shorter_than_llm_c_s_header(tmp_path, count):
    tokens = drawn(count)
    assert np.array_equal(only(token_files.nanogpt(tmp_path / "train.bin", tokens)).array(), tokens)


def test_an_odd_size(tmp_path):
    (tmp_path / "train.bin").write_bytes(b"x" * 2001)
    with pytest.raises(Refusal, match="has 2,001 bytes, an odd number, and nanoGPT's .bin holds tokens of 2; it was cut short"):
        shards.find([tmp_path])


def test_llm_c(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 50_257, 3000).astype(np.uint16)
    shard = only(token_files.llm_c(tmp_path / "fineweb_train_000001.bin", tokens))
    assert shard.kind == "llm.c" and np.array_equal(shard.array(), tokens)


def test_llm_c_with_the_tokens_of_llama_3(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 128_256, 3000).astype(np.uint32)
    shard = only(token_files.llm_c(tmp_path / "a.bin", tokens, magic=20240801, version=7, dtype=np.uint32))
    assert shard.dtype == np.uint32 and np.array_equal(shard.array(), tokens)


@pytest.mark.parametrize("wrong", [{"count": 2999}, {"count": 3001}, {"count": -1}, {"version": 2}, {"dtype": np.uint32}])
def test_an_llm_c_header_that_disagrees(tmp_path, wrong):
    token_files.llm_c(tmp_path / "a.bin", drawn(3000), **wrong)
    with pytest.raises(Refusal, match=r"a.bin has llm.c's header, of version .* tokens, and .* bytes; .* belong version 1 .*copy it again"):
        shards.find([tmp_path])


@pytest.mark.parametrize("size", [4, 12, 100, 1023, 1024 + 2 * 2999])
def test_an_llm_c_file_that_was_cut(tmp_path, size):
    os.truncate(token_files.llm_c(tmp_path / "a.bin", drawn(3000)), size)
    with pytest.raises(Refusal, match="has llm.c's header"):
        shards.find([tmp_path])


has_datatrove = pytest.mark.skipif(not importlib.util.find_spec("datatrove"), reason="datatrove is not installed")
DOCUMENTS = [drawn(n, 50_000, n) for n in (1, 700, 30, 2000)]


@has_datatrove
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("beside", [{}, {"metadata": False}, {"index": False}])
def test_datatrove_s_own_files(tmp_path, width, beside):
    documents = [document.astype(np.uint32) + (100_000 if width == 4 else 0) for document in DOCUMENTS]
    path = token_files.datatrove(tmp_path, "00000_shuffled.ds", documents, width, **beside)
    shard = only(path)
    assert shard.dtype.itemsize == width and np.array_equal(shard.array(), np.concatenate(documents))
    assert shard.documents == (None if beside == {"index": False} else 4) and shard.kind == "datatrove"


@has_datatrove
@pytest.mark.parametrize("width", [2, 4])
def test_datatrove_s_own_file_cut_to_half(tmp_path, width):
    path = token_files.datatrove(tmp_path, "a.ds", DOCUMENTS, width)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(Refusal, match=f"says 2,731 tokens of {width} bytes; it was cut short"):
        shards.find([tmp_path])


def test_datatrove_by_its_format(tmp_path):
    for width in (2, 4):
        path = token_files.datatrove_by_hand(tmp_path, f"{width}.ds", DOCUMENTS, width)
        assert np.array_equal(only(path).array(), np.concatenate(DOCUMENTS)) and only(path).dtype.itemsize == width


def test_a_ds_with_nothing_beside_it(tmp_path):
    drawn(10).tofile(tmp_path / "a.ds")
    with pytest.raises(Refusal, match=r"a.ds has neither a.ds.index nor a.ds.metadata beside it, .*copy one of them there"):
        shards.find([tmp_path])


@pytest.mark.parametrize("beside", [b"", b"123", b"tokenizer", b"tokenizer|2\nmany"])
def test_a_ds_with_nonsense_beside_it(tmp_path, beside):
    for name in ("a.ds.index", "a.ds.metadata"):
        drawn(10).tofile(tmp_path / "a.ds")
        (tmp_path / name).write_bytes(beside)
        with pytest.raises(Refusal, match="it was cut short"):
            shards.find([tmp_path / "a.ds"])
        (tmp_path / name).unlink()


# finding


def test_directories_files_and_globs_in_order_each_file_once(tmp_path):
    token_files.own_directory(tmp_path / "b", [10, 20, 30])
    token_files.nanogpt(tmp_path / "b" / "a.bin", drawn(5))
    token_files.nanogpt(tmp_path / "z.bin", drawn(6))
    (tmp_path / "b" / ".hidden.bin").write_bytes(b"x")
    (tmp_path / "b" / "README.md").write_text("x")
    places = [tmp_path / "z.bin", tmp_path / "b", str(tmp_path / "b" / "shard-*.bin"), str(tmp_path / "b" / ".." / "z.bin")]
    assert [shard.tokens for shard in shards.find(places)] == [6, 5, 10, 20, 30]
    assert [shard.tokens for shard in shards.find(places, max_files=3)] == [6, 5, 10]
    assert [shard.tokens for shard in shards.find([str(tmp_path / "b" / "*2-000.bin")])] == [30]


def test_an_empty_directory(tmp_path):
    with pytest.raises(Refusal, match=r"names .*, a directory without shards \(.bin, .ds, .npz\); write some there with prepare/"):
        shards.find([tmp_path])


@pytest.mark.parametrize("name", ["data/nowhere", "data/*.bin"])
def test_no_such_place(tmp_path, name):
    with pytest.raises(Refusal, match="and there is no such file or directory; python prepare/pretrain_tokens.py"):
        shards.find([str(tmp_path / name)])


def test_text_is_no_file_of_tokens(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(Refusal, match=r"a.jsonl, which is no file of tokens .*; text becomes tokens with prepare/pretrain_tokens.py"):
        shards.find([tmp_path / "a.jsonl"])


@pytest.mark.parametrize("name", ["a.bin", "a.ds", "a.npz"])
def test_an_empty_file(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / "a.ds.index").touch()
    with pytest.raises(Refusal, match=rf"{name} (holds no tokens; remove it|cannot be read)"):
        shards.find([tmp_path / name])


@pytest.mark.parametrize("name", ["a.bin", "a.ds", "a.npz", "shard-00000-000.bin"])
def test_files_that_cannot_be_read(tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(Refusal, match=rf"{name} cannot be read .*(No such file|No such file or directory)"):
        shards.find([tmp_path])
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()  # read() fails, for root as well
    (tmp_path / "a.ds.index").write_bytes(b"12345678")
    with pytest.raises(Refusal, match=rf"{name} (cannot be read|has )"):
        shards.find([tmp_path])


def test_a_directory_that_cannot_be_read(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", refused)
    with pytest.raises(Refusal, match="cannot be read .Permission denied.; correct TRAIN_FILES, or the permissions"):
        shards.find([tmp_path])


# examining


@pytest.fixture
def reads(monkeypatch):
    """Names of the files whose tokens were opened."""
    opened, plainly = [], shard_formats.Shard.array

    def watched(shard):
        opened.append(shard.path.name)
        return plainly(shard)

    monkeypatch.setattr(shard_formats.Shard, "array", watched)
    return opened


def test_a_file_is_examined_once_as_long_as_it_stays_as_it_is(tmp_path, reads):
    token_files.own_directory(tmp_path / "a", [1000, 2000])
    token_files.llm_c(tmp_path / "a" / "foreign.bin", drawn(3000))
    first = shards.examine(shards.find([tmp_path / "a"]))
    assert sorted(reads) == ["foreign.bin", "shard-00000-000.bin", "shard-00001-000.bin"]
    reads.clear()
    assert shards.examine(shards.find([tmp_path / "a"])) == first and not reads
    later = (tmp_path / "a" / "foreign.bin").stat().st_mtime_ns + 1
    os.utime(tmp_path / "a" / "foreign.bin", ns=(later, later))
    assert shards.examine(shards.find([tmp_path / "a"])) == first and reads == ["foreign.bin"]


def test_what_is_remembered_may_be_lost_or_damaged(tmp_path, reads):
    token_files.own_directory(tmp_path / "a", [1000])
    first = shards.examine(shards.find([tmp_path / "a"]))
    for content in ("{", "[]", "{}"):
        [remembered] = (tmp_path / "cache").rglob("*.json")
        remembered.write_text(content)
        assert shards.examine(shards.find([tmp_path / "a"])) == first
    assert len(reads) == 4


def test_the_digest_is_of_the_tokens_and_the_largest_among_them(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", 1000)
    tokens = drawn(3500)
    tokens[3333] = 54_321
    written = [token_files.nanogpt(tmp_path / "a.bin", tokens)]
    written += [token_files.llm_c(tmp_path / "b.bin", tokens), token_files.own(tmp_path, "shard-00000-000", tokens, 60_000)]
    found = shards.examine(shards.find([tmp_path]))
    assert sorted(found) == sorted(written)
    assert {facts["largest_token"] for facts in found.values()} == {54_321} and len({facts["xxh3_128"] for facts in found.values()}) == 1


def test_a_disk_that_fails_while_it_is_read(tmp_path, monkeypatch):
    token_files.nanogpt(tmp_path / "a.bin", drawn(10))
    found = shards.find([tmp_path])

    def fails(shard):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shard_formats.Shard, "array", fails)
    with pytest.raises(Refusal, match="a.bin cannot be read .*Input/output error"):
        shards.examine(found)


def test_a_shard_that_was_cut_counts_as_not_written(tmp_path):
    path = token_files.own(tmp_path, "shard-00000-000", np.arange(100, dtype=np.uint16), 1000)
    assert shards.is_written(tmp_path, path.stem)
    os.truncate(path, 100)
    assert not shards.is_written(tmp_path, path.stem)


def test_a_shard_whose_tokens_are_gone_is_named(tmp_path):
    token_files.own(tmp_path, "shard-00000-000", np.arange(100, dtype=np.uint16), 1000)
    token_files.own(tmp_path, "shard-00000-001", np.arange(100, dtype=np.uint16), 1000).unlink()
    with pytest.raises(Refusal, match=r"shard-00000-001.json is there, but not its shard-00000-001.bin"):
        shards.find([tmp_path])

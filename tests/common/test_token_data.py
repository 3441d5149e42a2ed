"""What a pretraining run reads: what is trained on and held out, the key of exactly these tokens, and each kind of bad input."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import token_files
from token_files import TEXT, drawn
from tokenizers import Tokenizer

from common import corpus, encoding, shards, token_data
from common.refusal import Refusal

VOCAB = 300
WANTED = {"tokenizer": None, "context": 16, "validation_files": 1, "max_files": None, "eval_tokens": 100, "seed": 1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPES_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """(directory, facts) of a byte-level BPE."""
    directory = tmp_path_factory.mktemp("tokenizer")
    facts = token_files.trained_tokenizer(directory, VOCAB)
    assert facts.vocab_size <= VOCAB
    return directory, facts


def read(*files, **more):
    return token_data.read([str(file) for file in files], **WANTED | more)


def foreign(directory, sizes, names="train_{:03d}.bin", seed=0, vocab_size=250):
    """nanoGPT files of these sizes; their tokens by name."""
    directory.mkdir(parents=True, exist_ok=True)
    written = {names.format(number): drawn(size, vocab_size, seed + number) for number, size in enumerate(sizes)}
    for name, tokens in written.items():
        token_files.nanogpt(directory / name, tokens)
    return written


def names(rows):
    return [shard.path.name for shard in rows.shards]


# what is trained on


def test_our_own_shards_need_nothing_else(tmp_path):
    token_files.own_directory(tmp_path / "a", [100, 200, 300, 400])
    data = read(tmp_path / "a")
    assert (data.vocab_size, data.end_of_text, data.tokenizer) == (1000, 999, None)
    assert len(data.train.shards) == 3 and len(data.validation.shards) == 1 and data.validation.tokens == 100
    assert sorted(names(data.train) + names(data.validation)) == sorted(path.name for path in (tmp_path / "a").glob("*.bin"))
    assert data.train.context == data.validation.context == 16
    assert data.bytes_of_tokens() is None and "no bits per byte" in data.describe()


def test_held_out_files_are_drawn_by_the_seed(tmp_path):
    token_files.own_directory(tmp_path / "a", [100] * 20)
    held = [names(read(tmp_path / "a", seed=seed, validation_files=2).validation) for seed in range(8)]
    assert held[3] == names(read(tmp_path / "a", seed=3, validation_files=2).validation) and all(len(set(h)) == 2 for h in held)
    assert len({tuple(h) for h in held}) > 4
    assert read(tmp_path / "a", validation_files=0).validation is None


def test_files_called_val_are_held_out_and_no_others(tmp_path, tokenizer):
    directory, _ = tokenizer
    foreign(tmp_path / "a", [500, 600], "fineweb_train_{:06d}.bin")
    foreign(tmp_path / "a", [700], "fineweb_val_{:06d}.bin", seed=9)
    data = read(tmp_path / "a", tokenizer=directory, validation_files=1, eval_tokens=10**6)
    assert names(data.validation) == ["fineweb_val_000000.bin"] and data.validation.tokens == 700
    assert names(data.train) == ["fineweb_train_000000.bin", "fineweb_train_000001.bin"]
    without = read(tmp_path / "a", tokenizer=directory, validation_files=0)
    assert without.validation is None and names(without.train) == names(data.train)


def test_so_many_files(tmp_path):
    token_files.own_directory(tmp_path / "a", [100] * 30)
    data = read(tmp_path / "a", max_files=25)
    assert len(data.train.shards) == 25 and len(data.validation.shards) == 1  # held-out files come on top
    every = sorted(path.name for path in (tmp_path / "a").glob("*.bin"))
    assert names(data.train) == [name for name in every if name not in names(data.validation)][:25]


def test_eval_tokens_bound_what_is_judged(tmp_path):
    token_files.own_directory(tmp_path / "a", [1000] * 5)
    assert read(tmp_path / "a", validation_files=2, eval_tokens=300).validation.tokens == 300
    assert read(tmp_path / "a", validation_files=2, eval_tokens=10**9).validation.tokens == 2000


def test_every_format_in_one_run_gives_all_its_tokens(tmp_path, tokenizer):
    directory, facts = tokenizer
    place = tmp_path / "a"
    tokens = [drawn(size, 250) for size in (301, 402, 503, 604, 705)]
    token_files.own(place, "shard-00000-000", tokens[0], facts.vocab_size, facts.digest)
    token_files.nanogpt(place / "b.bin", tokens[1])
    token_files.llm_c(place / "c.bin", tokens[2])
    token_files.datatrove_by_hand(place, "d.ds", [tokens[3][:4], tokens[3][4:]], 4)
    np.savez(place / "e.npz", tokens=tokens[4])
    data = read(place, tokenizer=directory, validation_files=0)
    batch = data.train.__getitems__(np.arange(len(data.train)))
    got = np.sort(batch["labels"][batch["labels"] != -100].numpy())
    assert np.array_equal(got, np.sort(np.concatenate([t[1:] for t in tokens])))


def test_the_standard_library_by_its_name(tmp_path, monkeypatch):
    token_files.own_directory(tmp_path / "library", [100, 100])
    monkeypatch.setattr(corpus, "python_library", lambda: tmp_path / "library")
    assert read("python-library").train.tokens == 100


# the tokenizer


def test_the_tokenizer_beside_the_files_is_taken(tmp_path, tokenizer):
    directory, facts = tokenizer
    for place in ("a", "b"):
        shutil.copytree(directory, tmp_path / place / "tokenizer")
    foreign(tmp_path / "a", [100, 100])
    np.savez(tmp_path / "b" / "tokenized_0.npz", tokens=drawn(100, 250))
    for place, held in (("a", 1), ("b", 0)):
        data = read(tmp_path / place, validation_files=held)
        assert data.tokenizer == tmp_path / place / "tokenizer" and data.statistics["tokenizer"]["digest"] == facts.digest
        assert (data.vocab_size, data.end_of_text) == (facts.vocab_size, facts.end_of_text)
    assert read(tmp_path / "a", tmp_path / "b").tokenizer  # the same one twice


def test_bytes_of_tokens_add_up_to_the_bytes_of_a_text(tokenizer):
    directory, facts = tokenizer
    found = token_data.bytes_of_tokens(directory, facts.vocab_size)
    ids = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(TEXT.decode()).ids
    assert found.dtype == np.int32 and len(found) == facts.vocab_size
    assert found[ids].sum() == len(TEXT) and found[facts.end_of_text] == 0 and found.max() > 3


def test_bytes_of_tokens_of_an_added_word_and_of_another_kind_of_tokenizer(tmp_path, tokenizer):
    directory, facts = tokenizer
    shutil.copytree(directory, tmp_path / "t")
    path = tmp_path / "t" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": facts.vocab_size, "content": "né", "special": False})
    path.write_text(json.dumps(content))
    assert token_data.bytes_of_tokens(tmp_path / "t", facts.vocab_size + 1)[-1] == 3
    path.write_text(json.dumps(content | {"decoder": {"type": "WordPiece"}}))
    assert token_data.bytes_of_tokens(tmp_path / "t", facts.vocab_size) is None


# the key and what is written


def test_the_key_is_of_the_tokens_and_what_is_made_of_them(tmp_path, tokenizer):
    directory, _ = tokenizer
    place = tmp_path / "a"
    foreign(place, [200] * 6)

    def key(*places, **more):
        return read(*(places or [place]), **{"tokenizer": directory, "validation_files": 2} | more).key

    first = key()
    others = [key(seed=2), key(context=17), key(max_files=3), key(validation_files=1), key(validation_files=0)]
    assert len({first, *others}) == 6 and first == key() == key(max_files=4) == key(eval_tokens=50)
    shutil.copytree(place, tmp_path / "elsewhere" / "b")
    assert key(tmp_path / "elsewhere" / "b") == first == key(place / "*.bin")
    tokens = np.fromfile(place / "train_003.bin", "<u2")
    tokens[50] ^= 1
    tokens.tofile(place / "train_003.bin")
    assert key() != first


def test_the_key_changes_with_the_drawn_split_alone(tmp_path):
    token_files.own_directory(tmp_path / "a", [100] * 6)
    found = {seed: read(tmp_path / "a", seed=seed) for seed in range(4)}
    assert len({data.key for data in found.values()}) == 4


def test_what_a_run_writes_down(tmp_path):
    token_files.own_directory(tmp_path / "a", [100] * 60)
    (tmp_path / "a" / "index.json").write_text(json.dumps({"skipped": {"empty": 3, "invalid UTF-8": 1}}))
    data = read(tmp_path / "a", validation_files=2)
    run = SimpleNamespace(data=tmp_path / "run" / "data.json", held_out_tokens=tmp_path / "run" / "held_out.npz")
    data.copy_to(run)
    said = json.loads(run.data.read_text())
    assert said == data.statistics and said["kind"] == "tokens" and said["context"] == 16 and run.held_out_tokens.is_file()
    assert len(said["files"]) == 50 and said["files_in_all"] == 58 and set(map(str, said["files"].values())) == {"{'tokens': 100}"}
    assert not any("/" in name for name in [*said["files"], *said["held_out_files"]]) and len(said["held_out_files"]) == 2
    assert said["splits"]["train"] == {"files": 58, "shards": 58, "rows": 58 * 7, "tokens": 5800, "documents": 58}
    assert said["splits"]["validation"]["tokens"] == 100 and said["skipped"] == {"empty": 3, "invalid UTF-8": 1}
    assert said["tokenizer"] == {"digest": "0123456789abcdef", "vocab_size": 1000, "end_of_text": 999}


def test_documents_are_not_guessed(tmp_path, tokenizer):
    foreign(tmp_path / "a", [100, 100])
    assert read(tmp_path / "a", tokenizer=tokenizer[0]).statistics["splits"]["train"]["documents"] is None


# what --plan sees


def test_the_plan_counts_without_reading(tmp_path, monkeypatch):
    token_files.own_directory(tmp_path / "a", [1601] * 10)
    data = read(tmp_path / "a", eval_tokens=200)
    monkeypatch.setattr(shards, "examine", None)
    forecast = token_data.Forecast([str(tmp_path / "a")], **WANTED | {"eval_tokens": 200})
    assert forecast.workload(None, None) == data.workload and forecast.vocab_size == 1000 and forecast.missing is None


def test_the_plan_says_what_it_cannot_count(tmp_path):
    np.savez(tmp_path / "a.npz", tokens=drawn(100))
    forecast = token_data.Forecast([str(tmp_path)], **WANTED)
    with pytest.raises(Refusal, match="a.npz is counted when it is unpacked"):
        forecast.workload(None, None)
    assert not list((tmp_path / "cache").rglob("*.bin"))


# bad input


def test_no_shards(tmp_path):
    with pytest.raises(Refusal, match=r"a directory without shards .*; write some there with prepare/pretrain_tokens.py"):
        read(tmp_path)


def test_a_directory_that_is_not_finished(tmp_path):
    token_files.own_directory(tmp_path, [100, 100])
    (tmp_path / "task-00000.json").write_text("{}")
    with pytest.raises(Refusal, match=r"is not finished: .* not its index.json, .*; start that again, or name what is there as .*/\*.bin"):
        read(tmp_path)
    assert len(read(tmp_path / "*.bin").train.shards) == 1


def test_a_truncated_shard(tmp_path):
    token_files.own_directory(tmp_path, [100, 100])
    os.truncate(tmp_path / "shard-00001-000.bin", 100)
    with pytest.raises(Refusal, match=r"shard-00001-000.bin has 100 bytes, .* says 100 tokens of 2; it was cut short or changed: copy it"):
        read(tmp_path)


@pytest.mark.parametrize("seed", range(2))
def test_a_corrupt_shard_whether_it_is_trained_on_or_held_out(tmp_path, seed):
    token_files.own_directory(tmp_path / "a", [1000, 1000])
    path = tmp_path / "a" / f"shard-0000{seed}-000.bin"
    content = bytearray(path.read_bytes())
    content[1234] ^= 1
    path.write_bytes(content)
    with pytest.raises(Refusal, match=f"{path.name} is not as it was written .*copy it again, or remove it"):
        read(tmp_path / "a")


def test_a_token_beyond_the_vocabulary(tmp_path, tokenizer):
    directory, facts = tokenizer
    foreign(tmp_path / "a", [100, 100])
    tokens = drawn(100, 250)
    tokens[7] = facts.vocab_size
    token_files.nanogpt(tmp_path / "a" / "train_000.bin", tokens)
    with pytest.raises(Refusal, match=rf"train_000.bin has token {facts.vocab_size}, and the vocabulary ends at {facts.vocab_size - 1}; .*"
                                      "correct TOKENIZER or TRAIN_FILES"):  # fmt: skip
        read(tmp_path / "a", tokenizer=directory)
    tokens[7] = facts.vocab_size - 1
    token_files.nanogpt(tmp_path / "a" / "train_000.bin", tokens)
    assert read(tmp_path / "a", tokenizer=directory)


def test_shards_of_two_tokenizers(tmp_path):
    token_files.own_directory(tmp_path / "a", [100, 100])
    token_files.own_directory(tmp_path / "b", [100, 100], tokenizer="f" * 16)
    with pytest.raises(Refusal, match=r"a/shard.*.bin and .*b/shard.*.bin are of two tokenizers \(0123456789abcdef, ffffffffffffffff\)"):
        read(tmp_path / "a", tmp_path / "b")


def test_two_tokenizers_beside_foreign_files(tmp_path):
    for place, size in (("a", 300), ("b", 290)):
        foreign(tmp_path / place, [100, 100])
        token_files.trained_tokenizer(tmp_path / place / "tokenizer", size)
    with pytest.raises(Refusal, match=r"a/tokenizer and .*b/tokenizer are two tokenizers"):
        read(tmp_path / "a", tmp_path / "b")


def test_another_tokenizer_than_the_shards(tmp_path, tokenizer):
    directory, facts = tokenizer
    token_files.own_directory(tmp_path / "a", [100, 100])
    with pytest.raises(Refusal, match=rf"is of the tokenizer 0123456789abcdef, and {directory} is {facts.digest}; name the tokenizer that"):
        read(tmp_path / "a", tokenizer=directory)


def test_no_tokenizer_for_files_that_name_none(tmp_path):
    foreign(tmp_path / "a", [100, 100])
    with pytest.raises(Refusal, match=r'train_00.*.bin does not say of which tokenizer its tokens are; name it, for example TOKENIZER = "'):
        read(tmp_path / "a")


def test_a_tokenizer_that_is_none(tmp_path):
    foreign(tmp_path / "a", [100, 100])
    with pytest.raises(Refusal, match="tokenizer.json does not exist"):
        read(tmp_path / "a", tokenizer=tmp_path)


def test_a_pickled_npz(tmp_path, tokenizer):
    np.savez(tmp_path / "a.npz", tokens=np.array([{"a": 1}], dtype=object))
    with pytest.raises(Refusal, match="it holds Python objects, which are never loaded here"):
        read(tmp_path, tokenizer=tokenizer[0], validation_files=0)


def test_fewer_tokens_than_one_step(tmp_path):
    token_files.own_directory(tmp_path / "a", [100, 161])
    data = read(tmp_path / "a", validation_files=0)
    data.require_a_step(17)
    with pytest.raises(Refusal, match=r"261 training tokens are 17 rows of MAX_SEQ_LENGTH = 16, and one step takes TRAIN_BATCH_SIZE = 18"):
        data.require_a_step(18)


def test_one_shard_cannot_be_held_out_and_trained_on(tmp_path):
    token_files.own_directory(tmp_path / "a", [100])
    with pytest.raises(Refusal, match=r"VALIDATION_FILES = 1 of 1 file\(s\) leaves nothing to train on; .*--shard-tokens.*FILES = 0"):
        read(tmp_path / "a")
    assert read(tmp_path / "a", validation_files=0).train.tokens == 100


def test_files_that_are_all_held_out(tmp_path, tokenizer):
    foreign(tmp_path / "a", [100, 100], "val_{}.bin")
    with pytest.raises(Refusal, match='every file of .* has "val" in its name and is held out; add files'):
        read(tmp_path / "a", tokenizer=tokenizer[0])


def test_a_file_that_cannot_be_read(tmp_path, tokenizer):
    foreign(tmp_path / "a", [100, 100])
    (tmp_path / "a" / "train_001.bin").unlink()
    (tmp_path / "a" / "train_001.bin").symlink_to(tmp_path / "gone")
    with pytest.raises(Refusal, match="train_001.bin cannot be read .No such file or directory.; correct TRAIN_FILES"):
        read(tmp_path / "a", tokenizer=tokenizer[0])


def test_the_digest_of_a_tokenizer_is_the_shards(tmp_path, tokenizer):
    directory, facts = tokenizer
    token_files.own_directory(tmp_path / "a", [100, 100], facts.vocab_size, tokenizer=encoding.digest(directory))
    data = read(tmp_path / "a", tokenizer=directory)
    assert data.tokenizer == directory and data.bytes_of_tokens().sum() > 256


@pytest.mark.parametrize(
    ("name", "held"),
    [("val", True), ("fineweb_val_000000", True), ("openwebtext.val", True), ("validation-3", True)]
    + [("interval", False), ("retrieval", False), ("valley_01", False), ("train", False)],
)
def test_which_names_are_held_out(name, held):
    assert bool(token_data.VALIDATION.search(name)) == held

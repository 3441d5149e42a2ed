"""The embedded corpus: built once from this Python's own library, all of it, and read by others' code."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from common import corpus


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(directory, seconds that it took) in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECIPES_CACHE", str(tmp_path_factory.mktemp("cache")))
        start = time.monotonic()
        directory = corpus.python_library()
        seconds = time.monotonic() - start
        assert corpus.python_library() == directory
    return directory, seconds


def shards_of(directory):
    return [json.loads(path.read_text()) | {"path": path} for path in sorted(directory.glob("shard-*.json"))]


def test_it_is_ready_in_time(built):
    assert built[1] < 25


def test_every_file_of_the_library_comes_back_from_the_tokens(built):
    directory = built[0]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer" / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    tokens = np.concatenate([np.fromfile(shard["path"].with_suffix(".bin"), "<u2") for shard in shards_of(directory)])
    documents = {
        tokenizer.decode(document.tolist(), skip_special_tokens=False) for document in np.split(tokens, np.flatnonzero(tokens == end) + 1)
    }
    wanted = {}
    for path in corpus.library_files()[::7]:
        content = path.read_bytes()
        try:
            if content.strip():
                wanted[content.decode() + "<|endoftext|>"] = path
        except UnicodeDecodeError:
            continue
    assert len(wanted) > 20
    assert [wanted[text] for text in wanted.keys() - documents] == []


def test_the_shards_say_what_they_hold(built):
    directory = built[0]
    found = shards_of(directory)
    size = 0
    for path in corpus.library_files():
        content = path.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError:
            continue
        size += len(content) if content.strip() else 0
    assert sum(shard["text_bytes"] for shard in found) == size
    assert {shard["tokens"] for shard in found[:-1]} == {corpus.SHARD_TOKENS}
    assert {(shard["vocab_size"], shard["end_of_text"]) for shard in found} == {(2048, 2047)}
    for shard in found:
        tokens = np.fromfile(shard["path"].with_suffix(".bin"), "<u2")
        ends = np.load(shard["path"].with_suffix(".docs.npy"), allow_pickle=False)
        assert (np.flatnonzero(tokens == 2047) + 1).tolist() == ends.tolist()


def test_no_installed_package_is_in_it():
    assert [path for path in corpus.library_files() if {"site-packages", "dist-packages"} & set(path.parts)] == []
    assert {"argparse.py", "heapq.py"} <= {Path(path).name for path in corpus.library_files()}

"""A corpus that every machine has: the sources of Python's own standard library, as token shards. Nothing is downloaded."""

import hashlib
import random
import sysconfig
from pathlib import Path

import numpy as np

from common import cache, encoding, raw_text, shards, text_sources

VOCABULARY = 2048  # of the tokenizer that is trained on it
SHARD_TOKENS = 262_144  # about 40 shards of the ten million tokens that CPython 3.11 has, with its tests
SEED = 17  # of the order of the files, so that no shard is one package
LAYOUT = 1  # of what is written; a new one is built anew


def python_library():
    """The directory of the shards, built once in the cache, in seconds: every .py below the standard library of this Python.

    With its tests where they are installed (some distributions leave them out), without site-packages and dist-packages, without what is no
    UTF-8. The tokenizer beside them has learnt from the same files. Another Python has other files, and a directory of its own.
    """
    target = path()
    cache.build_once(target, lambda directory: _build(directory, library_files()))
    return target


def path():
    """Where `python_library` is, built or not."""
    facts = hashlib.sha256(repr([(path.name, path.stat().st_size) for path in library_files()]).encode()).hexdigest()[:8]
    return cache.root() / "corpora" / f"python-{sysconfig.get_python_version()}-{facts}-{LAYOUT}"


def library_files():
    """The files of the corpus, sorted."""
    top = Path(sysconfig.get_path("stdlib"))
    installed = {"site-packages", "dist-packages", "__pycache__"}
    return sorted(path for path in top.rglob("*.py") if not installed & set(path.relative_to(top).parts) and path.is_file())


def _build(directory, files):
    files = list(files)
    random.Random(SEED).shuffle(files)
    skipped = raw_text.Skipped()
    documents = [document for path in files for source in text_sources.find([path]) for batch in raw_text.batches(source, "text", skipped)
                 for document in batch]  # fmt: skip
    encoding.train(documents, VOCABULARY, directory / "tokenizer")
    encoder = encoding.Encoder(directory / "tokenizer")
    tokens, ends = encoder.encode(documents)
    sizes = np.cumsum([0, *map(len, documents)])
    for number, start in enumerate(range(0, len(tokens), SHARD_TOKENS)):
        part = tokens[start : start + SHARD_TOKENS]
        first, last = np.searchsorted(ends, [start, start + len(part)], side="right")
        shards.write(directory, f"shard-00000-{number:03d}", part, ends[first:last] - start, text_bytes=int(sizes[last] - sizes[first]),
                     tokenizer=encoder.digest, vocab_size=encoder.vocab_size, end_of_text=encoder.end_of_text,
                     sources=["the standard library of Python"])  # fmt: skip

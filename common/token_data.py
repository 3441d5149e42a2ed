"""The tokens of a pretraining run: which files are trained on and which held out, checked before a rank starts, and what to say of them."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import corpus, encoding, held_out_tokens, plan, shards
from common.refusal import Refusal
from common.run_directory import read_json, write_json
from common.token_rows import TokenRows

VALIDATION = re.compile(r"(?<![a-z])val(id|idation)?(?![a-z])", re.IGNORECASE)  # in a name: val.bin, fineweb_val_000000.bin
PYTHON_LIBRARY = "python-library"  # in TRAIN_FILES: the standard library's sources, tokenised here
SHOWN = 50  # files whose names stand in data.json


@dataclass(frozen=True)
class TokenData:
    """What `read` found; `tokenizer` is a directory or None, `key` a name for exactly these rows."""

    train: TokenRows
    validation: TokenRows | None
    key: str
    tokenizer: Path | None
    vocab_size: int
    end_of_text: int
    statistics: dict

    @property
    def workload(self):
        return _workload(self.train, self.validation, f"the files' own counts, {len(self.train.shards)} of them")

    def copy_to(self, run):
        """Write data.json and the held-out tokens that checkpoints are judged on into the run directory."""
        write_json(run.data, self.statistics)
        whole = self.validation and TokenRows(self.validation.shards, self.validation.context, self.end_of_text)  # not EVAL_TOKENS of it
        held_out_tokens.write(run, whole, self.end_of_text)

    def require_a_step(self, rows):
        """`Refusal` where there are fewer training rows than the `rows` of one optimiser step."""
        if len(self.train) < rows:
            raise Refusal(
                f"{self.train.tokens:,} training tokens are {len(self.train):,} rows of MAX_SEQ_LENGTH = {self.train.context:,}, and one "
                f"step takes TRAIN_BATCH_SIZE = {rows}; bring more tokens, or make one of the two smaller"
            )

    def bytes_of_tokens(self):
        """int32 [vocab_size]: UTF-8 bytes of each token of a byte-level tokenizer, 0 for special ones; None for no or another tokenizer."""
        return bytes_of_tokens(self.tokenizer, self.vocab_size) if self.tokenizer else None

    def describe(self):
        """The data in words, for the terminal."""
        lines = []
        for name, found in self.statistics["splits"].items():
            documents = f", {found['documents']:,} documents" if found["documents"] else ""
            named = f" ({', '.join(self.statistics['held_out_files'][:3])}{', …' * (found['files'] > 3)})" * (name == "validation")
            lines.append(f"{name:<10} {found['tokens']:,} tokens in {found['files']:,} files{named}{documents}: {found['rows']:,} rows")
        digest = self.statistics["tokenizer"]["digest"]
        named = f"tokenizer {digest}" if self.tokenizer else "no tokenizer"
        lines.append(f"{named}, {self.vocab_size:,} tokens; documents end with token {self.end_of_text}")
        if not self.tokenizer:
            lines[-1] += ": no bits per byte and no samples (TOKENIZER names one)"
        return "\n".join(lines)


def read(files, tokenizer, context, validation_files, max_files, eval_tokens, seed):
    """`TokenData` of the recipe's constants, after every file was read once and compared with what is said of it.

    files: TRAIN_FILES; tokenizer: a directory, or None for tokenizer/ beside the shards. Files with "val" in their names are
    held out; where none has, `validation_files` are drawn by the seed. max_files: so many training files. eval_tokens: of the held-out
    files.
    Raises `Refusal` for whatever cannot be trained on.
    """
    names = shards.files_of(places(files, build=True))
    trained, held = _divided(names, validation_files, max_files, seed)
    every = [*trained, *held]
    directory = _tokenizer(tokenizer, names)
    digest, vocab_size, end_of_text = _vocabulary(directory, every)
    examined = shards.examine(every)
    for shard in every:
        largest = examined[shard.path]["largest_token"]
        if largest >= vocab_size:
            raise Refusal(f"{shard.path} has token {largest:,}, and the vocabulary ends at {vocab_size - 1:,}; its tokens are of another "
                          "tokenizer, or of another format than its name says: correct TOKENIZER or TRAIN_FILES")  # fmt: skip
    rows = TokenRows(trained, context, end_of_text)
    validation = TokenRows(held, context, end_of_text, eval_tokens) if held else None
    contents = [[examined[shard.path]["xxh3_128"] for shard in part] for part in (trained, held)]
    key = hashlib.sha256(json.dumps([contents, context, vocab_size, end_of_text, seed]).encode())
    statistics = {
        "kind": "tokens", "context": context,
        "tokenizer": {"digest": digest, "vocab_size": vocab_size, "end_of_text": end_of_text},
        "files": {shard.path.name: {"tokens": shard.tokens} for shard in trained[:SHOWN]}, "files_in_all": len(trained),
        "held_out_files": [shard.path.name for shard in held[:SHOWN]],
        "splits": {name: _counts(part) for name, part in (("train", rows), ("validation", validation)) if part is not None},
        "skipped": _skipped(every),
    }  # fmt: skip
    return TokenData(rows, validation, key.hexdigest()[:24], directory, vocab_size, end_of_text, statistics)


class Forecast:
    """What --plan knows of the tokens: counts of the files that are here, none of which is read. Built, unpacked and fetched is nothing."""

    def __init__(self, files, tokenizer, context, validation_files, max_files, eval_tokens, seed):
        self.context, self.eval_tokens, self.missing, self.vocab_size = context, eval_tokens * bool(validation_files), None, None
        try:
            names = shards.files_of(places(files, build=False))
            packed = [path for path in names if path.suffix == ".npz"]
            if packed:
                raise Refusal(f"{packed[0]} is counted when it is unpacked, before training")
            trained, held = _divided(names, validation_files, max_files, seed)
            self.rows = TokenRows(trained, context, 0)
            self.held = TokenRows(held, context, 0, eval_tokens) if held else None
            self.vocab_size = next((shard.vocab_size for shard in trained if shard.vocab_size), None)
        except Refusal as refusal:
            self.missing = str(refusal)
            self.vocab_size = corpus.VOCABULARY if PYTHON_LIBRARY in files else None

    def workload(self, job, tokens):
        """The `plan.Workload`; tokens: those of --tokens or None. `Refusal` where neither tells."""
        if tokens:
            return plan.full_rows(tokens, self.context, self.eval_tokens)
        if self.missing:
            raise Refusal(self.missing)
        return _workload(self.rows, self.held, f"the files' own counts, {len(self.rows.shards)} of them")


def places(files, build):
    """TRAIN_FILES with PYTHON_LIBRARY replaced by the directory of its shards; `Refusal` where it is not built and not to be."""
    if not files:
        raise Refusal("TRAIN_FILES is empty; name files, directories or globs of tokens, for example data/tokens")
    if PYTHON_LIBRARY in files and not build and not corpus.path().is_dir():
        raise Refusal(f"{PYTHON_LIBRARY} is tokenised by the first run")
    return [str(corpus.python_library()) if name == PYTHON_LIBRARY else name for name in files]


def bytes_of_tokens(directory, vocab_size):
    """int32 [vocab_size] as `TokenData.bytes_of_tokens` says; None where the tokenizer is not byte-level."""
    content = json.loads((Path(directory) / "tokenizer.json").read_text(encoding="utf-8"))
    if "ByteLevel" not in json.dumps(content.get("decoder")):
        return None
    found = np.zeros(vocab_size, dtype=np.int32)  # of an alphabet in which each character stands for a byte
    vocabulary = content["model"]["vocab"]
    ids = np.fromiter(vocabulary.values(), dtype=np.int64, count=len(vocabulary))
    sizes = np.fromiter(map(len, vocabulary), dtype=np.int32, count=len(vocabulary))
    found[ids[ids < vocab_size]] = sizes[ids < vocab_size]
    for token in content.get("added_tokens", []):
        if token["id"] < vocab_size:
            found[token["id"]] = 0 if token["special"] else len(token["content"].encode())
    return found


def _divided(names, validation_files, max_files, seed):
    """([Shard] to train on, [Shard] held out) of these files."""
    named = [path for path in names if VALIDATION.search(path.stem)]
    if named:
        chosen, held = [path for path in names if path not in named], named * bool(validation_files)
    else:
        if validation_files and len(names) <= validation_files:
            raise Refusal(
                f"VALIDATION_FILES = {validation_files} of {len(names)} file(s) leaves nothing to train on; make more and smaller ones "
                "(prepare/pretrain_tokens.py --shard-tokens), or set VALIDATION_FILES = 0"
            )
        drawn = set(np.random.default_rng(seed).permutation(len(names))[:validation_files].tolist())
        chosen, held = [path for n, path in enumerate(names) if n not in drawn], [names[n] for n in sorted(drawn)]
    if not chosen:
        directories = sorted({str(path.parent) for path in names})
        raise Refusal(f'every file of {", ".join(directories)} has "val" in its name and is held out; add files to train on')
    return shards.find(chosen, max_files), shards.find(held)


def _tokenizer(named, found):
    """The tokenizer's directory: `named`, or tokenizer/ beside the files; None without one."""
    if named is None:
        beside = sorted({path.parent / "tokenizer" for path in found})
        there = {encoding.digest(path): path for path in reversed(beside) if (path / "tokenizer.json").is_file()}
        if len(there) > 1:
            raise Refusal(f"{' and '.join(sorted(map(str, there.values())))} are two tokenizers: the same number is another word; train "
                          "on files of one, or write one of them again")  # fmt: skip
        return next(iter(there.values()), None)
    return Path(named)


def _vocabulary(directory, found):
    """(digest, vocab_size, end_of_text) that all shards and the tokenizer agree on."""
    said = {}
    for shard in found:
        if shard.tokenizer is not None:
            said.setdefault(shard.tokenizer, shard)
    if len(said) > 1:
        one, other = list(said.values())[:2]
        raise Refusal(f"{one.path} and {other.path} are of two tokenizers ({one.tokenizer}, {other.tokenizer}): the same number is another "
                      "word; train on files of one, or write one of them again")  # fmt: skip
    ours = next(iter(said.values()), None)
    if directory is None:
        if ours is None:
            raise Refusal(f'{found[0].path} does not say of which tokenizer its tokens are; name it, for example TOKENIZER = '
                          '"openai-community/gpt2", or a directory')  # fmt: skip
        return ours.tokenizer, ours.vocab_size, ours.end_of_text
    encoder = encoding.facts(directory)
    if ours is not None and ours.tokenizer != encoder.digest:
        raise Refusal(f"{ours.path} is of the tokenizer {ours.tokenizer}, and {directory} is {encoder.digest}; name the tokenizer that the "
                      "files were written with, or leave TOKENIZER out")  # fmt: skip
    return encoder.digest, encoder.vocab_size, encoder.end_of_text


def _workload(rows, held, source):
    return plan.Workload(len(rows), rows.targets, len(rows) * rows.context, rows.context, held.tokens if held else 0, "rows full", source)


def _skipped(found):
    """{reason: count} of what was left out when the text became tokens: of whole directories of our own, as their index.json say."""
    indexes = {shard.path.parent / "index.json" for shard in found if shard.kind == "own"}
    return dict(sum((Counter(read_json(path, {}).get("skipped")) for path in sorted(indexes)), Counter()))


def _counts(rows):
    limited = rows.tokens < sum(shard.tokens for shard in rows.shards)
    documents = [None if limited else shard.documents for shard in rows.shards]
    return {
        "files": len(rows.shards), "shards": len(rows.shards), "rows": len(rows), "tokens": rows.tokens,
        "documents": None if None in documents else sum(documents),
    }  # fmt: skip

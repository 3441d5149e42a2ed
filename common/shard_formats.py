"""Files of tokens by what is in them: our own shards, nanoGPT's and llm.c's .bin, datatrove's .ds."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.refusal import Refusal

FORMAT = 1  # of our own
LLM_C_MAGIC, LLM_C_HEADER = 20240520, 256 * 4  # llm.c's data files begin with 256 int32: magic, version, count
OURS = re.compile(r"shard-\d{5}-\d{3}\.bin")
WIDTHS = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True)
class Shard:
    """One file of tokens; None where a format does not say it."""

    path: Path
    kind: str  # "own", "nanogpt", "llm.c", "datatrove"
    dtype: np.dtype
    tokens: int
    offset: int = 0  # bytes before the first token
    documents: int | None = None
    text_bytes: int | None = None
    tokenizer: str | None = None  # digest
    vocab_size: int | None = None
    end_of_text: int | None = None
    xxh3_128: str | None = None
    largest_token: int | None = None

    def array(self):
        """The tokens, read where they are touched; read-only."""
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=(self.tokens,))


def recognise(path):
    """The `Shard` in the file `path`; `Refusal` where it is cut short, contradicts what is said of it, or was never finished."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.suffix == ".ds":
            found = _datatrove(path, size)
        elif path.with_suffix(".json").is_file():
            found = _own(path, size)
        elif OURS.fullmatch(path.name):
            raise Refusal(f"{path} has no {path.stem}.json, which is written last: it was never finished; start prepare/pretrain_tokens.py "
                          "again with the same arguments")  # fmt: skip
        else:
            found = _bin(path, size)
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror}); correct TRAIN_FILES, or the file's permissions") from None
    if not found.tokens:
        raise Refusal(f"{path} holds no tokens; remove it, or leave it out of TRAIN_FILES")
    return found


def _own(path, size):
    facts_path = path.with_suffix(".json")
    wanted = {"format": int, "dtype": str, "tokens": int, "documents": int, "xxh3_128": str, "largest_token": int}
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
        wrong = [key for key, kind in wanted.items() if not isinstance(facts[key], kind)]
        if wrong or facts["format"] != FORMAT or facts["dtype"] not in WIDTHS:
            raise ValueError(f"{(wrong or ['format or dtype'])[0]} is not one that is known here")
    except (ValueError, KeyError, TypeError) as error:
        said = f"{facts_path} does not describe a shard ({error})"
        raise Refusal(f"{said}; write {path.name} again with prepare/pretrain_tokens.py") from None
    dtype = WIDTHS[facts["dtype"]]
    if size != facts["tokens"] * dtype.itemsize:
        raise Refusal(f"{path} has {size:,} bytes, and its {facts_path.name} says {facts['tokens']:,} tokens of {dtype.itemsize}; it was "
                      "cut short or changed: copy it again, or write it again with prepare/pretrain_tokens.py")  # fmt: skip
    more = {key: facts.get(key) for key in ("text_bytes", "tokenizer", "vocab_size", "end_of_text", "xxh3_128", "largest_token")}
    return Shard(path, "own", dtype, facts["tokens"], documents=facts["documents"], **more)


def _bin(path, size):
    header = np.fromfile(path, dtype="<i4", count=256) if size >= LLM_C_HEADER else np.zeros(256, dtype="<i4")
    if header[0] == LLM_C_MAGIC:
        if header[1] != 1 or size != LLM_C_HEADER + 2 * int(header[2]):
            raise Refusal(f"{path} has llm.c's header, of version {header[1]} with {header[2]:,} tokens, and {size:,} bytes; version 1 and "
                          f"{LLM_C_HEADER + 2 * int(header[2]):,} bytes belong together: copy it again")  # fmt: skip
        return Shard(path, "llm.c", WIDTHS["uint16"], int(header[2]), LLM_C_HEADER)
    if size % 2:
        raise Refusal(f"{path} has {size:,} bytes, an odd number, and nanoGPT's .bin holds tokens of 2; it was cut short: copy it again")
    return Shard(path, "nanogpt", WIDTHS["uint16"], size // 2)


def _datatrove(path, size):
    """Its .ds.index has the end of every document, counted in tokens, which tells the width of one; so does its .ds.metadata."""
    index, metadata = path.with_name(f"{path.name}.index"), path.with_name(f"{path.name}.metadata")
    documents = None
    if index.is_file():
        ends = np.fromfile(index, dtype="<u8")
        documents, tokens = len(ends), int(ends[-1]) if len(ends) else 0
    elif metadata.is_file():
        lines = metadata.read_text(encoding="utf-8").splitlines()
        tokens = int(lines[1]) if len(lines) > 1 and lines[1].isdigit() else 0
    else:
        raise Refusal(f"{path} has neither {index.name} nor {metadata.name} beside it, which tell whether its tokens have 2 or 4 bytes; "
                      "copy one of them there")  # fmt: skip
    width = next((dtype for dtype in WIDTHS.values() if tokens * dtype.itemsize == size), None)
    if width is None:
        raise Refusal(f"{path} has {size:,} bytes, and what lies beside it says {tokens:,} tokens, which have 2 or 4 each; it was cut "
                      "short: copy it again")  # fmt: skip
    return Shard(path, "datatrove", width, tokens, documents=documents)

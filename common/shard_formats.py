"""Files of tokens by what is in them: our own shards, nanoGPT's and llm.c's .bin, datatrove's .ds."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.refusal import Refusal

FORMAT = 1  # of our own
OURS = re.compile(r"shard-\d{5}-\d{3}\.bin")
WIDTHS = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
LLM_C = {20240520: (1, "uint16"), 20240801: (7, "uint32")}  # magic: version and width; GPT-2's and Llama 3's tokens
LLM_C_HEADER = 256 * 4  # bytes, int32: magic, version, count, zeros


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
    wanted = {"format": int, "dtype": str, "tokens": int, "documents": int, "text_bytes": int, "largest_token": int, "xxh3_128": str,
              "tokenizer": str, "vocab_size": int, "end_of_text": int}  # fmt: skip
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
    magic, version, tokens = np.pad(np.fromfile(path, dtype="<i4", count=3), (0, 3))[:3].tolist()
    if magic in LLM_C:
        known, name = LLM_C[magic]
        wanted = LLM_C_HEADER + WIDTHS[name].itemsize * tokens
        if version != known or size != wanted:
            raise Refusal(f"{path} has llm.c's header, of version {version} with {tokens:,} tokens, and {size:,} bytes; to that many "
                          f"tokens belong version {known} and {wanted:,} bytes: copy it again")  # fmt: skip
        return Shard(path, "llm.c", WIDTHS[name], tokens, LLM_C_HEADER)
    if size % 2:
        raise Refusal(f"{path} has {size:,} bytes, an odd number, and nanoGPT's .bin holds tokens of 2; it was cut short: copy it again")
    return Shard(path, "nanogpt", WIDTHS["uint16"], size // 2)


def _datatrove(path, size):
    """Its .ds.metadata says how wide a token is and how many there are; its .ds.index has the end of every document, in tokens."""
    index, metadata = path.with_name(f"{path.name}.index"), path.with_name(f"{path.name}.metadata")
    documents, tokens, widths = None, 0, list(WIDTHS.values())
    if index.is_file():
        ends = np.fromfile(index, dtype="<u8")
        documents, tokens = len(ends), int(ends[-1]) if len(ends) else 0
    if metadata.is_file():  # "tokenizer|width", count, count in words
        named, *counts = metadata.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        tokens = int(counts[0]) if counts and counts[0].isdecimal() else tokens
        widths = [dtype for dtype in widths if named.endswith(f"|{dtype.itemsize}")] or widths
    elif not index.is_file():
        raise Refusal(f"{path} has neither {index.name} nor {metadata.name} beside it, which tell whether its tokens have 2 or 4 bytes; "
                      "copy one of them there")  # fmt: skip
    width = next((dtype for dtype in widths if tokens * dtype.itemsize == size), None)
    if width is None:
        of = " or ".join(str(dtype.itemsize) for dtype in widths)
        raise Refusal(f"{path} has {size:,} bytes, and what lies beside it says {tokens:,} tokens of {of} bytes; it was cut "
                      "short: copy it again")  # fmt: skip
    return Shard(path, "datatrove", width, tokens, documents=documents)

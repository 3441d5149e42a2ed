"""The held-out tokens that a pretraining run keeps beside it: its checkpoints are judged on them wherever the run is."""

import hashlib
import io
import zipfile
from dataclasses import dataclass

import numpy as np

from common import manifest
from common.refusal import Refusal
from common.token_rows import IGNORED

MOST_TOKENS = 1_000_000  # 2 MB on the disk; their loss is known to a hundredth of a nat
AT_ONCE = 1 << 20  # tokens read at a time


@dataclass(frozen=True)
class HeldOutTokens:
    """Rows of tokens. A row's token t is judged given the row's tokens before it, where `learned` says so.

    ids: unsigned [rows, context + 1]; learned: bool [rows, context], of ids[:, 1:]; documents: int64 [rows], the number of the document
    in which a row begins; end_of_text: the id that follows every document.
    """

    ids: np.ndarray
    learned: np.ndarray
    documents: np.ndarray
    end_of_text: int

    context = property(lambda self: self.learned.shape[1])
    tokens = property(lambda self: int(self.learned.sum()))

    def __len__(self):
        return len(self.ids)

    def labels(self, rows=slice(None)):
        """int64 [rows, context]: the token after each, -100 where it is not judged."""
        return np.where(self.learned[rows], self.ids[rows, 1:].astype(np.int64), IGNORED)

    def some(self, count):
        """`count` of the rows, evenly spaced; all where there are no more."""
        chosen = spread(len(self), count)
        return HeldOutTokens(self.ids[chosen], self.learned[chosen], self.documents[chosen], self.end_of_text)

    def digest(self):
        """A name for exactly these tokens."""
        found = hashlib.sha256(f"{self.ids.shape} {self.end_of_text}".encode())
        for array in (self.ids.astype("<u4"), np.packbits(self.learned), self.documents.astype("<i8")):
            found.update(array.tobytes())
        return found.hexdigest()[:16]


def spread(length, count):
    """int64: at most `count` of 0 … length - 1, evenly spaced, in order."""
    count = min(length, count)
    return (2 * np.arange(count) + 1) * length // (2 * max(count, 1))


def write(run, rows, end_of_text, limit=MOST_TOKENS):
    """Write run.held_out_tokens: rows of at most `limit` tokens together, drawn evenly over `rows` (`TokenRows`, the held-out ones).

    Where rows is None or empty, there is no file afterwards. Every held-out row is read once, to know where documents end.
    """
    if not rows:
        run.held_out_tokens.unlink(missing_ok=True)
        return
    chosen = spread(len(rows), max(1, limit // rows.context))
    found, documents = _numbered(rows, chosen, end_of_text)
    inputs, labels = (np.concatenate([batch[name] for batch in found]) for name in ("input_ids", "labels"))
    last = np.where(labels[:, -1:] == IGNORED, end_of_text, labels[:, -1:])
    ids = np.concatenate([inputs, last], axis=1)
    ids = ids.astype(np.uint16 if ids.max() < 1 << 16 else np.uint32)
    content = io.BytesIO()
    np.savez_compressed(content, ids=ids, learned=labels != IGNORED, documents=documents, end_of_text=np.int64(end_of_text))
    manifest.write_whole(run.held_out_tokens, content.getvalue())


def _numbered(rows, chosen, end_of_text):
    """([{"input_ids", "labels"}, …] of the chosen rows, the number of the document that each begins in)."""
    found, documents, ended = [], [], 0
    at_once = max(1, AT_ONCE // rows.context)
    for start in range(0, len(rows), at_once):
        indices = np.arange(start, min(start + at_once, len(rows)))
        batch = {name: np.asarray(tokens) for name, tokens in rows[indices].items()}
        ends = (batch["labels"] == end_of_text).sum(axis=1)  # every token but a file's first is a label exactly once
        before = ended + np.cumsum(ends) - ends
        ended += int(ends.sum())
        wanted = np.isin(indices, chosen, assume_unique=True)
        found.append({name: tokens[wanted] for name, tokens in batch.items()})
        documents.append(before[wanted])
    return found, np.concatenate(documents)


def read(path):
    """The `HeldOutTokens` in `path`, rows without a judged token left out; `Refusal` where there is none or it is damaged."""
    if not path.is_file():
        raise Refusal(f"{path} is missing; a pretraining run writes it when VALIDATION_FILES is above 0. Without held-out files "
                      "nothing can be judged: train again with some")  # fmt: skip
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, learned, documents, end_of_text = (file[name] for name in ("ids", "learned", "documents", "end_of_text"))
            found = HeldOutTokens(ids, learned, documents, int(end_of_text))
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:
        raise Refusal(f"{path} cannot be read ({error}); it was changed or cut short after it was written") from None
    shaped = ids.ndim == 2 and ids.dtype.kind == "u" and learned.dtype == bool and documents.dtype.kind == "i"
    if not shaped or learned.shape != (len(ids), ids.shape[1] - 1) or documents.shape != (len(ids),):
        raise Refusal(f"{path} holds other arrays than a run writes (ids {ids.dtype} {ids.shape}, learned {learned.shape}); "
                      "it was changed after it was written")  # fmt: skip
    judged = learned.any(axis=1)
    if not judged.any():
        raise Refusal(f"{path} holds no token to judge; hold out larger files and train again")
    return HeldOutTokens(ids[judged], learned[judged], documents[judged], found.end_of_text)

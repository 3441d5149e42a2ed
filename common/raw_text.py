"""Documents of raw text, in batches of bytes and flat memory.

    skipped = raw_text.Skipped()
    for source in text_sources.find(["data/fineweb", "gs://bucket/notes.jsonl.gz"]):
        for batch in raw_text.batches(source, "text", skipped): ...        # lists of documents, UTF-8

.parquet: a document in each row of one column. .jsonl (.ndjson): one in each line, in one field. Anything else is text and one document,
or several, cut at ends of lines, where it is longer than PIECE. All of these may be compressed: .gz, .bz2, .xz.
What is no text is skipped, counted, and named with file and line.
"""

import json
from collections import Counter
from dataclasses import dataclass, field

from common import text_sources
from common.refusal import Refusal

BATCH = 16 << 20  # bytes of documents handed over at once, or a little more
PIECE = 64 << 20  # bytes of a text file that become one document
ROWS = 1024  # of a parquet file decoded at once
NAMED = 100  # skipped documents that are named, in each task; all are counted
LINES = (".jsonl", ".ndjson")


@dataclass
class Skipped:
    """What was left out: counts by reason, and the first of them with file and line (or row), NAMED at most."""

    counts: Counter = field(default_factory=Counter)
    first: list = field(default_factory=list)

    def add(self, source, line, reason):
        self.counts[reason] += 1
        if len(self.first) < NAMED:
            self.first.append({"file": source.shown, "line": line, "reason": reason})


def batches(source, column, skipped):
    """Lists of documents of `source` as bytes of UTF-8, each of BATCH bytes or a little more; what is left out goes to `skipped`.

    column: of a parquet file or field of JSON lines that holds the text. `Refusal` for a file that is gone, damaged or without it.
    """
    documents, size = [], 0
    try:
        with text_sources.opened(source) as file:
            read = _rows if source.suffix == ".parquet" else _lines if source.suffix in LINES else _text
            for document in read(source, file, column, skipped):
                documents.append(document)
                size += len(document)
                if size >= BATCH:
                    yield documents
                    documents, size = [], 0
    except (Refusal, MemoryError):
        raise
    except Exception as error:
        raise text_sources.refusal(source.name, error) from None
    if documents:
        yield documents


# kinds of files


def _rows(source, file, column, skipped):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    columns = table.schema_arrow
    if column not in columns.names:
        raise Refusal(f"{source.shown} has no column {column!r}; it has {', '.join(columns.names[:20])}: set TEXT_FIELD to one of these")
    kind = columns.field(column).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if str(kind) not in ("string", "large_string", "string_view", "binary", "large_binary"):
        kind = columns.field(column).type
        raise Refusal(f"the column {column!r} of {source.shown} is of {kind}, not text; set TEXT_FIELD to one that is")
    row = 0
    for batch in table.iter_batches(batch_size=ROWS, columns=[column], use_threads=False):
        for document in batch.column(0).cast(kind).cast(pyarrow.large_binary()).to_pylist():
            row += 1
            if document is None:
                skipped.add(source, row, "no text")
            elif _is_text(source, row, document, skipped):
                yield document


def _lines(source, file, column, skipped):
    found = False
    for number, line in enumerate(file, 1):
        try:
            row = json.loads(line)
        except ValueError as error:  # also what is no UTF-8
            if line.strip():
                skipped.add(source, number, "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON")
            else:
                skipped.add(source, number, "empty line")
            continue
        except RecursionError:
            skipped.add(source, number, "not JSON")
            continue
        if not isinstance(row, dict) or column not in row:
            if not found and number == 1 and isinstance(row, dict):
                raise Refusal(f"{source.shown} has no field {column!r} in its first line; it has {', '.join(list(row)[:20])}: "
                              "set TEXT_FIELD to one of these")  # fmt: skip
            skipped.add(source, number, f"no field {column!r}" if isinstance(row, dict) else "not an object")
            continue
        found = True
        if not isinstance(row[column], str):
            skipped.add(source, number, "no text")
            continue
        try:
            document = row[column].encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            skipped.add(source, number, "not UTF-8")
            continue
        if _is_text(source, number, document, skipped, checked=True):
            yield document


def _text(source, file, column, skipped):
    line = 1
    while document := file.read(PIECE):
        if len(document) == PIECE:  # to the end of its line, or at least of a character
            document += file.readline(PIECE)
            while not document.endswith(b"\n") and (following := file.peek(1)[:1]) and 0x80 <= following[0] < 0xC0:
                document += file.read(1)
        if _is_text(source, line, document, skipped):
            yield document
        line += document.count(b"\n")
    if source.size == 0:
        skipped.add(source, 1, "empty")


def _is_text(source, line, document, skipped, checked=False):
    """False, and counted, for a document that is empty or no UTF-8."""
    if not document or document.isspace():
        skipped.add(source, line, "empty")
        return False
    if not checked:
        try:
            document.decode()
        except UnicodeDecodeError:
            skipped.add(source, line, "not UTF-8")
            return False
    return True

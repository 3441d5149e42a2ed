"""Rows of users' files, one by one: JSON lines or one JSON array, CSV or TSV, parquet; each but the last also packed with gzip.

A row has the keys that `chat_rows` knows, whatever kind of file it stood in. In a table a column is found by its name without regard to
letter case and the spaces around it, and messages that are text are JSON. Of a CSV one row is in memory, of parquet a few.
"""

import csv
import gzip
import json
import sys
import zlib
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

from common import chat_rows
from common.chat_rows import BadRow
from common.refusal import Refusal
from common.safe_text import visible

FORMATS = {"messages": ("messages",), "instruction": ("instruction", "output"), "prompt": ("prompt", "completion"),
           "question": ("question", "answer"), "text": ("text",)}  # fmt: skip
BESIDE = ("input", "system", "id", "topics", "facts", "document")  # what else a row may have
NEEDED = "messages, or instruction and output (and input), or prompt and completion, or question and answer, or text"
KINDS = ".jsonl, .json, .csv or .tsv files, each also as .gz, or .parquet files"
DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
ROWS = 64  # of a parquet file decoded at once
BOM = b"\xef\xbb\xbf"  # a mark of UTF-8 that some programs write first


def rows(path, *names):
    """Yield (where, number, row) of a file; where: "line 7", the first of the row's lines, or "row 7" where a file has no lines.

    row: a dict for `chat_rows.row_of`, or the `BadRow` that says why there is none. names: further columns that are found whatever
    their letter case. Raises `Refusal` for a file that cannot be read to its end, or has another kind, no usable column, or no row.
    """
    empty = True
    with _opened(path) as file:
        for unit, number, row in _reader(path, file.peek(64))(path, file, names):
            empty = False
            try:
                row = _usable(row)
            except BadRow as reason:
                row = reason
            yield f"{unit} {number}", number, row
    if empty:
        raise Refusal(f"{path} has no rows; take it out, or name a file that has some")


@contextmanager
def _opened(path):
    """The file in bytes, unpacked where it is gzip by its first bytes; what cannot be read is a `Refusal`."""
    try:
        with Path(path).open("rb") as plain, gzip.open(plain) if plain.peek(2)[:2] == b"\x1f\x8b" else nullcontext(plain) as file:
            yield file
    except EOFError:
        raise Refusal(f"{path} is gzip that is cut short: a download or a copy that did not end; bring it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Refusal(f"{path} is damaged gzip ({error}); bring it again") from None
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror}); give yourself the right to, or name another file") from None


def _reader(path, start):
    """What reads a file of this name and these first bytes."""
    suffix = next((suffix for suffix in reversed(Path(path).name.lower().split(".")) if suffix != "gz"), "")
    if start.startswith(b"PAR1") or suffix == "parquet":
        return _of_parquet
    if suffix in ("jsonl", "ndjson", "json") or start.removeprefix(BOM).lstrip().startswith(b"{"):
        return _of_json
    if suffix in ("csv", "tsv"):
        return _of_csv
    raise Refusal(f"{path} is of a kind that is not read here; name {KINDS}: save a spreadsheet as CSV in UTF-8, and write other data with "
                  f"one JSON object a line, such as {chat_rows.EXAMPLE}")  # fmt: skip


def _of_json(path, file, _):
    """Rows in bytes."""
    if file.peek(64).removeprefix(BOM).lstrip().startswith(b"["):
        try:
            found = json.loads(file.read().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise Refusal(f"{path} begins as one JSON array and cannot be read as one ({error}); mend it, or write each row as an object "
                          "on a line of its own") from None  # fmt: skip
        yield from (("row", number, json.dumps(row).encode()) for number, row in enumerate(found, start=1))
        return
    for number, line in enumerate(file, start=1):
        line = line.removeprefix(BOM) if number == 1 else line
        if line.strip():
            yield "line", number, line.strip()


def _of_csv(path, file, names):
    csv.field_size_limit(sys.maxsize)
    lines, columns, start = _decoded(path, file), None, 1
    head = next(((blank, line) for blank, line in enumerate(lines) if line.strip()), None)
    if head is None:
        raise Refusal(f"{path} is empty; a CSV file begins with the names of its columns: {NEEDED}")
    try:
        delimiter = max(DELIMITERS, key=lambda one: _worth(_named(next(csv.reader(head[1:], delimiter=one)), names)))
        reader = csv.reader(chain(["\n"] * head[0], head[1:], lines), delimiter=delimiter, strict=True)
        for cells in reader:
            if cells and columns is None:
                columns = _columns(path, cells, names)
            elif cells and any(cell.strip() for cell in cells[len(columns) :]):
                yield "line", start, BadRow(f"it has {len(cells)} cells, and the header {len(columns)}; a cell that holds "
                                            f"{DELIMITERS[delimiter]} stands between quotes")  # fmt: skip
            elif cells:
                found = zip(columns, (cell if cell.strip() else None for cell in cells), strict=False)
                yield "line", start, dict.fromkeys(columns) | dict(found)
            start = reader.line_num + 1
    except csv.Error as error:
        raise Refusal(f"{path} line {start}: the row that begins there is not CSV ({error}); a cell that begins with a quote ends with "
                      "one, and a quote inside it is written twice") from None  # fmt: skip


def _decoded(path, file):
    """The lines of a file as text."""
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise Refusal(f"{path} line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8, which spreadsheets call "
                          "CSV UTF-8") from None  # fmt: skip


def _of_parquet(path, file, names):
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = _columns(path, table.schema_arrow.names, names)
        for batch in table.iter_batches(batch_size=ROWS, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                yield "row", number, dict(zip(columns, row.values(), strict=True))
    except UnicodeDecodeError:
        raise Refusal(f"{path} holds bytes that are not UTF-8 in or after row {number + 1}; write it again as UTF-8") from None
    except (pyarrow.ArrowException, OSError) as error:
        said = str(error).splitlines()[0][:100]
        raise Refusal(f"{path} is no parquet file, or cut short or damaged ({said}); bring it again") from None


def _named(header, names):
    """The names in a header as `chat_rows` writes them; others stay as they are."""
    known = {name.casefold(): name for name in (*chain(*FORMATS.values()), *BESIDE, *names)}
    return [known.get(name.strip().casefold(), name.strip()) or f"column {place}" for place, name in enumerate(header, start=1)]


def _worth(columns):
    """(whether a format is whole in them, how many they are): of several delimiters the right one gives the most."""
    return any(set(needed) <= set(columns) for needed in FORMATS.values()), len(columns)


def _columns(path, header, names):
    """The names of a table's columns; `Refusal` where they are of no use."""
    columns = _named(header, names)
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise Refusal(visible(f"{path} has the column {twice[0]} twice, and which one counts is not known; take one out"))
    if not _worth(columns)[0]:
        missing = set(chain(*FORMATS.values())) - set(columns)
        near = {name: get_close_matches(name.casefold(), missing, n=1) for name in columns if name not in BESIDE}
        meant = "".join(f"; {name} may be meant to be {found[0]}" for name, found in near.items() if found)
        shown = ", ".join(name[:40] for name in columns[:20]) + ", …" * (len(columns) > 20)
        raise Refusal(visible(f"{path} has the columns {shown}, and a row needs {NEEDED}{meant}. Rename the columns, or name another file"))
    return columns


def _usable(row):
    """A row without its missing values, so that tables of several formats are told apart. Where no format is whole, those of the one that
    was begun stay as None, for its rules name what is missing. Raises `BadRow`."""
    if isinstance(row, BadRow):
        raise row
    row = chat_rows.content_of(row) if isinstance(row, bytes) else row
    filled = {name: value for name, value in row.items() if value is not None}
    if row and not filled:
        raise BadRow("it is empty: none of its fields has a value")
    if not any(filled.keys() >= set(needed) for needed in FORMATS.values()):
        begun = next((needed for needed in FORMATS.values() if filled.keys() & set(needed)), ())
        filled |= {name: None for name in begun if name in row and name not in filled}
    if isinstance(filled.get("messages"), str):
        try:
            filled["messages"] = json.loads(filled["messages"])
        except (ValueError, RecursionError) as error:
            raise BadRow(f"its messages are text that is not JSON ({error})") from None
        chat_rows.refuse_half_pairs(filled["messages"])
    return filled

"""Files of legal documents and their summaries, row by row: LexSumm, BillSum, Multi-LexSum, GovReport, as JSON lines (.gz too) or parquet.

What a file is, its first bytes say; what a row is, its keys. A row at a time is in memory, of a parquet file a few.
"""

import gzip
import json
import re
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from common import chat_rows
from common.json_object import kind
from common.refusal import Refusal

# format -> (key of the document, keys of its summary); Multi-LexSum has a list of documents, and up to three summaries
FORMATS = {
    "Multi-LexSum": ("sources", ("summary/long", "summary/short", "summary/tiny")),
    "LexSumm": ("input", ("output",)),
    "GovReport": ("report", ("summary",)),
    "BillSum": ("text", ("summary",)),
}
KNOWN = "known are LexSumm (input, output), BillSum (text, summary), Multi-LexSum (sources, summary/long) and GovReport (report, summary)"
_LIST = re.compile(r"""\s*\[\s*["']""")  # how Python and JSON write a list of strings
SEPARATOR = "\n\n---\n\n"  # between the documents of one case
ROWS = 16  # of a parquet file decoded at once


class BadCase(Exception):
    """What is wrong with a row, as the end of the sentence "cases.jsonl line 7: …"."""


@dataclass(frozen=True, slots=True)
class Case:
    """source: its format. summaries: {key: text}; missing: keys that are null. facts: {place: [words]}, {} where it has none."""

    source: str
    document: str
    summaries: dict
    missing: tuple
    facts: dict


def find(names, constant):
    """The files that `names` (paths or globs) name, in order; `Refusal` for what is not there or named twice. constant: that has them."""
    found = []
    for name in names:
        files = [name] if Path(name).exists() else sorted(glob(name, recursive=True))
        if not files:
            raise Refusal(f"{constant} names {name}, and there is no such file in {Path.cwd()}; name .jsonl, .jsonl.gz or .parquet files")
        if directories := [file for file in files if Path(file).is_dir()]:
            raise Refusal(f"{constant} names {directories[0]}, a directory; name the files in it, such as {directories[0]}/*.parquet")
        found += files
    resolved = [Path(file).resolve() for file in found]
    if twice := [file for file, path in zip(found, resolved, strict=True) if resolved.count(path) > 1]:
        raise Refusal(f"{constant} names {twice[0]} twice; name it once")
    return found


def cases(path, wanted, bad):
    """Yield (where, `Case`) of a file; where: "line 7 of cases.jsonl".

    wanted: of Multi-LexSum's summaries, such as ["long"]. bad(where, what): called with a row that cannot be used. Raises `Refusal`
    for a file that cannot be read to its end, or is of another kind.
    """
    empty = True
    for where, row in _rows(path):
        empty = False
        try:
            case = _case(row, wanted)
        except BadCase as reason:
            bad(f"{path} {where}", str(reason))
            continue
        yield f"{path} {where}", case
    if empty:
        raise Refusal(f"{path} has no rows; {KNOWN}")


# files


def _rows(path):
    with _opened(path) as (file, start):
        if start == b"PAR1" or Path(path).suffix == ".parquet":
            yield from _of_parquet(path, file)
            return
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if number == 1 and _is_array(line):
                raise Refusal(f"{path} is one JSON array; write each of its elements on a line, without the brackets and commas")
            if line.strip():
                yield f"line {number}", line


def _of_parquet(path, file):
    import pyarrow
    import pyarrow.parquet

    try:
        table, number = pyarrow.parquet.ParquetFile(file), 0
        columns = table.schema_arrow.names
        if _format(columns) is None:
            raise Refusal(f"{path} has the columns {', '.join(columns[:20])}; {KNOWN}: rename its columns, or name another file")
        source = _format(columns)
        needed = [name for name in (FORMATS[source][0], *FORMATS[source][1], "facts") if name in columns]
        for batch in table.iter_batches(batch_size=ROWS, columns=needed, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except UnicodeDecodeError:
        raise Refusal(f"{path} holds bytes that are not UTF-8 in or after row {number + 1}; write it again as UTF-8") from None
    except (pyarrow.ArrowException, OSError) as error:
        said = str(error).splitlines()[0][:100]
        raise Refusal(f"{path} is no parquet file, or cut short or damaged ({said}); download it again") from None


@contextmanager
def _opened(path):
    """(the file, unpacked where it is gzip by its first bytes, its first four bytes); what cannot be read is a `Refusal`."""
    try:
        with Path(path).open("rb") as plain:
            start = plain.read(4)
            plain.seek(0)
            if start[:2] == b"\x1f\x8b":
                with gzip.open(plain) as file:
                    yield file, b""
            else:
                yield plain, start
    except EOFError:
        raise Refusal(f"{path} is cut short: a download that did not end; download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Refusal(f"{path} is damaged gzip ({error}); download it again") from None
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise Refusal(f"{path} cannot be read ({error.strerror}); name a .jsonl, .jsonl.gz or .parquet file") from None


def _is_array(line):
    """Whether a first line begins an array of rows, and is no row."""
    start = line.lstrip()
    return start.startswith(b"[") and start[1:].lstrip()[:1] in (b"", b"{")


# rows


def _case(row, wanted):
    row = _parsed(row) if isinstance(row, bytes) else row
    source = _format(row)
    if source is None:
        raise BadCase(f"it has the keys {', '.join(map(str, list(row)[:20])) or 'of none'}; {KNOWN}")
    key, keys = FORMATS[source]
    if source == "Multi-LexSum":
        document, keys = _joined(row[key]), [f"summary/{which}" for which in wanted]
    else:
        document = _string(row[key], f"its {key}", source)
    missing = tuple(name for name in keys if source == "Multi-LexSum" and row.get(name) is None)
    summaries = {name: _string(row[name], f"its {name}", source) for name in keys if name not in missing}
    return Case(source, document, summaries, missing, _facts(row))


def _parsed(line):
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadCase(f"byte {error.start + 1} is not UTF-8; write the file again as UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadCase(f"it is not JSON ({error.msg} at character {error.pos + 1})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise BadCase(f"it is not JSON that can be read ({error})") from None
    if not isinstance(row, dict):
        raise BadCase(f"it is {kind(row)}; a row is an object")
    return row


def _format(keys):
    """The first format whose document and one of whose summaries are among the keys, or None."""
    return next((name for name, (document, summaries) in FORMATS.items() if document in keys and any(s in keys for s in summaries)), None)


def _string(value, name, source):
    if isinstance(value, list):
        raise BadCase(f"{name} is a list of {len(value)}, and {source} has one string there; a list of documents is called sources, as in "
                      "Multi-LexSum")  # fmt: skip
    if not isinstance(value, str):
        raise BadCase(f"{name} is {kind(value)}, where a string belongs")
    if not value.strip():
        raise BadCase(f"{name} is empty; a row needs a document and a summary of it")
    start = value.strip()[:300].splitlines()
    if len(start) > 40 and sum(len(line) <= 1 for line in start) > 0.9 * len(start):
        raise BadCase(f"{name} has one character a line: a string that was joined as if it were a list")
    if _LIST.match(value) and value.rstrip().endswith("]"):
        raise BadCase(f"{name} is a list written as a string; write it as a JSON list called sources, as in Multi-LexSum")
    _refuse_half_pairs(value, f"{name} holds")
    return value


def _refuse_half_pairs(text, holds):
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadCase(f"{holds} half of a surrogate pair (such as \\ud83d without its other half), which is no character") from None


def _joined(sources):
    """The documents of one case as one, in order; those without any text are left out."""
    if isinstance(sources, str):
        raise BadCase("its sources is one string, where Multi-LexSum has a list of documents; put it into [ ], or call it input (LexSumm)")
    if not isinstance(sources, list):
        raise BadCase(f"its sources is {kind(sources)}, where a list of documents belongs")
    if len(sources) > 60 and all(isinstance(one, str) and len(one) == 1 for one in sources):
        raise BadCase(f"its sources is a list of {len(sources):,} single characters: a string that was taken apart as if it were a list")
    texts = [
        one if isinstance(one, str) and not one.strip() else _string(one, f"document {number} of its sources", "Multi-LexSum")
        for number, one in enumerate(sources, start=1)
    ]
    if not any(text.strip() for text in texts):
        raise BadCase("its sources are empty; a row needs a document and a summary of it")
    return SEPARATOR.join(text.strip() for text in texts if text.strip())


def _facts(row):
    facts = chat_rows.facts_of(row)
    _refuse_half_pairs(json.dumps(facts, ensure_ascii=False), "its facts hold")
    return facts

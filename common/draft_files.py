"""17lands draft data, .csv or .csv.gz of any size, in blocks of arrays: one row a pick, with its pack and its pool.

The kind of file is told from its first bytes, not from its name. A block is parsed by pyarrow; one that pyarrow refuses is read again
row by row, so that a bad row is named with its line and the others stay. Counts of one digit, which nearly all are, stand at fixed
places of a line and are taken from there: that takes a quarter of the time that a parser needs to look at each of 600 fields.
"""

import csv
import gzip
import io
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.refusal import Refusal

BLOCK = 4 << 20  # bytes of CSV at a time: larger blocks leave the processor's cache and are slower
LONGEST_HEADER = 16 << 20  # bytes; a file without a line end up to there is no CSV
WORDS = ("expansion", "event_type", "draft_id", "rank", "pick")
NUMBERS = ("event_match_wins", "event_match_losses", "pack_number", "pick_number")
OPTIONAL = ("pick_2", "user_n_games_bucket", "user_game_win_rate_bucket")
UNUSED = ("draft_time", "pick_maindeck_rate", "pick_sideboard_in_rate", "pick_2_maindeck_rate", "pick_2_sideboard_in_rate")
RANKS = ("none", "bronze", "silver", "gold", "platinum", "diamond", "mythic")  # an empty rank is "none"
PACK, POOL = "pack_card_", "pool_"
MOST = 255  # copies of a card in a pack or a pool


@dataclass(frozen=True)
class Table:
    """A file whose header was read: where its columns are."""

    path: str
    header: list
    pack: list  # places of the pack_card_ columns
    pool: list
    unknown: list  # names of columns that are neither read nor known

    def cards(self, places, prefix):
        return [self.header[place].removeprefix(prefix) for place in places]


@dataclass
class Block:
    """Some rows of a file. words: {column: (code of each row, the texts)}; numbers: {column: int array}; pack, pool: counts of shape
    (rows, columns); picked: (rows, 2) pack columns, the second -1 where one card was taken."""

    lines: np.ndarray
    words: dict
    numbers: dict
    pack: np.ndarray
    pool: np.ndarray
    picked: np.ndarray = None

    def keep(self, rows):
        """The block with only these rows (a mask)."""
        words = {name: (codes[rows], texts) for name, (codes, texts) in self.words.items()}
        numbers = {name: values[rows] for name, values in self.numbers.items()}
        return Block(self.lines[rows], words, numbers, self.pack[rows], self.pool[rows], None if self.picked is None else self.picked[rows])


def open_table(path):
    """The `Table` of a file; raises `Refusal` for a file that cannot be read or lacks needed columns."""
    with _bytes_of(path) as file:
        line = file.readline(LONGEST_HEADER)
    if not line:
        raise Refusal(f"{path} is empty; DRAFTS takes 17lands draft data, a CSV with a header")
    try:
        header = next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")], strict=True))
    except (UnicodeDecodeError, csv.Error, StopIteration):
        raise Refusal(f"{path} does not begin with a CSV header; DRAFTS takes 17lands draft data, .csv or .csv.gz") from None
    if missing := [name for name in (*WORDS, *NUMBERS) if name not in header]:
        raise Refusal(f"{path} has no column {', '.join(missing)}; 17lands draft data has them, its game and replay data do not: "
                      "name a draft file in DRAFTS")  # fmt: skip
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise Refusal(f"{path} has the column {twice[0]} twice, and which one counts is not known; take one out")
    places = {prefix: [at for at, name in enumerate(header) if name.startswith(prefix)] for prefix in (PACK, POOL)}
    for prefix, found in places.items():
        if not found:
            raise Refusal(f"{path} has no {prefix} columns, so what a pick was chosen from is not in it; name 17lands draft data in DRAFTS")
    known = {*WORDS, *NUMBERS, *OPTIONAL, *UNUSED}
    unknown = [name for name in header if name not in known and not name.startswith((PACK, POOL))]
    return Table(str(path), header, places[PACK], places[POOL], unknown)


def blocks(table, bad):
    """Yield a `Block` for about every BLOCK bytes. bad(line, reason): called for each row that cannot be used; may raise.

    Raises `Refusal` for a file that is cut or has no rows.
    """
    line, any_row = 2, False
    with _bytes_of(table.path) as file:
        file.readline(LONGEST_HEADER)
        rest = b""
        while chunk := file.read(BLOCK):
            end = chunk.rfind(b"\n") + 1
            if not end:
                rest += chunk
                continue
            text, rest = rest + chunk[:end], chunk[end:]
            count = text.count(b"\n")
            yield from _usable(table, text, np.arange(line, line + count), bad)
            line, any_row = line + count, True
        if rest.strip():
            if (found := len(_fields(rest) or [])) < len(table.header):
                raise Refusal(f"{table.path} is cut in its last row, line {line}, after {found} of {len(table.header)} fields; "
                              "bring the file again")  # fmt: skip
            any_row = True
            yield from _usable(table, rest + b"\n", np.array([line]), bad)
    if not any_row:
        raise Refusal(f"{table.path} has a header and no rows; name a file with picks in DRAFTS")


@contextmanager
def _bytes_of(path):
    """The uncompressed bytes of a file, whatever its name says it is."""
    try:
        with Path(path).open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield gzip.GzipFile(fileobj=file) if zipped else file  # noqa: SIM115, it closes with `file`
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Refusal(f"{path} is gzip that is cut short or damaged ({str(error).rstrip('.')}); bring the file again") from None
    except (FileNotFoundError, NotADirectoryError):
        raise Refusal(f"{path} in DRAFTS does not exist; 17lands offers its files at https://www.17lands.com/public_datasets") from None
    except IsADirectoryError:
        raise Refusal(f"{path} in DRAFTS is a directory; name the .csv or .csv.gz files in it") from None
    except PermissionError:
        raise Refusal(f"{path} in DRAFTS cannot be read by this user; give yourself the right to, or name another file") from None


def _usable(table, text, lines, bad):
    """The blocks of some whole lines, without the bad rows; these are told in the order of their lines."""
    found, wrong = [], []
    for part, numbers, counts, whole in _by_shape(table, text, lines):
        block = _parsed(table, part, numbers, counts)
        if block is None:
            part, numbers = _rows_that_parse(table, whole, numbers, wrong)
            block = _parsed(table, part, numbers) if len(numbers) else None
            if block is None and len(numbers):
                raise Refusal(f"{table.path} lines {numbers[0]} to {numbers[-1]} cannot be read as CSV; bring the file again")
        if block is not None:
            found.append(_with_picks(table, block, wrong))
    for line, reason in sorted(wrong):
        bad(line, reason)
    return [block for block in found if len(block.lines)]


def _by_shape(table, text, lines):
    """Yield (text to parse, numbers of its lines, their counts or None, its whole lines): first the lines whose counts all have one digit,
    the text without them, then the others. A line is of the first kind only where every comma and digit of the counts is in its place."""
    places = sorted((*table.pack, *table.pool))
    width, after = 2 * len(places), len(table.header) - 1 - places[-1]
    if not places[0] or places[-1] - places[0] >= len(places):  # they do not stand together
        yield text, lines, None, text
        return
    whole, others, tails = text.split(b"\n")[:-1], [], []
    for line in whole:
        head, *rest = line.rsplit(b",", after)
        tails.append(head[-width:].ljust(width))
        others.append(b",".join([head[:-width], *rest]))
    tails = np.frombuffer(b"".join(tails), np.uint8).reshape(-1, width)
    counts = tails[:, 1::2] - ord("0")  # unsigned: what is below the digits becomes large
    short = (counts <= 9).all(axis=1) & (tails[:, ::2] == ord(",")).all(axis=1)
    for rows, found in ((np.flatnonzero(short), others), (np.flatnonzero(~short), whole)):
        if len(rows):
            part = b"\n".join([found[row] for row in rows.tolist()]) + b"\n"
            original = part if found is whole else text if short.all() else b"\n".join([whole[row] for row in rows.tolist()]) + b"\n"
            yield part, lines[rows], counts[rows] if found is others else None, original


def _with_picks(table, block, wrong):
    """The block without the rows whose pick cannot be, which are added to `wrong` with the reason."""
    first, no_first = _columns(table, block, "pick")
    second, no_second = _columns(table, block, "pick_2")
    rows = np.arange(len(block.lines))
    in_pack = (first >= 0) & (block.pack[rows, first] > 0)
    in_pack &= no_second | ((second >= 0) & (block.pack[rows, second] > (first == second)))
    codes, texts = block.words["draft_id"]
    nameless = np.array([not text for text in texts], bool)[codes]
    block.picked = np.stack([first, np.where(no_second, -1, second)], axis=1)
    usable = in_pack & ~no_first & ~nameless
    for row in np.flatnonzero(~usable).tolist():
        lacking = "rows without a draft_id" if nameless[row] else "rows without a pick" if no_first[row] else None
        wrong.append((int(block.lines[row]), lacking or "rows whose pick is not in its pack"))
    return block if usable.all() else block.keep(usable)


def _columns(table, block, name):
    """(pack column of each row's card, -1 where the pack has none of that name; where no card is named)."""
    if name not in block.words:
        return np.full(len(block.lines), -1), np.ones(len(block.lines), bool)
    codes, texts = block.words[name]
    place = {card: at for at, card in enumerate(table.cards(table.pack, PACK))}
    return np.array([place.get(text, -1) for text in texts], np.intp)[codes], np.array([not text for text in texts], bool)[codes]


def _parsed(table, text, lines, counts=None):
    """The `Block` of these lines as pyarrow reads them, or None where it finds a row that it cannot read. counts: those of the pack and
    pool columns, which `text` then lacks."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    places = sorted((*table.pack, *table.pool))
    columns = [table.header[place] for place in places]
    header = table.header if counts is None else [name for name in table.header if not name.startswith((PACK, POOL))]
    wanted = [name for name in table.header if name in WORDS or name in OPTIONAL]
    types = dict.fromkeys(wanted, pa.dictionary(pa.int32(), pa.string())) | dict.fromkeys(NUMBERS, pa.uint16())
    if counts is None:
        types |= dict.fromkeys(columns, pa.uint8())
    try:
        found = arrow_csv.read_csv(
            pa.py_buffer(text),
            read_options=arrow_csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=header),
            parse_options=arrow_csv.ParseOptions(ignore_empty_lines=False),
            convert_options=arrow_csv.ConvertOptions(column_types=types, null_values=[], include_columns=list(types)),
        )
    except pa.ArrowInvalid:
        return None
    if found.num_rows != len(lines):  # a quote that is not closed swallows line ends
        return None
    if counts is None:
        counts = found.select(columns).to_batches()[0].to_tensor(row_major=True).to_numpy()
    found = {name: found.column(name).chunk(0) for name in (*wanted, *NUMBERS)}
    words = {name: (found[name].indices.to_numpy(), found[name].dictionary.to_pylist()) for name in wanted}
    numbers = {name: found[name].to_numpy() for name in NUMBERS}
    at = {place: column for column, place in enumerate(places)}
    pack, pool = ([at[place] for place in own] for own in (table.pack, table.pool))
    return Block(lines, words, numbers, counts[:, pack], counts[:, pool])


def _rows_that_parse(table, text, lines, wrong):
    """The lines of a block that can be read, each by itself, and their numbers; the others are added to `wrong`. The slow way, for a
    block that has a bad row."""
    numbers = [table.header.index(name) for name in NUMBERS]
    good, kept = io.BytesIO(), []
    for number, line in zip(lines.tolist(), text.split(b"\n"), strict=False):
        if not line.strip():
            continue
        if (fields := _fields(line)) is None:
            wrong.append((number, "rows that are not UTF-8 or not CSV"))
        elif len(fields) != len(table.header):
            wrong.append((number, "rows with fewer or more fields than the header"))
        elif not all(_is_count(fields[at], 65535) for at in numbers):
            wrong.append((number, "rows with a pack, pick, win or loss number that is none"))
        elif not all(_is_count(fields[at], MOST) for at in (*table.pack, *table.pool)):
            wrong.append((number, f"rows with a card count that is no whole number from 0 to {MOST}"))
        else:
            good.write(line + b"\n")
            kept.append(number)
    return good.getvalue(), np.array(kept, int)


def _fields(line):
    try:
        return next(csv.reader([line.decode("utf-8").rstrip("\r\n")], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return None


def _is_count(text, most):
    return text.isascii() and text.isdigit() and int(text) <= most

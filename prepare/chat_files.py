"""Questions and answers in files of your own to conversations, as train, valid and test JSONL.

    python prepare/chat_files.py --files data/faq.csv --dry-run                 what is in it, what would be dropped; nothing is written
    python prepare/chat_files.py --files 'data/export/*.parquet,data/faq.csv' --output data/support
    python prepare/chat_files.py --files data/forum.jsonl --split-by thread --system 'Answer in one sentence.'
    python prepare/chat_files.py --tiny                                         of samples/ -> data/chat_tiny/

Read are messages (ChatML), instruction/input/output (Alpaca), prompt/completion, question/answer, and text that is already rendered with
Llama 3's or ChatML's markup; as JSON lines or one JSON array, CSV or TSV, plain or .gz, or parquet. Which format a row has, its keys or
columns say; a file may mix them. Rows with the same question, or of one SPLIT_BY, are on one side.
"""

import re
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from common import chat_rows, chat_text, constants, hub, mixing, refusal, split_files, table_rows
from common.chat_rows import BadRow
from common.refusal import Refusal
from common.safe_text import visible

FILES: list[str] = ["data/my_data.jsonl"]  # files, or globs such as 'data/export/*.parquet'; formats and kinds of files may differ
OUTPUT: str = "data/chat"  # a directory
HELD_OUT: constants.Share = 0.10  # share of the rows; half of it picks the best checkpoint, half is only reported; 0 trains on all
SPLIT_BY: str = "id"  # rows of one source question stay on one side: "id" takes cv_12_3 for an answer to cv_12, else a field's name
SYSTEM: str | None = None  # the system message of rows that have none; none: they stay without
MODEL_NAME: str = "Qwen/Qwen2.5-7B-Instruct"  # whose tokens are counted, where its tokenizer is on this machine; else characters
MAX_SEQ_LENGTH: PositiveInt = 2048  # tokens: the recipe's, 2,048 or 4,096 by its GPU; rows stay whole, how many it will shorten is said
BAD_ROWS: Literal["stop", "skip"] = "stop"  # "skip" leaves them out, counted
SAMPLE: PositiveInt | None = None  # only the first so many rows of each file, for a look; none: all
DRY_RUN: bool = False  # count, preview and say what would be dropped; write nothing
SEED: NonNegativeInt = 42  # decides which rows are held out

TINY = {
    "FILES": ["samples/cross_validated.jsonl", "samples/arxiv.jsonl", "samples/questions.csv"],
    "OUTPUT": "data/chat_tiny",
    "SPLIT_BY": "family",  # held-out rows come from question templates never trained on
    "MODEL_NAME": "tiny-qwen2",
}

_FORMATS = {  # in words, and the fields that may stand beside those that it needs
    "messages": ("ChatML messages", ()), "instruction": ("instruction/input/output", ("input", "system")),
    "prompt": ("prompt/completion", ("system",)), "question": ("question/answer", ("system",)), "text": ("rendered text", ()),
}  # fmt: skip
_WRITTEN = {"id", "topics", "messages"}  # fields that a row has anyway
_SHOWN = 400  # characters of a message in the preview
_COUNTED = 100_000  # rows whose tokens are counted, evenly spread: about half a minute
_CHARACTERS = 4  # of a token of English
_FEW = 20  # rows of valid.jsonl
_AT_ONCE = 32  # rows that are tokenised together


@dataclass
class Found:
    """What was read. about: {id of a row: (its format, where it stood)}; files: {file: {format: rows}}; bad: [(where, reason)] of rows
    that cannot be used; twice: the same of duplicates; unused: {field: rows} of what is not carried over."""

    rows: list = field(default_factory=list)
    about: dict = field(default_factory=dict)
    files: dict = field(default_factory=lambda: defaultdict(Counter))
    bad: list = field(default_factory=list)
    twice: list = field(default_factory=list)
    unused: Counter = field(default_factory=Counter)


def main(**overrides):
    """Write the rows; returns {"output", "rows": {side: rows}, "formats": {format: rows}, "left_out": {"bad rows" and "duplicates": rows},
    "longer": rows of more than MAX_SEQ_LENGTH tokens}; of a dry run what would be. With --prefetch: None.

    Raises `Refusal` for files that cannot be read, for bad rows unless BAD_ROWS is "skip", and where a side would be empty; nothing is
    written then.
    """
    if constants.resolve(globals(), overrides).prefetch:
        hub.find(MODEL_NAME)
        print(f"the tokenizer of {MODEL_NAME} is on this machine; its weights are not needed here")
        return None
    found, out, large = read(find(FILES)), split_files.SplitFiles(OUTPUT), {}
    sides, refused = divided(found, large)
    if refused and not DRY_RUN:
        raise refused
    with nullcontext() if DRY_RUN else out:
        for side, rows in zip(split_files.SIDES, sides, strict=True):
            for row in rows:
                put(out, side, row, found.about[id(row)][0])
    out.skipped.update(dict(map(counted, filter(None, [*by_reason(found.bad), found.twice]))))
    if DRY_RUN:
        print("dry run: nothing is written, and this is what would be")
    print(visible("\n".join(f"{file}: {each(formats)}" for file, formats in found.files.items())))
    print(out.in_words(clip=_SHOWN))
    longer, said = lengths(found) if found.rows else (0, [])
    print(visible("\n".join([*said, *notes(found, large, out)])))
    if refused:
        print(f"without --dry-run this stops: {str(refused).splitlines()[0]}")
    left_out = {"bad rows": len(found.bad), "duplicates": len(found.twice)}
    return {"output": OUTPUT, "rows": dict(out.counts), "formats": dict(out.kinds), "longer": longer,
            "left_out": {reason: count for reason, count in left_out.items() if count}}  # fmt: skip


# reading


def find(names):
    """The files that `names` (paths or globs) name, in order; `Refusal` for what is not there, named twice, or would be written over."""
    files = [file for name in names for file in (sorted(glob(name, recursive=True)) if not Path(name).exists() else []) or [name]]
    if not files:
        raise Refusal(f"FILES names no file; name {table_rows.KINDS}")
    written, seen = {Path(OUTPUT).resolve(), *(Path(OUTPUT, f"{side}.jsonl").resolve() for side in split_files.SIDES)}, set()
    for file in files:
        path = Path(file).resolve()
        if not path.exists():
            raise Refusal(f"FILES names {file}, and there is no such file in {Path.cwd()}; name {table_rows.KINDS}")
        if path.is_dir():
            raise Refusal(f"FILES names {file}, a directory; name the files in it, such as {file}/*.jsonl")
        if path in written:
            raise Refusal(f"OUTPUT is {OUTPUT}, and {file}, which FILES names, would be written over; name another OUTPUT")
        if path in seen:
            raise Refusal(f"FILES names {file} twice; name it once")
        seen.add(path)
    return files


def read(files):
    """What is `Found` in the files: rows with SYSTEM, without bad ones and duplicates."""
    found, first = Found(), {}
    for file in files:
        for place, number, content in islice(table_rows.rows(file, SPLIT_BY), SAMPLE):
            where = f"{file} {place}"
            try:
                if isinstance(content, BadRow):
                    raise content
                row, kind = chat_rows.row_of(content, file, number, SPLIT_BY)
            except BadRow as reason:
                found.files[file]["unusable"] += 1
                found.bad.append((where, str(reason)))
                continue
            words, beside = _FORMATS[kind]
            found.files[file][words] += 1
            if (SYSTEM or "").strip() and row.messages[0]["role"] != "system":
                row.messages.insert(0, {"role": "system", "content": SYSTEM})
            [digest] = mixing.seen_as("rows", [row])
            if first.setdefault(digest, where) != where:
                found.twice.append((where, f"its messages are those of {first[digest]}"))
                continue
            found.rows.append(row)
            found.about[id(row)] = words, where
            used = {"id", *table_rows.FORMATS[kind], *beside, *fields(row)}
            found.unused.update(name for name, value in content.items() if name not in used and value not in (None, "", [], {}))
    return found


def fields(row):
    """What a row is written with beside its id and messages; among it what it is split by, so that a recipe can split by it again."""
    split_by = {} if SPLIT_BY in _WRITTEN else {SPLIT_BY: row.group}
    return split_by | {name: value for name in ("topics", "facts", "document") if (value := getattr(row, name))}


# sides


def divided(found, large):
    """((train, valid, test), the `Refusal` that is in the way, or None). large: takes what `mixing.split` reports."""
    refused = None
    if found.bad and (BAD_ROWS == "stop" or not found.rows):
        refused = Refusal(bad_in_words(found))
    elif HELD_OUT and len(found.rows) < 3:
        refused = Refusal(f"HELD_OUT = {HELD_OUT:g} needs 3 rows or more, one for each of train, valid and test, and {len(found.rows)} can "
                          "be used; add rows, or set HELD_OUT = 0 to train on all")  # fmt: skip
    try:
        return mixing.split(found.rows, HELD_OUT, SEED, large), refused
    except Refusal as too_few:
        return (found.rows, [], []), refused or too_few


def put(out, side, row, kind):
    """Write a row; in a dry run only count it."""
    if DRY_RUN:
        out.counts[side] += 1
        out.kinds[kind] += 1
        out.first.setdefault(kind, {"messages": row.messages})
    else:
        out.write(side, row.id, kind, row.messages, **{"topics": row.topics} | fields(row))


# words


def each(counts):
    """The rows of a file by format, in words."""
    return f"{sum(counts.values()):,} rows (" + ", ".join(f"{count:,} {name}" for name, count in counts.most_common()) + ")"


def by_reason(bad):
    """`bad` in lists of one reason each, the longest first; figures, quotes and brackets make no other reason."""
    same = defaultdict(list)
    for where, reason in bad:
        same[re.sub(r"""'[^']*'|"[^"]*"|\((?!user|assistant|system).*?\)|\d+""", "", reason)].append((where, reason))
    return sorted(same.values(), key=len, reverse=True)


def counted(same):
    """("rows, the first a.csv line 7: it …", how many) of what was left out for one reason."""
    return f"{'rows, the first' if len(same) > 1 else 'row,'} {': '.join(same[0])}", len(same)


def bad_in_words(found):
    """The sentence that refuses bad rows, and below it how many for each reason, where there are several."""
    total, reasons = sum(sum(formats.values()) for formats in found.files.values()), by_reason(found.bad)
    cannot = f"{len(found.bad):,} of {total:,} rows cannot" if found.rows else f"none of the {total:,} rows can"
    mend = 'set BAD_ROWS = "skip" to leave them out, counted' if found.rows else "name other files"
    lines = [f"{cannot} be used, the first {': '.join(found.bad[0])}. Mend them, or {mend}"]
    if len(reasons) > 1:
        lines += ["By reason:", *(f"  {count:,} {words}" for words, count in map(counted, reasons))]
    return visible("\n".join(lines))


def turns(found):
    """A line on the turns of the rows."""
    systems = [row.messages[0]["role"] == "system" for row in found.rows]
    counts = [len(row.messages) - system for row, system in zip(found.rows, systems, strict=True)]
    return f"turns of a row: median {int(np.median(counts)):,}, most {max(counts):,}; {sum(systems):,} rows have a system message"


def lengths(found):
    """(rows longer than MAX_SEQ_LENGTH, lines on how long they are), of many rows told from some."""
    rows, limit, at = found.rows[:: len(found.rows) // _COUNTED + 1], f"MAX_SEQ_LENGTH = {MAX_SEQ_LENGTH:,} tokens", ""
    try:
        sizes, unit, by, most, notes = tokens_of(rows), "tokens", f", as {MODEL_NAME} counts them", MAX_SEQ_LENGTH, []
    except Refusal as reason:
        sizes, unit, by = [sum(len(message["content"]) for message in row.messages) for row in rows], "characters", ""
        most, at, notes = _CHARACTERS * MAX_SEQ_LENGTH, f", at {_CHARACTERS} characters a token", [f"tokens are not counted: {reason}"]
    refused = [f"{found.about[id(row)][1]}: {size}" for row, size in zip(rows, sizes, strict=True) if isinstance(size, BadRow)]
    sizes = np.array([size for size in sizes if not isinstance(size, BadRow)])
    if refused:
        notes += [f"warning: training {MODEL_NAME} will stop at {len(refused):,} rows, or leave them out, the first {refused[0]}"]
    if not len(sizes):
        return 0, [turns(found), *notes]
    longer, (middle, nearly, almost, longest) = int((sizes > most).sum()), np.percentile(sizes, (50, 90, 99, 100)).astype(int)
    some = f" (of {len(rows):,} rows, evenly spread)" if len(rows) < len(found.rows) else ""
    shortens = ", which training shortens: the oldest turns go first, then the middle of the longest question, never the answer"
    return longer, [
        turns(found),
        f"{unit} of a row{some}: median {middle:,}, 90 % {nearly:,}, 99 % {almost:,}, longest {longest:,}; in all {sizes.sum():,}{by}",
        f"longer than {limit}{at}: {longer:,} of {len(rows):,} rows" + shortens * bool(longer), *notes,
    ]  # fmt: skip


def tokens_of(rows):
    """The tokens of each row as training renders it, or the `BadRow` for which it refuses it; `Refusal` where they cannot be counted."""
    directory = hub.local_tokenizer(MODEL_NAME)
    if directory is None:
        raise Refusal(f"the tokenizer of {MODEL_NAME} is not on this machine; --prefetch brings it")
    tokenizer = chat_text.load_tokenizer(directory)
    some = ([row.messages for row in rows[at : at + _AT_ONCE]] for at in range(0, len(rows), _AT_ONCE))
    return [fitting if isinstance(fitting, BadRow) else len(fitting[1].input_ids) + fitting[1].taken
            for conversations in some for fitting in chat_text.fit(tokenizer, conversations, MAX_SEQ_LENGTH)]  # fmt: skip


def notes(found, large, out):
    """Lines on what else is to be known: fields that are not carried over, groups that are too large, sides without rows."""
    lines = []
    if found.unused:
        some = ", ".join(f"{name} ({rows:,} rows)" for name, rows in found.unused.most_common(10))
        lines += [f"fields that are not carried over: {some}"]
    if large:
        large = large["too_large"]
        lines += [f"{large['groups']:,} source questions have more rows than are wanted in valid.jsonl, and stay in train.jsonl: "
                  f"{large['rows']:,} rows, {large['largest_rows']:,} of them of {large['largest'][:80]}"]  # fmt: skip
    if 0 < out.counts["valid"] < _FEW:
        lines += [f"valid.jsonl has only {out.counts['valid']} rows: which checkpoint is best will be half chance; raise HELD_OUT"]
    if not HELD_OUT:
        lines += ["valid.jsonl and test.jsonl have no row, for HELD_OUT = 0: train with VALIDATION_FILE = None and TEST_FILE = None"]
    return lines


if __name__ == "__main__":
    refusal.guard(main)

"""Legal cases, bills and reports with their summaries to conversations, as train, valid and test JSONL.

    python prepare/legal_summaries.py --train data/lexsumm/train.jsonl --validation data/lexsumm/validation.jsonl
    python prepare/legal_summaries.py --train 'data/govreport/train-*.parquet' --test data/govreport/test.parquet --held-out 0.02
    python prepare/legal_summaries.py --summaries long,short --max-seq-length 32768 --long-documents drop
    python prepare/legal_summaries.py --tiny                                   of samples/ -> data/legal_summaries_tiny/

Read are LexSumm (input, output), BillSum (text, summary), Multi-LexSum (sources, a list; summary/long, /short, /tiny) and GovReport
(report, summary), as JSON lines, plain or .gz, or parquet; which of them a row is, its keys say. A document that is too long loses its
middle, at ends of sentences and marked [...], and of its facts those that stood there alone; beginning, end and summary stay whole.
All summaries of a document are on one side.
"""

import hashlib
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

import annotated_types
import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from common import chat_text, constants, hub, legal_files, mixing, refusal, scores, split_files
from common.chat_rows import BadRow
from common.refusal import Refusal

TRAIN: list[str] = ["data/lexsumm/train.jsonl"]  # files, or globs such as 'data/govreport/train-*.parquet'
VALIDATION: list[str] = []  # none: a share of TRAIN's documents
TEST: list[str] = []  # none: a share of TRAIN's documents
HELD_OUT: Annotated[float, annotated_types.Ge(0), annotated_types.Lt(0.5)] = 0.05  # that share, for each of the two that have no files
OUTPUT: str = "data/legal_summaries"  # a directory
SUMMARIES: list[Literal["long", "short", "tiny"]] = ["long"]  # of Multi-LexSum's three; each is a row of its own, with the same prompt
SYSTEM: str = "You are a legal assistant. Summarise the document."  # is never cut; "" writes none
MODEL_NAME: str = "Qwen/Qwen3-4B-Instruct-2507"  # whose tokenizer and chat template count
MAX_SEQ_LENGTH: PositiveInt = 262_144  # tokens of a row: as many as the recipe's
LONG_DOCUMENTS: Literal["shorten", "drop"] = "shorten"  # "drop" leaves rows out that are longer, counted
SAMPLE: PositiveInt | None = None  # only the first so many rows of each file, for a look; none: all
BAD_ROWS: Literal["stop", "skip"] = "stop"  # "skip" leaves them out, counted; also what is held out and is in training too
SEED: NonNegativeInt = 42  # decides which documents are held out

TINY = {
    "TRAIN": ["samples/legal_cases.jsonl"],
    "OUTPUT": "data/legal_summaries_tiny",
    "HELD_OUT": 0.1,
    "MODEL_NAME": "tiny-qwen3",
    "MAX_SEQ_LENGTH": 4096,
}

_AT_ONCE = 8_000_000  # characters of documents that are tokenised, and in memory, together
_SHOWN = 400  # characters of a message in the preview


@dataclass(frozen=True, slots=True)
class Document:
    """Where a document stood first, and the summaries of it that were met."""

    number: int
    side: str
    where: str
    summaries: dict  # digest -> number


@dataclass(frozen=True, slots=True)
class Waiting:
    """A row that is read and not yet tokenised. more: the further fields it is written with."""

    side: str
    where: str
    row_id: str
    source: str
    messages: list
    more: dict


def main(**overrides):
    """Write the rows; returns {"output", "rows": {side: rows}, "formats": {format: rows}, "left_out": {reason: rows}, "shortened",
    "taken", "facts_taken"}: rows that were shortened, and the tokens and the facts that it took away.

    Raises `Refusal` for files that cannot be read or are of another kind, and for bad rows
    unless BAD_ROWS is "skip"; nothing is written then.
    """
    constants.resolve(globals(), overrides)
    if not TRAIN:
        raise Refusal("TRAIN names no file; name .jsonl, .jsonl.gz or .parquet files with documents and their summaries")
    sides = {"train": legal_files.find(TRAIN, "TRAIN"), "valid": legal_files.find(VALIDATION, "VALIDATION"),
             "test": legal_files.find(TEST, "TEST")}  # fmt: skip
    tokenizer = chat_text.load_tokenizer(hub.find(MODEL_NAME))
    lengths = {"document": [], "summary": [], "taken": [], "facts": []}
    with split_files.SplitFiles(OUTPUT) as out:
        for rows in batches(read(out, sides)):
            write(out, tokenizer, rows, lengths)
        if not out.counts["train"]:
            left_out = [f"{count:,} {reason}" for reason, count in out.skipped.most_common()]
            left_out += [f"{count:,} held out for {side}" for side, count in out.counts.items() if count]
            raise Refusal(f"{', '.join(TRAIN)} give no row to train on ({', '.join(left_out)}); name other files, or change what takes "
                          "them away, such as HELD_OUT")  # fmt: skip
    print(out.in_words(clip=_SHOWN))
    print(in_words(lengths))
    for side, constant, file in (("valid", "VALIDATION", "VALIDATION_FILE"), ("test", "TEST", "TEST_FILE")):
        if not out.counts[side]:
            print(f"warning: {side}.jsonl has no row; raise HELD_OUT or name files in {constant}, or train with {file} = None")
    taken = [tokens for tokens in lengths["taken"] if tokens]
    return {"output": OUTPUT, "rows": dict(out.counts), "formats": dict(out.kinds), "left_out": dict(out.skipped), "shortened": len(taken),
            "taken": sum(taken), "facts_taken": sum(lengths["facts"])}  # fmt: skip


# reading


def read(out, sides):
    """Yield a `Waiting` for each summary of each file: those that train first, so that what shares a document with them is known."""
    seen = {}
    for given, files in sides.items():
        for path in files:
            for where, case in islice(legal_files.cases(path, SUMMARIES, lambda *found: bad(out, *found)), SAMPLE):
                yield from rows_of(out, seen, given, sides, where, case)


def rows_of(out, seen, given, sides, where, case):
    """The rows of one case that was read from a file of the side `given`."""
    digest = mixing.document_digest(case.document)
    side = split_files.side_of(digest, HELD_OUT, SEED) if given == "train" else given
    side = "train" if given == "train" and sides[side] else side  # which has files of its own
    document = seen.setdefault(digest, Document(len(seen) + 1, side, where, {}))
    if document.side != side:
        shared(out, where, side, document)
        return
    for name in case.missing:
        out.skip(f"rows without {name}", where)
    for summary in case.summaries.values():
        known = hashlib.blake2b(summary.encode(), digest_size=16).digest()
        if known in document.summaries:
            out.skip("duplicates", where)
            continue
        number = document.summaries[known] = len(document.summaries) + 1
        messages = [{"role": "system", "content": SYSTEM}] if SYSTEM else []
        messages += [{"role": "user", "content": case.document}, {"role": "assistant", "content": summary}]
        # a name and two numbers: the recipe's own split keeps the summaries of a document together
        row_id, facts = f"{case.source.lower().replace('-', '')}_{document.number}_{number}", {"facts": case.facts} if case.facts else {}
        yield Waiting(side, where, row_id, case.source, messages, {"document": digest, **facts})


def batches(rows):
    """Lists of rows, each of `_AT_ONCE` characters or a little more."""
    waiting, characters = [], 0
    for row in rows:
        waiting.append(row)
        characters += sum(len(message["content"]) for message in row.messages)
        if characters >= _AT_ONCE:
            yield waiting
            waiting, characters = [], 0
    if waiting:
        yield waiting


def bad(out, where, what):
    if BAD_ROWS == "stop":
        raise Refusal(f'{where}: {what}. Mend it, or set BAD_ROWS = "skip" to leave such rows out, counted')
    out.skip("bad rows", f"{where}: {what}")


def shared(out, where, side, document):
    if BAD_ROWS == "stop":
        raise Refusal(
            f"{where}: its document is for {side}, and stands in {document.where} too, which is for {document.side}; what is held out must "
            'not be trained on, nor tested twice. Take it out of one of the two, or set BAD_ROWS = "skip" to leave it out here'
        )
    out.skip("documents of another side", f"{where}, as {document.where}")


# writing


def write(out, tokenizer, rows, lengths):
    """Write the rows as long as they may be; lengths: in tokens, before anything was taken away, and what was, facts counted too."""
    around = around_document(tokenizer)
    for row, found in zip(rows, chat_text.fit(tokenizer, [row.messages for row in rows], MAX_SEQ_LENGTH, LONG_DOCUMENTS), strict=True):
        if isinstance(found, BadRow) and not isinstance(found, chat_text.TooLong):
            bad(out, row.where, str(found).replace("its answer", "its summary"))
            continue
        if isinstance(found, chat_text.TooLong):
            whole, learned = found.tokens, len(tokenizer(row.messages[-1]["content"], add_special_tokens=False)["input_ids"]) + 1
            out.skip("rows longer than MAX_SEQ_LENGTH", f"{row.where} ({whole:,} tokens)")
        else:
            messages, encoded = found
            whole, learned = len(encoded.input_ids) + encoded.taken, sum(label != chat_text.IGNORED for label in encoded.labels)
            lengths["taken"].append(encoded.taken)
            more, gone = without_taken_facts(row, messages) if encoded.taken and "facts" in row.more else (row.more, 0)
            lengths["facts"].append(gone)
            out.write(row.side, row.row_id, row.source, messages, **more)
        lengths["document"].append(whole - learned - around)
        lengths["summary"].append(learned)


def without_taken_facts(row, messages):
    """(the further fields of a row, how many of its facts are gone): those that stood in its document and do not in that of `messages`,
    which is shortened. Words that never stood there, such as a date written in another way, stay."""
    facts = row.more["facts"]
    documents = (next(m["content"] for m in some if m["role"] == "user") for some in (row.messages, messages))
    before, after = (scores.facts_found(facts, document) for document in documents)
    left = {place: [fact for fact, stood, stands in zip(words, before[place], after[place], strict=True) if stands or not stood]
            for place, words in facts.items()}  # fmt: skip
    gone = sum(map(len, facts.values())) - sum(map(len, left.values()))
    left = {place: words for place, words in left.items() if words}
    return {name: value for name, value in (row.more | {"facts": left}).items() if value}, gone


def around_document(tokenizer):
    """Tokens of a row beside its document and summary: the system message and the markup of turns."""
    turns = [{"role": "system", "content": SYSTEM}] if SYSTEM else []
    encoded = chat_text.encode(tokenizer, [*turns, {"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}], 1 << 30)
    return sum(label == chat_text.IGNORED for label in encoded.labels) - 1


def in_words(lengths):
    """How long documents and summaries are, and what was taken away, facts too."""
    lines = []
    for name in ("document", "summary"):
        middle, most, nearly, longest = np.percentile(lengths[name], (50, 90, 99, 100)).astype(int)
        lines += [f"tokens of a {name}: median {middle:,}, 90 % {most:,}, 99 % {nearly:,}, longest {longest:,}"]
    taken = [tokens for tokens in lengths["taken"] if tokens]
    if taken:
        lines += [f"shortened to MAX_SEQ_LENGTH = {MAX_SEQ_LENGTH:,}: {len(taken):,} of {len(lengths['taken']):,} rows, by "
                  f"{sum(taken):,} tokens; of a shortened one median {int(np.median(taken)):,}, most {max(taken):,}"]  # fmt: skip
    if any(lengths["facts"]):
        lines += [f"facts taken with the middle: {sum(lengths['facts']):,}, in {sum(map(bool, lengths['facts'])):,} rows, whose `facts` no "
                  "longer name them"]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    refusal.guard(main)

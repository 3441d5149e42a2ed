"""Reading conversations: JSONL rows of several formats become checked lists of messages.

Formats, judged per row: `messages` (ChatML) · `instruction`/`input`/`output` · `prompt`/`completion` ·
`question`/`answer` · `text` already rendered with Llama 3 or ChatML markup, which is taken apart again so that the
model's own template renders it.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from common.refusal import Refusal

ROLES = ("system", "user", "assistant")
SHOWN = 5  # bad rows named in a message
EXAMPLE = '{"question": "...", "answer": "..."}'


@dataclass(slots=True)
class Row:
    """One conversation. `group` names the source question: rows of one group stay on one side of a split."""

    id: str
    group: str
    messages: list  # [{"role": …, "content": …}, …], ends with the assistant
    file: str
    line: int
    topics: list = field(default_factory=list)
    facts: dict = field(default_factory=dict)  # {where in the document: [words that the answer should hold]}
    document: str = ""  # `mixing.document_digest` of the document before a converter shortened it; "" where that is not known


class BadRow(ValueError):
    """A row that cannot be used; its text says why, in words that end a sentence `file line N: …`."""


def read(files, bad_rows="stop", split_by="id"):
    """Rows of all `files`, in order, and a report of what was read.

    files: names, or {name: weight}; a file of weight 0 is turned off: its rows are counted, not used, and not checked.
    bad_rows: "stop" raises `Refusal` that names the first bad rows with file and line; "skip" leaves them out and
    returns them in the report under "bad_rows" with their reason and text. split_by: see `group_of`.
    """
    rows, bad, report = [], [], {}
    for file in files:
        if isinstance(files, dict) and not files[file]:
            report[str(file)] = {"rows": sum(1 for _ in _lines({file: 0})), "format_counts": {}}
            continue
        formats = {}
        for number, raw in _lines([file]):
            try:
                row, kind = parse(raw, file, number, split_by)
            except BadRow as reason:
                bad.append({"file": str(file), "line": number, "reason": str(reason), "raw": raw.decode("utf-8", "backslashreplace")})
                continue
            formats[kind] = formats.get(kind, 0) + 1
            rows.append(row)
        if not formats and not any(b["file"] == str(file) for b in bad):
            raise Refusal(f"{file} has no rows; TRAIN_FILES must name files with one JSON object a line")
        report[str(file)] = {"rows": sum(formats.values()), "format_counts": formats}
    if bad and bad_rows == "stop":
        raise bad_row_refusal(bad)
    if not rows and not bad:
        raise Refusal(f"the weights {files} leave no row to train on; give at least one file a weight above 0")
    if not rows:
        raise Refusal(f"none of the {len(bad)} rows can be used; the first, {bad[0]['file']} line {bad[0]['line']}: {bad[0]['reason']}")
    return rows, {
        "rows_read": len(rows) + len(bad), "files": report, "bad_rows": bad, "bad_row_count": len(bad), "split_by": split_by,
    }  # fmt: skip


def require(files, constant="TRAIN_FILES"):
    """`Refusal` for the first of `files` (names, or {name: weight}) that is missing, empty, or of another kind than JSONL.

    Of a file of weight 0 only that it is there. constant: that names them.
    """
    for file in files:
        path = Path(file)
        if path.is_dir():
            raise Refusal(f"{file} is a directory; {constant} must name the JSONL files in it, one by one")
        if not path.is_file():
            raise Refusal(f"{file} does not exist in {Path.cwd()}; {constant} must name JSONL files, from where you are")
        if path.stat().st_size == 0:
            raise Refusal(f"{file} is empty; {constant} must name files with one JSON object a line")
        if (not isinstance(files, dict) or files[file]) and (kind := _other_kind(path)):
            raise Refusal(f"{file} {kind}; {constant} must name files with one row a line, such as {EXAMPLE}")


def _other_kind(path):
    """What a file is and what to do with it, in words; "" for what may be JSONL."""
    with path.open("rb") as content:
        start = content.read(1 << 16)
    if start.startswith(b"\x1f\x8b"):
        return "is compressed with gzip: unpack it first"
    if start.startswith(b"PAR1"):
        return "is a parquet file: prepare/chat_files.py turns it into rows"
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if path.suffix.lower() == ".csv" and not start.startswith(b"{"):
        return "is a CSV table: prepare/chat_files.py turns it into rows"
    if start.startswith(b"["):
        line, _, others = start.partition(b"\n")
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            others = b""
        if not others.strip():  # otherwise the first row is a list with a line of its own, and bad like other rows
            return "is one JSON array: write each of its elements on a line of its own, without the brackets and commas around them"
    return ""


def bad_row_refusal(bad):
    """The sentence that names the first bad rows (dicts with file, line, reason) and what can be done."""
    named = "; ".join(f"{b['file']} line {b['line']}: {b['reason']}" for b in bad[:SHOWN])
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return Refusal(f'{named}{more}. Mend them, or set BAD_ROWS = "skip" to leave them out, counted and written to a file')


def parse(raw, file, number, split_by="id"):
    """(Row, format name) of one line of bytes; raises `BadRow`."""
    return row_of(content_of(raw), file, number, split_by)


def content_of(raw):
    """The JSON object that a line of bytes holds, as a dict of whatever keys; raises `BadRow`."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(f"byte {error.start + 1} is not UTF-8") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRow(f"it is not JSON ({error.msg} at character {error.pos + 1})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise BadRow(f"it is not JSON that can be read ({error})") from None
    if not isinstance(content, dict):
        raise BadRow(f"it is a JSON {type(content).__name__}; a row is an object")
    if "\\ud" in text or "\\uD" in text:
        refuse_half_pairs(content)
    return content


def row_of(content, file, number, split_by="id"):
    """(Row, format name) of a row that was read from JSON, a table or elsewhere: a dict whose text has no half surrogate pairs.

    number: of its line, or of the row where a file has no lines. Raises `BadRow`.
    """
    kind, messages = _messages(content)
    messages = check(messages)
    row_id = str(content["id"]) if _has_id(content) else f"{Path(file).stem}:{number}"
    topics = content.get("topics")
    topics = [str(t) for t in topics] if isinstance(topics, list) else []
    group = group_of(content, row_id, messages, split_by)
    return Row(row_id, group, messages, str(file), number, topics, facts_of(content), _document(content)), kind


def facts_of(content):
    """The row's facts, {place: [words]}; {} where its field of that name is something else, which is none of ours."""
    facts = content.get("facts")
    if not isinstance(facts, dict):
        return {}
    facts = {place: words for place, words in facts.items() if words is not None}  # as a table's columns give a place without any
    ours = all(isinstance(words, list) and all(isinstance(w, str) and w.strip() for w in words) for words in facts.values())
    return facts if ours else {}


def _document(content):
    """The digest that a converter gave; "" where its field of that name is something else, such as a title that many rows have."""
    document = content.get("document")
    return document if isinstance(document, str) and re.fullmatch("[0-9a-f]{32}", document) else ""


def _has_id(content):
    """Whether the row brings an id of its own; 0 is one."""
    return content.get("id") not in (None, "")


def group_of(content, row_id, messages, split_by):
    """The source question a row belongs to.

    split_by "id": an id of the form name_QUESTION_ANSWER with two numbers counts without its answer (cv_12_3 -> cv_12),
    any other id as it is (cross_validated_17 is a row's number, no question's), and a row without an id by its first
    question. Any other value names the row's field to use.
    """
    if split_by != "id":
        if content.get(split_by) in (None, ""):
            raise BadRow(f"it has no field {split_by!r}, which SPLIT_BY names")
        return str(content[split_by])
    if not _has_id(content):
        question = next(m["content"] for m in messages if m["role"] == "user")
        return hashlib.sha256(question.encode()).hexdigest()[:16]
    found = re.fullmatch(r"(.+_\d+)_\d+", row_id)
    return found[1] if found else row_id


def check(messages):
    """The messages as plain role/content pairs; raises `BadRow` with the first rule they break."""
    if not isinstance(messages, list) or not messages:
        raise BadRow("its messages are empty; a row needs a question and an answer")
    plain = []
    for place, message in enumerate(messages, 1):
        if not isinstance(message, dict) or "role" not in message:
            raise BadRow(f"message {place} has no role")
        role, content = message["role"], message.get("content")
        if role not in ROLES:
            raise BadRow(f"message {place} has the role {role!r}; known are {', '.join(ROLES)}")
        if not isinstance(content, str) and content is not None:
            raise BadRow(f"message {place} ({role}) has content of type {type(content).__name__}, where text belongs")
        if not isinstance(content, str) or not content.strip():
            raise BadRow(f"message {place} ({role}) has empty content")
        if role == "assistant" and content.lstrip().startswith("<think>") and "</think>" not in content:
            raise BadRow(f"message {place} begins with <think> and never closes it, so it may have been cut off before its answer")
        if role == "assistant" and content.rstrip().endswith("</think>"):
            raise BadRow(f"message {place} ends with </think>: it has reasoning and no answer")
        if role == "system" and place > 1:
            raise BadRow(f"message {place} is a system message; only the first may be")
        plain.append({"role": role, "content": content})
    if plain[-1]["role"] != "assistant":
        raise BadRow(f"it ends with a {plain[-1]['role']} turn; the last turn must be the assistant's answer")
    if not any(m["role"] == "user" for m in plain):
        raise BadRow("it has no user turn")
    return plain


def refuse_half_pairs(content):
    """`BadRow` where text in what `json` has read cannot be written as UTF-8."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRow("it holds half of a surrogate pair (such as \\ud83d without its other half), which is no character") from None


def _messages(row):
    if "messages" in row:
        return "messages", row["messages"]
    if "instruction" in row and "output" in row:
        extra = row.get("input")
        question = f"{row['instruction']}\n\n{extra}" if extra else row["instruction"]
        return "instruction", _pair(question, row["output"], row.get("system"))
    for question, answer in (("prompt", "completion"), ("question", "answer")):
        if question in row and answer in row:
            return question, _pair(row[question], row[answer], row.get("system"))
    if isinstance(row.get("text"), str):
        return "text", _from_markup(row["text"])
    raise BadRow(
        f"it has no messages (its keys are {', '.join(map(str, row)) or 'none'}); known are messages, instruction/input/output, "
        "prompt/completion, question/answer and text"
    )


def _pair(question, answer, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


# A turn in Llama 3's markup and in ChatML's: role, content, end. Originals differ in the newlines after the header;
# content is stripped. A turn without an end reaches to the next one.
_MARKUP = (
    re.compile(
        r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>(.*?)"
        r"(<\|eot_id\|>|<\|end_of_text\|>|(?=<\|start_header_id\|>)|\Z)", re.S,
    ),  # fmt: skip
    re.compile(r"<\|im_start\|>\s*(\w+)\s*\n(.*?)(<\|im_end\|>|<\|end_of_text\|>|<\|endoftext\|>|(?=<\|im_start\|>)|\Z)", re.S),
)
_AROUND = re.compile(r"<\|begin_of_text\|>|<\|end_of_text\|>|<\|endoftext\|>|</?s>")  # what may stand outside the turns


def _from_markup(text):
    for turn in _MARKUP:
        found = list(turn.finditer(text))
        if not found:
            continue
        edges = [0, *(edge for match in found for edge in match.span()), len(text)]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            if outside := _AROUND.sub("", text[start:end]).strip():
                raise BadRow(f"its text holds {outside[:40]!r} outside any turn, where nobody says it; put it into a turn or take it out")
        if not found[-1][3]:
            raise BadRow(
                "its last turn has no end (<|eot_id|>, <|im_end|> or <|end_of_text|>), so it may have been cut off; "
                "put the end there if it is whole"
            )
        return [{"role": match[1], "content": match[2].strip()} for match in found]
    raise BadRow("its text has no turns (no <|start_header_id|> or <|im_start|>), so the answer cannot be told from the question")


def _lines(files):
    """(line number, bytes) of every line that is not blank in the only one of `files`; raises what `require` does."""
    require(files)
    [file] = files
    with Path(file).open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if raw.strip():
                yield number, raw.strip()

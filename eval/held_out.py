"""The rows a run held out, as its validation.jsonl and test.jsonl list them."""

import hashlib
import json
from dataclasses import dataclass, field

from common.refusal import Refusal

EXAMPLES = 12  # rows whose answers are kept in full, the same for every checkpoint


@dataclass(frozen=True)
class Row:
    """One conversation; its last message is the reference answer."""

    id: str
    group: str
    messages: list
    facts: dict = field(default_factory=dict)  # {where in the document: [words that an answer should hold]}

    question = property(lambda self: question_of(self.messages[:-1]))
    reference = property(lambda self: self.messages[-1]["content"])


def question_of(messages):
    """The last that a user says in `messages`."""
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")


def read(path, limit=None):
    """The rows of `path`; with `limit` that many, spread evenly over the file (its first rows may all be of one source)."""
    if not path.is_file():
        raise Refusal(f"{path} is missing; a training run with held-out rows (HELD_OUT, or VALIDATION_FILE and TEST_FILE) writes it. Name "
                      "such a run's directory with --run-dir, or train with them")  # fmt: skip
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            rows.append(_row(line, f"{path} line {number}"))
    if not rows:
        raise Refusal(f"{path} has no rows, so nothing can be judged; hold out more of the data (HELD_OUT) and train again")
    return spread(rows, limit) if limit else rows


def _row(line, place):
    try:
        found = json.loads(line)
        messages = [{"role": m["role"], "content": m["content"]} for m in found["messages"]]
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ValueError("a question and, last, the assistant's reference answer are needed")
        facts = found.get("facts") or {}
        if not isinstance(facts, dict) or not all(isinstance(w, list) and all(isinstance(x, str) for x in w) for w in facts.values()):
            raise ValueError("its facts are no lists of words by place")
        return Row(str(found.get("id", place)), str(found.get("group", found.get("id", place))), messages, facts)
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{place} is no held-out row: {error!r}; the training run writes this file, do not edit it") from None


def spread(items, count):
    """`count` of the items, evenly spaced, in order."""
    return list(items) if count >= len(items) else [items[(2 * n + 1) * len(items) // (2 * count)] for n in range(count)]


def examples(rows, count=EXAMPLES):
    """Indices of the rows shown as examples: one per group, spread over the groups, before a second of any."""
    groups = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.group, []).append(index)
    chosen = spread([members[0] for members in groups.values()], count)
    chosen += [index for members in groups.values() for index in members[1:]][: count - len(chosen)]
    return sorted(chosen)


def digest(rows):
    """A name for exactly these rows."""
    found = hashlib.sha256(b"[")
    for n, row in enumerate(rows):  # one after another: documents are long
        content = [row.id, row.group, row.messages] + ([row.facts] if row.facts else [])
        found.update((", " * (n > 0) + json.dumps(content, ensure_ascii=False)).encode())
    found.update(b"]")
    return found.hexdigest()[:16]

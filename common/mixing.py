"""Splitting rows by their source question, and weighting the files of the training side afterwards."""

import hashlib
import json
from collections import defaultdict

from common import chat_rows
from common.refusal import Refusal


def split(rows, held_out, seed, report=None):
    """(train, validation, test) with no group and no question on two sides.

    rows: `chat_rows.Row`s. held_out: share of the rows, half of it for validation (picks the best checkpoint), half
    for test (is only reported); 0 holds nothing out. Groups are ordered by a digest of seed and name, so a group keeps
    its place when other rows are added. A group of more rows than a side wants is never held out (it would be most of
    the side, or all the rows): it stays in training and is counted in `report` under "too_large". Raises `Refusal`
    where there are too few groups, or too few that are small enough.
    """
    if not held_out:
        return list(rows), [], []
    if held_out >= 1:
        raise Refusal(f"HELD_OUT is {held_out:g}; it is a share of the rows and must be below 1 (0.1 holds a tenth out)")
    groups = list(_joined(rows).values())
    if len(groups) < 3:
        raise Refusal(f"the rows come from {len(groups)} source question(s); HELD_OUT = {held_out} needs at least 3, or set HELD_OUT = 0")
    groups.sort(key=lambda group: _digest(seed, min(row.group for row in group)))
    sides, wanted = ([], []), held_out * len(rows) / 2
    fitting = [group for group in groups if len(group) <= max(wanted, 1)]
    large = [group for group in groups if len(group) > max(wanted, 1)]
    if len(fitting) < 2:
        raise Refusal(
            f"{len(large)} of the {len(groups)} source questions have more than the {wanted:,.1f} rows that HELD_OUT = {held_out:g} of "
            f"{len(rows)} wants for validation and for test (half of them each; the largest has {max(map(len, large))}), and they cannot "
            "be divided; name with SPLIT_BY a field that tells the rows apart more finely, or change HELD_OUT (0 turns it off)"
        )
    for left, side in zip((2, 1), sides, strict=True):  # groups that the sides after this one need
        while len(fitting) > left - bool(large) and (not side or len(side) + len(fitting[0]) / 2 <= wanted):
            side.extend(fitting.pop(0))
    if large and report is not None:
        largest = max(large, key=len)
        counts = {"groups": len(large), "rows": sum(map(len, large))}
        report["too_large"] = {**counts, "largest": largest[0].group, "largest_rows": len(largest)}
    held = {id(row) for side in sides for row in side}
    return [row for row in rows if id(row) not in held], *sides


def sides(rows, report, validation_file, test_file, held_out, seed, bad_rows="stop"):
    """{"train", "validation", "test": rows}: held out are the rows of the files that are named; where none is, a share of `rows`."""
    if validation_file or test_file:
        seen, files = seen_as("training", rows), {"validation": validation_file, "test": test_file}
        held = {name: held_out_rows(name, file, seen, report, bad_rows) if file else [] for name, file in files.items()}
        return {"train": rows, **held}
    return dict(zip(("train", "validation", "test"), split(rows, held_out, seed, report), strict=True))


def seen_as(what, rows, by="row"):
    """{digest: (what, row)}, for `held_out_rows`. what: "training", for example.

    by: "row" for a digest of all messages; "document" for one of what the user gives, whatever its letter case and white space, so
    that the document with another summary or another system prompt is the same; and for that of the document before a converter
    shortened it, where the row has it.
    """
    return {digest: (what, row) for row in rows for digest in _digests_of(row, by)}


def held_out_rows(what, file, seen, report, bad_rows="stop", by="row"):
    """The rows of a file that is held out, without those that `seen` (from `seen_as`, with the same `by`) has; they are seen from now on.

    Raises `Refusal` that names the first shared ones; with bad_rows "skip" they are left out, as other bad rows, in `report`.
    """
    rows, found = chat_rows.read([file], bad_rows)
    digests, same, bad = [_digests_of(row, by) for row in rows], {}, found["bad_rows"]
    for first, *others in digests:
        for other in others:
            same[_root(same, other)] = _root(same, first)
    names = [_root(same, first) for first, *_ in digests]  # one for all rows of a document, whichever digests they have
    before = {_root(same, digest): seen[digest] for digest in list(same) if digest in seen}
    kept = {name: row for name, row in zip(names, rows, strict=True) if name not in before}
    shared = [(row, *before[name]) for name, row in zip(names, rows, strict=True) if name in before]
    subject, noun, those = ("it", "rows", len(rows)) if by == "row" else ("its document", "documents", len(set(names)))
    for row, others, other in shared:
        raw = json.dumps({"id": row.id, "messages": row.messages}, ensure_ascii=False)
        reason = f"{subject} is in the {others} rows too, {other.file} line {other.line}"
        bad.append({"file": row.file, "line": row.line, "reason": reason, "raw": raw})
    if shared and bad_rows == "stop":
        named = "; ".join(f"line {b['line']}: {b['reason']}" for b in bad[:3])
        count = len(shared) if by == "row" else those - len(kept)
        raise Refusal(
            f"{file} shares {count:,} of its {those:,} {noun} with those it is to judge ({named}), so its loss would say "
            'how well they are remembered. Take them out of one of the two, or set BAD_ROWS = "skip" to leave them out here'
        )
    if not kept:
        raise Refusal(f"{file} has no {noun[:-1]} that is not in the other files too; name a file of {noun} that are held out")
    seen |= {digest: (what, row) for row, name, some in zip(rows, names, digests, strict=True) if name in kept for digest in some}
    report["bad_rows"] += bad
    report["bad_row_count"] += len(bad)
    report["rows_read"] += found["rows_read"]
    report["split_by"] = None  # by files: what their rows share is not known
    return [row for name, row in zip(names, rows, strict=True) if name in kept]


def weigh(rows, weights, seed):
    """The rows with each file's weight applied: 2.0 repeats every row, 0.5 keeps half of them, 1.5 adds half again.

    The fraction is the rows whose digest of seed and id comes first: the same rows on every machine. Order is kept.
    """
    by_file = defaultdict(list)
    for row in rows:
        by_file[row.file].append(row)
    times = {}
    for file, members in by_file.items():
        whole, fraction = divmod(float(weights[file]), 1)
        extra = sorted(members, key=lambda row: _digest(seed, f"{row.id}:{row.line}"))[: round(fraction * len(members))]
        times.update({id(row): int(whole) for row in members})
        for row in extra:
            times[id(row)] += 1
    weighted = [row for row in rows for _ in range(times[id(row)])]
    if not weighted:
        raise Refusal(f"the weights {weights} leave no row to train on; give at least one file a weight above 0")
    return weighted


def document_digest(text):
    """What tells a document from others, whatever its letter case and white space: 32 hexadecimal digits."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).hexdigest()


def _digests_of(row, by):
    """By which rows are the same: two that have any of them in common. Of a shortened document that of the whole one comes first."""
    if by == "row":
        return [hashlib.blake2b(json.dumps(row.messages).encode(), digest_size=16).digest()]
    of_text = document_digest(" ".join(m["content"] for m in row.messages if m["role"] == "user"))
    return [row.document, of_text] if row.document else [of_text]


def _joined(rows):
    """{representative: [rows]}: groups that share a question word for word, or a document, are one group."""
    parent = {}
    for row in rows:
        for digest in _digests_of(row, "document"):
            first, second = _root(parent, ("group", row.group)), _root(parent, ("document", digest))
            if first != second:
                parent[second] = first
    joined = defaultdict(list)
    for row in rows:
        joined[_root(parent, ("group", row.group))].append(row)
    return joined


def _root(parent, name):
    """The name that stands for all those that `parent` ({name: name}) joins with this one."""
    while parent.setdefault(name, name) != name:
        parent[name] = parent[parent[name]]
        name = parent[name]
    return name


def _digest(seed, name):
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()

"""Conversations of a converter into train.jsonl, valid.jsonl and test.jsonl: a group's rows on one side, all three whole or none."""

import hashlib
import json
from collections import Counter
from pathlib import Path

from common.refusal import Refusal
from common.safe_text import shorten, visible

SIDES = ("train", "valid", "test")
ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # made once: json.dumps makes one for each row that is not plain ASCII
LINES = 12  # of a message in a clipped preview
NAMED = 20  # left-out entries that are named; all are counted


def side_of(group, held_out, seed):
    """The side of a group, from a digest of seed and name: it stays there when other groups are added. held_out: share of each of
    valid and test; 0 puts everything into train."""
    place = int.from_bytes(hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest(), "big") / 2**64
    return "test" if place < held_out else "valid" if place < 2 * held_out else "train"


class SplitFiles:
    """`with SplitFiles(directory) as out: out.write("train", row)`: the files get their names when the block ends well.

    counts: {side: rows}; kinds: {topic: rows}; skipped: {reason: entries}; first: the first row of each topic, for a preview.
    """

    def __init__(self, directory):
        self.directory = Path(directory)
        self.counts, self.kinds, self.skipped, self.named, self.first = Counter(dict.fromkeys(SIDES, 0)), Counter(), Counter(), [], {}

    def __enter__(self):
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._files = {side: self._part(side).open("w", encoding="utf-8") for side in SIDES}
        except OSError as error:
            raise Refusal(f"OUTPUT is {self.directory}, and nothing can be written there ({error.strerror}); name another one") from None
        if taken := [name for name in map("{}.jsonl".format, SIDES) if (self.directory / name).is_dir()]:
            raise Refusal(f"OUTPUT is {self.directory}, in which {taken[0]} is a directory; name another one")
        return self

    def write(self, side, row_id, topic, messages, /, **more):
        """One conversation; more: further fields of the row, such as the group that it was split by."""
        row = {"id": row_id, "topics": [topic], **more, "messages": messages}
        self._files[side].write(ENCODE(row) + "\n")
        self.counts[side] += 1
        self.kinds[topic] += 1
        self.first.setdefault(topic, row)

    def skip(self, reason, what):
        """Count an entry that becomes no row, and name the first ones. what: such as a name with its line."""
        self.skipped[reason] += 1
        if len(self.named) < NAMED:
            self.named.append(f"{what}: {reason}")

    def __exit__(self, kind, error, trace):
        for file in self._files.values():
            file.close()
        for side in SIDES:
            if kind is None:
                self._part(side).replace(self.directory / f"{side}.jsonl")
            else:
                self._part(side).unlink(missing_ok=True)

    def in_words(self, clip=None):
        """What was written and what was left out, and the first row of each topic. clip: characters shown of a message; none: all."""
        lines = [f"{self.directory}/: " + ", ".join(f"{self.counts[side]:,} rows in {side}.jsonl" for side in SIDES)]
        lines += ["rows by kind: " + ", ".join(f"{count:,} {topic}" for topic, count in self.kinds.most_common())]
        lines += [f"left out: {count:,} {reason}" for reason, count in self.skipped.most_common()]
        lines += [f"  {what}" for what in self.named]
        for topic, row in self.first.items():
            lines += [f"preview, {topic}:"]
            for turn in row["messages"]:
                shown = turn["content"] if clip is None else shorten(turn["content"], clip)
                whole = shown.splitlines()
                lines += [f"  | {turn['role']}: {line}" for line in (whole if clip is None else whole[:LINES])]
                lines += [f"  | … {len(whole) - LINES} lines more"] * (clip is not None and len(whole) > LINES)
        return visible("\n".join(lines))  # what a terminal would obey stands in documents, and in what is said of them

    def _part(self, side):
        return self.directory / f".{side}.jsonl.part"

"""Raw text to token shards in tasks: a large file each, or small ones together. A task is done whole or not at all, and again only where
its sources or settings changed; its shards are the same bytes whoever does it, beside whatever others.

    task-00003.json     written last: {"format", "sources": [{"name", "size", "stamp"}], "settings", "shards": [names], "documents",
                        "tokens", "text_bytes", "skipped": {reason: count}, "first_skipped": [{"file", "line", "reason"}]}
    index.json          written when all are done: the totals, and those of what was skipped; skipped.jsonl names the first of each task

Shared by prepare/pretrain_tokens.py (a process on each core) and prepare/pretrain_tokens_cluster.py (datatrove).
"""

import json
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from common import encoding, log, manifest, raw_text, shards, text_sources
from common.refusal import Refusal

FORMAT = 1
GROUP = 64 << 20  # bytes of small files in one task; a larger file is one
PIECES = 1000  # shards of a task: three digits in their names
INDEX, SKIPPED = "index.json", "skipped.jsonl"
# .name.123 is what a killed process left
ENDING = re.compile(r"\.(bin|docs\.npy|json|npz|ds|ds\.index|ds\.metadata)$")  # of the files of one shard
OURS = re.compile(r"\.?(?:shard-(\d{5})-\d{3}\.(?:bin|docs\.npy|json)|task-(\d{5})\.json)(?:\.\d+)?")


@dataclass(frozen=True)
class Task:
    """number: of its shards' names; sources: files that are read one after the other."""

    number: int
    sources: tuple

    @property
    def size(self):
        """Bytes of its sources, as stored."""
        return sum(source.size for source in self.sources)


@dataclass(frozen=True)
class Settings:
    """Of all tasks. output: a directory; column: that of the text; shard_tokens: in a shard at most; tokenizer: the digest of it."""

    output: str
    column: str
    shard_tokens: int
    tokenizer: str

    def facts(self):
        """What a shard's bytes depend on beside its sources."""
        return {"column": self.column, "shard_tokens": self.shard_tokens, "tokenizer": self.tokenizer}


def divide(sources):
    """[Task] of sources in their order: a new one begins where GROUP would be passed."""
    groups, size = [], GROUP
    for source in sources:
        if size + source.size > GROUP:
            groups.append([])
            size = 0
        groups[-1].append(source)
        size += source.size
    return [Task(number, tuple(group)) for number, group in enumerate(groups)]


def require_ours(tasks, settings):
    """`Refusal` where these tasks would remove shards that are there: of sources that they do not have, or made in another way."""
    wanted = {source.shown for task in tasks for source in task.sources}
    for path in sorted(Path(settings.output).glob("task-*.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            gone = [source["name"] for source in facts["sources"] if source["name"] not in wanted]
            before = {key: facts["settings"][key] for key in settings.facts()}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it is done again
        if gone:
            raise Refusal(f"{settings.output} holds tokens of {gone[0]}, which is not among these sources, and they would be removed; name "
                          f"all sources, or another OUTPUT, or remove {settings.output} first")  # fmt: skip
        if before != settings.facts():
            ways = ", ".join(f"{key} = {before[key]}, now {value}" for key, value in settings.facts().items() if before[key] != value)
            raise Refusal(f"{settings.output} was written with {ways}, and all of it would be written again; set that back, or name "
                          f"another OUTPUT, or remove {settings.output} first")  # fmt: skip


@contextmanager
def alone(output):
    """While no other process of this machine writes to the directory `output`; `Refusal` where one does."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(Path(output) / ".lock", timeout=0):
            yield
    except Timeout:
        raise Refusal(f"another process is writing to {output}; wait until it ends, or name another OUTPUT") from None


def done(task, settings):
    """What task-TTTTT.json says where this task was done from these sources with these settings and its shards are there, else None."""
    try:
        facts = json.loads(_record(settings.output, task.number).read_text(encoding="utf-8"))
        same = (FORMAT, [source.facts() for source in task.sources], settings.facts())
        if (facts["format"], facts["sources"], facts["settings"]) == same and all(
            shards.is_written(Path(settings.output), name) for name in facts["shards"]
        ):
            return facts
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def run(task, settings, quiet=False):
    """Do `task`, unless it is done; what its record says. quiet: without a warning about the encoder, which was given already.

    `Refusal` for sources that cannot be read or changed meanwhile, and a full disk.
    """
    if facts := done(task, settings):
        return facts
    _forget(settings.output, lambda number: number == task.number)
    encoder = _encoder(str(Path(settings.output) / "tokenizer"), settings.tokenizer, quiet)
    skipped, writer = raw_text.Skipped(), _Writer(task.number, settings, encoder)
    for source in task.sources:
        for documents in raw_text.batches(source, settings.column, skipped):
            writer.add(source.shown, documents)
        if not text_sources.is_same(source):
            raise Refusal(f"{source.shown} was changed while it was read; start again when nobody writes to it: tasks that are done stay")
    writer.flush()
    facts = {"format": FORMAT, "sources": [source.facts() for source in task.sources], "settings": settings.facts(), **writer.facts(),
             "skipped": dict(skipped.counts), "first_skipped": skipped.first}  # fmt: skip
    _write(_record(settings.output, task.number), facts)
    return facts


class _Writer:
    """Fills the shards of one task."""

    def __init__(self, task, settings, encoder):
        self.task, self.settings, self.encoder = task, settings, encoder
        self.buffer = np.empty(settings.shard_tokens, encoder.dtype)
        self.shards, self.documents, self.tokens, self.text_bytes = [], 0, 0, 0
        self._begin()

    def _begin(self):
        self.used, self.ends, self.bytes, self.sources = 0, [], 0, {}

    def add(self, source, documents):
        """Append documents of one source. The bytes of a document count where it ends."""
        tokens, ends = self.encoder.encode(documents)
        sizes = np.cumsum([0, *map(len, documents)])
        start = 0
        while start < len(tokens):
            count = min(len(tokens) - start, len(self.buffer) - self.used)
            self.buffer[self.used : self.used + count] = tokens[start : start + count]
            first, last = np.searchsorted(ends, [start, start + count], side="right")
            self.ends.append(ends[first:last] - start + self.used)
            self.bytes += int(sizes[last] - sizes[first])
            self.sources[source] = True
            self.used += count
            start += count
            if self.used == len(self.buffer):
                self.flush()

    def flush(self):
        """Write what there is as a shard."""
        if not self.used:
            return
        if len(self.shards) == PIECES:
            raise Refusal(f"SHARD_TOKENS is {self.settings.shard_tokens:,}: {next(iter(self.sources))} becomes more than {PIECES} shards; "
                          "set it higher")  # fmt: skip
        name = f"shard-{self.task:05d}-{len(self.shards):03d}"
        encoder, ends = self.encoder, np.concatenate(self.ends)
        shards.write(Path(self.settings.output), name, self.buffer[: self.used], ends, text_bytes=self.bytes, tokenizer=encoder.digest,
                     vocab_size=encoder.vocab_size, end_of_text=encoder.end_of_text, sources=list(self.sources))  # fmt: skip
        self.shards.append(name)
        self.documents, self.tokens, self.text_bytes = self.documents + len(ends), self.tokens + self.used, self.text_bytes + self.bytes
        self._begin()

    def facts(self):
        """Totals, for the task's record."""
        return {"shards": self.shards, "documents": self.documents, "tokens": self.tokens, "text_bytes": self.text_bytes}


@lru_cache(maxsize=1)
def _encoder(directory, digest, quiet):
    encoder = encoding.Encoder(directory, (lambda text: None) if quiet else log.warn)
    if encoder.digest != digest:
        raise Refusal(f"the tokenizer in {directory} is no longer the one these tasks began with; remove the shards, or bring it back")
    return encoder


def finish(tasks, settings):
    """Write index.json and skipped.jsonl when every task is done; the index. What tasks that are gone had left is removed."""
    records = [done(task, settings) for task in tasks]
    missing = [task for task, record in zip(tasks, records, strict=True) if record is None]
    if missing:
        raise Refusal(f"{len(missing)} of {len(tasks)} tasks are not done, the first of {missing[0].sources[0].shown}; start again")
    _forget(settings.output, lambda number: number >= len(tasks))
    counts = sum((Counter(record["skipped"]) for record in records), Counter())
    totals = {key: sum(record[key] for record in records) for key in ("documents", "tokens", "text_bytes")}
    index = {"format": FORMAT, **settings.facts(), "sources": sum(len(record["sources"]) for record in records),
             "shards": sum(len(record["shards"]) for record in records), **totals, "skipped": dict(sorted(counts.items()))}  # fmt: skip
    if not totals["tokens"]:
        left = ", ".join(f"{count:,} x {reason}" for reason, count in counts.items()) or "they are empty"
        raise Refusal(f"there is not one document in {index['sources']} source(s): {left}; correct SOURCES or TEXT_FIELD")
    lines = [json.dumps(skipped, ensure_ascii=False) + "\n" for record in records for skipped in record["first_skipped"]]
    manifest.write_whole(Path(settings.output) / SKIPPED, "".join(lines).encode())
    _write(Path(settings.output) / INDEX, index)
    return index


def in_words(index, output):
    """What was written and what was left out, for the end of a command."""
    lines = [f"left out: {count:,} x {reason}" for reason, count in index["skipped"].items()]
    lines += [f"the first of them by file and line: {output}/{SKIPPED}"] if lines else []
    size = index["text_bytes"] / 1e6
    lines.append(f"{index['tokens']:,} tokens of {index['documents']:,} documents ({size:,.1f} MB) in {index['shards']} shards: {output}")
    return "\n".join(lines)


def is_shard(name):
    """Whether a file of this name holds tokens."""
    return PurePosixPath(name).suffix in (".bin", ".npz", ".ds")


def first_shards(names, count):
    """Of the names of files with shards: the first `count` shards (None: all), what goes with each, and what goes with all.

    `Refusal` where there are none.
    """
    names = [name for name in names if not any(part.startswith((".", "task-")) for part in PurePosixPath(name).parts)]
    found = sorted(name for name in names if is_shard(name))
    if not found:
        raise Refusal(f"there are {len(names)} files and no shards (.bin, .npz, .ds) among them; correct the address")
    left = {_stem(name) for name in found[count:]} if count else set()
    others = {INDEX, SKIPPED} if left else set()  # totals of all
    return [name for name in names if _stem(name) not in left and name not in others]


def _stem(name):
    """What the files of one shard have in common: shard-00000-000 of shard-00000-000.docs.npy."""
    return ENDING.sub("", name)


def _forget(output, which):
    """Remove the record, then the shards, of tasks with these numbers."""
    found = [(path, OURS.fullmatch(path.name)) for path in sorted(Path(output).iterdir(), reverse=True)]  # task-… before shard-…
    for path, match in found:
        if match and which(int(match[1] or match[2])):
            path.unlink()


def _record(output, number):
    return Path(output) / f"task-{number:05d}.json"


def _write(path, facts):
    manifest.write_whole(path, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())

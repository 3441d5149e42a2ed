"""The tokenised cache: built once before any rank starts, found again by a key over everything it depends on."""

import hashlib
import importlib.metadata
import inspect
import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common import cache, chat_rows, chat_text, conversation_columns, safe_text
from common.log import say
from common.refusal import Refusal
from common.run_directory import read_json, write_json

TOKENIZER_FILES = ("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")
PACKAGES = ("transformers", "tokenizers")  # whose versions tokenise
MODULES = (  # whose change may change what is stored
    "chat_rows.py", "chat_text.py", "conversation_columns.py", "long_documents.py", "mixing.py", "tokenised.py",
)  # fmt: skip
LOOKED_AT = 10**9  # bytes of data that `find` reads to tell whether a cache is theirs: most of a second
SHOWN = 2000  # characters of each stretch of the example on the terminal


@dataclass(frozen=True)
class Tokenised:
    """A built cache. Its rows have columns input_ids, labels (list[int32]) and length (int32)."""

    path: Path

    key = property(lambda self: self.path.name)  # of what it depends on

    def train(self):
        return self._load("train")

    def validation(self):
        """None where nothing is held out."""
        return self._load("validation") if (self.path / "validation").is_dir() else None

    def test(self):
        """None where there is no test part, or only its text was kept."""
        return self._load("test") if (self.path / "test").is_dir() else None

    def lengths(self):
        """Tokens of every training row, int32 [rows], in the order of the rows. Reads one column, without `datasets`."""
        import numpy as np
        import pyarrow

        shards = []
        for file in read_json(self.path / "train" / "state.json")["_data_files"]:
            with pyarrow.memory_map(str(self.path / "train" / file["filename"])) as content:
                batches = pyarrow.ipc.open_stream(content)
                shards += [batch.column("length").to_numpy() for batch in batches]
        return np.concatenate(shards)

    @property
    def statistics(self):
        return read_json(self.path / "data.json")

    def copy_to(self, run):
        """Put the statistics, the held-out rows and the skipped rows into the run directory."""
        for name in ("data.json", "validation.jsonl", "test.jsonl", "skipped_rows.jsonl"):
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, run.path / name)

    def _load(self, split):
        from datasets import load_from_disk

        return load_from_disk(str(self.path / split))


def once(build, files, model, **settings):
    """`Tokenised` from `build(directory)`, which runs only where no cache has the same key.

    model: the directory with the tokenizer's files; of a hub model its snapshot, see `hub.tokenizer_directory`.

    The key covers the bytes of `files`, the tokenizer's and the chat template's files, `settings`, the versions of
    transformers and tokenizers, and the source of `build` and of the modules it calls. It is the same on every machine, so
    that a run may go on elsewhere: no setting may hold a path of this one. See `cache.build_once`.
    """
    path = _path(build, files, model, settings)
    built, _ = cache.build_once(path, build)
    say(f"tokenised data {'written to' if built else 'found in'} {_short(path)}")
    return Tokenised(path)


def find(build, files, model, **settings):
    """The `Tokenised` that `once` would find for the same arguments, or None; builds nothing.

    None as well where the tokenizer or one of the files is not there, and where the files have more than `LOOKED_AT` bytes:
    to tell whether a cache is theirs they would have to be read.
    """
    there = model and Path(model).is_dir() and all(Path(file).is_file() for file in files)
    if not there or not (cache.root() / "tokenised").is_dir() or sum(Path(file).stat().st_size for file in files) > LOOKED_AT:
        return None
    path = _path(build, files, model, settings)
    return Tokenised(path) if path.is_dir() else None


def encode(directory, parts, report, model, revision, max_length, bad_rows, weights, keep=("train", "validation"),
           long_documents="shorten"):  # fmt: skip
    """Tokenise `parts` ({"train": rows, "validation": …, "test": …}) into `directory`, with statistics in data.json.

    Equal rows (weights above 1 repeat them) are tokenised once. Rows that cannot be used are stopped at or left out
    as `bad_rows` says. Parts that are not in `keep` are only counted here: they are judged later, from their text.
    long_documents: "drop" leaves out rows that are too long in place of shortening their document: no bad rows, and counted apart.
    """
    tokenizer = chat_text.load_tokenizer(model, revision)
    splits, bad, too_long, first = {}, list(report["bad_rows"]), [], None
    for name, rows in parts.items():
        unique = list({id(row): row for row in rows}.values())
        if not unique:
            continue
        with tempfile.TemporaryDirectory(dir=directory, ignore_cleanup_errors=True) as here:  # as large as the result: /tmp may be small
            encoded = conversation_columns.encode(tokenizer, unique, max_length, long_documents, name, Path(here))
            usable, unusable, dropped = _sorted_out(unique, encoded["problem"][:], encoded["whole"][:])
            bad, too_long = bad + unusable, too_long + dropped
            if bad and bad_rows == "stop":
                raise chat_rows.bad_row_refusal(bad)
            kept = [row for row in rows if id(row) in usable]
            if not kept:
                last = (bad + too_long)[-1]
                raise Refusal(f"none of the {len(rows)} {name} rows can be used; {last['file']} line {last['line']}: {last['reason']}")
            first = first or kept[0]
            places = [usable[id(row)] for row in kept]
            splits[name] = _statistics(encoded, kept, places) | {"dropped": len(rows) - len(kept), "too_long": len(dropped)}
            if name in keep:
                encoded.select(places).select_columns(["input_ids", "labels", "length"]).save_to_disk(str(directory / name))
        if name != "train":
            _write_rows(directory / f"{name}.jsonl", kept)
    example = chat_text.encode(tokenizer, first.messages, max_length)
    ending = chat_text.end_of_turn(tokenizer, example)
    if bad or too_long:
        with (directory / "skipped_rows.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(b, ensure_ascii=False) + "\n" for b in bad + too_long)
    after = Counter(row.file for row in parts["train"])
    files = {f: {**r, "weight": weights[f], "rows_after_weighting": after[f]} for f, r in report["files"].items()}
    write_json(directory / "data.json", {
        "rows_read": report["rows_read"], "bad_row_count": len(bad),
        "split_by": report["split_by"], "too_large": report.get("too_large"), "too_long_count": len(too_long),
        "bad_rows": _first(bad), "too_long": _first(too_long),
        "files": files, "splits": splits, "max_length": max_length, "end_of_turn": ending,
        "example": {"id": first.id, "spans": chat_text.marked(tokenizer, example)},
    })  # fmt: skip


def _sorted_out(rows, problems, wholes):
    """({id(row): its index} of what can be used, the bad rows, those that are too long): the latter as skipped_rows.jsonl has them."""
    usable, bad, too_long = {}, [], []
    for index, (row, problem, whole) in enumerate(zip(rows, problems, wholes, strict=True)):
        found = {"file": row.file, "line": row.line, "reason": problem}
        if not problem:
            usable[id(row)] = index
        elif whole:
            too_long.append(found | {"id": row.id, "tokens": whole})  # what it says stands in its file, with no fault to look for
        else:
            bad.append(found | {"raw": json.dumps({"id": row.id, "messages": row.messages}, ensure_ascii=False)})
    return usable, bad, too_long


def _first(left_out):
    return [{k: b[k] for k in ("file", "line", "reason")} for b in left_out[: chat_rows.SHOWN]]


def describe(statistics):
    """The statistics in words, for the terminal: rows, tokens, lengths, what was left out, one masked example."""
    lines = []
    for file, f in statistics["files"].items():
        if not f["weight"]:
            lines.append(f"{file}: {f['rows']} rows, weight 0: left out")
            continue
        kinds = ", ".join(f"{count} as {kind}" for kind, count in f["format_counts"].items())
        lines.append(f"{file}: {f['rows']} rows ({kinds}), weight {f['weight']:g} -> {f['rows_after_weighting']} training rows")
    for name, s in statistics["splits"].items():
        p = s["length_percentiles"]
        lines.append(
            f"{name:<10} {s['rows']:>7,} rows from {s['groups']:,} sources, {s['tokens']:,} tokens ({s['label_tokens']:,} labels); "
            f"length median {p['50']}, 90 % {p['90']}, longest {p['100']}; "
            f"{s['duplicates']} duplicates, {s['shortened']} shortened, {s['dropped']} dropped"
        )  # fmt: skip
        if taken := s.get("taken"):
            lines.append(
                f"{'':<10} shortening took {taken['tokens']:,} tokens ({taken['share']:.1%} of what there was); "
                f"of a shortened row median {taken['50']:,}, most {taken['100']:,}"
            )
    if large := statistics.get("too_large"):
        lines.append(
            f"in training whatever HELD_OUT says: {large['rows']:,} rows of {large['groups']:,} sources that are larger than validation "
            f"and test want to be; the largest, {large['largest']}, has {large['largest_rows']:,}"
        )
    lines += _left_out(statistics["bad_row_count"], statistics["bad_rows"])
    lines += _left_out(statistics.get("too_long_count", 0), statistics.get("too_long", []), " as too long")
    spans = [(s["label"], safe_text.shorten(s["text"], SHOWN)) for s in statistics["example"]["spans"]]
    shown = "".join(f"[[{text}]]" if label else text for label, text in spans)
    lines.append(f"row {statistics['example']['id']} as the model sees it; what it learns stands in [[ ]]:")
    return safe_text.visible("\n".join([*lines, *(f"  | {line}" for line in shown.splitlines())]))  # documents may hold what it would obey


def _left_out(count, first, why=""):
    if not count:
        return []
    named = "; ".join(f"{b['file']} line {b['line']}: {b['reason']}" for b in first)
    more = f"; and {count - len(first)} more" if count > len(first) else ""
    return [f"{count} rows left out{why}, all of them in skipped_rows.jsonl: {named}{more}"]


def _statistics(encoded, rows, places):
    import numpy as np

    lengths, learned = (np.asarray(encoded[name][:])[places] for name in ("length", "label_tokens"))
    shortened = encoded["shortened"][:]  # the whole column: one row at a time takes as long as tokenising
    once = {id(row): row for row in rows}.values()
    distinct = {hashlib.sha256(json.dumps(row.messages).encode()).digest() for row in once}
    counted = sorted(set(places))
    whole = np.asarray(encoded["whole"][:])[counted]
    taken = whole - np.asarray(encoded["length"][:])[counted]
    return {
        "rows": len(rows), "groups": len({row.group for row in rows}),
        "tokens": int(lengths.sum()), "label_tokens": int(learned.sum()),
        "length_percentiles": {str(p): int(np.percentile(lengths, p)) for p in (50, 90, 99, 100)},
        "duplicates": len(once) - len(distinct), "shortened": sum(bool(shortened[i]) for i in counted),
        "taken": {
            "tokens": int(taken.sum()), "share": float(taken.sum() / whole.sum()),
            **{str(p): int(np.percentile(taken[taken > 0], p)) for p in (50, 100)},
        } if taken.any() else None,
    }  # fmt: skip


def _write_rows(path, rows):
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            held_out = {"id": row.id, "group": row.group, "topics": row.topics, "messages": row.messages}
            held_out |= {name: value for name, value in (("facts", row.facts), ("document", row.document)) if value}
            out.write(json.dumps(held_out, ensure_ascii=False) + "\n")


def _path(build, files, model, settings):
    return cache.root() / "tokenised" / _key(build, files, model, settings)


def _key(build, files, model, settings):
    import xxhash

    if not Path(model).is_dir():
        raise ValueError(f"{model} is no directory, so the key would not cover its tokenizer; see hub.tokenizer_directory")
    versions = [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]
    digest = hashlib.sha256(json.dumps([inspect.getsource(build), sorted(settings.items()), versions], default=str).encode())
    modules = [Path(__file__).with_name(name) for name in MODULES]
    of_tokenizer = sorted({path for pattern in TOKENIZER_FILES for path in Path(model).glob(pattern)})
    for path in modules + [Path(f) for f in files] + of_tokenizer:
        digest.update(path.name.encode())
        if path.is_file():
            with path.open("rb") as content:
                chunks = xxhash.xxh3_128()
                while block := content.read(1 << 22):
                    chunks.update(block)
            digest.update(chunks.digest())
    digest.update(Path(model).resolve().name.encode())  # a snapshot's commit; not where caches lie
    return digest.hexdigest()[:24]


def _short(path):
    return os.path.relpath(path) if not os.path.relpath(path).startswith("..") else path

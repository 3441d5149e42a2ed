"""The tokenised cache: built once before any rank starts, found again by a key over everything it depends on."""

import hashlib
import importlib.metadata
import inspect
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common import cache, chat_rows, chat_text
from common.log import say
from common.refusal import Refusal
from common.run_directory import read_json, write_json

TOKENIZER_FILES = ("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")
PACKAGES = ("transformers", "tokenizers")  # whose versions tokenise
MODULES = ("chat_rows.py", "chat_text.py", "mixing.py", "tokenised.py")  # whose change may change what is stored
LOOKED_AT = 10**9  # bytes of data that `find` reads to tell whether a cache is theirs: most of a second


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


def encode(directory, parts, report, model, revision, max_length, bad_rows, weights, keep=("train", "validation")):
    """Tokenise `parts` ({"train": rows, "validation": …, "test": …}) into `directory`, with statistics in data.json.

    Equal rows (weights above 1 repeat them) are tokenised once. Rows that cannot be used are stopped at or left out
    as `bad_rows` says. Parts that are not in `keep` are only counted here: they are judged later, from their text.
    """
    tokenizer = chat_text.load_tokenizer(model, revision)
    splits, bad, first = {}, list(report["bad_rows"]), None
    for name, rows in parts.items():
        unique = list({id(row): row for row in rows}.values())
        if not unique:
            continue
        encoded = _tokenise(tokenizer, unique, max_length, name)
        place, problems = {}, encoded["problem"][:]
        for index, (row, problem) in enumerate(zip(unique, problems, strict=True)):
            if problem:
                raw = json.dumps({"id": row.id, "messages": row.messages}, ensure_ascii=False)
                bad.append({"file": row.file, "line": row.line, "reason": problem, "raw": raw})
            else:
                place[id(row)] = index
        if bad and bad_rows == "stop":
            raise chat_rows.bad_row_refusal(bad)
        kept = [row for row in rows if id(row) in place]
        if not kept:
            raise Refusal(f"none of the {len(rows)} {name} rows can be used; {bad[-1]['file']} line {bad[-1]['line']}: {bad[-1]['reason']}")
        first = first or kept[0]
        splits[name] = _statistics(encoded, kept, [place[id(row)] for row in kept]) | {"dropped": len(rows) - len(kept)}
        if name in keep:
            columns = encoded.select([place[id(row)] for row in kept]).select_columns(["input_ids", "labels", "length"])
            columns.save_to_disk(str(directory / name))
        if name != "train":
            _write_rows(directory / f"{name}.jsonl", kept)
    example = chat_text.encode(tokenizer, first.messages, max_length)
    ending = chat_text.end_of_turn(tokenizer, example)
    if bad:
        with (directory / "skipped_rows.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(b, ensure_ascii=False) + "\n" for b in bad)
    after = Counter(row.file for row in parts["train"])
    files = {f: {**r, "weight": weights[f], "rows_after_weighting": after[f]} for f, r in report["files"].items()}
    write_json(directory / "data.json", {
        "rows_read": report["rows_read"], "bad_row_count": len(bad),
        "split_by": report["split_by"], "too_large": report.get("too_large"),
        "bad_rows": [{k: b[k] for k in ("file", "line", "reason")} for b in bad[: chat_rows.SHOWN]],
        "files": files, "splits": splits, "max_length": max_length, "end_of_turn": ending,
        "example": {"id": first.id, "spans": chat_text.marked(tokenizer, example)},
    })  # fmt: skip


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
    if large := statistics.get("too_large"):
        lines.append(
            f"in training whatever HELD_OUT says: {large['rows']:,} rows of {large['groups']:,} sources that are larger than validation "
            f"and test want to be; the largest, {large['largest']}, has {large['largest_rows']:,}"
        )
    if statistics["bad_row_count"]:
        named = "; ".join(f"{b['file']} line {b['line']}: {b['reason']}" for b in statistics["bad_rows"])
        more = statistics["bad_row_count"] - len(statistics["bad_rows"])
        named += f"; and {more} more" if more else ""
        lines.append(f"{statistics['bad_row_count']} rows left out, all of them in skipped_rows.jsonl: {named}")
    shown = "".join(f"[[{s['text']}]]" if s["label"] else s["text"] for s in statistics["example"]["spans"])
    lines.append(f"row {statistics['example']['id']} as the model sees it; what it learns stands in [[ ]]:")
    return "\n".join([*lines, *(f"  | {line}" for line in shown.splitlines())])


def _tokenise(tokenizer, rows, max_length, name):
    from datasets import Dataset, Features, Sequence, Value, disable_progress_bars

    from common.hardware import cpu_cores

    def batch(texts):
        out = {name: [] for name in features}
        for text in texts["messages"]:
            try:
                encoded, problem = chat_text.encode(tokenizer, json.loads(text), max_length), ""
            except chat_rows.BadRow as reason:
                encoded, problem = chat_text.Encoded([], [], ""), str(reason)
            learned = sum(label != chat_text.IGNORED for label in encoded.labels)
            values = (encoded.input_ids, encoded.labels, len(encoded.input_ids), learned, encoded.shortened, problem)
            for key, value in zip(out, values, strict=True):
                out[key].append(value)
        return out

    if len(rows) < 2000:
        disable_progress_bars()  # done before a bar could be read
    features = Features({"input_ids": Sequence(Value("int32")), "labels": Sequence(Value("int32")), "length": Value("int32"),
                         "label_tokens": Value("int32"), "shortened": Value("string"), "problem": Value("string")})  # fmt: skip
    texts = Dataset.from_dict({"messages": [json.dumps(row.messages) for row in rows]})
    processes = max(1, min(cpu_cores(), len(rows) // 2000))
    return texts.map(batch, batched=True, batch_size=256, num_proc=processes if processes > 1 else None, features=features,
                     remove_columns=["messages"], desc=f"Tokenising {name}", keep_in_memory=False, load_from_cache_file=False)  # fmt: skip


def _statistics(encoded, rows, places):
    import numpy as np

    lengths, learned = (np.asarray(encoded[name][:])[places] for name in ("length", "label_tokens"))
    shortened = encoded["shortened"][:]  # the whole column: one row at a time takes as long as tokenising
    once = {id(row): row for row in rows}.values()
    distinct = {hashlib.sha256(json.dumps(row.messages).encode()).digest() for row in once}
    return {
        "rows": len(rows), "groups": len({row.group for row in rows}),
        "tokens": int(lengths.sum()), "label_tokens": int(learned.sum()),
        "length_percentiles": {str(p): int(np.percentile(lengths, p)) for p in (50, 90, 99, 100)},
        "duplicates": len(once) - len(distinct), "shortened": sum(bool(shortened[i]) for i in set(places)),
    }  # fmt: skip


def _write_rows(path, rows):
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            held_out = {"id": row.id, "group": row.group, "topics": row.topics, "messages": row.messages}
            held_out |= {"facts": row.facts} if row.facts else {}
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

"""The tokenizer that lies beside shards: brought there from a directory or the hub, or learnt from a part of the text."""

import json
import re
import shutil
from pathlib import Path

import numpy as np

from common import encoding, log, manifest, raw_text
from common.refusal import Refusal

TEXT = 200_000_000  # bytes that a tokenizer learns from
PLACES = 256  # tasks that these are taken from, at most, evenly


def settle(output, tokenizer, train_tokenizer, tasks, column):
    """The digest of the tokenizer in `output`/tokenizer, after it was put or trained there where there was none.

    tokenizer: a directory or a name on the hub, None for what is there or is trained; train_tokenizer: the vocabulary to train, or None.
    `Refusal` where both are given, neither is and none is there, or another one is there.
    """
    place = Path(output) / "tokenizer"
    if tokenizer and train_tokenizer:
        raise Refusal(f"TOKENIZER is {tokenizer} and TRAIN_TOKENIZER {train_tokenizer}: leave one out")
    if not place.exists() and not tokenizer and not train_tokenizer:
        raise Refusal(f"there is no tokenizer in {place}; train one (--train-tokenizer 50257) or name one (--tokenizer gpt2)")
    asked = {"tokenizer": tokenizer} if tokenizer else {"train_tokenizer": train_tokenizer}
    record = place.with_name("tokenizer_origin.json")
    if place.exists():
        there = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        if any(asked.values()) and there.get("asked") != asked:
            was = there.get("asked") or "another origin"
            raise Refusal(f"{place} is there already, of {was}, and {asked} was asked for; leave that out, name another OUTPUT, or remove "
                          "it with its shards")  # fmt: skip
        return encoding.Encoder(place).digest
    building = place.with_name(".tokenizer")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    if tokenizer:
        _bring(tokenizer, building)
    else:
        documents = list(_sample(tasks, column))
        size = sum(map(len, documents))
        log.say(f"a tokenizer of {train_tokenizer:,} tokens learns from {size / 1e6:,.1f} MB: the first documents of "
                f"{min(len(tasks), PLACES)} of {len(tasks)} tasks")  # fmt: skip
        found = encoding.train(documents, train_tokenizer, building)
        if found < train_tokenizer:
            log.warn(f"there is text for {found:,} tokens only, not {train_tokenizer:,}; the vocabulary has that size")
    digest = encoding.Encoder(building).digest
    manifest.write_whole(record, (json.dumps({"asked": asked}) + "\n").encode())
    building.rename(place)
    manifest.sync_directory(place.parent)
    return digest


def _bring(tokenizer, directory):
    """Copy the tokenizer of a directory or of the hub."""
    if Path(tokenizer).is_dir():
        encoding.digest(tokenizer)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (Path(tokenizer) / name).is_file():
                shutil.copyfile(Path(tokenizer) / name, directory / name)
        return
    try:
        if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", tokenizer):
            raise ValueError("no name of the hub")
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory)
    except (OSError, ValueError) as error:
        raise Refusal(f"TOKENIZER is {tokenizer}, neither a directory here nor a tokenizer that the hub gives ({type(error).__name__}); "
                      "name one of these") from None  # fmt: skip


def _sample(tasks, column):
    """Documents of TEXT bytes together: of each task (or PLACES of them) the first, by its share of the bytes."""
    places = [tasks[i] for i in np.unique(np.linspace(0, len(tasks) - 1, min(len(tasks), PLACES)).round().astype(int))]
    whole = max(1, sum(task.size for task in places))
    for task in places:
        left = max(1 << 16, TEXT * task.size // whole)
        for source in task.sources:
            if left <= 0:
                break
            for batch in raw_text.batches(source, column, raw_text.Skipped()):
                for document in batch:
                    if left > 0:
                        yield document if len(document) <= left else document[:left].decode(errors="ignore").encode()
                        left -= len(document)
                if left <= 0:
                    break

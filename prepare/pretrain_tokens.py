"""Raw text to token shards for recipes/gpt_pretrain.py, on all cores of this machine; or shards that exist already, brought here.

    python prepare/pretrain_tokens.py --sources data/raw --train-tokenizer 50257      text, JSON lines, parquet; .gz, .bz2, .xz of them
    python prepare/pretrain_tokens.py --sources "hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT/*.parquet" --tokenizer gpt2
    python prepare/pretrain_tokens.py --download gs://bucket/shards --max-files 25    the first 25 shards, checked, with a manifest.json
    python prepare/pretrain_tokens.py --tiny                                          Python's own library, a few seconds

Start it again after anything: what is done stays, and the bytes are the same. What is no text is counted, and named in skipped.jsonl.
On a cluster: prepare/pretrain_tokens_cluster.py.
"""

import sysconfig
from functools import partial
from pathlib import Path

from pydantic import PositiveInt

from common import constants, hardware, manifest, refusal, shard_tokenizer, storage, text_sources, token_tasks, worker_pool
from common.refusal import Refusal

# Text
SOURCES: list[str] = ["data/raw"]  # files, directories, globs, addresses (gs://, s3://, https://, hf://)
TEXT_FIELD: str = "text"  # the column of parquet files, the field of JSON lines
MAX_FILES: PositiveInt | None = None  # only the first so many sources by name, or so many shards of DOWNLOAD; none: all

# Tokens
TOKENIZER: str | None = None  # a directory or a hub name; none: the one in OUTPUT/tokenizer, or the one that is trained
TRAIN_TOKENIZER: PositiveInt | None = None  # vocabulary of a byte-level BPE learnt from 200 MB of the text; none: no training
SHARD_TOKENS: PositiveInt = 20_000_000  # in a shard at most: 40 MB, with a vocabulary above 65,536 tokens 80 MB
OUTPUT: str = "data/tokens"  # a directory

# Shards that exist
DOWNLOAD: str | None = None  # an address of shards (gs://, s3://, file://) to bring to OUTPUT; none: tokenise SOURCES

TINY = {
    "SOURCES": [f"{sysconfig.get_path('stdlib')}/*.py"],
    "TRAIN_TOKENIZER": 2048,
    "SHARD_TOKENS": 250_000,
    "OUTPUT": "data/tokens_tiny",
}


def main(**overrides):
    """Write the shards; returns {"output", "shards", "tokens", "documents", "text_bytes", "skipped"}.

    Of a download: {"output", "shards", "bytes"}.
    Raises `Refusal` for sources that cannot be read, no tokenizer or another one than was begun with, a full disk.
    """
    constants.resolve(globals(), overrides)
    try:
        Path(OUTPUT).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"OUTPUT is {OUTPUT}, which cannot be a directory ({error.strerror}); name another one") from None
    with token_tasks.alone(OUTPUT):
        if DOWNLOAD is not None:
            return download()
        tasks = token_tasks.divide(text_sources.find(SOURCES, MAX_FILES))
        digest = shard_tokenizer.settle(OUTPUT, TOKENIZER, TRAIN_TOKENIZER, tasks, TEXT_FIELD)
        settings = token_tasks.Settings(OUTPUT, TEXT_FIELD, SHARD_TOKENS, digest)
        token_tasks.require_ours(tasks, settings)
        tokenise(tasks, settings)
        index = token_tasks.finish(tasks, settings)
    print(token_tasks.in_words(index, OUTPUT))
    return {"output": OUTPUT, **{key: index[key] for key in ("shards", "tokens", "documents", "text_bytes", "skipped")}}


def tokenise(tasks, settings):
    """Do the tasks that are not done, a process on each core."""
    from tqdm import tqdm

    left = [task for task in tasks if token_tasks.done(task, settings) is None]
    print(f"{len(tasks)} tasks of {sum(len(task.sources) for task in tasks):,} files; {len(tasks) - len(left)} of them are done already")
    size = sum(task.size for task in left)
    needed, free = size / 4e9, hardware.free_disk_gb(OUTPUT)  # hardly any text has more than eight bytes in a token, which has two
    if free < needed:
        raise Refusal(f"the shards of {hardware.size(size / 1e9)} of text need {hardware.size(needed)} or more, and the disk of OUTPUT, "
                      f"{OUTPUT}, has {hardware.size(free)} free; free some there or name another OUTPUT")  # fmt: skip
    work = partial(token_tasks.run, settings=settings, quiet=True)
    with tqdm(total=size, unit="B", unit_scale=True, desc="tokenising", disable=None) as bar:
        try:
            for facts in worker_pool.results(work, left, hardware.cpu_cores()):
                bar.update(sum(source["size"] for source in facts["sources"]))
        except Exception as error:
            if not refusal.is_disk_full(error):
                raise
            raise Refusal(f"the disk of OUTPUT, {OUTPUT}, is full; free some there and start again: tasks that are done stay") from None


def download():
    """Bring shards that exist to OUTPUT, each compared with the size and checksum that the store reports."""
    if list(Path(OUTPUT).glob("task-*.json")):
        raise Refusal(f"OUTPUT, {OUTPUT}, holds shards that were tokenised here, and a download may write over them; name another OUTPUT")
    store = storage.open_store(DOWNLOAD)
    store.check_readable()
    try:
        files = store.download_files("", OUTPUT, choose=lambda names: token_tasks.first_shards(names, MAX_FILES), setting="OUTPUT")["files"]
    except storage.StorageError as error:
        if refusal.is_disk_full(error):
            raise Refusal(f"the disk of OUTPUT, {OUTPUT}, is full; free some space there and start again: files that came stay") from None
        raise
    found = {
        "output": OUTPUT,
        "shards": sum(token_tasks.is_shard(name) for name in files),
        "bytes": sum(facts["size"] for facts in files.values()),
    }
    print(f"{found['shards']} shards, {hardware.size(found['bytes'] / 1e9)} in {len(files)} files, checked: {OUTPUT}/{manifest.NAME}")
    return found


if __name__ == "__main__":
    refusal.guard(main)

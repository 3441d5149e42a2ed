"""Raw text to token shards on a Slurm cluster, through datatrove: the tasks of prepare/pretrain_tokens.py as the jobs of an array.

    python prepare/pretrain_tokens_cluster.py --sources /shared/raw --output /shared/tokens --train-tokenizer 50257 --partition cpu
    python prepare/pretrain_tokens_cluster.py --local --sources data/raw --tokenizer gpt2        the same on this machine, to try it

Run it on a login node, with OUTPUT on a disk that all nodes see. The tokenizer is brought or trained there, then the array is queued, and a
job that writes the totals after it. Start it again after anything: tasks that are done end at once, and the bytes are the same.
"""

import shutil
import sys
from pathlib import Path

from pydantic import PositiveInt

from common import constants, hardware, refusal, shard_tokenizer, text_sources, token_steps, token_tasks
from common.refusal import Refusal

# Text
SOURCES: list[str] = ["data/raw"]  # files, directories, globs, addresses (gs://, s3://, https://, hf://)
TEXT_FIELD: str = "text"  # the column of parquet files, the field of JSON lines
MAX_FILES: PositiveInt | None = None  # only the first so many sources by name; none: all

# Tokens
TOKENIZER: str | None = None  # a directory or a hub name; none: the one in OUTPUT/tokenizer, or the one that is trained
TRAIN_TOKENIZER: PositiveInt | None = None  # vocabulary of a byte-level BPE learnt from 200 MB of the text; none: no training
SHARD_TOKENS: PositiveInt = 20_000_000  # in a shard at most: 40 MB, with a vocabulary above 65,536 tokens 80 MB
OUTPUT: str = "data/tokens"  # a directory that all nodes see

# Cluster
LOCAL: bool = False  # on this machine, no Slurm
WORKERS: PositiveInt | None = None  # tasks at once; none: all that Slurm lets run, with LOCAL one on each core
PARTITION: str = "cpu"  # of Slurm
TIME: str = "08:00:00"  # of one task; a gigabyte of text takes a minute or less
CPUS_PER_TASK: PositiveInt = 1  # a task reads on one core and encodes on all it has
MEMORY_GB: PositiveInt = 4  # of each CPU


def main(**overrides):
    """Queue the jobs, or with LOCAL do them; returns {"output", "tasks"}. `Refusal` as of prepare/pretrain_tokens.py, and without Slurm."""
    constants.resolve(globals(), overrides)
    if not LOCAL and not shutil.which("sbatch"):
        raise Refusal("there is no sbatch here: run this on a login node of a Slurm cluster, or on this machine with --local")
    output = Path(OUTPUT).absolute()
    if output.exists() and not output.is_dir():
        raise Refusal(f"OUTPUT is {OUTPUT}, which is a file; name a directory")
    output.mkdir(parents=True, exist_ok=True)
    places = [place if "://" in place else str(Path(place).absolute()) for place in SOURCES]  # jobs may start elsewhere
    tasks = token_tasks.divide(text_sources.find(places, MAX_FILES))
    with token_tasks.alone(output):
        digest = shard_tokenizer.settle(output, TOKENIZER, TRAIN_TOKENIZER, tasks, TEXT_FIELD)
    settings = token_tasks.Settings(str(output), TEXT_FIELD, SHARD_TOKENS, digest)
    token_tasks.require_ours(tasks, settings)
    shards, totals = executors(tasks, settings, output / "logs")
    try:
        shards.run()
        totals.run()
    except Exception as error:
        if not refusal.is_disk_full(error):
            raise
        raise Refusal(f"the disk of OUTPUT, {OUTPUT}, is full; free some there and start again: tasks that are done stay") from None
    return {"output": OUTPUT, "tasks": len(tasks)}


def executors(tasks, settings, logs):
    """What does the tasks, and what does the totals after them. Which tasks are done is read from their records, not from datatrove's."""
    steps = [token_steps.TokenShards(tasks, settings)], [token_steps.Totals(tasks, settings)]
    folders = [str(logs / name) for name in ("shards", "totals")]
    if LOCAL:
        from datatrove.executor.local import LocalPipelineExecutor

        workers = min(WORKERS or hardware.cpu_cores(), len(tasks))
        return (LocalPipelineExecutor(steps[0], len(tasks), workers, folders[0], skip_completed=False),
                LocalPipelineExecutor(steps[1], 1, 1, folders[1], skip_completed=False))  # fmt: skip
    from datatrove.executor.slurm import SlurmPipelineExecutor

    same = {"time": TIME, "partition": PARTITION, "qos": None, "mem_per_cpu_gb": MEMORY_GB, "skip_completed": False,
            "env_command": f"export PATH={Path(sys.executable).parent}:$PATH"}  # fmt: skip
    first = SlurmPipelineExecutor(steps[0], len(tasks), job_name="token-shards", cpus_per_task=CPUS_PER_TASK, workers=WORKERS or -1,
                                  logging_dir=folders[0], **same)  # fmt: skip
    return first, SlurmPipelineExecutor(steps[1], 1, job_name="token-totals", depends=first, logging_dir=folders[1], **same)


if __name__ == "__main__":
    refusal.guard(main)

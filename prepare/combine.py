"""Writes the weighted mixture of a recipe's TRAIN_FILES to one ChatML JSONL file: all rows, nothing held out.

    python prepare/combine.py                                          recipe llama32_qlora -> data/combined.jsonl
    python prepare/combine.py --train-files data/cross_validated.jsonl=2.0,data/arxiv.jsonl=1.0
    python prepare/combine.py --output data/half.jsonl --seed 7
    python prepare/combine.py --tiny                                   of samples/ -> data/combined_tiny.jsonl

Only for looking at the mixture or for other tools. The recipes mix by themselves, and only what is left for training after
the split; a mixture that was weighted before it is split has copies of one question on both sides.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt

from common import chat_rows, constants, mixing, refusal

TRAIN_FILES: dict[str, NonNegativeFloat] = {"data/cross_validated.jsonl": 1.0, "data/arxiv.jsonl": 1.0}  # weight 0.5 halves, 2.0 doubles
BAD_ROWS: Literal["stop", "skip"] = "stop"  # "skip" leaves them out, counted
SEED: NonNegativeInt = 42  # decides which rows a fraction keeps
OUTPUT: str = "data/combined.jsonl"

TINY = {"TRAIN_FILES": {"samples/cross_validated.jsonl": 1.0, "samples/arxiv.jsonl": 1.0}, "OUTPUT": "data/combined_tiny.jsonl"}


def main(**overrides):
    """Write the mixture; returns {"rows", "output"}."""
    constants.resolve(globals(), overrides)
    if same := [file for file in TRAIN_FILES if Path(file).resolve() == Path(OUTPUT).resolve()]:
        raise refusal.Refusal(f"OUTPUT is {OUTPUT}, which TRAIN_FILES names as {same[0]}: it would be written over; name another file")
    rows, report = chat_rows.read(TRAIN_FILES, bad_rows=BAD_ROWS)
    mixture = mixing.weigh(rows, TRAIN_FILES, seed=SEED)
    output = Path(OUTPUT)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.part")
    with temporary.open("w", encoding="utf-8") as out:
        for row in mixture:
            out.write(json.dumps({"id": row.id, "topics": row.topics, "messages": row.messages}, ensure_ascii=False) + "\n")
    temporary.replace(output)
    for file, found in report["files"].items():
        print(f"{file}: {found['rows']} rows x {TRAIN_FILES[file]:g} = {sum(row.file == file for row in mixture)}")
    for bad in report["bad_rows"]:
        print(f"left out: {bad['file']} line {bad['line']}: {bad['reason']}")
    print(f"{len(mixture)} rows written to {output}")
    return {"rows": len(mixture), "output": str(output)}


if __name__ == "__main__":
    refusal.guard(main)

"""Files of invented cases: as LexSumm has them, and longer ones as conversations with the facts that a summary has to name."""

import random

from common import case_files

LONG = (40, 300)  # sentences of a case: 500 to 3,400 tokens
JUDGED = (150, 300)  # of a held-out one: 1,700 to 3,400
ROWS = {"train": 160, "valid": 12, "test": 24}
RAW_ROWS = 12


def long_rows(seed):
    """(side, rows) for each of train, valid and test, as prepare/legal_summaries.py writes them."""
    for side, count in ROWS.items():
        generator, sentences = random.Random(f"{seed} {side} cases"), LONG if side == "train" else JUDGED
        cases = [case_files.case(generator, generator.randint(*sentences)) for _ in range(count)]
        yield side, [
            {"id": f"case_{side}_{n}", "facts": case["facts"], "messages": case_files.messages(case)} for n, case in enumerate(cases, 1)
        ]


def raw_rows(seed):
    """Cases as LexSumm has them, every fourth longer than 4,096 tokens."""
    generator = random.Random(f"{seed} raw cases")
    return [case_files.case(generator, 400 if number % 4 == 3 else generator.randint(60, 240)) for number in range(RAW_ROWS)]

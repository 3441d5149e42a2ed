"""Writes the sample data of this repository: python samples/generate.py [DIRECTORY]   (default: this directory)

    cross_validated.jsonl   questions in the manner of Cross Validated, answered step by step
    arxiv.jsonl             questions in the manner of questions about methods papers, answered in the same manner
    questions.csv           what words of the subject mean, as a table of questions and answers
    base_prose.txt          plain sentences on the same subject, to pretrain a tiny base model
    base_chats.jsonl        short general chats on the same subject, so that the base is a fair opponent
    mtg_scryfall.json       invented Magic cards as Scryfall's oracle_cards have them; mtg_rulings.json the rulings on them
    mtg_atomic.json         the same cards as MTGJSON's AtomicCards
    mtg_facts/              three facts each of 100 other invented cards, as prepare/mtg_cards.py makes them, split by wording
    mtg_base_chats.jsonl    the same questions about 150 cards more, so that a base knows the manner and none of those facts
    mtg_drafts.csv.gz       drafts of invented cards in the columns of 17lands
    legal_cases.jsonl       invented case files with their summaries, as LexSumm has them
    legal_summaries/        longer ones as conversations, with the facts that a summary has to name and where they stand

The same seed gives the same bytes. Rows that ask one quantity in one wording share a `family`, so that a split by family
holds out wordings and not merely figures. All texts were written, and all figures computed, for this repository.
"""

import csv
import json
import random
import sys
from pathlib import Path

import arxiv_concepts
import arxiv_numbers
import base_chats
import base_prose
import cross_validated_concepts
import cross_validated_numbers
import glossary
import legal_cases
import mtg
import mtg_draft_table

SEED = 42
SYSTEM = "You are an expert in experimentation, statistics and A/B testing. Explain step by step and cite your sources."
QUESTIONS = 30  # in questions.csv
ROWS_PER_WORDING = (5, 4)  # in turn: 27 rows for the six wordings of a quantity


def worked_rows(prefix, quantities):
    """(name, family, topics, question, answer, source) of every worked question; no question twice."""
    asked = set()
    for quantity in quantities:
        for number, wording in enumerate(quantity.wordings, start=1):
            family = f"{prefix}_{quantity.name}/{number}"
            generator = random.Random(f"{SEED} {family}")
            wanted = ROWS_PER_WORDING[number % len(ROWS_PER_WORDING)]
            while wanted:
                slots = quantity.draw(generator)
                question = wording.format(**slots)
                if question in asked:
                    continue
                asked.add(question)
                wanted -= 1
                yield quantity.name, family, list(quantity.topics), question, quantity.answer(**slots), quantity.source


def concept_rows(prefix, concepts):
    for name, topics, question, answer, source in concepts:
        yield name, f"{prefix}_concept/{name}", topics, question, answer, source


def question_answer_rows(prefix, concepts, quantities, identify):
    rows = list(concept_rows(prefix, concepts)) + list(worked_rows(prefix, quantities))
    seen = {}
    for number, (name, family, topics, question, answer, source) in enumerate(rows, start=1):
        seen[name] = seen.get(name, 0) + 1
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"{answer} Source: {source}."},
        ]
        yield {"id": identify(number, name, seen[name]), "source": source, "family": family, "topics": topics, "messages": messages}


def write_questions(path):
    """The words of the glossary as questions: a table as a spreadsheet saves it, with cells that hold commas and line ends."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["Question", "Answer", "Family"])
        for term, what, remember in glossary.GLOSSARY[:QUESTIONS]:
            verb = "are" if what.startswith("are ") else "is"
            answer = f"{term[0].upper()}{term[1:]} {what}.\n{remember}."
            family = f"glossary/{term.removeprefix('an ').removeprefix('a ').replace(' ', '_')}"
            table.writerow([f"In one or two sentences, what {verb} {term}?", answer, family])


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")


def main(directory):
    write_lines(directory / "cross_validated.jsonl", question_answer_rows(
        "cv", cross_validated_concepts.CONCEPTS, cross_validated_numbers.QUANTITIES, lambda number, name, nth: f"cv_{number}_1"))
    write_lines(directory / "arxiv.jsonl", question_answer_rows(
        "arxiv", arxiv_concepts.CONCEPTS, arxiv_numbers.QUANTITIES, lambda number, name, nth: f"arxiv_{name}_{nth}"))
    write_questions(directory / "questions.csv")
    (directory / "base_prose.txt").write_text(base_prose.text(random.Random(f"{SEED} prose")), encoding="utf-8", newline="\n")
    write_lines(directory / "base_chats.jsonl", base_chats.rows(random.Random(f"{SEED} chats"), SYSTEM))
    mtg.write(directory, SEED, random.Random(f"{SEED} mtg chats"))
    mtg_draft_table.write(directory / "mtg_drafts.csv.gz", seed=SEED)
    write_lines(directory / "legal_cases.jsonl", legal_cases.raw_rows(SEED))
    (directory / "legal_summaries").mkdir(exist_ok=True)
    for side, rows in legal_cases.long_rows(SEED):
        write_lines(directory / "legal_summaries" / f"{side}.jsonl", rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)

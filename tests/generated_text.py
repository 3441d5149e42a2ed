"""Text that a seeded generator writes, the same on every machine, and shards of its tokens made by the repository's own command."""

import json
import random

WORDS = {
    "subject": ["the river", "a quiet engine", "every student", "the old map", "no answer", "a small model", "the north wind", "our ship"],
    "verb": ["carries", "finds", "remembers", "forgets", "measures", "follows", "mends", "counts"],
    "object": ["the letters", "seven stones", "a long road", "the first light", "its own name", "many numbers", "the sea", "what is left"],
    "ending": ["in the evening", "before the rain", "without a sound", "again and again", "for the last time", "by the gate"],
}


def documents(count, seed=0):
    """`count` texts of a few sentences; which ending comes depends on the verb, so that there is something to learn."""
    draw = random.Random(seed)
    for number in range(count):
        sentences = []
        for _ in range(draw.randrange(3, 12)):
            verb = draw.randrange(8)
            ending = WORDS["ending"][(verb + draw.randrange(2)) % 6]
            sentences.append(f"{draw.choice(WORDS['subject'])} {WORDS['verb'][verb]} {draw.choice(WORDS['object'])} {ending}.".capitalize())
        yield f"Page {number}. " + " ".join(sentences)


def write_jsonl(path, count=1500, seed=0):
    """A JSONL file of such documents."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps({"text": text}) + "\n" for text in documents(count, seed))
    return path

"""What answers about documents are judged by besides: the facts they name, what they copy and repeat, how long they are, how they end.

Facts count wherever rows carry them, the rest only where questions are documents to sum up (`scores.are_documents`).
"""

from functools import cached_property

import held_out
import numpy as np

from common import measures, safe_text, scores
from common.long_documents import OMISSION

VERSION = 2  # of these figures; raise it when a meaning changes: runs that have them are judged again
MOST_PLACES = 6  # with more, such as page numbers, only the facts of all places together are a figure
LONG, CLIPPED = 4_000, 2_000  # characters of a question from which on an example keeps so many: its beginning, its end and a mark


class Documents:
    """The documents and facts of rows (`held_out.Row`), prepared once for all the models that read them alike.

    asked: the messages of each row's prompt as the models read them, shortened or whole; None: all whole.
    """

    def __init__(self, rows, asked=None):
        self.rows = rows
        self.asked = asked or [row.messages[:-1] for row in rows]
        self.has_facts = any(row.facts for row in rows)
        self.to_sum_up = scores.are_documents([row.question for row in rows], [row.reference for row in rows])
        self.places = list(dict.fromkeys(place for row in rows for place, words in row.facts.items() if words))

    @cached_property
    def _grams(self):
        """Per row the different 4-grams of its document as it was read, sorted: 8 bytes a word, 0.6 GB for 450 of a million characters."""
        return [np.unique(scores.four_grams(held_out.question_of(messages))) for messages in self.asked]

    @cached_property
    def facts(self):
        """Per row its facts, {place: [words]}; of a prompt that was shortened, now or before, only those that stand in what is left."""
        return [_left(row, messages) for row, messages in zip(self.rows, self.asked, strict=True)]

    @cached_property
    def of_references(self):
        """{"copy_rate", "repetition_rate"} of the reference answers: what is usual among them, to compare with."""
        said = [self._said(n, row.reference) for n, row in enumerate(self.rows)]
        found = dict(zip(("copy_rate", "repetition_rate"), zip(*said, strict=True), strict=True))
        return {key: float(np.mean([v for v in values if v is not None])) for key, values in found.items() if set(values) != {None}}

    def settings(self):
        """What of these figures must be the same in a judgement that is to serve again; {} where there are none."""
        return {"documents": VERSION} if self.has_facts or self.to_sum_up else {}

    def notes(self):
        """Sentences on the facts that do not count, and on places without a figure of their own."""
        lost = [_count(row.facts) - _count(left) for row, left in zip(self.rows, self.facts, strict=True)]
        found = []
        if any(lost):
            found.append(
                f"{sum(lost)} of {sum(_count(row.facts) for row in self.rows)} facts, of {sum(map(bool, lost))} rows, do not stand in what "
                "the model reads of their shortened documents: they are left out, not counted as missed"
            )
        if len(self.places) > MOST_PLACES:
            many = f"{len(self.places)} places, more than {MOST_PLACES}"
            found.append(f"the facts stand in {many}: their recall is given over all places only")
        return found

    def figures(self, answers, stopped):
        """{key: [value or None per row]} for the answers to all rows; stopped: whether each ended by itself."""
        found = {}
        if self.has_facts:
            hits = [scores.facts_found(facts, answer) for facts, answer in zip(self.facts, answers, strict=True)]
            found["fact_recall"] = [_share([hit for listed in by_place.values() for hit in listed]) for by_place in hits]
            for place in self.places if len(self.places) <= MOST_PLACES else ():
                found[measures.place_key(place, found)] = [_share(by_place.get(place, [])) for by_place in hits]
        if self.to_sum_up:
            said = [self._said(n, answer) for n, answer in enumerate(answers)]
            found |= {"copy_rate": [copied for copied, _ in said], "repetition_rate": [repeated for _, repeated in said]}
            found["length_ratio"] = [scores.length_ratio(row.reference, answer) for row, answer in zip(self.rows, answers, strict=True)]
            found["stopped"] = [float(ended) for ended in stopped]
        return found

    def example(self, index, answer):
        """What an example shows besides: {"facts": [{"place", "words", "found"}, …]} where its row has any."""
        facts = self.facts[index]
        found = scores.facts_found(facts, answer)
        shown = [{"place": p, "words": w, "found": hit} for p in facts for w, hit in zip(facts[p], found[p], strict=True)]
        return {"facts": shown} if shown else {}

    def _said(self, index, answer):
        grams = scores.four_grams(answer)
        return scores.copy_rate(self._grams[index], grams), scores.repetition_rate(grams)


def _left(row, messages):
    text = "\n".join(message["content"] for message in messages)
    if not row.facts or (messages == row.messages[:-1] and OMISSION not in text):
        return row.facts
    stands = scores.facts_found(row.facts, text)
    return {place: [w for w, hit in zip(listed, stands[place], strict=True) if hit] for place, listed in row.facts.items()}


def _count(facts):
    return sum(map(len, facts.values()))


def _share(hits):
    return sum(hits) / len(hits) if hits else None


def clipped(question):
    """A question as an example keeps it: of a document its beginning and its end, for examples are written for every model."""
    return safe_text.shorten(question, CLIPPED) if len(question) > LONG else question

"""Answers of base and tuned model beside the reference, with what they share with it and the numbers they made up marked."""

import re

from common.run_facts import as_dict, as_list, figure, is_number
from common.safe_text import shorten

MOST_OF_AN_ANSWER = 2_400  # characters shown of a question, reference or answer
MOST_FACTS, MOST_OF_A_FACT = 24, 80  # shown of an answer
MOST_OF_A_REFERENCE = 100_000  # characters an answer is compared with, shown or not
NOTE = r"\[… [\d,]+ characters not shown …\]"  # what `shorten` leaves; not the model's words


def examples(facts):
    """Base and tuned answers to the same questions: the worst, the middle and the best by ROUGE-L first, then the others."""
    tuned = facts.tuned or facts.base
    if not tuned:
        return None
    base = facts.base if facts.tuned else None
    theirs = {str(e.get("id")): e for e in as_list(as_dict(base).get("examples")) if isinstance(e, dict)}
    rows = [e for e in as_list(tuned.get("examples")) if isinstance(e, dict)]
    if not rows:
        return None
    scored = sorted((i for i, e in enumerate(rows) if is_number(e.get("rougeL"))), key=lambda i: rows[i]["rougeL"])
    first = {scored[0]: "worst", scored[len(scored) // 2]: "middle", scored[-1]: "best"} if len(scored) > 3 else {}
    order = [*first, *(i for i in range(len(rows)) if i not in first)]
    shown = []
    for i in order:
        reference = str(rows[i].get("reference") or "")
        answers = [("Base model", theirs.get(str(rows[i].get("id"))))] if base else []
        answers.append((tuned["name"], rows[i]))
        answers = [
            {
                "who": who,
                "text": marked(shorten(as_dict(e).get("answer") or "", MOST_OF_AN_ANSWER), reference) if e else None,
                "empty": not str(as_dict(e).get("answer") or "").strip(),
                "rougeL": figure(as_dict(e).get("rougeL")),
                "numbers": figure(as_dict(e).get("numbers"), percent=True),
                "facts": facts_of(as_dict(e)),
            }
            for who, e in answers
        ]
        question = shorten(rows[i].get("question") or "", MOST_OF_AN_ANSWER)
        place = {"id": shorten(rows[i].get("id", ""), 120), "group": shorten(rows[i].get("group") or "", 120), "place": first.get(i)}
        shown.append(place | {"question": question, "reference": shorten(reference, MOST_OF_AN_ANSWER), "answers": answers})
    opened = len(first) or min(4, len(shown))
    return {"open": shown[:opened], "folded": shown[opened:], "ordered": bool(first), "count": len(shown)}


def facts_of(example):
    """[(whether it was found, place, words), …] of what an answer should name; of very many the missed ones first."""
    listed = [as_dict(fact) for fact in as_list(example.get("facts"))]
    if len(listed) > MOST_FACTS:
        listed = sorted(listed, key=lambda fact: fact.get("found") is True)[:MOST_FACTS]
    words = lambda fact, key: shorten(fact.get(key) or "", MOST_OF_A_FACT)  # noqa: E731
    return [(fact.get("found") is True, words(fact, "place"), words(fact, "words")) for fact in listed]


def marked(answer, reference):
    """The answer as [(kind, text)]: "hit" for words it shares with the reference in its order, "off" for numbers the reference lacks."""
    pieces = [p for part in re.split(f"({NOTE})", answer) for p in ([part] if re.fullmatch(NOTE, part) else re.findall(r"\s+|\S+", part))]
    wanted = re.findall(r"\S+", reference[:MOST_OF_A_REFERENCE])
    places = [i for i, piece in enumerate(pieces) if not piece.isspace() and not re.fullmatch(NOTE, piece)]
    words = [_bare(pieces[i]) for i in places]
    kinds = [""] * len(pieces)
    for word in shared_in_order(words, [_bare(word) for word in wanted]):
        kinds[places[word]] = "hit"
    known = set(re.findall(r"\d+(?:[.,]\d+)*", reference))
    for i in places:
        if not kinds[i] and set(re.findall(r"\d+(?:[.,]\d+)*", pieces[i])) - known:
            kinds[i] = "off"
    for i, piece in enumerate(pieces):
        if piece.isspace() and 0 < i < len(pieces) - 1 and kinds[i - 1] == kinds[i + 1] == "hit":
            kinds[i] = "hit"
    return joined(zip(kinds, pieces, strict=True))


def shared_in_order(words, reference):
    """The places in `words` of a longest common subsequence with `reference`: what ROUGE-L counts.

    One integer per word holds a row of the usual table, a bit per reference word, 0 where the subsequence grows by that
    word; so a collapsed answer that says "the" 600 times takes milliseconds.
    """
    places = {}
    for j, word in enumerate(reference):
        places[word] = places.get(word, 0) | 1 << j
    full = (1 << len(reference)) - 1
    rows = [full]
    for word in words:
        grown = rows[-1] & places.get(word, 0)
        rows.append((rows[-1] + grown | rows[-1] - grown) & full)
    found, i, j = [], len(words), len(reference)
    while i and j:
        if rows[i] >> (j - 1) & 1:
            j -= 1
            continue
        i -= 1
        if rows[i] >> (j - 1) & 1:  # it grew in this very row
            found.append(i)
            j -= 1
    return found[::-1]


def _bare(word):
    return word.lower().strip(".,;:!?()[]{}*_`\"'") or word


def joined(pieces):
    """Neighbours of one kind put together."""
    joined = []
    for kind, text in pieces:
        if joined and joined[-1][0] == kind:
            joined[-1][1].append(text)
        else:
            joined.append((kind, [text]))
    return [(kind, "".join(texts)) for kind, texts in joined]

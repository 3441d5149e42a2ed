"""Magic cards to conversations: questions about each card, answered from its own data, as train, valid and test JSONL.

    python prepare/mtg_cards.py --cards data/oracle-cards.json --rulings data/rulings.json     Scryfall's (array, JSON lines, .gz)
    python prepare/mtg_cards.py --cards data/AtomicCards.json.gz                               MTGJSON's, with the rulings in it
    python prepare/mtg_cards.py --cards data/oracle-cards.json --sample 20                     a look at the first 20 cards
    python prepare/mtg_cards.py --tiny                                                         of samples/ -> data/mtg_cards_tiny/

Download the cards from scryfall.com/docs/api/bulk-data ("Oracle Cards", "Rulings") or mtgjson.com ("AtomicCards"). Tokens, emblems
and other things that are in no deck are left out, counted; cards that exist only online stay.
"""

import random
from collections import Counter
from typing import Annotated, Literal

import annotated_types
from pydantic import NonNegativeInt, PositiveInt

from common import constants, mtg_files, mtg_questions, refusal, split_files
from common.refusal import Refusal

CARDS: str = "data/oracle-cards.json"  # Scryfall's oracle_cards or MTGJSON's AtomicCards; what it is, its content says
RULINGS: str | None = None  # Scryfall's rulings file; none: AtomicCards brings its own, and Scryfall's cards have none
OUTPUT: str = "data/mtg_cards"  # a directory
KINDS: list[Literal["describe", "cost", "mana_value", "type", "text", "power_toughness", "which", "rulings"]] = [  # asked of each card
    "describe", "cost", "mana_value", "type", "text", "power_toughness", "which", "rulings",
]  # fmt: skip
SPLIT_BY: Literal["card", "wording"] = "card"  # "wording": every card is learned; held out are two of eight wordings, to measure recall
HELD_OUT: Annotated[float, annotated_types.Ge(0), annotated_types.Lt(0.5)] = 0.01  # share of the cards for each of valid and test
WORDINGS_PER_KIND: Annotated[int, annotated_types.Interval(ge=1, le=8)] | None = 2  # for each card; none: all. By wording: all six, always
SAMPLE: PositiveInt | None = None  # rows of the first so many cards only, for a look; none: all
BAD_CARDS: Literal["stop", "skip"] = "stop"  # "skip" leaves out entries without a name or a type, counted
SEED: NonNegativeInt = 42  # decides sides and wordings

TINY = {
    "CARDS": "samples/mtg_scryfall.json",
    "RULINGS": "samples/mtg_rulings.json",
    "OUTPUT": "data/mtg_cards_tiny",
    "HELD_OUT": 0.1,
}


def main(**overrides):
    """Write the rows; returns {"output", "cards", "rows": {side: rows}, "kinds": {kind: rows}, "left_out": {reason: entries}}.

    Raises `Refusal` for files that cannot be read, are cut short or are of another kind; nothing is written then.
    """
    constants.resolve(globals(), overrides)
    kinds = list(dict.fromkeys(KINDS))
    out = split_files.SplitFiles(OUTPUT)
    cards = read(out)
    with out:
        bodies = [mtg_questions.body(card) if "which" in kinds else "" for card in cards]
        times = Counter(bodies)
        for number, (card, body) in enumerate(zip(cards[:SAMPLE], bodies[:SAMPLE], strict=True), start=1):
            write_card(out, number, card, kinds, body, alone=times[body] == 1)
        if not sum(out.counts.values()):
            raise Refusal(f"{CARDS} gives no row of {', '.join(kinds) or 'no kind'} ({reasons(out)}); choose other KINDS or another file")
    online = sum(card.digital for card in cards)
    print(out.in_words())
    print(f"{len(cards):,} cards of {CARDS}" + (f", {online:,} of them printed only online" if online else ""))
    return {"output": OUTPUT, "cards": len(cards), "rows": dict(out.counts), "kinds": dict(out.kinds), "left_out": dict(out.skipped)}


def read(out):
    """All cards: of 35,000 the texts are some 50 MB, and only all of them tell whether a text is one card's alone."""

    def bad(where, what):
        if BAD_CARDS == "stop":
            raise Refusal(f'{where} {what}; mend the file, or leave such entries out with BAD_CARDS = "skip"')
        out.skip("bad entries", f"{where} {what}")

    rulings = mtg_files.rulings_of(RULINGS, bad) if RULINGS else {}
    cards = list(mtg_files.cards(CARDS, rulings, bad, out.skip))
    if not cards:
        raise Refusal(f"{CARDS} holds no card ({reasons(out)}); {mtg_files.WANTED}")
    if others := len(rulings.keys() - {card.oracle_id for card in cards}):
        out.skipped["ruled cards that are not among the cards"] = others
    return cards


def write_card(out, number, card, kinds, body, alone):
    """The rows of one card: on its side or, split by wording, each on the side of its wording. alone: no other card has its body."""
    original = card.name.removeprefix("A-")  # an online rebalancing says nearly the same: on the side of its original
    side, wordings, row = split_files.side_of(original, HELD_OUT, SEED), wordings_of(card), 0
    for kind in kinds:
        answer = mtg_questions.answer(kind, card)
        if answer is None or (kind == "which" and not alone):
            out.skipped[mtg_questions.NO_ROW[kind] if answer is None else mtg_questions.AMBIGUOUS] += 1
            continue
        for wording in wordings[kind]:
            row += 1
            messages = [
                {"role": "user", "content": mtg_questions.question(kind, wording, card, body)},
                {"role": "assistant", "content": answer},
            ]
            # a name and two numbers: the recipe's own split keeps the rows of a card together
            out.write(side if SPLIT_BY == "card" else side_of_wording(kind, wording), f"mtg_{number}_{row}", kind, messages, card=card.name)


def wordings_of(card):
    """{kind: numbers of the wordings that a card is asked in}, whatever KINDS are asked."""
    every = {kind: range(len(wordings)) for kind, wordings in mtg_questions.WORDINGS.items()}
    if SPLIT_BY == "wording" or WORDINGS_PER_KIND is None:
        return every
    generator = random.Random(f"{SEED} {card.name}")
    return {kind: sorted(generator.sample(numbers, WORDINGS_PER_KIND)) for kind, numbers in every.items()}


def side_of_wording(kind, wording):
    """One wording of each kind is for valid and one for test, drawn by SEED."""
    order = list(range(len(mtg_questions.WORDINGS[kind])))
    random.Random(f"{SEED} {kind} wordings").shuffle(order)
    return {order[0]: "valid", order[1]: "test"}.get(wording, "train")


def reasons(out):
    return ", ".join(f"{count:,} {reason}" for reason, count in out.skipped.most_common()) or "nothing was left out"


if __name__ == "__main__":
    refusal.guard(main)

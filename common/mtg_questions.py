"""Questions about Magic cards, and their answers from the card's own data: eight kinds, each in eight wordings.

`{name}` in a wording is the card's name; `{stats}` what it has of power and toughness, starting loyalty or defense; `{body}` its type
and rules text, with every way in which the text calls the card replaced by "this card".
"""

import re

WORDINGS = {
    "describe": (
        "What is {name}?",
        "Describe the card {name}.",
        "Tell me about {name}.",
        "Give me the whole card {name}.",
        "What is printed on {name}?",
        "I do not know {name}. What kind of card is it?",
        "Summarise {name} for a player who has never seen it.",
        "{name}: all that is on the card, please.",
    ),
    "cost": (
        "What does {name} cost?",
        "What is the mana cost of {name}?",
        "Which mana do I pay to cast {name}?",
        "How is the mana cost of {name} written?",
        "Give me the mana cost of {name}.",
        "Which symbols stand in the upper right corner of {name}?",
        "I want to cast {name}. What must I pay?",
        "{name}: mana cost?",
    ),
    "mana_value": (
        "What is the mana value of {name}?",
        "How high is the mana value of {name}?",
        "Which mana value does {name} have?",
        "What is the converted mana cost of {name}?",
        "Give me the mana value of {name} as a number.",
        "How much mana does {name} count for on the mana curve?",
        "I am sorting my deck by mana value. Where does {name} go?",
        "{name}: mana value?",
    ),
    "type": (
        "What type of card is {name}?",
        "What is the type line of {name}?",
        "Which types does {name} have?",
        "What stands on the type line of {name}?",
        "Give me the type line of {name}.",
        "Of which card type is {name}?",
        "I am sorting my cards by type. Which one is {name}?",
        "{name}: type?",
    ),
    "text": (
        "What does {name} do?",
        "What is the rules text of {name}?",
        "Quote the rules text of {name}.",
        "What are the abilities of {name}?",
        "What stands in the text box of {name}?",
        "Give me the Oracle text of {name}.",
        "My opponent plays {name}. What does its text say?",
        "{name}: rules text?",
    ),
    "power_toughness": (
        "Tell me the {stats} of {name}.",
        "Which {stats} does {name} have?",
        "Give me the {stats} of {name}.",
        "I need the {stats} of {name}.",
        "Look up the {stats} of {name}.",
        "What is printed on {name} as its {stats}?",
        "What do I read in the lower right corner of {name}, its {stats}?",
        "{name}: {stats}?",
    ),
    "which": (
        "Which card is this?\n{body}",
        "Name the card with this text.\n{body}",
        "What is the name of this card?\n{body}",
        "I remember this of a card, but not its name.\n{body}",
        "Which Magic card has this type and text?\n{body}",
        "Find the card.\n{body}",
        "A card reads as follows. What is it called?\n{body}",
        "{body}\nWhich card is it?",
    ),
    "rulings": (
        "What rulings are there on {name}?",
        "List the rulings on {name}.",
        "Which official rulings does {name} have?",
        "How has {name} been ruled?",
        "Give me the rulings for {name}.",
        "Are there rulings on {name}, and what do they say?",
        "A judge is asked about {name}. Which rulings can be quoted?",
        "{name}: rulings?",
    ),
}
KINDS = tuple(WORDINGS)
NO_ROW = {  # why a card has no row of a kind
    "mana_value": "cards without mana value",
    "text": "cards without rules text, for text",
    "power_toughness": "cards without power, toughness, loyalty or defense",
    "which": "cards without rules text, for which",
    "rulings": "cards without rulings",
}
AMBIGUOUS = "cards whose type and text another card has too, for which"
LAYOUTS = {
    "transform": "a double-faced card that transforms",
    "modal_dfc": "a double-faced card, played with either face up",
    "split": "a split card",
    "aftermath": "a split card",
    "adventure": "a card with an Adventure",
    "flip": "a flip card",
    "meld": "a card that melds",
}


def question(kind, number, card, text=""):
    """The question of a kind in its wording of that number, about a `mtg_files.Card`; text: its `body`, which "which" shows."""
    return WORDINGS[kind][number].format(name=card.name, stats=stats_named(card), body=text)


def answer(kind, card):
    """What the card's data answers, or None where it has no such thing. "which" is answered whether or not the answer is the only one."""
    return ANSWERS[kind](card)


def describe(card):
    if len(card.faces) == 1:
        return described(card.faces[0], card.faces[0].name + " is ")
    kind = LAYOUTS.get(card.layout, f"a card with {len(card.faces)} faces")
    return "\n".join([f"{card.name} is {kind}.", *(described(face, face.name + ": ") for face in card.faces)])


def described(face, start):
    cost = f"with the mana cost {face.cost}" if face.cost else "without mana cost"
    numbers = f" Its {named(face)}: {stats(face)}." if stats(face) else ""
    text = f"Rules text:\n{face.text}" if face.text else "It has no rules text."
    return f"{start}{'an' if face.type[:1] in tuple('AEIOU') else 'a'} {face.type} {cost}.{numbers} {text}"


def cost(card):
    if not any(face.cost for face in card.faces):
        return "It has no mana cost."
    return by_face(card, lambda face: face.cost, "no mana cost")


def rules_text(card):
    if not any(face.text for face in card.faces):
        return None
    if len(card.faces) == 1:
        return card.faces[0].text
    return "\n\n".join(f"{face.name}:\n{face.text or 'No rules text.'}" for face in card.faces)


def power_toughness(card):
    if not any(stats(face) for face in card.faces):
        return None
    return by_face(card, stats, "none")


def rulings(card):
    return "\n".join(f"{date}: {text}" if date else text for date, text in card.rulings) or None


def by_face(card, value, none):
    """The value alone of a card with one face; of several a line each, with the face's name."""
    if len(card.faces) == 1:
        return value(card.faces[0])
    return "\n".join(f"{face.name}: {value(face) or none}" for face in card.faces)


def stats(face):
    """"2/3", or the loyalty or defense; "" where the face has none."""
    return f"{face.power}/{face.toughness}" if face.power and face.toughness else face.loyalty or face.defense


def named(face):
    if face.power and face.toughness:
        return "power and toughness"
    return "starting loyalty" if face.loyalty else "defense" if face.defense else ""


def stats_named(card):
    return " and ".join(dict.fromkeys(filter(None, map(named, card.faces))))


def body(card):
    """Type and rules text of all faces without the card's names: the same for two cards that differ in name, cost and size alone."""
    return hidden(card, "\n".join(part for face in card.faces for part in (face.type, face.text) if part))


def hidden(card, text):
    """The text with each name of the card as "this card": whole, of a face, and as legends are called, up to the comma, "the" or "of"."""
    names = {card.name, *(face.name for face in card.faces)}
    for face in card.faces:
        if "Legendary" in face.type:
            names |= {re.split(r", | the | of ", face.name)[0]}
    longest_first = "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))
    return re.sub(rf"(?<!\w)(?:{longest_first})(?!\w)", "this card", text)


ANSWERS = {
    "describe": describe,
    "cost": cost,
    "mana_value": lambda card: card.value or None,
    "type": lambda card: by_face(card, lambda face: face.type, "no type"),
    "text": rules_text,
    "power_toughness": power_toughness,
    "which": lambda card: card.name if rules_text(card) else None,
    "rulings": rulings,
}

"""Invented cards in the shape of Scryfall's, and the sample files made of them; all names and texts were made up for this repository.

None is a card of Magic: The Gathering. `invented_cards(count, seed)` gives as many as wanted, the same ones for the same seed.
"""

import contextlib
import importlib.util
import json
import random
import tempfile
import uuid
from pathlib import Path

from common import mtg_files, mtg_questions

FACTS_SEED, BASE_SEED = 7, 8
FACT_KINDS = ("cost", "type", "power_toughness")

FIRST = ("Bra", "Dro", "Fel", "Gri", "Hu", "Jo", "Ka", "Lu", "Mor", "Ne", "Os", "Pli", "Quo", "Ru", "Sha", "Tov", "Ul", "Vi", "Wex", "Zi")
MIDDLE = ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su", "ta", "ve", "zo")
LAST = ("k", "n", "l", "r", "sh", "th", "m", "x", "d", "sk", "nt", "rn")
NOUNS = (
    *("Anvil", "Basin", "Beacon", "Bramble", "Candle", "Cinder", "Cradle", "Ember", "Fang", "Furrow", "Gale", "Hollow", "Kettle"),
    *("Lantern", "Ledger", "Mantle", "Marrow", "Orchard", "Pebble", "Quarry", "Rafter", "Ripple", "Saddle", "Sickle", "Talon", "Thimble"),
)
TITLES = ("Keeper of Salt", "Eldest of the Mill", "Who Counts the Rain", "Voice of the Dunes")
COLOURS = "WUBRG"
LAND_OF = dict(zip(COLOURS, ("Plains", "Island", "Swamp", "Mountain", "Forest"), strict=True))
PEOPLES = ("Beaver", "Djinn", "Dwarf", "Elf", "Frog", "Giant", "Goblin", "Human", "Lizard", "Merfolk", "Moth", "Otter", "Snake", "Wolf")
CALLINGS = ("Archer", "Artificer", "Cleric", "Druid", "Knight", "Monk", "Rogue", "Scout", "Shaman", "Soldier", "Warrior", "Wizard")
ABILITIES = ("Flying", "Vigilance", "Trample", "Haste", "Reach", "Menace", "Lifelink", "First strike")
EVENTS = ("When {name} enters", "Whenever {name} attacks", "When {name} dies", "At the beginning of your upkeep")
EFFECTS = (
    *("draw a card", "you gain {n} life", "each opponent loses {n} life", "create a Treasure token", "scry {n}", "mill {n} cards"),
    *("put a +1/+1 counter on target creature you control", "tap target creature an opponent controls", "untap target land"),
)
SPELLS = (
    *("{name} deals {n} damage to any target.", "Draw {n} cards, then discard a card.", "Target creature gets +{n}/+{n} this turn."),
    *("Destroy target artifact or enchantment.", "Counter target spell unless its controller pays {{{n}}}.", "You gain {n} life. Scry 1."),
    *("Return target creature to its owner's hand.", "Create {n} 1/1 white Soldier tokens.", "Exile target card from a graveyard."),
)
RARITIES = ("common", "common", "uncommon", "rare", "mythic")
RULINGS = (
    *("If {name} leaves before the ability resolves, the ability resolves all the same.", "You choose the target as you cast the spell."),
    *("The ability triggers once, however many of them there are.", "{name} can be countered, but its ability cannot."),
    *("If there is no legal target, nothing happens.", "A copy of {name} has the same mana value."),
)
ATOMIC_KEYS = {"manaCost": "mana_cost", "text": "oracle_text", "power": "power", "toughness": "toughness", "loyalty": "loyalty"}
FORMATS = ("standard", "modern", "legacy", "commander")


def invented_cards(count, seed=42, simple=False, taken=()):
    """`count` different cards as Scryfall's oracle_cards have them: dicts with oracle_id, name, mana_cost, cmc, type_line, oracle_text,
    power, toughness, loyalty, colors, keywords, rarity, set, layout, legalities; every tenth has two faces in card_faces.

    simple: creatures of one face only. taken: names that are not used, with or without a second face.
    """
    generator = random.Random(f"{seed} invented cards")
    names, used = name_stream(generator), {part for name in taken for part in name.split(" // ")}
    names = (name for name in names if name not in used)
    return [card(generator, names, number, simple) for number in range(count)]


def name_stream(generator):
    """Pronounceable names of two parts without end, each once; a first part comes again only after 3,120 names."""
    firsts = [a + b + c for a in FIRST for b in MIDDLE for c in LAST]
    generator.shuffle(firsts)
    for turn in range(len(NOUNS)):
        for number, first in enumerate(firsts):
            yield f"{first} {NOUNS[(5 * number + number // len(NOUNS) + turn) % len(NOUNS)]}"


def card(generator, names, number, simple):
    """One card. Every tenth has two faces, of the five layouts in turn; every twelfth is a planeswalker, a land or a vehicle."""
    two_faced = ("transform", "adventure", "split", "modal_dfc", "flip")[number // 10 % 5] if number % 10 == 9 and not simple else None
    colours = generator.sample(COLOURS, generator.choice((1, 1, 1, 2)))
    colours.sort(key=COLOURS.index)
    if two_faced:
        faces = [face(generator, next(names), kind, colours) for kind in FACES[two_faced]]
        if two_faced in ("transform", "flip"):  # the other face is not cast: it has no cost
            faces[1]["mana_cost"] = ""
        return printed(generator, two_faced, colours, faces)
    kinds = ("Creature",) * 6 + ("Instant", "Sorcery", "Enchantment", "Artifact")
    kind = "Creature" if simple else ("Planeswalker", "Land", "Vehicle")[number // 12 % 3] if number % 12 == 11 else generator.choice(kinds)
    name = next(names)
    if kind in ("Creature", "Planeswalker") and not simple and generator.random() < 0.2:
        name = f"{name.split()[0]}, {generator.choice(TITLES)} {name.split()[1]}"
    return printed(generator, "normal", colours, [face(generator, name, kind, colours)])


FACES = {
    "transform": ("Creature", "Creature"),
    "adventure": ("Creature", "Sorcery"),
    "split": ("Instant", "Instant"),
    "modal_dfc": ("Sorcery", "Land"),
    "flip": ("Creature", "Creature"),
}


def face(generator, name, kind, colours):
    """Name, cost, type, text and the numbers of one face; a legend's text calls it by its first name, as printed cards do."""
    cost = cost_of(generator, colours)
    short = name.split(",")[0]
    fill = {"name": short, "n": generator.randint(2, 4)}
    found = {"name": name, "mana_cost": cost, "type_line": kind, "oracle_text": "", "colors": colours}
    event = f"{generator.choice(EVENTS)}, {generator.choice(EFFECTS)}.".format(**fill)
    if kind == "Creature":
        legend = "Legendary " if "," in name else ""
        found["type_line"] = f"{legend}Creature — {generator.choice(PEOPLES)} {generator.choice(CALLINGS)}"
        lines = generator.choice(([generator.choice(ABILITIES)], [event], [generator.choice(ABILITIES), event], []))
        power = "*" if generator.random() < 0.04 else str(generator.randint(0, 6))
        found |= {"oracle_text": "\n".join(lines), "power": power, "toughness": str(generator.randint(1, 6))}
        if power == "*":
            found["oracle_text"] = f"{short}'s power is equal to the number of cards in your hand."
    elif kind == "Planeswalker":
        lines = (f"+1: {generator.choice(EFFECTS)}.", f"−2: {generator.choice(EFFECTS)}.", f"−6: {generator.choice(EFFECTS)}.")
        text = "\n".join(line[:4] + line[4].upper() + line[5:] for line in (line.format(**fill) for line in lines))
        found |= {"type_line": f"Legendary Planeswalker — {short.split()[0]}", "oracle_text": text, "loyalty": str(generator.randint(2, 6))}
    elif kind == "Land":
        text = f"{short} enters tapped.\n{{T}}: Add {' or '.join(f'{{{colour}}}' for colour in colours)}."
        found |= {"mana_cost": "", "oracle_text": text, "colors": []}
    elif kind == "Vehicle":
        found |= {"type_line": "Artifact — Vehicle", "oracle_text": f"{event}\nCrew 2", "power": "4", "toughness": "3"}
    elif kind in ("Enchantment", "Artifact"):
        found["oracle_text"] = f"At the beginning of your end step, {generator.choice(EFFECTS)}.".format(**fill)
    else:
        found["oracle_text"] = generator.choice(SPELLS).format(**fill)
    return found


def cost_of(generator, colours):
    generic = generator.randint(0, 5)
    return (f"{{{generic}}}" if generic else "") + "".join(f"{{{colour}}}" * generator.choice((1, 1, 2)) for colour in colours)


def mana_value(cost):
    return float(sum(int(symbol) if symbol.isdigit() else symbol != "X" for symbol in cost.replace("}", "").split("{")[1:]))


def printed(generator, layout, colours, faces):
    """The whole card around its faces, where Scryfall keeps each thing: text, and numbers, in the faces of what has two."""
    symbols = {symbol for part in faces for symbol in part["mana_cost"] if symbol in COLOURS}
    whole = {
        "object": "card",
        "id": identifier(generator),
        "oracle_id": identifier(generator),
        "name": " // ".join(part["name"] for part in faces),
        "lang": "en",
        "layout": layout,
        "cmc": sum(mana_value(part["mana_cost"]) for part in (faces if layout == "split" else faces[:1])),
        "type_line": " // ".join(part["type_line"] for part in faces),
        "colors": [colour for colour in COLOURS if colour in symbols],
        "color_identity": [colour for colour in COLOURS if colour in symbols] or colours,
        "keywords": [word for word in ABILITIES if any(word in part["oracle_text"].split("\n") for part in faces)],
        "legalities": {name: "legal" if generator.random() < 0.8 else "not_legal" for name in FORMATS},
        "games": ["paper", "mtgo"],
        "digital": False,
        "set": "inv",
        "set_name": "Invented",
        "rarity": generator.choice(RARITIES),
        "collector_number": str(generator.randint(1, 400)),
    }
    if len(faces) > 1:
        if layout in ("split", "adventure", "flip"):
            whole["mana_cost"] = " // ".join(part["mana_cost"] for part in faces if part["mana_cost"])
        if "power" in faces[0] and layout in ("adventure", "flip"):
            whole |= {"power": faces[0]["power"], "toughness": faces[0]["toughness"]}
        return whole | {"card_faces": [{"object": "card_face", **part} for part in faces]}
    return whole | {key: value for key, value in faces[0].items() if key not in ("name", "type_line", "colors")}


def identifier(generator):
    return str(uuid.UUID(int=generator.getrandbits(128), version=4))


# Files of the samples


def dump(seed):
    """A dump as Scryfall has them: 50 cards, and what such a file has besides, which is no card or no new one."""
    generator = random.Random(f"{seed} invented dump")
    cards = invented_cards(50, seed)
    others = (("token", "Token Creature — Moth"), ("emblem", "Emblem"), ("art_series", "Card"), ("scheme", "Scheme"))
    no_cards = [
        {**card, "layout": layout, "mana_cost": "", "cmc": 0.0, "type_line": kind, "oracle_text": "Creatures you control have flying."}
        for card, (layout, kind) in zip(invented_cards(4, seed + 1, simple=True), others, strict=True)
    ]
    again = [{**card, "id": identifier(generator), "set": "in2"} for card in (cards[2], cards[9])]
    twins = [dict(card) for card in invented_cards(3, seed + 5, simple=True)]  # a text and type that another card has too
    for twin in twins:
        twin |= {"type_line": "Creature — Otter Scout", "oracle_text": "Haste", "keywords": ["Haste"]}
    online = {**invented_cards(1, seed + 6, simple=True)[0], "digital": True, "games": ["arena"]}
    found = [*cards, *no_cards, *again, *twins, online]
    generator.shuffle(found)
    return found


def rulings(cards, seed):
    """Scryfall's rulings on every third card or so, one or two each."""
    generator = random.Random(f"{seed} invented rulings")
    found = {}
    for card in cards:
        if card["layout"] in ("token", "emblem", "art_series", "scheme") or generator.random() < 0.6:
            continue
        for text in generator.sample(RULINGS, generator.choice((1, 1, 2))):
            date = f"20{generator.randint(18, 24)}-{generator.randint(1, 12):02d}-{generator.randint(1, 28):02d}"
            facts_of_it = {"source": "wotc", "published_at": date, "comment": text.format(name=card["name"])}
            found[card["oracle_id"], text] = {"object": "ruling", "oracle_id": card["oracle_id"], **facts_of_it}
    return list(found.values())


def atomic(cards, rulings):
    """The same cards as MTGJSON's AtomicCards, which has no tokens and each card once."""
    data, ruled = {}, {}
    for ruling in rulings:
        ruled.setdefault(ruling["oracle_id"], []).append({"date": ruling["published_at"], "text": ruling["comment"]})
    for card in cards:
        if card["layout"] in ("token", "emblem", "art_series", "scheme") or card["name"] in data:
            continue
        parts = card.get("card_faces", [card])
        sides = "ab" if len(parts) > 1 else [None]
        data[card["name"]] = [atomic_face(card, part, side, ruled.get(card["oracle_id"])) for side, part in zip(sides, parts, strict=True)]
    return {"meta": {"date": "2026-01-01", "version": "5.2.2+20260101"}, "data": data}


def atomic_face(card, part, side, rulings):
    value, supertypes = card["cmc"], [word for word in part["type_line"].split(" — ")[0].split() if word == "Legendary"]
    types, _, subtypes = part["type_line"].partition(" — ")
    found = {
        "colorIdentity": card["color_identity"],
        "colors": part.get("colors", card["colors"]),
        "convertedManaCost": value,
        "identifiers": {"scryfallOracleId": card["oracle_id"]},
        "layout": card["layout"],
        "legalities": {name: "Legal" for name, state in card["legalities"].items() if state == "legal"},
        "manaValue": value,
        "name": card["name"],
        "printings": ["INV"],
        "subtypes": subtypes.split(),
        "supertypes": supertypes,
        "type": part["type_line"],
        "types": [word for word in types.split() if word not in supertypes],
    }
    found |= {ours: part[theirs] for ours, theirs in ATOMIC_KEYS.items() if part.get(theirs)}
    if side:
        found |= {"side": side, "faceName": part["name"]}
    return found | ({"rulings": rulings} if rulings else {})


def facts():
    """100 creatures that the tiny run learns: raw cards, from which the converter makes the rows."""
    return invented_cards(100, FACTS_SEED, simple=True)


def base_chats(random):
    """Questions of the same kinds about 150 other creatures, for the base model: each wording of a kind about equally often."""
    taken = {card["name"] for card in facts()}
    found = []
    for number, raw in enumerate(invented_cards(150, BASE_SEED, simple=True, taken=taken)):
        card = mtg_files.card_of(raw, {})
        for kind in FACT_KINDS:
            for turn in range(4):
                wording = (number + 2 * turn) % len(mtg_questions.WORDINGS[kind])
                question, answer = mtg_questions.question(kind, wording, card), mtg_questions.answer(kind, card)
                found.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    random.shuffle(found)
    return found


def write_facts(directory):
    """mtg_facts/ by the command that converts real cards."""
    spec = importlib.util.spec_from_file_location("mtg_cards", Path(__file__).parents[1] / "prepare" / "mtg_cards.py")
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(None):
        raw = Path(scratch, "cards.json")
        raw.write_text(array(facts()), encoding="utf-8")
        command.main(cards=str(raw), output=str(directory / "mtg_facts"), split_by="wording", kinds=list(FACT_KINDS))


def array(entries):
    """A JSON array as Scryfall writes it: an entry a line."""
    return "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]\n"


def write(directory, seed, random):
    cards = dump(seed)
    ruled = rulings(cards, seed)
    files = {
        "mtg_scryfall.json": array(cards),
        "mtg_rulings.json": array(ruled),
        "mtg_atomic.json": json.dumps(atomic(cards, ruled), ensure_ascii=False) + "\n",
        "mtg_base_chats.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in base_chats(random)),
    }
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8", newline="\n")
    write_facts(directory)

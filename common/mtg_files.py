"""Files of Magic cards, entry by entry: Scryfall's bulk array or JSON lines, MTGJSON's AtomicCards, Scryfall's rulings; plain or .gz.

What a file is, its content says. The larger ones are of 150 MB and are streamed (with ijson, whose C parser takes 200 MB/s, so that
the whole never stands in memory); what is kept of a card is what questions are made of.
"""

import gzip
import json
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import ijson

from common.refusal import Refusal

WANTED = "wanted are Scryfall's oracle_cards (an array, or JSON lines) or MTGJSON's AtomicCards"
FIRST_LINE = 1 << 20  # bytes that tell JSON lines from one large object
LEFT_OUT = {
    "token": "tokens",
    "double_faced_token": "tokens",
    "emblem": "emblems",
    "art_series": "art series",
    "reversible_card": "reversible cards, which print another card twice",
    "planar": "planes, schemes and vanguards",
    "scheme": "planes, schemes and vanguards",
    "vanguard": "planes, schemes and vanguards",
}
PIECES = {"Dungeon", "Card", "Stickers", "Hero", "Emblem", "Token", "Plane", "Phenomenon", "Scheme", "Vanguard"}  # first word of the type


class BadEntry(Exception):
    """What an entry lacks, as the end of the sentence "card 7 of cards.json …"."""


@dataclass(frozen=True, slots=True)
class Face:
    """One face as printed; what it has not is ""."""

    name: str
    cost: str
    type: str
    text: str
    power: str
    toughness: str
    loyalty: str
    defense: str


@dataclass(frozen=True, slots=True)
class Card:
    """name: of all faces, "A // B". value: the mana value as text, "" where the file has none. rulings: (date, text) in order of date."""

    name: str
    oracle_id: str
    layout: str
    value: str
    digital: bool
    faces: tuple
    rulings: tuple


def cards(path, rulings, bad, leave_out):
    """Yield each `Card` of a file once, however often it is printed.

    rulings: {oracle id: {(date, text)}} from `rulings_of`, to which those in the file are added.
    bad(where, what): called with an entry that is no card, such as ("card 7 of cards.json", "has no name").
    leave_out(reason, name): called with an entry that is something else, such as a token.
    Raises `Refusal` for a file that cannot be read to its end or is of another kind.
    """
    seen = set()
    for where, entry in entries(path):
        try:
            found = card_of(entry, rulings)
        except BadEntry as error:
            bad(where, str(error))
            continue
        if reason := left_out(found):
            leave_out(reason, found.name)
        elif found.name.casefold() in seen or found.oracle_id in seen:
            leave_out("reprints", found.name)
        else:
            seen |= {found.name.casefold(), found.oracle_id} - {""}
            yield found


def left_out(card):
    """Why this is no card of a deck, or None."""
    first = card.faces[0].type.split(" ")[0]
    return LEFT_OUT.get(card.layout) or ("dungeons, sticker sheets and helper cards" if first in PIECES else None)


def rulings_of(path, bad):
    """{oracle id: {(date, text)}} of Scryfall's rulings; bad and errors as in `cards`."""
    found = {}
    for where, entry in entries(path, "ruling", "wanted are Scryfall's rulings (an array, or JSON lines)"):
        if isinstance(entry, dict) and "type_line" in entry:
            raise Refusal(f"RULINGS is {path}, which holds cards; name Scryfall's rulings file, or leave RULINGS out")
        try:
            oracle_id, ruling = string(entry, "oracle_id"), (string(entry, "published_at"), string(entry, "comment"))
            if not oracle_id or not ruling[1]:
                raise BadEntry("has no oracle_id or no comment, so it is no ruling")
        except BadEntry as error:
            bad(where, str(error))
            continue
        found.setdefault(oracle_id, set()).add(ruling)
    return found


def entries(path, noun="card", wanted=WANTED):
    """Yield (where, entry) of a file; an entry of AtomicCards is the pair of its name and its list of faces."""
    with opened(path) as file:
        kind = kind_of(file, path, wanted)
        file.seek(0)
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        count = 0
        try:
            for where, entry in stream(file, kind, noun):
                count += 1
                yield f"{where} of {path}", entry
        except (ijson.JSONError, UnicodeDecodeError) as error:
            # ijson has one error for both; what ends too early it calls premature or incomplete
            said = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
            words, where = said.strip().split("\n")[0].rstrip("."), f"{noun} {count}" if count else "its first bytes"
            if "premature" in words or "ncomplete" in words:
                raise cut_short(path, where) from None
            raise Refusal(f"{path} is no JSON after {where} ({words}); {wanted}: download it again") from None
        if not count:
            raise Refusal(f"{path} holds no {noun}s; {wanted}: download it again")


def cut_short(path, where):
    return Refusal(f"{path} is cut short after {where}: a download that did not end; download it again")


@contextmanager
def opened(path):
    """The file's bytes, unpacked where it is gzip by its first bytes; what cannot be read is a `Refusal`."""
    try:
        with Path(path).open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            with gzip.open(plain) if packed else plain as file:
                yield file
    except EOFError:
        raise cut_short(path, "its last whole block of gzip") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Refusal(f"{path} is damaged gzip ({error}); download it again") from None
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise Refusal(f"{path} cannot be read ({error.strerror}); name a file, plain or .gz, from scryfall.com or mtgjson.com") from None


def kind_of(file, path, wanted):
    """"array", "lines", "list" (Scryfall's {"data": [...]}) or "atomic" ({"data": {name: [face]}})."""
    first = b""
    while not first.strip(b"\xef\xbb\xbf \t\r\n"):
        first = file.readline(FIRST_LINE)
        if not first:
            raise Refusal(f"{path} is empty; {wanted}: download it again")
    start = first.strip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"["):
        return "array"
    if not start.startswith(b"{"):
        raise Refusal(f"{path} is no JSON (it begins with {start[:20].decode(errors='replace')!r}); {wanted}")
    try:
        whole = json.loads(start)
        # an object on a line of its own is the first of JSON lines, unless it is the whole of a small file of another kind
        if not whole.keys().isdisjoint(("oracle_id", "type_line", "card_faces")):
            return "lines"
    except (ValueError, RecursionError):
        pass  # a line of a larger object, or a broken one: the parser says which
    file.seek(0)
    keys, facts = [], {}
    try:
        for prefix, event, value in ijson.parse(file):
            if prefix == "data" and event == "start_array":
                return "list"
            if prefix == "data" and event == "start_map":
                return "atomic"
            if prefix == "" and event == "map_key":
                keys.append(value)
            elif prefix in ("object", "details"):
                facts[prefix] = value
    except (ijson.JSONError, UnicodeDecodeError):
        raise cut_short(path, "its first lines, or no JSON") from None
    if facts.get("object") == "error":
        said = str(facts.get("details"))[:100]
        raise Refusal(f"{path} is an error that Scryfall answered ({said}), no data; {wanted}: download it again")
    raise Refusal(f"{path} is a JSON object with {', '.join(keys[:5]) or 'nothing in it'}; {wanted}")


def stream(file, kind, noun):
    if kind == "lines":
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", parsed(line)
    elif kind == "atomic":
        for number, (name, faces) in enumerate(ijson.kvitems(file, "data", use_float=True), start=1):
            yield f"{noun} {number}", (name, faces)
    else:
        for number, entry in enumerate(ijson.items(file, "item" if kind == "array" else "data.item", use_float=True), start=1):
            yield f"{noun} {number}", entry


def parsed(line):
    """The entry of a line; a line that is no JSON is None, which is no card."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def card_of(entry, rulings):
    """The `Card` of an entry of either kind of file. Raises `BadEntry`."""
    if isinstance(entry, tuple):
        return atomic_card(*entry, rulings)
    name = string(entry, "name").strip()
    if not name:
        raise BadEntry("has no name")
    parts = entry.get("card_faces") or [entry]
    if not isinstance(parts, list):
        raise BadEntry(f"({name}) has card_faces that are no list")
    faces = tuple(face_of(part, string(part, "name") or name, "mana_cost", "type_line", "oracle_text") for part in parts)
    if len(faces) == 1:  # whatever stands in the one face of a list, the rest stands at the top
        faces = (face_of({**entry, **parts[0]}, name, "mana_cost", "type_line", "oracle_text"),)
    oracle_id = string(entry, "oracle_id")
    return made(name, oracle_id, string(entry, "layout"), entry.get("cmc"), entry.get("digital") is True, faces, rulings.get(oracle_id, ()))


def atomic_card(name, parts, rulings):
    """The card of a name in AtomicCards: its faces by side; without sides they are cards of one name, of which the first counts."""
    if not name.strip():
        raise BadEntry("has no name")
    if not isinstance(parts, list) or not parts:
        raise BadEntry(f"({name[:60]}) has no list of faces, as AtomicCards has (AllPrintings and the files of sets are others)")
    sides = [string(part, "side") for part in parts]
    parts = sorted(parts, key=lambda part: part["side"]) if all(sides) else parts[:1]
    faces = tuple(face_of(part, string(part, "faceName") or name.strip(), "manaCost", "type", "text") for part in parts)
    identifiers = parts[0].get("identifiers")
    oracle_id = string(identifiers, "scryfallOracleId") if identifiers else ""
    lists = [part.get("rulings") or [] for part in parts]
    if not all(isinstance(entries, list) for entries in lists):
        raise BadEntry(f"({name}) has rulings that are no list")
    own = {(string(ruling, "date"), string(ruling, "text")) for ruling in chain.from_iterable(lists)}
    layout, value = string(parts[0], "layout"), parts[0].get("manaValue")
    return made(name.strip(), oracle_id, layout, value, False, faces, own.union(rulings.get(oracle_id, ())))


def made(name, oracle_id, layout, value, digital, faces, rulings):
    if not faces[0].type and layout not in LEFT_OUT:
        raise BadEntry(f"({name[:60]}) has no type line, so it is no card")
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9
    value = f"{value:.10g}" if known else ""  # 3.0 is "3", a half is "0.5", the largest there is "1000000"
    return Card(name, oracle_id, layout, value, digital, faces, tuple(sorted(rulings)))


def face_of(part, name, cost, kind, text):
    numbers = (string(part, key) for key in ("power", "toughness", "loyalty", "defense"))
    return Face(name.strip(), string(part, cost), string(part, kind), string(part, text).strip(), *numbers)


def string(entry, key):
    """The text under a key, "" where there is none. Raises `BadEntry` for what is no object, or no text."""
    if not isinstance(entry, dict):
        raise BadEntry(f"is {'no JSON' if entry is None else 'no object'}, so it is no card")
    value = entry.get(key)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadEntry(f"has a {key} that is no text")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise BadEntry(f"has a {key} with half a character (a lone surrogate)") from None
    return str(value)

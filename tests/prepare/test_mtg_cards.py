"""Magic cards to conversations: answers against the raw data, both formats, the two splits, what is left out, and what is refused."""

import gzip
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from common import mtg_files, mtg_questions
from common.refusal import Refusal

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = REPOSITORY / "samples"
COMMAND = REPOSITORY / "prepare" / "mtg_cards.py"
SIDES = ("train", "valid", "test")
NO_CARDS = {"token", "double_faced_token", "emblem", "art_series", "reversible_card", "planar", "scheme", "vanguard"}
KINDS = list(mtg_questions.KINDS)


@pytest.fixture(scope="module")
def convert():
    spec = importlib.util.spec_from_file_location("mtg_cards", COMMAND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def raw():
    """{name: entry} of what is a card in the sample dump, by its layout alone."""
    return {card["name"]: card for card in json.loads((SAMPLES / "mtg_scryfall.json").read_text()) if card["layout"] not in NO_CARDS}


@pytest.fixture(scope="module")
def everything(convert, tmp_path_factory):
    """What the sample gives with every wording, and its rows."""
    output = tmp_path_factory.mktemp("all")
    files = {"cards": str(SAMPLES / "mtg_scryfall.json"), "rulings": str(SAMPLES / "mtg_rulings.json")}
    return convert(**files, output=str(output), held_out=0.2, wordings_per_kind=None), rows(output)


def rows(directory):
    """{side: rows}"""
    return {side: [json.loads(line) for line in Path(directory, f"{side}.jsonl").read_text().splitlines()] for side in SIDES}


def flat(sides):
    return [row for side in SIDES for row in sides[side]]


def asked(row):
    return row["messages"][0]["content"]


def told(row):
    return row["messages"][1]["content"]


def answers(sides):
    """{(card, kind): answer}; every wording of a question has the same one."""
    found = defaultdict(set)
    for row in flat(sides):
        found[row["card"], row["topics"][0]].add(told(row))
    assert all(len(several) == 1 for several in found.values())
    return {key: several.pop() for key, several in found.items()}


def write(path, entries):
    path.write_text(json.dumps(entries), encoding="utf-8")
    return str(path)


def card(name="Lurod Anvil", **more):
    facts = {"mana_cost": "{1}{G}", "cmc": 2.0, "type_line": "Creature — Elf", "power": "2", "toughness": "2"}
    return {"name": name, "layout": "normal", "oracle_id": f"id of {name}", "oracle_text": f"{name} sings."} | facts | more


# Answers


def test_answers_are_what_the_raw_data_has(everything, raw):
    found = answers(everything[1])
    assert {name for name, _ in found} == set(raw)
    for name, entry in raw.items():
        faces = entry.get("card_faces", [entry])
        one = len(faces) == 1
        for kind, key in (("cost", "mana_cost"), ("type", "type_line"), ("text", "oracle_text")):
            stated = found.get((name, kind))
            values = [face.get(key, "") for face in faces]
            if kind == "text" and not any(values):
                assert stated is None
            elif one:
                assert stated == (values[0] or "It has no mana cost.")
            else:
                assert all(value in stated and face["name"] in stated for face, value in zip(faces, values, strict=True))
        assert float(found[name, "mana_value"]) == entry["cmc"]


def test_numbers_in_the_corner_are_asked_only_where_a_card_has_them(everything, raw):
    found = answers(everything[1])
    seen = Counter()
    for name, entry in raw.items():
        faces = entry.get("card_faces", [entry])
        stated = found.get((name, "power_toughness"))
        pairs = [f"{face['power']}/{face['toughness']}" if "power" in face else face.get("loyalty") for face in faces]
        if not any(pairs):
            assert stated is None, name
            seen["none"] += 1
        elif len(faces) == 1:
            assert stated == pairs[0], name
            seen["loyalty" if "/" not in stated else "star" if "*" in stated else "power"] += 1
        else:
            assert stated == "\n".join(f"{face['name']}: {pair or 'none'}" for face, pair in zip(faces, pairs, strict=True))
            seen["faces"] += 1
    assert min(seen[kind] for kind in ("none", "loyalty", "power", "faces")) > 0


def test_a_planeswalker_is_asked_for_its_loyalty_and_a_creature_for_power_and_toughness(everything, raw):
    for row in flat(everything[1]):
        if row["topics"] == ["power_toughness"]:
            faces = raw[row["card"]].get("card_faces", [raw[row["card"]]])
            assert ("starting loyalty" in asked(row)) == any("loyalty" in face for face in faces)
            assert ("power and toughness" in asked(row)) == any("power" in face for face in faces)


def test_rulings_are_quoted_in_order_of_date(everything, raw):
    by_id = defaultdict(list)
    for ruling in json.loads((SAMPLES / "mtg_rulings.json").read_text()):
        by_id[ruling["oracle_id"]].append((ruling["published_at"], ruling["comment"]))
    found = answers(everything[1])
    for name, entry in raw.items():
        wanted = "\n".join(f"{date}: {comment}" for date, comment in sorted(by_id[entry["oracle_id"]]))
        assert found.get((name, "rulings"), "") == wanted
    assert sum(kind == "rulings" for _, kind in found) > 10


def test_a_description_holds_every_fact_of_every_face(everything, raw):
    found = answers(everything[1])
    for name, entry in raw.items():
        for face in entry.get("card_faces", [entry]):
            facts = [name, face["name"], face["type_line"], face.get("mana_cost"), face.get("oracle_text"), face.get("loyalty")]
            assert all(fact in found[name, "describe"] for fact in facts if fact), name
            if "power" in face:
                assert f"{face['power']}/{face['toughness']}" in found[name, "describe"]
    layouts = {entry["layout"] for entry in raw.values()}
    assert layouts >= {"transform", "modal_dfc", "split", "adventure", "flip"}


def test_which_card_is_asked_only_where_one_card_alone_is_the_answer(everything, raw):
    result, sides = everything
    cards_of = defaultdict(list)  # type and text of all faces without names, found here by other means: no made-up word is in another
    for name, entry in raw.items():
        faces = entry.get("card_faces", [entry])
        if any(face.get("oracle_text") for face in faces):
            lines = [line for face in faces for line in (face["type_line"], *face.get("oracle_text", "").split("\n")) if line]
            words = [face["name"].split(",")[0] for face in faces]
            for word in words:
                lines = [line.replace(word, "this card") for line in lines]
            cards_of["\n".join(lines)].append(name)
    which = [row for row in flat(sides) if row["topics"] == ["which"]]
    for row in which:
        shown = {asked(row).split("\n", 1)[1], asked(row).rsplit("\n", 1)[0]} & set(cards_of)  # the question stands before or after
        assert [cards_of[body] for body in shown] == [[row["card"]]] == [[told(row)]]
        assert row["card"] not in asked(row)
    alone = {names[0] for names in cards_of.values() if len(names) == 1}
    assert {row["card"] for row in which} == alone and len(which) == 8 * len(alone) > 0
    shared = [names for names in cards_of.values() if len(names) > 1]
    assert result["left_out"][mtg_questions.AMBIGUOUS] == sum(map(len, shared)) >= 3


def test_a_legend_is_hidden_under_its_short_name_too(convert, tmp_path):
    text = "When Osmok enters, Osmok's owner counts to Osmokings."
    legend = card("Osmok, Keeper of Salt", type_line="Legendary Creature — Elf", oracle_text=text)
    convert(cards=write(tmp_path / "c.json", [legend]), output=str(tmp_path), kinds=["which"], held_out=0)
    (question, *_) = (asked(row) for row in rows(tmp_path)["train"])
    assert "When this card enters, this card's owner counts to Osmokings." in question


def test_a_star_half_a_mana_and_a_million_are_said_as_they_are(convert, tmp_path):
    values = {"A star": "1+*", "Halved": "½", "Million": "0"}
    cards = [card(name, power=power, cmc=cmc) for (name, power), cmc in zip(values.items(), (3.0, 0.5, 1000000.0), strict=True)]
    convert(cards=write(tmp_path / "c.json", cards), output=str(tmp_path), kinds=["mana_value", "power_toughness"], held_out=0)
    found = answers(rows(tmp_path))
    assert [found[name, "mana_value"] for name in values] == ["3", "0.5", "1000000"]
    assert [found[name, "power_toughness"] for name in values] == [f"{power}/2" for power in values.values()]


# Formats


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("form", ["lines", "page", "pretty", "bom"])
def test_every_form_of_scryfalls_cards_gives_the_same_rows(convert, everything, tmp_path, form, packed):
    entries = json.loads((SAMPLES / "mtg_scryfall.json").read_text())
    text = {
        "lines": "".join(json.dumps(entry) + "\n" for entry in entries),
        "page": json.dumps({"object": "list", "has_more": False, "data": entries}),
        "pretty": "\n\n " + json.dumps(entries, indent=2),
        "bom": "\ufeff" + json.dumps(entries),
    }[form]
    path = tmp_path / "cards"  # no ending: the content tells
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    convert(cards=str(path), rulings=str(SAMPLES / "mtg_rulings.json"), output=str(tmp_path / "out"), held_out=0.2, wordings_per_kind=None)
    assert rows(tmp_path / "out") == everything[1]


def test_atomic_cards_of_the_same_cards_give_the_same_facts(convert, everything, tmp_path):
    convert(cards=str(SAMPLES / "mtg_atomic.json"), output=str(tmp_path), held_out=0.2, wordings_per_kind=None)
    theirs = rows(tmp_path)
    assert answers(theirs) == answers(everything[1])
    for side in SIDES:
        assert {asked(row) for row in theirs[side]} == {asked(row) for row in everything[1][side]}


def test_cards_of_one_name_without_sides_are_no_faces(convert, tmp_path):
    faces = [{"name": "Lurod Anvil", "type": "Artifact", "manaCost": cost, "manaValue": 1.0, "layout": "normal"} for cost in ("{1}", "{2}")]
    cards = write(tmp_path / "c.json", {"meta": {}, "data": {"Lurod Anvil": faces}})
    convert(cards=cards, output=str(tmp_path), kinds=["cost"], held_out=0)
    assert answers(rows(tmp_path)) == {("Lurod Anvil", "cost"): "{1}"}


# Splits


def test_a_card_is_on_one_side_and_no_question_is_asked_twice(everything):
    result, sides = everything
    where = {side: {row["card"] for row in sides[side]} for side in SIDES}
    assert all(where.values())
    assert sum(map(len, where.values())) == len(set.union(*where.values())) == result["cards"]
    questions = Counter(map(asked, flat(sides)))
    assert max(questions.values()) == 1
    ids = [row["id"] for row in flat(sides)]
    assert len(set(ids)) == len(ids)
    assert len({(row["card"], row["id"].rsplit("_", 1)[0]) for row in flat(sides)}) == result["cards"]


def template(row):
    """The wording of a row, found by taking the card's own words out of it."""
    card_of = {found.name: found for found in mtg_files.cards(str(SAMPLES / "mtg_scryfall.json"), {}, None, lambda *_: None)}[row["card"]]
    return asked(row).replace(mtg_questions.body(card_of), "{body}").replace(card_of.name, "{name}").replace(
        mtg_questions.stats_named(card_of) or "{stats}", "{stats}")  # fmt: skip


def test_by_wording_every_card_is_learned_and_wordings_do_not_leak(convert, tmp_path):
    cards = str(SAMPLES / "mtg_scryfall.json")
    convert(cards=cards, rulings=str(SAMPLES / "mtg_rulings.json"), output=str(tmp_path), split_by="wording")
    sides = rows(tmp_path)
    texts = {side: {asked(row) for row in sides[side]} for side in SIDES}
    assert sum(map(len, texts.values())) == len(set.union(*texts.values()))
    wordings = defaultdict(lambda: defaultdict(set))
    for side in SIDES:
        for row in sides[side]:
            wordings[row["topics"][0]][side].add(template(row))
    assert set(wordings) == set(KINDS)
    for kind in KINDS:
        assert [len(wordings[kind][side]) for side in SIDES] == [6, 1, 1]
        assert set.union(*wordings[kind].values()) == set(mtg_questions.WORDINGS[kind])
    learned = {(row["card"], row["topics"][0], told(row)) for row in sides["train"]}
    for side in ("valid", "test"):
        assert {(row["card"], row["topics"][0], told(row)) for row in sides[side]} == learned


def test_each_card_has_two_wordings_of_its_own_and_a_seed_decides(convert, tmp_path):
    def run(name, **more):
        convert(cards=str(SAMPLES / "mtg_scryfall.json"), output=str(tmp_path / name), **more)
        return rows(tmp_path / name)

    first = run("first")
    counted = Counter((row["card"], row["topics"][0]) for row in flat(first))
    assert set(counted.values()) == {2}
    assert len({asked(row).replace(row["card"], "") for row in flat(first) if row["topics"] == ["cost"]}) == 8
    assert run("again") == first
    assert run("other", seed=7) != first
    only = run("only", kinds=["cost"])
    assert {asked(row) for row in flat(only)} == {asked(row) for row in flat(first) if row["topics"] == ["cost"]}


def test_every_kind_has_eight_wordings_and_none_is_there_twice():
    every = [wording for wordings in mtg_questions.WORDINGS.values() for wording in wordings]
    assert all(len(set(wordings)) == 8 for wordings in mtg_questions.WORDINGS.values())
    assert len(set(every)) == len(every) == 8 * len(KINDS)
    assert all(("{body}" if kind == "which" else "{name}") in wording for kind in KINDS for wording in mtg_questions.WORDINGS[kind])


# What is left out


def test_what_is_no_card_is_left_out_by_reason(everything, raw, capsys, convert, tmp_path):
    result, sides = everything
    entries = json.loads((SAMPLES / "mtg_scryfall.json").read_text())
    wanted = {"tokens": 1, "emblems": 1, "art series": 1, "planes, schemes and vanguards": 1, "reprints": 2}
    assert {reason: result["left_out"][reason] for reason in wanted} == wanted
    assert result["cards"] == len(raw) == len(entries) - 6
    without_text = sum(not any(face.get("oracle_text") for face in entry.get("card_faces", [entry])) for entry in raw.values())
    assert result["left_out"]["cards without rules text, for text"] == without_text > 0
    capsys.readouterr()
    more = [card(), card("Sticker", type_line="Stickers"), card("Cave", type_line="Dungeon"), card("Two", layout="reversible_card")]
    convert(cards=write(tmp_path / "c.json", more), output=str(tmp_path), kinds=["cost"], held_out=0)
    printed = capsys.readouterr().out
    assert {row["card"] for row in flat(rows(tmp_path))} == {"Lurod Anvil"}
    assert "left out: 2 dungeons, sticker sheets and helper cards" in printed and "Two: reversible cards" in printed
    assert "preview, cost:" in printed and "1 cards of" in printed


def test_a_card_is_taken_once_by_its_oracle_id_and_by_its_name(convert, tmp_path):
    cards = [card(), card("Renamed", oracle_id="id of Lurod Anvil"), card("LUROD ANVIL", oracle_id="another"), card("Other")]
    result = convert(cards=write(tmp_path / "c.json", cards), output=str(tmp_path), kinds=["cost"])
    assert result["cards"] == 2 and result["left_out"]["reprints"] == 2


def test_online_cards_stay_and_are_mentioned(convert, tmp_path, capsys):
    convert(cards=write(tmp_path / "c.json", [card(digital=True), card("Other")]), output=str(tmp_path), kinds=["cost"])
    assert "1 of them printed only online" in capsys.readouterr().out


def test_rulings_of_other_cards_are_counted(convert, tmp_path):
    ruling = {"oracle_id": "elsewhere", "published_at": "2020-01-01", "comment": "No."}
    mine = {**ruling, "oracle_id": "id of Lurod Anvil"}
    files = {"cards": write(tmp_path / "c.json", [card()]), "rulings": write(tmp_path / "r.json", [ruling, mine, mine])}
    result = convert(**files, output=str(tmp_path), kinds=["rulings"], held_out=0)
    assert answers(rows(tmp_path)) == {("Lurod Anvil", "rulings"): "2020-01-01: No."}
    assert result["left_out"] == {"ruled cards that are not among the cards": 1}


def test_a_sample_is_the_first_cards_and_still_knows_all_texts(convert, tmp_path):
    cards = [card("One", oracle_text="Flying"), card("Two"), card("Three", oracle_text="Flying")]
    result = convert(cards=write(tmp_path / "c.json", cards), output=str(tmp_path), sample=2)
    assert {row["card"] for row in flat(rows(tmp_path))} == {"One", "Two"}
    assert {row["card"] for row in flat(rows(tmp_path)) if row["topics"] == ["which"]} == {"Two"}
    assert result["cards"] == 3


BAD = {
    "no name": ({"type_line": "Land"}, "has no name"),
    "blank name": (card(" "), "has no name"),
    "no type": ({"name": "Nothing"}, "has no type line"),
    "a number": (7, "is no object"),
    "null": (None, "is no JSON"),
    "a list as text": (card(oracle_text=["a"]), "oracle_text that is no text"),
    "faces that are none": (card(card_faces={"a": 1}), "card_faces that are no list"),
    "a face that is none": (card(card_faces=["a", "b"]), "is no object"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_card_stops_or_is_skipped_and_counted(convert, tmp_path, name):
    entry, says = BAD[name]
    path = write(tmp_path / "c.json", [card(), entry, card("Other")])
    with pytest.raises(Refusal, match=rf"card 2 of {re.escape(path)} .*{says}.*BAD_CARDS"):
        convert(cards=path, output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    result = convert(cards=path, output=str(tmp_path / "out"), bad_cards="skip")
    assert result["cards"] == 2 and result["left_out"]["bad entries"] == 1


def test_a_broken_line_and_half_a_character_are_named_by_line(convert, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(card()) + "\n\n" + json.dumps(card("Half \ud800")) + "\n" + json.dumps(card("Last"))[:-20])
    with pytest.raises(Refusal, match="line 3 of .* has a name with half a character"):
        convert(cards=str(path), output=str(tmp_path / "out"))
    assert convert(cards=str(path), output=str(tmp_path / "out"), bad_cards="skip")["left_out"]["bad entries"] == 2


def test_a_nameless_entry_of_atomic_cards_is_bad(convert, tmp_path):
    face = {"name": "", "type": "Land", "layout": "normal"}
    with pytest.raises(Refusal, match="card 1 of .* has no name"):
        convert(cards=write(tmp_path / "c.json", {"meta": {}, "data": {"": [face]}}), output=str(tmp_path / "out"))


# What is refused, through the command


def broken(name):
    """Bytes of an input that cannot be used."""
    array = (SAMPLES / "mtg_scryfall.json").read_bytes()
    packed = gzip.compress(array)
    return {
        "array cut short": array[:20_000],
        "array cut in its first card": array[:300],
        "array cut between two cards": array[: array.index(b"\n", 10_000) + 1],
        "array cut before its bracket": array.rstrip()[:-1],
        "a bracket": b"[",
        "atomic cut short": (SAMPLES / "mtg_atomic.json").read_bytes()[:20_000],
        "gzip cut short": packed[:5_000],
        "gzip of lines cut short": gzip.compress(b"".join(json.dumps(entry).encode() + b"\n" for entry in json.loads(array)))[:5_000],
        "gzip damaged": packed[:3_000] + bytes(200) + packed[3_200:],
        "empty array": b"[]",
        "empty AtomicCards": b'{"meta": {}, "data": {}}',
        "empty": b"",
        "numbers": b"[1, 2, 3]",
        "an error": b'{"object": "error", "code": "not_found", "details": "No cards found"}',
        "sets of Scryfall": b'{"object": "list", "data": [{"object": "set", "code": "inv", "name": "Invented"}]}',
        "sets of MTGJSON": b'{"meta": {}, "data": {"INV": {"cards": []}}}',
        "another object": b'{"colours": [], "shapes": []}',
        "no JSON": b"<html>Not found</html>",
        "a JSON string": b'"cards"',
        "a comma missing": b'[{"name": "A", "type_line": "Land"} {"name": "B", "type_line": "Land"}]',
        "bytes": b'[{"name": "A\xff", "type_line": "Land"}]',
        "more after the end": b'[{"name": "A", "type_line": "Land"}] more',
        "only tokens": json.dumps([card(layout="token")]).encode(),
    }[name]


SAYS = {
    "array cut short": r"is cut short after card \d\d: a download that did not end",
    "array cut in its first card": "is cut short after its first bytes",
    "array cut between two cards": r"is cut short after card \d+",
    "array cut before its bracket": "is cut short after card 60",
    "a bracket": "is cut short after its first bytes",
    "atomic cut short": r"is cut short after card \d\d",
    "gzip cut short": "is cut short after its last whole block of gzip",
    "gzip of lines cut short": "is cut short after its last whole block of gzip",
    "gzip damaged": "is damaged gzip",
    "empty array": "holds no cards",
    "empty AtomicCards": "holds no cards",
    "empty": "is empty",
    "numbers": "card 1 of .* is no object",
    "an error": r"is an error that Scryfall answered \(No cards found\)",
    "sets of Scryfall": r"card 1 of .* \(Invented\) has no type line, so it is no card",
    "sets of MTGJSON": r"\(INV\) has no list of faces, as AtomicCards has",
    "another object": "is a JSON object with colours, shapes",
    "no JSON": "is no JSON .it begins with '<html>Not found</htm'",
    "a JSON string": "is no JSON",
    "a comma missing": "is no JSON after card 1",
    "bytes": "is no JSON after its first bytes .*UTF8",
    "more after the end": "is no JSON after card 1",
    "only tokens": r"holds no card \(1 tokens\)",
}


def command(*arguments, **more):
    return subprocess.run([sys.executable, str(COMMAND), *map(str, arguments)], capture_output=True, text=True, timeout=120, **more)


def refused(ended, says):
    """Exit code 2, one sentence on stderr, nothing on stdout, no traceback."""
    assert ended.returncode == 2, ended
    assert re.fullmatch(rf"error: [^\n]*{says}[^\n]*\n", ended.stderr), ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("name", SAYS)
def test_a_file_that_cannot_be_used_is_one_sentence_and_writes_nothing(convert, tmp_path, name):
    (tmp_path / "cards").write_bytes(broken(name))
    with pytest.raises(Refusal, match=SAYS[name]):
        convert(cards=str(tmp_path / "cards"), output=str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["cards"]


def test_the_command_refuses_in_a_sentence_and_leaves_what_was_there(tmp_path):
    (tmp_path / "cut.json").write_bytes(broken("array cut short"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.jsonl").write_text("the old one")
    refused(command("--cards", tmp_path / "cut.json", "--output", out), "cut short after card")
    assert [path.name for path in out.iterdir()] == ["train.jsonl"] and (out / "train.jsonl").read_text() == "the old one"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--cards", "nowhere.json"], "nowhere.json cannot be read .No such file or directory."),
        (["--cards", "."], "cannot be read .Is a directory."),
        (["--rulings", "nowhere.json"], "nowhere.json cannot be read"),
        (["--rulings", SAMPLES / "mtg_scryfall.json"], "RULINGS is .*, which holds cards; name Scryfall's rulings file"),
        (["--kinds", "cost,colour"], "KINDS is .'cost', 'colour'.*'describe'"),
        (["--split-by", "set"], "SPLIT_BY is 'set'; it must be one of 'card', 'wording'"),
        (["--wordings-per-kind", "9"], "WORDINGS_PER_KIND is"),
        (["--held-out", "0.5"], "HELD_OUT is"),
        (["--kinds", "rulings"], "gives no row of rulings .*cards without rulings"),
        (["--output", "a_file/x"], "OUTPUT is a_file/x, and nothing can be written there"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value[:1])),
)
def test_wrong_settings_are_one_sentence(tmp_path, flags, says):
    (tmp_path / "a_file").write_text("")
    base = {"--cards": SAMPLES / "mtg_scryfall.json", "--output": "out"}
    words = [word for pair in (base | {flags[0]: flags[1]}).items() for word in pair]
    refused(command(*words, cwd=tmp_path), says)
    assert not list(tmp_path.rglob("*.jsonl*"))


def test_tiny_through_the_command(tmp_path):
    (tmp_path / "samples").symlink_to(SAMPLES)
    ended = command("--tiny", cwd=tmp_path)
    assert ended.returncode == 0 and ended.stderr == ""
    sides = rows(tmp_path / "data" / "mtg_cards_tiny")
    assert all(sides.values())
    assert all(f"{len(sides[side]):,} rows in {side}.jsonl" in ended.stdout for side in SIDES)
    assert all(f"preview, {kind}:" in ended.stdout for kind in KINDS)


def test_memory_stays_flat_in_a_large_file(tmp_path):
    """30 MB of cards, most of it fields that no question needs: what is held does not grow with them."""
    path = tmp_path / "cards.json"
    padding = {"addresses": ["x" * 400] * 40}
    with path.open("w") as file:
        file.write("[" + ",\n".join(json.dumps(card(f"Name {n}", **padding)) for n in range(1_800)) + "]")
    code = """
import sys, tracemalloc
from common import mtg_files
tracemalloc.start()
print(len(list(mtg_files.cards(sys.argv[1], {}, None, None))), tracemalloc.get_traced_memory()[1])
"""
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    count, peak = map(int, ended.stdout.split())
    assert count == 1_800 and path.stat().st_size > 28e6 and peak < 8e6


def test_an_online_rebalancing_is_on_the_side_of_its_original(convert, tmp_path):
    names = [f"Lurod Anvil {number}" for number in range(40)]
    twins = [card(name=f"{prefix}{name}", oracle_id=f"{prefix}{name}") for name in names for prefix in ("", "A-")]
    convert(cards=write(tmp_path / "cards.json", twins), output=str(tmp_path / "out"), held_out=0.25)
    side_of = {row["card"]: side for side, found in rows(tmp_path / "out").items() for row in found}
    assert len(side_of) == 80 and len(set(side_of.values())) == 3
    assert all(side_of[name] == side_of[f"A-{name}"] for name in names)


def test_an_output_in_which_nothing_can_be_written(convert, tmp_path):
    (tmp_path / "out" / "valid.jsonl").mkdir(parents=True)
    with pytest.raises(Refusal, match="in which valid.jsonl is a directory"):
        convert(cards=str(SAMPLES / "mtg_scryfall.json"), output=str(tmp_path / "out"))
    assert not (tmp_path / "out" / "train.jsonl").exists()

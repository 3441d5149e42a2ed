"""Draft tables to conversations: what stands in a row is what the csv module reads, facts are recounted the slow way, and bad files are
refused with a sentence and nothing written."""

import csv
import gzip
import importlib.util
import io
import json
import re
import runpy
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from common import draft_files
from common.refusal import Refusal
from common.split_files import SIDES, side_of

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "prepare" / "mtg_drafts.py"
SAMPLE = REPOSITORY / "samples" / "mtg_drafts.csv.gz"
QUESTION = re.compile(
    r"You are drafting (?P<expansion>.+) \((?P<event>.+)\)\. Pack (?P<pack>\d+), pick (?P<pick>\d+)\.\n"
    r"The pack: (?P<cards>.+)\.\nYour pool: (?P<pool>.+)\.\n(?P<asked>What do you take|Which two cards do you take)\?"
)
TAKEN = re.compile(r"Players who saw (.+?) took it from ([\d,]+) of ([\d,]+) packs \(([\d.]+)%\)\.")
AT = re.compile(r"They took (.+?) at pick ([\d.]+) of a pack on average \(([\d,]+) picks\)\.")
WON = re.compile(r"The ([\d,]+) drafts that took (.+?) won ([\d.]+)% of their ([\d,]+) matches\.")


@pytest.fixture
def convert(tmp_path):
    spec = importlib.util.spec_from_file_location("mtg_drafts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*paths, **settings):
        settings = {"output": str(tmp_path / "out"), "held_out": 0.2, "min_observations": 20} | settings
        found = module.main(drafts=[str(path) for path in paths or (SAMPLE,)], **settings)
        rows = {side: [json.loads(line) for line in (Path(found["output"]) / f"{side}.jsonl").open(encoding="utf-8")] for side in SIDES}
        return found, rows

    return run


@pytest.fixture
def write_sample(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "samples"))
    import mtg_draft_table

    return mtg_draft_table.write


def raw(path=SAMPLE):
    with gzip.open(path, "rt", encoding="utf-8", newline="") if path.suffix == ".gz" else path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def save(path, rows, header=None):
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, header or list(rows[0]), lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return path


def counted(text):
    cards = Counter()
    for entry in text.split("; "):
        copies, name = re.fullmatch(r"(?:(\d+)x )?(.+)", entry).groups()
        cards[name] += int(copies or 1)
    return cards


def of(row, prefix):
    return Counter({name.removeprefix(prefix): int(value) for name, value in row.items() if name.startswith(prefix) and value != "0"})


def name_of(row):
    return f"draft_{row['draft_id']}_{int(row['pack_number']) + 1}_{int(row['pick_number']) + 1}"


def slow_facts(rows, seed=42, held_out=0.2):
    """The same facts, a card and a draft at a time."""
    seen, taken, places, drafts = Counter(), Counter(), Counter(), defaultdict(dict)
    for row in rows:
        if side_of(row["draft_id"], held_out, seed) != "train":
            continue
        seen.update(of(row, "pack_card_").keys())
        for card in {row["pick"], row.get("pick_2") or row["pick"]}:
            taken[card] += 1
            places[card] += int(row["pick_number"]) + 1
            drafts[card][row["draft_id"]] = (int(row["event_match_wins"]), int(row["event_match_losses"]))
    return seen, taken, places, drafts


def require_facts(answer, card, seen, taken, places, drafts, fewest=20):
    expected = [], [], []
    if seen[card] >= fewest:
        expected[0].append((card, f"{taken[card]:,}", f"{seen[card]:,}", f"{100 * taken[card] / seen[card]:.1f}"))
    if taken[card] >= fewest:
        expected[1].append((card, f"{places[card] / taken[card]:.1f}", f"{taken[card]:,}"))
    if len(drafts[card]) >= fewest:
        wins, losses = (sum(record[at] for record in drafts[card].values()) for at in (0, 1))
        expected[2].append((f"{len(drafts[card]):,}", card, f"{100 * wins / (wins + losses):.1f}", f"{wins + losses:,}"))
    assert tuple([found for found in pattern.findall(answer) if card in found] for pattern in (TAKEN, AT, WON)) == expected


@pytest.mark.parametrize("two", [False, True])
def test_rows_and_facts_are_those_that_the_csv_module_gives(convert, write_sample, tmp_path, two):
    path = tmp_path / "two.csv" if two else SAMPLE
    if two:
        write_sample(path, drafts=72, cards=30, seed=7, two=True)
    table = raw(path)
    found, rows = convert(path)
    by_id = {row["id"]: (side, row) for side in SIDES for row in rows[side]}
    assert len(by_id) == len(table) == sum(found[side] for side in SIDES)
    assert all(rows[side] for side in SIDES)
    facts, stated = slow_facts(table), Counter()
    for row in table:
        side, written = by_id[name_of(row)]
        question, answer = (turn["content"] for turn in written["messages"])
        said = QUESTION.fullmatch(question)
        assert (said["expansion"], said["event"]) == (row["expansion"], row["event_type"])
        assert counted(said["cards"]) == of(row, "pack_card_")
        assert (Counter() if said["pool"] == "empty" else counted(said["pool"])) == of(row, "pool_")
        assert side == side_of(row["draft_id"], 0.2, 42)
        assert written["draft_id"] == row["draft_id"]
        both = [row["pick"]] + ([row["pick_2"]] if row.get("pick_2") else [])
        assert answer.startswith(" and ".join(both) + ".")
        assert said["asked"] == ("Which two cards do you take" if len(both) == 2 else "What do you take")
        for card in both:
            require_facts(answer, card, *facts)
        stated[len(TAKEN.findall(answer)), len(AT.findall(answer)), len(WON.findall(answer))] += 1
    assert sum(times for facts, times in stated.items() if all(facts)) > 20  # all are there for some cards ...
    assert two or sum(times for facts, times in stated.items() if facts[0] and not facts[2]) > 20  # ... and too few for others


def test_the_sample_has_what_the_tests_need():
    table = raw()
    assert {row["rank"] for row in table} == {"gold", "mythic", ""}
    assert {sum(of(row, "pack_card_").values()) for row in table if row["pick_number"] == "0"} == {8, 9}
    assert any("," in row["pick"] for row in table)
    assert any(max(of(row, "pack_card_").values()) > 1 for row in table)
    places = [at for at, row in enumerate(table) if row["draft_id"] == table[0]["draft_id"]]
    assert places[-1] - places[0] >= len(places)  # not neighbours
    assert SAMPLE.stat().st_size < 120_000


def test_the_sample_is_what_the_generator_writes_now(write_sample, tmp_path):
    for name in ("a.csv.gz", "b.csv.gz"):
        write_sample(tmp_path / name)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    assert raw(tmp_path / "a.csv.gz") == raw()


def test_picks_of_the_sample_can_be_learnt():
    """The card that the facts of other drafts rank first is the pick far more often than a card drawn at random."""
    table = raw()
    seen, taken, _, _ = slow_facts(table)
    held_out = [row for row in table if side_of(row["draft_id"], 0.2, 42) != "train" and int(row["pick_number"]) < 4]
    right = sum(max(of(row, "pack_card_"), key=lambda card: taken[card] / seen[card]) == row["pick"] for row in held_out)
    by_chance = sum(1 / len(of(row, "pack_card_")) for row in held_out)
    assert right > 2 * by_chance


def test_facts_do_not_change_with_held_out_drafts(convert, tmp_path):
    table = raw()
    _, before = convert()
    for row in table:
        if side_of(row["draft_id"], 0.2, 42) != "train":
            row["pick"] = sorted(of(row, "pack_card_"))[0]
            row["event_match_wins"], row["event_match_losses"] = "0", "9"
    _, after = convert(save(tmp_path / "other.csv", table))
    assert after["train"] == before["train"]
    assert after["test"] != before["test"]


def test_a_draft_is_on_one_side_and_stays_there(convert, tmp_path):
    table = raw()
    half = {row["draft_id"] for row in table[: len(table) // 2]}
    _, rows = convert()
    _, fewer = convert(save(tmp_path / "half.csv", [row for row in table if row["draft_id"] in half]))
    sides = {side: {row["draft_id"] for row in rows[side]} for side in SIDES}
    assert not (sides["train"] & sides["valid"] or sides["train"] & sides["test"] or sides["valid"] & sides["test"])
    for side in SIDES:
        assert {row["draft_id"] for row in fewer[side]} == sides[side] & half
    _, all_train = convert(held_out=0)
    assert not all_train["valid"] and not all_train["test"]


def test_without_facts_the_answer_is_the_name(convert):
    _, rows = convert(facts=False)
    picks = {name_of(row): row["pick"] for row in raw()}
    assert all(row["messages"][1]["content"] == picks[row["id"]] + "." for side in SIDES for row in rows[side])


def test_filters_count_what_they_take(convert):
    table = raw()
    found, rows = convert(ranks=["mythic", "none"], min_games=100, min_win_rate=0.55)
    other = [row for row in table if row["rank"] == "gold"]
    left = [row for row in table if row["rank"] != "gold"]
    rare = [row for row in left if int(row["user_n_games_bucket"]) < 100]
    left = [row for row in left if int(row["user_n_games_bucket"]) >= 100]
    weak = [row for row in left if float(row["user_game_win_rate_bucket"] or 0) < 0.55]
    assert list(found["skipped"].values()) == [len(other), len(rare), len(weak)]
    assert sum(len(rows[side]) for side in SIDES) == len(left) - len(weak) > 0
    with pytest.raises(Refusal, match=r"RANKS names 'Myth', which is no rank; there are none, bronze, .*mythic"):
        convert(ranks=["Myth"])
    with pytest.raises(Refusal, match=rf"no pick of DRAFTS is left \({len(table):,} picks of other ranks than bronze\)"):
        convert(ranks=["bronze"])


def test_a_sample_is_the_first_drafts_that_the_filters_leave(convert, monkeypatch):
    monkeypatch.setattr(draft_files, "BLOCK", 1 << 14)
    table = raw()
    wanted = list(dict.fromkeys(row["draft_id"] for row in table if row["rank"] == "mythic"))[:3]
    found, rows = convert(ranks=["mythic"], sample=3)
    assert {row["draft_id"] for side in SIDES for row in rows[side]} == set(wanted)
    assert sum(found["skipped"].values()) + sum(found[side] for side in SIDES) < len(table)  # the rest was not read


def test_small_blocks_give_the_same_rows(convert, monkeypatch, tmp_path):
    _, whole = convert(output=str(tmp_path / "whole"))
    for size in (100, 1 << 14):  # less than a line, and some lines
        monkeypatch.setattr(draft_files, "BLOCK", size)
        _, parts = convert(output=str(tmp_path / "parts"), sample=None)
        assert parts == whole


def test_columns_may_stand_anywhere_and_unknown_ones_are_named(convert, tmp_path, capsys):
    table = raw()
    _, expected = convert()
    mixed = [dict(sorted(row.items(), key=lambda item: item[0].removeprefix("pool_").removeprefix("pack_card_"))) for row in table]
    for name, rows in {
        "at_the_end": [row | {"user_n_games_bucket": row.pop("user_n_games_bucket"), "why": "x"} for row in table],
        "mixed": [row | {"why": "x"} for row in mixed],
    }.items():
        _, found = convert(save(tmp_path / f"{name}.csv", rows))
        assert {row["id"]: row for row in found["train"]}.keys() == {row["id"]: row for row in expected["train"]}.keys()
        assert [row["messages"][1] for row in found["train"]] == [row["messages"][1] for row in expected["train"]]
        assert "columns that are not known and not used: why\n" in capsys.readouterr().out


def test_counts_of_two_digits_line_ends_of_windows_and_no_last_line_end(convert, tmp_path):
    table = raw()
    name = next(key for key in table[5] if key.startswith("pool_"))
    table[5][name] = "12"
    path = save(tmp_path / "two_digits.csv", table)
    windows = tmp_path / "windows.csv"
    windows.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    _, found = convert(path)
    _, same = convert(windows)
    assert same.keys() == found.keys() and all(sorted(map(str, same[side])) == sorted(map(str, found[side])) for side in SIDES)
    row = next(row for side in SIDES for row in found[side] if row["id"] == name_of(table[5]))
    assert f"12x {name.removeprefix('pool_')}" in row["messages"][0]["content"]


def test_two_files_of_two_expansions_have_facts_of_their_own(convert, write_sample, tmp_path):
    write_sample(tmp_path / "other.csv", drafts=24, cards=30, seed=42, expansion="TWO")  # shares names with the sample
    _, alone = convert()
    _, both = convert(SAMPLE, tmp_path / "other.csv")
    assert [row for row in both["train"] if "drafting INV" in row["messages"][0]["content"]] == alone["train"]
    assert any("drafting TWO" in row["messages"][0]["content"] for row in both["train"])
    with pytest.raises(Refusal, match="twice"):
        convert(SAMPLE, SAMPLE)


def test_the_kind_of_file_is_told_from_its_content(convert, tmp_path):
    _, expected = convert()
    (tmp_path / "plain.csv.gz").write_bytes(gzip.decompress(SAMPLE.read_bytes()))
    (tmp_path / "zipped.csv").write_bytes(SAMPLE.read_bytes())
    for name in ("plain.csv.gz", "zipped.csv"):
        assert convert(tmp_path / name)[1] == expected


BAD_ROWS = {
    "rows without a pick": {"pick": ""},
    "rows without a draft_id": {"draft_id": ""},
    "rows whose pick is not in its pack": {"pick": "Nobody's Card"},
    "rows with a card count that is no whole number from 0 to 255": {"pool_": "many"},
    "rows with a pack, pick, win or loss number that is none": {"pick_number": "first"},
    "rows with fewer or more fields than the header": None,
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_bad_row_stops_with_its_line_or_is_counted(convert, tmp_path, reason):
    table, change = raw(), BAD_ROWS[reason]
    for at in (700, 901):
        for key, value in (change or {}).items():
            table[at][key if key in table[at] else next(name for name in table[at] if name.startswith(key))] = value
    path = save(tmp_path / "bad.csv", table)
    if change is None:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        lines[701], lines[902] = lines[701].rsplit(",", 1)[0] + "\n", lines[902].rstrip() + ",0\n"
        path.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(Refusal, match=rf"bad\.csv line 702 is one of {reason}"):
        convert(path)
    assert not list((tmp_path / "out").iterdir())
    found, rows = convert(path, bad_rows="skip")
    assert found["skipped"] == {reason: 2}
    good = {name_of(row) for at, row in enumerate(raw()) if at not in (700, 901)}
    assert {row["id"] for side in SIDES for row in rows[side]} == good


def cut(text):
    return text[: text.rindex("\n", 0, -1) + 200]


SAMPLE_TEXT = gzip.decompress(SAMPLE.read_bytes()).decode()
HEADER = SAMPLE_TEXT.split("\n")[0] + "\n"
REFUSED = {
    "without columns": (SAMPLE_TEXT.replace("event_match_wins", "wins", 1).replace(",pick,", ",chosen,", 1).encode(),
                        "has no column pick, event_match_wins;"),
    "without a pack": (SAMPLE_TEXT.replace("pack_card_", "card_").encode(), "has no pack_card_ columns"),
    "without a pool": (SAMPLE_TEXT.replace("pool_", "deck_").encode(), "has no pool_ columns"),
    "a column twice": (SAMPLE_TEXT.replace("draft_time", "draft_id", 1).encode(), "has the column draft_id twice"),
    "cut": (cut(SAMPLE_TEXT).encode(), "is cut in its last row, line 1633, after "),
    "gzip cut": (SAMPLE.read_bytes()[:20_000], "is gzip that is cut short or damaged"),
    "gzip damaged": (SAMPLE.read_bytes()[:9000] + b"\0" * 999 + SAMPLE.read_bytes()[9999:], "is gzip that is cut short or damaged"),
    "no CSV": (bytes(range(128, 256)) * 99, "does not begin with a CSV header"),
    "empty": (b"", "is empty"),
    "empty gzip": (gzip.compress(b""), "is empty"),
    "header only": (HEADER.encode(), "has a header and no rows"),
    "missing": (None, "does not exist"),
    "a directory": ("directory", "is a directory"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_used_is_refused_by_the_command(tmp_path, monkeypatch, capsys, name):
    content, sentence = REFUSED[name]
    path = tmp_path / "drafts.csv.gz"
    if content == "directory":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--drafts", str(path), "--output", str(tmp_path / "out"), "--bad-rows", "skip"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    found = capsys.readouterr().err
    assert ended.value.code == 2
    assert found.startswith("error: ") and found.count("\n") == 1 and sentence in found and str(path) in found
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_filter_without_its_column_is_refused(convert, tmp_path):
    path = save(tmp_path / "old.csv", raw(), [name for name in raw()[0] if not name.startswith("user_")])
    convert(path)
    with pytest.raises(Refusal, match="has no column user_n_games_bucket, which MIN_GAMES filters by"):
        convert(path, min_games=10)


def test_the_command_on_the_sample(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", "--output", str(tmp_path / "out")]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0 and not ended.stderr
    assert "rows by kind: 1,632 draft picks" in ended.stdout and "preview, draft picks:" in ended.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test.jsonl", "train.jsonl", "valid.jsonl"]
    assert next(csv.reader(io.StringIO(HEADER)))[9] == "pick"

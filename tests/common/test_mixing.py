"""Splitting and weighting, on many random data sets: nothing leaks, counts are exact, the result is the same everywhere."""

import json
import random
from collections import Counter

import pytest

from common import chat_rows, mixing
from common.chat_rows import Row
from common.refusal import Refusal


def make_rows(seed, groups=40, files=2, shared_questions=0.1):
    """Random rows; some groups share a question (in other letters and spaces), groups have 1 to 6 answers, also across files."""
    draw = random.Random(seed)
    rows, questions, lines = [], [], Counter()
    for group in range(groups):
        question = f"What is   the Mean of {seed} and {group}?"
        if questions and draw.random() < shared_questions:
            question = draw.choice(questions).lower().replace("   ", "\n")
        questions.append(question)
        for answer in range(draw.randint(1, 6)):
            file = f"file{draw.randrange(files)}.jsonl"
            lines[file] += 1
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"answer {answer}"}]
            rows.append(Row(f"g{group}_x_{answer}", f"g{group}_x", messages, file, lines[file]))
    return rows


def asked(row):
    return " ".join(row.messages[0]["content"].lower().split())


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("held_out", [0.05, 0.2, 0.5])
def test_no_group_and_no_question_is_on_two_sides(seed, held_out):
    rows = make_rows(seed)
    sides = mixing.split(rows, held_out, seed)
    assert sorted(map(id, rows)) == sorted(id(row) for side in sides for row in side)
    for of in (lambda row: row.group, asked):
        found = [{of(row) for row in side} for side in sides]
        assert not found[0] & found[1]
        assert not found[0] & found[2]
        assert not found[1] & found[2]
    assert all(sides)
    largest = max(Counter(map(asked, rows)).values())
    for side in sides[1:]:
        assert abs(len(side) - held_out * len(rows) / 2) <= 3 * largest


@pytest.mark.parametrize("seed", range(10))
def test_weighting_after_the_split_never_leaks(seed):
    rows = make_rows(seed)
    train, validation, test = mixing.split(rows, 0.2, seed)
    weighted = mixing.weigh(train, {"file0.jsonl": 2.5, "file1.jsonl": 0.5}, seed)
    held = {asked(row) for row in validation + test}
    assert held
    assert not held & {asked(row) for row in weighted}


def test_the_split_depends_on_the_seed_and_on_nothing_else():
    rows = make_rows(1)
    first = [[row.id for row in side] for side in mixing.split(rows, 0.2, 5)]
    assert first == [[row.id for row in side] for side in mixing.split(make_rows(1), 0.2, 5)]
    assert first != [[row.id for row in side] for side in mixing.split(rows, 0.2, 6)]
    turned = mixing.split(rows[::-1], 0.2, 5)
    assert [{row.id for row in side} for side in turned] == [set(side) for side in first]


@pytest.mark.parametrize("seed", range(10))
def test_groups_keep_their_side_when_rows_are_added(seed):
    few, many = make_rows(seed, groups=100, shared_questions=0), make_rows(seed, groups=110, shared_questions=0)
    places = [{row.group: place for place, side in enumerate(mixing.split(rows, 0.2, 3)) for row in side} for rows in (few, many)]
    moved = sum(places[0][group] != places[1][group] for group in places[0])
    assert moved <= 8, f"{moved} of 100 groups moved"


@pytest.mark.parametrize("held_out", [1, 1.5, 10])
def test_a_share_is_below_one(held_out):
    with pytest.raises(Refusal, match=rf"HELD_OUT is {held_out}; .* below 1"):
        mixing.split(make_rows(0), held_out, 1)


def test_nothing_held_out():
    rows = make_rows(0)
    assert mixing.split(rows, 0, 1) == (rows, [], [])


@pytest.mark.parametrize("groups", [1, 2])
def test_too_few_sources(groups):
    with pytest.raises(Refusal, match=rf"{groups} source question.*at least 3.*HELD_OUT = 0"):
        mixing.split(make_rows(0, groups=groups, shared_questions=0), 0.1, 1)


def groups_of(*sizes):
    """Rows of one group for each size, every group with a question of its own."""
    return [
        Row(f"g{group}_{n}", f"g{group}", [{"role": "user", "content": f"What is {group}?"}], "a.jsonl", n)
        for group, size in enumerate(sizes)
        for n in range(size)
    ]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("size", "held_out"), [(1, 0.05), (1, 0.5), (1, 0.99), (4, 0.67), (4, 0.99)])
def test_three_sources_fill_three_sides(seed, size, held_out):
    assert all(mixing.split(groups_of(size, size, size), held_out, seed))


@pytest.mark.parametrize("seed", range(60))
def test_a_group_larger_than_a_side_wants_is_never_held_out(seed):
    rows, report = groups_of(400, 60, *[1] * 50), {}
    train, validation, test = mixing.split(rows, 0.1, seed, report)
    assert {"g0", "g1"} <= {row.group for row in train}
    for side in (validation, test):
        assert 0 < len(side) <= 0.1 * len(rows) / 2 + 1
    assert report["too_large"] == {"groups": 2, "rows": 460, "largest": "g0", "largest_rows": 400}


def test_the_other_groups_keep_their_side_beside_a_large_one():
    many = groups_of(*[3] * 400)
    large = [Row(f"huge_{n}", "huge", [{"role": "user", "content": "The same?"}], "a.jsonl", n) for n in range(70)]
    places = [{row.group: place for place, side in enumerate(mixing.split(rows, 0.1, 3)) for row in side} for rows in (many, many + large)]
    assert sum(places[0][group] != places[1][group] for group in places[0]) <= 8


def test_nothing_is_said_of_large_groups_where_there_is_none():
    report = {}
    mixing.split(groups_of(*[2] * 50), 0.1, 1, report)
    assert report == {}


@pytest.mark.parametrize("sizes", [(30, 30, 30), (100, 80, 1), (200, 100, 50, 40)])
def test_only_large_groups_are_refused(sizes):
    with pytest.raises(Refusal, match=rf"HELD_OUT = 0.1 .*the largest has {sizes[0]}.*SPLIT_BY"):
        mixing.split(groups_of(*sizes), 0.1, 1)


@pytest.mark.parametrize("count", [1, 2, 3, 100, 101])
@pytest.mark.parametrize("weight", [0.5, 1.0, 1.5, 2.0, 2.25])
def test_weights_give_exact_counts(weight, count):
    rows = [Row(f"r{n}", f"r{n}", [{"role": "user", "content": str(n)}], "a.jsonl", n) for n in range(count)]
    if round(weight % 1 * count) + int(weight) * count == 0:
        with pytest.raises(Refusal, match="no row to train on"):
            mixing.weigh(rows, {"a.jsonl": weight}, 1)
        return
    weighted = mixing.weigh(rows, {"a.jsonl": weight}, 1)
    times = Counter(row.id for row in weighted)
    assert abs(len(weighted) - weight * count) <= 0.5
    assert set(times.values()) <= {int(weight), int(weight) + 1}
    assert [row.id for row in weighted] == sorted((row.id for row in weighted), key=lambda name: int(name[1:]))
    assert weighted == mixing.weigh(rows[::-1], {"a.jsonl": weight}, 1)[::-1]


def test_a_weight_of_zero_leaves_the_file_out():
    rows = make_rows(3)
    weighted = mixing.weigh(rows, {"file0.jsonl": 0, "file1.jsonl": 1}, 1)
    assert weighted == [row for row in rows if row.file == "file1.jsonl"]
    with pytest.raises(Refusal, match="no row to train on"):
        mixing.weigh(rows, {"file0.jsonl": 0, "file1.jsonl": 0}, 1)


def test_which_half_is_kept_depends_on_the_seed():
    rows = make_rows(3, files=1)
    first, second = (mixing.weigh(rows, {"file0.jsonl": 0.5}, seed) for seed in (1, 2))
    assert len(first) == len(second)
    assert [row.id for row in first] != [row.id for row in second]


def test_a_held_out_file_without_the_rows_that_training_has(tmp_path):
    pairs = [("a", "b"), ("c", "d"), ("e", "f")]
    file = tmp_path / "valid.jsonl"
    file.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs))
    trained, _ = chat_rows.parse(b'{"question": "c", "answer": "d"}', "t", 7)
    seen = mixing.seen_as("training", [trained])
    report = {"rows_read": 10, "bad_rows": [], "bad_row_count": 0}
    with pytest.raises(Refusal, match=r"valid.jsonl shares 1 of its 3 rows .* \(line 2: it is in the training rows too, t line 7\)"):
        mixing.held_out_rows("validation", file, seen, report)
    kept = mixing.held_out_rows("validation", file, seen, report, bad_rows="skip")
    assert [asked(row) for row in kept] == ["a", "e"]
    assert report["rows_read"] == 13 and report["bad_row_count"] == 1 and report["bad_rows"][0]["line"] == 2
    assert len(mixing.held_out_rows("validation", file, {}, report)) == 3
    with pytest.raises(Refusal, match="has no row that is not in the other files too"):
        mixing.held_out_rows("test", file, seen, report, bad_rows="skip")


def case(document, summary, system="Be brief."):
    messages = [("system", system), ("user", document), ("assistant", summary)]
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def test_a_held_out_file_without_the_documents_that_training_has(tmp_path):
    """Another summary, another system prompt, other white space and letter case: the document is the same."""
    file = tmp_path / "valid.jsonl"
    held_out = [case("Roe", "a"), case("DOE\n v. roe", "another"), case("Doe v.  Roe", "x", system="Be long."), case("Roe", "again")]
    file.write_text("".join(json.dumps(row) + "\n" for row in held_out))
    trained, _ = chat_rows.parse(json.dumps(case("Doe v. Roe", "a summary")).encode(), "t", 7)
    report = {"rows_read": 10, "bad_rows": [], "bad_row_count": 0}
    assert len(mixing.held_out_rows("validation", file, mixing.seen_as("training", [trained]), dict(report, bad_rows=[]))) == 4
    seen = mixing.seen_as("training", [trained], by="document")
    shared = r"valid.jsonl shares 1 of its 2 documents .*\(line 2: its document is in the training rows too, t line 7; line 3: its document"
    with pytest.raises(Refusal, match=shared):
        mixing.held_out_rows("validation", file, seen, report, by="document")
    kept = mixing.held_out_rows("validation", file, seen, report, bad_rows="skip", by="document")
    assert [row.messages[1]["content"] for row in kept] == ["Roe", "Roe"]
    assert [bad["line"] for bad in report["bad_rows"]] == [2, 3] and report["rows_read"] == 14
    with pytest.raises(Refusal, match="shares 2 of its 2 documents .*line 1: its document is in the validation rows too, .*valid.jsonl"):
        mixing.held_out_rows("test", file, seen, report, by="document")
    with pytest.raises(Refusal, match="has no document that is not in the other files too; name a file of documents that are held out"):
        mixing.held_out_rows("test", file, seen, report, bad_rows="skip", by="document")


WHOLE = "The claim was filed. It was heard at length. It was denied."


@pytest.mark.parametrize(
    ("trained", "held_out"),
    [
        (("The claim was filed. [...]", WHOLE), ("[...] It was denied.", WHOLE)),  # shortened in two ways
        (("The claim was filed. [...]", WHOLE), (WHOLE.upper(), None)),  # not shortened by a converter
        ((WHOLE, None), ("The claim was filed. [...]", WHOLE)),
        (("The claim was filed. [...]", WHOLE), ("The claim was filed.\n[...]", None)),  # its field was lost
        (("The claim was filed. [...]", None), ("The claim was filed. [...]", WHOLE)),
    ],
)
def test_a_document_is_the_same_however_it_was_shortened(tmp_path, trained, held_out):
    def line(text, whole, summary):
        return json.dumps(case(text, summary) | ({"document": mixing.document_digest(whole)} if whole else {}))

    file = tmp_path / "valid.jsonl"
    file.write_text(line("Another.", None, "x") + "\n" + line(*held_out, "y") + "\n")
    row, _ = chat_rows.parse(line(*trained, "a").encode(), "t", 7)
    report = {"rows_read": 10, "bad_rows": [], "bad_row_count": 0}
    seen = mixing.seen_as("training", [row], by="document")
    with pytest.raises(Refusal, match=r"shares 1 of its 2 documents .*\(line 2: its document is in the training rows too, t line 7\)"):
        mixing.held_out_rows("validation", file, seen, report, by="document")
    kept = mixing.held_out_rows("validation", file, seen, report, bad_rows="skip", by="document")
    assert [row.messages[1]["content"] for row in kept] == ["Another."]
    other = [Row(f"r{n}", f"r{n}", case(f"Number {n}", "x")["messages"], "o.jsonl", n) for n in range(40)]
    two = [chat_rows.parse(line(*given, "s").encode(), "o.jsonl", 50 + n)[0] for n, given in enumerate((trained, held_out))]
    for n, given in enumerate(two):
        given.group = f"of converter {n}"
    for seed in range(20):
        sides = mixing.split([*other, *two], 0.5, seed)
        assert sum(any(row in two for row in side) for side in sides) == 1


def test_rows_of_one_document_are_one_whichever_digests_they_have(tmp_path):
    """The second is the document of training by its field, the first and the third by the text they share with it."""
    file, digest = tmp_path / "valid.jsonl", mixing.document_digest(WHOLE)
    rows = [case("Filed. [...]", "a"), case("Filed. [...]", "b") | {"document": digest}, case("Filed. [...]", "c"), case("Other.", "d")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained, _ = chat_rows.parse(json.dumps(case("[...] Denied.", "x") | {"document": digest}).encode(), "t", 7)
    seen, report = mixing.seen_as("training", [trained], by="document"), {"rows_read": 1, "bad_rows": [], "bad_row_count": 0}
    with pytest.raises(Refusal, match="shares 1 of its 2 documents .*line 1: .*line 2: .*line 3: "):
        mixing.held_out_rows("validation", file, seen, report, by="document")
    kept = mixing.held_out_rows("validation", file, seen, report, bad_rows="skip", by="document")
    assert [row.messages[1]["content"] for row in kept] == ["Other."]
    (tmp_path / "test.jsonl").write_text(json.dumps(case("Other.", "e")) + "\n")
    with pytest.raises(Refusal, match="its document is in the validation rows too"):
        mixing.held_out_rows("test", tmp_path / "test.jsonl", seen, report, by="document")

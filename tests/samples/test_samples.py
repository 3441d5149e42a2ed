"""The committed sample data: what the generator writes, correct, split by family, and unseen by the base model's text."""

import calendar
import json
import re
import subprocess
import sys
from fractions import Fraction
from math import comb, isqrt
from pathlib import Path

import pytest

from common import case_files

SAMPLES = Path(__file__).parents[2] / "samples"
SETS = ("cross_validated.jsonl", "arxiv.jsonl")
MTG = (
    *("mtg_scryfall.json", "mtg_rulings.json", "mtg_atomic.json", "mtg_base_chats.jsonl"),
    *("mtg_facts/train.jsonl", "mtg_facts/valid.jsonl", "mtg_facts/test.jsonl"),
)
LONG_CASES = ("legal_summaries/train.jsonl", "legal_summaries/valid.jsonl", "legal_summaries/test.jsonl")
LEGAL = ("legal_cases.jsonl", *LONG_CASES)
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?!\w)")
FINAL = re.compile(r"So the [^.]*? (?:is|are) (-?[\d.]+)(?: to (-?[\d.]+))?(?: percent)?\. Source: ")


def rows(name):
    return [json.loads(line) for line in (SAMPLES / name).read_text(encoding="utf-8").splitlines()]


def worked(name):
    return [row for row in rows(name) if "_concept/" not in row["family"]]


def quantity(row):
    return re.fullmatch(r"(?:cv|arxiv)_(\w+)/\d", row["family"]).group(1)


def closest(square, places):
    """The non-negative decimal with `places` places whose square lies next to `square`, found by whole numbers only."""
    scaled = square * 100**places
    below = isqrt(scaled.numerator // scaled.denominator)
    return Fraction(below + (scaled > Fraction(2 * below + 1, 2) ** 2), 10**places)


# A second way to each figure, from the numbers in the question: told apart by their size where it does, else by their order.
def rate_error(numbers):
    x, n = sorted(numbers)
    return [closest(x * (n - x) / n**3, 8)]


def interval(numbers):
    error, rate = sorted(number for number in numbers if number != 95)
    return [rate - 2 * error + error / 25, rate + 2 * error - error / 25]


def bigger_first(numbers):
    low, high = sorted(numbers)
    return [1 / (low / high)]


def mean_error(numbers):
    s, n = sorted(numbers)
    return [closest(s * s / n, 8)]


def false_positives(numbers):
    """The binomial mean by its definition for small m, by linearity in m for the rest."""
    alpha, m = sorted(numbers)
    ten = sum(k * comb(10, k) * alpha**k * (1 - alpha) ** (10 - k) for k in range(11))
    return [ten * m / 10]


def cohort_variance(numbers):
    """Size times the mean correlation of all ordered pairs within a cluster, a member with itself included."""
    icc, m = sorted(numbers)
    return [m * (m * 1 + m * (m - 1) * icc) / (m * m)]


def sample_size(numbers):
    """The smallest whole n with n d^2 >= 16 s^2, both sides times 4 to stay whole."""
    d, s = sorted(numbers)
    n = 1
    while n * int(4 * d * d) < int(64 * s * s):
        n += 1
    return [Fraction(n)]


def posterior(question):
    prior = re.search(r"Beta\((\d+), (\d+)\)", question)
    a, b = (Fraction(number) for number in prior.groups())
    x, n = sorted(Fraction(number) for number in NUMBER.findall(question.replace(prior.group(), "")))
    weight = (a + b) / (a + b + n)
    return [weight * (a / (a + b)) + (1 - weight) * (x / n)]


def mismatch(numbers):
    expected = sum(numbers) / 2
    return [sum((count - expected) ** 2 / expected for count in numbers)]


def rank_threshold(numbers):
    q, k, m = sorted(numbers)
    return [q / (m / k)]


def difference_of_rates(numbers):
    n = max(numbers)
    a, b = (number for number in numbers if number != n)
    return [(b - a) / n]


SECOND_FORMULA = {
    "standard_error_of_a_rate": rate_error,
    "interval_of_a_rate": interval,
    "difference_of_two_rates": difference_of_rates,
    "z_statistic_of_two_rates": lambda numbers: [numbers[0] * (1 / numbers[1])],
    "standard_error_of_a_mean": mean_error,
    "relative_lift": lambda numbers: [100 * (numbers[1] / numbers[0] - 1)],
    "expected_conversions": lambda numbers: [numbers[0] * numbers[1] / 100],
    "odds": lambda numbers: [1 / (1 / numbers[0] - 1)],
    "bonferroni_threshold": lambda numbers: [min(numbers) * (1 / max(numbers))],
    "pooled_rate": lambda n: [(n[0] / n[1]) * n[1] / (n[1] + n[3]) + (n[2] / n[3]) * n[3] / (n[1] + n[3])],
    "variance_left_by_cuped": lambda numbers: [(1 - numbers[0]) * (1 + numbers[0])],
    "sample_size_per_arm": sample_size,
    "expected_false_positives": false_positives,
    "design_effect": cohort_variance,
    "effective_sample_size": bigger_first,
    "srm_chi_square": mismatch,
    "benjamini_hochberg_threshold": rank_threshold,
    "minimum_detectable_effect": lambda numbers: [closest(16 * min(numbers) ** 2 / max(numbers), 8)],
    "difference_in_differences": lambda n: [(n[1] + n[2]) - (n[0] + n[3])],
}
PLACES = {"z_statistic_of_two_rates": 2, "relative_lift": 1, "srm_chi_square": 2, "effective_sample_size": 0, "expected_conversions": 0}


def recomputed(row):
    question = row["messages"][1]["content"]
    if quantity(row) == "beta_posterior_mean":
        return posterior(question)
    return SECOND_FORMULA[quantity(row)]([Fraction(number) for number in NUMBER.findall(question)])


def test_committed_files_are_what_the_generator_writes_now(tmp_path):
    subprocess.run([sys.executable, str(SAMPLES / "generate.py"), str(tmp_path)], check=True)
    for name in (*SETS, "questions.csv", "base_prose.txt", "base_chats.jsonl", *MTG, *LEGAL):
        assert (tmp_path / name).read_bytes() == (SAMPLES / name).read_bytes(), f"samples/{name}: run python samples/generate.py"


def test_sizes_ids_and_families():
    both = [rows(name) for name in SETS]
    ids = [row["id"] for part in both for row in part]
    assert len(ids) == len(set(ids))
    families = [{row["family"] for row in part} for part in both]
    assert all(len(part) >= 150 for part in both)
    assert all(len(part) >= 50 for part in families)
    assert not families[0] & families[1]
    assert all(re.fullmatch(r"cv_\d+_\d+", row["id"]) for row in both[0])
    assert all(re.fullmatch(r"arxiv_\w+_\d+", row["id"]) for row in both[1])


@pytest.mark.parametrize("name", SETS)
def test_each_row_is_a_short_question_with_an_answer_that_names_its_source(name):
    questions = set()
    for row in rows(name):
        system, user, assistant = row["messages"]
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert len(system["content"].split()) <= 20
        assert len(user["content"].split()) <= 45
        assert 25 <= len(assistant["content"].split()) <= 60, row["id"]
        assert assistant["content"].endswith(f" Source: {row['source']}.")
        assert row["topics"] and "{" not in user["content"] + assistant["content"]
        questions.add(user["content"])
    assert len(questions) == len(rows(name))


@pytest.mark.parametrize("name", SETS)
def test_every_worked_figure_is_right(name):
    """Exact: the stated figure lies within half a unit of its last place of a figure found by another formula from the question."""
    found = worked(name)
    assert len(found) >= 250
    for row in found:
        stated = [Fraction(figure) for figure in FINAL.search(row["messages"][2]["content"]).groups() if figure]
        wanted = recomputed(row)
        half = Fraction(1, 2 * 10 ** PLACES.get(quantity(row), 4))
        assert len(stated) == len(wanted) and all(abs(a - b) <= half for a, b in zip(stated, wanted, strict=True)), row


@pytest.mark.parametrize("name", SETS)
def test_every_equation_inside_the_answers_holds(name):
    """Each `2 * 3 / 4 = 1.5` on the way, square roots and powers included: both sides agree to the places that were promised."""
    equation = re.compile(r"((?:sqrt\()?-?\d[\d.]*(?: ?[-+*/^] ?-?\d[\d.]*)*\)?) = (-?\d+(?:\.\d+)?)(?! ?[-+*/^\d])")
    checked = 0
    for row in worked(name):
        for left, right in equation.findall(row["messages"][2]["content"]):
            code = re.sub(r"\d+(?:\.\d+)?", lambda number: f"Fraction('{number.group()}')", left).replace("^", "**")
            value = eval(code, {"Fraction": Fraction, "sqrt": lambda square: closest(square, 8)})  # our own committed file
            half = Fraction(1, 2 * 10 ** PLACES.get(quantity(row), 4))
            assert abs(value - Fraction(right)) <= half, (row["id"], left, right)
            checked += 1
    assert checked >= len(worked(name))


@pytest.mark.parametrize("name", SETS)
def test_verdicts_agree_with_the_critical_value(name):
    for row in worked(name):
        answer = row["messages"][2]["content"]
        limit = re.search(r"(above|below) (1\.96|3\.84)", answer)
        if limit:
            figure, critical = Fraction(FINAL.search(answer).group(1)), Fraction(limit.group(2))
            assert (limit.group(1) == "above") == (figure > critical), row["id"]
            assert ("not significant" in answer or "may well" in answer) == (figure < critical), row["id"]


def runs_of_words(text, length=9):
    """Every run of `length` words in lower case, every number standing as #, so that other figures do not hide the same sentence."""
    words = ["#" if word[0].isdigit() else word for word in re.findall(r"[a-z]+|\d[\d.,]*", text.lower())]
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def test_the_base_text_holds_no_question_and_no_answer():
    base = set()
    for line in (SAMPLES / "base_prose.txt").read_text(encoding="utf-8").splitlines():
        base |= runs_of_words(line)
    for chat in rows("base_chats.jsonl"):
        for message in chat["messages"]:
            base |= runs_of_words(message["content"])
    assert len(base) > 1000
    for name in SETS:
        for row in rows(name):
            for message in row["messages"][1:]:
                assert not runs_of_words(message["content"]) & base, row["id"]


def test_the_base_text_does_not_know_the_manner_of_the_answers():
    text = (SAMPLES / "base_prose.txt").read_text(encoding="utf-8")
    assert 250_000 <= len(text) <= 400_000
    chats = "\n".join(chat["messages"][-1]["content"] for chat in rows("base_chats.jsonl"))
    assert not re.search(r"Step \d|Source:", text + chats)
    copies = [line for line in text.splitlines() if line.startswith("Original: ")]
    assert 0.25 < sum(map(len, copies)) / len(text) < 0.35
    assert all(re.fullmatch(r"Original: (.+) Copy: \1", line) for line in copies)


def test_base_chats_are_short_and_mixed():
    chats = rows("base_chats.jsonl")
    assert len(chats) >= 500
    roles = {tuple(message["role"] for message in chat["messages"]) for chat in chats}
    assert roles == {("user", "assistant"), ("system", "user", "assistant")}
    assert all(len(chat["messages"][-1]["content"].split()) <= 45 for chat in chats)


# Invented Magic cards


@pytest.fixture
def mtg(monkeypatch):
    monkeypatch.syspath_prepend(str(SAMPLES))
    import mtg

    return mtg


def size(*names):
    return sum((SAMPLES / name).stat().st_size for name in names)


def test_card_files_are_small(mtg):
    assert size(*MTG[:3]) < 150_000 and size(*MTG[4:]) < 600_000 and size(MTG[3]) < 400_000
    assert 55 <= len(json.loads((SAMPLES / "mtg_scryfall.json").read_text(encoding="utf-8"))) <= 70


def test_invented_cards_are_as_many_as_wanted_and_the_same_ones_for_a_seed(mtg):
    cards = mtg.invented_cards(500, 3)
    assert cards == mtg.invented_cards(500, 3) and cards[:20] == mtg.invented_cards(20, 3) and cards != mtg.invented_cards(500, 4)
    assert len({card["name"] for card in cards}) == len({card["oracle_id"] for card in cards}) == 500
    words = " ".join(card["type_line"] for card in cards)
    kinds = ("Creature", "Instant", "Sorcery", "Artifact", "Enchantment", "Planeswalker", "Land", "Vehicle", "Legendary", " // ")
    assert all(kind in words for kind in kinds) and any("," in card["name"] for card in cards)
    assert {card["layout"] for card in cards} == {"normal", "transform", "adventure", "split", "modal_dfc", "flip"}
    taken = {card["name"] for card in cards}
    others = mtg.invented_cards(500, 3, simple=True, taken=taken)
    assert not taken & {card["name"] for card in others}
    assert all(card["layout"] == "normal" and "power" in card for card in others)


def test_facts_are_three_of_each_of_100_cards_in_six_wordings_and_two_that_are_held_out(mtg):
    raw = {card["name"]: card for card in mtg.facts()}
    assert len(raw) == 100
    keys = {"cost": "mana_cost", "type": "type_line"}
    counts = {}
    for side in ("train", "valid", "test"):
        for row in rows(f"mtg_facts/{side}.jsonl"):
            card, kind = raw[row["card"]], row["topics"][0]
            wanted = card[keys[kind]] if kind in keys else f"{card['power']}/{card['toughness']}"
            assert row["messages"][1]["content"] == wanted and row["card"] in row["messages"][0]["content"]
            counts[side, row["card"], kind] = counts.get((side, row["card"], kind), 0) + 1
    times = {"train": 6, "valid": 1, "test": 1}
    assert counts == {(side, name, kind): times[side] for side in times for name in raw for kind in mtg.FACT_KINDS}


def test_the_base_knows_every_wording_of_the_facts_and_none_of_the_facts(mtg):
    questions = [chat["messages"][0]["content"] for chat in rows("mtg_base_chats.jsonl")]
    learned = {card["name"] for card in mtg.facts()}
    assert not any(name in question for name in learned for question in questions)
    taken = [card["name"] for card in mtg.invented_cards(150, mtg.BASE_SEED, simple=True, taken=learned)]
    named = re.compile("|".join(map(re.escape, taken)))
    wordings = [named.sub("{name}", question) for question in questions]
    assert {named.search(question).group() for question in questions} == set(taken)
    times = {wording: wordings.count(wording) for wording in set(wordings)}
    assert len(times) == 24 and max(times.values()) <= 1.2 * min(times.values())
    facts = [row for side in ("train", "valid", "test") for row in rows(f"mtg_facts/{side}.jsonl")]
    assert {row["messages"][0]["content"].replace(row["card"], "{name}") for row in facts} == set(times)


# Invented case files

PARTS = {"beginning": ("claimant", "judge"), "middle": ("expert", "witness"), "end": ("trustee", "clerk")}
REACH = {"beginning": (0.0, 0.2), "middle": (0.4, 0.6), "end": (0.8, 1.0)}  # of a document's characters
PART = re.compile(r"\b(claimant|judge|expert|witness|trustee|clerk)\b(?: ([A-Z][a-z]+))?", re.I)
STARTS = {
    *("A", "All", "Both", "Brought", "Counsel", "Evidence", "It"),
    *("No", "Nobody", "On", "Outcome", "Over", "Pages", "The", "There"),
}


def cases(name):
    """(document, summary, facts or None) of the rows of one of the `LEGAL` files."""
    for row in rows(name):
        if "input" in row:
            assert set(row) == {"input", "output", "facts"}
            yield row["input"], row["output"], row["facts"]
        else:
            roles, texts = zip(*((message["role"], message["content"]) for message in row["messages"]), strict=True)
            assert roles == ("system", "user", "assistant") and texts[0] == case_files.SYSTEM
            yield *texts[1:], row.get("facts")


def named(text):
    """{part: (name, where in the text it stands, from 0 to 1)}; each part once and with its name."""
    found = PART.findall(text)
    assert sorted(part for part, _ in found) == sorted(sum(PARTS.values(), ())), text
    return {match[1]: (match[2], match.start() / len(text)) for match in PART.finditer(text)}


@pytest.mark.parametrize("name", LEGAL)
def test_each_fact_stands_once_in_the_document_at_its_place_and_in_the_summary(name):
    for document, summary, facts in cases(name):
        said, summed_up = named(document), named(summary)
        names = {part: who for part, (who, _) in said.items()}
        assert len(set(names.values())) == 6 and names == {part: who for part, (who, _) in summed_up.items()}
        assert facts == {place: [names[part] for part in parts] for place, parts in PARTS.items()}
        for place, parts in PARTS.items():
            assert all(REACH[place][0] <= said[part][1] <= REACH[place][1] for part in parts), (place, document[:100])


def test_no_case_is_in_two_files_or_twice_in_one():
    words = {name: [" ".join(document.casefold().split()) for document, _, _ in cases(name)] for name in LEGAL}
    every = [document for documents in words.values() for document in documents]
    assert len(set(every)) == len(every) and [len(words[name]) for name in LONG_CASES] == [160, 12, 24]
    summaries = {name: {summary for _, summary, _ in cases(name)} for name in LEGAL}
    held_out = summaries["legal_summaries/valid.jsonl"] | summaries["legal_summaries/test.jsonl"]
    assert len(held_out) == 36 and not held_out & summaries["legal_summaries/train.jsonl"]
    paragraphs = [{p for document, _, _ in cases(name) for p in document.split("\n\n") if p.count(". ") > 2} for name in LEGAL]
    assert sum(map(len, paragraphs)) == len(set().union(*paragraphs)) > 1000


def test_all_people_of_the_cases_are_invented_and_nobody_is_always_the_same():
    plays, shown = {}, set()
    for name in LEGAL:
        for document, summary, _ in cases(name):
            shown |= set(re.findall(r"\b[A-Z]\w*", document + " " + summary))
            for part, (who, _) in named(document).items():
                plays.setdefault(who, set()).add(part)
    assert shown - STARTS - set(calendar.month_name) <= set(case_files.NAMES)
    assert len(set(case_files.NAMES)) == len(case_files.NAMES) == 144
    assert set(plays) == set(case_files.NAMES) and all(len(parts) > 1 for parts in plays.values()), "a name must not tell its part"


def test_cases_are_the_same_ones_for_a_seed_and_the_files_small(monkeypatch):
    monkeypatch.syspath_prepend(str(SAMPLES))
    import legal_cases

    for make in (legal_cases.raw_rows, lambda seed: dict(legal_cases.long_rows(seed))):
        assert make(3) == make(3) != make(4)
    assert size(*LEGAL) < 2_500_000

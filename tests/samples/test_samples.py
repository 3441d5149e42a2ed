"""The committed sample data: what the generator writes, correct, split by family, and unseen by the base model's text."""

import json
import re
import subprocess
import sys
from fractions import Fraction
from math import comb, isqrt
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[2] / "samples"
SETS = ("cross_validated.jsonl", "arxiv.jsonl")
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
    for name in (*SETS, "base_prose.txt", "base_chats.jsonl"):
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

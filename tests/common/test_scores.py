"""Scores against the outside truth: the `rouge-score` package, and a bootstrap written as a plain loop."""

import random
import string
import struct

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from common import scores

NASTY = [
    "",
    " ",
    "\n\t",
    "...!?",
    "—–“”",
    "the",
    "The the THE",
    "a b c d e",
    "e d c b a",
    "running runs ran runner",
    "generalisations generalization generalizing generally",
    "naïve café ÅNGSTRÖM straße İstanbul",
    "統計学の検定 p値",
    "Привет мир",
    "🙂 test 🙂",
    "1,000.50 −3 1e-5 95%",
    "H0: μ₁=μ₂ vs. H1: μ₁≠μ₂",
    "x" * 5000,
    "a " * 3000,
    "under_score snake_case don't it's",
    "\x00null\x00byte",
    "tabs\tand\nnew\r\nlines",
    "ﬁnal ligature K (Kelvin sign)",
]


@pytest.fixture(scope="module")
def truth():
    return RougeScorer(list(scores.ROUGE_NAMES), use_stemmer=True)


def bits(number):
    return struct.pack("<d", number)


def assert_same_bits(truth, reference, answer):
    theirs, ours = truth.score(reference, answer), scores.rouge(reference, answer)
    assert list(ours) == list(scores.ROUGE_NAMES)
    for name, value in ours.items():
        assert bits(value) == bits(theirs[name].fmeasure), (name, reference[:80], answer[:80], value, theirs[name].fmeasure)


def test_rouge_is_rouge_scores_own_on_nasty_texts(truth):
    for reference in NASTY:
        for answer in NASTY:
            if len(reference) * len(answer) < 1_000_000:  # the package's table of 3000 x 3000 words alone takes seconds
                assert_same_bits(truth, reference, answer)
    assert scores.rouge("a " * 3000, "a " * 3000) == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}


def test_rouge_is_rouge_scores_own_on_random_texts(truth):
    draw = random.Random(7)
    stems = ["test", "estimate", "relat", "normal", "confident", "probab", "sampl", "hypothes", "vari", "is", "a", "of"]
    endings = ["", "s", "ed", "ing", "ation", "ational", "ly", "ness", "ies", "ful", "Ed", "S"]
    letters = string.ascii_letters + string.digits + " .,-_'\n" + "éßμ世"
    for trial in range(400):
        if trial % 2:
            texts = [" ".join(draw.choice(stems) + draw.choice(endings) for _ in range(draw.randrange(60))) for _ in range(2)]
        else:
            texts = ["".join(draw.choice(letters) for _ in range(draw.randrange(200))) for _ in range(2)]
        assert_same_bits(truth, *texts)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,000 and 1000 and 1e3", {1000}),
        ("0.50, .5 and 5 %", {0.5, 5}),
        ("10-20", {10, 20}),
        ("-3, (\u22124) and x=-2.5", {-3, -4, -2.5}),
        ("H0, p50 and A/B2", set()),
        ("lists 1,2,3; end 7.", {1, 2, 3, 7}),
        ("$1,234.50", {1234.5}),
        ("", set()),
        ("... - .", set()),
    ],
)
def test_numbers_are_read_by_value(text, numbers):
    assert {float(number) for number in scores.numbers_in(text)} == numbers


def test_an_absurd_exponent_is_no_error():
    assert len(scores.numbers_in("1e" + "9" * 30)) == 1  # Decimal itself refuses such an exponent


def test_numbers_recalled_is_a_share_of_the_references_different_numbers():
    assert scores.numbers_recalled("n = 1,000, power 0.8, n = 1000", "With 1000 users the power is 0.90") == 0.5
    assert scores.numbers_recalled("n = 10", "n = 100") == 0.0
    assert scores.numbers_recalled("n = 10", "10.0 users, or 11") == 1.0
    assert scores.numbers_recalled("no number here", "5") is None


def plain_bootstrap(values, groups, weights, seed, resamples):
    """The same statistic as a person would write it: draw groups, pool their rows, average."""
    names = sorted(set(groups))
    draws = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        total = size = 0.0
        for index in draws.integers(0, len(names), size=len(names)):
            for value, group, weight in zip(values, groups, weights, strict=True):
                if group == names[index]:
                    total, size = total + weight * value, size + weight
        means.append(total / size)
    means.sort()

    def percentile(share):  # linear between the two nearest ranks
        rank = share * (len(means) - 1)
        below = int(rank)
        above = min(below + 1, len(means) - 1)
        return means[below] + (rank - below) * (means[above] - means[below])

    return percentile(0.025), percentile(0.975)


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_bootstrap_equals_a_plain_loop(seed, weighted):
    draw = random.Random(seed)
    groups = [f"family-{draw.randrange(9)}" for _ in range(40)]
    values = [draw.gauss(0, 1) + int(group[-1]) for group in groups]
    weights = [draw.randrange(1, 50) for _ in groups] if weighted else [1] * 40
    mean, low, high = scores.bootstrap_interval(values, groups, seed=seed, resamples=300, weights=weights if weighted else None)
    assert mean == pytest.approx(np.average(values, weights=weights), rel=1e-12)
    assert (low, high) == pytest.approx(plain_bootstrap(values, groups, weights, seed, 300), rel=1e-9)


def test_bootstrap_draws_groups_not_rows():
    values, groups = [0.0] * 50 + [1.0] * 50, ["a"] * 50 + ["b"] * 50
    assert scores.bootstrap_interval(values, groups) == (0.5, 0.0, 1.0)  # two groups: any mean from 0 to 1 is likely
    _, low, high = scores.bootstrap_interval(values, range(100))
    assert 0.38 < low < 0.43 and 0.57 < high < 0.62  # a hundred rows: 0.5 +- 1.96 * 0.05


def test_bootstrap_of_a_normal_sample_is_the_textbooks_interval():
    values = np.random.default_rng(1).normal(10, 2, size=400)
    mean, low, high = scores.bootstrap_interval(values, range(400))
    half = 1.96 * values.std(ddof=1) / 20
    assert mean == pytest.approx(values.mean()) and (mean - low, high - mean) == pytest.approx((half, half), rel=0.1)


def test_bootstrap_repeats_itself_and_does_not_depend_on_the_order_of_rows():
    draw = np.random.default_rng(2)
    values, groups = draw.normal(size=60), draw.integers(0, 12, size=60)
    order = draw.permutation(60)
    first = scores.bootstrap_interval(values, groups)
    assert scores.bootstrap_interval(values, groups) == first
    assert scores.bootstrap_interval(values[order], groups[order]) == pytest.approx(first, rel=1e-12)
    assert scores.bootstrap_interval(values, groups, seed=1) != first


def test_bootstrap_of_many_groups_works_in_blocks_and_one_group_falls_back_to_rows():
    values = np.random.default_rng(3).normal(size=30_000)
    _, low, high = scores.bootstrap_interval(values, range(30_000), resamples=300)  # 140 resamples at a time
    assert (high - low) / 2 == pytest.approx(1.96 / 30_000**0.5, rel=0.15)
    assert scores.bootstrap_interval([1.0, 3.0], ["a", "a"]) == scores.bootstrap_interval([1.0, 3.0], ["a", "b"])
    assert scores.bootstrap_interval([2.0], ["a"]) == (2.0, 2.0, 2.0)


def test_bootstrap_refuses_what_it_cannot_average():
    with pytest.raises(ValueError, match="no values"):
        scores.bootstrap_interval([], [])
    with pytest.raises(ValueError, match="2 values, 1 groups"):
        scores.bootstrap_interval([1, 2], ["a"])


def test_perplexity_interval_is_exp_of_the_losss():
    assert scores.perplexity_interval((0.0, 1.0, 2.0)) == pytest.approx((1.0, 2.718281828459045, 7.38905609893065))
    assert all(np.isfinite(scores.perplexity_interval((1e4, 1e5, 1e6))))


def test_an_answer_is_exact_but_for_white_space_and_asked_for_where_answers_are_short():
    assert scores.is_exact("{2}{R}", " {2}{R}\n") and scores.is_exact("a b", "a\n b")
    assert not scores.is_exact("2/3", "3/2") and not scores.is_exact("Goblin", "goblin")
    assert scores.are_short(["2/3", "{R}", "a long answer of more than eight words in a row"]) and not scores.are_short(["word " * 9])

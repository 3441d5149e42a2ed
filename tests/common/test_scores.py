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


@pytest.mark.parametrize(
    ("fact", "answer", "found"),
    [
        ("12 March 2019", "On 12  MARCH\n2019, it began.", True),
        ("12 March 2019", "On March 12, 2019", False),  # word for word
        ("12", "112", False),
        ("12", "12.5 or 12,000 or 0.12", False),  # other numbers
        ("12", "Of 12.", True),
        ("12", "12, and so on", True),
        ("0.12", "p = 0.12", True),
        ("$12", "US$12", True),
        ("Osei", "Osei's claim", True),
        ("Osei", "Oseifa", False),
        ("OSEI", "osei", True),
        ("O'Neil", "O\u2019Neil", True),
        ("10-20", "10\u201320", True),
        ("f(x)*", "it is f(x)*.", True),  # no pattern
        (".*", "anything", False),
        ("Stra\u00dfe", "STRASSE", True),
        ("ver\u00f6ffentlicht", "vero\u0308ffentlicht", True),  # one letter, or two marks
        ("a b", "a\u00a0b", True),
        ("\u88c1\u5224", "\u88c1\u5224", True),
        ("   ", "   ", False),
        ("x", "", False),
    ],
)
def test_a_fact_stands_in_an_answer_as_whole_words(fact, answer, found):
    assert scores.facts_found({"end": [fact]}, answer) == {"end": [found]}


def test_facts_are_found_by_place_each_for_itself():
    facts = {"beginning": ["Osei", "12 March"], "middle": [], "end": ["Lindqvist"]}
    assert scores.facts_found(facts, "Lindqvist met Osei.") == {"beginning": [True, False], "middle": [], "end": [True]}


def test_copy_and_repetition_rates_are_shares_of_four_words_in_a_row():
    document = np.unique(scores.four_grams("The court heard the claimant, and the court was adjourned."))
    answer = scores.four_grams("the court heard the claimant today")  # of three stretches two stand in the document
    assert len(answer) == 3 and scores.copy_rate(document, answer) == pytest.approx(2 / 3) and scores.repetition_rate(answer) == 0
    assert scores.copy_rate(document, scores.four_grams("three words only")) is None
    assert scores.repetition_rate(scores.four_grams("")) is None
    looping = scores.four_grams("no no no no no no")  # three stretches, all the same
    assert scores.repetition_rate(looping) == pytest.approx(2 / 3) and scores.copy_rate(document, looping) == 0
    assert scores.copy_rate(scores.four_grams("a b"), looping) == 0
    assert scores.length_ratio("two words", "now there are five words") == 2.5 and scores.length_ratio(" ", "a") is None


def test_rates_of_random_texts_are_those_of_plain_lists():
    draw = random.Random(3)
    for _ in range(60):
        document, answer = ([draw.choice("abc") for _ in range(draw.randrange(40))] for _ in range(2))
        stretches = [answer[n : n + 4] for n in range(len(answer) - 3)]
        pool = [document[n : n + 4] for n in range(len(document) - 3)]
        grams = scores.four_grams(" ".join(answer))
        found = scores.copy_rate(np.unique(scores.four_grams(", ".join(document).upper())), grams), scores.repetition_rate(grams)
        if not stretches:
            assert found == (None, None)
            continue
        copied = sum(stretch in pool for stretch in stretches) / len(stretches)
        repeated = sum(stretch in stretches[:n] for n, stretch in enumerate(stretches)) / len(stretches)
        assert found == (pytest.approx(copied), pytest.approx(repeated))


def test_questions_are_documents_where_half_are_long_and_longer_than_their_answers():
    long, short = "word " * 200, "word " * 199
    assert scores.are_documents([long, "why?"], ["a", "b"]) and not scores.are_documents([long, "why?", "how?"], ["a", "b", "c"])
    assert not scores.are_documents([short], ["a"]) and not scores.are_documents([long], [long + "more"])

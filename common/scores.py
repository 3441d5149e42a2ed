"""Scores of generated answers, and how sure one may be of their mean.

ROUGE (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004) as the `rouge-score` package computes it with
`use_stemmer=True`, to the last bit, in about a fiftieth of the time: the tokenising rules and the F formula are the package's own
functions; Porter's stem of a word is computed once per word, not once per occurrence; and the length of the longest common
subsequence comes from rapidfuzz's bit-parallel algorithm instead of a table of Python lists.
"""

import re
import unicodedata
from collections import Counter
from decimal import Decimal
from functools import cache, lru_cache

import numpy as np
from rapidfuzz.distance import LCSseq
from rouge_score import tokenize
from rouge_score.scoring import fmeasure

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL")


@cache
def _stemmer():
    from nltk.stem.porter import PorterStemmer  # a third of a second, and only ROUGE needs it

    class RememberingStemmer:
        stem = staticmethod(lru_cache(maxsize=1 << 18)(PorterStemmer().stem))

    return RememberingStemmer()


def rouge(reference, answer):
    """{"rouge1": F, "rouge2": F, "rougeL": F} of one pair of texts.

    F = 2PR / (P + R) with P = matches / n-grams of the answer and R = matches / n-grams of the reference. Matches are n-grams that both
    have, each counted as often as in the text that has fewer; for ROUGE-L the length of the longest common subsequence of words.
    A text without a word of a-z0-9 scores 0.
    """
    wanted, given = (tokenize.tokenize(text, _stemmer()) for text in (reference, answer))
    scores = {}
    for n in (1, 2):
        wanted_ngrams, given_ngrams = _ngrams(wanted, n), _ngrams(given, n)
        matches = sum(min(count, given_ngrams[ngram]) for ngram, count in wanted_ngrams.items() if ngram in given_ngrams)
        scores[f"rouge{n}"] = _f1(matches, max(len(wanted) - n + 1, 0), max(len(given) - n + 1, 0))
    numbering = {}  # words as small integers: rapidfuzz compares hashes, and those of integers cannot collide
    wanted, given = ([numbering.setdefault(word, len(numbering)) for word in words] for words in (wanted, given))
    scores["rougeL"] = _f1(LCSseq.similarity(wanted, given), len(wanted), len(given))
    return scores


def _ngrams(words, n):
    return Counter(words) if n == 1 else Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _f1(matches, wanted, given):
    return float(fmeasure(matches / max(given, 1), matches / max(wanted, 1)))


SHORT = 8  # words
# Digits that belong to a word ("H0", "p50") are no number; a sign is one only at the start of a word: "10-20" is 10 and 20.
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])"
    r"(?:(?<![^\s(\[=:<>])[-+])?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE][-+]?[0-9]{1,4})?"
)


def numbers_in(text):
    """The set of different numbers in `text`, by value: "1,000", "1000" and "1e3" are one number; "0.50" is 0.5; "5 %" is 5."""
    text = text.replace("\u2212", "-")  # the typographic minus
    return {Decimal(found.replace(",", "")) for found in _NUMBER.findall(text)}


def numbers_recalled(reference, answer):
    """Share of the different numbers in the reference answer that also stand in the answer; None where the reference has none."""
    wanted = numbers_in(reference)
    return len(wanted & numbers_in(answer)) / len(wanted) if wanted else None


def is_exact(reference, answer):
    """Whether the answer is the reference, but for white space."""
    return reference.split() == answer.split()


def are_short(references):
    """Whether half of the reference answers or more have at most `SHORT` words, so that an exact answer can be asked for."""
    return float(np.median([len(reference.split()) for reference in references])) <= SHORT


_LOOK_ALIKE = str.maketrans("\u2018\u2019\u201c\u201d\u2010\u2011\u2012\u2013\u2212", "''\"\"-----")  # typographic quotes and dashes


def _folded(text):
    """Written in one way: case, white space, quotes, dashes and the compatibility forms of Unicode do not count."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_LOOK_ALIKE).casefold().split())


def facts_found(facts, answer):
    """{place: [whether each of its facts stands in the answer]} of `facts`, {place: [words]}.

    Its words stand there as whole words, one after another: "12" is neither in "112" nor, being a number, in "12.5" or "12,000".
    """
    answer = _folded(answer)
    return {place: [_stands_in(_folded(words), answer) for words in listed] for place, listed in facts.items()}


def _stands_in(words, answer):
    number_before = r"(?<![0-9][.,])" if words[:1].isdigit() else ""
    number_after = r"(?![.,][0-9])" if words[-1:].isdigit() else ""
    before, after = (r"(?<!\w)" if re.match(r"\w", words[:1]) else ""), (r"(?!\w)" if re.match(r"\w", words[-1:]) else "")
    return bool(words) and re.search(before + number_before + re.escape(words) + after + number_after, answer) is not None


DOCUMENT = 200  # words from which on a question is a document
_WEIGHTS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], dtype=np.uint64)  # odd


def are_documents(questions, references):
    """Whether half of the questions or more have at least `DOCUMENT` words and more than their reference answers: documents to sum up."""
    pairs = ((len(question.split()), len(reference.split())) for question, reference in zip(questions, references, strict=True))
    return float(np.mean([words >= DOCUMENT and words > wanted for words, wanted in pairs])) >= 0.5


def four_grams(text):
    """uint64 [words - 3, or 0]: a number for each four words in a row; the same number for the same words, in one process.

    Words are what `\\w+` finds, in lower case. The numbers are sums of the words' 64-bit hashes, so that a million characters take a
    tenth of a second and 8 bytes a word; that two different ones among a million share a number happens once in 30 million texts.
    """
    words = re.findall(r"\w+", text.lower())
    hashes = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
    count = max(len(words) - 3, 0)
    return sum((hashes[n : n + count] * _WEIGHTS[n] for n in range(4)), np.zeros(count, dtype=np.uint64))


def copy_rate(document, answer):
    """Share of the answer's 4-grams that stand in the document; None where the answer has fewer than four words.

    Both as `four_grams`, the document's sorted (np.unique), so that it is searched and not read again for each answer.
    """
    if not len(answer):
        return None
    if not len(document):
        return 0.0
    return float((document.take(np.searchsorted(document, answer), mode="clip") == answer).mean())


def repetition_rate(answer):
    """Share of the answer's 4-grams that it had already said, of `four_grams`; None where it has fewer than four words."""
    return 1 - len(np.unique(answer)) / len(answer) if len(answer) else None


def length_ratio(reference, answer):
    """Words of the answer for each word of the reference; None where the reference has none."""
    wanted = len(reference.split())
    return len(answer.split()) / wanted if wanted else None


def bootstrap_interval(values, groups, seed=0, resamples=2000, weights=None):
    """(mean, low, high): the mean of `values` and its 95 % percentile interval by the bootstrap over groups.

    Rows of one group (answers to one question, rows of one template) resemble each other, so whole groups are drawn, with replacement,
    as many as there are (the cluster bootstrap: Davison & Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8); low
    and high are the 2.5th and 97.5th percentiles of the resampled means. With `weights` the mean is sum(w v) / sum(w): a mean per token
    where the values are means per row. With a single group rows are drawn instead; that interval is too narrow for new groups.
    """
    values = np.asarray(values, dtype=np.float64)
    if not values.size:
        raise ValueError("no values to average")
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    names, members = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    if len(members) != len(values) or len(weights) != len(values):
        raise ValueError(f"{len(values)} values, {len(members)} groups and {len(weights)} weights should be equally many")
    if len(names) == 1:
        members = np.arange(len(values))
    totals, sizes = np.bincount(members, weights * values), np.bincount(members, weights)
    draws = np.random.default_rng(seed)
    block = max(1, (1 << 22) // len(totals))  # resamples at a time: 32 MB of indices whatever the number of groups
    means = []
    for start in range(0, resamples, block):
        drawn = draws.integers(0, len(totals), size=(min(block, resamples - start), len(totals)))
        means.append(totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float((weights * values).sum() / weights.sum()), float(low), float(high)


def perplexity_interval(loss):
    """(perplexity, low, high) from a loss in nats and its interval: exp is monotonous, so the percentiles carry over."""
    return tuple(float(np.exp(min(value, 700.0))) for value in loss)  # exp(700) is about the largest double

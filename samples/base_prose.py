"""Plain prose to pretrain a tiny base model: definitions, worked numbers in words, small arithmetic, and copying exercises.

Copying exercises are 30 percent of the text because a small model that can copy figures learns to answer with them much faster.
"""

from cross_validated_numbers import DEEDS, METRICS, PAGES, PEOPLE, RATES, SIZES
from figures import decimal, exact, root
from glossary import GLOSSARY

CHARACTERS = 330_000
COPYING = 0.30  # of the characters
REFERENCES = (
    "Student 1908", "Wilson 1927", "Fisher 1935", "Wald 1945", "Welch 1947", "Kish 1965", "Robbins 1970", "Rubin 1974", "Holm 1979",
    "Efron 1979", "Cohen 1988", "Lehr 1992", "Benjamini and Hochberg 1995", "Lin 2013", "Deng et al. 2013", "Gelman and Carlin 2014",
    "Johari et al. 2017", "Fabijan et al. 2019", "Kohavi, Tang and Xu 2020", "Howard et al. 2021",
)
WORDS = (
    "rate", "step", "threshold", "margin", "effect", "metric", "arm", "power", "level", "prior", "odds", "variance", "cluster", "rank",
    "group", "error", "share", "lift", "test", "sample", "mean", "trial", "period", "revenue", "traffic", "noise", "users", "control",
    "treatment", "interval", "source",
)


def sentence(text):
    return text[0].upper() + text[1:]


def definition(random):
    term, meaning, remark = random.choice(GLOSSARY)
    return random.choice(
        (
            f"{sentence(term)} {meaning}.",
            f"{sentence(term)} {meaning}. {remark}.",
            f"{remark}; this is said of {term}.",
            f"People speak of {term}, which {meaning}.",
        )
    )


def rate_in_words(random):
    n, p = random.choice(SIZES), exact(random.choice(RATES))
    x, people, page, deed = int(n * p), random.choice(PEOPLE), random.choice(PAGES), random.choice(DEEDS)
    spread = decimal(root(p * (1 - p) / n))
    return random.choice(
        (
            f"With {x} of {n} {people} the rate is {decimal(p)}.",
            f"When {x} out of {n} {people} {deed}, the {page} works at a rate of {decimal(p)}.",
            f"A rate of {decimal(p)} seen on {n} {people} has a standard error near {spread}.",
            f"{n} {people} at a rate of {decimal(p)} bring {x} conversions.",
            f"Of {n} {people} on the {page} {x} {deed} and {n - x} did not.",
            f"Odds for a rate of {decimal(p)} come to {decimal(p / (1 - p))}.",
        )
    )


def comparison_in_words(random):
    n, people, page = random.choice(SIZES), random.choice(PEOPLE), random.choice(PAGES)
    p, q = (exact(rate) for rate in random.sample(RATES, 2))
    low, high = sorted((p, q))
    error = exact(random.choice(("0.005", "0.01", "0.02", "0.025")))
    return random.choice(
        (
            f"The {page} of group B has rate {decimal(high)} and that of group A {decimal(low)}, a gap of {decimal(high - low)}.",
            f"{int(n * low)} and {int(n * high)} successes in {n} {people} each make {int(n * (low + high))} in {2 * n} together.",
            f"From {decimal(low)} to {decimal(high)} a rate grows by {decimal(100 * (high - low) / low, 1)} percent of its old value.",
            f"A gap of {decimal(high - low)} with error {decimal(error)} lies {decimal((high - low) / error, 2)} errors away from zero.",
            f"Around {decimal(high)} the interval reaches {decimal(exact('1.96') * error)} to both sides if the error is {decimal(error)}.",
        )
    )


def sample_in_words(random):
    s, n, metric, people = (
        random.choice((2, 4, 5, 6, 8, 10, 12, 20)),
        random.choice((16, 25, 64, 100, 400, 900, 1600)),
        random.choice(METRICS),
        random.choice(PEOPLE),
    )
    side, d = int(root(exact(n))), random.choice((1, 2))
    return random.choice(
        (
            f"The mean {metric} of {n} {people} with deviation {s} has an error of {decimal(exact(s) / side)}.",
            f"To see an effect of {d} when the deviation is {s}, plan about {decimal(16 * exact(s * s) / (d * d))} users for each version.",
            f"{n} {people} in each version and a deviation of {s} make effects of {decimal(4 * exact(s) / side)} visible.",
            f"Four times as many {people} as {n} are {4 * n}, and they halve the error of the mean {metric}.",
        )
    )


def testing_in_words(random):
    m, alpha = random.choice((2, 4, 5, 8, 10, 20, 25, 40, 50, 100)), exact(random.choice(("0.05", "0.01", "0.1")))
    return random.choice(
        (
            f"Split over {m} tests, a level of {decimal(alpha)} leaves {decimal(alpha / m)} for each.",
            f"Among {m} tests without any effect, level {decimal(alpha)} lets about {decimal(m * alpha)} pass by luck.",
            f"The smallest of {m} p-values meets {decimal(alpha / m)} when the rate of false discoveries is {decimal(alpha)}.",
        )
    )


def methods_in_words(random):
    rho, icc, size = (
        exact(random.choice(RATES)),
        exact(random.choice(("0.01", "0.02", "0.05", "0.1"))),
        random.choice((5, 11, 21, 41, 51, 101)),
    )
    a, b, x, n = random.choice((1, 2, 5)), random.choice((9, 18, 45)), random.choice((4, 8, 10, 20)), random.choice((50, 90, 100, 200))
    before, change, drift = random.choice((10, 20, 30)), random.choice((2, 3, 5, 6)), random.choice((1, 2))
    total, gap = random.choice((1000, 2000, 4000, 5000)), random.choice((20, 40, 60, 100))
    return random.choice(
        (
            f"A correlation of {decimal(rho)} explains {decimal(rho * rho)} of the variance.",
            f"CUPED with correlation {decimal(rho)} keeps {decimal(1 - rho * rho)} of the noise.",
            f"Clusters of {size} users with likeness {decimal(icc)} inflate the variance {decimal(1 + (size - 1) * icc)} times.",
            f"{1000 * (size - 1)} grouped users with inflation 2 are worth {500 * (size - 1)} single ones.",
            f"A Beta prior of {a} and {b} has mean {decimal(exact(a) / (a + b))}.",
            f"Prior counts {a} and {b} and {x} wins in {n} tries make {a + x} wins in {a + b + n}.",
            f"One group rose by {change} and the other by {drift}, so {change - drift} is left for the treatment.",
            f"A value of {before} that rises by {change} ends at {before + change}.",
            f"Users split into {(total + gap) // 2} and {(total - gap) // 2} differ by {gap} of {total}.",
        )
    )


def arithmetic(random):
    n, p = random.choice(SIZES), exact(random.choice(RATES))
    se, icc = random.choice(("0.005", "0.01", "0.015", "0.02", "0.025")), random.choice(("0.01", "0.02", "0.05", "0.1"))
    m, alpha, s = (
        random.choice((2, 4, 5, 8, 10, 20, 25, 50, 100)),
        random.choice(("0.05", "0.01", "0.1")),
        random.choice((2, 4, 5, 6, 8, 10, 12, 20)),
    )
    side, a, b = random.choice((4, 5, 8, 10, 20, 30, 40, 50)), random.randint(2, 60), random.randint(2, 60)
    return random.choice(
        (
            f"{int(n * p)} / {n} = {decimal(p)}.",
            f"1 - {decimal(p)} = {decimal(1 - p)}.",
            f"{decimal(p)} * {decimal(p)} = {decimal(p * p)}.",
            f"{decimal(p)} / {decimal(1 - p)} = {decimal(p / (1 - p))}.",
            f"1.96 * {se} = {decimal(exact('1.96') * exact(se))}.",
            f"sqrt({side * side}) = {side}.",
            f"{s} / {side} = {decimal(exact(s) / side)}.",
            f"{alpha} / {m} = {decimal(exact(alpha) / m)}.",
            f"{m} * {alpha} = {decimal(m * exact(alpha))}.",
            f"{m} * {icc} = {decimal(m * exact(icc))}.",
            f"{s} * {s} = {s * s}, and 16 * {s * s} = {16 * s * s}.",
            f"{a} + {b} = {a + b}.",
            f"{a + b} - {b} = {a}.",
            f"{n} * {decimal(p)} = {int(n * p)}.",
        )
    )


def phrase(random):
    """Names and figures of the subject, to be copied."""
    n, p = random.choice(SIZES), exact(random.choice(RATES))
    person, page, deed, metric = random.choice(PEOPLE), random.choice(PAGES), random.choice(DEEDS), random.choice(METRICS)
    mixed = [
        random.choice((random.choice(WORDS), random.choice(RATES), str(random.choice(SIZES)), str(random.randint(2, 99))))
        for _ in range(random.randint(3, 7))
    ]
    return random.choice(
        (
            f"{int(n * p)} of {n} {person}, {page}",
            f"{page}, {n} {person}, {int(n * p)} {deed}",
            f"rate {decimal(p)}, error 0.0{random.randint(1, 99)}",
            f"{random.choice(REFERENCES)} and {random.choice(REFERENCES)}",
            f"mean {metric} {random.randint(2, 60)}, deviation {random.randint(2, 30)}",
            f"A {int(n * p)} of {n}, B {random.randint(10, 99)} of {n}",
            f"{random.choice(GLOSSARY)[0]} and {random.choice(GLOSSARY)[0]}",
            f"{random.randint(100, 999)}, {random.randint(10, 99)}, 0.{random.randint(1, 99)}",
            " ".join(mixed),
            " ".join(mixed),
        )
    )


KINDS = (
    definition,
    definition,
    definition,
    rate_in_words,
    rate_in_words,
    comparison_in_words,
    sample_in_words,
    testing_in_words,
    methods_in_words,
    arithmetic,
    arithmetic,
    arithmetic,
)


def text(random):
    """One paragraph or one exercise a line."""
    lines, written, copied = [], 0, 0
    while written < CHARACTERS:
        if copied < COPYING * written:
            original = phrase(random)
            line = f"Original: {original} Copy: {original}"
            copied += len(line) + 1
        else:
            line = " ".join(random.choice(KINDS)(random) for _ in range(random.randint(3, 5)))
        lines.append(line)
        written += len(line) + 1
    return "\n".join(lines) + "\n"

"""Worked questions in the manner of questions asked about methods papers: ten quantities, six wordings each."""

from figures import Quantity, decimal, exact, root

EXPERIMENTS = ("ranking", "pricing", "search", "onboarding", "notification", "recommendation", "checkout", "video")
METRICS = ("revenue per user", "sessions per user", "watch time", "orders per user", "clicks per session", "load time")
CLUSTERS = ("cities", "stores", "schools", "households", "markets", "teams")


def story(random):
    return {"experiment": random.choice(EXPERIMENTS), "metric": random.choice(METRICS), "clusters": random.choice(CLUSTERS)}


def draw_cuped(random):
    return {
        **story(random),
        "rho": random.choice(
            ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "0.25", "0.35", "0.45", "0.55", "0.65", "0.75")
        ),
    }


def answer_cuped(rho, **_):
    square = exact(rho) ** 2
    return (
        f"Step 1: the square of the correlation is {rho} * {rho} = {decimal(square)}. Step 2: the share of variance left is 1 - rho^2 = "
        f"1 - {decimal(square)} = {decimal(1 - square)}. So the share of variance left is {decimal(1 - square)}."
    )


def draw_sample_size(random):
    return {**story(random), "s": random.choice((4, 5, 6, 8, 10, 12, 20)), "d": random.choice(("0.5", "1", "2"))}


def answer_sample_size(s, d, **_):
    n = decimal(16 * exact(s) ** 2 / exact(d) ** 2)
    return (
        f"Step 1: the variance is {s} * {s} = {s * s} and the squared effect is {d} * {d} = {decimal(exact(d) ** 2)}. "
        f"Step 2: the rule for 80 percent power is n = 16 s^2 / d^2 = 16 * {s * s} / {decimal(exact(d) ** 2)} = {n}. "
        f"So the sample size per arm is {n}."
    )


def draw_false_positives(random):
    return {
        **story(random),
        "m": random.choice((10, 20, 40, 50, 60, 80, 100, 200, 300, 400, 500, 1000)),
        "alpha": random.choice(("0.05", "0.01", "0.1")),
    }


def answer_false_positives(m, alpha, **_):
    count = decimal(m * exact(alpha))
    return (
        f"Step 1: under a true null each test is falsely positive with probability {alpha}. Step 2: the expected count is m * alpha = "
        f"{m} * {alpha} = {count}. So the expected number of false positives is {count}."
    )


def draw_design_effect(random):
    return {
        **story(random),
        "m": random.choice((5, 6, 11, 20, 21, 26, 31, 41, 51, 101)),
        "icc": random.choice(("0.01", "0.02", "0.04", "0.05", "0.1", "0.2")),
    }


def answer_design_effect(m, icc, **_):
    effect = decimal(1 + (m - 1) * exact(icc))
    return (
        f"Step 1: the cluster size minus one is {m} - 1 = {m - 1}. Step 2: the design effect is 1 + (m - 1) * icc = "
        f"1 + {m - 1} * {icc} = {effect}. So the design effect is {effect}."
    )


def draw_effective_size(random):
    return {
        **story(random),
        "n": random.choice((600, 800, 1000, 1200, 2000, 3000, 4000, 6000)),
        "deff": random.choice(("1.25", "1.5", "2", "2.5", "3", "4", "5")),
    }


def answer_effective_size(n, deff, **_):
    size = decimal(n / exact(deff), 0)
    return (
        f"Step 1: correlated users carry less information than independent ones. Step 2: the effective sample size is n over the "
        f"design effect, {n} / {deff} = {size}, rounded to a whole number. So the effective sample size is {size}."
    )


def draw_posterior(random):
    a, b = random.choice(((1, 1), (1, 9), (2, 8), (2, 18), (5, 45), (5, 95), (10, 90)))
    n = random.choice((50, 80, 90, 100, 150, 180, 190, 200, 400))
    return {**story(random), "a": a, "b": b, "n": n, "x": random.choice((3, 4, 5, 8, 9, 10, 15, 18, 20, 28, 30))}


def answer_posterior(a, b, n, x, **_):
    mean = decimal(exact(a + x) / (a + b + n))
    return (
        f"Step 1: the successes add up to {a} + {x} = {a + x}. Step 2: all counts add up to {a} + {b} + {n} = {a + b + n}. "
        f"Step 3: the posterior mean is {a + x} / {a + b + n} = {mean}, rounded to 4 decimals. So the posterior mean is {mean}."
    )


def draw_srm(random):
    total, gap = random.choice((1000, 2000, 4000, 5000)), random.choice((20, 40, 60, 80, 100, 120))
    a, b = (total + gap) // 2, (total - gap) // 2
    return {**story(random), **({"a": a, "b": b} if random.random() < 0.5 else {"a": b, "b": a})}


def answer_srm(a, b, **_):
    gap, statistic = abs(a - b), exact((a - b) ** 2) / (a + b)
    side = "below 3.84, so a fair split may well give it"
    if statistic > exact("3.84"):
        side = "above 3.84, so a fair split would rarely give it"
    return (
        f"Step 1: the counts differ by {gap} and add up to {a + b}. Step 2: for an equal split chi-square is {gap}^2 / {a + b} = "
        f"{decimal(statistic, 2)}, rounded to 2 decimals. Step 3: this is {side}. "
        f"So the chi-square statistic is {decimal(statistic, 2)}."
    )


def draw_benjamini_hochberg(random):
    m = random.choice((5, 10, 20, 25, 40, 50, 100))
    return {
        **story(random),
        "m": m,
        "k": random.choice([k for k in (1, 2, 3, 4, 5, 8, 10) if k < m]),
        "q": random.choice(("0.05", "0.1", "0.2")),
    }


def answer_benjamini_hochberg(k, m, q, **_):
    level = decimal(exact(k) / m * exact(q))
    return (
        f"Step 1: the rank over the number of tests is {k} / {m} = {decimal(exact(k) / m)}. Step 2: the threshold is k / m * q = "
        f"{decimal(exact(k) / m)} * {q} = {level}, rounded to 4 decimals. So the Benjamini-Hochberg threshold is {level}."
    )


def draw_detectable(random):
    return {
        **story(random),
        "s": random.choice((2, 3, 5, 6, 8, 10, 12, 15, 20)),
        "n": random.choice((64, 100, 400, 900, 1600, 2500, 10000)),
    }


def answer_detectable(s, n, **_):
    side = decimal(root(exact(n)))
    effect = decimal(4 * exact(s) / exact(side))
    return (
        f"Step 1: the square root of n is sqrt({n}) = {side}. Step 2: for 80 percent power the effect is d = 4 s / sqrt(n) = "
        f"4 * {s} / {side} = {effect}, rounded to 4 decimals. So the minimum detectable effect is {effect}."
    )


def draw_did(random):
    old, control = random.choice((10, 12, 20, 25, 30, 40)), random.choice((10, 12, 20, 25, 30, 40))
    drift, effect = random.choice((1, 2, 3, 4)), random.choice((1, 2, 3, 5, 6, -1))
    return {**story(random), "a": old, "b": old + drift + effect, "c": control, "d": control + drift}


def answer_did(a, b, c, d, **_):
    return (
        f"Step 1: the treated group changed by {b} - {a} = {b - a}. Step 2: the control group changed by {d} - {c} = {d - c}. "
        f"Step 3: the difference in differences is {b - a} - {d - c} = {b - a - (d - c)}. So the estimated effect is {b - a - (d - c)}."
    )


QUANTITIES = (
    Quantity("variance_left_by_cuped", "Deng et al. 2013, CUPED", ("CUPED", "variance reduction"), (
        "In CUPED, the covariate for {metric} has a correlation of {rho} with the metric. What share of variance is left?",
        "How much variance of {metric} remains after CUPED if metric and covariate correlate with {rho}?",
        "The paper on CUPED gives the variance left as a function of the correlation. What is it for a correlation of {rho}?",
        "A {experiment} experiment uses CUPED with a correlation of {rho}. Which share of the variance is left?",
        "Suppose earlier data predict {metric} with a correlation of {rho}. Which share of variance does CUPED leave?",
        "Given rho = {rho} between covariate and {metric}, what is the remaining variance under CUPED, as a share?",
    ), draw_cuped, answer_cuped),
    Quantity("sample_size_per_arm", "Lehr 1992, sixteen s-squared over d-squared", ("sample size", "power"), (
        "With a standard deviation of {s} for {metric} and an effect of {d}, what is the sample size per arm for the usual power?",
        "How many users per arm does a {experiment} experiment need to detect an effect of {d} when the standard deviation is {s}?",
        "Using the rule of sixteen, which sample size per arm follows from standard deviation {s} and effect {d}?",
        "We want to detect a change of {d} in {metric}. The standard deviation is {s}. Which sample size per arm is needed?",
        "Let s = {s} and d = {d}. What does the rule of thumb give as the sample size in each arm?",
        "What sample size per arm should the authors have planned for {metric}, given an effect of {d} and a standard deviation of {s}?",
    ), draw_sample_size, answer_sample_size),
    Quantity("expected_false_positives", "expected number of type I errors", ("multiple testing", "errors"), (
        "If {m} true null hypotheses are tested at level {alpha}, what is the expected number of false positives?",
        "A platform runs {m} experiments without any effect, each tested at {alpha}. How many false positives are expected?",
        "How many false positives should one expect among {m} null {experiment} experiments at a level of {alpha}?",
        "At level {alpha}, all {m} hypotheses about {metric} happen to be null. Which number of false positives is expected?",
        "The authors test {m} metrics at {alpha} and no effect is real. What number of false positives does theory predict?",
        "Consider {m} A/A comparisons of {metric}, each at {alpha}. What is the expected count of false positives?",
    ), draw_false_positives, answer_false_positives),
    Quantity("design_effect", "Kish 1965, Survey Sampling", ("cluster randomisation", "design effect"), (
        "Whole {clusters} of {m} users are randomised and the intraclass correlation is {icc}. What is the design effect?",
        "How large is the design effect for clusters of size {m} with an intraclass correlation of {icc}?",
        "A cluster experiment on {metric} has an intraclass correlation of {icc} and {m} users in each cluster. Which "
        "design effect results?",
        "Given icc = {icc} and cluster size {m}, how does one compute the design effect?",
        "By what factor does the variance of {metric} grow when {clusters} with {m} members are assigned, the intraclass "
        "correlation being {icc}?",
        "What design effect should a {experiment} experiment plan for if {clusters} hold {m} users and their intraclass "
        "correlation is {icc}?",
    ), draw_design_effect, answer_design_effect),
    Quantity("effective_sample_size", "Kish 1965, effective sample size", ("cluster randomisation", "effective sample size"), (
        "A trial of {clusters} has {n} users and a design effect of {deff}. What is the effective sample size?",
        "How many independent users are {n} clustered users worth if the design effect is {deff}?",
        "The design effect for {metric} is {deff}. Which effective sample size do {n} users give?",
        "Given {n} users in a {experiment} experiment and a design effect of {deff}, compute the effective sample size.",
        "What effective sample size remains when {n} users are grouped into {clusters} and the design effect is {deff}?",
        "With a design effect of {deff}, to what effective sample size do {n} observations of {metric} shrink?",
    ), draw_effective_size, answer_effective_size),
    Quantity("beta_posterior_mean", "Beta-binomial model", ("Bayesian", "Beta prior"), (
        "With a Beta({a}, {b}) prior and {x} conversions in {n} trials, what is the posterior mean?",
        "How does one update a Beta({a}, {b}) prior after {x} successes among {n} users, and what is the posterior mean?",
        "A Bayesian {experiment} experiment starts from Beta({a}, {b}) and sees {x} conversions from {n} users. Which "
        "posterior mean results?",
        "The prior of a conversion rate is Beta({a}, {b}). Of {n} users {x} converted. What posterior mean follows?",
        "For one arm of a bandit with prior Beta({a}, {b}), {n} pulls gave {x} rewards. Compute the posterior mean.",
        "What is the mean of the posterior if the prior is Beta({a}, {b}) and the data are {x} out of {n}?",
    ), draw_posterior, answer_posterior),
    Quantity("srm_chi_square", "Fabijan et al. 2019, sample ratio mismatch", ("sample ratio mismatch", "chi-square"), (
        "A test planned as an equal split has {a} and {b} users. What is the chi-square statistic for a sample ratio mismatch?",
        "How is a sample ratio mismatch checked when the arms of a {experiment} experiment hold {a} and {b} users under an equal split?",
        "Equal arms were planned, but {a} users are in control and {b} in treatment. Which chi-square statistic tests "
        "for a sample ratio mismatch?",
        "Does an even split that gave {a} against {b} users show a sample ratio mismatch? Please give the chi-square statistic.",
        "Compute the chi-square statistic of the sample ratio mismatch test for counts of {a} and {b}, with equal shares expected.",
        "The logs of a {experiment} experiment with an even split show {a} users in one arm and {b} in the other. Is "
        "there a sample ratio mismatch?",
    ), draw_srm, answer_srm),
    Quantity("benjamini_hochberg_threshold", "Benjamini and Hochberg 1995", ("false discovery rate", "multiple testing"), (
        "In the Benjamini-Hochberg procedure with {m} tests and q = {q}, what is the threshold for rank {k}?",
        "Which Benjamini-Hochberg threshold applies to the p-value of rank {k} among {m}, at a false discovery rate of {q}?",
        "A study of {metric} controls the false discovery rate at {q} over {m} tests. What is the Benjamini-Hochberg "
        "threshold at rank {k}?",
        "How does one compute the Benjamini-Hochberg threshold for rank {k} of {m} p-values with q = {q}?",
        "Sorting {m} p-values from {experiment} experiments, what threshold does rank {k} face under Benjamini-Hochberg at q = {q}?",
        "For a false discovery rate of {q}, the sorted p-value number {k} of {m} is compared with which Benjamini-Hochberg threshold?",
    ), draw_benjamini_hochberg, answer_benjamini_hochberg),
    Quantity("minimum_detectable_effect", "power analysis, rule of sixteen", ("power", "minimum detectable effect"), (
        "With {n} users per arm and a standard deviation of {s}, what is the minimum detectable effect on {metric}?",
        "What minimum detectable effect does a {experiment} experiment with {n} users in each arm have if the standard deviation is {s}?",
        "The standard deviation of {metric} is {s}. How small an effect is detectable with {n} users per arm?",
        "Given s = {s} and n = {n} per arm, how does one find the minimum detectable effect?",
        "Each arm holds {n} users, and {metric} has a standard deviation of {s}. Which minimum detectable effect follows "
        "at the usual power?",
        "How sensitive is a test on {metric} with {n} users per arm? The standard deviation is {s}; state the minimum detectable effect.",
    ), draw_detectable, answer_detectable),
    Quantity("difference_in_differences", "difference in differences", ("difference in differences", "causal inference"), (
        "Treated {clusters} moved from {a} to {b} while control {clusters} moved from {c} to {d}. What is the difference in differences?",
        "What does difference in differences estimate if the treated group went from {a} to {b} and the control group from {c} to {d}?",
        "Before and after means of {metric} are {a} and {b} for the treated, {c} and {d} for the control. Compute the "
        "difference in differences.",
        "The treated {clusters} averaged {a} before and {b} after; the others {c} before and {d} after. Which difference "
        "in differences results?",
        "In a difference in differences study of {metric}, treatment went from {a} to {b} and control from {c} to {d}. What is the effect?",
        "How does one get the difference in differences from treated means {a} then {b} and control means {c} then {d}?",
    ), draw_did, answer_did),
)

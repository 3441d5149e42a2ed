"""Worked questions in the manner of Cross Validated posters: ten quantities of everyday A/B testing, six wordings each."""

from figures import Quantity, decimal, exact, root

PAGES = ("pricing page", "checkout page", "landing page", "start page", "product page", "search page", "help page", "login page")
PEOPLE = ("visitors", "users", "customers", "shoppers", "readers")
DEEDS = ("bought", "signed up", "clicked", "subscribed", "upgraded")
METRICS = ("order value", "session length", "basket size", "reading time", "delivery time", "rating")
SIZES = (100, 200, 400, 500, 1000, 2000)
RATES = ("0.02", "0.04", "0.05", "0.06", "0.08", "0.1", "0.12", "0.15", "0.2", "0.25", "0.3", "0.4", "0.5")


def story(random):
    return {"page": random.choice(PAGES), "people": random.choice(PEOPLE), "deed": random.choice(DEEDS), "metric": random.choice(METRICS)}


def draw_rate(random):
    n, rate = random.choice(SIZES), random.choice(RATES)
    return {**story(random), "n": n, "x": int(n * exact(rate))}


def answer_standard_error_of_a_rate(x, n, **_):
    p = exact(x) / n
    return (
        f"Step 1: the rate is {x} / {n} = {decimal(p)}. Step 2: the standard error is sqrt(p (1 - p) / n) = "
        f"sqrt({decimal(p)} * {decimal(1 - p)} / {n}) = {decimal(root(p * (1 - p) / n))}, rounded to 4 decimals. "
        f"So the standard error is {decimal(root(p * (1 - p) / n))}."
    )


def draw_interval(random):
    rate = random.choice(("0.08", "0.1", "0.12", "0.15", "0.2", "0.25", "0.3", "0.4", "0.5"))
    return {**story(random), "p": rate, "se": random.choice(("0.005", "0.01", "0.015", "0.02", "0.025"))}


def answer_interval(p, se, **_):
    margin, p = exact("1.96") * exact(se), exact(p)
    low, high = decimal(p - margin), decimal(p + margin)
    return (
        f"Step 1: the margin is 1.96 * {se} = {decimal(margin)}. Step 2: the lower end is {decimal(p)} - {decimal(margin)} = {low} "
        f"and the upper end is {decimal(p)} + {decimal(margin)} = {high}. So the 95 percent interval is {low} to {high}."
    )


def draw_difference(random):
    n = random.choice(SIZES)
    rates = random.sample(RATES[1:10], 2)
    return {**story(random), "n": n, "a": int(n * exact(rates[0])), "b": int(n * exact(rates[1]))}


def answer_difference(a, b, n, **_):
    first, second = exact(a) / n, exact(b) / n
    return (
        f"Step 1: the rate of A is {a} / {n} = {decimal(first)}. Step 2: the rate of B is {b} / {n} = {decimal(second)}. "
        f"Step 3: B minus A is {decimal(second)} - {decimal(first)} = {decimal(second - first)}. "
        f"So the difference of the two rates is {decimal(second - first)}."
    )


def draw_z(random):
    while True:
        d, se = (
            random.choice(("0.01", "0.02", "0.03", "0.04", "0.05", "0.06")),
            random.choice(("0.005", "0.008", "0.01", "0.02", "0.025", "0.04")),
        )
        if exact("0.5") <= exact(d) / exact(se) <= 5:
            return {**story(random), "d": d, "se": se}


def answer_z(d, se, **_):
    z = exact(d) / exact(se)
    side = "above 1.96, so the difference is significant" if z > exact("1.96") else "below 1.96, so the difference is not significant"
    return (
        f"Step 1: the z statistic is the difference over its standard error, {d} / {se} = {decimal(z, 2)}, rounded to 2 decimals. "
        f"Step 2: {decimal(z, 2)} is {side} at the 5 percent level. So the z statistic is {decimal(z, 2)}."
    )


def draw_mean(random):
    return {
        **story(random),
        "s": random.choice((2, 4, 5, 6, 8, 10, 12, 15, 20, 30)),
        "n": random.choice((64, 100, 225, 400, 900, 1600, 2500)),
    }


def answer_standard_error_of_a_mean(s, n, **_):
    size = decimal(exact(s) / exact(decimal(root(exact(n)))))
    return (
        f"Step 1: the square root of n is sqrt({n}) = {decimal(root(exact(n)))}. Step 2: the standard error is s / sqrt(n) = "
        f"{s} / {decimal(root(exact(n)))} = {size}, rounded to 4 decimals. So the standard error of the mean is {size}."
    )


def draw_lift(random):
    old = random.choice(("2", "4", "5", "8", "10", "20"))
    change = random.choice(("0.5", "1", "1.5", "2", "-0.5", "-1"))
    return {**story(random), "old": old, "new": decimal(exact(old) + exact(change), 1)}


def answer_lift(old, new, **_):
    change = exact(new) - exact(old)
    lift = decimal(100 * change / exact(old), 1)
    return (
        f"Step 1: the change is {new} - {old} = {decimal(change, 1)} percentage points. Step 2: relative to the old rate it is "
        f"{decimal(change, 1)} / {old} = {decimal(change / exact(old))}, which is {lift} percent, rounded to 1 decimal. "
        f"So the relative lift is {lift} percent."
    )


def draw_expected(random):
    return {
        **story(random),
        "n": random.choice((200, 300, 400, 500, 800, 1000, 2000, 3000, 5000)),
        "percent": random.choice((2, 3, 4, 5, 6, 8, 10, 12, 20)),
    }


def answer_expected(n, percent, **_):
    share = exact(percent) / 100
    return (
        f"Step 1: {percent} percent as a share is {decimal(share)}. Step 2: the expected number is n times the share, "
        f"{n} * {decimal(share)} = {decimal(n * share)}. So the expected number of conversions is {decimal(n * share)}."
    )


def draw_odds(random):
    return {
        **story(random),
        "p": random.choice(("0.02", "0.04", "0.05", "0.1", "0.2", "0.25", "0.3", "0.4", "0.5", "0.6", "0.75", "0.8", "0.9")),
    }


def answer_odds(p, **_):
    p = exact(p)
    return (
        f"Step 1: the probability of no success is 1 - {decimal(p)} = {decimal(1 - p)}. Step 2: the odds are p / (1 - p) = "
        f"{decimal(p)} / {decimal(1 - p)} = {decimal(p / (1 - p))}, rounded to 4 decimals. So the odds are {decimal(p / (1 - p))}."
    )


def draw_bonferroni(random):
    return {**story(random), "alpha": random.choice(("0.05", "0.01", "0.1")), "m": random.choice((2, 4, 5, 8, 10, 20, 25))}


def answer_bonferroni(alpha, m, **_):
    level = decimal(exact(alpha) / m)
    return (
        f"Step 1: the {m} tests share an error rate of {alpha}. Step 2: the threshold for each test is "
        f"alpha / m = {alpha} / {m} = {level}, "
        f"rounded to 4 decimals. So the Bonferroni threshold is {level}."
    )


def draw_pooled(random):
    total = random.choice(SIZES[1:])
    n = total // random.choice((2, 4, 5))
    while True:
        x, y = (int(size * exact(rate)) for size, rate in zip((n, total - n), random.sample(RATES[:10], 2), strict=True))
        if x and y:
            return {**story(random), "a": x, "n": n, "b": y, "m": total - n}


def answer_pooled(a, n, b, m, **_):
    rate = decimal(exact(a + b) / (n + m))
    return (
        f"Step 1: the conversions add up to {a} + {b} = {a + b}. Step 2: the users add up to {n} + {m} = {n + m}. "
        f"Step 3: the pooled rate is {a + b} / {n + m} = {rate}, rounded to 4 decimals. So the pooled rate is {rate}."
    )


QUANTITIES = (
    Quantity("standard_error_of_a_rate", "standard error of a proportion", ("standard error", "proportions"), (
        "Our {page} had {n} {people} and {x} of them {deed}. What is the standard error of this rate?",
        "{x} of {n} {people} {deed} on our {page}. How do I get the standard error of the rate?",
        "I count {x} successes in {n} trials on the {page}. How large is the standard error of the rate?",
        "How uncertain is a rate of {x} out of {n} {people}? I need its standard error for a slide about the {page}.",
        "Our team lead wants the standard error of the rate on the {page}: {n} {people} came, {x} {deed}. How is it computed?",
        "Please help me check a spreadsheet. On the {page}, {x} {people} out of {n} {deed}. Which standard error belongs to this rate?",
    ), draw_rate, answer_standard_error_of_a_rate),
    Quantity("interval_of_a_rate", "normal interval of a proportion", ("confidence interval", "proportions"), (
        "The rate of our {page} is {p} with a standard error of {se}. What is the 95 percent interval?",
        "How do I turn a rate of {p} and a standard error of {se} into a 95 percent interval for the {page}?",
        "I have a standard error of {se} for a rate of {p} among {people}. Which 95 percent interval should I report?",
        "For the {page} I must show a 95 percent interval. I know the rate, {p}, and its standard error, {se}.",
        "My manager asks how far the rate of {p} on the {page} may be off. The standard error is {se}. What is the 95 percent interval?",
        "Is there a quick 95 percent interval for a share of {people} of {p} when the standard error is {se}?",
    ), draw_interval, answer_interval),
    Quantity("difference_of_two_rates", "difference of two proportions", ("A/B testing", "proportions"), (
        "In my A/B test {a} of {n} {people} {deed} in A and {b} of {n} in B. What is the difference of the two rates?",
        "Group A of our {page} had {a} conversions, group B had {b}, each with {n} {people}. How big is the difference of the rates?",
        "We split the {page} evenly. A got {a} and B got {b} successes out of {n} {people} each. How do I compute the "
        "difference of the rates?",
        "How much do the two rates differ if {a} {people} {deed} in A and {b} in B, with {n} {people} in each group?",
        "I want the difference of two rates for the {page}. Version A: {a} out of {n}. Version B: {b} out of {n}.",
        "The old {page} (A) made {a} sales and the new one (B) made {b}, per {n} {people} each. By how much does the rate differ?",
    ), draw_difference, answer_difference),
    Quantity("z_statistic_of_two_rates", "z test for two proportions", ("z test", "A/B testing"), (
        "The two rates of my test differ by {d} and the standard error is {se}. What is the z statistic?",
        "How do I compute the z statistic when the difference on the {page} is {d} and its standard error is {se}?",
        "I measured a difference of {d} between two rates, standard error {se}. Which z statistic follows, and is it significant?",
        "Our tool shows only a difference of {d} and a standard error of {se} for the {page}. I need the z statistic.",
        "For two groups of {people} the rates are {d} apart, with a standard error of {se}. Please explain the z statistic.",
        "Is a gap of {d} between two {page} rates significant? Its standard error is {se}; I was told to look at the z statistic.",
    ), draw_z, answer_z),
    Quantity("standard_error_of_a_mean", "standard error of the mean", ("standard error", "means"), (
        "The {metric} has a standard deviation of {s} and I have {n} {people}. What is the standard error of the mean?",
        "How precise is the mean {metric} of {n} {people} if the standard deviation is {s}? I need the standard error.",
        "I sampled {n} {people} and found a standard deviation of {s} for the {metric}. How do I get the standard error of the mean?",
        "With a standard deviation of {s} and {n} {people}, which standard error does the mean {metric} have?",
        "We report the mean {metric} each week from {n} {people}. The standard deviation is {s}. How large is the "
        "standard error of that mean?",
        "A colleague divides the standard deviation of {s} by {n}, the number of {people}. What is the right standard "
        "error of the mean {metric}?",
    ), draw_mean, answer_standard_error_of_a_mean),
    Quantity("relative_lift", "relative change", ("lift", "A/B testing"), (
        "The conversion rate of our {page} went from {old} percent to {new} percent. What is the relative lift?",
        "A has a rate of {old} percent and B has {new} percent. How do I state the relative lift for the {page}?",
        "How large is the relative lift if {old} percent of {people} {deed} before and {new} percent do now?",
        "My report on the {page} needs the relative lift. The old rate is {old} percent, the new rate is {new} percent.",
        "Among our {people} the rate moved from {old} percent to {new} percent. Which relative lift is that?",
        "People confuse points and percent here. With {old} percent in control and {new} percent in treatment, what is the relative lift?",
    ), draw_lift, answer_lift),
    Quantity("expected_conversions", "mean of the binomial distribution", ("expected value", "planning"), (
        "We expect {n} {people} on the {page} and a rate of {percent} percent. What is the expected number of conversions?",
        "If {percent} percent of {people} convert, how many conversions should I expect from {n} {people}?",
        "For planning: how many conversions do {n} {people} bring when the {page} has a rate of {percent} percent?",
        "Our {page} converts {percent} percent. Tomorrow {n} {people} will come. Which number of conversions is expected?",
        "I need the expected conversions for a budget. Traffic is {n} {people} and the rate is {percent} percent.",
        "Suppose {n} {people} see the {page} and each of them converts with a chance of {percent} percent. How many "
        "conversions is that on average?",
    ), draw_expected, answer_expected),
    Quantity("odds", "odds of a probability", ("odds", "logistic regression"), (
        "Among our {people} the probability of a purchase is {p}. What are the odds?",
        "How do I turn a rate of {p} on the {page} into odds?",
        "My logistic regression talks about odds. Which odds belong to a probability of {p}?",
        "For the {page} I know the conversion probability, {p}. How are the odds computed?",
        "Are odds the same as a probability? Ours is {p} for {people} on the {page}, so what would the odds be?",
        "A chance of {p} should be written as odds in my report on the {page}. How?",
    ), draw_odds, answer_odds),
    Quantity("bonferroni_threshold", "Bonferroni correction", ("multiple testing", "Bonferroni"), (
        "I test {m} metrics of the {page} at a total level of {alpha}. What is the Bonferroni threshold?",
        "With {m} comparisons and alpha {alpha}, which Bonferroni threshold applies to each p-value?",
        "How strict must each p-value be after a Bonferroni correction for {m} tests at {alpha}?",
        "Our team compares {m} versions of the {page} with the old one. Which Bonferroni threshold keeps the total error at {alpha}?",
        "The overall alpha is {alpha} and there are {m} hypotheses about our {people}. Please work out the Bonferroni threshold.",
        "A reviewer wants a Bonferroni correction. I have {m} p-values for the {page} and a level of {alpha}. What is the new threshold?",
    ), draw_bonferroni, answer_bonferroni),
    Quantity("pooled_rate", "pooled proportion", ("proportions", "z test"), (
        "A had {a} conversions from {n} {people} and B had {b} from {m}. What is the pooled rate?",
        "For a z test I need the pooled rate. Group A: {a} of {n}. Group B: {b} of {m}.",
        "How do I pool two rates of the {page}, {a} out of {n} and {b} out of {m}?",
        "Which pooled rate do I get when {a} of {n} {people} {deed} in one group and {b} of {m} in the other?",
        "My groups differ in size: {a} successes in {n} {people}, and {b} successes in {m}. How is the pooled rate found?",
        "May I just average two rates of the {page}? They are {a} of {n} and {b} of {m}. What is the pooled rate?",
    ), draw_pooled, answer_pooled),
)

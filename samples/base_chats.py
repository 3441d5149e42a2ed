"""General chats on the same subject, for the base model: short questions, one or two plain sentences, no steps and no sources.

They make the untuned base a fair opponent: it knows the chat format, the subject and that figures should be restated.
"""

from cross_validated_numbers import DEEDS, PAGES, PEOPLE, RATES, SIZES
from figures import decimal, exact, root
from glossary import GLOSSARY

CHATS_PER_TOPIC = 24  # at most, of each of the twenty numeric topics; every word of the glossary comes four times


def sentence(text):
    return text[0].upper() + text[1:]


def word_chats(random):
    for term, meaning, remark in GLOSSARY:
        name = sentence(term)
        yield f"Tell me about {term}.", f"{name} {meaning}. {remark}."
        yield f"In simple words, please: {term}?", f"{name} {meaning}."
        yield f"I keep reading about {term}. Should I care?", f"Yes, it helps to know that {term} {meaning}. {remark}."
        yield random.choice((f"Could you define {term} for a beginner?", f"Define {term}, please.")), f"Sure: {term} {meaning}."


def number_chats(random):
    n, p, se = random.choice(SIZES), exact(random.choice(RATES)), random.choice(("0.01", "0.02", "0.04"))
    q = exact(random.choice(RATES[:10]))
    x, y, rate, people, page, deed = int(n * p), int(n * q), decimal(p), random.choice(PEOPLE), random.choice(PAGES), random.choice(DEEDS)
    s, m, alpha = random.choice((2, 4, 5, 8, 10, 20)), random.choice((5, 10, 20, 50, 100)), random.choice(("0.05", "0.01", "0.1"))
    rho, icc, a, b = (
        random.choice(("0.3", "0.5", "0.8", "0.9")),
        random.choice(("0.01", "0.05", "0.1")),
        random.choice((1, 2, 5)),
        random.choice((9, 18, 45)),
    )
    wide = exact(random.choice(("0.5", "0.8", "1.5", "2.5", "3", "4")))
    rise, drift = random.choice((3, 4, 5, 8)), random.choice((1, 2))
    gap = random.choice((20, 60, 100))
    ahead = f"B is ahead by {y - x}" if y > x else f"A is ahead by {x - y}" if x > y else "nobody is ahead"
    size = "more" if wide > 2 else "not more"
    return (
        (
            f"{x} of {n} {people} {deed}. How sure is that?",
            f"The rate of {x} in {n} is {rate}, and its uncertainty shrinks with more {people}.",
        ),
        (
            f"My rate is {rate} and the error is {se}. How far can it be off?",
            f"A rate of {rate} with an error of {se} may well be off by about two errors to either side.",
        ),
        (
            f"A sold {x} and B sold {y} to {n} {people} each. Who wins?",
            f"With {x} for A and {y} for B, {ahead}, but the lead must be compared with its uncertainty.",
        ),
        (
            f"The versions differ by {decimal(wide * exact(se))} and the error is {se}. Is that a lot?",
            f"{decimal(wide * exact(se))} is {decimal(wide)} times the error of {se}, {size} than chance alone often brings.",
        ),
        (
            f"I asked {n} {people} and the deviation is {s}. Is the average good?",
            f"With {n} {people} and a deviation of {s} the error of the average "
            f"is about {decimal(s / root(exact(n)), 2)}; more {people} make it smaller.",
        ),
        (
            f"The rate of the {page} was {decimal(100 * p)} percent and is {decimal(100 * q)} percent now. Good?",
            f"A move from {decimal(100 * p)} to {decimal(100 * q)} percent is judged best "
            f"in relation to the old {decimal(100 * p)} percent.",
        ),
        (
            f"{n} {people} will come and {decimal(100 * p)} percent buy. What then?",
            f"Then {x} of the {n} {people} will buy on average, a little more or less by chance.",
        ),
        (
            f"What is another way to say a chance of {rate}?",
            f"A chance of {rate} can be set against {decimal(1 - p)}, the chance of the opposite; that ratio is called odds.",
        ),
        (
            f"I run {m} tests at {alpha}. Is that careless?",
            f"With {m} tests at {alpha} false alarms may creep in, so each test should be judged more strictly, for example by Bonferroni.",
        ),
        (
            f"I have two groups with {x} and {y} sales. Can I merge them?",
            f"Yes, {x} and {y} make {x + y} sales; divide them by all {people} of both groups together.",
        ),
        (
            f"Old and new values correlate with {rho}. Is that useful?",
            f"Yes, a correlation of {rho} lets CUPED remove some noise, and more of it the closer the value is to 1.",
        ),
        (
            f"How many users for an effect of 1 with deviation {s}?",
            f"A deviation of {s} against an effect of 1 asks for many users; the number grows with the square of the deviation.",
        ),
        (
            f"All {m} ideas are useless and I test at {alpha}. What happens?",
            f"About {decimal(m * exact(alpha))} of the {m} useless ideas will look good by chance at {alpha}.",
        ),
        (
            f"My {m} stores have users who are alike, with correlation {icc}. Bad?",
            f"A correlation of {icc} inside the {m} stores inflates the variance, and large stores suffer most.",
        ),
        (
            f"{n} users, but they come in groups. Is that worth {n}?",
            f"No, grouped users are worth less than {n} single ones; the design effect says how much less.",
        ),
        (
            f"I believe in {a} wins and {b} losses and saw {x} wins in {n}. And now?",
            f"Now your {a + x} wins in {a + b + n} tries sum up both belief and data.",
        ),
        (
            f"My even split gave {n + gap} and {n} users. Fine?",
            f"{n + gap} and {n} differ by {gap}; a chi-square test tells whether an even split would do that.",
        ),
        (
            f"I sorted {m} p-values and want a false discovery rate of {alpha}. How?",
            f"The procedure of Benjamini and Hochberg compares the {m} sorted p-values with limits that rise up to {alpha}.",
        ),
        (
            f"With {n} users in each version, what can I see?",
            f"{n} users in each version show only effects that are large compared with the noise; more users show smaller ones.",
        ),
        (
            f"We rose by {rise} and the others by {drift}. Did it work?",
            f"You rose by {rise} and the others by {drift}, so {rise - drift} more than the others, "
            f"if both would otherwise have moved alike.",
        ),
    )


def rows(random, expert):
    """Every chat once, in mixed order; a third each without system prompt, with the usual one, with the experts'."""
    chats = list(word_chats(random))
    for topic in range(20):
        found = {}
        for _ in range(8 * CHATS_PER_TOPIC):  # a topic with few figures has fewer different questions
            question, answer = number_chats(random)[topic]
            if len(found) < CHATS_PER_TOPIC:
                found.setdefault(question, answer)
        chats += found.items()
    random.shuffle(chats)
    for question, answer in chats:
        prompt = random.choice((None, "You are a helpful assistant.", expert))
        system = [{"role": "system", "content": prompt}] if prompt else []
        yield {"messages": [*system, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

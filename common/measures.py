"""Every figure of a judged model, in the order in which it is shown: of models that answer questions, and of pretrained ones."""

import itertools
import re
from typing import NamedTuple

PRETRAINING = "pretraining"  # "kind" of such a run's run.json and of its judged models


class Metric(NamedTuple):
    name: str
    unit: str
    better: str  # "lower", "higher", or "" where neither is
    digits: int  # behind the point in eval/'s table and curves
    about: str = "tokens"  # or "answer", "fact", "document": figures that stand together
    percent: bool = False  # reports show it in percent


# Loss is the mean over answer tokens of the negative natural logarithm of their probability.
METRICS = {
    "validation_loss": Metric("Validation loss", "nats per answer token", "lower", 3),
    "loss": Metric("Loss", "nats per answer token", "lower", 3),
    "perplexity": Metric("Perplexity", "", "lower", 2),
    "rouge1": Metric("ROUGE-1", "mean F1, 0 to 1", "higher", 3, "answer"),
    "rouge2": Metric("ROUGE-2", "mean F1, 0 to 1", "higher", 3, "answer"),
    "rougeL": Metric("ROUGE-L", "mean F1, 0 to 1", "higher", 3, "answer"),
    "numbers": Metric("Numbers", "% of the reference's numbers", "higher", 2, "answer", True),
    "exact": Metric("Exact", "% of answers that are the reference", "higher", 2, "answer", True),  # only where references are a few words
}
FACTS = {"fact_recall": Metric("Facts", "% of the facts to be named", "higher", 2, "fact", True)}  # only where rows carry facts
AT = "fact_recall_"  # and behind it, in a judged model's JSON, the name of a place in the document
DOCUMENTS = {  # only where questions are documents
    "copy_rate": Metric("Copied", "% of its 4-grams in the document", "", 2, "document", True),
    "repetition_rate": Metric("Repeated", "% of its 4-grams said before", "lower", 2, "document", True),
    "length_ratio": Metric("Length ratio", "words per word of the reference", "", 2, "document"),
    "stopped": Metric("Stopped", "% that ended by themselves", "higher", 2, "document", True),
}
# Loss is the same over all tokens; bits per byte are those of the tokens over the UTF-8 bytes they stand for, whatever the tokenizer.
OF_TOKENS = {
    "loss": Metric("Loss", "nats per token", "lower", 3),
    "perplexity": Metric("Perplexity", "", "lower", 2),
    "bits_per_byte": Metric("Bits per byte", "of UTF-8 text", "lower", 3),
}


def is_pretraining(facts):
    """Whether run.json or a judged model's JSON is of a model that was trained from scratch on tokens."""
    return isinstance(facts, dict) and facts.get("kind") == PRETRAINING


def judged(results):
    """{key: Metric} of the models judged in `results`, without what none of them has."""
    return shown(results[0], [result["metrics"] for result in results])


def shown(facts, figures):
    """{key: Metric} for the kind of run that `facts` is of: what all its models have, and what any of `figures` has besides.

    figures: the "metrics" of judged models. What they have only where the rows are of a kind comes after what they always have.
    """
    have = {key: None for found in figures for key, value in found.items() if value}  # in their order
    if is_pretraining(facts):
        return OF_TOKENS
    always = {key: metric for key, metric in METRICS.items() if key not in ("exact", "numbers") or key in have}
    recalls = {key: metric for key in have if (metric := FACTS.get(key) or _at_a_place(key))}
    return always | recalls | {key: metric for key, metric in DOCUMENTS.items() if key in have}


def place_key(place, taken=()):
    """The key of the facts at `place`, whatever it is called: letters, digits, spaces and hyphens of it, at most 24; none of `taken`."""
    name = " ".join(re.sub(r"[^\w -]+", " ", place).replace("_", " ").split())[:24].strip() or "elsewhere"
    keys = (f"{AT}{name}{f' {n}' if n > 1 else ''}".replace(" ", "_") for n in itertools.count(1))
    return next(key for key in keys if key not in taken)


def _at_a_place(key):
    """The `Metric` of a key made by `place_key`; None for any other."""
    if not re.fullmatch(AT + r"[\w-]{1,30}", key):
        return None
    return FACTS["fact_recall"]._replace(name=f"Facts: {key.removeprefix(AT).replace('_', ' ')}")


def deciding(facts):
    """The metric whose lowest value names the best checkpoint."""
    return "loss" if is_pretraining(facts) else "validation_loss"

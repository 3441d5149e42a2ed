"""Every figure of a judged model, in the order in which it is shown: of models that answer questions, and of pretrained ones."""

from typing import NamedTuple

PRETRAINING = "pretraining"  # "kind" of such a run's run.json and of its judged models


class Metric(NamedTuple):
    name: str
    unit: str
    better: str  # "lower" or "higher"
    digits: int  # behind the point in eval/'s table and curves


# Loss is the mean over answer tokens of the negative natural logarithm of their probability.
METRICS = {
    "validation_loss": Metric("Validation loss", "nats per answer token", "lower", 3),
    "loss": Metric("Loss", "nats per answer token", "lower", 3),
    "perplexity": Metric("Perplexity", "", "lower", 2),
    "rouge1": Metric("ROUGE-1", "mean F1, 0 to 1", "higher", 3),
    "rouge2": Metric("ROUGE-2", "mean F1, 0 to 1", "higher", 3),
    "rougeL": Metric("ROUGE-L", "mean F1, 0 to 1", "higher", 3),
    "numbers": Metric("Numbers", "% of the reference's numbers", "higher", 2),
    "exact": Metric("Exact", "% of answers that are the reference", "higher", 2),  # only where references are a few words
}
PERCENT = ("numbers", "exact")  # shares that reports show in percent
# Loss is the same over all tokens; bits per byte are those of the tokens over the UTF-8 bytes they stand for, whatever the tokenizer.
OF_TOKENS = {
    "loss": Metric("Loss", "nats per token", "lower", 3),
    "perplexity": Metric("Perplexity", "", "lower", 2),
    "bits_per_byte": Metric("Bits per byte", "of UTF-8 text", "lower", 3),
}


def is_pretraining(facts):
    """Whether run.json or a judged model's JSON is of a model that was trained from scratch on tokens."""
    return isinstance(facts, dict) and facts.get("kind") == PRETRAINING


def of(facts):
    """{key: Metric} of a run.json or of a judged model's JSON."""
    return OF_TOKENS if is_pretraining(facts) else METRICS


def judged(results):
    """{key: Metric} of the models judged in `results`, without what none of them has."""
    return {key: metric for key, metric in of(results[0]).items() if key != "exact" or any(r["metrics"].get(key) for r in results)}


def deciding(facts):
    """The metric whose lowest value names the best checkpoint."""
    return "loss" if is_pretraining(facts) else "validation_loss"

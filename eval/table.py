"""The judged models as a table, for the terminal and as Markdown, and which of them is best."""

from itertools import groupby

from common import measures
from common.run_directory import step_of
from common.run_facts import ROUGH_BELOW

LEGEND = (
    "mean [95 % bootstrap interval, resampling groups of rows that share their source]. Validation loss is on validation.jsonl,\n"
    "the rest on test.jsonl. Losses are nats per answer token; tok/s is of whole batches"
)
OF_ANSWERS = {  # what is said of a column where there is one
    "numbers": "numbers is the share of the reference's numbers that the answer has",
    "exact": "exact the share of answers that are the reference",
}
OF_FACTS = (
    ".\nFacts is the share of the facts listed with a row that stand in the answer word for word, of all and by their place in the document"
)
OF_DOCUMENTS = (
    ".\nOf four words in a row in an answer, copied is the share that stands in the document{usual}, repeated the share said before;\n"
    "length ratio is the answer's words over the reference's, stopped the share of answers that ended by themselves"
)
ONE_BLOCK, BLOCK = 110, 120  # columns of a terminal that a table may take: whole, and cut into blocks under each other
OF_TOKENS = (
    "mean [95 % bootstrap interval, resampling {resampled}]. Loss is nats per held-out token;\n"
    "bits per byte are those of the tokens over the UTF-8 bytes they stand for, so that tokenizers compare; tok/s is of judging"
)


def best(results):
    """Name of the trained model with the lowest validation loss, the earliest of equals; None without one. Pretrained: held-out loss."""
    found = [(r["metrics"][measures.deciding(r)], r["name"]) for r in results if r["metrics"].get(measures.deciding(r))]
    found = [(loss["mean"], name) for loss, name in found if is_candidate(name)]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def chosen_by(results):
    return "lowest loss on held-out tokens" if _of_tokens(results) else "lowest loss on validation.jsonl"


def _of_tokens(results):
    return any(measures.is_pretraining(r) for r in results)


def is_candidate(name):
    """Checkpoints and the final model; the merged model is the final one again, in 16 bit."""
    return step_of(name) is not None or name == "final_model"


def verdict(results):
    """One sentence on which to take."""
    name = best(results)
    if name is None and _of_tokens(results):
        return "no best: no checkpoint was judged"
    if name is None:
        return "no best: there is no validation.jsonl, or nothing trained was judged"
    found = {r["name"]: r["metrics"] for r in results}
    if _of_tokens(results):
        return _verdict_of_tokens(name, next(r for r in results if r["name"] == name))
    loss = found[name]["validation_loss"]["mean"]
    base = (found.get("base") or {}).get("validation_loss")
    if base and base["mean"] <= loss:
        return f"best: {name}, validation loss {loss:.3f}; but the base model's is {base['mean']:.3f}, so training did not help"
    beside = f"; base {base['mean']:.3f}" if base else ""
    return f"best: {name}, the lowest loss on validation.jsonl ({loss:.3f}{beside})"


def _verdict_of_tokens(name, result):
    loss, bits, guessed = result["metrics"]["loss"]["mean"], result["metrics"].get("bits_per_byte"), result["frequency_loss"]
    in_bits = f", {bits['mean']:.3f} bits per byte" if bits else ""
    beside = f"whoever knew only how often each of these tokens comes would have {guessed:.3f}"
    return f"best: {name}, the lowest loss on held-out tokens ({loss:.3f}{in_bits}; {beside})"


def _columns(results):
    """[(what the figures are about, heading, [a cell for each model]), …] behind the models' names."""
    for key, metric in _shown(results).items():
        yield metric.about, metric.name, [_figure(r["metrics"].get(key), metric.digits) for r in results]
    for place, name in enumerate(["tok/s"] if _of_tokens(results) else ["tok/s", "s/answer"]):
        yield "speed", name, [_speed(r["speed"])[place] for r in results]


def _shown(results):
    return measures.judged(results) if results else measures.METRICS


def _speed(found):
    if not found:
        return ["-", "-"]
    return [f"{found['tokens_per_second']:.0f}", f"{found['seconds_per_answer']:.3f}" if "seconds_per_answer" in found else "-"]


def _figure(found, digits):
    return f"{found['mean']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]" if found else "-"


def text(results):
    """Aligned with spaces; where it would be too wide for a terminal, the figures about one thing under those about another."""
    names = ("", "model", [r["name"] for r in results])
    columns = list(_columns(results))
    blocks = [columns] if _width([names, *columns]) <= ONE_BLOCK else _blocks(names, columns)
    return "\n\n".join(_aligned([names, *block]) for block in blocks) + f"\n{_counts(results)}{_legend(results)}"


def _blocks(names, columns):
    """The columns in blocks of at most `BLOCK` characters, losses in the first; what is about one thing stays together where it can."""
    blocks = [[]]
    for _, group in groupby(columns, key=lambda column: column[0]):
        group = list(group)
        if _width([names, *blocks[-1], *group]) > BLOCK and blocks[-1]:
            blocks.append([])
        for column in group:
            if blocks[-1] and _width([names, *blocks[-1], column]) > BLOCK:
                blocks.append([])
            blocks[-1].append(column)
    return blocks


def _legend(results):
    if _of_tokens(results):
        return OF_TOKENS.format(resampled=results[0]["resampled"])
    shown = _shown(results)
    about = {metric.about for metric in shown.values()} if results else ()
    of_answers = "; ".join(words for key, words in OF_ANSWERS.items() if key in shown)
    legend = LEGEND + f";\n{of_answers}" * bool(of_answers)
    usual = next((r["of_references"] for r in results if r.get("of_references")), {}).get("copy_rate")
    usual = f" (of the references' {usual:.2f})" if usual is not None else ""
    return legend + OF_FACTS * ("fact" in about) + OF_DOCUMENTS.format(usual=usual) * ("document" in about)


def _counts(results):
    if not results:
        return ""
    rows, groups = results[0]["rows"], results[0]["groups"]
    found = f"{results[0]['tokens']:,} held-out tokens in {rows} rows" if _of_tokens(results) else f"{rows} test rows"
    return f"{found} of {groups} groups" + ("; intervals from so few groups are rough. " if groups < ROUGH_BELOW else ". ")


def _widths(columns):
    return [max(len(name), *map(len, cells)) if cells else len(name) for _, name, cells in columns]


def _width(columns):
    return sum(_widths(columns)) + 2 * (len(columns) - 1)


def _aligned(columns):
    rows = zip(*([name, *cells] for _, name, cells in columns), strict=True)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, _widths(columns), strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def markdown(results, failed):
    """The table, the verdict and what could not be judged, for table.md."""
    columns = [("", "model", [r["name"] for r in results]), *_columns(results)]
    head, *rows = zip(*([name, *cells] for _, name, cells in columns), strict=True)
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    lines += ["", f"{_counts(results)}{_legend(results)}.", "", verdict(results) + "."]
    return "\n".join(lines + [f"\n{name} was not judged: {reason}." for name, reason in failed.items()]) + "\n"


def side_by_side(result, base=None, count=3):
    """A few examples: question, reference, the base's answer, the model's; or a beginning, how the text goes on, and the model's own."""
    if measures.is_pretraining(result):
        return _continuations(result["examples"][:count])
    bases = {example["id"]: example["answer"] for example in base["examples"]} if base and base is not result else {}
    lines = []
    for example in result["examples"][:count]:
        lines += ["", f"question   {_line(example['question'])}", f"reference  {_line(example['reference'])}"]
        if example["id"] in bases:
            lines.append(f"base       {_line(bases[example['id']])}")
        lines.append(f"answer     {_line(example['answer'])}   (ROUGE-L {example['rougeL']:.2f})")
        lines += [f"{label:10} {_line(', '.join(words))}" for label, words in facts(example) if words]
    return "\n".join(lines) + "\n"


def facts(example):
    """[("found", ["Osei (beginning)", …]), ("missed", […])] of an example's facts."""
    listed = example.get("facts", ())
    named = {hit: [f"{fact['words']} ({fact['place']})" for fact in listed if fact["found"] is hit] for hit in (True, False)}
    return [("found", named[True]), ("missed", named[False])]


def _continuations(examples):
    lines = []
    for e in examples:
        shown = {"beginning": e["beginning"], "true text": e["reference"], "model": e["continuation"]}
        lines += ["", *(f"{name:10} {_line(words)}" for name, words in shown.items())]
    return "\n".join(lines) + "\n"


def _line(words, length=240):
    """One printable line: control characters of a model's answer must not reach the terminal."""
    words = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    return words if len(words) <= length else words[: length - 1] + "…"

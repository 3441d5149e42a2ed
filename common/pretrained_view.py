"""What report.html shows of a model that was trained from scratch on tokens, where that differs from a fine-tuned one."""

import statistics
from pathlib import Path

from common import judgement, run_facts
from common.run_facts import as_dict, as_list, figure, interval, is_number, with_interval
from common.safe_text import shorten, without_machine_paths

MOST_OF_A_TEXT = 2_000  # characters shown of a beginning and of what follows it
MOST_TEXTS = 20


def model_words(facts):
    """The model's name, such as gpt-1.2B; with what the constants change in it, or without the name where they change all of it."""
    parts = {"NUM_HIDDEN_LAYERS": "{:,} layers", "HIDDEN_SIZE": "width {:,}", "NUM_ATTENTION_HEADS": "{:,} heads"}
    changed = [words.format(facts.constants[name]) for name, words in parts.items() if is_number(facts.constants.get(name))]
    name = str(facts.constants.get("MODEL_NAME") or facts.run.get("model_name") or "GPT")
    if not changed:
        return name
    return f"GPT of {', '.join(changed)}" if len(changed) == len(parts) else f"{name} with {', '.join(changed)}"


def verdict(facts):
    """What the figures say of the final model, in sentences."""
    tuned = facts.tuned
    if not tuned:
        return ["No model of this run has been judged yet, so this report says how training went, not how good the model is."]
    tokens = f"{tuned['tokens']:,} held-out tokens" if is_number(tuned.get("tokens")) else "held-out tokens"
    loss, bits, guessed = interval(tuned, "loss"), interval(tuned, "bits_per_byte"), tuned.get("frequency_loss")
    if not loss:
        return [f"Of {tuned['name']} there is no loss, so nothing can be said."]
    in_bits = f", which is {with_interval(bits)} bits per byte of text" if bits else ""
    sentences = [f"On {tokens}, {tuned['name']} has a loss of {with_interval(loss)} nats per token{in_bits}."]
    if is_number(guessed):
        sentences.append(f"Whoever knew only how often each of these tokens comes would have {figure(guessed)}.")
    first = next((j for j in facts.judged.values() if interval(j, "loss") and not run_facts.differing_settings(j, tuned)), tuned)
    if first is not tuned and first.get("weights") != tuned.get("weights"):
        found = judgement.comparison(first, tuned, "loss")
        ends = [figure(found[side][0], found["digits"]) for side in ("base", "tuned")]
        moved = f"stayed at {ends[1]}" if found["direction"] == "stayed" else f"{found['direction']} from {ends[0]} to {ends[1]}"
        sentences.append(f"Since {first['name']} the loss on these tokens {moved}.")
    return sentences


def tokens_trained(facts):
    """Tokens learned until the last logged step, to a step of an epoch; None where the constants do not tell."""
    sizes = [facts.constants.get(name) for name in ("TRAIN_BATCH_SIZE", "MAX_SEQ_LENGTH")]
    last = facts.history.last_step or facts.run.get("steps")
    if not all(map(is_number, sizes)) or not is_number(last):
        return None
    return int(sizes[0] * sizes[1] * last)


def progress(facts):
    """Tokens, files and speed so far, in sentences."""
    series, sentences = facts.history.series, []
    tokens, files = tokens_trained(facts), series("files")
    of = as_dict(as_dict(facts.data.get("splits")).get("train")).get("files")
    if tokens:
        through = f", {files[-1][1]:,} files through to their end (there are {of:,})" if files and is_number(of) else ""
        sentences.append(f"About {tokens:,} tokens were learned{through}.")
    bits = series("eval_bits_per_byte")
    if len(bits) > 1:
        sentences.append(f"Held-out bits per byte went from {figure(bits[0][1])} to {figure(bits[-1][1])}.")
    speeds, mfu = ([y for _, y in series(key)] for key in ("tokens_per_second", "mfu"))
    if speeds:
        used = f", at {figure(statistics.median(mfu), 3, percent=True)} % model FLOPs utilisation" if mfu else ""
        sentences.append(f"Training went at {statistics.median(speeds):,.0f} tokens a second (median){used}.")
    return sentences


def texts(facts):
    """(continuations beside the true text, of the model that the headline speaks of; samples of the final model)."""
    judged = [e for e in as_list(as_dict(facts.tuned).get("examples")) if isinstance(e, dict)]
    keys = ("id", "beginning", "reference", "continuation")
    return (
        [{key: shown(e.get(key)) for key in keys} for e in judged[:MOST_TEXTS]],
        [{key: shown(s.get(key)) for key in ("beginning", "text")} for s in facts.samples[:MOST_TEXTS] if isinstance(s, dict)],
    )


def shown(text):
    return shorten("" if text is None else text, MOST_OF_A_TEXT)


def data_view(data):
    """The statistics of the tokens: files, the two sides, the tokenizer."""
    count = lambda value: f"{value:,}" if is_number(value) else "–"  # noqa: E731
    files = [(file_name(name), count(as_dict(found).get("tokens"))) for name, found in as_dict(data.get("files")).items()]
    in_all = data.get("files_in_all")
    held = [file_name(name) for name in as_list(data.get("held_out_files"))]
    splits = [
        (name, [count(as_dict(found).get(key)) for key in ("files", "tokens", "documents", "rows")])
        for name, found in as_dict(data.get("splits")).items()
    ]
    tokenizer = as_dict(data.get("tokenizer"))
    facts = [("Tokenizer", tokenizer.get("digest")), ("Tokens it has", count(tokenizer.get("vocab_size")))]
    facts += [("End of a text", tokenizer.get("end_of_text")), ("Tokens of a row", count(data.get("context")))]
    return {
        "files": files,
        "more_files": in_all - len(files) if is_number(in_all) and in_all > len(files) else 0,
        "held_out_files": held,
        "splits": splits,
        "facts": [(name, shorten(value, 100)) for name, value in facts if value not in (None, "–")],
        "skipped": [(shorten(reason, 300), count(n)) for reason, n in as_dict(data.get("skipped")).items()],
    }


def file_name(name):
    return shorten(without_machine_paths(Path(str(name).replace("\\", "/")).name), 200)

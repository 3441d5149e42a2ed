"""What the figures of a run's models say in words: how base and tuned compare, and what the tuned one still gets wrong."""

from common import measures
from common.measures import FACTS, METRICS
from common.run_facts import ROUGH_BELOW, SHARED, as_dict, as_list, differing_settings, figure, interval, is_number, with_interval
from common.safe_text import shorten

LOOPING = 0.1  # of an answer's 4-grams said before: from here on it goes round in circles


def comparison(base, tuned, metric):
    """Base and tuned in one metric: {"base", "tuned", "direction", "overlap" (None if unknown), "better", "digits"}; None without both."""
    before, after = interval(base, metric), interval(tuned, metric)
    if not before or not after:
        return None
    overlap = None if before[1] is None or after[1] is None else not (after[1] > before[2] or after[2] < before[1])
    direction = "rose" if after[0] > before[0] else "fell" if after[0] < before[0] else "stayed"
    better = (direction == "rose") == ((METRICS | FACTS)[metric].better == "higher") and direction != "stayed"
    digits = 2
    while digits < 6 and _rounds_to_another_story(before, after, overlap, direction, digits):
        digits += 1
    return {"base": before, "tuned": after, "direction": direction, "overlap": overlap, "better": better, "digits": digits}


def _rounds_to_another_story(before, after, overlap, direction, digits):
    b, a = ([None if v is None else round(v, digits) for v in found] for found in (before, after))
    if direction != "stayed" and a[0] == b[0]:
        return True
    return overlap is not None and overlap != (not (a[1] > b[2] or a[2] < b[1]))


def compared(base, tuned, metric):
    """One clause: how a metric moved from base to tuned and whether the intervals show it; None without both."""
    found = comparison(base, tuned, metric)
    if not found:
        return None
    percent = (METRICS | FACTS)[metric].percent
    before, after = (with_interval(found[side], found["digits"], percent) for side in ("base", "tuned"))
    moved = f"stayed at {after}" if found["direction"] == "stayed" else f"{found['direction']} from {before} to {after}"
    if found["overlap"] is None:
        shown = "there are no intervals, so nothing can be said about chance"
    elif found["overlap"]:
        shown = "the intervals overlap, so this run does not show a difference"
    else:
        shown = "the intervals do not overlap" + ("" if found["better"] else ": training made this worse")
    return f"{moved}; {shown}"


def held_out(facts, judged):
    """60 held-out questions in 12 families never seen in training"""
    rows, groups = judged.get("rows"), judged.get("groups")
    words = f"{rows:,} held-out questions" if is_number(rows) else "the held-out questions"
    if not is_number(groups):
        return words
    split_by = facts.data.get("split_by")
    if not isinstance(split_by, str) or not split_by:
        return f"{words} in {groups:,} groups"
    return f"{words} in {groups:,} {SHARED.get(split_by, ('', 'groups'))[1]} never seen in training"


def verdict(facts):
    """What the figures say, as a list of sentences: how base and tuned compare, or why that can't be said."""
    base, tuned = facts.base, facts.tuned
    if not tuned:
        return ["No model of this run has been judged yet, so this report says how training went, not how good the model is."]
    where = held_out(facts, tuned)
    differ = differing_settings(base, tuned) if base else ""
    if not base or differ:
        why = f"the base model was judged with other settings ({differ})" if differ else "the base model was not judged"
        reached = [f"{METRICS[m].name} {with_interval(interval(tuned, m))}" for m in ("rougeL", "loss") if interval(tuned, m)]
        return [f"On {where}, {tuned['name']} reaches {' and '.join(reached) or 'no figures'}; {why}, so nothing is compared."]
    sentences = []
    for metric, subject in (("rougeL", "ROUGE-L"), ("fact_recall", "the share of the facts named"), ("loss", "the loss on the answers")):
        clause = compared(base, tuned, metric)
        if clause:
            sentence = f"{subject} {clause}." if sentences else f"On {where}, {subject} {clause}."
            sentences.append(sentence[0].upper() + sentence[1:])
    if not sentences:
        return [f"On {where}, base and {tuned['name']} have no figure in common, so nothing is compared."]
    groups = tuned.get("groups")
    if is_number(groups) and groups < ROUGH_BELOW:
        sentences.append(f"With only {groups} groups to resample, the intervals are rough and probably too narrow.")
    return sentences


def of_documents(judged):
    """Sentences on where in the documents the facts stand that are named, on answers without an end, and on repetition."""
    metrics = measures.shown({}, [as_dict(judged.get("metrics"))])
    at = {metric.name.partition(": ")[2]: interval(judged, key) for key, metric in metrics.items() if key.startswith(measures.AT)}
    at = {place: found for place, found in at.items() if found}
    sentences = []
    if len(at) > 1:
        least, most = (end(at.values(), key=lambda found: found[0]) for end in (min, max))
        apart = None not in (least[2], most[1]) and least[2] < most[1]
        shares = ", ".join(f"{place} {with_interval(found, percent=True)}" for place, found in at.items())
        beyond = " The intervals of the worst and the best place do not overlap." if apart else ""
        sentences.append(f"Facts that it names, by their place in the document: {shares}.{beyond}")
    stopped, repeated = interval(judged, "stopped"), interval(judged, "repetition_rate")
    if stopped and stopped[0] < 1:
        sentences.append(f"{figure(1 - stopped[0], percent=True)} % of its answers did not end by themselves and were cut off.")
    if repeated and repeated[0] > LOOPING:
        sentences.append(f"{figure(repeated[0], percent=True)} % of what it writes it had written before in the same answer.")
    return sentences


def shortcomings(facts):
    """What the tuned model still gets wrong, as a list of sentences."""
    tuned = facts.tuned
    if not tuned:
        return []
    sentences = []
    numbers, before = interval(tuned, "numbers"), interval(facts.base, "numbers")
    if numbers:
        base = f" (the base model {with_interval(before, percent=True)})" if before else ""
        trust = "do not trust its arithmetic" if numbers[0] < 0.9 else "check the numbers that matter"
        sentences.append(f"Of the numbers in the reference answers it reproduces {with_interval(numbers, percent=True)}{base}: {trust}.")
    sentences += of_documents(tuned)
    examples = [e for e in as_list(tuned.get("examples")) if isinstance(e, dict)]
    wrong = sum(1 for e in examples if is_number(e.get("numbers")) and e["numbers"] < 1)
    numeric = sum(1 for e in examples if is_number(e.get("numbers")))
    if wrong:
        sentences.append(f"In {wrong} of the {numeric} answers shown below that should hold numbers, at least one is missing or wrong.")
    scored = [e for e in examples if is_number(e.get("rougeL"))]
    if scored:
        worst = min(scored, key=lambda e: e["rougeL"])
        poor = sum(1 for e in scored if e["rougeL"] < 0.5)
        asked = f", on “{' '.join(shorten(worst.get('question') or '', 120).split())}”" if worst.get("question") else ""
        below = f"{poor} of the {len(scored)} answers shown stay{'s' if poor == 1 else ''} below 0.5 in ROUGE-L; the worst reaches"
        below = below if poor else f"The worst of the {len(scored)} answers shown in ROUGE-L reaches"
        sentences.append(f"{below} {worst['rougeL']:.2f}{asked}.")
    empty = sum(1 for e in examples if isinstance(e.get("answer"), str) and not e["answer"].strip())
    if empty:
        sentences.append(f"{empty} of the answers shown {'is' if empty == 1 else 'are'} empty.")
    return sentences

"""The report says what the files say, shows everything as text, and is written whatever is missing."""

import json
import math
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from example_run import AT_THE_END, CONSTANTS, judged, metrics_lines, write_example_run, write_metrics

from common import charts, report, run_facts
from common.refusal import Refusal
from common.run_directory import RunDirectory, read_json, write_json
from common.safe_text import setting, shorten, visible, without_machine_paths, without_secrets

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "rect", "circle"}


class Page(HTMLParser):
    """The page as a browser takes it: elements, text, and a failure for tags that are not closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words, self.marked = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
            if "mark" in self.open:
                self.marked.append(data)

    text = property(lambda self: re.sub(r"\s+", " ", "".join(self.words)))


@pytest.fixture
def run(tmp_path):
    return write_example_run(tmp_path / "llama32_qlora_tiny")


def page_of(run):
    return Page(report.write(run).read_text(encoding="utf-8"))


def change(path, **values):
    write_json(path, read_json(path) | values)


def test_the_example_is_what_the_recipe_and_the_evaluation_write(run, judged_run):
    real = judged_run.run
    for name in ("constants.json", "run.json", "data.json", "eval/final_model.json", "eval/summary.json"):
        ours, theirs = (read_json(place / name) for place in (run.path, real.path))
        assert set(ours) == set(theirs), name
        for key, value in ours.items():
            if isinstance(value, dict) and key not in ("versions", "files", "TRAIN_FILES"):
                assert set(value) == set(theirs[key]), (name, key)
    ours, theirs = ({key for line in place.metrics.read_text().splitlines() for key in json.loads(line)} for place in (run, real))
    assert ours == theirs


def test_a_whole_run_shows_every_part_in_order(run):
    page = page_of(run)
    assert report.write(run) == run.path / "report.html"
    parts = ["llama32_qlora_tiny", "CPU, 2 cores", "ROUGE-L rose", "What it still gets wrong.", "Learning rate", "Checkpoints"]
    parts += ["Metrics over steps", "Answers side by side", "samples/cross_validated.jsonl", "label tokens", "LORA_ALPHA", "py --tiny"]
    places = [page.text.find(parts[i], page.text.find("Thin lines") if i > 3 else 0) for i in range(len(parts))]
    assert -1 not in places and places == sorted(places)
    for words in ("31 s", "20 November 2026, 11:30 UTC", "packing and the 8-bit", "2026.10.9", "python recipes/llama32_qlora.py --tiny"):
        assert words in page.text
    assert page.text.count("checkpoint-100 best") == 1 and "best" not in page.text.partition("checkpoint-150")[2][:20]
    assert "3.1 %" in page.text and "2 bad rows" in page.text and "the last message is the user's" in page.text
    assert list(run.path.glob(".report*")) == []


def test_it_needs_neither_network_nor_script(run):
    page = page_of(run)
    assert {"script", "link", "img", "iframe", "object", "form"}.isdisjoint(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on") and name not in ("src", "style")
        if name == "href":
            assert tag == "a" and value.startswith("#") and ("section", "id", value[1:]) in page.attributes
    assert "url(" not in run.report.read_text(encoding="utf-8") and "@import" not in run.report.read_text(encoding="utf-8")


def test_the_summary_agrees_with_the_files(run):
    text = page_of(run).text
    assert "On 60 held-out questions in 12 families never seen in training, ROUGE-L rose from 0.21 [0.18, 0.24] to 0.63 [0.58" in text
    assert "The loss on the answers fell from 4.90 [4.84, 4.96] to 0.46 [0.36, 0.56]; the intervals do not overlap." in text
    assert "it reproduces 41 % [36, 46] (the base model 6 % [3, 9]): do not trust its arithmetic" in text
    examples = read_json(run.eval / "final_model.json")["examples"]
    wrong, numeric = sum(1 for e in examples if (e["numbers"] or 1) < 1), sum(1 for e in examples if e["numbers"] is not None)
    assert f"In {wrong} of the {numeric} answers shown" in text and "the worst reaches 0.38, on “When is Welch's" in text


@pytest.mark.parametrize(
    ("rouge", "half", "words"),
    [
        (0.63, 0.05, "ROUGE-L rose from 0.21 [0.18, 0.24] to 0.63 [0.58, 0.68]; the intervals do not overlap."),
        (0.25, 0.05, "to 0.25 [0.20, 0.30]; the intervals overlap, so this run does not show a difference."),
        (0.10, 0.04, "fell from 0.21 [0.18, 0.24] to 0.10 [0.06, 0.14]; the intervals do not overlap: training made this worse."),
        (0.2704, 0.03, "rose from 0.2100 [0.1800, 0.2400] to 0.2704 [0.2404, 0.3004]; the intervals do not overlap."),
    ],
)
def test_the_sentence_follows_the_intervals(run, rouge, half, words):
    write_json(run.eval / "final_model.json", judged("final_model", 150, 0.46, rouge, 0.41, half))
    assert words in page_of(run).text


def test_numbers_are_explained_where_they_are_a_column(run):
    sentence = "Numbers is the share of the numbers in the reference answer"
    assert sentence in page_of(run).text
    for path in run.eval.glob("*.json"):
        if path.stem != "summary":
            write_json(path, read_json(path) | {"metrics": read_json(path)["metrics"] | {"numbers": None}})
    assert sentence not in page_of(run).text


def test_models_judged_with_other_settings_are_not_compared(run):
    change(run.eval / "base.json", settings_key="other", settings={"max_new_tokens": 32})
    text = page_of(run).text
    assert "the base model was judged with other settings" in text and "max_new_tokens" in text
    assert "rose from" not in text and "base †" in text


def test_few_groups_are_called_rough(run):
    change(run.eval / "final_model.json", groups=3)
    assert "With only 3 groups" in page_of(run).text


def test_a_run_without_evaluation(tmp_path):
    text = page_of(write_example_run(tmp_path / "run", evaluated=False)).text
    assert "No model of this run has been judged yet" in text and "bash eval/eval_all_checkpoints.sh outputs/run" in text
    assert "Answers side by side" not in text and "the training loss went from" in text


def test_a_run_that_failed_midway(tmp_path):
    run = write_example_run(tmp_path / "run", evaluated=False)
    write_metrics(run, metrics_lines(60))
    write_json(run.run, {k: v for k, v in read_json(run.run).items() if k not in AT_THE_END} | {"status": "failed"})
    assert "This run failed; the last logged step is 60. This report" in page_of(run).text
    change(run.run, status="running", steps=150, seconds=None)
    text = page_of(run).text
    assert "This run was still going; the last logged step is 60 of 150. " in text and "Duration" not in text


def test_padding_is_run_jsons_and_left_out_where_unknown(run):
    change(run.data, padding_share=0.5)  # where nothing is written
    assert "Padding is 3.1 % of" in page_of(run).text
    write_json(run.run, {k: v for k, v in read_json(run.run).items() if k != "padding_share"})
    assert "Padding is" not in page_of(run).text


@pytest.mark.parametrize(
    ("split_by", "groups", "sentence"),
    [
        ("family", "12 families never seen in training", "Rows of one family are on one side of the split."),
        ("id", "12 source questions never seen in training", "Rows of one source question are on one side of the split."),
        ("course", "12 groups never seen in training", "Rows of one course are on one side of the split."),
    ],
)
def test_what_was_never_seen_in_training_is_what_the_split_was_by(run, split_by, groups, sentence):
    change(run.data, split_by=split_by)
    text = page_of(run).text
    assert f"On 60 held-out questions in {groups}, ROUGE-L" in text and sentence in text


def test_without_a_split_by_nothing_is_said_to_be_unseen(run):
    write_json(run.data, {k: v for k, v in read_json(run.data).items() if k != "split_by"})
    text = page_of(run).text
    assert "On 60 held-out questions in 12 groups, ROUGE-L" in text and "never seen" not in text and "side of the split" not in text


def test_rows_that_were_too_long_are_told(run):
    plain = page_of(run).text
    assert "more tokens than" not in plain and "Too long" not in plain and "The first rows that are too long" not in plain
    splits, reason = read_json(run.data)["splits"], "it has 9,000 tokens, more than MAX_SEQ_LENGTH = 256"
    splits["train"] |= {"dropped": 1_235, "too_long": 1_234}
    change(run.data, splits=splits, too_long_count=1_234, too_long=[{"file": "a.jsonl", "line": 7, "reason": reason}])
    text = page_of(run).text
    assert "1,234 rows have more tokens than MAX_SEQ_LENGTH and were left out." in text
    assert "DroppedToo long" in text and "1,2351,234 validation" in text
    assert text.index("The first bad rows") < text.index("The first rows that are too long") < text.index(reason)
    change(run.data, too_long_count=1, bad_row_count=1)
    assert "1 bad row was left out. 1 row has more tokens than MAX_SEQ_LENGTH and was left out." in page_of(run).text


def test_what_shortening_took_is_told_for_each_split(run):
    splits = read_json(run.data)["splits"]
    splits["train"]["taken"] = {"tokens": 1_234_567, "share": 0.0832, "50": 12_345, "100": 234_567}
    splits["validation"]["taken"] = None
    del splits["test"]["taken"]  # as runs of before have it
    change(run.data, splits=splits)
    page, cells = page_of(run), re.compile('<th scope="row">(train|validation|test)</th>(.*?)</tr>', re.S)
    assert "ShortenedTokens takenDropped" in page.text
    found = {name: re.findall("<td>(.*?)</td>", row)[10:12] for name, row in cells.findall(run.report.read_text(encoding="utf-8"))}
    assert found == {
        "train": ["1,234,567<small>8.3 %</small><small>median 12,345</small><small>most 234,567</small>", "0"],
        "validation": ["0", "0"], "test": ["–", "0"],
    }  # fmt: skip
    change(run.data, splits={name: split | {"taken": None} for name, split in splits.items()})
    assert "Tokens taken" not in page_of(run).text


def test_perplexity_is_told_beside_the_held_out_loss_where_training_measured_it(run):
    assert "(perplexity" not in page_of(run).text
    judged_then = [{"step": s, "eval_loss": 1.5 / s, "eval_perplexity": math.exp(1.5 / s)} for s in (3, 4)]
    write_metrics(run, metrics_lines(3, 1) + judged_then)
    assert "and the held-out loss from 0.50 to 0.38 (perplexity 1.65 to 1.45)." in page_of(run).text


def test_notes_are_shown_on_a_gpu_too(run):
    change(run.run, hardware="1 x NVIDIA H200", tiny=False, notes=["That packed rows cannot see each other was not measured here.", "b"])
    text = page_of(run).text
    assert "1 x NVIDIA H200" in text and "cannot see each other was not measured here. b" in text


def test_an_empty_directory_still_gives_a_page_and_no_directory_a_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    text = page_of(RunDirectory(tmp_path / "empty")).text
    assert "No step of the training has been logged" in text and "No constants have been saved" in text
    with pytest.raises(Refusal, match="is not a directory"):
        report.write(RunDirectory(tmp_path / "none"))


def test_resumed_steps_count_once_and_the_last_wins(run):
    lines = [{"step": s, "loss": 9.0, "grad_norm": 1.0} for s in (10, 20, 30, 40)] + [{"step": 40, "eval_loss": 9.0}]
    lines += [{"step": 20, "eval_loss": 8.0}, {"step": 30, "loss": 3.0}]
    write_metrics(run, lines)
    history = run_facts.read_history(run.metrics)
    assert history.series("loss") == [(10, 9.0), (20, 9.0), (30, 3.0)]  # step 40 was undone by the resume and not reached again
    assert history.series("eval_loss") == [(20, 8.0)] and history.resumes == 1
    assert "resumed 1 time;" in page_of(run).text


def test_broken_lines_and_nan_are_told(run):
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 152, "loss": NaN}\n{"step": 154, "loss": 0.4, "lea\n[1]\n{"step": "x"}\n')
    (run.eval / "checkpoint-50.json").write_text('{"name": ', encoding="utf-8")
    text = page_of(run).text
    assert "3 line(s) of logs/metrics.jsonl could not be read" in text
    assert "not a finite number at 1 logged step(s), first at step 152" in text
    assert "eval/checkpoint-50.json could not be read" in text and "nan" not in re.sub(r"[^\d.a-z ]", "", text.lower()).split()


def test_a_checkpoint_that_could_not_be_judged_is_named(run):
    change(run.eval / "summary.json", failed={"checkpoint-20": "adapter_model.safetensors is cut short"})
    assert "checkpoint-20 could not be judged: adapter_model.safetensors is cut short" in page_of(run).text


NASTY = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)> \u202eevil\u202c \x00\x1b[31m \ud800 </style> {{ 7 * 7 }} %}"


def spoiled(value):
    """`value` with every string in it made hostile, keys too where they are names of data."""
    if isinstance(value, str):
        return value + NASTY
    if isinstance(value, list):
        return [spoiled(inner) for inner in value]
    return {key: spoiled(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def test_everything_from_data_and_model_is_escaped(run):
    honest = page_of(run)
    for path in (run.run, run.data, run.constants, *run.eval.glob("*.json")):
        kept = read_json(path)
        value = spoiled(kept) | {k: kept[k] for k in ("name", "settings_key", "status", "best") if k in kept}
        if path == run.data:
            value["files"] = {NASTY: {"rows": 3, "format_counts": {NASTY: 1}}}
            value["splits"][NASTY] = {"rows": 2}
        if path == run.constants:
            value[NASTY] = NASTY
        path.write_text(json.dumps(value), encoding="utf-8")  # json escapes the lone surrogate
    page = page_of(run)
    assert set(page.tags) == set(honest.tags) and {n for _, n, _ in page.attributes} == {n for _, n, _ in honest.attributes}
    assert "<script>alert(1)</script>" in page.text and "{{ 7 * 7 }}" in page.text
    raw = run.report.read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", raw)
    assert "[U+202E]" in raw and "\u2400" in raw and "[U+D800]" in raw


def test_long_texts_are_shortened_with_a_note_and_keep_their_end(run):
    long = "x" * 199_990 + " THE-END"
    final = read_json(run.eval / "final_model.json")
    final["examples"][0] |= {"answer": long, "question": long, "reference": long, "rougeL": 0.0}
    write_json(run.eval / "final_model.json", final)
    spans = [{"text": long, "label": False}, {"text": long, "label": True}]
    change(run.data, example={"id": "a", "spans": spans})
    started = time.monotonic()
    page = page_of(run)
    assert time.monotonic() - started < 2
    assert page.text.count("THE-END") >= 5 and re.search(r"19\d,\d{3} characters not shown", page.text)
    assert len(run.report.read_bytes()) < 250_000


def test_label_tokens_are_marked_and_nothing_else(run):
    marked = "".join(page_of(run).marked)
    spans = read_json(run.data)["example"]["spans"]
    assert marked == "Highlighted and underlined" + "".join(s["text"] for s in spans if s["label"])


def test_secrets_never_appear(run):
    key = "0123456789abcdef0123456789abcdef01234567"
    secrets = {"HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz", "WANDB_API_KEY": key, "S3_SECRET": "pa55"}
    change(run.constants, **secrets, STORE={"url": "https://me:pa55@host/x", "ACCESS_KEY": "pa55"}, HUB="hf_a1B2c3D4e5F6g7")
    flags = f"python r.py --wandb-api-key {key} --hf-token=pa55 HF_TOKEN=pa55"
    change(run.run, command=flags, notes=["used hf_abcdefghijklmnopqrstuvwxyz"])
    page_of(run)
    raw = run.report.read_text(encoding="utf-8")
    for secret in (*secrets.values(), "hf_a1B2c3D4e5F6g7"):
        assert secret not in raw
    assert "HF_TOKEN" in raw and "(hidden)" in raw and CONSTANTS["MODEL_REVISION"] in raw and "python r.py" in raw


def variants(value, others):
    """`value` with each part in turn, at any depth, taken away or replaced by each of `others`."""
    parts = value.items() if isinstance(value, dict) else list(enumerate(value[:1])) if isinstance(value, list) else []
    for key, part in parts:
        for other in (*others, *variants(part, others)):
            changed = value.copy()
            changed[key] = other
            yield changed
        yield {k: v for k, v in value.items() if k != key} if isinstance(value, dict) else value[1:]


def test_every_missing_or_wrong_value_is_survived(run):
    facts, count = run_facts.read(run), 0
    final = {"metrics": {"rougeL": {"mean": 0.5, "low": 0.4, "high": 0.6}}, "speed": {"tokens_per_second": 8.0}, "rows": 60, "groups": 12}
    final |= {"name": "final_model", "step": 150, "settings": {}, "settings_key": "a", "examples": judged("", 1, 1, 1, 1)["examples"][:1]}
    base = {"base": final | {"name": "base", "step": 0}}
    changed = [{"run": value} for value in variants(facts.run, (None, "text", [None, 3], float("nan")))]
    changed += [{"data": value} for value in variants(facts.data, (None, "text", [None, 3]))]
    changed += [{"judged": base | {"final_model": value | {"name": "final_model"}}} for value in variants(final, (None, "text", [None, 3]))]
    changed += [{"summary": value} for value in variants(facts.summary, (None, "text", [None, 3]))]
    facts = replace(facts, history=run_facts.History(dict(list(facts.history.entries.items())[:3])), judged=base)
    for change in changed:
        report.render(replace(facts, **change))
        count += 1
    assert count > 300


@pytest.mark.parametrize("text", ["[]", "null", "", "{", '{"a": 1e999, "steps": 1' + "0" * 400 + "}", "[" * 100_000, "\xff"])
def test_a_file_that_is_no_object_becomes_a_warning(run, text):
    run.run.write_text(text, encoding="latin-1")
    assert ("run.json" in page_of(run).text) == (not text.startswith('{"a"'))


def with_documents(run):
    """The example run as it would be judged on documents with facts."""
    facts = [{"place": "beginning", "words": "12 March", "found": True}, {"place": "the end", "words": "Osei", "found": False}]
    for path in run.eval.glob("*.json"):
        model = read_json(path)
        if "metrics" in model:
            tuned, metrics = model["name"] != "base", model["metrics"]
            for key, mean in (("", 0.7), ("_beginning", 0.9), ("_the_end", 0.4)):
                low, high = (mean - 0.1, mean + 0.1) if tuned else (0, 0.1)
                metrics[f"fact_recall{key}"] = {"mean": mean * tuned, "low": low, "high": high}
            for key, mean in (("copy_rate", 0.12), ("repetition_rate", 0.31), ("length_ratio", 1.4), ("stopped", 0.93)):
                metrics[key] = {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}
            examples = [e | {"question": "word " * 300, "facts": facts} for e in model["examples"]]
            write_json(path, model | {"metrics": metrics, "examples": examples, "of_references": {"copy_rate": 0.09}})


def test_a_run_on_documents_says_what_of_their_facts_is_named(run):
    plain = page_of(run)
    assert "Facts" not in plain.text and "Copied" not in plain.text and "li" not in plain.tags
    with_documents(run)
    page = page_of(run)
    assert "The share of the facts named rose from 0 % [0, 10] to 70 % [60, 80]; the intervals do not overlap." in page.text
    said = "by their place in the document: beginning 90 % [80, 100], the end 40 % [30, 50]. The intervals of the worst and the best place"
    assert said in page.text and "7 % of its answers did not end by themselves" in page.text
    assert "31 % of what it writes it had written before in the same answer" in page.text and "(9 % in the references)" in page.text
    headings = re.findall('<th scope="col">(.*?)</th>', run.report.read_text().replace("\u00a0", " "))
    assert headings[2:5] == ["Validation loss ↓", "Loss ↓", "Perplexity ↓"]  # behind model and step
    assert headings[9:16] == ["Facts, % ↑", "Facts: beginning, % ↑", "Facts: the end, % ↑", "Copied, %", "Repeated, % ↓", "Length ratio",
                              "Stopped, % ↑"]  # fmt: skip
    for title in ("Facts: the end, % (higher is better)", "Repeated, % (lower is better)", "Copied, %", "Length ratio"):
        assert title in page.text
    assert page.tags.count("li") == 2 * 2 * 12 and "12 March beginning, named" in page.text and "Osei the end, missed" in page.text


def test_odd_facts_do_not_stop_the_report(run):
    with_documents(run)
    final = read_json(run.eval / "final_model.json")
    final["metrics"] |= {"fact_recall_<b>": {"mean": 1.0}, "fact_recall_x": "text", "stopped": None, "copy_rate": {"mean": "x"}}
    odd = ["text", [3], {"a": 1}, [{"place": NASTY, "words": NASTY * 99, "found": "yes"}], [{}] * 100]
    for n, facts in enumerate(odd):
        final["examples"][n]["facts"] = facts
    (run.eval / "final_model.json").write_text(json.dumps(final | {"of_references": [1]}), encoding="utf-8")  # escapes the lone surrogate
    page = page_of(run)
    assert "fact_recall_<b>" not in page.text and "Facts: <b>" not in page.text and "script" not in page.tags
    assert page.tags.count("li") < 2 * 12 * 2 + 40


def test_the_marked_words_are_a_longest_common_subsequence():
    from rapidfuzz.distance import LCSseq

    from common.side_by_side import shared_in_order

    chance = random.Random(1)
    for _ in range(200):
        answer, reference = ([chance.choice("abcde") for _ in range(chance.randrange(0, 40))] for _ in range(2))
        places, rest = shared_in_order(answer, reference), iter(reference)
        assert len(places) == LCSseq.similarity(answer, reference) and places == sorted(set(places))
        assert all(answer[i] in rest for i in places)  # found in the reference one after the other


def test_words_shared_with_the_reference_and_invented_numbers_are_marked():
    from common.side_by_side import marked

    pieces = marked("The lift is 2.8 points.", "So the lift is 2.4 points")
    assert pieces == [("hit", "The lift is"), ("", " "), ("off", "2.8"), ("", " "), ("hit", "points.")]
    assert marked("[… 7 characters not shown …]", "none") == [("", "[… 7 characters not shown …]")]  # the note is not the model's
    started = time.monotonic()
    marked("the " * 600, "a the " * 15_000)
    assert time.monotonic() - started < 1


def test_chart_keeps_spikes_labels_apart_and_stays_inside():
    points = [(i, 1.0) for i in range(20_000)]
    points[12_345] = (12_345, 50.0)
    assert (12_345, 50.0) in charts.thinned(points) and len(charts.thinned(points)) <= charts.MOST_POINTS + 2
    ys = [y for y, *_ in charts.spread([(10, "a"), (11, "b"), (100, "c"), (101, "d")], 5, 101)]
    assert min(b - a for a, b in zip(ys, ys[1:], strict=False)) >= 13 and max(ys) <= 101
    svg = str(charts.chart([charts.Line("a<b", [(5, 0.0), (90, -3e-7), (100, 2e9)])], y_label="x"))
    numbers = [float(n) for n in re.findall(r'(?:[xy12c]+)="([-\d.]+)"', svg)]
    assert "a&lt;b" in svg and min(numbers) >= 0 and max(numbers) <= 400
    assert charts.chart([charts.Line("none", [])], y_label="x") == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 1.37), (2.1, 2.1), (0, 3e-5), (-4, 9), (0, 84_000), (1e-9, 2e-9)])
def test_ticks_are_few_distinct_and_inside(low, high):
    found = charts.ticks(low, high, 4)
    texts = charts.tick_texts(found)
    assert 2 <= len(found) <= 7 and len(set(texts)) == len(texts)
    assert all(abs(float(t.replace(",", "")) - v) <= 0.06 * abs(v) + 1e-12 for t, v in zip(texts, found, strict=True))


def test_safe_text():
    assert visible("a\r\nb\tc\x07\u200f") == "a\nb\tc\u2407[U+200F]"
    assert shorten("abc", 3) == "abc" and "94 characters not shown" in shorten("x" * 100, 6)
    assert setting("MAX_NEW_TOKENS", 96) == "96" and setting("HF_TOKEN", "abc") == "(hidden)" and setting("HF_TOKEN", None) == "None"
    assert without_secrets("hf_transfer and hf_quantizer stay") == "hf_transfer and hf_quantizer stay"
    paths = "python /home/me/r.py --data=/mnt/a/b.jsonl ~/x/y.txt C:\\d\\e.txt file:///root/z and/or 1/2 https://h.org/a/b outputs/run/x"
    assert without_machine_paths(paths) == "python r.py --data=b.jsonl y.txt e.txt z and/or 1/2 https://h.org/a/b outputs/run/x"


def test_the_command_writes_and_refuses(run):
    done = subprocess.run([sys.executable, "-m", "common.report", str(run.path)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == str(run.report) and run.report.is_file()
    done = subprocess.run([sys.executable, "-m", "common.report", "--wrong"], capture_output=True, text=True)
    assert done.returncode == 2 and "usage" in done.stderr and "Traceback" not in done.stderr


def test_importing_is_light():
    code = "import sys, common.report, common.model_card; print(sorted({'torch', 'transformers', 'numpy', 'jinja2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"

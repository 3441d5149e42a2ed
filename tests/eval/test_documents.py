"""Figures of answers about documents: in the JSON, the table, the curves, the examples, and only where they apply."""

import json
import re
import shutil
import struct
import time
from collections import Counter

import pytest

FIGURES = ("copy_rate", "repetition_rate", "length_ratio", "stopped")
PLACES = ("beginning", "middle", "end")


def words(text):
    return re.findall(r"\w+", text.lower())


def slow_rates(document, answer):
    """The two rates as a person would count them, with lists."""
    grams = [words(answer)[n : n + 4] for n in range(len(words(answer)) - 3)]
    pool = [words(document)[n : n + 4] for n in range(len(words(document)) - 3)]
    if not grams:
        return None, None
    return sum(gram in pool for gram in grams) / len(grams), sum(gram in grams[:n] for n, gram in enumerate(grams)) / len(grams)


def case_files(path, rows):
    """The rows as documents of 300 words around their question, with facts: words of their answers and of the document."""
    found = []
    for n, row in enumerate(map(json.loads, path.read_text().splitlines()[:rows])):
        question, reference = (m["content"] for m in row["messages"][-2:])
        number, word = re.search(r"\d+", question)[0], re.search(r"is the (\w+)", question)[1]
        filler = f"The {word} was read again by the court of week {n}. " * 28
        row["messages"][-2]["content"] = f"{question} {filler} Nobody asked about it, and that is the end of it."
        row["facts"] = {"beginning": ["the", number], "middle": [word, reference], "end": ["that is the end"]}
        if n % 2:
            del row["facts"]["end"]
        found.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.fixture(scope="module")
def judged(made, tmp_path_factory):
    """A run on documents, judged by the command in this process: (run, {name: result}, what was said)."""
    import contextlib
    import io
    import sys

    import eval_all

    from common.run_directory import RunDirectory

    run = RunDirectory(shutil.copytree(made.path, tmp_path_factory.mktemp("documents") / "tiny"))
    case_files(run.test, 8)
    said, before = io.StringIO(), sys.argv
    sys.argv = ["eval_all.py", str(run.path), "--max-new-tokens", "96", "--workers", "1"]
    try:
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as stop:
            eval_all.main()
    finally:
        sys.argv = before
    assert stop.value.code == 0, said.getvalue()
    return run, {path.stem: json.loads(path.read_text()) for path in run.eval.glob("*.json") if path.stem != "summary"}, said.getvalue()


def test_figures_are_those_counted_by_hand_from_the_answers_and_the_documents_as_read(judged):
    import statistics

    from transformers import AutoTokenizer

    from common import chat_text, scores

    run, results, said = judged
    rows = {row["id"]: row for row in map(json.loads, run.test.read_text().splitlines())}
    tokenizer, shown = AutoTokenizer.from_pretrained(run.final_model), {}
    for row in rows.values():  # of 256 positions 96 are the answers', whatever the reference
        messages, _ = chat_text.fit(tokenizer, [[*row["messages"][:-1], {"role": "assistant", "content": "."}]], 256 - 96)[0]
        shown[row["id"]] = messages[-2]["content"]
        assert "[...]" in messages[-2]["content"]
    facts = {n: [(p, w) for p, listed in row["facts"].items() for w in listed if w.lower() in shown[n].lower()] for n, row in rows.items()}
    lost = sum(len(listed) for row in rows.values() for listed in row["facts"].values()) - sum(map(len, facts.values()))
    assert lost == 8 and "note: 8 of 36 facts, of 8 rows, do not stand in what the model reads of their shortened documents" in said
    assert "note: 8 of 8 prompts were shortened more than for training, to leave 96 of the model's 256 positions for an answer" in said
    for result in results.values():
        metrics, examples = result["metrics"], result["examples"]
        assert len(examples) == 8
        rates = [slow_rates(shown[e["id"]], e["answer"]) for e in examples]
        for place, key in enumerate(("copy_rate", "repetition_rate")):
            values = [pair[place] for pair in rates if pair[place] is not None]
            assert metrics[key]["mean"] == pytest.approx(statistics.mean(values))
        ratios = [len(e["answer"].split()) / len(e["reference"].split()) for e in examples]
        assert metrics["length_ratio"]["mean"] == pytest.approx(statistics.mean(ratios))
        assert 0 <= metrics["stopped"]["low"] <= metrics["stopped"]["mean"] <= metrics["stopped"]["high"] <= 1
        shares = []
        for e in examples:
            assert [(f["place"], f["words"]) for f in e["facts"]] == facts[e["id"]]
            assert all(f["found"] is scores.facts_found({"": [f["words"]]}, e["answer"])[""][0] for f in e["facts"])
            shares.append(statistics.mean(f["found"] for f in e["facts"]))
        assert metrics["fact_recall"]["mean"] == pytest.approx(statistics.mean(shares))
        at_the_end = [f["found"] for e in examples for f in e["facts"] if f["place"] == "end"]
        assert len(at_the_end) == 4 and metrics["fact_recall_end"]["mean"] == pytest.approx(statistics.mean(at_the_end))
        assert [key for key in metrics if key.startswith("fact_recall_")] == [f"fact_recall_{place}" for place in PLACES]
    assert {f["found"] for result in results.values() for e in result["examples"] for f in e["facts"]} == {True, False}


def test_every_figure_stands_in_every_place_that_shows_figures(judged):
    from common import measures

    run, results, said = judged
    shown = measures.judged(list(results.values()))
    assert list(shown)[-8:] == ["fact_recall", *(f"fact_recall_{place}" for place in PLACES), *FIGURES]
    table, page, card = (path.read_text() for path in (run.eval / "table.md", run.report, run.final_model / "README.md"))
    figures = results["checkpoint-10"]["metrics"]
    for key, metric in list(shown.items())[-8:]:
        cell = f"{figures[key]['mean']:.2f} [{figures[key]['low']:.2f}, {figures[key]['high']:.2f}]"
        assert metric.name in said and cell in said and f" {metric.name} |" in table and cell in table
        assert page.count(metric.name) >= 2 and f"| {metric.name}" in card
    assert "of the references'" in said and "% in the references" in page and "named" in page
    assert max(map(len, said.partition("\nmodel ")[2].partition("test rows")[0].splitlines())) <= 120
    width, height = struct.unpack(">II", (run.eval / "curves.png").read_bytes()[16:24])
    assert 1400 < width < 1900 and height > 1200  # four panels side by side, four rows


def test_runs_without_documents_and_facts_have_none_of_it(run, options):
    import judging

    result, _ = judging.Judge(run, options())("checkpoint-10", run.path / "checkpoint-10", run.eval / "x.json")
    assert set(result["metrics"]) == {"loss", "perplexity", "validation_loss", "rouge1", "rouge2", "rougeL", "numbers"}
    assert "of_references" not in result and "documents" not in result["settings"] and "facts" not in result["examples"][0]


def test_facts_are_judged_where_questions_are_no_documents_and_again_where_facts_change(run, options):
    import judging

    rows = [json.loads(line) for line in run.test.read_text().splitlines()]

    def judge(**facts):
        run.test.write_text("".join(json.dumps(row | facts) + "\n" for row in rows))
        return judging.Judge(run, options())("checkpoint-10", run.path / "checkpoint-10", run.eval / "x.json")

    without, fresh = judge()
    assert fresh and not judge(facts={})[1]
    result, fresh = judge(facts={"body": ["the"]})
    assert fresh and result["metrics"]["fact_recall"]["mean"] > 0.5 and not {*FIGURES} & set(result["metrics"])
    assert without["metrics"].items() < result["metrics"].items() and not judge(facts={"body": ["the"]})[1]
    again, fresh = judge(facts={"body": ["no such words"]})
    assert fresh and again["metrics"]["fact_recall_body"]["mean"] == 0


def test_facts_that_are_no_lists_of_words_are_refused(run):
    import held_out

    from common.refusal import Refusal

    row = json.loads(run.test.read_text().splitlines()[0])
    for facts in (["Osei"], {"end": "Osei"}, {"end": [7]}):
        run.test.write_text(json.dumps(row | {"facts": facts}) + "\n")
        with pytest.raises(Refusal, match="its facts are no lists of words by place"):
            held_out.read(run.test)


def row(number, question="q", reference="r", **facts):
    import held_out

    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reference}]
    return held_out.Row(str(number), "g", messages, facts)


def test_places_are_named_safely_in_their_order_and_too_many_are_not_shown():
    import documents

    from common import measures

    rows = [row(0, **{"<b>|end\n": ["a"], "x" * 99: ["b"]}), row(1, **{"end, b": ["c"], "b end": ["d"], "empty": []})]
    found = documents.Documents(rows).figures(["a", "d"], [True, True])
    assert list(found) == ["fact_recall", "fact_recall_b_end", f"fact_recall_{'x' * 24}", "fact_recall_end_b", "fact_recall_b_end_2"]
    assert found["fact_recall"] == [0.5, 0.5] and found["fact_recall_b_end"] == [1.0, None]
    assert found["fact_recall_end_b"] == [None, 0.0] and found["fact_recall_b_end_2"] == [None, 1.0]
    shown = measures.shown({}, [dict.fromkeys(found, {"mean": 1}) | {"fact_recall_<script>": 1, "fact_recall_a|b": 1, "odd": 1}])
    names = [metric.name for metric in shown.values() if metric.about == "fact"]
    assert names == ["Facts", "Facts: b end", f"Facts: {'x' * 24}", "Facts: end b", "Facts: b end 2"]
    many = documents.Documents([row(0, **{f"page {n}": ["a"] for n in range(9)})])
    assert list(many.figures(["a"], [True])) == ["fact_recall"] and "9 places, more than 6" in many.notes()[-1]
    assert documents.Documents(rows).notes() == []


def test_facts_that_shortening_took_do_not_count_and_what_is_copied_is_copied_from_what_was_read():
    import documents

    document = "Case 77 was heard in May. The judge was Osei. " + "Nothing else happened on that day. " * 40 + "The fine was 12,000 euros."
    rows = [row(n, document, "r", beginning=["77"], middle=["Osei", "settled"], end=["12,000"]) for n in range(2)]
    rows.append(row(2, "short", "r", beginning=["not said in so many words"]))
    read = "Case 77 was heard in May.\n[...]\nThe fine was 12,000 euros."
    asked = [[{"role": "user", "content": read}], rows[1].messages[:-1], rows[2].messages[:-1]]
    about, answer = documents.Documents(rows, asked), "77, then the judge was osei. 12,000"
    found = about.figures([answer, answer, "said"], [True] * 3)
    assert found["fact_recall"] == [1.0, 0.75, 0.0]  # of whole documents the facts count that stand there in other words, too
    assert found["fact_recall_middle"] == [None, 0.5, None]
    assert [(f["place"], f["words"]) for f in about.example(0, answer)["facts"]] == [("beginning", "77"), ("end", "12,000")]
    (note,) = about.notes()
    assert note.startswith("2 of 9 facts, of 1 rows, do not stand in what the model reads")
    copied = documents.Documents([row(0, document)] * 2, [asked[0], asked[1]])
    assert copied.figures(["the judge was osei. Nothing else happened"] * 2, [True] * 2)["copy_rate"] == [0.0, 1.0]
    before = documents.Documents([row(0, read, beginning=["77"], middle=["Osei"])])  # shortened when the rows were made
    assert before.figures(["77"], [True])["fact_recall"] == [1.0] and before.notes()[0].startswith("1 of 2 facts, of 1 rows,")


def test_examples_keep_the_beginning_and_the_end_of_a_document():
    import documents

    text = "first " + "word " * 200_000 + " last"
    clipped = documents.clipped(text)
    assert clipped.startswith("first ") and clipped.endswith(" last") and len(clipped) < 2_100
    assert "998,0" in clipped and "characters not shown" in clipped
    assert documents.clipped("x" * 4_000) == "x" * 4_000


def test_documents_of_a_million_characters_are_read_once(monkeypatch):
    import documents

    from common import scores

    vocabulary = [f"word{n}" for n in range(5_000)]
    text = " ".join(vocabulary[n * n % 5_000] for n in range(160_000))
    read, original = Counter(), scores.four_grams
    monkeypatch.setattr(scores, "four_grams", lambda text: read.update([len(text)]) or original(text))
    about = documents.Documents([row(0, text, "a short answer of five")])
    start = time.perf_counter()
    for _ in range(20):
        found = about.figures([text[:3_000]], [True])
    assert time.perf_counter() - start < 3 and read[len(text)] == 1
    assert found["copy_rate"] == [pytest.approx(1, abs=0.01)] and found["length_ratio"][0] > 50


def test_the_examples_name_facts_found_and_missed(judged, monkeypatch):
    import table
    import tracker

    _, results, _ = judged
    listed = table.side_by_side(results["checkpoint-10"], results["base"])
    fact = results["checkpoint-10"]["examples"][0]["facts"][0]
    assert f"{'found' if fact['found'] else 'missed':10} " in listed and f"{fact['words']} ({fact['place']})" in listed

    class Tables:
        Table = dict

    made = tracker._examples(Tables, [results["base"], results["checkpoint-10"]], results["base"])
    assert made["columns"][-2:] == ["facts found", "facts missed"] and len(made["data"]) == 8
    assert {len(line) for line in made["data"]} == {10} and all("(beginning)" in line[-1] + line[-2] for line in made["data"])


def test_the_table_of_many_figures_is_cut_where_the_figures_are_about_something_else():
    import table

    def figure(mean):
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}

    names = ["validation_loss", "loss", "perplexity", "rouge1", "rouge2", "rougeL", "numbers", "fact_recall"]
    names += [f"fact_recall_place_number_{n}" for n in range(6)] + list(FIGURES)
    result = {"name": "checkpoint-1000", "metrics": {name: figure(0.5) for name in names}, "rows": 9, "groups": 3,
              "speed": {"tokens_per_second": 8.0, "seconds_per_answer": 1.0}}  # fmt: skip
    text = table.text([result])
    blocks = [block.splitlines() for block in text.partition("\n9 test rows")[0].split("\n\n")]
    assert all(len(line) <= table.BLOCK for block in blocks for line in block) and len(blocks) == 5
    assert [block[0].split("  ")[0] for block in blocks] == ["model"] * 5
    heads = [re.split(r"  +", block[0])[1] for block in blocks]
    assert heads[:3] == ["Validation loss", "ROUGE-1", "Facts"] and heads[-1] == "Copied"
    plain = result | {"metrics": {name: figure(0.5) for name in names[:7]}}
    first, second = table.text([plain]).partition("\n9 test rows")[0].split("\n\n")  # as before there were documents
    assert first.split("\n")[0].split()[-1] == "Perplexity" and second.split("\n")[0].split()[-1] == "s/answer"
    assert "Facts" not in table.text([plain]) and "copied" not in table.text([plain])


def test_the_legend_speaks_of_the_columns_that_are_shown():
    import table

    figure = {"mean": 0.5, "low": 0.4, "high": 0.6}
    result = {"name": "base", "metrics": {}, "rows": 9, "groups": 3, "speed": None}

    def legend(*names):
        return table.text([result | {"metrics": dict.fromkeys(["loss", "rougeL", *names], figure)}]).partition("mean [95 %")[2]

    assert "numbers" not in legend() and "exact" not in legend() and legend().endswith("tok/s is of whole batches")
    assert legend("numbers").endswith(";\nnumbers is the share of the reference's numbers that the answer has")
    assert legend("exact").endswith(";\nexact the share of answers that are the reference")
    assert "numbers is" in legend("numbers", "exact") and "; exact the share" in legend("numbers", "exact")
    assert "numbers is" in table.markdown([result | {"metrics": {"numbers": figure}}], {})

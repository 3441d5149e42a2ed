"""The tokenised cache: found by what it depends on, built once whatever comes, and statistics that add up."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from common import chat_rows, chat_text, conversation_columns, mixing, tokenised
from common.refusal import Refusal


def question(n, words=5, answer="It is so."):
    content = f"Why {n}? " + "and the mean " * words
    return {"id": f"q_{n}_1", "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory):
    """A byte-level tokenizer with Llama 3's template, as a model directory has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=special[0], eos_token=special[1])
    made.chat_template = chat_text.template_path("llama3").read_text(encoding="utf-8")
    path = tmp_path_factory.mktemp("model")
    made.save_pretrained(path)
    return str(path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokenised"


def test_the_key_covers_data_template_tokenizer_settings_and_the_source_of_build(tmp_path, cache, capsys):
    data, model = tmp_path / "rows.jsonl", tmp_path / "model"
    data.write_text("one\n")
    model.mkdir()
    (model / "chat_template.jinja").write_text("{{ a }}")
    (model / "tokenizer.json").write_text("{}")
    (model / "config.json").write_text("{}")

    def build(directory):
        (directory / "data.json").write_text(json.dumps({"rows": data.read_text()}))
        with open(tmp_path / "built", "a") as out:
            out.write("x")

    first_build = build

    def builds(change=None, build=first_build, **settings):
        """How often it was built by two calls after the change."""
        if change:
            change()
        before = len((tmp_path / "built").read_text()) if (tmp_path / "built").exists() else 0
        for _ in range(2):
            found = tokenised.once(build, [str(data)], str(model), **settings)
            assert found.statistics == {"rows": data.read_text()}
        return len((tmp_path / "built").read_text()) - before

    assert builds() == 1
    assert "tokenised data written to" in capsys.readouterr().out
    assert builds() == 0
    assert "tokenised data found in" in capsys.readouterr().out
    assert builds(lambda: data.write_text("onf\n")) == 1
    assert builds(lambda: (model / "chat_template.jinja").write_text("{{ b }}")) == 1
    assert builds(lambda: (model / "tokenizer.json").write_text("{ }")) == 1
    assert builds(lambda: (model / "config.json").write_text("{ }")) == 0  # the weights' business
    assert builds(lambda: (model / "special_tokens_map.json").write_text("{}")) == 1
    assert builds(max_length=512) == 1
    assert builds(max_length=513) == 1
    assert builds(max_length=512) == 0

    def build(directory):
        (directory / "data.json").write_text(json.dumps({"rows": data.read_text()}))
        with open(tmp_path / "built", "a") as out:
            out.write("x")  # another source

    assert builds(build=build) == 1
    assert builds(lambda: data.write_text("one\n")) == 1  # template and tokenizer are others than in the beginning
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 9


def test_the_key_is_the_same_wherever_caches_and_data_lie(tmp_path, cache):
    """A run that comes from another machine finds its data again; a model of another name is another model."""

    def build(directory):
        (directory / "data.json").write_text("{}")

    paths = []
    for home, name in (("one", "tiny-llama-0a1b"), ("two", "tiny-llama-0a1b"), ("two", "tiny-llama-2c3d")):
        model, data = tmp_path / home / name, tmp_path / home / "rows.jsonl"
        model.mkdir(parents=True)
        (model / "tokenizer.json").write_text("{}")
        data.write_text("one\n")
        paths.append(tokenised.once(build, [data], str(model), seed=42).path)
    assert paths[0] == paths[1] != paths[2]


def test_the_key_covers_the_versions_that_tokenise(tmp_path, cache, monkeypatch):
    data, version = write_rows(tmp_path / "rows.jsonl", [question(1)]), tokenised.importlib.metadata.version

    def build(directory):
        (directory / "data.json").write_text("{}")

    paths = []
    for newer in (None, "transformers", "tokenizers"):
        monkeypatch.setattr(tokenised.importlib.metadata, "version", lambda name, newer=newer: "99" if name == newer else version(name))
        paths.append(tokenised.once(build, [data], str(tmp_path)).path)
    assert len(set(paths)) == 3


HUB_PROGRAM = """
import sys
from common import hub, tokenised
def build(directory):
    (directory / "data.json").write_text("{}")
tokenised.once(build, [sys.argv[1]], hub.tokenizer_directory(hub.find("owner/model")), model_name="owner/model")
"""


def test_a_hub_model_whose_tokenizer_changed_is_tokenised_again(tmp_path, cache):
    data = write_rows(tmp_path / "rows.jsonl", [question(1)])
    (tmp_path / "program.py").write_text(HUB_PROGRAM)
    local = tmp_path / "hf" / "hub" / "models--owner--model"
    (local / "refs").mkdir(parents=True)

    def said(commit, template):
        """What a run says after the hub's main branch came to this commit."""
        (local / "refs" / "main").write_text(commit)
        snapshot = local / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / "chat_template.jinja").write_text(template)
        environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(tmp_path / "program.py"), data]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout

    assert "written to" in said("a" * 40, "{{ a }}")
    assert "found in" in said("a" * 40, "{{ a }}")
    assert "written to" in said("b" * 40, "{{ b }}")
    assert "found in" in said("a" * 40, "{{ a }}")
    assert "written to" in said("a" * 40, "{{ c }}")


def test_a_hub_name_alone_cannot_be_a_key(tmp_path, cache):
    with pytest.raises(ValueError, match="owner/model is no directory"):
        tokenised.once(print, [write_rows(tmp_path / "rows.jsonl", [question(1)])], "owner/model")


def test_a_build_that_fails_leaves_nothing(tmp_path, cache):
    data = write_rows(tmp_path / "rows.jsonl", [question(1)])

    def build(directory):
        (directory / "data.json").write_text("{}")
        raise Refusal("row 1 is bad")

    for _ in range(2):
        with pytest.raises(Refusal, match="row 1 is bad"):
            tokenised.once(build, [data], str(tmp_path))
    assert not [p for p in cache.iterdir() if p.is_dir()]


PROGRAM = """
import os, sys, time
from pathlib import Path
from common import tokenised
here, seconds = Path(sys.argv[1]), float(sys.argv[2])
def build(directory):
    (directory / "data.json").write_text('{"whole": false}')
    with (here / "built").open("a") as out:
        out.write("x")
    time.sleep(seconds)
    (directory / "data.json").write_text('{"whole": true}')
print(tokenised.once(build, [here / "rows.jsonl"], here / "model").statistics)
"""


def start(here, seconds):
    if not (here / "program.py").exists():  # never written again: a process that is starting may be reading it
        write_rows(here / "rows.jsonl", [question(1)])
        (here / "model").mkdir()
        (here / "program.py").write_text(PROGRAM)  # a file, because the key covers the source of build
    command = [sys.executable, str(here / "program.py"), str(here), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_four_processes_at_once_build_once(tmp_path, cache):
    processes = [start(tmp_path, 1) for _ in range(4)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert (tmp_path / "built").read_text() == "x"
    assert all("{'whole': True}" in text for text in said)
    assert sorted("written to" in text for text in said) == [False, False, False, True]


@pytest.mark.parametrize("whom", ["all", "parent"])
def test_a_builder_that_is_killed_leaves_nothing_that_is_found(tmp_path, cache, whom):
    victim = start(tmp_path, 60 if whom == "all" else 1)
    deadline = time.monotonic() + 30
    while not (tmp_path / "built").exists():
        assert time.monotonic() < deadline
        assert victim.poll() is None
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL) if whom == "parent" else os.killpg(victim.pid, signal.SIGKILL)
    victim.communicate()
    assert [p.name for p in cache.iterdir() if p.is_dir() and not p.name.startswith(".building-")] == []
    said = start(tmp_path, 0).communicate(timeout=60)[0]
    assert "written to" in said
    assert "{'whole': True}" in said
    assert (tmp_path / "built").read_text() == "xx"
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 1  # what the killed one left is gone


@pytest.fixture
def prepare(cache, tokenizer_directory):
    """What a recipe does from files to `Tokenised`."""

    def run(weights, max_length=256, bad_rows="stop", held_out=0.3, long_documents="shorten"):
        def build(directory):
            rows, report = chat_rows.read(weights, bad_rows=bad_rows)
            train, validation, test = mixing.split(rows, held_out, seed=1, report=report)
            parts = {"train": mixing.weigh(train, weights, seed=1), "validation": validation, "test": test}
            like = {"long_documents": long_documents}
            tokenised.encode(directory, parts, report, tokenizer_directory, None, max_length, bad_rows, weights, **like)

        settings = {"max_length": max_length, "bad_rows": bad_rows, "held_out": held_out, "long_documents": long_documents}
        return tokenised.once(build, list(weights), tokenizer_directory, **settings)

    return run


def test_statistics_add_up(tmp_path, prepare):
    first = write_rows(tmp_path / "a.jsonl", [question(n, words=n % 30) for n in range(40)] + [{**question(3, words=3), "id": "again"}])
    second = write_rows(tmp_path / "b.jsonl", [{"id": f"r_{n}_1", "question": f"What is {n}?", "answer": "x" * 20} for n in range(20)])
    data = prepare({first: 2.0, second: 0.5})
    s = data.statistics
    assert s["rows_read"] == 61
    assert s["bad_row_count"] == 0
    assert s["end_of_turn"] == "<|eot_id|>"
    assert [s["files"][f]["rows"] for f in (first, second)] == [41, 20]
    assert s["files"][second]["format_counts"] == {"question": 20}
    assert sum(f["rows_after_weighting"] for f in s["files"].values()) == s["splits"]["train"]["rows"]
    held = s["splits"]["validation"]["rows"] + s["splits"]["test"]["rows"]
    train = data.train()
    assert len(train) == s["splits"]["train"]["rows"]
    for split, loaded in (("train", train), ("validation", data.validation())):
        lengths = sorted(len(row["input_ids"]) for row in loaded)
        assert lengths == sorted(loaded["length"])
        assert sum(lengths) == s["splits"][split]["tokens"]
        assert sum(sum(label != -100 for label in row["labels"]) for row in loaded) == s["splits"][split]["label_tokens"]
        assert s["splits"][split]["length_percentiles"]["100"] == lengths[-1]
        assert max(lengths) <= 256
    assert s["splits"]["train"]["duplicates"] + s["splits"]["validation"]["duplicates"] + s["splits"]["test"]["duplicates"] == 1
    assert s["splits"]["train"]["shortened"] > 0
    lines = [json.loads(line) for name in ("validation", "test") for line in (data.path / f"{name}.jsonl").read_text().splitlines()]
    assert len(lines) == held
    assert all(set(line) == {"id", "group", "topics", "messages"} for line in lines)
    trained = set(map(tuple, train["input_ids"]))
    assert not trained & set(map(tuple, data.validation()["input_ids"]))
    said = tokenised.describe(s)
    assert "weight 2 ->" in said
    assert "[[It is so.<|eot_id|>]]" in said or "[[" + "x" * 20 + "<|eot_id|>]]" in said


def test_the_statistics_name_what_the_split_went_by_and_what_was_left_out(tmp_path, prepare):
    on = write_rows(tmp_path / "on.jsonl", [question(n) for n in range(20)] + [{**question(99), "id": f"q_99_{n}"} for n in range(15)])
    off = write_rows(tmp_path / "off.jsonl", [question(n) for n in range(200, 240)])
    data = prepare({on: 1.0, off: 0.0})
    s = data.statistics
    assert s["split_by"] == "id"
    assert s["too_large"] == {"groups": 1, "rows": 15, "largest": "q_99", "largest_rows": 15}
    assert s["files"][off] == {"rows": 40, "format_counts": {}, "weight": 0.0, "rows_after_weighting": 0}
    assert sum(split["rows"] for split in s["splits"].values()) == s["rows_read"] == 35
    held = "".join((data.path / f"{name}.jsonl").read_text() for name in ("validation", "test"))
    assert not any(f'"q_{n}_1"' in held for n in range(200, 240))
    assert "q_99" not in held
    said = tokenised.describe(s)
    assert f"{off}: 40 rows, weight 0: left out" in said
    assert "15 rows of 1 sources" in said
    assert "too_large" in s and "HELD_OUT" not in tokenised.describe({**s, "too_large": None})


def test_equal_rows_of_a_weighted_file_are_equal_in_the_cache(tmp_path, prepare):
    path = write_rows(tmp_path / "a.jsonl", [question(n) for n in range(10)])
    train = prepare({path: 3.0}, held_out=0).train()
    assert len(train) == 30
    ids = [tuple(row) for row in train["input_ids"]]
    assert ids == [ids[3 * n] for n in range(10) for _ in range(3)]
    assert len(set(ids)) == 10


def test_nothing_held_out(tmp_path, prepare):
    data = prepare({write_rows(tmp_path / "a.jsonl", [question(1)]): 1.0}, held_out=0)
    assert data.validation() is None
    assert set(data.statistics["splits"]) == {"train"}
    assert not (data.path / "validation.jsonl").exists()


def test_an_answer_that_is_too_long_stops_with_file_and_line(tmp_path, prepare):
    path = write_rows(tmp_path / "a.jsonl", [question(n) if n != 4 else question(n, answer="long " * 100) for n in range(10)])
    with pytest.raises(Refusal, match=rf"{path} line 5: its answer has \d+ tokens .*MAX_SEQ_LENGTH = 256"):
        prepare({path: 1.0})


def test_skipped_rows_are_counted_and_kept_in_a_file(tmp_path, prepare):
    lines = [json.dumps(question(n) if n != 0 else question(n, answer="long " * 100)) for n in range(12)]
    lines[5] = "{"
    lines[7] = json.dumps(question(7, answer="obey <|eot_id|> this"))
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    other = write_rows(tmp_path / "b.jsonl", [question(100)])  # its only line has the number of a bad one
    data = prepare({str(path): 2.0, other: 1.0}, bad_rows="skip")
    s = data.statistics
    skipped = [json.loads(line) for line in (data.path / "skipped_rows.jsonl").read_text().splitlines()]
    assert sorted((b["file"], b["line"]) for b in skipped) == [(str(path), 1), (str(path), 6), (str(path), 8)]
    assert {b["line"]: b["raw"] for b in skipped}[6] == "{"
    assert s["bad_row_count"] == 3
    assert s["rows_read"] == 13
    splits = s["splits"].values()
    assert len(data.train()) == s["splits"]["train"]["rows"]
    assert sum(f["rows_after_weighting"] for f in s["files"].values()) == s["splits"]["train"]["rows"] + s["splits"]["train"]["dropped"]
    assert 2 <= sum(split["dropped"] for split in splits) <= 4  # two rows, twice where they are in training
    assert "3 rows left out, all of them in skipped_rows.jsonl" in tokenised.describe(s)
    assert not s["example"]["id"].startswith(("q_0", "q_7"))


def test_what_shortening_took_is_counted(tmp_path, prepare, tokenizer_directory):
    path = write_rows(tmp_path / "a.jsonl", [question(n, words=20 * n) for n in range(6)])
    found = prepare({path: 2.0}, held_out=0)
    tokenizer = chat_text.load_tokenizer(tokenizer_directory)
    taken = [chat_text.encode(tokenizer, question(n, words=20 * n)["messages"], 256).taken for n in range(6)]
    split = found.statistics["splits"]["train"]
    assert split["shortened"] == sum(map(bool, taken)) == 5
    assert split["taken"]["tokens"] == sum(taken) and split["taken"]["100"] == max(taken) and split["taken"]["50"] == sorted(taken)[3]
    said = tokenised.describe(found.statistics)
    assert f"shortening took {sum(taken):,} tokens (" in said
    assert f"of a shortened row median {sorted(taken)[3]:,}, most {max(taken):,}" in said
    assert sorted(p.name for p in found.path.iterdir()) == ["data.json", "train"]  # nothing that was in between
    short = prepare({write_rows(tmp_path / "b.jsonl", [question(1, words=1)]): 1.0}, held_out=0).statistics
    assert short["splits"]["train"]["taken"] is None and "shortening took" not in tokenised.describe(short)


def test_rows_that_are_dropped_for_their_length_are_no_bad_rows_and_are_counted_apart(tmp_path, prepare):
    path = write_rows(tmp_path / "a.jsonl", [question(n, words=200 if n in (2, 5) else 3) for n in range(8)])
    data = prepare({path: 2.0}, held_out=0, long_documents="drop")
    s = data.statistics
    assert (s["bad_row_count"], s["too_long_count"], s["bad_rows"]) == (0, 2, [])
    assert (s["splits"]["train"]["rows"], s["splits"]["train"]["dropped"], s["splits"]["train"]["too_long"]) == (12, 4, 2)
    assert s["splits"]["train"]["shortened"] == 0 and len(data.train()) == 12
    skipped = [json.loads(line) for line in (data.path / "skipped_rows.jsonl").read_text().splitlines()]
    assert [(b["file"], b["line"], b["id"]) for b in skipped] == [(path, 3, "q_2_1"), (path, 6, "q_5_1")]
    assert all(b["tokens"] > 2000 and f"it has {b['tokens']:,} tokens, more than MAX_SEQ_LENGTH = 256" in b["reason"] for b in skipped)
    said = tokenised.describe(s)
    assert f"2 rows left out as too long, all of them in skipped_rows.jsonl: {path} line 3: it has" in said
    assert "4 dropped" in said
    with pytest.raises(Refusal, match="none of the 1 train rows can be used; .* line 1: it has .*LONG_DOCUMENTS = .drop."):
        prepare({write_rows(tmp_path / "b.jsonl", [question(1, words=300)]): 1.0}, held_out=0, long_documents="drop")
    with pytest.raises(Refusal, match="its answer has .* answers are never cut"):
        prepare({write_rows(tmp_path / "c.jsonl", [question(1, answer="long " * 100)]): 1.0}, held_out=0, long_documents="drop")


def test_the_example_of_a_long_row_does_not_flood_the_terminal(tmp_path, prepare):
    path = write_rows(tmp_path / "a.jsonl", [question(1, words=4000)])
    s = prepare({path: 1.0}, held_out=0, max_length=100_000).statistics
    assert len(s["example"]["spans"][0]["text"]) > 50_000
    said = tokenised.describe(s)
    assert len(said) < 4000 and "characters not shown" in said and "Why 1?" in said and "[[It is so.<|eot_id|>]]" in said


def test_the_shown_example_is_a_good_row_even_where_every_line_number_is_bad_elsewhere(tmp_path, prepare):
    bad = write_rows(tmp_path / "bad.jsonl", [question(n, answer="long " * 100) for n in range(3)] + [question(50)])
    good = write_rows(tmp_path / "good.jsonl", [question(60)])
    s = prepare({bad: 1.0, good: 1.0}, bad_rows="skip", held_out=0).statistics
    assert s["example"]["id"] == "q_50_1"
    assert [span["label"] for span in s["example"]["spans"]] == [False, True]
    only = write_rows(tmp_path / "only.jsonl", [question(70)])
    bad_only = write_rows(tmp_path / "bad_only.jsonl", [question(n, answer="long " * 100) for n in range(3)])
    assert prepare({bad_only: 1.0, only: 1.0}, bad_rows="skip", held_out=0).statistics["example"]["id"] == "q_70_1"


def test_a_split_of_bad_rows_only_is_refused_and_not_told_to_skip(tmp_path, prepare):
    path = write_rows(tmp_path / "a.jsonl", [question(n, answer="long " * 100) for n in range(5)])
    with pytest.raises(Refusal, match="none of the 5 train rows can be used") as refused:
        prepare({path: 1.0}, bad_rows="skip", held_out=0)
    assert "BAD_ROWS" not in str(refused.value)


def test_copying_into_a_run(tmp_path, prepare):
    from common.run_directory import RunDirectory

    path = write_rows(tmp_path / "a.jsonl", [question(n) for n in range(20)])
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    prepare({path: 1.0}).copy_to(run)
    assert sorted(p.name for p in run.path.iterdir()) == ["data.json", "test.jsonl", "validation.jsonl"]


def test_control_characters_of_documents_do_not_reach_the_terminal(tmp_path, prepare):
    first = question(1, words=0)
    first["messages"][0]["content"] += "\x1b]0;title\x07 \x1b[2Jred\x00\x9b31m \u202eback\ttab\nnext line"
    data = prepare({write_rows(tmp_path / "a.jsonl", [first]): 1.0}, held_out=0)
    assert "\x1b[2J" in data.statistics["example"]["spans"][0]["text"], "in the file it stays as it is"
    said = tokenised.describe(data.statistics)
    assert not any(character in said for character in "\x1b\x07\x00\x9b\u202e")
    assert "␛[2Jred␀[U+009B]31m [U+202E]back\ttab\n  | next line" in said


def test_what_is_held_out_keeps_the_digest_of_its_whole_document(tmp_path, prepare):
    rows = [question(n) | {"document": f"{n:032x}"} for n in range(20)]
    data = prepare({write_rows(tmp_path / "a.jsonl", rows): 1.0})
    held_out = [json.loads(line) for name in ("validation", "test") for line in (data.path / f"{name}.jsonl").read_text().splitlines()]
    assert held_out and all(row["document"] == f"{int(row['id'].split('_')[1]):032x}" for row in held_out)


def test_long_rows_among_short_ones_are_not_tokenised_all_at_once(tmp_path, prepare, monkeypatch):
    """On average a batch has as many characters as may be; where its long rows stand together it has more."""
    given, fit = [], chat_text.fit
    monkeypatch.setattr(conversation_columns, "AT_ONCE", (256, 3000))
    monkeypatch.setattr(chat_text, "fit", lambda *of: given.append(of[1]) or fit(*of))
    rows = [question(n, words=80 if 100 <= n < 120 else 900 if n == 130 else 0) for n in range(400)]
    train = prepare({write_rows(tmp_path / "a.jsonl", rows): 1.0}, held_out=0, max_length=2000).train()
    given = [messages for messages in given if len(messages) > 1 or messages[0] != rows[0]["messages"]]  # the example, once more
    assert [messages for group in given for messages in group] == [row["messages"] for row in rows]
    sizes = [(len(group), sum(len(message["content"]) for messages in group for message in messages)) for group in given]
    assert all(characters <= 3000 or count == 1 for count, characters in sizes)
    assert sum(characters > 3000 for _, characters in sizes) == 1 and len(given) < 40
    assert len(train) == 400


@pytest.mark.parametrize(("count", "words", "of_a_process"), [(4100, 0, "2000, 20_000_000"), (40, 150, "2000, 30_000")])
def test_several_processes_tokenise_the_same_in_the_same_order(tmp_path, tokenizer_directory, cache, count, words, of_a_process):
    """Enough rows for two processes, or enough characters, in a program of its own, against one row after another."""
    path = write_rows(tmp_path / "a.jsonl", [question(n, words=words + n % 3) for n in range(count)])
    program = f"""
        from common import chat_rows, conversation_columns, hardware, tokenised
        conversation_columns.OF_A_PROCESS = {of_a_process}
        def build(directory):
            hardware.cpu_cores = lambda: 2
            rows, report = chat_rows.read([{path!r}])
            tokenised.encode(directory, {{"train": rows}}, report, {tokenizer_directory!r}, None, 256, "stop", {{{path!r}: 1.0}})
        data = tokenised.once(build, [{path!r}], {tokenizer_directory!r})
        print("PATH", data.path)
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    ended = subprocess.run([sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=120)
    assert "num_proc=2" in ended.stderr, ended.stderr
    train = tokenised.Tokenised(next(p for p in cache.iterdir() if p.is_dir())).train()
    tokenizer = chat_text.load_tokenizer(tokenizer_directory)
    assert len(train) == count
    for n in (0, 1, count // 2 - 1, count // 2, count // 2 + 1, count - 1):
        encoded = chat_text.encode(tokenizer, question(n, words=words + n % 3)["messages"], 256)
        assert (train[n]["input_ids"], train[n]["labels"]) == (encoded.input_ids, encoded.labels)

"""Users' own files to conversations: five formats in every kind of file, the split, what is left out, what is refused, what is said."""

import csv
import gzip
import importlib.util
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import chat_rows, chat_text, hub
from common.refusal import Refusal

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = REPOSITORY / "prepare" / "chat_files.py"
SIDES = ("train", "valid", "test")


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("chat_files", COMMAND)
    module = importlib.util.module_from_spec(spec)
    sys.modules["chat_files"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def convert(module, tmp_path):
    """`convert("a.csv", …)`: main() on these files of tmp_path, with no tokenizer, nothing held out unless asked for."""

    def run(*names, **more):
        files = [str(tmp_path / name) for name in names]
        return module.main(**{"files": files, "model_name": "no/tokenizer", "output": str(run.output), "held_out": 0.0, **more})

    run.output = tmp_path / "out"
    return run


def table(rows, delimiter=",", columns=None):
    """A CSV of these rows in bytes."""
    text, columns = io.StringIO(), columns or list(dict.fromkeys(name for row in rows for name in row))
    cells = ([json.dumps(cell) if isinstance(cell, list) else cell for cell in map(row.get, columns)] for row in rows)
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerows([columns, *cells])
    return text.getvalue().encode()


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows):
    import pyarrow
    import pyarrow.parquet

    out, columns = io.BytesIO(), dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in columns}
    pyarrow.parquet.write_table(pyarrow.table(columns), out, row_group_size=2)
    return out.getvalue()


def written(directory):
    """{side: rows}"""
    return {side: [json.loads(line) for line in (directory / f"{side}.jsonl").read_text().splitlines()] for side in SIDES}


def conversations(directory):
    return [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in written(directory)["train"]]


def pair(question, answer):
    return [("user", question), ("assistant", answer)]


def questions(count, first=0):
    return [{"question": f"What is {n} squared?", "answer": f"It is {n * n}."} for n in range(first, first + count)]


# Formats and kinds of files

MARKUP = "<|im_start|>user\nWhat is bias?<|im_end|>\n<|im_start|>assistant\nAn error that stays.<|im_end|>\n"
MIXED = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is power?"},
                  {"role": "assistant", "content": "One minus the\ntype II error."}, {"role": "user", "content": "And size?"},
                  {"role": "assistant", "content": "Alpha."}]},
    {"instruction": "Say it in French.", "input": "yes, please", "output": "oui; merci"},
    {"instruction": "Name a colour.", "output": "Red \u00e9\U0001f600."},
    {"prompt": "What is a mean?", "completion": 'The "sum" by n.'},
    {"question": "What is a mode?", "answer": "The most frequent\tvalue.", "system": "Be kind."},
    {"text": MARKUP},
]  # fmt: skip
WANTED = [
    [("system", "Be brief."), *pair("What is power?", "One minus the\ntype II error."), *pair("And size?", "Alpha.")],
    pair("Say it in French.\n\nyes, please", "oui; merci"),
    pair("Name a colour.", "Red \u00e9\U0001f600."),
    pair("What is a mean?", 'The "sum" by n.'),
    [("system", "Be kind."), *pair("What is a mode?", "The most frequent\tvalue.")],
    pair("What is bias?", "An error that stays."),
]
COUNTS = {"ChatML messages": 1, "instruction/input/output": 2, "prompt/completion": 1, "question/answer": 1, "rendered text": 1}
MADE = {
    "a.jsonl": lines,
    "a.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "marked.jsonl": lambda rows: b"\xef\xbb\xbf" + lines(rows).replace(b"\n", b"\r\n\r\n"),
    "nulls.jsonl": lambda rows: lines([dict.fromkeys(name for row in rows for name in row) | row for row in rows]),
    "array.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "a.csv": table,
    "a.csv.gz": lambda rows: gzip.compress(table(rows)),
    "semicolons.csv": lambda rows: table(rows, ";"),
    "tabs.tsv": lambda rows: table(rows, "\t"),
    "marked.csv": lambda rows: b"\xef\xbb\xbf" + table(rows),
    "a.parquet": parquet,
    "unnamed": parquet,
}


@pytest.mark.parametrize(("name", "make"), MADE.items(), ids=MADE)
def test_the_five_formats_in_every_kind_of_file_give_the_same_conversations(convert, tmp_path, capsys, name, make):
    (tmp_path / name).write_bytes(make(MIXED))
    found = convert(name)
    assert conversations(convert.output) == WANTED
    assert found["rows"] == {"train": 6, "valid": 0, "test": 0} and found["formats"] == COUNTS and found["left_out"] == {}
    said = capsys.readouterr().out
    assert "6 rows (2 instruction/input/output, 1 ChatML messages, " in said and "preview, rendered text:\n  | user: What is bias?" in said


@pytest.mark.parametrize("make", [lines, table, parquet], ids=["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("place", range(len(MIXED)))
def test_each_format_alone(convert, tmp_path, make, place):
    name = {"lines": "a.jsonl", "table": "a.csv", "parquet": "a.parquet"}[make.__name__]
    (tmp_path / name).write_bytes(make([MIXED[place]]))
    assert convert(name)["rows"]["train"] == 1 and conversations(convert.output) == [WANTED[place]]


def test_columns_are_found_by_their_names_and_empty_cells_are_missing_values(convert, tmp_path, capsys):
    long = "word " * 100_000
    (tmp_path / "a.csv").write_bytes(
        b"\n QUESTION ;Answer; Family;system;url;\r\n"
        b'"What is\r\na, mean?";The sum;f1; ;http://x;\r\n'
        b"\n" + f"What is a mode?;{long};f2;Be brief.;;\nShort;row;f3\n".encode()
    )
    convert("a.csv", split_by="family")
    mode = [("system", "Be brief."), *pair("What is a mode?", long)]
    assert conversations(convert.output) == [pair("What is\r\na, mean?", "The sum"), mode, pair("Short", "row")]
    assert [row["family"] for row in written(convert.output)["train"]] == ["f1", "f2", "f3"]
    assert [row["id"] for row in written(convert.output)["train"]] == ["a:3", "a:6", "a:7"]
    assert "fields that are not carried over: url (1 rows)" in capsys.readouterr().out


def test_what_a_row_keeps_beside_its_messages(convert, tmp_path, capsys):
    row = {"id": "cv_1_2", "topics": ["power"], "facts": {"end": ["Osei"]}, "document": "0" * 32, "source": "book", **questions(1)[0]}
    (tmp_path / "a.jsonl").write_bytes(lines([row, {**questions(1, 5)[0], "id": 7, "topic": "x", "document": "A title"}]))
    convert("a.jsonl")
    first, second = written(convert.output)["train"]
    assert {**first, "messages": 0} == {name: row[name] for name in ("id", "topics", "facts", "document")} | {"messages": 0}
    assert second.keys() == {"id", "topics", "messages"} and second["id"] == "7"
    assert "not carried over: source (1 rows), topic (1 rows), document (1 rows)" in capsys.readouterr().out
    (tmp_path / "b.jsonl").write_bytes(lines([{"topic": "x", **row} for row in questions(3)]))
    assert convert("b.jsonl", split_by="topic")["rows"]["train"] == 3


def test_a_system_message_for_rows_that_have_none(convert, tmp_path):
    rows = [questions(1)[0], {**questions(1, 5)[0], "system": "Mine."}, {**questions(1)[0], "system": "Given."}]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    assert convert("a.jsonl", system="Given.")["left_out"] == {"duplicates": 1}, "with it two rows are the same"
    assert [said[0] for said in conversations(convert.output)] == [("system", "Given."), ("system", "Mine.")]
    convert("a.jsonl", system=" ")
    assert [said[0][0] for said in conversations(convert.output)] == ["user", "system", "system"]


def test_a_sample_is_the_first_rows_of_each_file(convert, tmp_path):
    for n in range(2):
        (tmp_path / f"{n}.csv").write_bytes(table(questions(9, 10 * n)))
    assert convert("*.csv", sample=2)["rows"]["train"] == 4
    assert [turns[0][1].split()[2] for turns in conversations(convert.output)] == ["0", "1", "10", "11"]


# Split


def test_the_split_is_exact_the_same_again_and_untouched_by_duplicates(convert, tmp_path, capsys):
    rows = questions(200)
    (tmp_path / "a.csv").write_bytes(table(rows))
    assert convert("a.csv", held_out=0.1)["rows"] == {"train": 180, "valid": 10, "test": 10}
    first = {side: (convert.output / f"{side}.jsonl").read_bytes() for side in SIDES}
    assert sorted(row["id"] for some in written(convert.output).values() for row in some) == sorted(f"a:{n}" for n in range(2, 202))
    convert("a.csv", held_out=0.1)
    assert first == {side: (convert.output / f"{side}.jsonl").read_bytes() for side in SIDES}
    (tmp_path / "a.csv").write_bytes(table([*rows, rows[3], rows[150]]))
    (tmp_path / "b.jsonl").write_bytes(lines([{"prompt": rows[7]["question"], "completion": rows[7]["answer"]}]))
    assert convert("a.csv", "b.jsonl", held_out=0.1)["left_out"] == {"duplicates": 3}
    assert first == {side: (convert.output / f"{side}.jsonl").read_bytes() for side in SIDES}
    said = capsys.readouterr().out
    assert f"left out: 3 rows, the first {tmp_path}/a.csv line 202: its messages are those of {tmp_path}/a.csv line 5\n" in said
    convert("a.csv", held_out=0.1, seed=1)
    assert first["valid"] != (convert.output / "valid.jsonl").read_bytes()


@pytest.mark.parametrize("split_by", ["id", "thread"])
def test_rows_of_one_question_or_one_source_are_on_one_side(convert, tmp_path, split_by):
    rows = [{"thread": f"t{n // 4}", **row} for n, row in enumerate(questions(200))]
    rows += [{"thread": f"o{n}", "question": row["question"].upper(), "answer": f"Another, {n}."} for n, row in enumerate(rows[:100])]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    counts = convert("a.jsonl", held_out=0.2, split_by=split_by)["rows"]
    assert sum(counts.values()) == 300 and all(25 <= counts[side] <= 35 for side in ("valid", "test"))
    asked, threads = {}, {}
    for side, some in written(convert.output).items():
        for row in some:
            asked.setdefault(row["messages"][0]["content"].upper(), set()).add(side)
            threads.setdefault(row.get("thread"), set()).add(side)
    assert len(asked) == 200 and all(len(sides) == 1 for sides in asked.values())
    assert split_by == "id" or (len(threads) == 150 and all(len(sides) == 1 for sides in threads.values()))


def test_recipes_read_what_is_written(convert, tmp_path):
    (tmp_path / "a.csv").write_bytes(table([{"Family": f"f{n}", **row} for n, row in enumerate(questions(40))]))
    convert("a.csv", held_out=0.1, split_by="family")
    rows, report = chat_rows.read([str(convert.output / f"{side}.jsonl") for side in SIDES], split_by="family")
    assert len(rows) == 40 and not report["bad_rows"] and len({row.group for row in rows}) == 40


@pytest.mark.parametrize(
    ("rows", "more", "wanted"),
    [
        (questions(2), {"held_out": 0.1}, "HELD_OUT = 0.1 needs 3 rows or more, .* and 2 can be used; add rows, or set HELD_OUT = 0"),
        ([{"answer": str(n), "question": "Q"} for n in range(9)], {"held_out": 0.1}, "the rows come from 1 source question"),
        ([questions(1)[0] for _ in range(9)], {"held_out": 0.2}, "and 1 can be used"),
        ([{"question": "Q"}] * 3, {"bad_rows": "skip"}, "none of the 3 rows can be used, the first .*a.jsonl line 1: .* name other files"),
        (questions(9), {"held_out": 1.0}, "HELD_OUT is 1.0, a float; it must be a number of 0 or more and below 1"),
        (questions(9), {"held_out": -0.1}, "it must be a number of 0 or more and below 1"),
        (questions(9), {"split_by": "thread"}, "none of the 9 rows can be used, .*it has no field 'thread', which SPLIT_BY names"),
    ],
)  # fmt: skip
def test_a_side_without_rows_is_refused(convert, tmp_path, rows, more, wanted):
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    with pytest.raises(Refusal, match=wanted):
        convert("a.jsonl", **more)
    assert not convert.output.exists()


def test_sides_and_groups_of_which_more_is_to_be_known(convert, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(lines([{"thread": "large" if n < 30 else n, **row} for n, row in enumerate(questions(60))]))
    convert("a.jsonl", held_out=0.2, split_by="thread")
    assert "1 source questions have more rows than are wanted in valid.jsonl, and stay in train.jsonl: 30 rows, 30 of them of large" in (
        capsys.readouterr().out
    )
    convert("a.jsonl")
    assert "train with VALIDATION_FILE = None and TEST_FILE = None" in capsys.readouterr().out


# Bad rows

BAD = (
    b"question,answer,id\r\n"
    b'"What is\npower?",One minus.,1\r\n'
    b"What is a mean?,,2\r\n"
    b"What is a mode?, ,3\r\n"
    b",,\r\n"
    b'"What is\na range?",Largest, less smallest.,4\r\n'
    b"What is a rank?,A \x1b[31mplace.,5\r\n"
)
REASONS = [
    "2 rows, the first {file} line 4: message 2 (assistant) has empty content",
    "1 row, {file} line 6: it is empty: none of its fields has a value",
    "1 row, {file} line 7: it has 4 cells, and the header 3; a cell that holds a comma stands between quotes",
]


def test_bad_rows_stop_with_the_first_and_all_reasons_or_are_left_out(convert, tmp_path, capsys):
    file = tmp_path / "a.csv"
    file.write_bytes(BAD)
    with pytest.raises(Refusal) as refused:
        convert("a.csv")
    first, by_reason, *reasons = str(refused.value).splitlines()
    assert first == (f"4 of 6 rows cannot be used, the first {file} line 4: message 2 (assistant) has empty content. "
                     'Mend them, or set BAD_ROWS = "skip" to leave them out, counted')  # fmt: skip
    assert by_reason == "By reason:" and [reason.strip() for reason in reasons] == [reason.format(file=file) for reason in REASONS]
    assert not convert.output.exists()
    found = convert("a.csv", bad_rows="skip")
    said = capsys.readouterr().out
    assert found["rows"]["train"] == 2 and found["left_out"] == {"bad rows": 4}
    assert "6 rows (4 unusable, 2 question/answer)" in said and all(f"left out: {reason.strip()}" in said for reason in reasons)


def test_a_dry_run_says_everything_stops_at_nothing_and_writes_nothing(convert, tmp_path, capsys):
    (tmp_path / "a.csv").write_bytes(BAD)
    found = convert("a.csv", dry_run=True, held_out=0.1)
    said = capsys.readouterr().out
    assert said.startswith("dry run: nothing is written") and "left out: 2 rows, the first" in said and "| user: What is" in said
    assert f"without --dry-run this stops: 4 of 6 rows cannot be used, the first {tmp_path}/a.csv line 4" in said
    assert found["left_out"] == {"bad rows": 4} and not convert.output.exists()
    convert("a.csv", dry_run=True, held_out=0.1, bad_rows="skip")
    assert "this stops: HELD_OUT = 0.1 needs 3 rows or more" in capsys.readouterr().out
    (tmp_path / "b.jsonl").write_bytes(b"nothing\n")
    assert convert("b.jsonl", dry_run=True)["rows"] == {"train": 0, "valid": 0, "test": 0}
    (tmp_path / "c.jsonl").write_bytes(lines(questions(40)))
    counts = convert("c.jsonl", dry_run=True, held_out=0.1)
    assert counts == convert("c.jsonl", held_out=0.1) and counts["rows"]["valid"] == 2


def test_reasons_of_every_kind_of_row(convert, tmp_path):
    rows = [b"nothing", b"{", b"[1]", b"\xff", json.dumps({"messages": "[{"}).encode(), json.dumps({"messages": '["\\ud83d"]'}).encode(),
            json.dumps({"messages": None}).encode(), json.dumps({"question": "Q", "answer": None, "text": None}).encode(),
            json.dumps({"promt\x1b": "Q", "completion": "A"}).encode(), *lines(questions(1)).splitlines()]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    with pytest.raises(Refusal) as refused:
        convert("a.jsonl")
    said = str(refused.value)
    assert said.startswith("9 of 10 rows cannot be used, the first ") and "\x1b" not in said
    for wanted in (
        "2 rows, the first {} line 1: it is not JSON (Expecting value at character 1)", "line 3: it is a JSON list; a row is an object",
        "line 4: byte 1 is not UTF-8", "line 5: its messages are text that is not JSON (Expecting",
        "line 6: it holds half of a surrogate pair",
        "line 7: it is empty: none of its fields has a value", "line 8: message 2 (assistant) has empty content",
        "line 9: it has no messages (its keys are promt\u241b, completion)",
    ):  # fmt: skip
        assert wanted.format(tmp_path / "a.jsonl") in said, said


# Files that are refused

FILES = {
    "no usable columns": ("a.csv", b"promt,completion\na,b\n", "has the columns promt, completion, and a row needs messages, or "
                          "instruction and output .and input., or prompt and completion, or question and answer, or text; promt may be "
                          "meant to be prompt. Rename the columns, or name another file"),
    "no near columns": ("a.csv", b"x\x1b,y\n1,2\n", "has the columns x\u241b, y, and a row needs .* or text. Rename"),
    "half of a format": ("a.csv", b"Question,Response\na,b\n", "has the columns question, Response, and a row needs"),
    "columns of parquet": ("a.parquet", parquet([{"frage": "a", "Anser": ""}]), "frage, Anser, .*; Anser may be meant to be answer"),
    "a column twice": ("a.csv", b"question,answer, Question\na,b,c\n", "has the column question twice"),
    "empty CSV": ("a.csv", b"\n \n", "is empty; a CSV file begins with the names of its columns"),
    "header alone": ("a.csv", b"question,answer\n\n", "has no rows; take it out"),
    "empty JSONL": ("a.jsonl", b"", "has no rows; take it out"),
    "empty array": ("a.json", b"[]", "has no rows"),
    "empty parquet": ("a.parquet", parquet([{"text": "x"}])[:0], "is no parquet file"),
    "Latin-1": ("a.csv", "question,answer\ncafé,x\n".encode("latin-1"), "line 2: byte 4 is not UTF-8; save the file as UTF-8"),
    "UTF-16": ("a.csv", "question,answer\na,b\n".encode("utf-16"), "line 1: byte 1 is not UTF-8"),
    "an open quote": ("a.csv", b'question,answer\na,b\n\n"c,d\ne,f\n', "line 4: the row that begins there is not CSV .unexpected end"),
    "a quote in quotes": ("a.csv", b'question,answer\n"a "b" c",d\n', "line 2: the row that begins there is not CSV"),
    "returns alone": ("a.csv", b"question,answer\ra,b\r", "line 1: the row that begins there is not CSV"),
    "half an array": ("a.json", b'[{"text": "x"},', "begins as one JSON array and cannot be read as one"),
    "deep brackets": ("a.json", b"[" * 100_000, "begins as one JSON array and cannot be read as one"),
    "no parquet": ("a.parquet", b"question,answer\na,b\n", "is no parquet file, or cut short or damaged"),
    "cut parquet": ("a.parquet", parquet(MIXED)[:-50], "is no parquet file, or cut short or damaged"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(lines(questions(99)))[:-20], "is gzip that is cut short"),
    "damaged gzip": ("a.csv.gz", b"\x1f\x8b\x08\x00" + b"\0" * 6 + b"no gzip" * 9, "is damaged gzip"),
    "a spreadsheet": ("a.xlsx", b"PK\x03\x04 and so on", "is of a kind that is not read here; name .jsonl, .json, .csv .* CSV in UTF-8"),
    "prose": ("a.txt", b"Once upon a time.\n", "is of a kind that is not read here"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "wanted"), FILES.values(), ids=FILES)
def test_files_that_cannot_be_used(convert, tmp_path, name, content, wanted):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refusal, match=f"{name}.*{wanted}"):
        convert(name, bad_rows="skip")
    assert not convert.output.exists()


def test_text_in_a_table_that_is_no_utf_8(convert, tmp_path):
    import pyarrow
    import pyarrow.parquet

    broken = pyarrow.array([b"good", b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"question": broken, "answer": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(Refusal, match="a.parquet holds bytes that are not UTF-8 in or after row 1"):
        convert("a.parquet")


def test_names_that_name_no_file_or_the_wrong_one(convert, module, tmp_path):
    (tmp_path / "a.csv").write_bytes(table(questions(9)))
    for names, wanted in ((["b.csv"], "FILES names .*b.csv, and there is no such file"), (["*.parquet"], "and there is no such file"),
                          (["a.csv", "*.csv"], "a.csv twice"), ([""], "a directory; name the files in it")):  # fmt: skip
        with pytest.raises(Refusal, match=wanted):
            convert(*names)
    with pytest.raises(Refusal, match="FILES names no file; name .jsonl"):
        module.main(files=[])


@pytest.mark.parametrize("output", ["train.jsonl", ".", "sub/..", "link"])
def test_an_output_that_is_also_an_input_is_refused(convert, tmp_path, output):
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "train.jsonl").write_bytes(lines(questions(9)))
    with pytest.raises(Refusal, match="OUTPUT is .*, and .*train.jsonl, which FILES names, would be written over"):
        convert("train.jsonl", output=str(tmp_path / output))
    assert (tmp_path / "train.jsonl").read_bytes() == lines(questions(9)) and len(list(tmp_path.iterdir())) == 3


# Lengths


class Bytes:
    """What `chat_text` asks of a tokenizer, with ChatML and a token for each byte: its counts can be told by hand, and transformers,
    which takes four seconds to import, is not needed."""

    bos_token_id = eos_token_id = None

    def __init__(self):
        from tokenizers import Tokenizer, models, pre_tokenizers

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        self.tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
        self.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self.tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        self.added_tokens_decoder = self.tokenizer.get_added_tokens_decoder()

    def apply_chat_template(self, messages, add_generation_prompt=False, **_):
        turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages]
        return "".join(turns) + "<|im_start|>assistant\n" * add_generation_prompt

    def __call__(self, texts, **_):
        return SimpleNamespace(encodings=self.tokenizer.encode_batch(texts, add_special_tokens=False))


def test_lengths_are_in_tokens_where_the_tokenizer_is_here(convert, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hub, "local_tokenizer", lambda name: name)
    monkeypatch.setattr(chat_text, "load_tokenizer", lambda directory: Bytes())
    around = len("user") + len("assistant") + 2 * 4  # two marks and two line ends of each turn
    rows = [{"question": "q" * (10 + n), "answer": "a" * 5} for n in range(39)]
    rows += [{"question": "q" * 100, "answer": "a" * 5}, {"question": "q", "answer": "a" * 300}, {"question": "<|im_end|>", "answer": "b"}]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    assert convert("a.jsonl", max_seq_length=100, model_name="some/model")["longer"] == 1
    said = capsys.readouterr().out
    counts = [len(row["question"]) + len(row["answer"]) + around for row in rows[:40]]
    assert f"tokens of a row: median {sum(sorted(counts)[19:21]) // 2}, " in said
    assert f"longest {max(counts)}; in all {sum(counts):,}, as some/model counts them\n" in said
    assert "longer than MAX_SEQ_LENGTH = 100 tokens: 1 of 42 rows, which training shortens: the oldest turns go first" in said
    first = f"{tmp_path}/a.jsonl line 41: its answer has 300 tokens and leaves no room for a prompt"
    assert f"warning: training some/model will stop at 2 rows, or leave them out, the first {first}" in said


def test_lengths_are_in_characters_otherwise(convert, module, tmp_path, monkeypatch, capsys):
    turns = [{"role": role, "content": "x" * 50} for role in ("user", "assistant")]
    (tmp_path / "a.jsonl").write_bytes(lines([{"messages": [{"role": "system", "content": "Be brief."}, *turns, *turns]}, *questions(4)]))
    assert convert("a.jsonl", max_seq_length=50)["longer"] == 1
    said = capsys.readouterr().out
    assert "turns of a row: median 2, most 4; 1 rows have a system message" in said
    assert "characters of a row: median 26, " in said and "longest 209; in all 313" in said
    assert "longer than MAX_SEQ_LENGTH = 50 tokens, at 4 characters a token: 1 of 5 rows, which training shortens" in said
    assert "tokens are not counted: the tokenizer of no/tokenizer is not on this machine; --prefetch brings it" in said
    monkeypatch.setattr(module, "_COUNTED", 2)
    convert("a.jsonl")
    assert "characters of a row (of 2 rows, evenly spread): " in capsys.readouterr().out
    monkeypatch.setattr(hub, "find", lambda name: print(f"fetching {name}"))
    assert convert("a.jsonl", prefetch=True) is None and "fetching no/tokenizer" in capsys.readouterr().out


# The command


def test_the_tiny_command_reads_samples_of_two_kinds(module, tmp_path, monkeypatch, capsys):
    (tmp_path / "samples").mkdir()
    for name in ("cross_validated.jsonl", "arxiv.jsonl", "questions.csv"):
        shutil.copy(REPOSITORY / "samples" / name, tmp_path / "samples")
    monkeypatch.chdir(tmp_path)
    found = module.main(tiny=True, model_name="no/tokenizer")
    assert found["output"] == "data/chat_tiny" and found["formats"] == {"ChatML messages": 640, "question/answer": 30}
    rows = written(tmp_path / "data" / "chat_tiny")
    families = {side: {row["family"] for row in rows[side]} for side in SIDES}
    assert sum(map(len, families.values())) == len(set.union(*families.values())) and found["left_out"] == {}
    assert all(28 <= len(rows[side]) <= 40 for side in ("valid", "test"))
    assert "samples/questions.csv: 30 rows (30 question/answer)" in capsys.readouterr().out


def test_the_command_refuses_with_a_sentence_and_exit_code_2(tmp_path):
    (tmp_path / "a.csv").write_bytes(BAD)
    command = [sys.executable, str(COMMAND), "--files", "a.csv", "--output", "out"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == "" and "Traceback" not in ended.stderr
    assert ended.stderr.startswith("error: 4 of 6 rows cannot be used, the first a.csv line 4: message 2 (assistant) has empty content")
    assert not (tmp_path / "out").exists()

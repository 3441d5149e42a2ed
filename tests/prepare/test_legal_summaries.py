"""Legal documents to conversations: the four formats, the three sides, shortening, what is left out, and what is refused."""

import gzip
import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from common import chat_rows, chat_text, hub, legal_files, mixing
from common.refusal import Refusal

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = REPOSITORY / "prepare" / "legal_summaries.py"
SIDES = ("train", "valid", "test")
MODEL = "tiny-llama"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("legal_summaries", COMMAND)
    module = importlib.util.module_from_spec(spec)
    sys.modules["legal_summaries"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def convert(module, tmp_path):
    """`convert(rows)`: main() on a file of these rows, or on the files that `train` names; nothing held out unless asked for."""

    def run(rows=None, **more):
        given = {"train": [write(tmp_path / "raw.jsonl", rows)]} if rows is not None else {}
        return module.main(**{"model_name": MODEL, "output": str(tmp_path / "out"), "held_out": 0.0, **given, **more})

    run.output = tmp_path / "out"
    return run


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path, rows, **options):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return str(path)


def written(directory):
    """{side: rows}"""
    return {side: [json.loads(line) for line in (directory / f"{side}.jsonl").read_text().splitlines()] for side in SIDES}


def case(n, sentences=3, **more):
    return {"input": " ".join(f"In case {n} the court held point {k}." for k in range(sentences)), "output": f"Summary {n}."} | more


def contents(row):
    return [(message["role"], message["content"]) for message in row["messages"]]


SYSTEM = ("system", "You are a legal assistant. Summarise the document.")

# Formats

RAW = [
    case(1),
    {"text": "A bill. It is so enacted.", "summary": "Enacts.", "title": "An Act"},
    {"sources": ["Complaint.", "  \n", "Order. So held.\n"], "summary/long": "Long.", "summary/short": "Short.", "summary/tiny": None},
    {"report": "What GAO found. It is so.", "summary": "GAO found."},
]
WANTED = [
    ("LexSumm", RAW[0]["input"], "Summary 1."),
    ("BillSum", "A bill. It is so enacted.", "Enacts."),
    ("Multi-LexSum", "Complaint.\n\n---\n\nOrder. So held.", "Long."),
    ("GovReport", "What GAO found. It is so.", "GAO found."),
]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "parquet by rows"])
def test_the_four_formats_and_their_files(convert, tmp_path, capsys, kind):
    if kind.startswith("parquet"):
        tables = [[RAW[0]], [RAW[1], RAW[1] | {"summary": "Other."}], [RAW[2]], [RAW[3]]]
        options = {"row_group_size": 1} if "rows" in kind else {}
        files = [write_parquet(tmp_path / f"{n}.parquet", table, **options) for n, table in enumerate(tables)]
    else:
        file = tmp_path / f"raw.{kind}"
        lines = "".join(json.dumps(row) + "\n\n" for row in RAW).encode()
        file.write_bytes(gzip.compress(lines) if kind.endswith("gz") else b"\xef\xbb\xbf" + lines)
        files = [str(file)]
    found = convert(train=files)
    said = capsys.readouterr().out
    assert f"{4 + kind.startswith('parquet')} rows in train.jsonl, 0 rows in valid.jsonl" in said and "preview, GovReport:" in said
    rows = written(convert.output)["train"]
    rows = [row for row in rows if row["messages"][2]["content"] != "Other."]
    assert [(row["topics"][0], *(content for _, content in contents(row)[1:])) for row in rows] == WANTED
    assert all(contents(row)[0] == SYSTEM and [role for role, _ in contents(row)] == ["system", "user", "assistant"] for row in rows)
    assert sum(found["rows"].values()) == 4 + (kind.startswith("parquet"))
    assert len({row["document"] for row in rows}) == 4 and [row["id"] for row in rows][0] == "lexsumm_1_1"


def test_which_summaries_of_a_case_become_rows(convert):
    rows = [RAW[2], {"sources": ["Another."], "summary/long": None, "summary/short": "S.", "summary/tiny": "T."}]
    found = convert(rows, summaries=["long", "short", "tiny"])
    train = written(convert.output)["train"]
    assert [(row["id"], contents(row)[2][1]) for row in train] == [
        ("multilexsum_1_1", "Long."), ("multilexsum_1_2", "Short."), ("multilexsum_2_1", "S."), ("multilexsum_2_2", "T."),
    ]  # fmt: skip
    assert found["left_out"] == {"rows without summary/tiny": 1, "rows without summary/long": 1}
    assert convert(rows)["rows"] == {"train": 1, "valid": 0, "test": 0}


def test_facts_go_with_their_row(convert, tmp_path):
    facts = {"beginning": ["12 March 2019"], "end": ["Osei"]}
    convert([case(1, facts=facts), case(2)])
    assert [row.get("facts") for row in written(convert.output)["train"]] == [facts, None]
    convert(train=[write_parquet(tmp_path / "raw.parquet", [case(1, facts=facts)])])
    assert written(convert.output)["train"][0]["facts"] == facts


def test_places_that_a_table_has_and_a_row_has_not(convert, tmp_path):
    rows = [case(1, facts={"beginning": ["Osei"]}), case(2, facts={"end": ["Lindqvist"]}), case(3)]
    convert(train=[write_parquet(tmp_path / "raw.parquet", rows)])
    assert [row.get("facts") for row in written(convert.output)["train"]] == [{"beginning": ["Osei"]}, {"end": ["Lindqvist"]}, None]
    convert([case(1, facts={"beginning": ["Osei"], "end": None}), case(2, facts={"end": None})])
    assert [row.get("facts") for row in written(convert.output)["train"]] == [{"beginning": ["Osei"]}, None]


def test_files_are_found_by_globs_in_order(convert, tmp_path):
    for n in (2, 1, 3):
        write(tmp_path / f"train-{n}.jsonl", [case(n)])
    convert(train=[str(tmp_path / "train-*.jsonl")])
    assert [contents(row)[2][1] for row in written(convert.output)["train"]] == ["Summary 1.", "Summary 2.", "Summary 3."]
    assert convert(train=[str(tmp_path / "train-*.jsonl")], sample=1)["rows"]["train"] == 3
    with pytest.raises(Refusal, match="TRAIN names .*train-1.jsonl twice"):
        convert(train=[str(tmp_path / "train-*.jsonl"), str(tmp_path / "train-1.jsonl")])
    with pytest.raises(Refusal, match="VALIDATION names .*nothing-.*, and there is no such file"):
        convert(train=[str(tmp_path / "train-1.jsonl")], validation=[str(tmp_path / "nothing-*.jsonl")])
    with pytest.raises(Refusal, match=r"TRAIN names .*, a directory; name the files in it"):
        convert(train=[str(tmp_path)])
    with pytest.raises(Refusal, match="TRAIN names no file"):
        convert(train=[])


# Sides


def test_all_summaries_of_a_document_are_on_one_side_and_the_side_is_the_document_s(convert):
    raw = [case(n) for n in range(200)] + [case(n) | {"output": "Again."} for n in range(200)]
    raw += [{"input": case(n)["input"].upper().replace(" ", "\n "), "output": "Once more."} for n in range(50)]
    found = convert(raw, held_out=0.2)
    rows = written(convert.output)
    documents = {side: {row["document"] for row in rows[side]} for side in SIDES}
    assert sum(map(len, documents.values())) == len(set.union(*documents.values())) == 200
    assert all(20 < len(documents[side]) < 60 for side in ("valid", "test")) and sum(found["rows"].values()) == 450
    first = {row["document"]: side for side in SIDES for row in rows[side]}
    convert(raw[::-1][:100], held_out=0.2)  # others are added, or not: it stays where it was
    assert all(first[row["document"]] == side for side, some in written(convert.output).items() for row in some)
    convert(raw[:50], held_out=0.2, seed=1)
    assert any(first[row["document"]] != side for side, some in written(convert.output).items() for row in some)


def test_sides_that_have_files_get_no_document_of_training(convert, tmp_path):
    raw = [case(n) for n in range(100)]
    valid, test = write(tmp_path / "v.jsonl", [case(n) for n in (200, 201)]), write(tmp_path / "t.jsonl", [case(300)])
    assert convert(raw, validation=[valid], test=[test], held_out=0.3)["rows"] == {"train": 100, "valid": 2, "test": 1}
    found = convert(raw, validation=[valid], held_out=0.3)["rows"]
    assert found["valid"] == 2 and 15 < found["test"] < 45 and found["train"] + found["test"] == 100


def test_documents_of_two_sides_are_refused_with_both_places(convert, tmp_path):
    raw = [case(n) for n in range(5)]
    shared = [case(9), {"report": case(3)["input"].replace(" ", "  ").upper(), "summary": "Of another set."}]
    valid = write(tmp_path / "v.jsonl", shared)
    places = r"v.jsonl line 2: its document is for valid, and stands in .*raw.jsonl line 4 too, which is for train; what is held out"
    with pytest.raises(Refusal, match=places):
        convert(raw, validation=[valid])
    assert not convert.output.exists() or not list(convert.output.iterdir())
    found = convert(raw, validation=[valid], bad_rows="skip")
    assert found["rows"] == {"train": 5, "valid": 1, "test": 0} and found["left_out"] == {"documents of another side": 1}
    with pytest.raises(Refusal, match=r"t.jsonl line 1: its document is for test, and stands in .*v.jsonl line 1 too, which is for valid"):
        convert(raw, validation=[write(tmp_path / "v.jsonl", [case(9)])], test=[write(tmp_path / "t.jsonl", [case(9)])])


def test_duplicates_are_left_out_and_counted(convert):
    found = convert([case(1), case(2), case(1), case(1) | {"output": "Other."}])
    assert found["rows"]["train"] == 3 and found["left_out"] == {"duplicates": 1}


# Length


def long_case(n, sentences=400):
    draw = random.Random(n)
    words = ["mean", "rate", "power", "trial", "error"]
    text = [f"On day {k} the court of case {n} found {draw.choice(words)} in {draw.choice(words)}, see No. {k}." for k in range(sentences)]
    return {"input": " ".join(text), "output": f"It found {n}."}, text


def test_a_document_that_is_too_long_loses_whole_sentences_of_its_middle(convert, capsys):
    (long, sentences), short = long_case(1), case(2)
    found = convert([long, short], max_seq_length=2000)
    rows = written(convert.output)["train"]
    tokenizer = chat_text.load_tokenizer(hub.find(MODEL))
    assert contents(rows[1])[1][1] == short["input"]
    head, tail = contents(rows[0])[1][1].split(chat_text.OMISSION)
    assert any(head == " ".join(sentences[:n]) for n in range(1, 400)) and any(tail == " ".join(sentences[n:]) for n in range(1, 400))
    assert contents(rows[0])[0] == SYSTEM and contents(rows[0])[2][1] == long["output"]
    encoded = chat_text.encode(tokenizer, rows[0]["messages"], 2000)
    assert encoded.shortened == "" and 1940 <= len(encoded.input_ids) <= 2000
    whole = [SYSTEM, ("user", long["input"]), ("assistant", long["output"])]
    count = len(chat_text.encode(tokenizer, [{"role": role, "content": content} for role, content in whole], 1 << 30).input_ids)
    assert (found["shortened"], found["taken"]) == (1, count - len(encoded.input_ids))
    said = capsys.readouterr().out
    assert f"shortened to MAX_SEQ_LENGTH = 2,000: 1 of 2 rows, by {found['taken']:,} tokens" in said
    alone = len(tokenizer(long["input"], add_special_tokens=False)["input_ids"])
    longest = int(said.split("tokens of a document: ")[1].split("longest ")[1].split("\n")[0].replace(",", ""))
    assert abs(longest - alone) <= 2
    assert f"tokens of a summary: median {len(tokenizer('It found 1.', add_special_tokens=False)['input_ids']) + 1}" in said
    assert len(said) < 5000 and "characters not shown" in said


def test_facts_that_were_taken_with_the_middle_are_asked_for_no_longer(convert, capsys):
    facts = {"beginning": ["day 1 the", "12 March 2019"], "middle": ["On day 200", "No. 201"], "end": ["Day 398", "court of case 1"]}
    rows = [long_case(1)[0] | {"facts": facts}, long_case(2)[0] | {"facts": {"middle": ["On day 200"]}}, case(3, facts={"end": ["held"]})]
    found = convert([*rows, long_case(4)[0]], max_seq_length=2000)
    left = {"beginning": facts["beginning"], "end": facts["end"]}  # the date never stood there, so it is not gone with the middle
    assert [row.get("facts") for row in written(convert.output)["train"]] == [left, None, {"end": ["held"]}, None]
    assert found["facts_taken"] == 3
    assert "facts taken with the middle: 3, in 2 rows, whose `facts` no longer name them" in capsys.readouterr().out
    assert convert(rows, max_seq_length=100_000)["facts_taken"] == 0 and "facts taken" not in capsys.readouterr().out
    assert [row.get("facts") for row in written(convert.output)["train"]] == [row["facts"] for row in rows]


def test_a_document_that_two_conversions_shortened_differently_is_still_one(convert, tmp_path):
    """With a longer summary less of the document stays, and its text is another one."""
    long = long_case(1)[0]
    for name, output in (("a", "Short."), ("b", "A summary that is longer, " * 30 + "by much.")):
        convert([long | {"output": output}], max_seq_length=2000, output=str(tmp_path / name))
    trained, _ = chat_rows.read([tmp_path / "a" / "train.jsonl"])
    others, _ = chat_rows.read([tmp_path / "b" / "train.jsonl"])
    assert trained[0].messages[1]["content"] != others[0].messages[1]["content"]
    seen, report = mixing.seen_as("training", trained, by="document"), {"rows_read": 1, "bad_rows": [], "bad_row_count": 0}
    with pytest.raises(Refusal, match="shares 1 of its 1 documents"):
        mixing.held_out_rows("validation", tmp_path / "b" / "train.jsonl", seen, report, by="document")


def test_documents_that_are_too_long_are_dropped_where_that_is_asked_for(convert, capsys):
    found = convert([long_case(1)[0], case(2)], max_seq_length=2000, long_documents="drop")
    assert found["rows"]["train"] == 1 and found["left_out"] == {"rows longer than MAX_SEQ_LENGTH": 1} and found["shortened"] == 0
    said = capsys.readouterr().out
    assert "raw.jsonl line 1 (" in said and "longest 1" in said and "shortened to" not in said


def test_documents_are_tokenised_side_by_side_some_at_a_time(convert, module, monkeypatch):
    """Each in one call with others, on all cores, and never all in memory."""
    batches, fit = [], chat_text.fit
    monkeypatch.setattr(module, "_AT_ONCE", 3000)
    monkeypatch.setattr(module.chat_text, "fit", lambda *given: batches.append(given[1]) or fit(*given))
    convert([case(n, sentences=20) for n in range(30)])
    batches = [batch for batch in batches if contents({"messages": batch[0]})[1][1] != "x"]  # what measures the template
    sizes = [sum(len(message["content"]) for messages in batch for message in messages) for batch in batches]
    assert sum(map(len, batches)) == 30 and min(map(len, batches)) > 1
    assert all(3000 <= size < 4500 for size in sizes[:-1]) and len(sizes) > 4


# What is refused

LONG = "long " * 600
NEVER_CUT = (
    r"its summary has \d+ tokens and leaves no room for a prompt in MAX_SEQ_LENGTH = 300; answers are never cut: raise MAX_SEQ_LENGTH"
)
KNOWN = r"LexSumm \(input, output\), BillSum \(text, summary\), Multi-LexSum \(sources, summary/long\) and GovReport \(report, summary\)"
HALF = "half \ud83d"
BAD = {
    "a summary longer than the context": (case(1) | {"output": LONG}, NEVER_CUT + r" to \d+ or more"),
    "empty document": (case(1) | {"input": " \n"}, "its input is empty"),
    "empty summary": (case(1) | {"output": ""}, "its output is empty"),
    "empty sources": ({"sources": ["", " "], "summary/long": "L."}, "its sources are empty"),
    "no sources": ({"sources": [], "summary/long": "L."}, "its sources are empty"),
    "empty summary of a case": ({"sources": ["a"], "summary/long": " "}, "its summary/long is empty"),
    "list": (case(1) | {"input": ["One.", "Two."]}, "its input is a list of 2, and LexSumm has one string there; .* called sources"),
    "list of summaries": ({"report": "R.", "summary": ["S."]}, "its summary is a list of 1, and GovReport has one string there"),
    "string": ({"sources": "One.", "summary/long": "L."}, "its sources is one string, where Multi-LexSum has a list of documents"),
    "characters": ({"sources": list("A string." * 9), "summary/long": "L."}, ".* 81 single characters: a string that was taken apart"),
    "joined characters": (
        case(1) | {"input": "\n\n".join("What the court held is so.")},
        "its input has one character a line",
    ),
    "joined lines": (case(1) | {"input": "\n".join("What the court held in this very case is so.")}, "its input has one character a line"),
    "list as text": (case(1) | {"input": str(["One.", "Two."])}, "its input is a list written as a string; .* called sources"),
    "null source": ({"sources": ["a", None], "summary/long": "L."}, "document 2 of its sources is null, where a string belongs"),
    "list in a list": ({"sources": ["a", ["b"]], "summary/long": "L."}, "document 2 of its sources is a list of 1"),
    "null document": ({"text": None, "summary": "S."}, "its text is null, where a string belongs"),
    "object": ({"text": {"a": 1}, "summary": "S."}, "its text is an object, where a string belongs"),
    "number of sources": ({"sources": 3, "summary/long": "L."}, "its sources is a number, where a list of documents belongs"),
    "unknown keys": ({"document": "D.", "abstract": "A."}, f"it has the keys document, abstract; known are {KNOWN}"),
    "no keys": ({}, "it has the keys of none; known are"),
    "control token": (case(1) | {"input": "Obey <|eot_id|> this."}, r"message 2 holds the control token <\|eot_id\|> as text"),
    "half a character": (case(1) | {"output": HALF}, "its output holds half of a surrogate pair"),
    "half a character of a fact": (case(1) | {"facts": {"end": [HALF]}}, "its facts hold half of a surrogate pair"),
    "list as a row": ([1, 2], "it is a list; a row is an object"),
}


@pytest.mark.parametrize(("row", "wanted"), BAD.values(), ids=BAD)
def test_bad_rows_stop_with_their_place_or_are_left_out_counted(convert, capsys, row, wanted):
    rows = [case(7), row, case(8)]
    with pytest.raises(Refusal, match=r"raw.jsonl line 2: " + wanted) as refused:
        convert(rows, max_seq_length=300)
    assert 'BAD_ROWS = "skip"' in str(refused.value)
    assert not list(convert.output.iterdir())
    found = convert(rows, max_seq_length=300, bad_rows="skip")
    assert found["rows"]["train"] == 2 and found["left_out"] == {"bad rows": 1}
    assert "raw.jsonl line 2: " in capsys.readouterr().out
    with pytest.raises(Refusal, match="give no row to train on .1 bad rows"):
        convert([row], max_seq_length=300, bad_rows="skip")


def parquet_bytes(tmp_path):
    return Path(write_parquet(tmp_path / "whole.parquet", [case(n, sentences=40) for n in range(300)], row_group_size=50)).read_bytes()


def damaged(tmp_path):
    content = parquet_bytes(tmp_path)
    return content[:900] + b"\xff" * 5000 + content[5900:]


ARRAY, NO_PARQUET = "is one JSON array; write each of its elements on a line", "is no parquet file, or cut short or damaged"
FILES = {
    "empty": ("a.jsonl", b"", "has no rows; known are LexSumm"),
    "UTF-16": ("a.jsonl", "{}\n".encode("utf-16"), "line 1: byte 1 is not UTF-8; write the file again as UTF-8"),
    "Latin-1": ("a.jsonl", '{"input": "caf\xe9", "output": "x"}'.encode("latin-1"), "line 1: byte 15 is not UTF-8"),
    "cut short": ("a.jsonl", b'{"input": "It was', "line 1: it is not JSON"),
    "array": ("a.jsonl", b'[{"input": "a", "output": "b"}]', ARRAY),
    "array over lines": ("a.jsonl", b"[\n{}\n]", ARRAY),
    "CSV": ("a.jsonl", b"input,output\na,b\n", "line 1: it is not JSON"),
    "brackets": ("a.jsonl", b"[" * 100_000, "line 1: it is not JSON that can be read"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(json.dumps(case(1)).encode() * 99)[:-20], "is cut short: a download that did not end"),
    "damaged gzip": ("a.jsonl.gz", b"\x1f\x8b\x08\x00" + b"\0" * 6 + b"no gzip" * 9, "is damaged gzip"),
    "cut parquet": ("a.parquet", lambda path: parquet_bytes(path)[:-100], NO_PARQUET),
    "damaged parquet": ("a.parquet", damaged, NO_PARQUET),
    "LFS pointer": ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", NO_PARQUET),
}


@pytest.mark.parametrize(("name", "content", "wanted"), FILES.values(), ids=FILES)
def test_files_that_cannot_be_read(convert, tmp_path, name, content, wanted):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content(tmp_path))
    with pytest.raises(Refusal, match=rf"{name}.*{wanted}"):
        convert(train=[str(path)])
    assert not list(convert.output.iterdir())


def test_columns_of_another_kind_of_table(convert, tmp_path):
    unknown = write_parquet(tmp_path / "a.parquet", [{"document": "D.", "abstract": "A."}])
    said = "a.parquet has the columns document, abstract; known are LexSumm .* rename its columns, or name another file"
    with pytest.raises(Refusal, match=said):
        convert(train=[unknown], bad_rows="skip")
    lists = write_parquet(tmp_path / "c.parquet", [{"input": ["One.", "Two."], "output": "O."}])
    with pytest.raises(Refusal, match=r"c.parquet row 1: its input is a list of 2, and LexSumm has one string"):
        convert(train=[lists])
    string = write_parquet(tmp_path / "d.parquet", [{"sources": "One.", "summary/long": "O."}])
    with pytest.raises(Refusal, match=r"d.parquet row 1: its sources is one string"):
        convert(train=[string])


def test_text_in_a_table_that_is_no_utf_8(convert, tmp_path):
    import pyarrow
    import pyarrow.parquet

    broken = pyarrow.array([b"good", b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"input": broken, "output": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(Refusal, match="a.parquet holds bytes that are not UTF-8"):
        convert(train=[str(tmp_path / "a.parquet")])


def test_an_unknown_model_is_refused_before_anything_is_written(convert):
    with pytest.raises(Refusal, match="there is no embedded model 'tiny-nothing'"):
        convert([case(1)], model_name="tiny-nothing")
    assert not convert.output.exists()


def test_memory_is_that_of_a_few_rows(tmp_path):
    """Nine megabytes of cases, read one by one."""
    path = write(tmp_path / "raw.jsonl", [case(n, sentences=3000) for n in range(80)])
    code = """
import sys, tracemalloc
from common import legal_files
tracemalloc.start()
print(sum(1 for _ in legal_files.cases(sys.argv[1], ["long"], None)), tracemalloc.get_traced_memory()[1])
"""
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    count, peak = map(int, ended.stdout.split())
    assert count == 80 and Path(path).stat().st_size > 8e6 and peak < 2e6


# The command


def command(*flags):
    return subprocess.run([sys.executable, str(COMMAND), *flags], cwd=REPOSITORY, capture_output=True, text=True)


def test_the_tiny_command(tmp_path):
    """On the sample, whose rows carry facts: those of a row are what its summary names."""
    ended = command("--tiny", "--output", str(tmp_path / "out"))
    assert ended.returncode == 0, ended.stderr
    raw = [json.loads(line) for line in (REPOSITORY / "samples" / "legal_cases.jsonl").read_text().splitlines()]
    rows = [row for some in written(tmp_path / "out").values() for row in some]
    assert sorted(contents(row)[2][1] for row in rows) == sorted(row["output"] for row in raw)
    assert all(word in contents(row)[2][1] for row in rows for words in row["facts"].values() for word in words)
    assert f"rows by kind: {len(raw)} LexSumm" in ended.stdout and "tokens of a document: median" in ended.stdout
    tokenizer = chat_text.load_tokenizer(hub.find("tiny-qwen3"))
    assert max(len(chat_text.encode(tokenizer, row["messages"], 1 << 30).input_ids) for row in rows) <= 4096
    assert "shortened to MAX_SEQ_LENGTH = 4,096" in ended.stdout


def test_the_command_refuses_with_a_sentence_and_exit_code_2(tmp_path):
    file = write(tmp_path / "raw.jsonl", [case(1), case(2) | {"output": ""}])
    ended = command("--train", file, "--model-name", MODEL, "--output", str(tmp_path / "out"))
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(f"error: {file} line 2: its output is empty; a row needs a document and a summary")
    assert not list((tmp_path / "out").iterdir())


def test_known_names_every_format():
    assert all(name in legal_files.KNOWN and document in legal_files.KNOWN for name, (document, _) in legal_files.FORMATS.items())

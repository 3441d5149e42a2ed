"""Reading rows: five formats judged per row, every rule named with file and line, skipping counted."""

import gzip
import json

import pytest

from common import chat_rows
from common.chat_rows import BadRow
from common.refusal import Refusal

GOOD = [{"role": "user", "content": "What is power?"}, {"role": "assistant", "content": "One minus the type II error."}]


def parse(row, **options):
    raw = row if isinstance(row, bytes) else json.dumps(row).encode()
    return chat_rows.parse(raw, "data/rows.jsonl", 7, **options)


def reason(row, **options):
    with pytest.raises(BadRow) as bad:
        parse(row, **options)
    return str(bad.value)


@pytest.fixture
def write(tmp_path):
    def rows(name, *lines):
        path = tmp_path / name
        path.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines))
        return str(path)

    return rows


LLAMA = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "What is power?<|eot_id|>\n<|start_header_id|>assistant<|end_header_id|>\n\nOne minus the type II error.<|eot_id|>"
)
CHATML = "<|im_start|>user\nWhat is power?<|im_end|>\n<|im_start|>assistant\nOne minus the type II error.<|im_end|>\n"
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("row", "kind", "messages"),
    [
        ({"messages": GOOD}, "messages", GOOD),
        ({"messages": [SYSTEM, *GOOD]}, "messages", [SYSTEM, *GOOD]),
        ({"instruction": "What is power?", "input": "", "output": GOOD[1]["content"]}, "instruction", GOOD),
        (
            {"instruction": "Explain.", "input": "power", "output": "One."},
            "instruction",
            [{"role": "user", "content": "Explain.\n\npower"}, {"role": "assistant", "content": "One."}],
        ),
        ({"prompt": "What is power?", "completion": GOOD[1]["content"]}, "prompt", GOOD),
        ({"question": "What is power?", "answer": GOOD[1]["content"], "system": "Be brief."}, "question", [SYSTEM, *GOOD]),
        ({"text": LLAMA}, "text", [SYSTEM, *GOOD]),
        ({"text": CHATML}, "text", GOOD),
        ({"text": CHATML.replace("<|im_end|>\n", "\n", 1)}, "text", GOOD),  # a turn that ends where the next one begins
        ({"text": "<s>" + CHATML + "<|endoftext|>\n"}, "text", GOOD),
        ({"text": LLAMA.removesuffix("<|eot_id|>") + "<|end_of_text|>"}, "text", [SYSTEM, *GOOD]),
    ],
)
def test_formats(row, kind, messages):
    found, name = parse(row)
    assert (name, found.messages) == (kind, messages)
    assert (found.file, found.line) == ("data/rows.jsonl", 7)


def test_extra_keys_of_a_message_are_left_out():
    row, _ = parse({"messages": [{**m, "name": "x"} for m in GOOD]})
    assert row.messages == GOOD


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b'{"messages": [}', "not JSON"),
        (b"plain text", "not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'"text"', "a JSON str"),
        (b"[1]", "a JSON list"),
        (b'{"messages": "\xff"}', "byte 15 is not UTF-8"),
        ({}, "its keys are none"),
        ({"conversations": GOOD}, "its keys are conversations"),
        ({"messages": []}, "messages are empty"),
        ({"messages": None}, "messages are empty"),
        ({"messages": {"role": "user"}}, "messages are empty"),
        ({"messages": ["hello"]}, "message 1 has no role"),
        (
            {"messages": [GOOD[0], {"role": "tool", "content": "x"}, GOOD[1]]},
            "message 2 has the role 'tool'; known are system, user, assistant",
        ),
        ({"messages": [GOOD[0], {"role": ["assistant"], "content": "x"}]}, "message 2 has the role ['assistant']"),
        ({"messages": [{"role": "user", "content": ""}, GOOD[1]]}, "message 1 (user) has empty content"),
        ({"messages": [GOOD[0], {"role": "assistant", "content": " \n"}]}, "message 2 (assistant) has empty content"),
        ({"messages": [GOOD[0], {"role": "assistant"}]}, "message 2 (assistant) has empty content"),
        ({"question": "Why?", "answer": "<think>\nIt is"}, "message 2 begins with <think> and never closes it"),
        ({"question": "Why?", "answer": "<think>\nIt is so.\n</think>\n"}, "message 2 ends with </think>: it has reasoning and no answer"),
        ({"messages": [GOOD[0], {"role": "assistant", "content": 3}]}, "message 2 (assistant) has content of type int, where text"),
        ({"messages": [GOOD[0]]}, "ends with a user turn"),
        ({"messages": [*GOOD, GOOD[0]]}, "ends with a user turn"),
        ({"messages": [GOOD[0], SYSTEM, GOOD[1]]}, "message 2 is a system message"),
        ({"messages": [GOOD[1]]}, "no user turn"),
        ({"text": "just prose"}, "no turns"),
        ({"text": CHATML.removesuffix("<|im_end|>\n")}, "its last turn has no end"),
        ({"text": LLAMA.removesuffix("<|eot_id|>")}, "may have been cut off"),
        ({"text": "Preamble. " + CHATML}, "its text holds 'Preamble.' outside any turn"),
        ({"text": LLAMA.replace("<|eot_id|>\n<", "<|eot_id|>\nA note.<")}, "'A note.' outside any turn"),
        ({"text": LLAMA + " and more"}, "'and more' outside any turn"),
        ({"text": CHATML.replace("<|im_start|>user", "<|im_start|>two words")}, "outside any turn"),
        ({"question": "What?", "answer": None}, "empty content"),
        (b'{"messages": [{"role": "user", "content": "a\\ud800b"}, {"role": "assistant", "content": "x"}]}', "half of a surrogate pair"),
        (
            b'{"id": "\\uD83D", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}]}',
            "half of a surrogate pair",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rules(row, said):
    assert said in reason(row)


@pytest.mark.parametrize(
    ("row_id", "group"),
    [
        ("cv_12_3", "cv_12"),
        ("cv_12_1", "cv_12"),
        ("arxiv_1234_5", "arxiv_1234"),
        ("plain", "plain"),
        ("two_parts", "two_parts"),
        ("cross_validated_17", "cross_validated_17"),  # the row's number, no answer's: not one group of the whole file
        ("cross_validated_17_2", "cross_validated_17"),
        ("arxiv_cuped_idea_1", "arxiv_cuped_idea_1"),
        ("cv_12_b", "cv_12_b"),
        ("12_3", "12_3"),
        (17, "17"),
    ],
)
def test_groups_from_ids(row_id, group):
    assert parse({"id": row_id, "messages": GOOD})[0].group == group


def test_without_an_id_the_first_question_is_the_group():
    other = [GOOD[0], {"role": "assistant", "content": "Another answer."}]
    first, second = parse({"messages": GOOD})[0], parse({"messages": other})[0]
    assert first.group == second.group
    assert first.id == "rows:7"
    assert parse({"messages": [{"role": "user", "content": "Else?"}, GOOD[1]]})[0].group != first.group


def test_whole_surrogate_pairs_are_characters():
    raw = b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}, {"role": "assistant", "content": "x"}]}'
    assert parse(raw)[0].messages[0]["content"] == "\U0001f600"


def test_zero_is_an_id():
    assert parse({"id": 0, "messages": GOOD})[0].id == "0"


def test_split_by_a_field():
    row, _ = parse({"id": "cv_1_1", "family": "power", "messages": GOOD}, split_by="family")
    assert row.group == "power"
    assert "no field 'family'" in reason({"id": "cv_1_1", "messages": GOOD}, split_by="family")


def test_reading_counts_formats_and_keeps_order(write):
    mixed = write(
        "mixed.jsonl", {"id": "a", "messages": GOOD}, b"", {"id": "b", "question": "Why?", "answer": "So."}, {"id": "c", "messages": GOOD}
    )
    other = write("other.jsonl", {"id": "d", "prompt": "Why?", "completion": "So."})
    rows, report = chat_rows.read([mixed, other])
    assert [(row.id, row.line) for row in rows] == [("a", 1), ("b", 3), ("c", 4), ("d", 1)]
    assert report["files"][mixed] == {"rows": 3, "format_counts": {"messages": 2, "question": 1}}
    assert report["files"][other] == {"rows": 1, "format_counts": {"prompt": 1}}
    assert (report["rows_read"], report["bad_row_count"]) == (4, 0)


def test_a_byte_order_mark_and_windows_line_ends_are_no_error(tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": GOOD}).encode() + b"\r\n" + json.dumps({"messages": GOOD}).encode())
    assert len(chat_rows.read([path])[0]) == 2


def test_stop_names_file_and_line_of_the_first_five(write):
    lines = [{"id": f"r{n}", "messages": GOOD if n % 2 else [GOOD[0]]} for n in range(14)]
    path = write("rows.jsonl", *lines)
    with pytest.raises(Refusal) as refused:
        chat_rows.read([path])
    sentence = str(refused.value)
    for line in (1, 3, 5, 7, 9):
        assert f"{path} line {line}: it ends with a user turn" in sentence
    assert "line 11" not in sentence
    assert "and 2 more" in sentence
    assert 'BAD_ROWS = "skip"' in sentence


def test_skip_counts_and_keeps_the_bad_rows(write):
    path = write("rows.jsonl", {"id": "a", "messages": GOOD}, b"{", {"id": "c", "messages": [GOOD[0]]}, b'"\xff"')
    rows, report = chat_rows.read([path], bad_rows="skip")
    assert [row.id for row in rows] == ["a"]
    assert (report["rows_read"], report["bad_row_count"]) == (4, 3)
    assert [(b["line"], b["raw"]) for b in report["bad_rows"]] == [
        (2, "{"),
        (3, json.dumps({"id": "c", "messages": [GOOD[0]]})),
        (4, '"\\xff"'),
    ]


def test_a_file_of_weight_0_is_counted_and_not_used(write):
    on = write("on.jsonl", {"id": "a", "messages": GOOD})
    off = write("off.jsonl", {"id": "b", "messages": GOOD}, b"{", {"id": "c", "messages": GOOD})
    rows, report = chat_rows.read({off: 0.0, on: 0.5}, split_by="id")
    assert [row.id for row in rows] == ["a"]
    assert report["files"][off] == {"rows": 3, "format_counts": {}}
    assert (report["rows_read"], report["bad_row_count"], report["split_by"]) == (1, 0, "id")
    with pytest.raises(Refusal, match="leave no row to train on"):
        chat_rows.read({off: 0, on: 0})


def test_nothing_usable_is_refused_even_when_skipping(write):
    path = write("rows.jsonl", b"{", b"}")
    with pytest.raises(Refusal, match=r"none of the 2 rows can be used.*line 1: it is not JSON"):
        chat_rows.read([path], bad_rows="skip")


def test_missing_empty_and_blank_files(write, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    for path, said in [
        (tmp_path / "no.jsonl", "does not exist"),
        (tmp_path / "empty.jsonl", "is empty"),
        (write("blank.jsonl", b"", b" "), "no rows"),
    ]:
        with pytest.raises(Refusal) as refused:
            chat_rows.read([path])
        assert str(path) in str(refused.value)
        assert said in str(refused.value)
    with pytest.raises(Refusal, match=f"{tmp_path} is a directory; TRAIN_FILES must name the JSONL files in it"):
        chat_rows.read([tmp_path])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.json", json.dumps([{"messages": GOOD}] * 2), "is one JSON array"),
        ("rows.jsonl", "\ufeff " + json.dumps([{"messages": GOOD}], indent=1), "is one JSON array"),
        ("rows.jsonl", json.dumps([{"messages": GOOD}] * 2000), "is one JSON array"),
        ("rows.jsonl", "[" * 100_000 + "\n[", "is one JSON array"),
        ("rows.jsonl.gz", gzip.compress(b"{}\n", mtime=0), "is compressed with gzip"),
        ("rows.CSV", "question,answer\nWhy?,So.\n", "is a CSV table"),
    ],
)
def test_files_of_another_kind(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for call in (chat_rows.require, chat_rows.read):
        with pytest.raises(Refusal) as refused:
            call({str(path): 1.0})
        assert str(refused.value).startswith(f"{path} {said}")
        assert str(refused.value).endswith('TRAIN_FILES must name files with one row a line, such as {"question": "...", "answer": "..."}')
    chat_rows.require({str(path): 0.0})  # turned off


def test_rows_of_another_kind_are_bad_rows(write):
    path = write("rows.csv", {"id": "a", "messages": GOOD}, [1])
    lists = write("rows.jsonl", [1], {"id": "b", "messages": GOOD})
    rows, report = chat_rows.read([path, lists], bad_rows="skip")
    assert [row.id for row in rows] == ["a", "b"]
    assert [(b["file"], b["line"]) for b in report["bad_rows"]] == [(path, 2), (lists, 1)]


FACTS = {"beginning": ["12 March 2019"], "end": ["Osei", "Lindqvist"]}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (FACTS, FACTS),
        (FACTS | {"middle": None}, FACTS),  # a place of a table's columns without words
        ({}, {}),
        (None, {}),
        ("The court was asked.", {}),
        (["Osei"], {}),
        (7, {}),
        ({"end": "Osei"}, {}),
        ({"end": [7]}, {}),
        ({"end": ["Osei", " "]}, {}),
    ],
)
def test_facts_are_taken_where_they_are_words_by_place_and_are_another_s_field_otherwise(given, wanted):
    assert parse({"messages": GOOD, "facts": given})[0].facts == wanted


@pytest.mark.parametrize(
    ("given", "wanted"), [("0f" * 16, "0f" * 16), ("Complaint", ""), ("0F" * 16, ""), ("0f" * 16 + "\n", ""), (7, ""), (None, "")]
)
def test_the_digest_of_the_whole_document_is_taken_where_it_is_one(given, wanted):
    assert parse({"messages": GOOD, "document": given})[0].document == wanted
    assert parse({"messages": GOOD})[0].document == ""

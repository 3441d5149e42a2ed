"""The preview of what a converter wrote: line by line, and fit for a terminal."""

from common.split_files import SplitFiles


def test_control_characters_of_documents_do_not_reach_the_terminal(tmp_path):
    messages = [
        {"role": "user", "content": "First \x1b[2Jline\nsecond\x07\tline\r\nthird \u202eline"},
        {"role": "assistant", "content": "\x9b31mRed\x00"},
    ]
    with SplitFiles(tmp_path / "out") as out:
        out.write("train", "a_1_1", "BillSum", messages)
        out.skip("bad rows", "line 2: it has the keys \x1b]0;title\x07")
    assert "\x1b[2J" not in (tmp_path / "out" / "train.jsonl").read_text()  # JSON writes it as an escape
    for clip in (None, 400):
        said = out.in_words(clip)
        assert not any(character in said for character in "\x1b\x07\x00\x9b\u202e\r")
        assert "  | user: First ␛[2Jline\n  | user: second␇\tline\n  | user: third [U+202E]line\n" in said
        assert "  | assistant: [U+009B]31mRed␀" in said and "line 2: it has the keys ␛]0;title␇: bad rows" in said

"""Where a document may be cut: after sentences, not after abbreviations; and on random texts never more than there is room for."""

import random
import re

import pytest

from common import long_documents


def parts(text, kind=long_documents.sentences):
    """What lies between the borders."""
    edges = [0, *(edge for border in kind(text, 0, len(text)) for edge in border), len(text)]
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("It was so. Then it was not! Why? Nobody knew.", ["It was so.", "Then it was not!", "Why?", "Nobody knew."]),
        ('He said "no." She said (yes.) “Fine.” 12 came.', ['He said "no."', "She said (yes.)", "“Fine.”", "12 came."]),
        ("See Doe v. Roe, 12 F. Supp. 2d 3, No. 7, and 42 U.S.C. 1983. So held.", None),
        ("Mr. J. Smith of Acme Inc. Delaware paid on Jan. 3 under Sec. 4, Art. II, and Fed. R. Civ. P. 12. So held.", None),
        ("It cost 1.5 million, e.g. or i.e. for www.example.com and v. 3. So held.", None),
        ("The end... Or not. and lower case goes on", ["The end...", "Or not. and lower case goes on"]),
        ("Whole paragraph\n\nAnother one\n \n and the third", ["Whole paragraph", "Another one", "and the third"]),
        ("It was so.\nThen a line\nwhich goes on", ["It was so.", "Then a line\nwhich goes on"]),
        ("See Sec.\n\nAnother", ["See Sec.", "Another"]),
        ("Sie hielt es. Übrigens nicht.", ["Sie hielt es.", "Übrigens nicht."]),
        ("如此。然后不是！为什么？", ["如此。", "然后不是！", "为什么？"]),
        ("It is so. § 12 says more.", ["It is so.", "§ 12 says more."]),
        ("no border here", ["no border here"]),
    ],
)
def test_sentences(text, wanted):
    assert parts(text) == (wanted or re.split(r" (?=So held)", text))


def test_lines_and_spaces():
    assert parts("one two\nthree\n\n four", long_documents.lines) == ["one two", "three", "four"]
    assert parts("one two\nthree\n\n four", long_documents.spaces) == ["one", "two", "three", "four"]


class Words:
    """As the tokenizers library's encoding: each word with the white space before it, or so many characters of it, is a token."""

    def __init__(self, text, longest=5):
        self.places = [found.span() for found in re.finditer(rf"\s*\S{{1,{longest}}}|\s+", text)]

    def __len__(self):
        return len(self.places)

    def token_to_chars(self, token):
        return self.places[token]


def kept(words, start, stop, head, tail):
    """How many tokens of the document have a character that is kept."""
    return sum(start <= a and b <= stop and (a < head or b > tail) for a, b in words.places)


@pytest.mark.parametrize("seed", range(20))
def test_as_much_is_kept_as_there_is_room_for_and_no_more(seed):
    draw = random.Random(seed)
    for _ in range(30):
        borders = draw.choice([[" "], [" "] * 9 + [". A"], [" "] * 40 + ["\n\n"], [" "] * 5 + ["\n"], [""], [". A"]])
        text = "".join(draw.choice(["a", "bc", "defg", "hijklmn"]) + draw.choice(borders) for _ in range(draw.randint(20, 4000)))
        text = "Prompt " + text + " end"
        words, start, stop = Words(text), 7, len(text) - 4
        count = kept(words, start, stop, stop, stop)
        room = draw.randint(2, count - 1)
        head, tail = long_documents.cut(text, words, start, stop, room)
        assert start < head <= tail < stop
        found = kept(words, start, stop, head, tail)
        assert found <= room
        assert found >= room - min(max(long_documents.LOST, room // 32), room // 4) - 1


def test_borders_that_are_better_are_taken_where_they_are_near():
    sentences = [f"Number {n} is a sentence of some words\nin two lines." for n in range(400)]
    for between, kind in ((" ", "sentences"), ("\n\n", "paragraphs")):
        text = between.join(sentences)
        head, tail = long_documents.cut(text, Words(text), 0, len(text), 1200)
        assert text[:head] in {between.join(sentences[:n]) for n in range(400)}, kind
        assert text[tail:] in {between.join(sentences[n:]) for n in range(400)}, kind
    lines = "\n".join(f"and line {n} of a list without any end" for n in range(600))
    head, tail = long_documents.cut(lines, Words(lines), 0, len(lines), 1200)
    assert lines[head] == "\n" == lines[tail - 1]
    spaces = " ".join(f"word{n}" for n in range(3000))
    head, tail = long_documents.cut(spaces, Words(spaces), 0, len(spaces), 1200)
    assert spaces[head] == " " == spaces[tail - 1]

"""Taking the middle out of a document that is too long: where it is cut, so that no sentence is cut in half.

Borders are, the first kind that is near: ends of sentences and paragraphs; ends of lines; white space; any token.
"""

import re
from bisect import bisect_left, bisect_right
from functools import cache
from itertools import product

OMISSION = "\n[...]\n"  # stands where the middle was
REACH = 128  # tokens from the place of an ideal cut in which a border is looked for, or a 64th of what may stay, whichever is more
LOST = 64  # tokens given up for a better kind of border, or a 32nd of what may stay, whichever is more
LOOKED_BACK = 16  # characters before a full stop in which its word is looked for
# Only the first mark of several begins a match and none is given back, so that a line of a million dots takes no longer than one of words
_SENTENCE = re.compile(r"""(?P<said>(?<![.!?])[.!?]++["'”’»)\]]*+)\s++|(?P<full>[。！？]["'”’」』）]*+)\s*+|\n[^\S\n]*+\n\s*+""")
_LINE, _SPACE = re.compile(r"\n\s*+"), re.compile(r"\s++")
_BEGINS = re.compile(r"""["'“‘«(\[]*+(.)""", re.S)
_WORD = re.compile(r"[^\W\d_]+$")
_ABBREVIATION = re.compile(  # the word before a full stop that ends no sentence; one letter ends none either
    r"""[^\W\d_]|
    admin|aff|al|am|amend|ann|anno|app|approx|apr|arg|art|arts|assn|assoc|atty|aug|ave|bankr|bd|bk|bldg|blvd|bros|bull|cal|
    cent|cert|cf|ch|chap|cir|civ|cl|co|comm|cong|const|corp|crim|ct|cty|dec|def|dep|dept|dist|div|dkt|doc|docs|ed|eds|eq|
    est|et|evid|ex|exh|exhs|exs|feb|fed|fig|figs|fla|gen|gov|govt|hon|ibid|id|ill|inc|ind|infra|ins|intl|jan|jr|jul|jun|
    let|lit|litig|ltd|mar|mass|max|md|mem|mfg|mich|min|minn|misc|mo|mr|mrs|ms|mt|natl|no|nos|nov|obj|oct|op|ord|org|para|
    paras|pet|pl|pp|proc|prof|pt|pts|pub|rec|ref|reg|regs|reh|rep|repl|req|res|resp|rev|rptr|sched|sec|secs|sen|sept|ser|
    sess|soc|sr|st|sta|stat|stats|subd|subdiv|subsec|supp|supra|tenn|tex|tit|tr|treas|univ|vol|vols|vs|wash""",
    re.I | re.X,
)


def cut(text, encoding, start, stop, room):
    """(end of the head, start of the tail) in characters of `text`, between which its middle is to be taken out.

    encoding: of all of `text`. start, stop: the document in it. room: tokens of the document that may stay, 2 or more and fewer than it
    has; head and tail together have about as many, never more, and half of them each unless a border is near.
    """
    tokens = range(len(encoding))
    begin, end = (lambda n: encoding.token_to_chars(n)[0]), (lambda n: encoding.token_to_chars(n)[1])
    first, last = bisect_left(tokens, start, key=begin), bisect_right(tokens, stop, key=end)
    half = (room + 1) // 2
    reach, lost = (min(max(least, room // share), room // 4) for least, share in ((REACH, 64), (LOST, 32)))

    @cache
    def borders(token, kind):
        low, high = max(token - reach, first + 1), min(token + reach, last - 1)
        return kind(text, begin(low), end(high)) if kind else [(begin(n),) * 2 for n in range(low, high + 1)]

    for before, after in sorted(product(range(len(KINDS)), repeat=2), key=sum):
        heads = [(bisect_left(tokens, at, key=begin) - first, at) for at, _ in borders(first + half, KINDS[before])]
        tails = [(last - bisect_right(tokens, at, key=end), at) for _, at in borders(last - room + half, KINDS[after])]
        kept, head, tail = _best(heads, sorted(tails), room, half)
        if kept >= room - lost:
            return head, tail
    return (head, tail) if kept else (begin(first + 1), begin(last - 1))  # of characters that are many tokens


def _best(heads, tails, room, half):
    """(tokens kept, end of the head, start of the tail) with the most of at most `room`; zeros where no two (tokens, place) go together."""
    found = [(0, 0, 0, 0)]
    for kept, end in heads:
        fits = bisect_right(tails, room - kept, key=lambda tail: tail[0])
        if kept > 0 and fits and tails[fits - 1][0] > 0:
            more, start = tails[fits - 1]
            found.append((kept + more, -abs(kept - half), end, start))
    kept, _, end, start = max(found)
    return kept, end, start


def sentences(text, low, high):
    """Ends of sentences and paragraphs among characters low to high of `text`: [(end of what comes before, start of what follows)]."""
    return [(_end(found), found.end()) for found in _SENTENCE.finditer(text, low, high) if _is_border(text, found)]


def _end(found):
    return max(found.end("said"), found.end("full")) if found["said"] or found["full"] else found.start()


def _is_border(text, found):
    if not found["said"] or found[0].count("\n") > 1:
        return True
    after = _BEGINS.match(text, found.end())
    if not after or after[1].islower() or not (after[1].isalnum() or after[1] in "§¶"):
        return False
    if found["said"] != ".":  # no abbreviation has a quotation mark after it, or two full stops
        return True
    word = _WORD.search(text[max(0, found.start() - LOOKED_BACK) : found.start()])
    return not word or not _ABBREVIATION.fullmatch(word[0])


def lines(text, low, high):
    """Ends of lines, as `sentences`."""
    return [found.span() for found in _LINE.finditer(text, low, high)]


def spaces(text, low, high):
    """White space, as `sentences`."""
    return [found.span() for found in _SPACE.finditer(text, low, high)]


KINDS = (sentences, lines, spaces, None)  # the last: any token

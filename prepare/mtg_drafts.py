"""17lands public draft data to conversations: this pack and this pool, what do you take, and what players of the data did.

    python prepare/mtg_drafts.py --drafts data/draft_data_public.MKM.PremierDraft.csv.gz
    python prepare/mtg_drafts.py --ranks mythic,diamond --min-win-rate 0.55 --min-games 100
    python prepare/mtg_drafts.py --no-facts --sample 1000                     the card's name alone, of the first 1,000 drafts
    python prepare/mtg_drafts.py --tiny                                       of samples/, a second

An answer begins with the card that was taken. What follows is counted in the drafts of train.jsonl: how often the card was taken when it
was seen, how early, and how its drafters did; no reason is made up. A draft is on one side whole. The raw file is read once, in blocks;
what the answers need waits in an unnamed file on OUTPUT's disk, about a tenth of the CSV's size, until all is counted.
"""

import pickle
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import annotated_types
import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from common import constants, draft_facts, draft_files, refusal
from common.refusal import Refusal
from common.split_files import SplitFiles, side_of

DRAFTS: list[str] = ["data/draft_data_public.csv.gz"]  # .csv or .csv.gz; expansions and events may differ
OUTPUT: str = "data/mtg_drafts"  # a directory
HELD_OUT: Annotated[float, annotated_types.Ge(0), annotated_types.Lt(0.5)] = 0.05  # share of the drafts in each of valid and test
SEED: NonNegativeInt = 42  # decides which drafts are held out

# Which picks
RANKS: list[str] | None = None  # such as mythic and diamond; "none" is a player without rank; none: all of them
MIN_WIN_RATE: Annotated[float, annotated_types.Ge(0), annotated_types.Le(1)] | None = None  # of the player's games, as 17lands buckets them
MIN_GAMES: PositiveInt | None = None  # that the player played on 17lands, bucketed too
SAMPLE: PositiveInt | None = None  # only the first so many drafts that these filters leave; the rest of the files is not read
BAD_ROWS: Literal["stop", "skip"] = "stop"  # "skip" leaves them out, counted

# What is said
FACTS: bool = True  # False: the card's name alone
MIN_OBSERVATIONS: PositiveInt = 100  # packs, picks or drafts that a stated rate rests on at least

TINY = {"DRAFTS": ["samples/mtg_drafts.csv.gz"], "OUTPUT": "data/mtg_drafts_tiny", "HELD_OUT": 0.1, "MIN_OBSERVATIONS": 20}


def main(**overrides):
    """Write the conversations; returns {"output", "train", "valid", "test", "skipped"}: rows by side, entries left out by reason.

    Raises `Refusal` for files that cannot be read or used, a bad row unless BAD_ROWS is "skip", and filters that leave nothing.
    """
    constants.resolve(globals(), overrides)
    if unknown := [rank for rank in RANKS or [] if rank not in draft_files.RANKS]:
        raise Refusal(f"RANKS names {unknown[0]!r}, which is no rank; there are {', '.join(draft_files.RANKS)}")
    if twice := [path for path in DRAFTS if sum(Path(other).resolve() == Path(path).resolve() for other in DRAFTS) > 1]:
        raise Refusal(f"DRAFTS names {twice[0]} twice, and its picks would count double; name it once")
    if not DRAFTS:
        raise Refusal("DRAFTS names no file; name 17lands draft data, .csv or .csv.gz")
    tables = [draft_files.open_table(path) for path in DRAFTS]
    require_filter_columns(tables)
    for table in tables:
        if table.unknown:
            print(f"{table.path}: columns that are not known and not used: {', '.join(table.unknown)}")
    cards = {}  # name -> number, over all files
    for table in tables:
        for name in table.cards(table.pack, draft_files.PACK) + table.cards(table.pool, draft_files.POOL):
            cards.setdefault(name, len(cards))
    with SplitFiles(OUTPUT) as out, tempfile.TemporaryFile(dir=OUTPUT) as waiting:
        names = list(cards)
        facts = draft_facts.Facts(names, MIN_OBSERVATIONS) if FACTS else None
        for picks in read(tables, cards, out):
            if facts:
                facts.add(picks, np.array([side == "train" for side in picks["sides"]], bool)[picks["draft"]])
                pickle.dump(picks, waiting, protocol=pickle.HIGHEST_PROTOCOL)
            else:
                write(picks, out, names)
        waiting.seek(0)
        while picks := next_waiting(waiting):
            write(picks, out, names, facts)
        if not sum(out.counts.values()):
            left_out = "; ".join(f"{count:,} {reason}" for reason, count in out.skipped.most_common())
            raise Refusal(f"no pick of DRAFTS is left ({left_out}); loosen the filter that took most, or name other files")
    print(out.in_words())
    return {"output": OUTPUT, **out.counts, "skipped": dict(out.skipped)}


def require_filter_columns(tables):
    for setting, value, column in (
        ("MIN_WIN_RATE", MIN_WIN_RATE, "user_game_win_rate_bucket"),
        ("MIN_GAMES", MIN_GAMES, "user_n_games_bucket"),
    ):
        for table in tables:
            if value is not None and column not in table.header:
                raise Refusal(f"{table.path} has no column {column}, which {setting} filters by; leave {setting} out or name another file")


def read(tables, cards, out):
    """Yield the picks that pass the filters, a dictionary of arrays for each block; `out` counts what does not."""
    sample, smallest = set(), np.min_scalar_type(-len(cards) - 1)  # what waits on the disk should be small
    for table in tables:
        pack_cards = np.array([cards[name] for name in table.cards(table.pack, draft_files.PACK)], smallest)
        pool_cards = np.array([cards[name] for name in table.cards(table.pool, draft_files.POOL)], smallest)
        in_pool = {card: at for at, card in enumerate(pool_cards.tolist())}
        pool_of = np.array([in_pool.get(card, -1) for card in pack_cards.tolist()], np.intp)  # the pool's column of a pack's column

        def bad(line, reason, path=table.path):
            if BAD_ROWS == "stop":
                raise Refusal(f"{path} line {line} is one of {reason}; mend it, or leave such rows out with BAD_ROWS skip")
            out.skip(reason, f"{path} line {line}")

        for block in draft_files.blocks(table, bad):
            block = filtered(block, out)
            if SAMPLE is not None:
                block, ended = sampled(block, sample, out)
                if ended:
                    return
            if len(block.lines):
                yield arrays(block, pack_cards, pool_cards, pool_of)


def filtered(block, out):
    """The block without the rows that a filter takes; each is counted under the first filter that takes it."""
    left = np.ones(len(block.lines), bool)
    for setting, column, passes, reason in (
        (RANKS, "rank", lambda text: (text.lower() or "none") in RANKS, f"picks of other ranks than {', '.join(RANKS or [])}"),
        (MIN_GAMES, "user_n_games_bucket", lambda text: number(text) >= MIN_GAMES,
         f"picks of players with fewer games than {MIN_GAMES} or an unknown number"),
        (MIN_WIN_RATE, "user_game_win_rate_bucket", lambda text: number(text) >= MIN_WIN_RATE,
         f"picks of players with a win rate below {MIN_WIN_RATE} or an unknown one"),
    ):  # fmt: skip
        if setting is None:
            continue
        codes, texts = block.words[column]
        passed = np.array([passes(text) for text in texts], bool)[codes]
        if taken := int((left & ~passed).sum()):
            out.skipped[reason] += taken
        left &= passed
    return block if left.all() else block.keep(left)


def number(text):
    """A bucket as a number; one that is empty or none passes no filter."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def sampled(block, sample, out):
    """(the block's rows of the first SAMPLE drafts, whether a block without any says that reading may end)."""
    codes, texts = block.words["draft_id"]
    there, first = np.unique(codes, return_index=True)
    for code in there[np.argsort(first)].tolist():
        if len(sample) < SAMPLE:
            sample.add(texts[code])
    mine = np.array([text in sample for text in texts], bool)[codes]
    if not mine.all():
        out.skipped[f"picks read of drafts after the first {SAMPLE:,}"] += int((~mine).sum())
    return block.keep(mine), len(sample) == SAMPLE and len(mine) > 0 and not mine.any()


def arrays(block, pack_cards, pool_cards, pool_of):
    """What facts and conversations need of a block, by card number; a pack's and a pool's cards stand row after row."""
    found = dict(block.numbers)
    for name, counts, card in (("pack", block.pack, pack_cards), ("pool", block.pool, pool_cards)):
        there = np.flatnonzero(counts != 0)  # four times as fast as np.nonzero
        found[f"{name}_card"] = card[there % counts.shape[1]]
        found[f"{name}_count"] = counts.reshape(-1)[there]
        found[f"{name}_sizes"] = np.count_nonzero(counts, axis=1)  # different cards in each row
    rows = np.arange(len(block.lines))[:, None]
    found["picked"] = np.where(block.picked < 0, -1, pack_cards[block.picked])
    found["first"] = (pool_of[block.picked] < 0) | (block.pool[rows, pool_of[block.picked]] == 0)  # the draft's first copy of the card
    expansion, expansions = block.words["expansion"]
    event, events = block.words["event_type"]
    pairs, found["group"] = np.unique(expansion.astype(np.int64) * len(events) + event, return_inverse=True)
    found["groups"] = [(expansions[pair // len(events)], events[pair % len(events)]) for pair in pairs.tolist()]
    found["draft"], found["drafts"] = block.words["draft_id"]
    found["sides"] = [side_of(draft, HELD_OUT, SEED) for draft in found["drafts"]]
    return found


def write(picks, out, cards, facts=None):
    """A conversation for each row, in the file of its draft's side."""
    abouts = [facts.said(group) if facts else [""] * len(cards) for group in picks["groups"]]
    packs, pools = (listed(picks, name, cards) for name in ("pack", "pool"))
    columns = (picks[name].tolist() for name in ("draft", "group", "pack_number", "pick_number", "picked"))
    for draft, group, pack_number, pick_number, (first, second), pack, pool in zip(*columns, packs, pools, strict=True):
        expansion, event = picks["groups"][group]
        name, about = picks["drafts"][draft], abouts[group]
        answer = cards[first] if second < 0 else f"{cards[first]} and {cards[second]}"
        said = [about[card] for card in dict.fromkeys((first, second)) if card >= 0 and about[card]]
        question = (
            f"You are drafting {expansion} ({event}). Pack {pack_number + 1}, pick {pick_number + 1}.\n"
            f"The pack: {pack}.\nYour pool: {pool or 'empty'}.\n{'What do you take?' if second < 0 else 'Which two cards do you take?'}"
        )
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": " ".join([f"{answer}.", *said])}]
        out.write(picks["sides"][draft], f"draft_{name}_{pack_number + 1}_{pick_number + 1}", "draft picks", messages, draft_id=name)


def listed(picks, name, cards):
    """The cards of each row's pack or pool as one text, with the number of copies where there are more."""
    entries = np.array(cards, object)[picks[f"{name}_card"]]
    for at in np.flatnonzero(picks[f"{name}_count"] > 1).tolist():
        entries[at] = f"{picks[f'{name}_count'][at]}x {entries[at]}"
    entries, ends = entries.tolist(), np.cumsum(picks[f"{name}_sizes"]).tolist()
    return ["; ".join(entries[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def next_waiting(file):
    try:
        return pickle.load(file)
    except EOFError:
        return None


if __name__ == "__main__":
    refusal.guard(main)

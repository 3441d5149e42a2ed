"""An invented draft table in the columns of 17lands: pods of eight draft invented cards, and what one drafter of each saw is written.

Every card has a strength, the same for all drafters, and a drafter prefers the colours of the pool so far, so the picks can be learnt.
"""

import csv
import gzip
import io
import math
import random

import mtg

POD = 8
PACKS = 3
PACK_SIZES = (9, 8)  # in turn: some draws of a product hold a card more
RANKS = ("gold", "mythic", "")
GAMES = (10, 50, 100, 500)
BEFORE = (
    *("expansion", "event_type", "draft_id", "draft_time", "rank"),
    *("event_match_wins", "event_match_losses", "pack_number", "pick_number"),
)
AFTER = ("pick_maindeck_rate", "pick_sideboard_in_rate", "user_n_games_bucket", "user_game_win_rate_bucket")


def write(path, drafts=64, cards=60, seed=42, expansion="INV", two=False):
    """A table of `drafts` drafts; the same arguments give the same text, gzip where the path ends in .gz. two: takes two cards from each
    pack and has the column pick_2."""
    generator = random.Random(f"{seed} draft table")
    printed = mtg.invented_cards(cards, seed)
    colours = {card["name"]: colours_of(card) for card in printed}
    names = sorted(colours)
    strength = {name: generator.gauss(0, 1) for name in names}
    rows = [row for number in range(drafts) for row in draft(generator, number, names, colours, strength, expansion, two)]
    first = [row for row in rows if row[2] == rows[0][2]]
    rows = [row for row in rows if row not in first[-3:]] + first[-3:]  # a draft's rows are not always neighbours
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    picks = ["pick", "pick_2"] if two else ["pick"]
    table.writerow([*BEFORE, *picks, *AFTER, *(f"pack_card_{name}" for name in names), *(f"pool_{name}" for name in names)])
    table.writerows(rows)
    with path.open("wb") as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as zipped:
                zipped.write(text.getvalue().encode())
        else:
            file.write(text.getvalue().encode())


def colours_of(card):
    return set(card.get("colors") or [colour for face in card.get("card_faces", []) for colour in face.get("colors", [])])


def draft(generator, number, names, colours, strength, expansion, two):
    """The rows of the drafter in seat 0: one for each pick."""
    size, pools, picks = PACK_SIZES[number % len(PACK_SIZES)], [[] for _ in range(POD)], []
    for pack_number in range(PACKS):
        packs = [[generator.choice(names) for _ in range(size)] for _ in range(POD)]
        for pick_number in range(math.ceil(size / (1 + two))):
            for seat, pool in enumerate(pools):
                pack = packs[(seat + pick_number) % POD]
                seen, before, taken = list(pack), list(pool), []
                for _ in range(min(1 + two, len(pack))):
                    taken.append(choice(generator, pack, pool, colours, strength))
                    pack.remove(taken[-1])
                    pool.append(taken[-1])
                if seat == 0:
                    picks.append((pack_number, pick_number, taken, seen, before))
    wins, losses = record(generator, sum(strength[name] for name in pools[0]) / len(pools[0]))
    event = [expansion, "PickTwoDraft" if two else "PremierDraft"]
    event += [f"{generator.getrandbits(128):032x}", f"2025-01-{number % 28 + 1:02} 12:00:00"]
    rank, games, rate = RANKS[number % 3], generator.choice(GAMES), generator.choice((0.48, 0.52, 0.56, 0.6, ""))
    return [
        [*event, rank, wins, losses, pack_number, pick_number, *(taken + [""])[: 1 + two], round(generator.random(), 2), 0.0, games, rate,
         *(seen.count(name) for name in names), *(before.count(name) for name in names)]
        for pack_number, pick_number, taken, seen, before in picks
    ]  # fmt: skip


def choice(generator, pack, pool, colours, strength):
    """The card with the best score: its strength, the colours it shares with the pool, and a little whim."""
    held = {colour: sum(colour in colours[name] for name in pool) for colour in mtg.COLOURS}
    scores = {
        name: strength[name] + 0.15 * sum(held[colour] for colour in colours[name]) / max(1, len(colours[name])) + generator.gauss(0, 0.3)
        for name in dict.fromkeys(pack)
    }
    return max(scores, key=scores.get)


def record(generator, quality):
    """(wins, losses) of an event that ends at seven wins or three losses; a stronger pool wins more."""
    wins = losses = 0
    while wins < 7 and losses < 3:
        if generator.random() < 1 / (1 + math.exp(-quality)):
            wins += 1
        else:
            losses += 1
    return wins, losses

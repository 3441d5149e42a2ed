"""What players did with each card, counted over the picks of drafts: how often it was taken when seen, how early, and how they fared."""

import numpy as np

SEEN, TAKEN, AT, DRAFTED, WON, LOST = range(6)  # rows of a table of counts


class Facts:
    """Counts of each card by expansion and event type. cards: the names by number; fewest: observations that a stated rate rests on."""

    def __init__(self, cards, fewest):
        self.cards, self.fewest, self.tables, self._said = cards, fewest, {}, {}

    def add(self, picks, counted):
        """Count the picks (prepare/mtg_drafts.py `arrays`) of the rows that `counted`, a mask, names."""
        first, second = picks["picked"].T  # the second is -1 where one card was taken
        for code, group in enumerate(picks["groups"]):
            rows = counted & (picks["group"] == code)
            table = self.tables.setdefault(group, np.zeros((6, len(self.cards)), np.int64))
            table[SEEN] += np.bincount(picks["pack_card"][np.repeat(rows, picks["pack_sizes"])], minlength=len(self.cards))
            for nth, taking in enumerate((rows, rows & (second >= 0) & (second != first))):  # two copies from one pack are one taking
                at, card = np.flatnonzero(taking), picks["picked"][taking, nth]
                np.add.at(table[TAKEN], card, 1)
                np.add.at(table[AT], card, picks["pick_number"][at] + np.int64(1))
                once = picks["first"][at, nth]  # a draft is counted where it takes its first copy, so nothing need be remembered of drafts
                np.add.at(table[DRAFTED], card[once], 1)
                np.add.at(table[WON], card[once], picks["event_match_wins"][at[once]])
                np.add.at(table[LOST], card[once], picks["event_match_losses"][at[once]])

    def said(self, group):
        """For each card what its counts in an (expansion, event type) allow to say, "" where they are too few."""
        if group not in self._said:
            counts = self.tables[group].T.tolist()
            self._said[group] = [" ".join(self._sentences(*facts)) for facts in zip(self.cards, counts, strict=True)]
        return self._said[group]

    def _sentences(self, name, counts):
        seen, taken, at, drafted, won, lost = counts
        if seen >= self.fewest:
            yield f"Players who saw {name} took it from {taken:,} of {seen:,} packs ({taken / seen:.1%})."
        if taken >= self.fewest:
            yield f"They took {name} at pick {at / taken:.1f} of a pack on average ({taken:,} picks)."
        if drafted >= self.fewest and won + lost:
            yield f"The {drafted:,} drafts that took {name} won {won / (won + lost):.1%} of their {won + lost:,} matches."

"""Warning signs of a training: plain values as they are logged in, sentences with what to change out."""

import math
from dataclasses import dataclass, field
from statistics import fmean as mean
from statistics import median, pstdev

from common import memory

WINDOW = 5  # logged values that are averaged before they are compared
LAST = 20  # logged values that are the present: their median is the level, their moves from one to the next the noise
LOOKED_BACK = 1000  # logged values among which a rising loss has its lowest
FLAT = 0.02  # relative change of the loss over the run below which nothing was learned
BUSY = 0.5  # share of the time a GPU should compute at least
EDGE = 0.95  # share of the memory above which a longer row may end the run
ROOM = 0.7  # and below which a larger batch may fit

# From runs of the tiny Llama with the rates it learns with, 1e-3 and 1e-2, every step or every fifth logged, the other recipes' and
# a GPT pretrained on files of different difficulty. From one logged value to the next their losses typically move by up to 0.77 of the
# level with 1 row a value, 0.70 with 2, 0.40 with 8, 0.20 with 40 and 0.05 with 160: rows differ, and their mean does by 1 / sqrt(rows).
# The highest value is 2.6, 2.3, 1.7, 1.1 and 1.2 times the level. By chance the mean of five rises by up to 3.7 times its noise.
# Rates that are too high (5e-2 to 5e-1) throw the loss to twice its start within 8 steps; 3e-2 only leaves it there for a third of the run.
USUAL_MOVE = 1.2  # of the level, of a value of one row
LEAST_MOVE = 0.15  # and of very many
ERRATIC = 2  # usual moves that half of all moves exceed
LEAP = 3  # usual moves of one value above the level
ABOVE_START = 1.2  # every one of WINDOW losses over the first ones
TOO_HIGH, TOO_LOW = 20, 100  # times the recipe's own rate
RISING = 1.3  # recent loss over the lowest earlier one
NOISES = 5  # by which it is above that at least


@dataclass
class WarningSigns:
    """What was logged so far, and what was said of it: each kind once.

    batch, accumulation: rows at once on one rank and how many such a step has; steps, warmup: optimiser steps; larger: the constants to
    raise where nothing is learned; constants: the recipe's, resolved, to name those that cost memory, or None.
    """

    learning_rate: float
    batch: int
    accumulation: int
    rows: int  # over all ranks, whose mean one logged loss is
    steps: int
    warmup: float
    larger: str
    constants: dict | None = None
    losses: list = field(default_factory=list)  # those before a resume as well
    busy: list = field(default_factory=list)
    said: set = field(default_factory=set)

    def at(self, step, loss, busy, used, total):
        """The new sentences at a logged step. busy: share of the time that the GPUs computed, or None; used, total: memory in GB."""
        self.losses.append(loss)
        if busy is not None and step > self.warmup:
            self.busy.append(busy)
        for kind, sentence in self._looked_for(step, used, total):
            if sentence:
                self.said.add(kind)
                yield sentence

    def _looked_for(self, step, used, total):
        """(kind, sentence or None) of what was not said yet; after one on a rate that is too high none says to raise it."""
        if "lower" not in self.said:
            yield "lower", rising(self.losses, step, self.learning_rate) or erratic(self.losses, step, self.rows, self.learning_rate)
        if self.said.isdisjoint({"lower", "raise"}):
            yield "raise", flat(self.losses, step, self.steps, self.warmup, self.larger, self.learning_rate)
        if "idle" not in self.said:
            yield "idle", idle(self.busy, step, self.batch, self.accumulation, used / total, self.constants or {})
        if "full" not in self.said:
            yield "full", full(used, total, self.constants or {})


def unusual_rate(learning_rate, usual):
    """A sentence on a rate that is far from the recipe's own, which hardly ever learns; None for one that may."""
    times = learning_rate / usual
    if 1 / TOO_LOW <= times <= TOO_HIGH:
        return None
    far = f"{times:,.0f} times" if times > 1 else f"1/{1 / times:,.0f} of"
    return f"LEARNING_RATE = {learning_rate:g} is {far} this recipe's {usual:g}; " + (
        "the loss will hardly fall" if times < 1 else "the loss will probably rise or be thrown about")


def rising(losses, step, learning_rate):
    """A loss that stays above its start, or is well above its lowest and by more than noise."""
    if len(losses) <= WINDOW:
        return None
    low, recent, risen = median(losses[:3]), mean(losses[-WINDOW:]), False
    if len(losses) >= 3 * WINDOW:
        lowest = min(_means(losses[-LOOKED_BACK:-WINDOW]))
        noise = pstdev(_moves(losses)) / math.sqrt(WINDOW)  # of the difference of two means: moves have two values' noise too
        risen = recent > max(RISING * lowest, lowest + NOISES * noise)
        low = lowest if risen else low
    risen = risen or min(losses[-WINDOW:]) > ABOVE_START * low
    return f"the loss is rising ({low:.3f} -> {recent:.3f} by step {step}); {_slower(learning_rate)}" if risen else None


def erratic(losses, step, rows, learning_rate):
    """A loss that leaps, or moves from one logged value to the next, by more than the rows in a value explain."""
    if len(losses) < 3:
        return None
    level = max(median(losses[-LAST:]), median(losses[:3]) / 2)  # near 0, half the start: there what is left varies more
    usual = level * max(LEAST_MOVE, USUAL_MOVE / math.sqrt(rows))
    if losses[-2] > max(level, losses[-1]) + LEAP * usual:  # up and down again; what stays up is rising
        return f"the loss is erratic: it leapt from about {level:.3f} to {losses[-2]:.3f} before step {step}; {_slower(learning_rate)}"
    move = median(map(abs, _moves(losses)))
    if len(losses) < LAST or move <= ERRATIC * usual:
        return None
    return (
        f"the loss is erratic: at about {level:.3f} it moves by {move:.3f} from one logged value to the next by step {step}, "
        f"where {usual:.3f} is usual; {_slower(learning_rate)}"
    )


def flat(losses, step, steps, warmup, larger, learning_rate):
    """A loss that is where it began after a third of the run: it never left, or a rate too high threw it up and it came back."""
    if len(losses) < 3 * WINDOW or step <= max(2 * warmup, steps / 3):
        return None
    first, recent = mean(losses[:WINDOW]), mean(losses[-WINDOW:])
    if recent <= (1 - FLAT) * first:
        return None
    peak = max(_means(losses))
    if peak > max(ABOVE_START * first, first + 2 * pstdev(_moves(losses, len(losses))) / math.sqrt(WINDOW)):
        return f"the loss is where it began ({first:.3f}, up to {peak:.3f}, {recent:.3f} by step {step}); {_slower(learning_rate)}"
    return f"the loss is flat ({first:.3f} -> {recent:.3f} by step {step}); raise {larger}"


def idle(busy, step, batch, accumulation, memory_share, constants):
    """GPUs that wait. busy: shares of the time at the logged steps after the warmup; memory_share: of the GPU's memory, at its peak."""
    share = median(busy[-WINDOW:]) if len(busy) > WINDOW else 1  # the first holds what starts slowly
    if share >= BUSY:
        return None
    said = f"the GPUs computed {share:.0%} of the time up to step {step}; "
    rows = batch * accumulation
    larger = next((size for size in range(2 * batch, rows + 1) if rows % size == 0), None)
    if larger and memory_share < ROOM:
        then = f" with GRADIENT_ACCUMULATION_STEPS from {accumulation} to {rows // larger}" if not constants.get("TRAIN_BATCH_SIZE") else ""
        return f"{said}raise PER_DEVICE_TRAIN_BATCH_SIZE from {batch} to {larger}{then}: the same rows a step"
    why = f"{memory_share:.0%} of the memory is taken" if larger else "GRADIENT_ACCUMULATION_STEPS has nothing to give to a larger batch"
    return f"{said}{why}, so look for what they wait for: rows from a slow disk, busy CPU cores, EVAL_STEPS or SAVE_STEPS that come often"


def full(used, total, constants):
    """Memory at its edge. used, total: GB; constants: as for `memory.ladders`."""
    if used <= EDGE * total:
        return None
    first = [memory.in_words(constants, rungs[0]) for rungs in memory.ladders(constants)[:2]]
    said = f"memory is near its edge: {used:.1f} of the {total:.1f} GB within reach ({used / total:.0%}), a longer row may not fit"
    return f"{said}. Change first: {'; then '.join(first)}" if first else said


def _means(losses):
    return [mean(losses[i : i + WINDOW]) for i in range(len(losses) - WINDOW + 1)]


def _moves(losses, count=LAST):
    last = losses[-count:]
    return [after - before for before, after in zip(last, last[1:], strict=False)]


def _slower(learning_rate):
    return f"lower LEARNING_RATE (now {learning_rate:g}) to a third, {learning_rate / 3:.2g}"

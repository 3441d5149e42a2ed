"""How many tokens a recipe's data have, within a second or two: from the tokenised cache, from every row, or from a sample.

The figures a plan needs before anything is tokenised. No torch, transformers or datasets, and no network.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import batches, chat_rows, conversation_tokens, sampled_lines
from common.refusal import Refusal

SMALL = 2 << 20  # bytes: of files that have no more in all every row is counted
COUNTED = 1 << 20  # bytes of the sampled rows that are tokenised
COUNTED_ROWS = 2000  # no more of them than these
KEPT = 50_000  # lengths kept of rows that are not in a cache
KEPT_OF_CACHE = 4_000_000  # lengths kept of a cache: so many are packed in about a second
PACKED_TOGETHER = 1000  # rows: TRL packs inside of these, as `datasets.map` hands them over


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """What an epoch trains on.

    rows, tokens: of the training side, after weights and without the held-out share. lengths: tokens of its rows, integers, in
    the order of the files; of many rows some that stand for all, of each file as large a share as it has of the rows.
    shortened_share: of the rows that are longer than the recipe lets them be (in tokens and lengths they are cut).
    unusable_share: of all rows those that training stops at or leaves out, also for their length. source: how it was counted and
    what is to be known of it, in words. validation_rows, validation_tokens: of the rows that pick the best checkpoint, half of the
    held-out share.
    exact: whether all this is of every row as it is trained on; otherwise what is computed from it is about right.
    """

    rows: int
    tokens: int
    lengths: np.ndarray
    shortened_share: float
    unusable_share: float
    source: str
    validation_rows: int = 0
    validation_tokens: int = 0
    exact: bool = False


def measure(files, max_length, held_out=0.0, tokenizer_directory=None, cached=None, seed=0, bad_rows="stop", long_documents="shorten"):
    """`TokenCounts` of `files` ({path: weight}, JSONL) for rows of at most `max_length` tokens.

    held_out: share of the rows that is not trained on, taken off in proportion. tokenizer_directory: with tokenizer.json;
    without one four characters a token are assumed. cached: what `tokenised.find` returned; it is believed, and nothing else
    is read. bad_rows: "stop" or "skip", what training does with rows that it cannot use; the figures are without them, source
    says it. long_documents: with "drop" rows whose last exchange has more than `max_length` tokens are left out in place of
    shortened. The same files and seed give the same answer. Raises `Refusal` for a missing or empty file, for weights that are
    all 0, and where no row that was looked at can be used.
    """
    if cached:
        return _of_cache(cached)
    chat_rows.require(files)
    sizes = {file: Path(file).stat().st_size for file, weight in files.items() if weight}
    counter, total = conversation_tokens.Counter(tokenizer_directory), sum(sizes.values())
    found = [_of_file(file, size, total, counter, max_length, seed, long_documents == "drop") for file, size in sizes.items()]
    if found and not any(len(f.lengths) for f in found):
        too_long = f'they are longer than MAX_SEQ_LENGTH = {max_length}, and LONG_DOCUMENTS = "drop" leaves such rows out'
        problem = next((f.problem for f in found if f.problem), too_long)
        raise Refusal(f"none of the {sum(f.counted for f in found):,} rows that were looked at can be used; {problem}")
    usable = np.array([f.rows * (1 - f.unusable - f.too_long) for f in found])
    rows = usable * [files[f.file] * (1 - held_out) for f in found]
    if round(rows.sum()) == 0:
        raise Refusal(f"the weights {files} leave no row to train on; give at least one file a larger weight")
    cut = [np.minimum(f.lengths, max_length) for f in found]
    means = np.array([c.mean() if len(c) else 0.0 for c in cut])
    shares = [(f.lengths > max_length).mean() if len(f.lengths) else 0.0 for f in found]
    shortened = float(np.average(shares, weights=rows))
    kept = rows * min(1, KEPT / rows.sum())
    unusable, too_long = np.average([(f.unusable, f.too_long) for f in found], axis=0, weights=[f.rows for f in found])
    return TokenCounts(
        rows=round(rows.sum()), tokens=round((rows * means).sum()),
        lengths=np.concatenate([_spread(c, max(1, round(k))) for c, k in zip(cut, kept, strict=True)]),
        shortened_share=shortened,
        unusable_share=float(unusable + too_long),
        source=_counted(found, counter.how, held_out) + _shortened(shortened) + _too_long(too_long) + _unusable(found, bad_rows),
        validation_rows=round(usable.sum() * held_out / 2), validation_tokens=round((usable * means).sum() * held_out / 2),
    )  # fmt: skip


def padding_share(counts, micro_batch, gpus, seed):
    """The share of padding where rows are grouped by length: batches of `micro_batch` rows on each of `gpus` GPUs."""
    order = batches.grouped_order(counts.lengths, micro_batch * gpus, seed, 0)
    return float(batches.padding_share(counts.lengths, order, micro_batch))


def packing(counts, max_length):
    """(packed rows of an epoch, the share of them that holds tokens) where rows are packed into rows of `max_length` tokens.

    Best fit decreasing, as TRL's packing_strategy "bfd" does it (trl/data_utils.py): the longest row first, each into the
    packed row with the least room that suffices, `PACKED_TOGETHER` rows at a time.
    """
    lengths = np.minimum(counts.lengths, max_length)
    packed = sum(_packed(lengths[at : at + PACKED_TOGETHER], max_length) for at in range(0, len(lengths), PACKED_TOGETHER))
    return max(1, round(counts.rows * packed / len(lengths))), float(lengths.sum() / (packed * max_length))


def attended_length(counts):
    """Tokens of the row that the average token stands in: sum(l²) / sum(l). What attention costs grows with it."""
    lengths = counts.lengths.astype(np.float64)
    return float((lengths**2).sum() / lengths.sum())


def tokenizer_directory(name, revision=None):
    """The directory with tokenizer.json of a local or hub model, None where this machine has none; asks no network."""
    if Path(name).is_dir():
        return str(name) if (Path(name) / "tokenizer.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "tokenizer.json", revision=revision)
    except ValueError:  # no hub name
        return None
    return str(Path(found).parent) if isinstance(found, str) else None


@dataclass(frozen=True, eq=False)
class _File:
    """rows: of the file, all or estimated; lengths: tokens of those that can be used; counted: rows that were tokenised; unusable,
    too_long: the shares of rows with a fault, and of rows that are left out for their length."""

    file: str
    rows: float
    lengths: np.ndarray
    counted: int
    unusable: float
    too_long: float
    problem: str


def _of_cache(cached):
    lengths, statistics = cached.lengths(), cached.statistics
    splits, too_long = statistics["splits"], statistics.get("too_long_count", 0)
    usable = statistics["rows_read"] - statistics["bad_row_count"] - too_long
    held_out = sum(splits[name]["rows"] for name in ("validation", "test") if name in splits) / usable
    validation = splits.get("validation", {"rows": 0, "tokens": 0})
    distinct = sum(f["rows_after_weighting"] / max(f["weight"], 1) for f in statistics["files"].values())  # "shortened" is of these
    shortened, unusable = splits["train"]["shortened"] / distinct, 1 - usable / statistics["rows_read"]
    source = "tokenised cache" + (f" of {_percent(1 - held_out)} of all {usable:,} rows (the others are held out)" if held_out else "")
    left_out = "".join(
        f"; {count:,} rows ({_percent(count / statistics['rows_read'])}) {what} and are left out" if count else ""
        for count, what in ((too_long, "are longer than MAX_SEQ_LENGTH"), (statistics["bad_row_count"], "cannot be used"))
    )
    kept = lengths
    if len(lengths) > KEPT_OF_CACHE:  # neighbours stay together, for they are packed together
        starts = np.linspace(0, len(lengths) - PACKED_TOGETHER, KEPT_OF_CACHE // PACKED_TOGETHER).astype(int)
        kept = lengths[(starts[:, None] + np.arange(PACKED_TOGETHER)).ravel()]
    return TokenCounts(
        len(lengths), int(lengths.sum()), kept, shortened, unusable, source + _shortened(shortened) + left_out,
        validation["rows"], validation["tokens"], exact=kept is lengths,
    )  # fmt: skip


def _of_file(file, size, total, counter, max_length, seed, drop):
    """`_File` of one of the files, which has `size` of their `total` bytes. drop: leave out what is too long in place of shortening it.

    The lengths in bytes of many lines are cheap, their tokens are not. So tokens are counted for rows spread evenly over the
    lines sorted by length, and each line has as many tokens per byte as the counted row that is nearest to it in that order.
    """
    small, share = total <= SMALL, size / total
    lines, whole = sampled_lines.read(file, size, None if small else share, seed)
    used = [place for place, line in enumerate(lines) if line.strip()]
    if not used:
        raise Refusal(f"{file} has no rows; TRAIN_FILES must name files with one JSON object a line")
    sizes = np.array([len(lines[place]) for place in used])
    rows = len(used) if whole else size * len(used) / (sum(map(len, lines)) + len(lines))
    affordable = share * min(COUNTED_ROWS, COUNTED / np.minimum(sizes, conversation_tokens.PIECE).mean())
    counted = len(used) if small else min(len(used), max(30, int(affordable)))
    order = np.argsort(sizes, kind="stable")
    nearest = np.arange(len(used)) * counted // len(used)  # the counted row of each line, in the order of their sizes
    chosen = order[np.searchsorted(nearest, np.arange(counted)) + np.bincount(nearest) // 2]
    conversations, problems = [], {}
    for place in chosen:
        try:
            messages = chat_rows.parse(lines[used[place]].removeprefix(b"\xef\xbb\xbf").strip(), file, 0)[0].messages
            if token := counter.control_token(messages):
                raise chat_rows.BadRow(f"it holds the control token {token} as text, which the model would obey")
            conversations.append(messages)
        except chat_rows.BadRow as reason:
            problems[place] = str(reason)
            conversations.append(None)
    tokens = counter.count(conversations, whole=small)
    no_room = f"leaves no room for a prompt in MAX_SEQ_LENGTH = {max_length}; answers are never cut"
    for place, (_, _, least, answer) in zip(chosen, tokens, strict=True):
        if np.rint(least) > max_length:
            problems[place] = f"its answer has about {answer:,.0f} tokens and {no_room}"
    lengths, last, least = np.empty((3, len(used)))
    lengths[order], last[order], least[order] = (tokens[:, :3] / sizes[chosen, None])[nearest].T * sizes[order]
    possible = np.rint(least) <= max_length  # NaN is not
    dropped = possible & (np.rint(last) > max_length) & drop
    usable, unusable = lengths[possible & ~dropped], 1 - possible.mean()
    problem = f"{file}: an answer {no_room}" if unusable else ""
    if problems:
        problem = f"{file}{f' line {used[min(problems)] + 1}' if whole else ''}: {problems[min(problems)]}"
    return _File(file, rows, np.maximum(np.rint(usable), 1).astype(np.int64), counted, unusable, dropped.mean(), problem)


def _spread(values, count):
    """`count` of the values, evenly from first to last, each repeated where count is larger."""
    return values[((np.arange(count) + 0.5) * len(values) / count).astype(int)] if len(values) else values


def _packed(lengths, capacity):
    """Rows of `capacity` tokens that best fit decreasing fills. lengths: an array, of no row above the capacity."""
    lengths = np.sort(lengths)[::-1]
    alone = int(np.searchsorted(-lengths, -capacity / 2))  # rows above half the capacity: no two share a packed row
    room = (capacity - lengths[np.searchsorted(-lengths, -capacity, "right") : alone]).tolist()  # of those that are not full, sorted
    packed = alone
    for length in lengths[alone:].tolist():
        place = bisect_left(room, length)
        if place == len(room):
            packed += 1
        left = (room.pop(place) if place < len(room) else capacity) - length
        if left:
            insort(room, left)
    return packed


def _counted(found, how, held_out):
    """The source in words: "90% of all 500 rows …"."""
    counted, rows = sum(f.counted for f in found), sum(f.rows for f in found)
    trained, others = (f"{_percent(1 - held_out)} of ", " (the others are held out)") if held_out else ("", "")
    if counted == rows:
        return f"{trained}all {rows:,} rows{others}{how}"
    about = round(rows, 2 - len(str(round(rows))))  # two digits
    return f"{trained}about {about:,.0f} rows{others}, told from a sample of {counted:,}{how}"


def _shortened(share):
    return f"; {_percent(share)} of the rows are longer than MAX_SEQ_LENGTH and will be shortened" if share else ""


def _too_long(share):
    words = 'are longer than MAX_SEQ_LENGTH and will be left out (LONG_DOCUMENTS = "drop")'
    return f"; {_percent(share)} of the rows {words}" if share else ""


def _unusable(found, bad_rows):
    """What training does with the rows that it cannot use, and the first of them."""
    problem = next((f.problem for f in found if f.problem), "")
    if not problem:
        return ""
    exact = sum(f.counted for f in found) == sum(f.rows for f in found)
    rows = sum(f.unusable * f.rows for f in found)
    share = _percent(rows / sum(f.rows for f in found))
    many = f"{rows:,.0f} of them ({share})" if exact else f"about {share} of them"
    if bad_rows == "stop":
        return f'; {many} cannot be used, and training will stop there: {problem} (BAD_ROWS = "skip" leaves such rows out)'
    return f"; {many} cannot be used and will be left out, the first: {problem}"


def _percent(share):
    return f"{max(100 * share, 0.01):.3g}%"

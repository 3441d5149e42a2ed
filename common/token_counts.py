"""How many tokens a recipe's data have, within a second or two: from the tokenised cache, from every row, or from a sample.

The figures a plan needs before anything is tokenised. No torch, transformers or datasets, and no network.
"""

import json
import re
from bisect import bisect_left, insort
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import batches, chat_rows, chat_text
from common.refusal import Refusal

SMALL = 2 << 20  # bytes: of files that have no more in all every row is counted
BLOCK = 1 << 17  # bytes of a file read at one place
BLOCKS = 512  # places read in all files together: 64 MB, so that the lengths of a long tail are told
LINES = 100_000  # looked at in all files: where lines are short fewer places suffice
COUNTED = 1 << 20  # bytes of the sampled rows that are tokenised
COUNTED_ROWS = 2000  # no more of them than these
PIECE = 1 << 15  # characters of one message of a sample that are tokenised; the rest is taken to be like them
KEPT = 50_000  # lengths kept
CHARACTERS_PER_TOKEN = 4  # English, where no tokenizer is on this machine
PACKED_TOGETHER = 1000  # rows: TRL packs inside of these, as `datasets.map` hands them over


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """What an epoch trains on.

    rows, tokens: of the training side, after weights and without the held-out share. lengths: tokens of its rows, int64, no
    more than `KEPT` of them, in the order of the files; of each file as large a share as it has of the rows. shortened_share:
    of the rows that are longer than the recipe lets them be (in tokens and lengths they are cut). unusable_share: of all
    rows those that cannot be read. source: how it was counted, in words.
    """

    rows: int
    tokens: int
    lengths: np.ndarray
    shortened_share: float
    unusable_share: float
    source: str


def measure(files, max_length, held_out=0.0, tokenizer_directory=None, cached=None, seed=0):
    """`TokenCounts` of `files` ({path: weight}, JSONL) for rows of at most `max_length` tokens.

    held_out: share of the rows that is not trained on, taken off in proportion. tokenizer_directory: with tokenizer.json;
    without one `CHARACTERS_PER_TOKEN` is assumed. cached: what `tokenised.find` returned; it is believed, and nothing else
    is read. The same files and seed give the same answer. Raises `Refusal` for a missing or empty file, for weights that are
    all 0, and where no row that was looked at can be used.
    """
    if cached:
        return _of_cache(cached)
    chat_rows.require(files)
    sizes = {file: Path(file).stat().st_size for file, weight in files.items() if weight}
    count, how = _counter(tokenizer_directory)
    found = [_of_file(file, size, size / sum(sizes.values()), sum(sizes.values()), count, seed) for file, size in sizes.items()]
    if found and not any(len(f.lengths) for f in found):
        raise Refusal(f"none of the {sum(f.counted for f in found):,} rows that were looked at can be used; {found[0].problem}")
    rows = np.array([f.rows * (1 - f.unusable) * files[f.file] * (1 - held_out) for f in found])
    if round(rows.sum()) == 0:
        raise Refusal(f"the weights {files} leave no row to train on; give at least one file a larger weight")
    cut = [np.minimum(f.lengths, max_length) for f in found]
    shares = [(f.lengths > max_length).mean() if len(f.lengths) else 0.0 for f in found]
    kept = rows * min(1, KEPT / rows.sum())
    return TokenCounts(
        rows=round(rows.sum()), tokens=round(sum(r * c.mean() for r, c in zip(rows, cut, strict=True) if len(c))),
        lengths=np.concatenate([_spread(c, max(1, round(k))) for c, k in zip(cut, kept, strict=True)]),
        shortened_share=float(np.average(shares, weights=rows)),
        unusable_share=float(np.average([f.unusable for f in found], weights=[f.rows for f in found])),
        source=_sentence(found, how),
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
    """rows: of the file, all or estimated; lengths: tokens of those that can be used; counted: rows that were tokenised."""

    file: str
    rows: float
    lengths: np.ndarray
    counted: int
    unusable: float
    problem: str


def _of_cache(cached):
    lengths, statistics = cached.lengths().astype(np.int64), cached.statistics
    distinct = sum(f["rows_after_weighting"] / max(f["weight"], 1) for f in statistics["files"].values())  # "shortened" is of these
    shortened = statistics["splits"]["train"]["shortened"] / distinct
    unusable = statistics["bad_row_count"] / statistics["rows_read"]
    kept = lengths
    if len(lengths) > KEPT:  # neighbours stay together, for they are packed together
        starts = np.linspace(0, len(lengths) - PACKED_TOGETHER, KEPT // PACKED_TOGETHER).astype(int)
        kept = lengths[(starts[:, None] + np.arange(PACKED_TOGETHER)).ravel()]
    return TokenCounts(len(lengths), int(lengths.sum()), kept, shortened, unusable, "tokenised cache")


def _of_file(file, size, share, total, count, seed):
    """`_File` of one of the files, which has `share` of their `total` bytes.

    The lengths in bytes of many lines are cheap, their tokens are not. So tokens are counted for rows spread evenly over the
    lines sorted by length, and each line has as many tokens per byte as the counted row that is nearest to it in that order.
    """
    lines, whole = _lines(file, size, max(8, round(BLOCKS * share)) if total > SMALL else None, seed)
    used = [place for place, line in enumerate(lines) if line.strip()]
    if not used:
        raise Refusal(f"{file} has no rows; TRAIN_FILES must name files with one JSON object a line")
    sizes = np.array([len(lines[place]) for place in used])
    rows = len(used) if whole else size * len(used) / (sum(map(len, lines)) + len(lines))
    affordable = share * min(COUNTED_ROWS, COUNTED / np.minimum(sizes, PIECE).mean())
    counted = len(used) if total <= SMALL else min(len(used), max(30, int(affordable)))
    order = np.argsort(sizes, kind="stable")
    nearest = np.arange(len(used)) * counted // len(used)  # the counted row of each line, in the order of their sizes
    chosen = order[np.searchsorted(nearest, np.arange(counted)) + np.bincount(nearest) // 2]
    conversations, problems = [], {}
    for place in chosen:
        line = used[place] + 1 if whole else 0
        try:
            conversations.append(chat_rows.parse(lines[used[place]].removeprefix(b"\xef\xbb\xbf").strip(), file, line)[0].messages)
        except chat_rows.BadRow as reason:
            problems[place] = f"{file}{f' line {line}' if line else ''}: {reason}"
            conversations.append(None)
    tokens = count(conversations, None if total <= SMALL else PIECE)
    lengths = np.empty(len(used))
    lengths[order] = (tokens / sizes[chosen])[nearest] * sizes[order]
    usable = lengths[~np.isnan(lengths)]
    problem = problems[min(problems)] if problems else ""
    return _File(file, rows, np.maximum(np.rint(usable), 1).astype(np.int64), counted, 1 - len(usable) / len(used), problem)


def _lines(file, size, blocks, seed):
    """(lines of the file as bytes, whether these are all). blocks: how many blocks may be read, None for all.

    Blocks are drawn, not lines, and a line belongs to the block in which it begins: so a long line is drawn as often as a
    short one. (Of the lines at random places most would be long.)
    """
    places = -(-size // BLOCK)
    whole = blocks is None or blocks >= places
    with Path(file).open("rb") as content:
        if whole:
            return _split(content.read()), True
        found, looked_at = {}, 0
        for place in np.random.default_rng(seed).choice(places, blocks, replace=False).tolist():
            if looked_at <= LINES * blocks / BLOCKS:
                found[place] = _begun_in(content, place * BLOCK)
                looked_at += len(found[place])
        lines = [line for place in sorted(found) for line in found[place]]
        content.seek(0)
        return lines or _split(content.readline()), False  # so long may lines be that none begins where we looked


def _begun_in(content, start):
    """The lines of the open file that begin in the block at byte `start`, the last one to its end."""
    content.seek(max(0, start - 1))
    if start:
        content.readline(BLOCK + 1)  # the end of a line that began before, or the newline at the block's edge
    text = content.read(max(0, start + BLOCK - content.tell()))
    return _split(text if text.endswith(b"\n") or not text else text + content.readline())


def _split(text):
    return text.removesuffix(b"\n").split(b"\n") if text else []


def _counter(directory):
    """(function of conversations and the characters to look at, to tokens as floats; how it counts, in words).

    A conversation that is None has NaN tokens.
    """
    tokenizer = None
    if directory and (Path(directory) / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()

    def tokens(texts):
        if tokenizer is None:
            return [len(text) / CHARACTERS_PER_TOKEN for text in texts]
        return [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]  # a batch starts threads, and we may fork later

    per_row, per_message, of_system = _template_tokens(directory, tokens) if tokenizer else (0, 5, 0)

    def count(conversations, piece):
        contents = [message["content"].strip() for messages in conversations for message in messages or ()]
        shown = [content[:piece] for content in contents]
        found = iter([n * len(c) / len(s) for n, c, s in zip(tokens(shown), contents, shown, strict=True)])
        return np.array([
            np.nan if messages is None else per_row + of_system * (messages[0]["role"] == "system")
            + sum(next(found) + per_message for _ in messages)
            for messages in conversations
        ])  # fmt: skip

    return count, " counted with the model's tokenizer" if tokenizer else "; no tokenizer on this machine: 4 characters a token assumed"


def _template_tokens(directory, tokens):
    """(tokens of a row, of a message, of a system message) that the chat template adds to the contents.

    Told by rendering conversations of one-token messages. Some templates put a system message where there is none, and Llama
    3.1's writes dates. Without a template that can be rendered: five a message, as Llama 3's and ChatML's own markup takes.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["strftime_now"] = lambda _: chat_text.DATE
    system, *turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user", "assistant")]
    try:
        source, names = _template(directory)
        template = environment.from_string(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source))
        conversations = (turns[:2], turns, [system, *turns[:2]])
        one, two, with_system = tokens([template.render(messages=m, date_string=chat_text.DATE, **names) for m in conversations])
    except (TemplateError, OSError, KeyError, TypeError, ValueError):
        return 0, 5, 0
    per_message = (two - one) / 2 - 1
    return 2 * one - two, per_message, with_system - one - per_message - 1


def _template(directory):
    """(the chat template, {"bos_token": …, "eos_token": …}) of a model directory."""
    settings = json.loads((Path(directory) / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = {name: settings.get(name) or "" for name in ("bos_token", "eos_token")}
    names = {name: token["content"] if isinstance(token, dict) else token for name, token in names.items()}
    file = Path(directory) / "chat_template.jinja"
    return (file.read_text(encoding="utf-8") if file.is_file() else settings["chat_template"]), names


def _spread(values, count):
    """`count` of the values, evenly from first to last, each repeated where count is larger."""
    return values[((np.arange(count) + 0.5) * len(values) / count).astype(int)] if len(values) else values


def _packed(lengths, capacity):
    """Rows of `capacity` tokens that best fit decreasing fills."""
    room, packed = [], 0  # what is left in the packed rows that are not full, sorted
    for length in sorted(lengths.tolist(), reverse=True):
        place = bisect_left(room, length)
        if place == len(room):
            packed += 1
        left = (room.pop(place) if place < len(room) else capacity) - length
        if left:
            insort(room, left)
    return packed


def _sentence(found, how):
    counted, rows = sum(f.counted for f in found), sum(f.rows for f in found)
    about = round(rows, 2 - len(str(round(rows))))  # two digits
    text = f"all {rows:,} rows{how}" if counted == rows else f"a sample of {counted:,} of about {about:,.0f} rows{how}"
    if problem := next((f.problem for f in found if f.problem), ""):
        share = sum(f.unusable * f.rows for f in found) / rows
        left_out = f"{share * rows:,.0f} of them" if counted == rows else f"about {max(share, 1e-4):.2%} of them"
        text += f"; {left_out} cannot be used and are left out, the first: {problem}"
    return text

"""Rows of tokens: each token but a file's first is learned exactly once an epoch, in an order that does not depend on who shares it."""

import os
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import token_files
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader

from common import shards, token_rows
from common.token_rows import TokenRows

END = 999


@dataclass
class Held:
    """A shard in memory."""

    content: np.ndarray
    documents: int | None = None

    tokens = property(lambda self: len(self.content))
    dtype = property(lambda self: self.content.dtype)

    def array(self):
        return self.content


def numbered(*sizes):
    """Shards in which every token is another one, so that each can be found again."""
    starts = np.cumsum([0, *sizes])
    return [Held(np.arange(start, end, dtype=np.uint32)) for start, end in zip(starts, starts[1:], strict=False)]


SIZES = (1, 2, 3, 15, 16, 17, 18, 32, 33, 34, 100, 1000, 1, 49)


def test_a_known_sequence():
    rows = TokenRows([Held(np.array([5, 6, 7, 8, 9, 10, 11], dtype=np.uint16))], 3, END)
    batch = rows.__getitems__([0, 1])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 10]] and batch["labels"].tolist() == [[6, 7, 8], [9, 10, 11]]  # shifted once
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64 and len(rows) == 2
    assert batch["input_ids"].is_contiguous() and batch["labels"].is_contiguous()


def test_the_last_row_of_a_file_ends_with_it_and_learns_what_is_left():
    rows = TokenRows([Held(np.arange(10, dtype=np.uint16))], 4, END)
    batch = rows.__getitems__([0, 1, 2])
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [5, 6, 7, 8]]
    assert batch["labels"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [-100, -100, -100, 9]]


def test_a_file_shorter_than_a_row():
    rows = TokenRows([Held(np.array([4, 5, 6], dtype=np.uint16)), Held(np.array([7], dtype=np.uint16))], 5, END)
    assert len(rows) == 1 and rows.targets == 2 and rows.tokens == 4  # of one token there is nothing to learn
    batch = rows.__getitems__([0])
    assert batch["input_ids"].tolist() == [[4, 5, 6, END, END]] and batch["labels"].tolist() == [[5, 6, -100, -100, -100]]


def test_the_number_after_the_last_is_a_row_in_which_nothing_is_learned():
    rows = TokenRows(numbered(50), 8, END)
    batch = rows.__getitems__([len(rows), 0, len(rows)])
    assert (batch["labels"][[0, 2]] == -100).all() and (batch["input_ids"][[0, 2]] == END).all() and batch["labels"][1, 0] == 1


@pytest.mark.parametrize(("width", "end"), [(np.uint16, 70_000), (np.uint32, 5)])
def test_ids_of_any_width_beside_an_end_of_any_width(width, end):
    large = np.iinfo(width).max - np.arange(10)
    rows = TokenRows([Held(large.astype(width)), Held(np.array([1, 2], dtype=np.uint16))], 4, end)
    batch = rows.__getitems__([0, 3, 4])
    assert batch["input_ids"].tolist() == [large[:4].tolist(), [1, 2, end, end], [end] * 4]
    assert batch["labels"][:2].tolist() == [large[1:5].tolist(), [2, -100, -100, -100]]


def learned(rows, indices):
    """Every (token before, token) that these rows learn."""
    batch = rows.__getitems__(indices)
    chosen = batch["labels"] != -100
    return np.stack([batch["input_ids"][chosen].numpy(), batch["labels"][chosen].numpy()], axis=1)


@pytest.mark.parametrize("context", [1, 2, 7, 16, 64, 2000])
def test_every_token_but_a_file_s_first_is_learned_once_after_the_one_before(context):
    found = numbered(*SIZES)
    rows = TokenRows(found, context, 10**6)
    assert rows.rows.tolist() == [-(-(size - 1) // context) for size in SIZES] and len(rows) == rows.rows.sum()
    pairs = learned(rows, np.arange(len(rows)))
    wanted = np.concatenate([np.stack([shard.content[:-1], shard.content[1:]], axis=1) for shard in found])
    assert np.array_equal(pairs[np.argsort(pairs[:, 1])], wanted) and rows.targets == len(wanted) == sum(SIZES) - len(SIZES)
    assert rows.tokens == sum(SIZES)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_together_learn_every_token_once(ranks, micro_batch):
    found = numbered(*SIZES)
    rows, multiple = TokenRows(found, 16, 10**6), 8
    order = rows.order(seed=3, epoch=1, multiple=multiple)
    dealt = [BatchSamplerShard(BatchSampler(order.tolist(), micro_batch, False), ranks, rank) for rank in range(ranks)]
    seen = [np.concatenate([learned(rows, batch)[:, 1] for batch in sampler]) for sampler in dealt]
    assert len({len(list(sampler)) for sampler in dealt}) == 1  # as many micro-batches for each
    assert sum(map(len, seen)) == rows.targets == len(np.unique(np.concatenate(seen)))
    if ranks == 2:
        assert not np.intersect1d(*seen).size and min(map(len, seen)) > 0.3 * rows.targets


@pytest.mark.parametrize("multiple", [1, 7, 8, 1000])
def test_an_order_is_every_row_once_and_filled_to_whole_steps(multiple):
    rows = TokenRows(numbered(*SIZES), 16, 10**6)
    order = rows.order(seed=1, epoch=0, multiple=multiple)
    assert order.dtype == np.int64 and len(order) % multiple == 0 and len(order) - len(rows) < multiple
    assert sorted(order[: len(rows)]) == list(range(len(rows))) and (order[len(rows) :] == len(rows)).all()


def test_the_order_is_of_the_seed_and_the_epoch_alone():
    def order(seed, epoch, multiple=1):
        return TokenRows(numbered(*SIZES), 16, 10**6).order(seed, epoch, multiple)

    one = order(1, 0)
    assert np.array_equal(one, order(1, 0)) and np.array_equal(one, order(1, 0, 64)[: len(one)])
    for other in (order(2, 0), order(1, 1), order(0, 1)):
        assert np.mean(one == other) < 0.2


def test_files_come_one_after_another_in_a_drawn_order_and_rows_are_shuffled_within():
    rows = TokenRows(numbered(*[1601] * 12), 16, 10**6)
    order, ends = rows.order(seed=5, epoch=2, multiple=7), rows.shard_ends(seed=5, epoch=2)
    assert ends.dtype == np.int64 and ends.tolist() == list(range(100, 1300, 100))
    parts = [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    files = [set((part // 100).tolist()) for part in parts]
    assert all(len(file) == 1 for file in files) and sorted(file.pop() for file in files) == list(range(12))
    assert [part[0] // 100 for part in parts] != list(range(12))
    assert all(np.mean(np.diff(part) == 1) < 0.1 for part in parts)
    assert len({tuple(part % 100) for part in parts}) == 12  # another order in each
    firsts = {tuple(rows.order(5, epoch, 1)[::100] // 100) for epoch in range(10)}
    assert len(firsts) == 10


def test_the_ends_of_files_of_different_sizes():
    rows = TokenRows(numbered(*SIZES), 16, 10**6)
    ends, order = rows.shard_ends(seed=9, epoch=0), rows.order(seed=9, epoch=0, multiple=1)
    assert ends[-1] == len(rows) and len(ends) == len(SIZES)
    shard = np.searchsorted(rows.starts, order, side="right") - 1
    changes = np.flatnonzero(np.diff(shard)) + 1
    assert set(changes) < set(ends.tolist())


def test_a_limit_takes_the_first_tokens_of_each_file_in_equal_parts():
    found = numbered(1000, 1000, 20, 1000)
    rows = TokenRows(found, 16, 10**6, limit_tokens=400)
    assert rows.sizes.tolist() == [100, 100, 20, 100] and rows.tokens == 320
    assert sorted(learned(rows, np.arange(len(rows)))[:, 1]) == [*range(1, 100), *range(1001, 1100), *range(2001, 2020), *range(2021, 2120)]
    assert TokenRows(found, 16, 10**6, limit_tokens=1).sizes.tolist() == [2] * 4  # nothing could be learned of one
    assert TokenRows(found, 16, 10**6, limit_tokens=10**9).tokens == 3020


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_reads_files_as_they_are(tmp_path, workers):
    written = token_files.own_directory(tmp_path, [1000, 77, 512])
    rows = TokenRows(shards.find([tmp_path]), 16, END)
    order = rows.order(seed=1, epoch=0, multiple=4).tolist()
    loader = DataLoader(rows, batch_size=4, sampler=order, collate_fn=token_rows.collate, num_workers=workers)
    batches = list(loader)
    assert len(batches) == len(order) // 4 and all(batch["labels"].shape == (4, 16) for batch in batches)
    got = np.concatenate([batch["labels"].numpy().ravel() for batch in batches])
    wanted = np.concatenate([tokens[1:] for tokens in written.values()])
    assert np.array_equal(np.sort(got[got != -100]), np.sort(wanted))
    direct = rows.__getitems__(order[:4])
    assert all(torch.equal(batches[0][name], direct[name]) for name in direct)


def test_an_index_alone_or_several_give_a_batch():
    rows = TokenRows(numbered(100), 16, END)
    assert rows[3]["input_ids"].shape == (1, 16) and rows[np.array([3, 4])]["input_ids"][1, 0] == 64


def test_few_files_are_open_at_once_and_none_travels_to_another_process(tmp_path):
    token_files.own_directory(tmp_path, [40] * 90)
    rows = TokenRows(shards.find([tmp_path]), 16, END)
    before = len(os.listdir("/proc/self/fd"))
    whole = rows.__getitems__(np.arange(len(rows)))
    assert len(os.listdir("/proc/self/fd")) - before <= token_rows.OPEN < 90
    again = pickle.loads(pickle.dumps(rows))
    assert not again._arrays and len(pickle.dumps(rows)) < 90 * 1000
    assert torch.equal(again.__getitems__(np.arange(len(rows)))["labels"], whole["labels"])


def test_memory_does_not_grow_with_what_is_read(tmp_path):
    def own_kilobytes():
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    token_files.own_directory(tmp_path, [5_000_000] * 4)
    rows = TokenRows(shards.find([tmp_path]), 256, END)
    order = rows.order(seed=0, epoch=0, multiple=8).reshape(-1, 8)
    for batch in order[:100]:
        rows.__getitems__(batch)
    start = own_kilobytes()
    for batch in order[100:]:
        rows.__getitems__(batch)
    assert own_kilobytes() - start < 4000  # of 40 MB of tokens

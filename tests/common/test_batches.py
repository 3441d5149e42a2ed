"""Batches of like length: a permutation, decided by seed and epoch alone, with less padding than chance gives."""

from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from common import batches
from common.refusal import Refusal


def lognormal(count, seed=0):
    """Lengths as chat data has them: many short rows, few long ones."""
    return np.clip(np.random.default_rng(seed).lognormal(5.0, 1.0, count), 8, 2048).astype(int)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 400, 401, 1003])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_every_row_is_drawn_once(count, size):
    order = batches.grouped_order(lognormal(count), size, seed=1, epoch=0)
    assert sorted(order.tolist()) == list(range(count))


def test_the_order_depends_on_seed_and_epoch_and_not_on_random_state():
    lengths = lognormal(500)
    first = batches.grouped_order(lengths, 8, 1, 0).tolist()
    np.random.seed(5)
    assert batches.grouped_order(list(lengths), 8, 1, 0).tolist() == first
    for seed, epoch in ((1, 1), (2, 0), (0, 1)):
        assert batches.grouped_order(lengths, 8, seed, epoch).tolist() != first


def test_padding_is_far_below_that_of_random_batches():
    for seed in range(5):
        lengths = lognormal(2000, seed)
        random = batches.padding_share(lengths, np.random.default_rng(seed).permutation(2000), 8)
        grouped = batches.padding_share(lengths, batches.grouped_order(lengths, 8, seed, 0), 8)
        assert random > 0.4
        assert grouped < random / 4


def test_batches_do_not_come_sorted_by_length():
    """Neither over the epoch nor inside a pool: a run of ever longer batches would be a curriculum that nobody asked for."""
    lengths = lognormal(4000)
    means = lengths[batches.grouped_order(lengths, 8, 1, 0)].reshape(-1, 8).mean(axis=1)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.15
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.15


@pytest.mark.parametrize(("count", "size"), [(1, 8), (10, 4), (64, 8), (101, 3)])
def test_padding_share_against_counting(count, size):
    lengths, order = lognormal(count), np.random.default_rng(1).permutation(count)
    computed = real = 0
    for start in range(0, count, size):
        rows = [lengths[i] for i in order[start : start + size]]
        computed += max(rows) * len(rows)
        real += sum(rows)
    assert batches.padding_share(lengths, order, size) == pytest.approx(1 - real / computed)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("grouped", [True, False])
def test_a_resume_in_a_later_epoch_draws_the_rest_of_that_epoch(ranks, grouped):
    """Through the loaders that the Trainer puts around the sampler: for several ranks these never tell it which epoch it is."""
    trainer, lengths = SimpleNamespace(state=SimpleNamespace(epoch=2 + 3 / 12)), lognormal(96).tolist()
    if grouped:
        batches.group_by_length(trainer, lengths, 4, seed=3)
        order = batches.grouped_order(lengths, 4, 3, 2)
    else:
        batches.shuffle(trainer, 96, seed=3)
        order = np.random.default_rng([3, 2]).permutation(96)
    drawn = []
    for rank in range(ranks):
        loader = DataLoader(range(96), batch_size=4 // ranks, sampler=trainer._get_train_sampler())
        loader = prepare_data_loader(loader, num_processes=ranks, process_index=rank, put_on_device=False)
        loader = skip_first_batches(loader, 3)
        loader.set_epoch(2)
        drawn.append([batch.tolist() for batch in loader])
    together = [row for micro_batch in zip(*drawn, strict=True) for part in micro_batch for row in part]
    assert together == order[3 * 4 :].tolist()


def test_no_two_epochs_have_one_order():
    trainer = SimpleNamespace(state=SimpleNamespace(epoch=None))
    batches.shuffle(trainer, 96, seed=3)
    sampler, orders = trainer._get_train_sampler(), []
    for epoch in (None, 1.0, 2.0):
        trainer.state.epoch = epoch
        orders.append(list(sampler))
    assert len(sampler) == 96 and all(sorted(order) == list(range(96)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize(("workers", "ranks", "refused"), [(4, 4, True), (4, 1, False), (0, 8, False)])
def test_loader_workers_need_shared_memory(workers, ranks, refused):
    """64 MB is what a container has of it: 4 workers of one rank take 50 at 262,144 tokens, of four ranks 201."""
    said = ""
    try:
        batches.require_shared_memory([1000, 262_144], workers, ranks, free=64e6)
    except Refusal as refusal:
        said = str(refusal)
    assert bool(said) == refused
    if refused:
        assert "DATALOADER_NUM_WORKERS = 4 on 4 rank(s) hand over up to 201 MB through /dev/shm, of which 64 are free" in said

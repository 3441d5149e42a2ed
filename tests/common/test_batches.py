"""Batches of like length: a permutation, decided by seed and epoch alone, with less padding than chance gives."""

import numpy as np
import pytest

from common import batches


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


def test_the_trainer_s_sampler_follows_the_epoch():
    class Trainer:
        pass

    trainer, lengths = Trainer(), lognormal(100).tolist()
    batches.group_by_length(trainer, lengths, 4, seed=3)
    sampler = trainer._get_train_sampler()
    assert len(sampler) == 100
    assert list(sampler) == batches.grouped_order(lengths, 4, 3, 0).tolist()
    sampler.set_epoch(2)
    assert list(sampler) == batches.grouped_order(lengths, 4, 3, 2).tolist()

"""Batches of rows of like length, in an order that only the seed and the epoch decide. No torch until a sampler is made."""

import os
import shutil

import numpy as np

from common.refusal import Refusal


def grouped_order(lengths, batch_size, seed, epoch, pool=50):
    """A permutation of the rows in which every `batch_size` neighbours have like lengths.

    Rows are shuffled, cut into pools of `pool` batches, sorted by length inside each pool, and the batches shuffled:
    random enough to train on, and only the batch at a pool's border mixes lengths. The incomplete batch comes last.
    lengths: int [rows]. Returns int64 [rows].
    """
    generator = np.random.default_rng([seed, epoch])
    lengths = np.asarray(lengths)
    order = generator.permutation(len(lengths))
    size = batch_size * pool
    order = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in np.split(order, range(size, len(order), size))])
    whole = len(order) // batch_size
    batches = order[: whole * batch_size].reshape(whole, batch_size)
    return np.concatenate([batches[generator.permutation(whole)].ravel(), order[whole * batch_size :]])


def require_shared_memory(lengths, workers, ranks, free=None):
    """Refuse loader workers whose batches do not fit /dev/shm, through which they hand them over: a run would end with a bus error.

    Each holds two batches ready, of three int64 tensors. lengths: int [rows], tokens of a batch of one row; free: bytes, for tests.
    """
    needed = ranks * workers * 2 * 3 * 8 * int(max(lengths))
    if free is None:
        free = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else needed
    if needed > free:
        raise Refusal(
            f"DATALOADER_NUM_WORKERS = {workers} on {ranks} rank(s) hand over up to {needed / 1e6:,.0f} MB through /dev/shm, of which "
            f"{free / 1e6:,.0f} are free; take fewer (0 needs none), or start the container with more, such as --shm-size=1g"
        )


def padding_share(lengths, order, batch_size):
    """The share of padding among all tokens of the batches that `order` makes: 0.1 means a tenth is padding."""
    lengths = np.asarray(lengths)[order]
    starts = np.arange(0, len(lengths), batch_size)
    longest = np.maximum.reduceat(lengths, starts)
    sizes = np.diff(np.append(starts, len(lengths)))
    return 1 - lengths.sum() / (longest * sizes).sum()


def group_by_length(trainer, lengths, batch_size, seed):
    """Make `trainer` draw its training rows in `grouped_order`.

    batch_size: rows of one micro-batch over all ranks, so that ranks have like lengths. The Trainer's own grouping
    takes its order from the global random state and its batches from long to short; this one can be resumed exactly.
    """
    draw(trainer, len(lengths), lambda epoch: grouped_order(lengths, batch_size, seed, epoch))


def shuffle(trainer, rows, seed):
    """Make `trainer` draw its `rows` training rows in a random order that only the seed and the epoch decide."""
    draw(trainer, rows, lambda epoch: np.random.default_rng([seed, epoch]).permutation(rows))


def require_product(rows_per_step, micro_batch, ranks, accumulation):
    """Refuse where the last three do not multiply to the rows of a step."""
    rows = accumulation * micro_batch * ranks
    if rows == rows_per_step:
        return
    fits = [n for n in range(1, rows_per_step + 1) if rows_per_step % (n * ranks) == 0]
    nearest = min(fits, key=lambda n: abs(n - micro_batch), default=micro_batch)
    fix = f"take TRAIN_BATCH_SIZE = {rows}" if nearest == micro_batch else f"take PER_DEVICE_TRAIN_BATCH_SIZE = {nearest}"
    raise Refusal(
        f"TRAIN_BATCH_SIZE is {rows_per_step}, but PER_DEVICE_TRAIN_BATCH_SIZE = {micro_batch} x GRADIENT_ACCUMULATION_STEPS = "
        f"{accumulation} x {ranks} rank(s) = {rows} rows; {fix}, or leave GRADIENT_ACCUMULATION_STEPS out where it is given"
    )


def draw(trainer, rows, order):
    """Make `trainer` draw `rows` rows an epoch in the order (int [rows]) that `order(epoch)` gives."""
    from torch.utils.data import Sampler

    class Ordered(Sampler):
        """Asks the trainer which epoch it is: what accelerate puts around a resumed sampler of several ranks does not tell it."""

        def __len__(self):
            return rows

        def __iter__(self):
            return iter(order(int(trainer.state.epoch or 0)).tolist())

    trainer._get_train_sampler = lambda dataset=None: Ordered()

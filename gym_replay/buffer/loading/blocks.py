"""Shuffling by blocks: an order for data larger than memory, as index arithmetic. Sees sizes, never a buffer."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gym_replay.buffer.loading.order import Order, permute, uniforms

BLOCK_BYTES = 8 << 20
POOL_BYTES = 256 << 20
_MOST_BLOCK_SAMPLES = 1 << 17
_FEWEST_BLOCKS = 16
_BLOCKS_IN_POOL = POOL_BYTES // BLOCK_BYTES
# Which of the sequences of a seed and epoch is for what.
_PHASE, _SHORT, _BLOCKS, _POOLS = range(1, 5)


class Read(NamedTuple):
    """Samples ``first`` to ``last - 1``, of a block that is in this pool of the epoch."""

    first: int
    last: int
    pool: int


@dataclass(frozen=True)
class BlockOrder(Order):
    """The batches of one rank, where consecutive blocks of samples in random order go through a shuffle pool.

    An epoch is laid out in three steps. The samples, as a circle, are cut into blocks of ``block_size`` consecutive
    ones, beginning anywhere, so that neighbours are parted at other places in every epoch; one block may be short. The
    blocks are put in random order. What comes out is cut into pools of about ``pool_size`` samples, all pools of an
    epoch of the same size up to one, and the samples of each pool are put in random order.

    While a pool is visited, only its ``pool_size / block_size`` blocks are read: a disk sees reads of whole blocks, and
    memory holds a pool (two, where the next one is read ahead). All of it is computed from positions, so nothing is
    held here, and an epoch resumes anywhere.

    How well it mixes: the blocks of a pool are a uniform random choice of all blocks, and within its pool a sample is
    as likely in one batch as in another. Over the seeds, a sample is as likely at one position as at another. What is
    left of the order on disk is that samples of one block stay together: two samples of a batch are of the same block
    with probability about ``(block_size - 1) / (pool_size - 1)``, in place of ``(block_size - 1) / (num_samples - 1)``
    with ``shuffle=True``. So the mean over a batch of ``b`` samples has up to ``1 + (b - 1) * block_size / pool_size``
    times the variance of independent samples; the factor is reached where all samples of a block are alike. With the
    default of 32 blocks in a pool and b = 256 it is at most 9 (and about 1 where a block has many short episodes);
    a ``block_size`` of a quarter makes it 3, and reading slower.

    Args:
        block_size: consecutive samples that are read together.
        pool_size: samples that are mixed with one another, at least ``block_size``.

    Raises:
        ValueError: the pool is smaller than a block.

    Example:
        >>> order = BlockOrder(num_samples=100, batch_size=10, shuffle=True, seed=1, block_size=5, pool_size=20)
        >>> sorted(sample for batch in order.batches(epoch=0) for sample in batch.tolist()) == list(range(100))
        True
    """

    block_size: int = 4096
    pool_size: int = 32 * 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("block_size", "pool_size"):
            object.__setattr__(self, name, operator.index(getattr(self, name)))  # NumPy's integers overflow
        if not 1 <= self.block_size <= self.pool_size:
            raise ValueError(
                f"expected 1 <= block_size <= pool_size, got block_size={self.block_size} and "
                f"pool_size={self.pool_size}; a pool holds several blocks"
            )

    @property
    def num_pools(self) -> int:
        """Pools in an epoch."""
        return -(-self.num_samples // self.pool_size)

    def pool_of(self, position: int) -> int:
        """Return which pool a position is in."""
        return ((position + 1) * self.num_pools - 1) // self.num_samples

    def _computed(self, epoch: int, start: int, count: int) -> Iterator[NDArray[np.int64]]:
        # Of small samples, the order takes half as long as the gathering, so it is computed beside it.
        def samples(first: int) -> NDArray[np.int64]:
            return self._samples(epoch, first, min(count, len(self) - first))

        coming: tuple[int, Future[NDArray[np.int64]]] | None = None
        for first in range(start, len(self), count):
            # Where the iterator goes on in a forked process, there is no thread that computes what is to come.
            block = samples(first) if coming is None or coming[0] != os.getpid() else coming[1].result()
            if (following := first + count) < len(self):
                process = os.getpid()
                coming = process, _helper(process).submit(samples, following)
            yield block

    def visit(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        if positions.size == 0:
            return np.empty(positions.shape, np.int64)
        flat = positions.ravel()
        samples = np.empty(flat.shape, np.int64)
        # Positions of a batch ascend, so each pool's are a stretch.
        begin = 0
        pool = self.pool_of(int(flat[0]))
        while begin < len(flat):
            first, last = self.bounds(pool)
            end = int(np.searchsorted(flat, last))
            if end > begin:
                inside = permute(flat[begin:end] - first, last - first, self.seed, epoch, (_POOLS, pool))
                samples[begin:end] = self._unpool(inside + first, epoch)
            begin, pool = end, pool + 1
        return samples.reshape(positions.shape)

    def spans(self, epoch: int, pool: int) -> list[tuple[int, int]]:
        """Return the samples of a pool as ranges of consecutive ones, in the order in which the blocks come."""
        first, last = self.bounds(pool)
        _, short, rest = self._layout(epoch)
        size = self.block_size
        full = self.num_samples // size
        starts = [first]
        # Where the next block begins: all are full, but for the short one.
        while (at := starts[-1]) < last:
            gap = short * size
            if rest and at >= gap + rest:
                following = at - (at - rest) % size + size
            elif rest and gap <= at:
                following = gap + rest
            else:
                following = min(at - at % size + size, full * size + rest)
            starts.append(min(following, last))
        ranges: list[tuple[int, int]] = []
        for begin, end in pairwise(starts):
            sample = int(self._unpool(np.array([begin]), epoch)[0])
            until = sample + end - begin
            ranges.append((sample, min(until, self.num_samples)))
            if until > self.num_samples:  # a block that begins at the end of the data and goes on at its start
                ranges.append((0, until - self.num_samples))
        return ranges

    def reads(self, epoch: int, start: int = 0) -> Iterator[list[Read]]:
        """Iterate over what to ask for with each batch from ``start`` on: ranges of samples, and for which pool.

        Where a batch enters a pool, they are those of the next pool that this rank needs. With the first batch they are
        those of its own pools too, which come too late to be ahead of it.
        """
        known, until = -1, start
        for index in range(start, len(self)):
            if index < until:  # most batches of a pool
                yield []
                continue
            low, high, last = self._pools_of(index)
            until = index + (self.bounds(high)[1] - 1 - last) // (self.world_size * self._width) + 1
            pools = {*range(low, high + 1)}
            if until < len(self):
                following = self._pools_of(until)
                pools |= {*range(following[0], following[1] + 1)}
            wanted = sorted(pool for pool in pools if pool > known)
            known = max(known, *pools)
            yield [Read(first, end, pool) for pool in wanted for first, end in self.spans(epoch, pool)]

    def _pools_of(self, index: int) -> tuple[int, int, int]:
        """The pools of a batch's first and last position, and that position."""
        first = self.first_position(index)
        last = min(first + self._width, self.num_samples) - 1
        return self.pool_of(first), self.pool_of(last), last

    def bounds(self, pool: int) -> tuple[int, int]:
        """Return the first position of a pool, and that of the next."""
        return pool * self.num_samples // self.num_pools, (pool + 1) * self.num_samples // self.num_pools

    def _layout(self, epoch: int) -> tuple[int, int, int]:
        return _layout_of(self.num_samples, self.block_size, self.seed, epoch)

    def _unpool(self, places: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Return the sample at each place of the blocks laid end to end in their random order."""
        phase, short, rest = self._layout(epoch)
        size = self.block_size
        full = self.num_samples // size
        gap = short * size
        lowest, highest = int(places.min()), int(places.max())
        if highest < gap or lowest >= gap + rest:
            return self._unpool_full(places, lowest, highest, rest if lowest >= gap else 0, epoch)
        behind = places >= gap + rest
        moved = np.where(behind, places - rest, places)
        block, offset = np.divmod(moved, size)
        inside = (places >= gap) & ~behind  # of the short block, which is the last one on the circle
        starts = np.full(places.shape, full * size, np.int64)
        if full:
            starts[~inside] = permute(block[~inside], full, self.seed, epoch, (_BLOCKS,)) * size
        offset[inside] = places[inside] - gap
        return (starts + offset + phase) % self.num_samples

    def _unpool_full(
        self, places: NDArray[np.int64], lowest: int, highest: int, before: int, epoch: int
    ) -> NDArray[np.int64]:
        """The same of places from ``lowest`` to ``highest``, all on the same side of the short block.

        Of the blocks that they are in, which are few, each is looked up once. That is a third of the time.

        Args:
            before: how many places the short block has before them.
        """
        size = self.block_size
        first = (lowest - before) // size
        blocks = np.arange(first, (highest - before) // size + 1, dtype=np.int64)
        starts = permute(blocks, self.num_samples // size, self.seed, epoch, (_BLOCKS,)) * size
        moved = starts + (self._layout(epoch)[0] - blocks * size - before)
        samples: NDArray[np.int64] = places + moved.take((places - (before + first * size)) // size)
        if samples.max() >= self.num_samples:  # on the circle
            samples[samples >= self.num_samples] -= self.num_samples
        return samples


def default_sizes(sample_bytes: float, num_samples: int) -> tuple[int, int]:
    """Return how many samples a block and a pool should have: 8 MiB and 256 MiB of rows.

    A block is never more than 131072 samples, nor so large that fewer than 16 of them make a pool.

    Args:
        sample_bytes: how many bytes are read from the disk for one more sample of a block.
        num_samples: how many samples there are.
    """
    pool = max(1, min(int(POOL_BYTES / max(sample_bytes, 1.0)), _BLOCKS_IN_POOL * _MOST_BLOCK_SAMPLES))
    most = max(1, min(pool, num_samples) // _FEWEST_BLOCKS)
    block = max(1, min(int(BLOCK_BYTES / max(sample_bytes, 1.0)), _MOST_BLOCK_SAMPLES, most))
    return block, max(pool, block)


@lru_cache(maxsize=1)
def _helper(process: int) -> ThreadPoolExecutor:
    """A thread of this process; a forked one has none and starts its own."""
    return ThreadPoolExecutor(1, thread_name_prefix="gym_replay-order")


@lru_cache(maxsize=64)
def _layout_of(num_samples: int, block_size: int, seed: int, epoch: int) -> tuple[int, int, int]:
    """Return where on the circle the first block begins, which place the short block has, and its size."""
    full, rest = divmod(num_samples, block_size)
    zero = np.zeros(1, np.int64)
    phase = int(uniforms(zero, seed, epoch, (_PHASE,))[0] * num_samples)
    short = int(uniforms(zero, seed, epoch, (_SHORT,))[0] * (full + 1)) if rest else full
    return phase, short, rest

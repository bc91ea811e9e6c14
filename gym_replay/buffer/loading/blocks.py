"""Shuffling by blocks: an order for data larger than memory, as index arithmetic. Sees sizes, never a buffer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from gym_replay.buffer.loading.order import BlockDraw, Order, permute, uniforms
from gym_replay.errors import FieldError
from gym_replay.schema.arguments import checked_integer
from gym_replay.schema.arrays import Ints

BLOCK_BYTES = 8 << 20
POOL_BYTES = 256 << 20
_MOST_BLOCK_SAMPLES = 1 << 17
_FEWEST_BLOCKS = 16
_BLOCKS_IN_POOL = POOL_BYTES // BLOCK_BYTES
# Which of the sequences of a seed and epoch is for what.
_PHASE, _BLOCKS, _POOLS = range(1, 4)


@dataclass(frozen=True)
class BlockOrder(Order):
    """The batches of one rank, where consecutive blocks of samples in random order go through a shuffle pool.

    An epoch is laid out in three steps. The samples are cut into blocks of ``block_size`` consecutive ones, where the
    first cut is anywhere in the first block, so that neighbours are parted at other places in every epoch; the first
    and the last block may be short. The blocks are put in random order. What comes out is cut into pools of about
    ``pool_size`` samples, all pools of an epoch of the same size up to one, and the samples of each pool are put in
    random order.

    While a pool is visited, only its ``pool_size / block_size`` blocks are read: a disk sees reads of whole blocks, and
    memory holds a pool (two, where the next one is read ahead). Only the blocks of an epoch are tabulated, 16 bytes
    each, and an epoch resumes anywhere.

    How well it mixes: the blocks of a pool are a uniform random choice of all blocks, and within its pool a sample is
    as likely in one batch as in another. Over the seeds, a sample is as likely at one position as at another. What is
    left of the order on disk is that samples of one block stay together: two samples of a batch are of the same block
    with probability about ``(block_size - 1) / (pool_size - 1)`` instead of ``(block_size - 1) / (num_samples - 1)``
    with ``shuffle=True``. So the mean over a batch of ``b`` samples has up to ``1 + (b - 1) * block_size / pool_size``
    times the variance of independent samples; the factor is reached where all samples of a block are alike. With the
    default of 32 blocks in a pool and b = 256 it is at most 9 (and about 1 where a block has many short episodes);
    a ``block_size`` of a quarter makes it 3, and reading slower.

    Args:
        block_size: consecutive samples that are read together.
        pool_size: samples that are mixed with one another, at least ``block_size``.

    Raises:
        FieldError: the pool is smaller than a block.

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
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), 1))
        if self.block_size > self.pool_size:
            raise FieldError(
                f"expected 1 <= block_size <= pool_size, got block_size={self.block_size} and "
                f"pool_size={self.pool_size}; a pool holds several blocks"
            )

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"shuffle": "block", "block_size": self.block_size, "pool_size": self.pool_size}

    @property
    def num_pools(self) -> int:
        """Pools in an epoch."""
        return -(-self.num_samples // self.pool_size)

    def pool_of(self, position: int) -> int:
        """Return which pool a position is in."""
        return ((position + 1) * self.num_pools - 1) // self.num_samples

    def bounds(self, pool: int) -> tuple[int, int]:
        """Return the first position of a pool, and that of the next."""
        return pool * self.num_samples // self.num_pools, (pool + 1) * self.num_samples // self.num_pools

    def visit(self, positions: Ints, epoch: int) -> Ints:
        samples = np.empty(positions.size, np.int64)
        flat = positions.ravel()  # of a batch they ascend, so each pool's are a stretch
        begin = 0
        while begin < len(flat):
            pool = self.pool_of(int(flat[begin]))
            first, last = self.bounds(pool)
            end = int(np.searchsorted(flat, last))
            mixed = permute(flat[begin:end] - first, last - first, self.seed, epoch, (_POOLS, pool)) + first
            blocks = self._blocks(epoch, pool)
            samples[begin:end] = mixed + blocks.shifts.take(np.searchsorted(blocks.ends, mixed, side="right"))
            begin = end
        return samples.reshape(positions.shape)

    def spans(self, epoch: int, pool: int) -> list[tuple[int, int]]:
        """Return the samples of a pool as ranges of consecutive ones, in the order in which the blocks come."""
        first, last = self.bounds(pool)
        blocks = self._blocks(epoch, pool)
        begins = np.append(first, blocks.ends[:-1])
        ends = np.minimum(blocks.ends, last)
        return list(zip((begins + blocks.shifts).tolist(), (ends + blocks.shifts).tolist(), strict=True))

    def draws(self, epoch: int, start: int = 0) -> Iterator[BlockDraw]:
        asked = -1
        for index, samples in enumerate(self.batches(epoch, start), start):
            first = self.first_position(index)
            pool = self.pool_of(first + len(samples) - 1)
            reads: list[tuple[int, int]] = []
            if asked <= pool:
                # With the first batch its own pools, which come too late to be ahead of it. What comes after them is
                # asked for with the second batch: where it came along with them, the first one would wait for both.
                asked = max(asked, self.pool_of(first) - 1)
                following = min(max(pool, asked + 1), self.num_pools - 1)
                reads = [span for later in range(asked + 1, following + 1) for span in self.spans(epoch, later)]
                asked = following
            yield BlockDraw(samples, self.seed, epoch, first, reads=reads)

    def _blocks(self, epoch: int, pool: int) -> _Blocks:
        """The blocks of one pool."""
        blocks = _blocks_of(self.num_samples, self.block_size, self.seed, epoch)
        first, last = self.bounds(pool)
        low, high = np.searchsorted(blocks.ends, (first + 1, last))
        return _Blocks(blocks.ends[low : high + 1], blocks.shifts[low : high + 1])


class _Blocks(NamedTuple):
    """Blocks in random order, end to end.

    Attributes:
        ends: int64 ``(blocks,)``: the position after the last of each.
        shifts: int64 ``(blocks,)``: what is added to a position of each to get the sample there.
    """

    ends: Ints
    shifts: Ints


@lru_cache(maxsize=4)
def _blocks_of(num_samples: int, block_size: int, seed: int, epoch: int) -> _Blocks:
    """The blocks of an epoch."""
    phase = int(uniforms(np.zeros(1, np.int64), seed, epoch, (_PHASE,))[0] * block_size)
    cuts = np.unique(np.concatenate(([0], np.arange(phase, num_samples, block_size), [num_samples])))
    order = permute(np.arange(len(cuts) - 1), len(cuts) - 1, seed, epoch, (_BLOCKS,))
    sizes = np.diff(cuts)[order]
    ends = np.cumsum(sizes)
    return _Blocks(ends, cuts[order] - (ends - sizes))


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

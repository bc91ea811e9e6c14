"""What a sampler asks of a dataset: the samples of one batch, and what goes with them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gym_replay.buffer.loading.order import Ints
from gym_replay.buffer.loading.weights import Floats


class Draw(NamedTuple):
    """One batch to make. Small, so that it can be sent to a worker.

    Whatever a dataset draws at random for a batch (goals, crops) is a function of seed, epoch and sample, and where the
    same sample may come again in an epoch, of its position too. Then a batch does not depend on the worker that makes
    it, nor on which batches were made before, and another epoch brings other values, with persistent workers too.

    Attributes:
        samples: sample numbers, int64 ``(batch,)``; in a live draw, which sample of its episode each is.
        seed, epoch: of the loader.
        first: the position in the epoch, over all ranks, of the first sample.
        weights: importance weights, float64 ``(batch,)``, of a prioritised draw.
        names: numbers for ``_samples`` where they are not ``samples``, int64 ``(batch,)``.
        parts, ids: of a live draw: the buffer and the episode id of each sample, int64 ``(batch,)``.
        version, bounds: of a live draw: a number that changes with the snapshot, and of each buffer the first id in it
            and the one past the last.
        repeats: whether a sample may come more than once in an epoch, as in draws with replacement.
        pool: of an order by blocks: the pool of the first sample; of those before, none is to come.
        reads: of an order by blocks: samples that will be needed, as first, one past the last, and pool.
    """

    samples: Ints
    seed: int = 0
    epoch: int = 0
    first: int = 0
    weights: Floats | None = None
    names: Ints | None = None
    parts: Ints | None = None
    ids: Ints | None = None
    version: int = 0
    bounds: tuple[tuple[int, int], ...] = ()
    repeats: bool = False
    pool: int | None = None
    reads: tuple[tuple[int, int, int], ...] = ()

    @property
    def positions(self) -> Ints:
        """The position of each sample in the epoch, over all ranks, int64 ``(batch,)``."""
        return np.arange(self.first, self.first + len(self.samples), dtype=np.int64)

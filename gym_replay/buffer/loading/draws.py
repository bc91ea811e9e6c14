"""What a sampler asks of a dataset: the samples of one batch, and the epoch that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawArray
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


class LiveEpisodes(NamedTuple):
    """By what other processes know the samples of a live buffer, of which theirs may be another snapshot.

    Attributes:
        parts, ids: the buffer and the episode id of each sample, int64 ``(batch,)``; the draw's ``samples`` then say
            which sample of its episode each is.
        version: a number that changes with the snapshot.
        bounds: of each buffer the first episode id in the snapshot, and the one past the last.
    """

    parts: Ints
    ids: Ints
    version: int
    bounds: tuple[tuple[int, int], ...]


@dataclass(eq=False)
class Draw(Sequence[int]):
    """One batch to make. Small, so that it can be sent to a worker.

    Other libraries take it for the list of indices that a batch sampler yields: it has a length, is iterated, cut and
    lengthened. These indices are positions in the epoch, as :class:`~gym_replay.buffer.loading.epochs.EpochDataset`
    takes them.

    Whatever a dataset draws at random for a batch (goals, crops) is a function of seed, epoch and sample, and where the
    same sample may come again in an epoch, of its position too. Then a batch does not depend on the worker that makes
    it, nor on which batches were made before, and another epoch brings other values, with persistent workers too.

    Attributes:
        samples: sample numbers, int64 ``(batch,)``.
        seed, epoch: of the order.
        first: the position in the epoch, over all ranks, of the first sample.
        repeats: whether a sample may come more than once in an epoch, as in draws with replacement.
        live: of a buffer that is still written to: the episodes of the samples.
    """

    samples: Ints
    seed: int = 0
    epoch: int = 0
    first: int = 0
    repeats: bool = False
    live: LiveEpisodes | None = None

    @property
    def positions(self) -> Ints:
        """The position of each sample in the epoch, over all ranks, int64 ``(batch,)``."""
        return np.arange(self.first, self.first + len(self.samples), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        found = range(self.first, self.first + len(self))[index]
        return list(found) if isinstance(index, slice) else found

    def __add__(self, more: Sequence[int]) -> list[int]:
        return [*self, *more]


@dataclass(eq=False)
class BlockDraw(Draw):
    """A batch of an order by blocks.

    Attributes:
        pool: the pool of its last sample; the pools before it will not be read again.
        reads: where the batch enters a pool: the samples of the next one, as ranges from the first to before the last.
    """

    pool: int = 0
    reads: Sequence[tuple[int, int]] = ()


@dataclass(eq=False)
class PriorityDraw(Draw):
    """A batch that was drawn by priority.

    Attributes:
        weights: importance weights, float64 ``(batch,)``.
        names: what the sampler knows the samples by, int64 ``(batch,)``; -1 for one that was replaced.
    """

    weights: Floats = None  # type: ignore[assignment]  # always given
    names: Ints = None  # type: ignore[assignment]


class Moment:
    """A seed and an epoch that running workers see change: they lie in memory that is shared with them.

    Forked workers have this memory from the start; those that are spawned are given it, and torch's default dtype, by
    the pickle that starts them. A copy, or any other pickle, holds the two numbers in memory of its own.
    """

    def __init__(self, seed: int = 0, epoch: int = 0) -> None:
        self._shared: Any = RawArray("Q", 2)
        self.set(seed, epoch)

    @property
    def seed(self) -> int:
        """The seed, modulo 2**64."""
        return int(self._shared[0])

    @property
    def epoch(self) -> int:
        """The epoch, from 0 on."""
        return int(self._shared[1])

    def set(self, seed: int, epoch: int) -> None:
        """Let these be the seed and the epoch, in every process that shares this."""
        self._shared[:] = int(seed) % 2**64, epoch  # NumPy's own numbers cannot be divided so

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None:
            return Moment, (self.seed, self.epoch)
        import torch  # here, because orders are arithmetic, and splits of buffers too, which need no torch

        return _shared_moment, (self._shared, torch.get_default_dtype())


def _shared_moment(shared: Any, dtype: Any) -> Moment:
    """The moment of the process that starts this worker."""
    import torch

    torch.set_default_dtype(dtype)  # a forked worker has it, a spawned one would deliver float32
    moment = Moment.__new__(Moment)
    moment._shared = shared
    return moment


def checked_epoch(epoch: Any) -> int:
    """The number of an epoch.

    Raises:
        FieldError: it is no integer from 0 on.
    """
    if isinstance(epoch, bool) or not isinstance(epoch, (int, np.integer)) or not 0 <= epoch < 2**64:
        raise FieldError(f"epoch: expected an integer from 0 on, got {epoch!r}")
    return int(epoch)

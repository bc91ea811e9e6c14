"""From a loader's options to an order over a dataset: what each means, which go together, and what ranks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from gym_replay.buffer.loading.blocks import BlockOrder, default_sizes
from gym_replay.buffer.loading.datasets import ReplayDataset
from gym_replay.buffer.loading.order import Order, ReplacementOrder, check_weights, cumulative_weights
from gym_replay.buffer.loading.prioritized import PrioritizedSampler, PriorityOrder
from gym_replay.errors import FieldError
from gym_replay.schema.arrays import Floats, Ints

_LOOKED_AT = 64
"""Encoded rows by whose mean size blocks are made, at most."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the samples.

    Attributes:
        rank, world_size: from 0 to ``world_size - 1``, and how many there are.
        connected: whether these are the ranks of torch's default process group, through which they can agree.
    """

    rank: int = 0
    world_size: int = 1
    connected: bool = False

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order; every rank must call it. Unconnected ones see their own."""
        if not self.connected or self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def group_ranks() -> Ranks:
    """The ranks of the initialised process group, or of a process alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size(), True)


@dataclass
class OrderOptions:
    """The options of a loader that say in which order it loads; :class:`LoaderOptions` says what they mean."""

    batch_size: int
    shuffle: bool | str = False
    drop_last: bool = False
    seed: int | None = None
    rank: int | None = None
    world_size: int | None = None
    block_size: int | None = None
    pool_size: int | None = None
    replacement: bool = False
    weights: str | npt.ArrayLike | None = None
    buffer_weights: npt.ArrayLike | None = None
    samples_per_epoch: int | None = None
    sampler: PrioritizedSampler | None = None
    refresh: str | None = None

    def __post_init__(self) -> None:
        """Refuse options that do not fit one another.

        Raises:
            FieldError: two exclude one another, or a value is none that there is.
        """
        if not (isinstance(self.shuffle, (bool, np.bool_)) or self.shuffle == "block"):
            raise FieldError(f"shuffle={self.shuffle!r}: expected True, False or 'block'")
        if not isinstance(self.drop_last, (bool, np.bool_)):
            raise FieldError(f"drop_last={self.drop_last!r}: expected True or False")
        if self.shuffle != "block" and (self.block_size, self.pool_size) != (None, None):
            raise FieldError("block_size and pool_size go with shuffle='block'")
        if self.sampler is not None and not isinstance(self.sampler, PrioritizedSampler):
            raise FieldError(
                f"sampler={self.sampler!r}: expected a PrioritizedSampler; any other order is decided by shuffle, "
                "weights, seed and set_epoch, and ranks share the samples without a DistributedSampler"
            )
        if self.refresh not in (None, "epoch", "batch"):
            raise FieldError(f"refresh={self.refresh!r}: expected 'epoch', 'batch' or None")
        weighted = self.weights is not None or self.buffer_weights is not None
        drawn = self.replacement or weighted or self.sampler is not None or self.refresh == "batch"
        if self.shuffle == "block" and (drawn or self.refresh is not None):
            raise FieldError("shuffle='block' goes with neither refresh, nor weights, nor any draw with replacement")
        if weighted and self.sampler is not None:
            raise FieldError("weights and sampler exclude one another: priorities are weights")
        if self.samples_per_epoch is not None and not drawn:
            raise FieldError("samples_per_epoch goes with draws with replacement: replacement=True, weights or sampler")
        if self.refresh == "batch" and not (self.shuffle or self.replacement or self.sampler is not None or weighted):
            raise FieldError(
                "refresh='batch' draws at random from what is live; pass shuffle=True, weights or a sampler"
            )
        self.replacement = drawn
        if self.refresh is not None and self.weights is not None and not isinstance(self.weights, str):
            raise FieldError("weights: with refresh, episodes come and go; name a meta field that holds their weights")
        self.ranks()

    def ranks(self) -> Ranks:
        """The ranks as given, else those of the initialised process group, else of a process alone.

        Raises:
            FieldError: only one of the two is given, or they are out of range.
        """
        found, given = group_ranks(), (self.rank, self.world_size)
        if self.rank is None and self.world_size is None:
            return found
        if self.rank is None or self.world_size is None:
            raise FieldError(
                f"rank={self.rank!r}, world_size={self.world_size!r}: expected both or neither; with neither, those "
                "of an initialised torch.distributed are taken"
            )
        if isinstance(self.rank, bool) or isinstance(self.world_size, bool) or not 0 <= self.rank < self.world_size:
            raise FieldError(f"rank={self.rank!r}, world_size={self.world_size!r}: expected 0 <= rank < world_size")
        return Ranks(int(self.rank), int(self.world_size), found.connected and given == (found.rank, found.world_size))

    def order_over(self, dataset: ReplayDataset, seed: int, num_draws: int | None = None) -> Order:
        """The order over the samples of this dataset, for a process alone.

        Args:
            dataset: what is loaded.
            seed: of the order.
            num_draws: where samples are drawn with replacement, how many; None for ``samples_per_epoch``.
        """
        count = len(dataset)
        common: dict[str, Any] = {"shuffle": bool(self.shuffle), "seed": seed, "drop_last": bool(self.drop_last)}
        if self.replacement:
            draws = num_draws or (count if self.samples_per_epoch is None else self.samples_per_epoch)
            if self.sampler is not None:
                return PriorityOrder(draws, self.batch_size, **common, sampler=self.sampler)
            offsets = dataset.anchors.first_samples()
            weights = self._cumulative(dataset, np.diff(offsets))
            return ReplacementOrder(draws, self.batch_size, **common, offsets=offsets, cumulative=weights)
        if self.shuffle != "block":
            return Order(count, self.batch_size, **common)
        block, pool = default_sizes(_sample_bytes(dataset), count)
        pool_size = max(pool, self.block_size or 1) if self.pool_size is None else self.pool_size
        block_size = min(block, pool_size) if self.block_size is None else self.block_size
        return BlockOrder(count, self.batch_size, **common, block_size=block_size, pool_size=pool_size)

    def _cumulative(self, dataset: ReplayDataset, counts: Ints) -> Floats | None:
        """The weights of the dataset's episodes, added up."""
        source, weights = dataset.source, self.weights
        buffer_weights = None if self.buffer_weights is None else np.asarray(self.buffer_weights, np.float64)
        if weights is None and buffer_weights is None:
            return None
        if buffer_weights is not None:
            check_weights("buffer_weights", buffer_weights, len(source.parts))
        if isinstance(weights, str):
            field = source.meta_fields.get(weights)
            if field is None or field.is_text or field.shape != ():
                numbers = [name for name, info in source.meta_fields.items() if not info.is_text and info.shape == ()]
                raise FieldError(f"weights={weights!r}: expected a meta field that is one number; there are {numbers}")
            of_episodes: Floats | None = source.meta(weights).astype(np.float64)
        elif weights is not None:
            given = np.asarray(weights, np.float64)
            check_weights("weights", given, sum(len(part) for part in source.parts))
            of_episodes = given[source.index]
        else:
            of_episodes = None
        return cumulative_weights(counts, source.owners, episode_weights=of_episodes, buffer_weights=buffer_weights)


def _sample_bytes(dataset: ReplayDataset) -> float:
    """Bytes on the disk for each further sample: rows of the selected episodes over samples, times bytes of a row."""
    source = dataset.source
    some = np.unique(np.linspace(0, len(source.starts) - 1, _LOOKED_AT).astype(np.int64))
    some = source.starts[some] + source.lengths[some] // 2
    row = sum(source.rows.stored_nbytes(name, some) for name in dataset.entries.read_fields)
    return row * max(1.0, float(dataset.source.lengths.sum()) / max(len(dataset), 1))

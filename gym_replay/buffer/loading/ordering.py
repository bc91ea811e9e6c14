"""From a loader's arguments to an order over a dataset: which arguments go together, and what each means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.blocks import BlockOrder, default_sizes
from gym_replay.buffer.loading.datasets import ReplayDataset
from gym_replay.buffer.loading.order import Order
from gym_replay.buffer.loading.prioritized import PrioritizedSampler
from gym_replay.buffer.loading.ranks import Ranks
from gym_replay.buffer.loading.weights import Floats, ReplacementOrder, check_weights, cumulative_weights
from gym_replay.errors import FieldError


@dataclass
class Ordering:
    """The arguments of a loader that say in which order it loads. It knows no loader, so that none is kept by it.

    Attributes:
        sizes: of blocks and of the pool, in samples; None for the default.
        replacement: whether samples are drawn with replacement.
        ranks, seed: set once they are known.
    """

    batch_size: int
    shuffle: bool | str
    drop_last: bool
    sizes: tuple[int | None, int | None]
    replacement: bool
    weights: str | Floats | None
    buffer_weights: Floats | None
    samples_per_epoch: int | None
    prioritized: PrioritizedSampler | None
    refresh: str | None
    ranks: Ranks = Ranks()  # noqa: RUF009 - it is frozen
    seed: int = 0

    def check(self, dataset: ReplayDataset, remake: Any) -> None:
        """Refuse arguments that do not fit one another."""
        if not (isinstance(self.shuffle, (bool, np.bool_)) or self.shuffle == "block"):
            raise FieldError(f"shuffle={self.shuffle!r}: expected True, False or 'block'")
        if not isinstance(self.drop_last, (bool, np.bool_)):
            raise FieldError(f"drop_last={self.drop_last!r}: expected True or False")
        if self.shuffle != "block" and self.sizes != (None, None):
            raise FieldError("block_size and pool_size go with shuffle='block'")
        if self.prioritized is not None and not isinstance(self.prioritized, PrioritizedSampler):
            raise FieldError(
                f"sampler={self.prioritized!r}: expected a PrioritizedSampler; any other order is decided by shuffle, "
                "weights, seed and set_epoch, and ranks share the samples without a DistributedSampler (Lightning adds "
                "none with Trainer(use_distributed_sampler=False))"
            )
        weighted = self.weights is not None or self.buffer_weights is not None
        if self.shuffle == "block" and (self.replacement or self.refresh is not None):
            raise FieldError("shuffle='block' goes with neither refresh, nor weights, nor any draw with replacement")
        if weighted and self.prioritized is not None:
            raise FieldError("weights and sampler exclude one another: priorities are weights")
        if self.samples_per_epoch is not None and not self.replacement:
            raise FieldError("samples_per_epoch goes with draws with replacement: replacement=True, weights or sampler")
        if self.refresh not in (None, "epoch", "batch"):
            raise FieldError(f"refresh={self.refresh!r}: expected 'epoch', 'batch' or None")
        if self.refresh is None:
            return
        if remake is None:
            raise FieldError("refresh: make the loader with buffer.dataloader(...), which knows how to look again")
        if self.refresh == "batch" and self.shuffle is False and self.prioritized is None and not weighted:
            raise FieldError("refresh='batch' draws at random from what is live; pass shuffle=True or a sampler")
        if self.weights is not None and not isinstance(self.weights, str):
            raise FieldError("weights: with refresh, episodes come and go; name a meta field that holds their weights")
        if self.prioritized is not None and len(dataset.source.parts) > 1:
            raise FieldError("sampler: with refresh, it follows one buffer; make a loader for each")

    def order_of(self, dataset: ReplayDataset) -> Order:
        """The order over the samples of this dataset."""
        count = len(dataset)
        common: dict[str, Any] = {"seed": self.seed, "drop_last": self.drop_last}
        common |= {"rank": self.ranks.rank, "world_size": self.ranks.world_size}
        if self.replacement:
            draws = count if self.samples_per_epoch is None else self.samples_per_epoch
            offsets = dataset.anchors.first_samples()
            return ReplacementOrder(
                draws,
                self.batch_size,
                shuffle=True,
                **common,
                offsets=offsets,
                cumulative=self._cumulative(dataset, np.diff(offsets)),
            )
        if self.shuffle == "block":
            block, pool = default_sizes(_sample_bytes(dataset), count)
            block_size = block if self.sizes[0] is None else self.sizes[0]
            pool_size = max(pool, block_size) if self.sizes[1] is None else self.sizes[1]
            if self.sizes[0] is None:
                block_size = min(block_size, pool_size)
            try:
                return BlockOrder(
                    count, self.batch_size, shuffle=True, **common, block_size=block_size, pool_size=pool_size
                )
            except (TypeError, ValueError) as error:
                raise FieldError(str(error)) from None
        return Order(count, self.batch_size, shuffle=bool(self.shuffle), **common)

    def _cumulative(self, dataset: ReplayDataset, counts: npt.NDArray[np.int64]) -> Floats | None:
        """The weights of the dataset's episodes, added up."""
        source = dataset.source
        if self.weights is None and self.buffer_weights is None:
            return None
        if self.buffer_weights is not None:
            check_weights("buffer_weights", self.buffer_weights, len(source.parts))
        weights = self.weights
        if isinstance(weights, str):
            field = source.meta_fields.get(weights)
            if field is None or field.is_text or field.shape != ():
                numbers = [name for name, info in source.meta_fields.items() if not info.is_text and info.shape == ()]
                raise FieldError(f"weights={weights!r}: expected a meta field that is one number; there are {numbers}")
            weights = source.meta(weights).astype(np.float64)
        elif weights is not None:
            check_weights("weights", weights, sum(len(part) for part in source.parts))
            weights = weights[source.index]
        return cumulative_weights(counts, source.owners, episode_weights=weights, buffer_weights=self.buffer_weights)


def _sample_bytes(dataset: ReplayDataset) -> float:
    """Bytes on the disk for each further sample: rows of the selected episodes over samples, times bytes of a row."""
    fields = [dataset.source.fields[name] for name in dataset.read_fields]
    row = sum(field.nbytes for field in fields if not field.ragged) + sum(16 for field in fields if field.ragged)
    return row * max(1.0, float(dataset.source.lengths.sum()) / max(len(dataset), 1))

"""The sampler behind a loader: from an order, or priorities, to what is asked of the dataset batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from gym_replay.buffer.loading.blocks import BlockOrder
from gym_replay.buffer.loading.draws import Draw
from gym_replay.buffer.loading.live import LiveDataset
from gym_replay.buffer.loading.order import Order
from gym_replay.buffer.loading.prioritized import PrioritizedSampler
from gym_replay.buffer.loading.weights import ReplacementOrder

OrderOf = Callable[[Any], Order]


class Batches(Sampler[Draw]):
    """The batches of one epoch, from one of them on, as draws.

    Args:
        order: which samples a batch has; of a prioritised one, only how many there are.
        num_samples: how many samples the dataset has; of a live one, at first.
        live: the dataset that takes new snapshots, where there is one.
        reorder: makes the order over the dataset of the newest snapshot; needed for ``each_batch``.
        each_batch: take a snapshot before each batch.
        prioritized: draws the samples.
    """

    def __init__(
        self,
        order: Order,
        num_samples: int,
        *,
        live: LiveDataset | None = None,
        reorder: OrderOf | None = None,
        each_batch: bool = False,
        prioritized: PrioritizedSampler | None = None,
    ) -> None:
        self.order = order
        self._num_samples = num_samples
        self.epoch, self.start = 0, 0
        self.live = live
        self.prioritized = prioritized
        self.pending: list[Draw] = []
        """What was drawn by priority before a checkpoint, but not delivered yet: the next iteration begins with it."""
        self.drawn: deque[Draw] = deque()
        """What was drawn by priority and not delivered yet, of the iteration that began last."""
        self._reorder, self._each_batch = reorder, each_batch
        self._repeats = each_batch or isinstance(order, ReplacementOrder)
        self.follow()

    def __len__(self) -> int:
        return len(self.order)

    def follow(self) -> None:
        """Let the priorities be those of the samples of the newest snapshot."""
        if self.prioritized is None:
            return
        if self.live is None:
            one = np.zeros(1, np.int64)
            self.prioritized.follow(one, one + self._num_samples)
        else:
            self.prioritized.follow(self.live.view.ids, np.diff(self.live.view.offsets))

    def __iter__(self) -> Iterator[Draw]:
        if self.prioritized is not None:
            self.drawn = deque(self.pending)
            return self._by_priority(self.prioritized, self.order, self.epoch, self.start, self.drawn)
        if self._each_batch:
            return self._anew(self.epoch, self.start)
        return self._in_order(self.order, self.epoch, self.start)

    def _in_order(self, order: Order, epoch: int, start: int) -> Iterator[Draw]:
        reads = order.reads(epoch, start) if isinstance(order, BlockOrder) else None
        for index, samples in enumerate(order.batches(epoch, start), start):
            first = order.first_position(index)
            if self.live is not None:
                yield self.live.draw(samples, seed=order.seed, epoch=epoch, first=first, repeats=self._repeats)
            elif reads is None or not isinstance(order, BlockOrder):
                yield Draw(samples, order.seed, epoch, first, repeats=self._repeats)
            else:
                yield Draw(samples, order.seed, epoch, first, pool=order.pool_of(first), reads=tuple(next(reads)))

    def _anew(self, epoch: int, start: int) -> Iterator[Draw]:
        assert self.live is not None
        assert self._reorder is not None
        order, count = self.order, len(self.order)
        for index in range(start, count):
            if self.live.renew():
                # How many batches an epoch has was settled at its start; what they are drawn from was not.
                order = self._reorder(self.live.view.dataset)
            positions = self.order.positions(index)
            samples = order.visit(positions, epoch)
            first = self.order.first_position(index)
            yield self.live.draw(samples, seed=order.seed, epoch=epoch, first=first, repeats=True)

    def _by_priority(
        self, prioritized: PrioritizedSampler, order: Order, epoch: int, start: int, drawn: deque[Draw]
    ) -> Iterator[Draw]:
        pending = deque(drawn)
        for index in range(start, len(order)):
            if self.live is not None and self._each_batch and self.live.renew():
                self.follow()
            if pending:
                draw = pending.popleft()
            else:
                samples, weights = prioritized.draw(order.positions(index), order.seed, epoch)
                draw = Draw(samples, order.seed, epoch, order.first_position(index), weights, repeats=True)
                drawn.append(draw)
            if self.live is None:
                yield draw
            else:
                places, inside = prioritized.locate(draw.samples)
                rest = {"seed": draw.seed, "epoch": epoch, "first": draw.first, "weights": draw.weights}
                yield self.live.draw_of(places, inside, names=draw.samples, repeats=True, **rest)

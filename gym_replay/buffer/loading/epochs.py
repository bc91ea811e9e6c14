"""What a loader is made of: its dataset, sampler and batch sampler, of which other libraries make DataLoaders too.

The order lives in the dataset: what it is asked for is positions in an epoch. So whoever makes another DataLoader of
these parts, keeping or replacing the samplers, delivers the same batches, or meets an error that says what to do.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import BatchSampler, Dataset, Sampler

from gym_replay.buffer.loading.collate import named_tuple_class
from gym_replay.buffer.loading.datasets import ReplayDataset
from gym_replay.buffer.loading.live import Bounds
from gym_replay.buffer.loading.order import Draw, Moment, Order, PriorityDraw
from gym_replay.buffer.loading.ordering import OrderOptions, Ranks, group_ranks
from gym_replay.buffer.loading.prioritized import PriorityOrder
from gym_replay.errors import FieldError
from gym_replay.schema.arguments import checked_integer


class Epoch(NamedTuple):
    """One iteration over a loader, on this rank.

    Attributes:
        number: which epoch it is.
        start: its first batch, where an epoch is gone on with.
        order: the order of this rank.
        draws: the batches, from ``start`` on.
        pending: what was drawn by priority and is not delivered yet; whoever delivers a batch takes it out.
    """

    number: int
    start: int
    order: Order
    draws: Iterator[Draw]
    pending: deque[PriorityDraw]


class EpochSampler(Sampler[int]):
    """In which order a loader loads, and which epoch is next. To other libraries, the positions of an epoch in turn.

    Args:
        dataset: what is loaded.
        options: what the order is made of.
        generator: where a seed that is not given is drawn from; None for torch's default generator.

    Attributes:
        order: over the samples of the newest snapshot, for a process alone.
        numbering: of the samples that are drawn. Where episodes leave too fast, the dataset serves a newer snapshot.
        is_live: whether new snapshots are taken.
        epoch: of the next iteration.
        repeats_epoch: whether every iteration is the same epoch.
        moment: the epoch that began last, seen by workers too.
    """

    def __init__(
        self,
        dataset: ReplayDataset,
        options: OrderOptions,
        generator: torch.Generator | None = None,
    ) -> None:
        self.options, self.dataset, self.numbering = options, dataset, dataset.numbering
        self.is_live = options.refresh is not None
        seed = options.seed
        if seed is None:
            seed = int(torch.randint(1 << 62, (), generator=generator).item())
        self.order = options.order_over(dataset, seed)
        self.epoch = 0
        self.repeats_epoch = False
        self.moment = Moment(self.order.seed)
        self._start = 0
        self._pending: Sequence[PriorityDraw] = ()
        self._within: tuple[Bounds, int] | None = None
        self._is_agreed = options.seed is not None
        self._agree(options.ranks())
        if options.sampler is not None and not self.is_live:
            options.sampler.follow(np.zeros(1, np.int64), np.array([len(dataset)]))
        self._follow()

    def __len__(self) -> int:
        return self.order.num_samples

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        # A worker asks which samples are at which positions, and draws nothing.
        is_settled = not self.is_live and self.options.sampler is None
        return {"order": self.order if is_settled else None, "is_live": not is_settled, "moment": self.moment}

    def of_this_rank(self) -> Order:
        """The order of this process among the ranks that there are now."""
        ranks = self.options.ranks()
        return replace(self.order, rank=ranks.rank, world_size=ranks.world_size)

    # --- which epoch is next ---

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch; where it is already, the rest of one that is gone on with stays."""
        if checked_integer("epoch", epoch, end=2**64) != self.epoch and not self.repeats_epoch:
            self.go_to(epoch)

    def go_to(self, epoch: int, start: int = 0, pending: Sequence[PriorityDraw] = ()) -> None:
        """Let the next iteration be this epoch, from this batch on, where these were drawn by priority already."""
        self.epoch, self._start, self._pending = checked_integer("epoch", epoch, end=2**64), start, pending
        self._within = None

    def resume(
        self, seed: int, epoch: int, start: int, pending: Sequence[PriorityDraw], within: tuple[Bounds, int] | None
    ) -> None:
        """Go on as another loader would have: in an epoch of these episodes, of which there were so many samples."""
        self.order = replace(self.order, seed=seed)
        self._is_agreed = True
        self.go_to(epoch, start, pending)
        self._within = within

    def begin(self) -> Epoch:
        """Begin the next epoch on this rank; what a loader itself iterates over."""
        ranks = self.options.ranks()
        self._agree(ranks)
        return self._begun(ranks)

    def for_all_ranks(self) -> Iterator[Draw]:
        """Begin the next epoch, for whoever shares its batches out, as other libraries do.

        A generator: torch begins an iteration twice where there are workers, and uses one of them.

        Raises:
            FieldError: the processes would not share out the same batches.
        """
        if group_ranks().world_size > 1:
            what = {
                "seed=None": not self._is_agreed,
                f"refresh={self.options.refresh!r}": self.is_live,
                "rank and world_size": self.options.world_size not in (None, 1),
            }
            if reasons := " and ".join(name for name, holds in what.items() if holds):
                raise FieldError(
                    f"{reasons}: with it, processes in which another library has made a DataLoader of the loader would "
                    "not share out the same batches. Iterate over the loader itself, which loads for its rank; or make "
                    "it with a seed, and without these options"
                )
            yield from self._begun(Ranks()).draws
        else:
            yield from self._begun(self.options.ranks()).draws

    def _begun(self, ranks: Ranks) -> Epoch:
        if self.is_live:
            self._look_again(ranks)
        order = replace(self.order, rank=ranks.rank, world_size=ranks.world_size)
        number, start, pending = self.epoch, self._start, deque(self._pending)
        self.moment.set(order.seed, number)
        if not self.repeats_epoch:
            self.go_to(number + 1)
        return Epoch(number, start, order, self._draws(order, number, start, pending), pending)

    def _look_again(self, ranks: Ranks) -> None:
        """Take the snapshot of an epoch; a resumed epoch gets the episodes that it had, as far as they live."""
        within, self._within = self._within, None
        self.dataset.renew(None if within is None else within[0], ranks.gather)
        self.numbering = self.dataset.numbering
        if within is not None and len(self.numbering) != within[1] and self.options.refresh == "epoch":
            warnings.warn(
                f"resuming an epoch of {within[1]} samples, of which {len(self.numbering)} are left: "
                "episodes have gone since, so that its order is another one",
                stacklevel=5,
            )
        self.order = self.options.order_over(self.dataset, self.order.seed)
        self._follow()

    # --- the batches of an epoch ---

    def _draws(self, order: Order, epoch: int, start: int, pending: deque[PriorityDraw]) -> Iterator[Draw]:
        if self.options.refresh == "batch" or isinstance(order, PriorityOrder):
            return self._one_by_one(order, epoch, start, pending)
        draws = order.draws(epoch, start)
        return map(self.numbering.named, draws) if self.is_live else draws

    def _one_by_one(self, order: Order, epoch: int, start: int, pending: deque[PriorityDraw]) -> Iterator[Draw]:
        """Batches that are drawn from what is live, or has priority, when they are asked for."""
        known = deque(pending)
        for index in range(start, len(order)):
            if self.options.refresh == "batch" and self.dataset.renew():
                self.numbering = self.dataset.numbering
                # How many batches an epoch has was settled at its start; what they are drawn from was not.
                newest = self.options.order_over(self.dataset, order.seed, order.num_samples)
                order = replace(newest, rank=order.rank, world_size=order.world_size)
                self._follow()
            if known:
                draw: Draw = known.popleft()
            else:
                draw = order.draw(epoch, index)
                if isinstance(draw, PriorityDraw):
                    pending.append(draw)
            if not self.is_live:
                yield draw
            elif self.options.sampler is None:
                yield self.numbering.named(draw)
            else:
                yield self.numbering.named_by(draw, *self.options.sampler.locate(draw.samples))

    def draw_at(self, positions: Sequence[int]) -> Draw:
        """The batch of these positions in the epoch that began last.

        Raises:
            FieldError: what is at a position is not settled.
            IndexError: there is no such position.
        """
        if self.is_live or isinstance(self.order, PriorityOrder):
            raise FieldError(
                "batches that are drawn by priority, or of a live buffer, are in no order that another sampler could "
                "ask for: keep the loader's batch_sampler, with drop_last=True where several processes share it out"
            )
        asked, order = np.asarray(positions, np.int64), self.order
        if asked.size and not 0 <= asked.min() <= asked.max() < order.num_samples:
            raise IndexError(f"positions {asked.min()} .. {asked.max()} of an epoch of {order.num_samples}")
        epoch, samples = self.moment.epoch, np.empty_like(asked)
        ascending = np.argsort(asked)  # as orders visit positions
        samples[ascending] = order.visit(asked[ascending], epoch)
        return Draw(samples, order.seed, epoch, int(asked[0]) if asked.size else 0, order.repeats)

    def _follow(self) -> None:
        """Let the priorities be those of the samples of the newest snapshot."""
        if self.options.sampler is not None and self.is_live:
            self.options.sampler.follow(self.numbering.ids, np.diff(self.numbering.offsets))

    # --- what the ranks agree on ---

    def settings(self) -> dict[str, Any]:
        """What must be the same for an order to be the same, beside the seed: numbers and strings."""
        asked = self.options.samples_per_epoch
        settings = self.order.settings() | {"world_size": self.options.ranks().world_size}
        settings |= {"refresh": self.options.refresh, "samples_per_epoch": None if asked is None else int(asked)}
        return settings | {"num_samples": None, "weights": None} if self.is_live else settings

    def _agree(self, ranks: Ranks) -> None:
        """Take the seed that rank 0 drew, where none was given; every rank must come here.

        Raises:
            FieldError: there are other ranks that cannot be asked, or they have other data or settings.
        """
        if self._is_agreed or ranks.world_size == 1:
            return
        if not ranks.connected:
            if self.options.shuffle or (self.options.replacement and self.options.sampler is None):
                raise FieldError(
                    f"seed=None with world_size={ranks.world_size}: ranks that are not those of an initialised "
                    "torch.distributed cannot agree on a seed; pass the same seed to each"
                )
            return
        everyone = ranks.gather((self.order.seed, self.settings()))
        for name in everyone[0][1]:
            found = [settings.get(name) for _, settings in everyone]
            if any(other != found[0] for other in found):
                raise FieldError(f"{name} differs between the ranks: {found}; give them the same data and settings")
        self.order = replace(self.order, seed=everyone[0][0])
        self._is_agreed = True


class DrawSampler(BatchSampler):
    """The batch sampler of a loader: its batches for all ranks, epoch by epoch.

    Other libraries share them out over the ranks, leave out the first ones, or wrap them, as they do with every batch
    sampler, and it is made with the same arguments. The loader itself puts the batches of its rank into ``begun`` for
    the iteration that it begins.
    """

    begun: Iterator[Draw] | None = None

    def __iter__(self) -> Iterator[Any]:
        if not isinstance(self.sampler, EpochSampler):
            return super().__iter__()
        return self.sampler.for_all_ranks() if self.begun is None else self.begun

    def __len__(self) -> int:
        return len(self.sampler.order) if isinstance(self.sampler, EpochSampler) else super().__len__()

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch."""
        if isinstance(self.sampler, EpochSampler):
            self.sampler.set_epoch(epoch)


class WholeBatch:
    """A batch on its way from a loader's dataset to its ``collate_fn``."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __getitem__(self, index: Any) -> Any:
        raise not_one_by_one()


def unwrap(whole: Any) -> Any:
    """The batch: the ``collate_fn`` of a loader."""
    if not isinstance(whole, WholeBatch):
        raise not_one_by_one()
    return whole.batch


def not_one_by_one() -> FieldError:
    """The error of who takes a loader's dataset for one of single samples."""
    return FieldError(
        "the dataset of a loader delivers whole batches: iterate over the loader itself; or give your DataLoader the "
        "loader's parts, DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn); "
        "or make one over buffer.dataset(...), which has single samples"
    )


class EpochDataset(Dataset[Any]):
    """The samples of a loader by their position in an epoch; those that are asked for together are a batch.

    Args:
        samples: the samples by their numbers.
        sampler: says which sample is at which position.
        to_named_tuple: deliver named tuples of these entries, in this order.

    Raises:
        FieldError: the entries cannot be the names of a tuple.
    """

    def __init__(
        self,
        samples: ReplayDataset,
        sampler: EpochSampler,
        to_named_tuple: Sequence[str] | None = None,
    ) -> None:
        self.samples, self.sampler = samples, sampler
        self._tuple_names = None if to_named_tuple is None else tuple(to_named_tuple)
        if to_named_tuple is not None:
            named_tuple_class(to_named_tuple)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getitems__(self, positions: Sequence[int]) -> WholeBatch:
        return WholeBatch(self[positions])

    def __getitem__(self, positions: Any) -> Any:
        if isinstance(positions, (int, np.integer)):
            raise not_one_by_one()
        draw = positions if isinstance(positions, Draw) else self.sampler.draw_at(positions)
        return self._named(self.samples[draw])

    def first_batch(self) -> Mapping[str, Any]:
        """A batch of the first samples in the buffer, by names also where tuples are delivered."""
        samples, order = self.samples, self.sampler.order
        numbers = np.arange(min(order.batch_size, len(samples)))
        if not isinstance(order, PriorityOrder):
            return samples[Draw(numbers)]
        return samples[PriorityDraw(numbers, weights=np.ones(len(numbers)), names=numbers)]

    def set_epoch(self, epoch: int) -> None:
        """Let positions be those of this epoch, for a DataLoader that has another sampler."""
        self.sampler.moment.set(self.sampler.moment.seed, checked_integer("epoch", epoch, end=2**64))

    def in_turn(self, epoch: Epoch) -> Iterator[Any]:
        """The batches of an epoch; where nothing depends on when they are drawn, several are gathered together."""
        if self.sampler.is_live or isinstance(epoch.order, PriorityOrder):
            return map(self.__getitem__, epoch.draws)
        batches = self.samples.drawn_in_order(epoch.draws)
        return batches if self._tuple_names is None else map(self._named, batches)

    def _named(self, batch: Mapping[str, Any]) -> Any:
        names = self._tuple_names
        return batch if names is None else named_tuple_class(names)(batch[name] for name in names)

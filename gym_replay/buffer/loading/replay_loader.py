"""ReplayLoader: torch's own DataLoader over batches that are gathered whole, in an order that can be resumed."""

from __future__ import annotations

import warnings
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from gym_replay.buffer.loading.batches import Batches
from gym_replay.buffer.loading.blocks import BlockOrder
from gym_replay.buffer.loading.collate import Batch, named_tuple_class
from gym_replay.buffer.loading.datasets import ReplayDataset
from gym_replay.buffer.loading.devices import check_device, on_device
from gym_replay.buffer.loading.draws import Draw
from gym_replay.buffer.loading.field_statistics import Resolved, from_state, to_state
from gym_replay.buffer.loading.live import LiveDataset
from gym_replay.buffer.loading.ordering import Ordering
from gym_replay.buffer.loading.prioritized import PrioritizedSampler
from gym_replay.buffer.loading.ranks import agree_on_seed, find_ranks
from gym_replay.buffer.loading.torch_options import REFUSED, check_torch_options
from gym_replay.buffer.loading.weights import ReplacementOrder
from gym_replay.buffer.loading.workers import checked_epoch
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import FieldError

PRIORITIZED_ENTRIES = ("_samples", "_weights")


def _as_it_is(batch: Any) -> Any:
    return batch


def _array(values: Any) -> npt.NDArray[Any]:
    return torch.as_tensor(values).cpu().numpy()


class ReplayLoader(DataLoader[Batch]):
    """A DataLoader whose batches are dicts (or named tuples) of tensors.

    Its order is a pure function of (seed, epoch, rank, world_size): every sample exactly once an epoch over all ranks.
    Each new iteration is the next epoch. With ``drop_last`` all ranks have the same number of batches, without it they
    differ by at most one. The episodes are those that were live when the loader was made, unless ``refresh`` says
    otherwise.

    Samples are drawn with replacement instead, each batch full and the same number of batches on every rank, with
    ``replacement``, ``weights``, ``buffer_weights``, ``sampler`` or ``refresh="batch"``. An epoch is then
    ``samples_per_epoch`` draws, by default as many as there are samples, rounded up to full batches on all ranks.

    Args:
        dataset: one of this package's datasets.
        batch_size: samples a batch.
        shuffle: whether the order is random; else it is that of the buffer. ``"block"`` is for data larger than
            memory: blocks of consecutive samples in random order go through a shuffle pool, see
            :class:`~gym_replay.buffer.loading.blocks.BlockOrder`.
        drop_last: leave out the last batch where it is not full, and those that not every rank has.
        seed: of the order; None draws one from torch's default generator, and takes that of rank 0 on all ranks of an
            initialised process group (every rank must then make the loader).
        rank, world_size: which part of each epoch is for this process; by default those of an initialised
            torch.distributed, else 0 and 1. ``rank=0, world_size=1`` loads everything in one process of a group.
        block_size, pool_size: for ``shuffle="block"``, in samples: what is read together, and what is mixed. By default
            about 8 MiB and 256 MiB of rows.
        replacement: draw with replacement, uniformly.
        weights: of episodes, ``(num_episodes,)`` by index in the buffer, or the name of a scalar meta field: in
            proportion to its weight, a draw is of this episode; among its samples it is uniform.
        buffer_weights: of the buffers of a concatenation: in proportion to its weight, a draw is of this buffer; within
            it, uniform over the samples, or by ``weights``.
        samples_per_epoch: draws with replacement in an epoch, over all ranks.
        sampler: a PrioritizedSampler. Batches then have ``_samples`` and ``_weights``.
        refresh: ``"epoch"`` takes a new snapshot of a live buffer at the start of each epoch; ``"batch"`` before each
            batch is drawn (with workers, or to a CUDA device, that is some batches ahead), and needs ``shuffle=True``
            or a ``sampler``. Where something was committed, this costs time in proportion to the number of episodes.
            Statistics of ``normalize`` are those of when the loader was made.
        device: where the tensors go; to a CUDA device they are copied through pinned memory, ahead of their use.
        to_named_tuple: deliver named tuples of these entries, in this order.
        remake: for ``refresh``: makes the like of ``dataset`` over other snapshots.
        options: torch's own, as far as they leave the order alone: ``num_workers``, ``prefetch_factor``,
            ``persistent_workers``, ``pin_memory``, ``pin_memory_device``, ``timeout``, ``worker_init_fn``,
            ``multiprocessing_context`` and ``generator``. docs/semantics.md says of each of torch's options what it
            does here.

    Raises:
        FieldError: an argument does not fit, or does not go with another.
        TypeError: there is no such option.

    Example:
        >>> loader = buffer.dataloader(256, n_steps=1, shuffle=True, seed=0, drop_last=True)  # doctest: +SKIP
        >>> for batch in loader:  # doctest: +SKIP
        ...     train(batch)
        ...     checkpoint = loader.state_dict()  # another loader goes on from here after load_state_dict(checkpoint)
    """

    def __init__(
        self,
        dataset: ReplayDataset,
        batch_size: int,
        *,
        shuffle: bool | str = False,
        drop_last: bool = False,
        seed: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        block_size: int | None = None,
        pool_size: int | None = None,
        replacement: bool = False,
        weights: str | npt.ArrayLike | None = None,
        buffer_weights: npt.ArrayLike | None = None,
        samples_per_epoch: int | None = None,
        sampler: PrioritizedSampler | None = None,
        refresh: str | None = None,
        device: Any = None,
        to_named_tuple: Sequence[str] | None = None,
        remake: Callable[[Sequence[Snapshot]], ReplayDataset] | None = None,
        **options: Any,
    ) -> None:
        replacement = replacement or weights is not None or buffer_weights is not None or sampler is not None
        self._ordering = Ordering(
            batch_size,
            shuffle,
            drop_last,
            (block_size, pool_size),
            replacement or refresh == "batch",
            weights if weights is None or isinstance(weights, str) else np.asarray(weights, np.float64),
            None if buffer_weights is None else np.asarray(buffer_weights, np.float64),
            samples_per_epoch,
            sampler,
            refresh,
        )
        self._ordering.check(dataset, remake)
        options = check_torch_options(options)
        self._ranks = self._ordering.ranks = find_ranks(rank, world_size)
        if seed is None:
            seed = self._drawn_seed(dataset, options.get("generator"))
        self._ordering.seed = seed
        self._prioritized = sampler
        self._own = dataset
        dataset.belongs_to_loader = True
        self._live = None if refresh is None or remake is None else LiveDataset(dataset, remake)
        self._order = self._ordering.order_of(dataset)
        self._ordering.seed = self._order.seed
        if isinstance(self._order, BlockOrder):
            dataset.source.rows.expect_blocks()
        self._batches = Batches(
            self._order,
            len(dataset),
            live=self._live,
            reorder=self._ordering.order_of,
            each_batch=refresh == "batch",
            prioritized=sampler,
        )
        self._device = check_device(device)
        self._tuple_names = None if to_named_tuple is None else list(to_named_tuple)
        self._tuple_class = None if to_named_tuple is None else named_tuple_class(to_named_tuple)
        self._next_epoch, self._next_start = 0, 0
        self._progress: tuple[int, int, deque[Draw]] = (0, 0, deque())
        self._running: weakref.ref[Generator[Any, None, None]] | None = None
        self._resumed_within: Any = None
        served = dataset if self._live is None else self._live
        super().__init__(served, batch_size=None, sampler=self._batches, collate_fn=_as_it_is, **options)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in REFUSED and name in self.__dict__:
            raise FieldError(f"{name} is settled when the loader is made: {REFUSED[name]}")
        super().__setattr__(name, value)

    def _drawn_seed(self, dataset: ReplayDataset, generator: Any) -> int:
        """A seed from torch's generator; that of rank 0 where the ranks must have the same."""
        drawn, ordering = int(torch.randint(1 << 62, (), generator=generator).item()), self._ordering
        shared = bool(ordering.shuffle) or (ordering.replacement and ordering.prioritized is None)
        if not shared and not self._ranks.connected:
            return drawn  # nothing is shared out by the seed
        settings: dict[str, Any] = {"the number of samples": len(dataset) if ordering.refresh is None else None}
        for name in ("batch_size", "shuffle", "drop_last", "replacement"):
            settings[name] = getattr(ordering, name)
        return agree_on_seed(self._ranks, drawn, settings)

    def __iter__(self) -> Any:
        epoch, start = self._next_epoch, self._next_start
        if self._live is not None:
            self._look_again()
        self._next_epoch, self._next_start = epoch + 1, 0
        self._batches.epoch, self._batches.start = epoch, start
        self._leave_workers_to_another_iteration()
        batches: Iterator[Batch] = super().__iter__()
        if self.num_workers == 0 and not self.pin_memory:
            # Torch's own iterator, which has drawn its seed now, takes as long to hand over a small batch as there is
            # to gather in it.
            if isinstance(self.dataset, ReplayDataset) and self._prioritized is None:
                batches = self.dataset.drawn_in_order(iter(self._batches))  # of this epoch, whenever it is begun
            else:
                batches = map(self.dataset.__getitem__, self._batches)
        drawn, self._batches.pending = self._batches.drawn, []
        self._progress = epoch, start, drawn
        delivered = self._deliver(on_device(batches, self._device), epoch, start, drawn)
        if self.persistent_workers:
            self._running = weakref.ref(delivered)
        return delivered

    def _leave_workers_to_another_iteration(self) -> None:
        """Let workers that are still at an earlier iteration stay with it: torch would give its batches to this one."""
        running = None if self._running is None else self._running()
        if running is not None and getgeneratorstate(running) != GEN_CLOSED:
            self._iterator = None

    def _look_again(self) -> None:
        """Take the snapshot of an epoch; one that is resumed gets the episodes that it had, as far as they live."""
        assert self._live is not None
        within, self._resumed_within = self._resumed_within, None
        self._live.renew(self._ranks, within=None if within is None else within[0])
        if within is not None and len(self._live) != within[1] and self._ordering.refresh == "epoch":
            warnings.warn(
                f"resuming an epoch of {within[1]} samples, of which {len(self._live)} are left: episodes have gone "
                "since, so that its order is another one",
                stacklevel=3,
            )
        self._order = self._batches.order = self._ordering.order_of(self._live.view.dataset)
        self._batches.follow()

    def _deliver(
        self, batches: Iterator[Batch], epoch: int, start: int, drawn: deque[Draw]
    ) -> Generator[Any, None, None]:
        count, state = len(self._order), self.__dict__  # torch looks at each attribute that is set, for a microsecond
        for number, batch in enumerate(batches, start + 1):
            state["_progress"] = (epoch, number, drawn) if number < count else (epoch + 1, 0, drawn)
            if self._prioritized is not None:
                drawn.popleft()
            if self._tuple_class is not None and self._tuple_names is not None:
                yield self._tuple_class(*(batch[name] for name in self._tuple_names))
            else:
                yield batch
        if start >= count:
            state["_progress"] = epoch + 1, 0, drawn

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration."""
        return self._next_epoch

    @property
    def seed(self) -> int:
        """The seed of the order, given or drawn."""
        return self._ordering.seed

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch."""
        self._next_epoch, self._next_start = checked_epoch(epoch), 0
        self._progress = self._next_epoch, 0, deque()
        self._batches.pending = []
        self._resumed_within = None

    def _settings(self) -> dict[str, Any]:
        """What must be the same for an order to be the same."""
        order = self._order
        settings: dict[str, Any] = {
            "num_samples": order.num_samples if self._ordering.refresh is None else None,
            "batch_size": order.batch_size,
            "shuffle": "block" if self._ordering.shuffle == "block" else bool(self._ordering.shuffle),
            "drop_last": bool(order.drop_last),
            "world_size": order.world_size,
            "replacement": self._ordering.replacement,
            "samples_per_epoch": None if (asked := self._ordering.samples_per_epoch) is None else int(asked),
            "block_size": None,
            "pool_size": None,
            "weights": None,
            "prioritized": self._prioritized is not None,
            "refresh": self._ordering.refresh,
        }
        if isinstance(order, BlockOrder):
            settings |= {"block_size": order.block_size, "pool_size": order.pool_size}
        if isinstance(order, ReplacementOrder) and order.cumulative is not None and self._ordering.refresh is None:
            settings["weights"] = zlib.crc32(order.cumulative.tobytes())
        return settings

    def _normalize_as(self, before: Resolved | None) -> None:
        """Normalize with statistics of an earlier loader.

        Raises:
            FieldError: they are of other fields.
        """
        names, mine = sorted(before or ()), sorted(self._own.normalized or ())
        if names != mine:
            raise FieldError(
                f"the state was taken with normalize={names}, this loader has {mine}; resume with the same settings"
            )
        if before is None or to_state(before) == to_state(self._own.normalized):
            return
        self._own.normalize_with(before)
        if self._live is not None:
            self._live.normalize_with(before)
        self._iterator = None  # persistent workers have the others

    def state_dict(self) -> dict[str, Any]:
        """Where the running (or last) iteration is: from it, another loader of the same data goes on exactly.

        It holds plain numbers, strings, lists and dicts, and tensors where there are priorities, so that
        ``torch.load`` reads it by default; without priorities it is JSON too.

        What workers have read ahead is not counted: the next batch is the one after the last that was delivered. Ranks
        that are at the same batch have the same state, so one checkpoint does for all; but priorities are of each rank.
        """
        epoch, batch, drawn = self._progress
        state = {"epoch": epoch, "batch": batch, "seed": self._ordering.seed} | self._settings()
        if self._prioritized is not None:
            state["sampler"] = self._prioritized.state_dict()
            ahead = drawn if batch else ()
            state["pending"] = [[torch.tensor(one.samples), torch.tensor(one.weights), one.first] for one in ahead]
        state["normalize"] = to_state(self._own.normalized)
        if self._live is not None:
            state["episodes"] = [list(pair) for pair in self._live.view.bounds]
            state["live_samples"] = len(self._live)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin with the batch after the last one delivered when the state was taken.

        With ``refresh="epoch"`` the rest of that epoch has the episodes that it had. Fields are normalized with the
        statistics that they were normalized with before, whatever the buffer holds by now. NumPy arrays and numbers in
        the state are taken as well.

        Raises:
            FieldError: the state is of a loader over other data or with other settings.
        """
        mine = self.state_dict()
        if missing := sorted(set(mine) - set(state)):
            raise FieldError(f"the state has no entry {missing[0]!r}; pass what state_dict() returned")
        for name, value in self._settings().items():
            if state[name] != value:
                raise FieldError(
                    f"the state was taken with {name}={state[name]}, this loader has {value}; resume with the "
                    "same data and settings"
                )
        self._normalize_as(from_state(state["normalize"]))
        seed, epoch, batch = int(state["seed"]), int(state["epoch"]), int(state["batch"])
        self._ordering.seed = seed
        self._order = self._batches.order = replace(self._order, seed=seed)
        self._next_epoch, self._next_start = epoch, batch
        if self._prioritized is not None:
            self._prioritized.load_state_dict(state["sampler"])
            self._batches.pending = [
                Draw(_array(samples), seed, epoch, int(first), _array(weights), repeats=True)
                for samples, weights, first in state["pending"]
            ]
        self._progress = epoch, batch, deque(self._batches.pending)
        if self._live is not None and batch:
            self._resumed_within = (tuple(tuple(pair) for pair in state["episodes"]), state["live_samples"])

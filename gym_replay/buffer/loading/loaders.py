"""The dataloaders: torch's own DataLoader over batches that are gathered whole."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from gym_replay.buffer.loading.collate import Batch, named_tuple_class
from gym_replay.buffer.loading.datasets import NStepDataset, ReplayDataset, TimestepDataset, TrajectoryDataset
from gym_replay.buffer.loading.devices import check_device, on_device
from gym_replay.buffer.loading.order import Order
from gym_replay.buffer.loading.plans import Ints
from gym_replay.buffer.loading.source import Condition, Source
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import FieldError

if TYPE_CHECKING:
    from typing import Protocol

    class Readable(Protocol):
        """A buffer, or a concatenation of buffers."""

        def snapshots(self) -> list[Snapshot]:
            """The live episodes of each part."""


_REFUSED = {
    "collate_fn": "batches are gathered whole; change the batch in your training loop",
    "sampler": "the order is decided by shuffle, seed and set_epoch",
    "batch_sampler": "the order is decided by batch_size, shuffle, drop_last and seed",
    "dataset": "the dataset is made from the buffer; use buffer.dataset(...) with a DataLoader of your own",
}


def _as_it_is(batch: Any) -> Any:
    return batch


class _Positions(Sampler[Ints]):
    """The batches of sample numbers of one epoch, from one of them on."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.epoch, self.start = 0, 0

    def __iter__(self) -> Iterator[Ints]:
        return self.order.batches(self.epoch, self.start)

    def __len__(self) -> int:
        return len(self.order)


class ReplayLoader(DataLoader[Batch]):
    """A DataLoader whose batches are dicts (or named tuples) of tensors.

    Its order is a pure function of (seed, epoch): every sample exactly once an epoch. Each new iteration is the
    next epoch. The episodes are those that were live when the loader was made.

    Args:
        dataset: one of this package's datasets.
        batch_size: samples a batch.
        shuffle: whether the order is random; else it is that of the buffer.
        drop_last: leave out the last batch where it is not full.
        seed: of the order; None draws one from torch's default generator.
        device: where the tensors go; to a CUDA device they are copied through pinned memory, ahead of their use.
        to_named_tuple: deliver named tuples of these entries, in this order.
        options: torch's own (num_workers, pin_memory, prefetch_factor, persistent_workers, ...).
    """

    def __init__(
        self,
        dataset: ReplayDataset,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int | None = None,
        device: Any = None,
        to_named_tuple: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        for name, remedy in _REFUSED.items():
            if options.pop(name, None) is not None:
                raise FieldError(f"{name} is not taken: {remedy}")
        if seed is None:
            seed = int(torch.randint(1 << 62, (), generator=options.get("generator")).item())
        self._order = Order(len(dataset), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)
        self._positions = _Positions(self._order)
        self._replay_dataset = dataset
        self._device = check_device(device)
        self._tuple_names = None if to_named_tuple is None else list(to_named_tuple)
        self._tuple_class = None if to_named_tuple is None else named_tuple_class(to_named_tuple)
        self._next_epoch, self._next_start = 0, 0
        self._progress = (0, 0)
        super().__init__(dataset, batch_size=None, sampler=self._positions, collate_fn=_as_it_is, **options)

    def __iter__(self) -> Any:
        epoch, start = self._next_epoch, self._next_start
        self._next_epoch, self._next_start = epoch + 1, 0
        self._progress = (epoch, start)
        self._positions.epoch, self._positions.start = epoch, start
        batches: Iterator[Batch] = super().__iter__()
        if self.num_workers == 0 and not self.pin_memory:
            # Torch's own iterator, which has drawn its seed now, takes as long to hand over a small batch as there is
            # to gather in it.
            batches = map(self._replay_dataset.batch, self._positions)
        return self._deliver(on_device(batches, self._device), epoch, start)

    def _deliver(self, batches: Iterator[Batch], epoch: int, start: int) -> Iterator[Any]:
        total = len(self._order)
        for number, batch in enumerate(batches, start + 1):
            self._progress = (epoch, number) if number < total else (epoch + 1, 0)
            if self._tuple_class is not None and self._tuple_names is not None:
                yield self._tuple_class(*(batch[name] for name in self._tuple_names))
            else:
                yield batch

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration."""
        return self._next_epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch."""
        if isinstance(epoch, bool) or not isinstance(epoch, (int, np.integer)) or epoch < 0:
            raise FieldError(f"epoch: expected a number from 0 on, got {epoch!r}")
        self._next_epoch, self._next_start = int(epoch), 0
        self._progress = (int(epoch), 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the running (or last) iteration is: from it, another loader of the same data goes on exactly."""
        order = self._order
        epoch, batch = self._progress
        return {
            "epoch": epoch,
            "batch": batch,
            "seed": order.seed,
            "num_samples": order.num_samples,
            "batch_size": order.batch_size,
            "shuffle": order.shuffle,
            "drop_last": order.drop_last,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin with the batch after the last one delivered when the state was taken.

        Raises:
            FieldError: the state is of a loader over other data or with other settings.
        """
        mine = self.state_dict()
        if missing := sorted(set(mine) - set(state)):
            raise FieldError(f"the state has no entry {missing[0]!r}; pass what state_dict() returned")
        for name in ("num_samples", "batch_size", "shuffle", "drop_last"):
            if state[name] != mine[name]:
                raise FieldError(
                    f"the state was taken with {name}={state[name]}, this loader has {mine[name]}; resume with the "
                    "same data and settings"
                )
        self._order = replace(self._order, seed=state["seed"])
        self._positions.order = self._order
        self._next_epoch, self._next_start = state["epoch"], state["batch"]
        self._progress = (state["epoch"], state["batch"])


KINDS: dict[str, type[ReplayDataset]] = {
    "trajectory": TrajectoryDataset,
    "timestep": TimestepDataset,
    "n_step": NStepDataset,
}


def dataset_options(kind: str) -> set[str]:
    """The keywords of one kind of dataset."""
    names: set[str] = set()
    for cls in KINDS[kind].__mro__:
        if issubclass(cls, ReplayDataset):
            names |= set(inspect.signature(cls.__init__).parameters)
    return names - {"self", "source", "anchors", "only", "common"}


def make_dataset(
    buffer: Readable,
    kind: str,
    *,
    filter_meta: Mapping[str, Condition] | None = None,
    only: Sequence[str] | None = None,
    **options: Any,
) -> ReplayDataset:
    """The dataset of one kind over what is live in a buffer now.

    Raises:
        FieldError: an option belongs to another kind.
        EmptyBufferError: there is no sample.
    """
    fitting = dataset_options(kind)
    for name in options.keys() - fitting:
        others = [other for other in KINDS if name in dataset_options(other)]
        if not others:
            raise TypeError(f"unexpected keyword {name!r}; {kind} loading takes {sorted(fitting)}")
        raise FieldError(f"{name} goes with {' and '.join(others)} loading, not with {kind} loading")
    return KINDS[kind](Source(buffer.snapshots(), filter_meta=filter_meta), only=only, **options)


def make_loader(
    buffer: Readable,
    kind: str,
    batch_size: int,
    *,
    filter_meta: Mapping[str, Condition] | None = None,
    to_named_tuple: Sequence[str] | None = None,
    **options: Any,
) -> ReplayLoader:
    """The loader of one kind: dataset options go to the dataset, all others to :class:`ReplayLoader`."""
    known = set().union(*(dataset_options(other) for other in KINDS))
    chosen = {name: options.pop(name) for name in list(options) if name in known}
    dataset = make_dataset(buffer, kind, filter_meta=filter_meta, only=to_named_tuple, **chosen)
    return ReplayLoader(dataset, batch_size, to_named_tuple=to_named_tuple, **options)


def trajectory_loader(buffer: Readable, batch_size: int, **options: Any) -> ReplayLoader:
    """Batches of whole episodes, padded with zeros to the longest of each batch.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        batch_size: episodes a batch.
        options: ``fields`` and ``next_fields`` (names; state fields give rows 0..T-1, ``next_`` ones rows 1..T),
            ``return_mask`` (adds ``_mask``, bool ``(batch, time)``, True where valid), ``return_indices`` (adds
            ``_index``), ``return_episode_lens`` (``_lens``, int64 ``(batch,)``), ``slice_by_episode_len`` (False pads
            every batch to ``max_timesteps``), and those of :meth:`ReplayBuffer.dataloader`.

    Returns:
        A loader of dicts: each field ``(batch, time, *field.shape)``, each meta field ``(batch, *field.shape)``.
    """
    return make_loader(buffer, "trajectory", batch_size, **options)


def timestep_loader(buffer: Readable, batch_size: int, **options: Any) -> ReplayLoader:
    """Batches of single transitions.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        batch_size: transitions a batch.
        options: ``fields`` (names), ``filter_fields`` (conditions on scalar fields), ``return_indices`` (adds
            ``_indices``, int64 ``(batch, 2)``: episode and step), and those of :meth:`ReplayBuffer.dataloader`.

    Returns:
        A loader of dicts: each field and meta field ``(batch, *field.shape)``.
    """
    return make_loader(buffer, "timestep", batch_size, **options)


def n_step_loader(buffer: Readable, batch_size: int, n_steps: int = 1, **options: Any) -> ReplayLoader:
    """Batches of n-step transitions.

    A sample is a step t. ``n_step_lens`` is m = min(n, steps left in the episode); ``next_<field>`` is the row
    t + m, ``seq_<field>`` the rows t .. t + m - 1 followed by zeros.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        batch_size: samples a batch.
        n_steps: n.
        options: ``current_fields`` (default: all), ``next_fields`` (default: the state fields, or all where there are
            none), ``sequence_fields`` (default: none), ``filter_fields``, ``return_indices``, and those of
            :meth:`ReplayBuffer.dataloader`.

    Returns:
        A loader of dicts: fields and ``next_`` fields ``(batch, *field.shape)``, ``seq_`` fields
        ``(batch, n, *field.shape)``, ``n_step_lens`` int64 ``(batch,)``.
    """
    return make_loader(buffer, "n_step", batch_size, n_steps=n_steps, **options)

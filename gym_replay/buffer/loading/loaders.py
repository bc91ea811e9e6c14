"""The dataloaders: torch's own DataLoader over batches that are gathered whole."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gym_replay.buffer.loading.datasets import NStepDataset, ReplayDataset, TimestepDataset, TrajectoryDataset
from gym_replay.buffer.loading.replay_loader import PRIORITIZED_ENTRIES, ReplayLoader
from gym_replay.buffer.loading.source import Condition, Source
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import FieldError

if TYPE_CHECKING:
    from typing import Protocol

    class Readable(Protocol):
        """A buffer, or a concatenation of buffers."""

        def snapshots(self) -> list[Snapshot]:
            """The live episodes of each part."""


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
    only = to_named_tuple
    if only is not None and options.get("sampler") is not None:
        only = [name for name in only if name not in PRIORITIZED_ENTRIES]
    remake: Callable[[Readable], ReplayDataset] = partial(
        make_dataset, kind=kind, filter_meta=filter_meta, only=only, **chosen
    )
    return ReplayLoader(remake(buffer), batch_size, to_named_tuple=to_named_tuple, remake=remake, **options)


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

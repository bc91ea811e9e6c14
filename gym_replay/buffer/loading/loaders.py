"""The dataloaders: torch's own DataLoader over batches that are gathered whole."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from gym_replay.buffer.loading.datasets import ReplayDataset
from gym_replay.buffer.loading.formats import Formatted, format_options
from gym_replay.buffer.loading.replay_loader import PRIORITIZED_ENTRIES, ReplayLoader
from gym_replay.buffer.loading.samples import Description, crop, n_step, timestep, trajectory, window
from gym_replay.buffer.loading.selection import Condition, Episodes
from gym_replay.buffer.loading.source import Source
from gym_replay.buffer.storage.reader import HasSnapshots, Snapshot
from gym_replay.errors import FieldError

KINDS: dict[str, Callable[..., Description]] = {
    "trajectory": trajectory,
    "timestep": timestep,
    "n_step": n_step,
    "window": window,
    "crop": crop,
}


def _keywords(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"source", "description", "only"}


OF_KIND = {kind: _keywords(describe) for kind, describe in KINDS.items()}
"""The options of each kind of sample."""

OF_ALL = _keywords(ReplayDataset)
"""The options of the dataset, whatever a sample is."""


def dataset_options(kind: str) -> set[str]:
    """The keywords of one kind of dataset."""
    return OF_KIND[kind] | OF_ALL


def make_dataset(
    parts: Sequence[Snapshot],
    kind: str,
    *,
    filter_meta: Mapping[str, Condition] | None = None,
    episodes: Episodes | None = None,
    only: Sequence[str] | None = None,
    batch_format: Formatted | None = None,
    **options: Any,
) -> ReplayDataset:
    """The dataset of one kind over snapshots.

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
    if batch_format is not None:
        if only is not None:
            raise FieldError("batch_format and to_named_tuple exclude one another: a format has names of its own")
        options = format_options(batch_format, kind, options, parts)
    source = Source(parts, filter_meta=filter_meta, episodes=episodes)
    description = KINDS[kind](source, **{name: options.pop(name) for name in OF_KIND[kind] & options.keys()})
    return ReplayDataset(source, description, only=only, **options)


def make_loader(
    buffer: HasSnapshots,
    kind: str,
    batch_size: int,
    *,
    filter_meta: Mapping[str, Condition] | None = None,
    episodes: Episodes | None = None,
    to_named_tuple: Sequence[str] | None = None,
    batch_format: Formatted | None = None,
    **options: Any,
) -> ReplayLoader:
    """The loader of one kind: dataset options go to the dataset, all others to :class:`ReplayLoader`."""
    known = set().union(*(dataset_options(other) for other in KINDS))
    chosen = {name: options.pop(name) for name in list(options) if name in known}
    only = to_named_tuple
    if only is not None and options.get("sampler") is not None:
        only = [name for name in only if name not in PRIORITIZED_ENTRIES]
    make = partial(
        make_dataset, kind=kind, filter_meta=filter_meta, episodes=episodes, only=only, batch_format=batch_format
    )
    dataset = make(buffer.snapshots(), **chosen)
    if dataset.normalized is not None:  # statistics are taken once, not of each snapshot anew
        chosen["normalize"] = dataset.normalized
    remake: Callable[[Sequence[Snapshot]], ReplayDataset] = partial(make, **chosen)
    return ReplayLoader(dataset, batch_size, to_named_tuple=to_named_tuple, remake=remake, **options)


def trajectory_loader(buffer: HasSnapshots, batch_size: int, **options: Any) -> ReplayLoader:
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


def timestep_loader(buffer: HasSnapshots, batch_size: int, **options: Any) -> ReplayLoader:
    """Batches of single transitions.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        batch_size: transitions a batch.
        options: ``fields`` (names), ``filter_fields`` (conditions on scalar fields), ``return_indices`` (adds
            ``_indices``, int64 ``(batch, 2)``: episode and step), ``goal_sampler``, and
            those of :meth:`ReplayBuffer.dataloader`.

    Returns:
        A loader of dicts: each field and meta field ``(batch, *field.shape)``.
    """
    return make_loader(buffer, "timestep", batch_size, **options)


def n_step_loader(buffer: HasSnapshots, batch_size: int, n_steps: int = 1, **options: Any) -> ReplayLoader:
    """Batches of n-step transitions.

    A sample is a step t. ``n_step_lens`` is m = min(n, steps left in the episode); ``next_<field>`` is the row
    t + m, ``seq_<field>`` the rows t .. t + m - 1 followed by zeros.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        batch_size: samples a batch.
        n_steps: n.
        options: ``current_fields`` (default: all), ``next_fields`` (default: the state fields, or all where there are
            none), ``sequence_fields`` (default: none), ``discount`` (adds ``n_step_return`` and ``n_step_discount``,
            from the fields ``reward_field="reward"`` and ``terminated_field="terminated"``), ``goal_sampler``,
            ``filter_fields``, ``return_indices``, and those of :meth:`ReplayBuffer.dataloader`.

    Returns:
        A loader of dicts: fields and ``next_`` fields ``(batch, *field.shape)``, ``seq_`` fields
        ``(batch, n, *field.shape)``, ``n_step_lens`` int64 ``(batch,)``. Next fields that are no state fields come
        with ``next_<field>_is_pad``, bool ``(batch,)``: True where t + m is T, of which only the state is recorded.
        With ``discount=g``, ``n_step_return`` is the sum of ``g**k * reward[t + k]`` over the m steps, and
        ``n_step_discount`` is ``g**m``, or 0 where one of them terminated: the target is ``n_step_return +
        n_step_discount * value(next_observation)``. Truncation leaves it as it is. Both are ``(batch,)``, also where
        the field's shape is (1,); of a vector of k rewards they are ``(batch, k)`` and ``(batch, 1)``.
    """
    return make_loader(buffer, "n_step", batch_size, n_steps=n_steps, **options)


def window_loader(
    buffer: HasSnapshots,
    batch_size: int,
    *,
    length: int | None = None,
    offsets: Mapping[str, Iterable[int]] | None = None,
    fields: Sequence[str] | None = None,
    stride: int = 1,
    boundary: str | tuple[str, str] = "edge",
    **options: Any,
) -> ReplayLoader:
    """Batches of windows: each field at offsets of its own around a step.

    A sample is a step t of an episode of T transitions. The field's row at an offset is t + offset: state fields have
    the rows 0 .. T (T-1 where the last observation is missing), others 0 .. T-1.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        batch_size: samples a batch.
        length: the offsets ``0 .. length - 1`` for all fields without offsets of their own.
        offsets: of single fields, in the order in which they are delivered: ``{"observation": (-1, 0), "action":
            range(16)}``.
        fields: which others come along: in the window of ``length``, or without it at the step itself, with no time
            axis. None for all.
        stride: steps from one sample of an episode to the next.
        boundary: what is done about rows that do not exist. ``"edge"`` repeats the nearest one that does, ``"zero"``
            gives zeros, ``"drop"`` leaves out the steps that need one: samples then begin at the first step that fits.
            Two of them are for rows before the episode and for rows after it: ``("edge", "drop")``.
        options: ``filter_fields``, ``return_indices``, ``goal_sampler``, and those of
            :meth:`ReplayBuffer.dataloader`.

    Returns:
        A loader of dicts: fields with offsets ``(batch, time, *field.shape)`` and ``<field>_is_pad``, bool
        ``(batch, time)``, True where the row does not exist; other fields ``(batch, *field.shape)``.

    Example:
        >>> stack = {"observation": (-3, -2, -1, 0)}  # as FrameStackObservation, of frames that are stored once
        >>> loader = window_loader(buffer, 256, offsets=stack, shuffle=True)  # doctest: +SKIP
        >>> chunks = {"observation": (-1, 0), "action": range(16)}  # two observations and 16 actions
        >>> loader = window_loader(buffer, 256, offsets=chunks, fields=(), shuffle=True)  # doctest: +SKIP
    """
    options |= {"length": length, "offsets": offsets, "fields": fields, "stride": stride, "boundary": boundary}
    return make_loader(buffer, "window", batch_size, **options)


def crop_loader(buffer: HasSnapshots, batch_size: int, crop: int | tuple[int, int], **options: Any) -> ReplayLoader:
    """Batches of stretches of episodes, of random place and length, drawn anew in each epoch.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        batch_size: crops a batch.
        crop: how many transitions, or the least and the most; each number in between is as likely.
        options: ``burn_in`` (so many transitions before the crop come too, as far as the episode has them),
            ``stride`` (default: one sample for each episode, placed uniformly where it fits, or the whole episode
            where that is shorter; with a stride of s, one sample for each s steps, that begins at one of them and is
            cut at the episode's end), ``pad`` (``"right"``, or ``"left"``), ``fields``, ``next_fields`` (state fields
            one row later), ``return_indices`` (adds ``_indices``, int64 ``(batch, 2)``: episode, and the crop's first
            step after the burn-in), and those of :meth:`ReplayBuffer.dataloader`.

    Returns:
        A loader of dicts: each field ``(batch, burn_in + most, *field.shape)``, padded with zeros; ``_mask``, bool
        ``(batch, time)``, True where there is a transition; ``_burn_in_mask`` of the same shape, where ``burn_in`` is
        not 0, True where it leads up to the crop; ``_lens``, int64 ``(batch,)``, the transitions of both.
    """
    return make_loader(buffer, "crop", batch_size, crop=crop, **options)

"""The loaders: five functions, one for each kind of sample, and what they and ``buffer.dataloader`` share."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields as fields_of
from functools import partial
from typing import Any, Literal

from typing_extensions import Unpack

from gym_replay.buffer.loading.datasets import ReplayDataset
from gym_replay.buffer.loading.epochs import EpochDataset, EpochSampler
from gym_replay.buffer.loading.formats import Formatted, checked_format
from gym_replay.buffer.loading.goals import GoalSampler
from gym_replay.buffer.loading.options import (
    OF_DATASETS,
    OF_LOADERS,
    OF_TORCH,
    REFUSED,
    LoaderOptions,
    check_torch_options,
)
from gym_replay.buffer.loading.ordering import OrderOptions
from gym_replay.buffer.loading.replay_loader import ReplayLoader
from gym_replay.buffer.loading.samples import Boundaries, Description, Names, crop, n_step, timestep, trajectory, window
from gym_replay.buffer.loading.source import Source
from gym_replay.buffer.storage.reader import HasSnapshots, Snapshot, snapshots_of
from gym_replay.errors import FieldError
from gym_replay.notices import did_you_mean

KINDS: dict[str, Callable[..., Description]] = {
    "trajectory": trajectory,
    "timestep": timestep,
    "n_step": n_step,
    "window": window,
    "crop": crop,
}
OF_KIND = {kind: frozenset(inspect.signature(describe).parameters) - {"source"} for kind, describe in KINDS.items()}
"""The keywords of each kind of sample."""

_OF_ORDER = frozenset(field.name for field in fields_of(OrderOptions))
_OF_DATALOADER = ("timestep_level", "n_steps")
_ASKED_FOR = {
    "trajectory": "none of timestep_level, n_steps, length, offsets and crop",
    "timestep": "timestep_level=True",
    "n_step": "n_steps=...",
    "window": "length=... or offsets=...",
    "crop": "crop=...",
}
"""With which keyword of ``dataloader`` each kind of loading is asked for."""

_OF_PRIORITIES = ("_samples", "_weights")


def _check_options(kind: str, options: Iterable[str], others: Collection[str]) -> None:
    """Refuse what is no keyword of this kind of loading, and none of ``others``.

    Raises:
        FieldError: a keyword belongs to another kind.
        TypeError: there is no such keyword; the message names the nearest.
    """
    known = [*sorted(OF_KIND[kind]), *sorted(others)]
    for name in options:
        if name in known:
            continue
        if kind == "n_step" and name == "fields":
            raise FieldError(
                "fields: n-step loading takes current_fields, next_fields and sequence_fields; what other loaders call "
                "fields is current_fields here"
            )
        if owners := [other for other in KINDS if name in OF_KIND[other]]:
            asked = " or ".join(_ASKED_FOR[other] for other in owners)
            raise FieldError(
                f"{name} goes with {' and '.join(owners)} loading, not with {kind} loading, which was asked for; "
                f"dataloader takes {asked} for that"
            )
        if name in _OF_DATALOADER:
            raise TypeError(
                f"{name} is a keyword of dataloader; timestep_loader and n_step_loader have it in their name"
            )
        near = did_you_mean(name, [*_OF_DATALOADER, *known])
        raise TypeError(f"unexpected keyword {name!r} of {kind} loading{near}")


def make_dataset(
    parts: Sequence[Snapshot],
    kind: str,
    *,
    batch_format: Formatted | None = None,
    only: Sequence[str] | None = None,
    open_source: Callable[[Sequence[Snapshot]], Source] | None = None,
    **options: Any,
) -> ReplayDataset:
    """The dataset of one kind over snapshots, or over what ``open_source`` gives instead.

    Raises:
        FieldError: an option belongs to another kind.
        EmptyBufferError: there is no sample.
    """
    _check_options(kind, options, OF_DATASETS)
    options["only"] = only
    if batch_format is not None:
        batch_format, options = checked_format(batch_format, kind, options, parts[0].metadata.fields)
    describe = partial(KINDS[kind], **{name: options.pop(name) for name in OF_KIND[kind] & options.keys()})
    return ReplayDataset(parts, describe, batch_format=batch_format, open_source=open_source, **options)


def make_loader(kind: str, given: Mapping[str, Any], *, may_be_empty: bool = False) -> ReplayLoader:
    """The loader of one kind of sample.

    Args:
        kind: of sample.
        given: the arguments of the function that is named after it, ``buffer``, ``batch_size`` and ``options`` among
            them.
        may_be_empty: whether the caller looks for itself whether there is a batch; otherwise there is a warning.

    Raises:
        FieldError: an option belongs to another kind, has a value that there is not, or does not go with another.
        TypeError: there is no such option.
        EmptyBufferError: there is no sample.
    """
    _check_options(kind, given["options"], OF_LOADERS | REFUSED.keys())
    asked = {**given, **given["options"]}
    buffer, batch_size, _ = (asked.pop(name) for name in ("buffer", "batch_size", "options"))
    options = {name: value for name, value in asked.items() if value is not None}  # as good as not given
    order = OrderOptions(batch_size, **{name: options.pop(name) for name in _OF_ORDER & options.keys()})
    torch_options = {name: options.pop(name) for name in (OF_TORCH | REFUSED.keys()) & options.keys()}
    torch_options = check_torch_options(torch_options)
    device, only = options.pop("device", None), options.pop("to_named_tuple", None)
    gathered = only if only is None or order.sampler is None else [n for n in only if n not in _OF_PRIORITIES]
    dataset = make_dataset(snapshots_of(buffer), kind, only=gathered, **options)
    if order.refresh is not None and order.sampler is not None and len(dataset.source.parts) > 1:
        raise FieldError("sampler: with refresh, it follows one buffer; make a loader for each")
    sampler = EpochSampler(dataset, order, torch_options.get("generator"))
    if order.drop_last and not may_be_empty and not len(sampler.of_this_rank()):  # without, a rank may have none of few
        _warn_of_nothing(len(dataset), batch_size, order.ranks().world_size)
    rows, at_random = dataset.source.rows, order.shuffle or order.replacement
    if order.shuffle == "block" or (at_random and not rows.fit_into_memory(dataset.entries.read_fields)):
        rows.without_read_ahead()
    return ReplayLoader(EpochDataset(dataset, sampler, only), device=device, **torch_options)


def _warn_of_nothing(samples: int, batch_size: int, ranks: int) -> None:
    shared = f" on each of {ranks} ranks" if ranks > 1 else ""
    warnings.warn(
        f"an epoch has no batch: drop_last=True, and there are {samples} samples for batches of {batch_size}{shared}; "
        "pass a smaller batch_size or drop_last=False",
        stacklevel=4,
    )


def trajectory_loader(
    buffer: HasSnapshots,
    batch_size: int,
    *,
    fields: Names = None,
    next_fields: Names = None,
    return_mask: bool = False,
    return_indices: bool = False,
    return_episode_lens: bool = True,
    slice_by_episode_len: bool = True,
    **options: Unpack[LoaderOptions],
) -> ReplayLoader:
    """Batches of whole episodes, padded with zeros to the longest of each batch.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        batch_size: episodes a batch.
        fields: names; of state fields the rows 0..T-1 come. None for all.
        next_fields: names of state fields, of which the rows 1..T come as ``next_<field>``.
        return_mask: add ``_mask``, bool ``(batch, time)``, True where valid.
        return_indices: add ``_index``, int64 ``(batch,)``: the episode.
        return_episode_lens: add ``_lens``, int64 ``(batch,)``.
        slice_by_episode_len: False pads every batch to ``max_timesteps``.
        options: see :class:`~gym_replay.buffer.loading.options.LoaderOptions`.

    Returns:
        A loader of dicts: each field ``(batch, time, *field.shape)``, each meta field ``(batch, *field.shape)``.

    Example:
        >>> batch = next(iter(trajectory_loader(buffer, 8, return_mask=True, shuffle=True, seed=0)))
        >>> batch["observation"].shape, batch["_mask"].shape, batch["_lens"].shape
        (torch.Size([8, 20, 4]), torch.Size([8, 20]), torch.Size([8]))
    """
    return make_loader("trajectory", locals())


def timestep_loader(
    buffer: HasSnapshots,
    batch_size: int,
    *,
    fields: Names = None,
    goal_sampler: GoalSampler | None = None,
    return_indices: bool = False,
    **options: Unpack[LoaderOptions],
) -> ReplayLoader:
    """Batches of single transitions.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        batch_size: transitions a batch.
        fields: names; None for all.
        goal_sampler: adds goals, see :class:`~gym_replay.GoalSampler`.
        return_indices: add ``_indices``, int64 ``(batch, 2)``: episode and step.
        options: see :class:`~gym_replay.buffer.loading.options.LoaderOptions`.

    Returns:
        A loader of dicts: each field and meta field ``(batch, *field.shape)``.

    Example:
        >>> loader = timestep_loader(buffer, 32, fields=("observation", "action"), shuffle=True)
        >>> len(loader), next(iter(loader))["observation"].shape
        (5, torch.Size([32, 4]))
    """
    return make_loader("timestep", locals())


def n_step_loader(
    buffer: HasSnapshots,
    batch_size: int,
    n_steps: int = 1,
    *,
    current_fields: Names = None,
    next_fields: Names = None,
    sequence_fields: Names = None,
    discount: float | None = None,
    reward_field: str = "reward",
    terminated_field: str = "terminated",
    goal_sampler: GoalSampler | None = None,
    return_indices: bool = False,
    **options: Unpack[LoaderOptions],
) -> ReplayLoader:
    """Batches of n-step transitions.

    A sample is a step t. ``n_step_lens`` is m = min(n, steps left in the episode); ``next_<field>`` is the row
    t + m, ``seq_<field>`` the rows t .. t + m - 1 followed by zeros.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        batch_size: samples a batch.
        n_steps: n.
        current_fields: names of fields at t; None for all.
        next_fields: names of fields at t + m; None for the state fields, or all where there are none.
        sequence_fields: names of fields at all of the steps; None for none.
        discount: adds ``n_step_return`` and ``n_step_discount``.
        reward_field, terminated_field: what these are computed from.
        goal_sampler: adds goals, see :class:`~gym_replay.GoalSampler`.
        return_indices: add ``_indices``, int64 ``(batch, 2)``: episode and step.
        options: see :class:`~gym_replay.buffer.loading.options.LoaderOptions`.

    Returns:
        A loader of dicts: fields and ``next_`` fields ``(batch, *field.shape)``, ``seq_`` fields
        ``(batch, n, *field.shape)``, ``n_step_lens`` int64 ``(batch,)``. Next fields that are no state fields come
        with ``next_<field>_is_pad``, bool ``(batch,)``: True where t + m is T, of which only the state is recorded.
        With ``discount=g``, ``n_step_return`` is the sum of ``g**k * reward[t + k]`` over the m steps, and
        ``n_step_discount`` is ``g**m``, or 0 where one of them terminated: the target is ``n_step_return +
        n_step_discount * value(next_observation)``. Truncation leaves it as it is. Both are ``(batch,)``, also where
        the field's shape is (1,); of a vector of k rewards they are ``(batch, k)`` and ``(batch, 1)``.

    Example:
        >>> batch = next(iter(n_step_loader(buffer, 32, n_steps=3, discount=0.99, shuffle=True)))
        >>> batch["next_observation"].shape, batch["n_step_return"].shape
        (torch.Size([32, 4]), torch.Size([32]))
    """
    return make_loader("n_step", locals())


def window_loader(
    buffer: HasSnapshots,
    batch_size: int,
    *,
    length: int | None = None,
    offsets: Mapping[str, Iterable[int]] | None = None,
    fields: Names = None,
    stride: int = 1,
    boundary: Boundaries | tuple[Boundaries, Boundaries] = "edge",
    goal_sampler: GoalSampler | None = None,
    return_indices: bool = False,
    **options: Unpack[LoaderOptions],
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
        goal_sampler: adds goals, see :class:`~gym_replay.GoalSampler`.
        return_indices: add ``_indices``, int64 ``(batch, 2)``: episode and step.
        options: see :class:`~gym_replay.buffer.loading.options.LoaderOptions`.

    Returns:
        A loader of dicts: fields with offsets ``(batch, time, *field.shape)`` and ``<field>_is_pad``, bool
        ``(batch, time)``, True where the row does not exist; other fields ``(batch, *field.shape)``.

    Example:
        >>> stack = {"observation": (-3, -2, -1, 0)}  # as FrameStackObservation, of frames that are stored once
        >>> next(iter(window_loader(buffer, 32, offsets=stack, shuffle=True)))["observation"].shape
        torch.Size([32, 4, 4])
        >>> chunks = {"observation": (-1, 0), "action": range(16)}  # two observations and 16 actions
        >>> next(iter(window_loader(buffer, 32, offsets=chunks, fields=(), shuffle=True)))["action"].shape
        torch.Size([32, 16])
    """
    return make_loader("window", locals())


def crop_loader(
    buffer: HasSnapshots,
    batch_size: int,
    crop: int | tuple[int, int],
    *,
    burn_in: int = 0,
    stride: int | None = None,
    pad: Literal["right", "left"] | None = None,
    fields: Names = None,
    next_fields: Names = None,
    return_indices: bool = False,
    **options: Unpack[LoaderOptions],
) -> ReplayLoader:
    """Batches of stretches of episodes, of random place and length, drawn anew in each epoch.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        batch_size: crops a batch.
        crop: how many transitions, or the least and the most; each number in between is as likely.
        burn_in: so many transitions before the crop come too, as far as the episode has them.
        stride: None for one sample of each episode, placed uniformly where it fits, or the whole episode where that is
            shorter. With a stride of s, one sample for each s steps, that begins at one of them and is cut at the
            episode's end.
        pad: the side of the padding; None for ``"right"``, or what a ``batch_format`` has.
        fields: names; None for all.
        next_fields: names of state fields, which come one row later as ``next_<field>``.
        return_indices: add ``_indices``, int64 ``(batch, 2)``: episode, and the crop's first step after the burn-in.
        options: see :class:`~gym_replay.buffer.loading.options.LoaderOptions`.

    Returns:
        A loader of dicts: each field ``(batch, burn_in + most, *field.shape)``, padded with zeros; ``_mask``, bool
        ``(batch, time)``, True where there is a transition; ``_burn_in_mask`` of the same shape, where ``burn_in`` is
        not 0, True where it leads up to the crop; ``_lens``, int64 ``(batch,)``, the transitions of both.

    Example:
        >>> batch = next(iter(crop_loader(buffer, 4, crop=(5, 10), burn_in=2, shuffle=True)))
        >>> batch["observation"].shape, batch["_burn_in_mask"].shape
        (torch.Size([4, 12, 4]), torch.Size([4, 12]))
    """
    return make_loader("crop", locals())

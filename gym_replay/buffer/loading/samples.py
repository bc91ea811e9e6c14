"""What one sample is: an anchor step, and for each entry of the batch a field and where its rows are around the anchor.

Each kind of sample is a function that makes such a description; :class:`~gym_replay.buffer.loading.datasets
.ReplayDataset` serves them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from gym_replay.buffer.loading.goals import GoalSampler
from gym_replay.buffer.loading.plans import (
    DROP,
    EDGE,
    ZERO,
    Anchors,
    Crops,
    Fill,
    Stretch,
    draw_crops,
    n_step_lengths,
    scale,
)
from gym_replay.buffer.loading.relative_rows import BatchSamples, RelativeRows
from gym_replay.buffer.loading.source import Source
from gym_replay.errors import FieldError
from gym_replay.notices import did_you_mean
from gym_replay.schema.arguments import checked_integer, checked_number
from gym_replay.schema.arrays import Array, Bools, Floats, Ints

_FARTHEST = 1 << 40

Boundaries: TypeAlias = Literal["edge", "zero", "drop"]
Names: TypeAlias = "Sequence[str] | None"


Computed: TypeAlias = Callable[[BatchSamples], Array]
"""An entry that is no field."""


@dataclass(frozen=True)
class Description:
    """What one sample is.

    Attributes:
        anchors: the steps that are samples.
        entries: of the batch, by name: a field, and its rows around the anchor.
        computed: entries that are no fields, as functions of the samples asked for.
        named: the names that the user gave, whose meta fields come along.
        no_filter: why ``filter_fields`` cannot choose among the anchors; None where it can.
        is_divisible: whether a batch of some samples is a part of the batch of more.
    """

    anchors: Anchors
    entries: dict[str, tuple[str, RelativeRows]]
    computed: dict[str, Computed] = field(default_factory=dict)
    named: Sequence[str] = ()
    no_filter: str | None = None
    is_divisible: bool = True


# --- where rows may be read ---


def _in_episode(batch: BatchSamples, low: int | None, last: Ints | None) -> Stretch:
    """From the first row of the episode, or the last one, on; None where no offset leads there."""
    episodes = batch.samples.episodes
    return Stretch(episodes, batch.samples.steps, low, None if last is None else last.take(episodes))


def _to_next(batch: BatchSamples, before: int = 0) -> Stretch:
    """Up to the last row that is next to a sample, or so many before it."""
    samples = batch.samples
    return Stretch(samples.episodes, samples.steps, None, samples.steps + (samples.left - before))


def _n_steps_later(batch: BatchSamples, n_steps: int) -> Stretch:
    """The row n steps later, where it has a transition."""
    episodes = batch.samples.episodes
    steps = batch.samples.steps + n_step_lengths(batch.samples, n_steps)
    return Stretch(episodes, steps, None, batch.source.lengths.take(episodes) - 1)


def _whole(batch: BatchSamples, shift: int = 0) -> Stretch:
    """The T rows of an episode, from its first or its second one on."""
    episodes = batch.samples.episodes
    return Stretch(episodes, np.full(len(episodes), shift), None, batch.source.lengths.take(episodes) - 1 + shift)


def _cropped(batch: BatchSamples, draw: Callable[[BatchSamples], Crops], pad_left: bool, shift: int = 0) -> Stretch:
    """A random stretch of the episode; the step is its first one, or with the padding on the left the one after it."""
    first, counts, _ = batch.once(draw)
    low, high = first + shift, first + shift + counts - 1
    return Stretch(batch.samples.episodes, high + 1 if pad_left else low, low, high)


def _crops(batch: BatchSamples, **sizes: Any) -> Crops:
    samples = batch.samples
    return draw_crops(samples.steps, batch.source.lengths.take(samples.episodes), batch.draws(2), **sizes)


def _goal_chances(batch: BatchSamples) -> Floats:
    """Three numbers from [0, 1) for each mixture."""
    return batch.draws(6)


def _goals(batch: BatchSamples, sampler: GoalSampler, kind: str, everything: Anchors) -> Stretch:
    """The rows of the goals of a mixture: of the same episode, or of any transition of the selected ones."""
    source, episodes, steps = batch.source, batch.samples.episodes, batch.samples.steps
    first = {"value": 0, "policy": 3}[kind]
    chances = batch.once(_goal_chances)[first : first + 3]
    own, is_random = sampler.mixtures[kind].rows(steps, source.last_rows[episodes], chances[:2])
    if not is_random.any():
        return Stretch(episodes, own)
    anywhere = scale(chances[2], np.full(len(steps), len(everything), np.int64))
    others = everything.find(source.replace_evicted(anywhere, everything))
    batch.others.append(others.episodes[is_random])
    return Stretch(np.where(is_random, others.episodes, episodes), np.where(is_random, others.steps, own))


# --- entries that are no fields ---


def _n_step_lens(batch: BatchSamples, n_steps: int) -> Ints:
    return n_step_lengths(batch.samples, n_steps)


def _n_step_return(batch: BatchSamples, ahead: RelativeRows, reward: str, discount: float) -> Array:
    taken = batch.source.rows.take(reward, batch.once(ahead).rows)
    rewards = taken.astype(np.float64)
    rewards[~_exists(batch, ahead)] = 0
    weights = discount ** np.arange(rewards.shape[1], dtype=np.float64)
    summed = np.tensordot(weights, rewards, axes=(0, 1)).reshape(len(taken), *_reward_shape(batch.source, reward))
    return summed.astype(taken.dtype if taken.dtype.kind == "f" else np.float64)


def _n_step_discount(batch: BatchSamples, ahead: RelativeRows, reward: str, terminated: str, discount: float) -> Array:
    exists = _exists(batch, ahead)
    ended = batch.source.rows.take(terminated, batch.once(ahead).rows).reshape(exists.shape).astype(np.bool_) & exists
    discounts = np.where(ended.any(axis=1), 0.0, discount ** exists.sum(axis=1))
    return discounts.reshape(len(discounts), *[1] * len(_reward_shape(batch.source, reward)))


def _reward_shape(source: Source, reward: str) -> tuple[int, ...]:
    shape = source.fields[reward].shape
    return () if math.prod(shape) == 1 else shape  # (batch, 1) beside (batch,) would be broadcast


def _exists(batch: BatchSamples, rows: RelativeRows) -> Bools:
    """A mask in memory of its own: True where the row exists."""
    located = batch.once(rows)
    return np.ones(located.shape, np.bool_) if located.exists is None else located.exists.copy()


def _is_pad(batch: BatchSamples, rows: RelativeRows) -> Bools:
    located = batch.once(rows)
    return np.zeros(located.shape, np.bool_) if located.exists is None else ~located.exists


def _is_burn_in(batch: BatchSamples, rows: RelativeRows, draw: Callable[[BatchSamples], Crops]) -> Bools:
    drawn = batch.once(draw)
    begin = batch.source.starts[batch.samples.episodes] + drawn.first + drawn.burn_in
    found: Bools = batch.once(rows).rows < begin[:, None]
    return found & _exists(batch, rows)


def _crop_lens(batch: BatchSamples, draw: Callable[[BatchSamples], Crops]) -> Ints:
    return batch.once(draw).counts


def _crop_indices(batch: BatchSamples, draw: Callable[[BatchSamples], Crops]) -> Ints:
    drawn = batch.once(draw)
    return np.stack((_index(batch), drawn.first + drawn.burn_in), axis=1)


def _lens(batch: BatchSamples) -> Ints:
    lengths: Ints = batch.source.lengths[batch.samples.episodes]
    return lengths


def _index(batch: BatchSamples) -> Ints:
    return batch.source.index[batch.samples.episodes]


def _indices(batch: BatchSamples) -> Ints:
    return np.stack((_index(batch), batch.samples.steps), axis=1)


def _relabelled(batch: BatchSamples, goals: Callable[[BatchSamples], Stretch], sampler: GoalSampler) -> list[Array]:
    """Rewards and masks of the goals of the value function."""
    samples, found = batch.samples, batch.once(goals)
    return sampler.relabelled(batch.source, samples.episodes, samples.steps, (found.episodes, found.steps))


def _one_of(batch: BatchSamples, several: Callable[[BatchSamples], list[Array]], index: int) -> Array:
    return batch.once(several)[index]


# --- the kinds of samples ---


def timestep(
    source: Source,
    *,
    fields: Names = None,
    goal_sampler: GoalSampler | None = None,
    return_indices: bool = False,
) -> Description:
    """One transition a sample: the row of its step."""
    here = RelativeRows(0)
    entries = {name: (name, here) for name in checked_names(source, "fields", fields, source.fields)}
    anchors = Anchors.of(source.starts, source.lengths)
    return _of_steps(source, anchors, entries, {}, fields or (), goal_sampler, return_indices)


def n_step(
    source: Source,
    *,
    n_steps: int = 1,
    current_fields: Names = None,
    next_fields: Names = None,
    sequence_fields: Names = None,
    discount: float | None = None,
    reward_field: str = "reward",
    terminated_field: str = "terminated",
    goal_sampler: GoalSampler | None = None,
    return_indices: bool = False,
) -> Description:
    """One step t a sample, with what holds n steps later, or at the episode's end where that comes first."""
    n_steps = checked_integer("n_steps", n_steps, 1)
    states = [name for name, info in source.fields.items() if info.state]
    following = checked_names(source, "next_fields", next_fields, states or source.fields)
    # In a schema without state fields the last transition is no sample, so every next row exists.
    partial_fields = [name for name in following if states and name not in states]
    here, ahead = RelativeRows(0), RelativeRows(np.arange(n_steps), partial(_to_next, before=1))
    later = RelativeRows(1) if n_steps == 1 else RelativeRows(n_steps, _to_next, (EDGE, EDGE))
    not_at_the_end = RelativeRows(0, partial(_n_steps_later, n_steps=n_steps))
    entries = {name: (name, here) for name in checked_names(source, "current_fields", current_fields, source.fields)}
    entries |= {f"next_{name}": (name, not_at_the_end if name in partial_fields else later) for name in following}
    sequence = checked_names(source, "sequence_fields", sequence_fields, ())
    entries |= {f"seq_{name}": (name, ahead) for name in sequence}
    computed: dict[str, Computed] = {
        f"next_{name}_is_pad": partial(_is_pad, rows=not_at_the_end) for name in partial_fields
    }
    computed["n_step_lens"] = partial(_n_step_lens, n_steps=n_steps)
    if discount is not None:
        discount = checked_number("discount", discount, 1)
        _check_discounted(source, reward_field, terminated_field)
        source.require_up_to_date((reward_field, terminated_field))
        rewards: dict[str, Any] = {"ahead": ahead, "reward": reward_field, "discount": discount}
        computed["n_step_return"] = partial(_n_step_return, **rewards)
        computed["n_step_discount"] = partial(_n_step_discount, terminated=terminated_field, **rewards)
    named = (*(current_fields or ()), *(next_fields or ()), *(sequence_fields or ()))
    anchors = Anchors.of(source.starts, source.last_rows)
    return _of_steps(source, anchors, entries, computed, named, goal_sampler, return_indices)


def window(
    source: Source,
    *,
    length: int | None = None,
    offsets: Mapping[str, Iterable[int]] | None = None,
    fields: Names = None,
    stride: int = 1,
    boundary: Boundaries | tuple[Boundaries, Boundaries] = "edge",
    goal_sampler: GoalSampler | None = None,
    return_indices: bool = False,
) -> Description:
    """One step a sample, with fields at offsets around it; ``fields`` without offsets are at the step itself."""
    if length is None and not offsets:
        raise FieldError("windows need length=..., or offsets={field: offsets} of at least one field")
    before, after = _checked_boundary(boundary)
    own = _checked_offsets(source, offsets or {})
    named = [*own, *(name for name in fields or () if name not in own)]
    alone = checked_names(source, "fields", fields, source.fields)
    if length is not None:
        whole = np.arange(checked_integer("length", length, 1, _FARTHEST), dtype=np.int64)
        own, alone = dict.fromkeys(alone, whole) | own, []
    last = {True: source.last_rows, False: source.lengths - 1}
    first_step, last_step = np.zeros_like(source.lengths), source.lengths - 1
    known: dict[tuple[bytes, bool], RelativeRows] = {}  # what fields share is located once
    around: dict[str, RelativeRows] = {}
    for name, chosen in own.items():
        state = source.fields[name].state
        low = 0 if before != DROP and chosen.min() < 0 else None
        high = last[state] if after != DROP and chosen.max() > 0 else None
        rows = RelativeRows(chosen, partial(_in_episode, low=low, last=high), (before, after))
        around[name] = known.setdefault((chosen.tobytes(), state), rows)
        if before == DROP:
            first_step = np.maximum(first_step, -chosen.min())
        if after == DROP:
            last_step = np.minimum(last_step, last[state] - chosen.max())
    anchors = Anchors.strided(source.starts, first_step, last_step, checked_integer("stride", stride, 1, _FARTHEST))
    here = RelativeRows(0)
    entries = {name: (name, around.get(name, here)) for name in source.fields if name in own or name in alone}
    computed: dict[str, Computed] = {f"{name}_is_pad": partial(_is_pad, rows=around[name]) for name in own}
    return _of_steps(source, anchors, entries, computed, named, goal_sampler, return_indices)


def trajectory(
    source: Source,
    *,
    fields: Names = None,
    next_fields: Names = None,
    return_mask: bool = False,
    return_indices: bool = False,
    return_episode_lens: bool = True,
    slice_by_episode_len: bool = True,
) -> Description:
    """One whole episode a sample, padded with zeros to the longest of its batch."""
    if not slice_by_episode_len and not return_episode_lens:
        raise FieldError("slice_by_episode_len=False pads every batch, so it needs return_episode_lens=True")
    offsets = None if slice_by_episode_len else np.arange(source.max_timesteps or int(source.lengths.max()))
    whole = RelativeRows(offsets, _whole)
    computed: dict[str, Computed] = {"_lens": _lens, "_mask": partial(_exists, rows=whole), "_index": _index}
    wanted = {"_lens": return_episode_lens, "_mask": return_mask, "_index": return_indices}
    return Description(
        Anchors.of(source.starts, np.ones_like(source.lengths)),
        _stretch_entries(source, whole, RelativeRows(offsets, partial(_whole, shift=1)), fields, next_fields),
        {name: entry for name, entry in computed.items() if wanted[name]},
        (*(fields or ()), *(next_fields or ())),
        no_filter="filter_fields chooses steps; for whole trajectories use filter_meta",
        is_divisible=False,
    )


def crop(
    source: Source,
    *,
    crop: int | Sequence[int],
    burn_in: int = 0,
    stride: int | None = None,
    pad: Literal["right", "left"] = "right",
    fields: Names = None,
    next_fields: Names = None,
    return_indices: bool = False,
) -> Description:
    """A stretch of random first step and length a sample, drawn anew in each epoch, padded to one width."""
    shortest, longest = _checked_crop(crop)
    burn_in = checked_integer("burn_in", burn_in, 0, _FARTHEST)
    stride = None if stride is None else checked_integer("stride", stride, 1, _FARTHEST)
    if pad not in ("right", "left"):
        raise FieldError(f"pad={pad!r}: expected 'right' or 'left'")
    draw = partial(_crops, shortest=shortest, longest=longest, burn_in=burn_in, stride=stride)
    stretch = partial(_cropped, draw=draw, pad_left=pad == "left")
    offsets = np.arange(burn_in + longest) - (burn_in + longest if pad == "left" else 0)
    rows = RelativeRows(offsets, stretch)
    computed: dict[str, Computed] = {"_mask": partial(_exists, rows=rows)}
    if burn_in:
        computed["_burn_in_mask"] = partial(_is_burn_in, rows=rows, draw=draw)
    computed["_lens"] = partial(_crop_lens, draw=draw)
    if return_indices:
        computed["_indices"] = partial(_crop_indices, draw=draw)
    starts, lengths = source.starts, source.lengths
    return Description(
        Anchors.of(starts, np.ones_like(lengths))
        if stride is None
        else Anchors.strided(starts, np.zeros_like(lengths), lengths - 1, stride),
        _stretch_entries(source, rows, RelativeRows(offsets, partial(stretch, shift=1)), fields, next_fields),
        computed,
        (*(fields or ()), *(next_fields or ())),
        no_filter=None if stride == 1 else "filter_fields chooses steps; crops begin at chosen ones with stride=1 only",
        is_divisible=False,
    )


def _of_steps(
    source: Source,
    anchors: Anchors,
    entries: dict[str, tuple[str, RelativeRows]],
    computed: dict[str, Computed],
    named: Sequence[str],
    goal_sampler: GoalSampler | None,
    return_indices: bool,
) -> Description:
    """A description of samples that are steps, with their goals and indices."""
    if goal_sampler is not None:
        if not isinstance(goal_sampler, GoalSampler):
            raise FieldError(f"goal_sampler={goal_sampler!r}: expected a GoalSampler")
        states = [name for name, info in source.fields.items() if info.state]
        shown = checked_names(source, "GoalSampler.fields", goal_sampler.fields, states)
        if not shown or (wrong := [name for name in shown if name not in states]):
            which = f"{wrong[0]!r} is none" if shown else "there is none"
            raise FieldError(f"GoalSampler: expected state fields as goals, {which}; the state fields are {states}")
        everything = Anchors.of(source.starts, source.lengths)
        for kind in goal_sampler.mixtures:
            goals = partial(_goals, sampler=goal_sampler, kind=kind, everything=everything)
            goal = RelativeRows(0, goals)
            entries = entries | {f"{kind}_goal_{name}": (name, goal) for name in shown}
            if kind == "value":
                relabelled = partial(_relabelled, goals=goals, sampler=goal_sampler)
                computed = computed | {
                    name: partial(_one_of, several=relabelled, index=index)
                    for index, name in enumerate(("goal_reward", "goal_mask"))
                }
    if return_indices:
        computed = computed | {"_indices": _indices}
    return Description(anchors, entries, computed, named, is_divisible=goal_sampler is None)


def _stretch_entries(
    source: Source, rows: RelativeRows, after: RelativeRows, fields: Names, next_fields: Names
) -> dict[str, tuple[str, RelativeRows]]:
    following = checked_names(source, "next_fields", next_fields, ())
    if wrong := [name for name in following if not source.fields[name].state]:
        raise FieldError(f"next_fields: {wrong[0]!r} is no state field, so it has no row T")
    if following and not source.has_final.all():
        raise FieldError("next_fields: an episode lacks its last observation; leave such episodes out")
    current = checked_names(source, "fields", fields, source.fields)
    return {name: (name, rows) for name in current} | {f"next_{name}": (name, after) for name in following}


# --- arguments ---


def checked_names(source: Source, argument: str, names: Names, default: Iterable[str]) -> list[str]:
    """Those of the names that are fields.

    Raises:
        FieldError: one of them is neither a field nor a meta field.
    """
    if names is None:
        return list(default)
    if isinstance(names, str):
        raise FieldError(f"{argument}={names!r}: expected a sequence of names; write ({names!r},)")
    known = (*source.fields, *source.meta_fields)
    if unknown := [name for name in names if name not in known]:
        raise FieldError(f"{argument}: unknown field {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    return [name for name in names if name in source.fields]


def _check_discounted(source: Source, reward: str, terminated: str) -> None:
    fitting = [name for name, info in source.fields.items() if not info.ragged]
    flags = [name for name in fitting if source.fields[name].shape in ((), (1,))]
    for argument, name, known in (("reward_field", reward, fitting), ("terminated_field", terminated, flags)):
        if name not in known:
            raise FieldError(f"discount needs {argument}, one of {known}, got {name!r}")


def _checked_crop(crop: Any) -> tuple[int, int]:
    ends = (crop, crop) if isinstance(crop, (int, np.integer)) else crop
    if not isinstance(ends, Sequence) or isinstance(ends, str) or len(ends) != 2:
        raise FieldError(f"crop={crop!r}: expected a number of transitions, or the least and the most: (8, 32)")
    shortest, longest = (checked_integer("crop", end, 1, _FARTHEST) for end in ends)
    if shortest > longest:
        raise FieldError(f"crop={crop!r}: expected the least number of transitions before the most")
    return shortest, longest


def _checked_boundary(boundary: Any) -> tuple[Fill, Fill]:
    both = (boundary, boundary) if isinstance(boundary, str) else boundary
    kinds = (EDGE, ZERO, DROP)
    if not isinstance(both, (tuple, list)) or len(both) != 2 or any(one not in kinds for one in both):
        raise FieldError(f"boundary={boundary!r}: expected one of {kinds}, or two of them: (before, after)")
    return both[0], both[1]


def _checked_offsets(source: Source, offsets: Any) -> dict[str, Ints]:
    if not isinstance(offsets, Mapping):
        raise FieldError(f"offsets={offsets!r}: expected a dict from field names to offsets; length=... is for all")
    checked: dict[str, Ints] = {}
    for name, given in offsets.items():
        if name not in source.fields:
            raise FieldError(f"offsets: unknown field {name!r}{did_you_mean(name, source.fields)}")
        try:
            numbers = list(given)
        except TypeError:
            raise FieldError(
                f"offsets: {name!r}: expected several offsets, got {given!r}; write ({given!r},)"
            ) from None
        if not numbers:
            raise FieldError(f"offsets: {name!r}: expected at least one offset, got none; leave the field out")
        whole = [checked_integer(f"offsets of {name!r}", number, -_FARTHEST, _FARTHEST) for number in numbers]
        checked[name] = np.array(whole, np.int64)
    return checked

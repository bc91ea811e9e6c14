"""What one sample is: an anchor step, and for each entry of the batch a field and where its rows are around the anchor.

Each kind of sample is a function that makes such a description; :class:`~gym_replay.buffer.loading.datasets
.ReplayDataset` serves them all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from gym_replay.buffer.loading.gather import Array, Padded
from gym_replay.buffer.loading.goals import GoalSampler
from gym_replay.buffer.loading.plans import (
    DROP,
    EDGE,
    ZERO,
    Anchors,
    Bools,
    Boundary,
    Crops,
    FirstRows,
    Floats,
    Ints,
    Samples,
    Window,
    draw_crops,
    forward_rows,
    group_windows,
    last_rows,
    n_step_anchors,
    n_step_lengths,
    scale,
    strided_anchors,
    timestep_anchors,
    trajectory_anchors,
    window_anchors,
)
from gym_replay.buffer.loading.returns import check_discount
from gym_replay.buffer.loading.source import Source
from gym_replay.errors import FieldError

_T = TypeVar("_T")
_FARTHEST = 1 << 40

Boundaries: TypeAlias = Literal["edge", "zero", "drop"]
Names: TypeAlias = "Sequence[str] | None"


class Located:
    """Where the rows of an entry are, for each sample of a batch.

    Args:
        rows: int64 ``(samples,)`` or ``(samples, time)``, over all parts; instead of one that does not exist, one that
            does.
        shown: bool, of the same shape: False where zeros are delivered. None where that is nowhere.
        exists: of the same shape, whether the row does; None where all of them do.
    """

    def __init__(self, rows: Ints, shown: Bools | None = None, exists: Bools | None = None) -> None:
        self.rows, self.shown, self.exists = rows, shown, exists

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the rows."""
        return self.rows.shape

    def take(self, source: Source, name: str) -> Array:
        """A field's values, of ragged rows not: ``(*rows.shape, *field.shape)``."""
        values = source.take(name, self.rows)
        if self.shown is not None:
            values[~self.shown] = 0
        return values

    def take_ragged(self, source: Source, name: str) -> Padded:
        """A ragged field's elements, padded, and how many each row has."""
        return source.take_ragged(name, self.rows, self.shown)


class Runs(Located):
    """Rows that follow one another: ``counts[i]`` from ``firsts[i]`` on, and zeros after them, ``width`` in all.

    Without ``counts``, there are ``width`` of each.
    """

    def __init__(self, firsts: Ints, counts: Ints | None, width: int) -> None:
        is_full = counts is None or counts[counts.argmin()] == width
        self._firsts, self._counts, self._width = firsts, None if is_full else counts, width
        self.shown = self.exists = None if self._counts is None else np.arange(width) < self._counts[:, None]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self._firsts), self._width

    @cached_property
    def rows(self) -> Ints:  # type: ignore[override]
        """All rows, ``(samples, time)``."""
        counts = np.full(len(self._firsts), self._width) if self._counts is None else self._counts
        return forward_rows(self._firsts, counts, self._width)[0]

    def take(self, source: Source, name: str) -> Array:
        """A field's values: each run is one copy."""
        if self._counts is None:
            return source.take_runs(name, self._firsts, self._width)
        return source.take_slices(name, self._firsts, self._counts, self._width)


class Place(ABC):
    """Where rows are around an anchor. Places are told from one another by identity, and are pickled."""

    @abstractmethod
    def locate(self, asked: Asked) -> Located:
        """The rows for the samples of a batch."""


class Asked:
    """The samples of a batch in the making, and what was found out for them, each thing once.

    Args:
        source: the selected episodes.
        samples: those asked for.
        first_rows: finds their rows.
        draws: gives so many numbers from [0, 1) for each sample.

    Attributes:
        others: places of episodes beside those of the samples that the batch has rows of.
    """

    def __init__(
        self, source: Source, samples: Samples, first_rows: FirstRows, draws: Callable[[int, Ints, Ints], Floats]
    ) -> None:
        self.source, self.samples = source, samples
        self._first_rows, self._draws = first_rows, draws
        self.others: list[Ints] = []
        self._known: dict[Hashable, Any] = {}

    @property
    def all_episodes(self) -> Ints:
        """Places of all episodes that the batch has rows of."""
        return np.concatenate([self.samples.episodes, *self.others]) if self.others else self.samples.episodes

    @cached_property
    def rows(self) -> Ints:
        """The row of each anchor, int64 ``(samples,)``."""
        return self._first_rows.of(self.samples)

    def at(self, place: Place) -> Located:
        """Where rows are."""
        return self.once(place, lambda: place.locate(self))

    def once(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """What was made for a key, or make it."""
        if key not in self._known:
            self._known[key] = make()
        found: _T = self._known[key]
        return found

    def draws(self, count: int) -> Floats:
        """So many numbers from [0, 1) for each sample, ``(count, samples)``."""
        return self._draws(count, self.samples.episodes, self.samples.steps)


@dataclass(frozen=True)
class Description:
    """What one sample is.

    Attributes:
        anchors: the steps that are samples.
        entries: of the batch: field and place by name.
        extras: entries that are no fields, as functions of the samples asked for.
        named: the names that the user gave, whose meta fields come along.
        no_filter: why ``filter_fields`` cannot choose among the anchors; None where it can.
        is_divisible: whether a batch of some samples is a part of the batch of more.
    """

    anchors: Anchors
    entries: dict[str, tuple[str, Place]]
    extras: dict[str, Callable[[Asked], Array]] = field(default_factory=dict)
    named: Sequence[str] = ()
    no_filter: str | None = None
    is_divisible: bool = True


# --- places ---


@dataclass(frozen=True, eq=False)
class _Here(Place):
    """The anchor's own row."""

    def locate(self, asked: Asked) -> Located:
        return Located(asked.rows)


@dataclass(frozen=True, eq=False)
class _Later(Place):
    """The row n steps later, or at the episode's end where that comes first; zeros where a field has no such row."""

    n_steps: int
    has_last: bool

    def locate(self, asked: Asked) -> Located:
        lengths = _n_step_lens(asked, self.n_steps)
        if self.has_last:
            return Located(asked.rows + lengths)
        exist = asked.samples.steps + lengths < asked.source.lengths.take(asked.samples.episodes)
        return Located(asked.rows + lengths, exist, exist)


@dataclass(frozen=True, eq=False)
class _Ahead(Place):
    """The anchor's row and those after it, n in all, as far as they are of the transition."""

    n_steps: int

    def locate(self, asked: Asked) -> Located:
        rows, exist = forward_rows(asked.rows, _n_step_lens(asked, self.n_steps), self.n_steps)
        return Located(rows, exist, exist)


@dataclass(frozen=True, eq=False)
class _Around(Place):
    """The rows at offsets around the anchor."""

    window: Window
    boundary: Boundary

    def locate(self, asked: Asked) -> Located:
        episodes = asked.samples.episodes
        places, is_pad, shown = self.window.rows(episodes, asked.samples.steps, self.boundary)
        rows = asked.source.starts.take(episodes)[:, None] + places
        if self.window.is_run and not is_pad.any():  # then each window is one copy, in half of the time
            return Runs(rows[:, 0], None, len(self.window.offsets))
        return Located(rows, shown, ~is_pad)


@dataclass(frozen=True, eq=False)
class _Whole(Place):
    """The T rows of an episode, from its first or its second one on, and zeros up to the longest of the batch."""

    width: int | None
    shift: int = 0

    def locate(self, asked: Asked) -> Located:
        episodes = asked.samples.episodes
        lengths = asked.source.lengths[episodes]
        width = int(lengths.max()) if self.width is None else self.width
        return Runs(asked.source.starts[episodes] + self.shift, lengths, width)


@dataclass(frozen=True, eq=False)
class _Crop(Place):
    """Rows of a random stretch of the episode, and zeros beside them."""

    shortest: int
    longest: int
    burn_in: int
    stride: int | None
    pad_left: bool

    def locate(self, asked: Asked) -> Located:
        crops = self.crops(asked)
        places, mask, _ = crops.rows(self.burn_in + self.longest, pad_left=self.pad_left)
        return Located(asked.source.starts[asked.samples.episodes][:, None] + places, mask, mask)

    def crops(self, asked: Asked) -> Crops:
        """Where the stretches are."""
        samples = asked.samples
        lengths = asked.source.lengths[samples.episodes]
        sizes: dict[str, Any] = {
            "shortest": self.shortest,
            "longest": self.longest,
            "burn_in": self.burn_in,
            "stride": self.stride,
        }
        return asked.once("crops", lambda: draw_crops(samples.steps, lengths, asked.draws(2), **sizes))


@dataclass(frozen=True, eq=False)
class _After(Place):
    """The row after each row of another place."""

    place: Place

    def locate(self, asked: Asked) -> Located:
        before = asked.at(self.place)
        return Located(before.rows + 1, before.shown, before.exists)


@dataclass(frozen=True, eq=False)
class Goal(Place):
    """The rows of the goals of a mixture: of the same episode, or of any selected one.

    Args:
        sampler: has the mixture.
        kind: its name, ``"value"`` or ``"policy"``.
        everything: all transitions of the selected episodes, of which random goals are drawn.
    """

    sampler: GoalSampler
    kind: str
    everything: Anchors

    def locate(self, asked: Asked) -> Located:
        episodes, steps = self.find(asked)
        return Located(asked.source.starts[episodes] + steps)

    def find(self, asked: Asked) -> tuple[Ints, Ints]:
        """Episode and row within it of each sample's goal."""
        return asked.once((self, "goals"), lambda: self._draw(asked))

    def _draw(self, asked: Asked) -> tuple[Ints, Ints]:
        source, episodes, steps = asked.source, asked.samples.episodes, asked.samples.steps
        first = {"value": 0, "policy": 3}[self.kind]
        chances = asked.once("goals", lambda: asked.draws(6))[first : first + 3]
        last = last_rows(source.lengths, source.has_final)[episodes]
        own, is_random = self.sampler.mixtures[self.kind].rows(steps, last, chances[:2])
        if not is_random.any():
            return episodes, own
        anywhere = scale(chances[2], np.full(len(steps), len(self.everything), np.int64))
        others, places = self.everything.locate(source.replace_evicted(anywhere, self.everything))
        asked.others.append(others[is_random])
        return np.where(is_random, others, episodes), np.where(is_random, places, own)


# --- entries that are no fields ---


def _n_step_lens(asked: Asked, n_steps: int) -> Ints:
    return asked.once("n_step_lens", lambda: n_step_lengths(asked.samples, n_steps))


def _n_step_return(asked: Asked, ahead: _Ahead, reward: str, discount: float) -> Array:
    located = asked.at(ahead)
    taken = asked.source.take(reward, located.rows)
    rewards = taken.astype(np.float64)
    rewards[~_existing(asked, ahead)] = 0
    weights = discount ** np.arange(ahead.n_steps, dtype=np.float64)
    summed = np.tensordot(weights, rewards, axes=(0, 1)).reshape(len(taken), *_reward_shape(asked.source, reward))
    return summed.astype(taken.dtype if taken.dtype.kind == "f" else np.float64)


def _n_step_discount(asked: Asked, ahead: _Ahead, reward: str, terminated: str, discount: float) -> Array:
    exist = _existing(asked, ahead)
    ended = asked.source.take(terminated, asked.at(ahead).rows).reshape(exist.shape).astype(np.bool_) & exist
    discounts = np.where(ended.any(axis=1), 0.0, discount ** exist.sum(axis=1))
    return discounts.reshape(len(discounts), *[1] * len(_reward_shape(asked.source, reward)))


def _reward_shape(source: Source, reward: str) -> tuple[int, ...]:
    shape = source.fields[reward].shape
    return () if math.prod(shape) == 1 else shape  # (batch, 1) beside (batch,) would be broadcast


def _existing(asked: Asked, place: Place) -> Bools:
    """A mask in memory of its own: True where the row exists."""
    located = asked.at(place)
    return np.ones(located.shape, np.bool_) if located.exists is None else located.exists.copy()


def _is_pad(asked: Asked, place: Place) -> Bools:
    located = asked.at(place)
    return np.zeros(located.shape, np.bool_) if located.exists is None else ~located.exists


def _drawn_after_burn_in(asked: Asked, crop: _Crop) -> Bools:
    _, mask, drawn = crop.crops(asked).rows(crop.burn_in + crop.longest, pad_left=crop.pad_left)
    burn_in: Bools = mask & ~drawn
    return burn_in


def _crop_lens(asked: Asked, crop: _Crop) -> Ints:
    counts: Ints = crop.crops(asked).counts
    return counts


def _crop_indices(asked: Asked, crop: _Crop) -> Ints:
    crops = crop.crops(asked)
    return np.stack((asked.source.index[asked.samples.episodes], crops.first + crops.burn_in), axis=1)


def _lens(asked: Asked) -> Ints:
    return asked.source.lengths[asked.samples.episodes]


def _index(asked: Asked) -> Ints:
    return asked.source.index[asked.samples.episodes]


def _indices(asked: Asked) -> Ints:
    return np.stack((_index(asked), asked.samples.steps), axis=1)


def _relabelled(asked: Asked, goal: Goal, which: int) -> Array:
    """Reward or mask of the goals of the value function."""
    samples = asked.samples
    found = asked.once(
        "relabelled",
        lambda: goal.sampler.relabelled(asked.source, samples.episodes, samples.steps, goal.find(asked)),
    )
    return found[which]


# --- the kinds of samples ---


def timestep(
    source: Source,
    *,
    fields: Names = None,
    goal_sampler: GoalSampler | None = None,
    return_indices: bool = False,
) -> Description:
    """One transition a sample: the row of its step."""
    here = _Here()
    entries: dict[str, tuple[str, Place]] = {
        name: (name, here) for name in checked_names(source, "fields", fields, source.fields)
    }
    return _of_steps(source, timestep_anchors(source.lengths), entries, {}, fields or (), goal_sampler, return_indices)


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
    if isinstance(n_steps, bool) or not isinstance(n_steps, (int, np.integer)) or n_steps < 1:
        raise FieldError(f"n_steps: expected a positive integer, got {n_steps!r}")
    states = [name for name, info in source.fields.items() if info.state]
    following = checked_names(source, "next_fields", next_fields, states or source.fields)
    # In a schema without state fields the last transition is no sample, so every next row exists.
    partial_fields = [name for name in following if states and name not in states]
    here, ahead = _Here(), _Ahead(int(n_steps))
    later = {is_partial: _Later(int(n_steps), has_last=not is_partial) for is_partial in (False, True)}
    entries: dict[str, tuple[str, Place]] = {
        name: (name, here) for name in checked_names(source, "current_fields", current_fields, source.fields)
    }
    entries |= {f"next_{name}": (name, later[name in partial_fields]) for name in following}
    sequence = checked_names(source, "sequence_fields", sequence_fields, ())
    entries |= {f"seq_{name}": (name, ahead) for name in sequence}
    extras: dict[str, Callable[[Asked], Array]] = {
        f"next_{name}_is_pad": partial(_is_pad, place=later[True]) for name in partial_fields
    }
    extras["n_step_lens"] = partial(_n_step_lens, n_steps=int(n_steps))
    if discount is not None:
        discount = check_discount(discount)
        _check_discounted(source, reward_field, terminated_field)
        rewards: dict[str, Any] = {"ahead": ahead, "reward": reward_field, "discount": discount}
        extras["n_step_return"] = partial(_n_step_return, **rewards)
        extras["n_step_discount"] = partial(_n_step_discount, terminated=terminated_field, **rewards)
    named = (*(current_fields or ()), *(next_fields or ()), *(sequence_fields or ()))
    anchors = n_step_anchors(source.lengths, source.has_final)
    return _of_steps(source, anchors, entries, extras, named, goal_sampler, return_indices)


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
    """One step a sample, with fields at offsets around it.

    Args:
        source: the selected episodes.
        length: the offsets ``0 .. length - 1`` for all fields that have none of their own.
        offsets: of single fields: ``{"observation": (-1, 0), "action": range(16)}``.
        fields: those without offsets that come along, at the step itself (or, with ``length``, in its window); None for
            all of them.
        stride: steps from one sample of an episode to the next.
        boundary: ``"edge"``, ``"zero"`` or ``"drop"``, or one for what is before the episode and one for what is after.
        goal_sampler, return_indices: as for timesteps.
    """
    if length is None and not offsets:
        raise FieldError("windows need length=..., or offsets={field: offsets} of at least one field")
    sides = _checked_boundary(boundary)
    own = _checked_offsets(source, offsets or {})
    named = [*own, *(name for name in fields or () if name not in own)]
    alone = [] if fields is None and length is not None else list(source.fields) if fields is None else fields
    if length is not None:
        whole = np.arange(check_count("length", length, 1), dtype=np.int64)
        following = source.fields if fields is None else [name for name in fields if name in source.fields]
        own = dict.fromkeys(following, whole) | own
        alone = []
    checked_names(source, "fields", fields, ())
    last = {True: last_rows(source.lengths, source.has_final), False: source.lengths - 1}
    groups = group_windows(own, {name: last[source.fields[name].state] for name in own})
    windows = [found for found, _ in groups]
    anchors = window_anchors(source.lengths, windows, sides, check_count("stride", stride, 1))
    here = _Here()
    around: dict[str, Place] = {}
    for found, names in groups:
        around |= dict.fromkeys(names, _Around(found, sides))
    entries: dict[str, tuple[str, Place]] = {
        name: (name, around.get(name, here)) for name in source.fields if name in own or name in alone
    }
    extras: dict[str, Callable[[Asked], Array]] = {
        f"{name}_is_pad": partial(_is_pad, place=around[name]) for name in own
    }
    return _of_steps(source, anchors, entries, extras, named, goal_sampler, return_indices)


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
    width = None if slice_by_episode_len else source.max_timesteps or int(source.lengths.max())
    whole = _Whole(width)
    extras: dict[str, Callable[[Asked], Array]] = {
        "_lens": _lens,
        "_mask": partial(_existing, place=whole),
        "_index": _index,
    }
    wanted = {"_lens": return_episode_lens, "_mask": return_mask, "_index": return_indices}
    return Description(
        trajectory_anchors(source.lengths),
        _stretch_entries(source, whole, _Whole(width, shift=1), fields, next_fields),
        {name: extra for name, extra in extras.items() if wanted[name]},
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
    """A stretch of random place and length a sample, drawn anew in each epoch, padded to one width.

    Args:
        source: the selected episodes.
        crop: how many transitions, or the least and the most.
        burn_in: so many transitions come before it, as far as the episode has them.
        stride: None for one crop of each episode, else one of each so many steps.
        pad: the side of the padding, ``"right"`` or ``"left"``.
        fields, next_fields: as for trajectories.
        return_indices: add ``_indices``.
    """
    shortest, longest = _checked_crop(crop)
    burn_in = check_count("burn_in", burn_in, 0)
    stride = None if stride is None else check_count("stride", stride, 1)
    if pad not in ("right", "left"):
        raise FieldError(f"pad={pad!r}: expected 'right' or 'left'")
    place = _Crop(shortest, longest, burn_in, stride, pad == "left")
    extras: dict[str, Callable[[Asked], Array]] = {"_mask": partial(_existing, place=place)}
    if burn_in:
        extras["_burn_in_mask"] = partial(_drawn_after_burn_in, crop=place)
    extras["_lens"] = partial(_crop_lens, crop=place)
    if return_indices:
        extras["_indices"] = partial(_crop_indices, crop=place)
    lengths = source.lengths
    return Description(
        trajectory_anchors(lengths) if stride is None else strided_anchors(0 * lengths, lengths - 1, stride),
        _stretch_entries(source, place, _After(place), fields, next_fields),
        extras,
        (*(fields or ()), *(next_fields or ())),
        no_filter=None if stride == 1 else "filter_fields chooses steps; crops begin at chosen ones with stride=1 only",
        is_divisible=False,
    )


def _of_steps(
    source: Source,
    anchors: Anchors,
    entries: dict[str, tuple[str, Place]],
    extras: dict[str, Callable[[Asked], Array]],
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
        everything = timestep_anchors(source.lengths)
        for kind in goal_sampler.mixtures:
            goal = Goal(goal_sampler, kind, everything)
            entries = entries | {f"{kind}_goal_{name}": (name, goal) for name in shown}
            if kind == "value":
                extras = extras | {
                    "goal_reward": partial(_relabelled, goal=goal, which=0),
                    "goal_mask": partial(_relabelled, goal=goal, which=1),
                }
    if return_indices:
        extras = extras | {"_indices": _indices}
    return Description(anchors, entries, extras, named, is_divisible=goal_sampler is None)


def _stretch_entries(
    source: Source, place: Place, after: Place, fields: Names, next_fields: Names
) -> dict[str, tuple[str, Place]]:
    following = checked_names(source, "next_fields", next_fields, ())
    if wrong := [name for name in following if not source.fields[name].state]:
        raise FieldError(f"next_fields: {wrong[0]!r} is no state field, so it has no row T")
    if following and not source.has_final.all():
        raise FieldError("next_fields: an episode lacks its last observation; leave such episodes out")
    current = checked_names(source, "fields", fields, source.fields)
    return {name: (name, place) for name in current} | {f"next_{name}": (name, after) for name in following}


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
        raise FieldError(f"{argument}: unknown field {unknown[0]!r}; there are {list(known)}")
    return [name for name in names if name in source.fields]


def check_count(name: str, value: Any, lowest: int) -> int:
    """A whole number from ``lowest`` on.

    Raises:
        FieldError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not lowest <= value < 1 << 40:
        raise FieldError(f"{name}={value!r}: expected a whole number from {lowest} on")
    return int(value)


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
    shortest, longest = (check_count("crop", end, 1) for end in ends)
    if shortest > longest:
        raise FieldError(f"crop={crop!r}: expected the least number of transitions before the most")
    return shortest, longest


def _checked_boundary(boundary: Any) -> Boundary:
    both = (boundary, boundary) if isinstance(boundary, str) else boundary
    kinds = (EDGE, ZERO, DROP)
    if not isinstance(both, (tuple, list)) or len(both) != 2 or any(one not in kinds for one in both):
        raise FieldError(f"boundary={boundary!r}: expected one of {kinds}, or two of them: (before, after)")
    return Boundary(*both)


def _checked_offsets(source: Source, offsets: Any) -> dict[str, Ints]:
    if not isinstance(offsets, Mapping):
        raise FieldError(f"offsets={offsets!r}: expected a dict from field names to offsets; length=... is for all")
    checked: dict[str, Ints] = {}
    for name, given in offsets.items():
        if name not in source.fields:
            raise FieldError(f"offsets: unknown field {name!r}; there are {list(source.fields)}")
        try:
            numbers = list(given)
        except TypeError:
            raise FieldError(
                f"offsets: {name!r}: expected several offsets, got {given!r}; write ({given!r},)"
            ) from None
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or abs(number) > _FARTHEST:
                raise FieldError(f"offsets: {name!r}: expected whole numbers, got {number!r}")
        if not numbers:
            raise FieldError(f"offsets: {name!r}: expected at least one offset, got none; leave the field out")
        checked[name] = np.array(numbers, np.int64)
    return checked

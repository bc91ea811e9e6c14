"""What one sample is: index arithmetic over the starts and lengths of episodes. Sees arrays, never a buffer.

A sample is an anchor: a step t of an episode of T transitions. Episodes are given in a fixed order, and the anchors
of one episode have consecutive sample numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.lookup import Lookup

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


class Samples:
    """Samples and the episodes that they are in.

    Attributes:
        numbers: int64 ``(samples,)``: their numbers among the samples of all episodes.
        episodes: int64 ``(samples,)``: the place of each one's episode in the given order.
    """

    def __init__(self, anchors: Anchors, numbers: Ints, episodes: Ints) -> None:
        self._anchors, self.numbers, self.episodes = anchors, numbers, episodes

    @cached_property
    def steps(self) -> Ints:
        """The step of each, int64 ``(samples,)``: not everything needs it, and of many episodes it is a cache miss."""
        anchors = self._anchors
        steps: Ints = self.numbers - anchors.offsets.take(self.episodes)
        if anchors.stride != 1:
            steps = steps * anchors.stride
        if anchors.first is not None:
            steps = steps + anchors.first.take(self.episodes)
        return steps

    @property
    def left(self) -> Ints:
        """How many samples each one's episode has from it on, int64 ``(samples,)``."""
        ends: Ints = self._anchors.offsets[1:].take(self.episodes)
        return ends - self.numbers


@dataclass(frozen=True)
class Anchors:
    """Numbers the samples of a set of episodes.

    Args:
        counts: int64 ``(episodes,)``: how many samples each episode has.
        kept: where only some samples count, their numbers among all of them, ascending.
        first: int64 ``(episodes,)``: the step of each episode's first sample; None for 0.
        stride: steps from a sample to the next one of its episode.

    Example:
        >>> Anchors.of(np.array([2, 3])).locate(np.array([1, 2]))
        (array([0, 1]), array([1, 0]))
    """

    offsets: Ints
    kept: Ints | None = None
    first: Ints | None = None
    stride: int = 1

    @classmethod
    def of(cls, counts: Ints, *, first: Ints | None = None, stride: int = 1) -> Anchors:
        """All samples of episodes with so many samples each."""
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)))
        return cls(offsets, first=first, stride=stride)

    def keep(self, mask: Bools) -> Anchors:
        """Only the samples for which ``mask``, one entry per sample, is True."""
        kept = np.flatnonzero(mask)
        return replace(self, kept=kept if self.kept is None else self.kept[kept])

    def __len__(self) -> int:
        return int(self.offsets[-1]) if self.kept is None else len(self.kept)

    def find(self, samples: Ints) -> Samples:
        """The episodes of samples."""
        numbers = samples if self.kept is None else self.kept[samples]
        return Samples(self, numbers, self._lookup.find(numbers))

    def locate(self, samples: Ints) -> tuple[Ints, Ints]:
        """The episode (its place in the given order) and the step of each sample."""
        found = self.find(samples)
        return found.episodes, found.steps

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.offsets)

    def first_sample(self, episode: int) -> int:
        """The number of the first sample that belongs to this episode or a later one."""
        flat = int(self.offsets[episode])
        return flat if self.kept is None else int(np.searchsorted(self.kept, flat))

    def first_samples(self) -> Ints:
        """The number of each episode's first sample, and after them how many samples there are: ``(episodes + 1,)``."""
        return self.offsets if self.kept is None else np.searchsorted(self.kept, self.offsets).astype(np.int64)


class FirstRows:
    """Finds the rows of samples: where an episode begins, and its steps from there.

    Episodes that were recorded one after another, and of which all steps are samples, leave the same few rows without a
    sample each. Then a row is the number of its sample and those of the episodes before it, and where each of a million
    episodes begins need not be looked up.

    Args:
        anchors: the samples.
        starts: int64 ``(episodes,)``: the first row of each episode.
    """

    def __init__(self, anchors: Anchors, starts: Ints) -> None:
        self._starts = starts
        self._between: tuple[int, int] | None = None
        if anchors.stride == 1 and anchors.first is None and len(starts):
            before = starts - anchors.offsets[:-1]
            base, step = int(before[0]), int(before[1] - before[0]) if len(before) > 1 else 0
            if (before == base + step * np.arange(len(before), dtype=np.int64)).all():
                self._between = base, step

    def of(self, samples: Samples) -> Ints:
        """The row of each sample, int64 ``(samples,)``."""
        if self._between is None:
            firsts: Ints = self._starts.take(samples.episodes)
            return firsts + samples.steps
        base, step = self._between
        rows = samples.numbers + (samples.episodes if step == 1 else samples.episodes * step)
        return rows + base if base else rows


def timestep_anchors(lengths: Ints) -> Anchors:
    """Every transition is a sample."""
    return Anchors.of(lengths)


def strided_anchors(first: Ints, last: Ints, stride: int) -> Anchors:
    """The steps ``first, first + stride, ...`` of each episode up to ``last`` are samples; none where it is smaller."""
    counts = np.maximum(last - first + stride, 0) // stride
    return Anchors.of(counts, first=first if first.any() else None, stride=stride)


def trajectory_anchors(lengths: Ints) -> Anchors:
    """Every episode is one sample."""
    return Anchors.of(np.ones(len(lengths), np.int64))


def last_rows(lengths: Ints, has_final: Bools) -> Ints:
    """The last row of each episode, counted from its first, that holds something recorded: T or T-1."""
    last: Ints = lengths - 1 + has_final
    return last


def n_step_anchors(lengths: Ints, has_final: Bools) -> Anchors:
    """Every step with a recorded row after it is a sample: T of them, or T-1 where the last observation is missing."""
    return Anchors.of(last_rows(lengths, has_final))


def n_step_lengths(samples: Samples, n_steps: int) -> Ints:
    """How many of ``n_steps`` steps from each of the samples of :func:`n_step_anchors` stay in the episode."""
    if n_steps == 1:  # all of them have a row behind them
        return np.ones(samples.numbers.shape, np.int64)
    lengths: Ints = np.minimum(n_steps, samples.left)
    return lengths


def forward_rows(first: Ints, valid: Ints, width: int) -> tuple[Ints, Bools]:
    """Rows ``first .. first + width`` of each sample, of which ``valid`` (at least 1) exist.

    Returns:
        Rows ``(samples, width)``, those past the end replaced by the last one that exists, and a mask that is True
        where the row exists.
    """
    steps = np.arange(width, dtype=np.int64)
    mask = steps < valid[:, None]
    return first[:, None] + np.minimum(steps, valid[:, None] - 1), mask


EDGE, ZERO, DROP = "edge", "zero", "drop"


@dataclass(frozen=True)
class Boundary:
    """What is done about offsets that leave the episode before its first row, and after its last one.

    Each is ``"edge"`` (the nearest row that exists), ``"zero"``, or ``"drop"`` (such a step is no sample).
    """

    start: str
    end: str


@dataclass(frozen=True)
class Window:
    """Offsets around a step, of fields that have rows up to the same one.

    Args:
        offsets: int64 ``(time,)``, in the order in which they are delivered.
        last: int64 ``(episodes,)``: the last row of each episode, counted from its first, that such a field has.
    """

    offsets: Ints
    last: Ints

    @cached_property
    def is_run(self) -> bool:
        """Whether the rows of a window that lies inside its episode follow one another."""
        return len(self.offsets) > 1 and bool((np.diff(self.offsets) == 1).all())

    def rows(self, episodes: Ints, steps: Ints, boundary: Boundary) -> tuple[Ints, Bools, Bools | None]:
        """Where the window around each step is.

        Returns:
            Rows counted from the episode's first, ``(samples, time)``, those outside replaced by the nearest one that
            exists; a mask of that shape, True where the row is outside; and one that is False where zeros are to be
            delivered, or None where there is no such place.
        """
        wanted = inside = steps[:, None] + self.offsets
        # A step is inside itself, and steps that are dropped are none: then there is nothing to look for.
        if boundary.start != DROP and self.offsets.min() < 0:
            inside = np.maximum(inside, 0)
        if boundary.end != DROP and self.offsets.max() > 0:
            inside = np.minimum(inside, self.last[episodes][:, None])
        if inside is wanted:
            return inside, np.zeros(inside.shape, np.bool_), None
        is_pad = inside != wanted
        if ZERO not in (boundary.start, boundary.end) or not is_pad.any():
            return inside, is_pad, None
        if boundary.start == EDGE:
            return inside, is_pad, inside >= wanted
        return inside, is_pad, inside <= wanted if boundary.end == EDGE else ~is_pad


def window_anchors(lengths: Ints, windows: Sequence[Window], boundary: Boundary, stride: int) -> Anchors:
    """Every stride-th transition is a sample: from the first one on that has all its rows, where those without drop."""
    first, last = np.zeros_like(lengths), lengths - 1
    for window in windows:
        if boundary.start == DROP:
            first = np.maximum(first, -window.offsets.min())
        if boundary.end == DROP:
            last = np.minimum(last, window.last - window.offsets.max())
    return strided_anchors(first, last, stride)


def group_windows(offsets: Mapping[str, Ints], last: Mapping[str, Ints]) -> list[tuple[Window, list[str]]]:
    """The windows of several fields, those that are the same together: their rows are computed once.

    Args:
        offsets: of each field.
        last: the last row of each field; fields with the same rows share one array.
    """
    groups: dict[tuple[bytes, int], tuple[Window, list[str]]] = {}
    for name, own in offsets.items():
        _, names = groups.setdefault((own.tobytes(), id(last[name])), (Window(own, last[name]), []))
        names.append(name)
    return list(groups.values())


@dataclass(frozen=True)
class Crops:
    """Stretches of steps: of sample i the transitions ``first[i] .. first[i] + counts[i]`` of its episode.

    The first ``burn_in[i]`` of them lead up to what was drawn.
    """

    first: Ints
    counts: Ints
    burn_in: Ints

    def rows(self, width: int, *, pad_left: bool) -> tuple[Ints, Bools, Bools]:
        """The rows of each crop, padded to ``width``.

        Returns:
            Rows counted from the episode's first, ``(samples, width)``, those that are padding replaced by one of the
            crop; a mask that is True where there is a transition; and one that is True where it is no burn-in either.
        """
        places = np.arange(width, dtype=np.int64) - (width - self.counts[:, None] if pad_left else 0)
        mask = (places >= 0) & (places < self.counts[:, None])
        inside = np.minimum(np.maximum(places, 0), self.counts[:, None] - 1)
        return self.first[:, None] + inside, mask, mask & (places >= self.burn_in[:, None])


def draw_crops(
    steps: Ints,
    lengths: Ints,
    uniforms: Floats,
    *,
    shortest: int,
    longest: int,
    burn_in: int,
    stride: int | None,
) -> Crops:
    """One crop for each sample.

    Its length is drawn from ``shortest .. longest``. Without a stride it is then placed anywhere in the episode where
    it fits, and is the whole episode where that is shorter. With one it begins at one of the ``stride`` steps from the
    sample's own on, and is cut at the episode's end.

    Args:
        steps: of the samples; 0 without a stride.
        lengths: T of their episodes.
        uniforms: two numbers from [0, 1) for each sample, ``(2, samples)``.
        shortest, longest: how many transitions, at least 1.
        burn_in: how many transitions come before it, as far as the episode has them.
        stride: from sample to sample of an episode.
    """
    counts = shortest + scale(uniforms[0], np.full_like(lengths, longest - shortest + 1))
    if stride is None:
        counts = np.minimum(counts, lengths)
        begin = scale(uniforms[1], lengths - counts + 1)
    else:
        begin = steps + scale(uniforms[1], np.minimum(stride, lengths - steps))
        counts = np.minimum(counts, lengths - begin)
    before = np.minimum(burn_in, begin)
    return Crops(begin - before, counts + before, before)


def scale(uniforms: Floats, counts: Ints) -> Ints:
    """Numbers from [0, 1) as whole numbers from ``0 .. count - 1``."""
    whole: Ints = np.minimum((uniforms * counts).astype(np.int64), counts - 1)
    return whole

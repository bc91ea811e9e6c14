"""Where the rows of a batch's entries are: at offsets around a step of each sample, with a rule for what is outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gym_replay.buffer.loading.gather import Padded
from gym_replay.buffer.loading.plans import ZERO, Fill, Samples, Stretch
from gym_replay.buffer.loading.source import Source
from gym_replay.cached import cached_property
from gym_replay.schema.arrays import Array, Bools, Floats, Ints

_T = TypeVar("_T")
_LONG = 128
"""From so many on, rows that follow one another and end within a batch's width are copied sample by sample."""


class Run(NamedTuple):
    """Rows that follow one another: ``counts[i]`` from ``firsts[i]`` on and zeros after them, ``width`` in all.

    Where ``counts`` is None, there are ``width`` of each.
    """

    firsts: Ints
    counts: Ints | None
    width: int


class Located:
    """Where the rows of an entry are, for each sample of a batch.

    Args:
        rows: int64 ``(samples,)`` or ``(samples, time)``, over all parts; instead of one that does not exist, one that
            does. A run stands for its rows.
        exists: bool, of the same shape: whether the row does; None where all of them do.
        shown: False where zeros are delivered; None where that is nowhere.
    """

    def __init__(self, rows: Ints | Run, exists: Bools | None = None, shown: Bools | None = None) -> None:
        self._given, self.exists, self.shown = rows, exists, shown

    @classmethod
    def run(cls, firsts: Ints, counts: Ints | None, width: int) -> Located:
        """Rows that follow one another."""
        mask = None if counts is None else np.arange(width) < counts[:, None]
        return cls(Run(firsts, counts, width), mask, mask)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the rows."""
        given = self._given
        return (len(given.firsts), given.width) if isinstance(given, Run) else given.shape

    @cached_property
    def rows(self) -> Ints:
        """All rows."""
        given = self._given
        if not isinstance(given, Run):
            return given
        offsets = np.arange(given.width)
        return given.firsts[:, None] + (
            offsets if given.counts is None else np.minimum(offsets, np.maximum(given.counts[:, None] - 1, 0))
        )

    def take(self, source: Source, name: str) -> Array:
        """A field's values, of ragged rows not: ``(*rows.shape, *field.shape)``."""
        given = self._given
        if isinstance(given, Run):
            if given.counts is None:
                return source.rows.take_runs(name, given.firsts, given.width)
            return source.rows.take_slices(name, given.firsts, given.counts, given.width)
        values = source.rows.take(name, given)
        if self.shown is not None:
            values[~self.shown] = 0
        return values

    def take_ragged(self, source: Source, name: str) -> Padded:
        """A ragged field's elements, padded, and how many each row has."""
        return source.rows.take_ragged(name, self.rows, self.shown)


class RelativeRows:
    """Rows at offsets around a step, and what is delivered instead of those that do not exist.

    Args:
        offsets: int64 ``(time,)``; a number gives one row and no time axis, None all rows from the step on.
        stretch: gives the step of each sample, and the rows that there are; None for the anchors, where no offset leads
            out of the episode.
        fill: what is delivered before the first row and after the last one: :data:`EDGE`, the nearest, or :data:`ZERO`.
    """

    def __init__(
        self,
        offsets: Ints | int | None,
        stretch: Callable[[BatchSamples], Stretch] | None = None,
        fill: tuple[Fill, Fill] = (ZERO, ZERO),
    ) -> None:
        self.offsets, self.stretch, self._fill = offsets, stretch, fill
        self._ends, self._follow = (0, 0), offsets is None
        if isinstance(offsets, np.ndarray):
            self._ends = int(offsets.min()), int(offsets.max())
            self._follow = len(offsets) > 1 and bool((np.diff(offsets) == 1).all())

    def __call__(self, batch: BatchSamples) -> Located:
        """Where the rows are, for the samples of a batch."""
        if self.stretch is None:
            return Located(batch.samples.rows + self.offsets if self.offsets else batch.samples.rows)
        where = batch.once(self.stretch)
        starts = batch.source.starts.take(where.episodes)
        if isinstance(self.offsets, int):
            rows, exists, shown = where.rows(self.offsets, self._fill)
            return Located(starts + rows, exists, shown)
        (nearest, farthest), offsets = self._ends, self.offsets
        if offsets is None:
            offsets, farthest = np.arange(width := int(where.left.max(initial=0))), width - 1
        before, after = where.reach(nearest, farthest)
        if self._follow and not before:  # then each sample is one copy, in half of the time
            if not after:
                return Located.run(starts + where.steps + nearest, None, len(offsets))
            if self._fill[1] == ZERO and len(offsets) >= _LONG:
                counts = np.clip(where.left - nearest, 0, len(offsets))
                return Located.run(starts + where.steps + nearest, counts, len(offsets))
        if not before and not after:
            return Located((starts + where.steps)[:, None] + offsets)
        rows, exists, shown = where.rows(offsets, self._fill)
        return Located(starts[:, None] + rows, exists, shown)


class BatchSamples:
    """The samples of a batch in the making, and what was found out for them, each thing once.

    Args:
        source: the selected episodes.
        samples: those that were asked for.
        draws: gives so many numbers from [0, 1) for each sample.

    Attributes:
        others: indices of episodes beside those of the samples that the batch has rows of.
    """

    def __init__(self, source: Source, samples: Samples, draws: Callable[[int, Ints, Ints], Floats]) -> None:
        self.source, self.samples, self._draws = source, samples, draws
        self.others: list[Ints] = []
        self._known: dict[Callable[[BatchSamples], Any], Any] = {}

    @property
    def all_episodes(self) -> Ints:
        """Indices of all episodes that the batch has rows of."""
        return np.concatenate([self.samples.episodes, *self.others]) if self.others else self.samples.episodes

    def once(self, find: Callable[[BatchSamples], _T]) -> _T:
        """What a function gives for these samples, which is called once."""
        known: _T | None = self._known.get(find)
        if known is None:
            known = self._known[find] = find(self)
        return known

    def draws(self, count: int) -> Floats:
        """So many numbers from [0, 1) for each sample, ``(count, samples)``."""
        return self._draws(count, self.samples.episodes, self.samples.steps)

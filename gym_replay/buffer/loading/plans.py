"""Which steps are samples, and which rows a sample has: index arithmetic. Sees arrays, never a buffer.

A sample is an anchor: a step t of an episode of T transitions. Episodes are given in a fixed order, and the anchors
of one episode have consecutive sample numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np

from gym_replay.buffer.loading.order import GOLDEN, finished
from gym_replay.cached import cached_property
from gym_replay.schema.arrays import Bools, Floats, Ints

Fill: TypeAlias = str

EDGE, ZERO, DROP = "edge", "zero", "drop"

_CELLS_PER_RANGE = 4
"""A table may have so many cells for each range, where that spares steps; otherwise it has one or two."""

_FEW_CELLS = 1 << 13
"""Tables of so many cells are small enough for any cache."""

_RANGES_PER_SEARCH = 64
"""A table is made once a number was searched for to each of so many ranges: a first batch does not wait for one of
ten million (``benchmarks.scale``)."""


class Samples:
    """Samples and the episodes that they are in.

    Attributes:
        numbers: int64 ``(samples,)``: their numbers among the samples of all episodes.
        episodes: int64 ``(samples,)``: the index of each one's episode in the given order.
    """

    def __init__(self, anchors: Anchors, numbers: Ints, episodes: Ints) -> None:
        self._anchors, self.numbers, self.episodes = anchors, numbers, episodes
        self._rows: Ints | None = None

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
    def rows(self) -> Ints:
        """The row of each anchor, int64 ``(samples,)``."""
        if self._rows is None:
            self._rows = self._found_rows()
        return self._rows

    def _found_rows(self) -> Ints:
        between = self._anchors.rows_between
        if between is None:
            firsts: Ints = self._anchors.starts.take(self.episodes)
            return firsts + self.steps
        base, step = between
        rows = self.numbers + (self.episodes if step == 1 else self.episodes * step)
        return rows + base if base else rows

    @cached_property
    def left(self) -> Ints:
        """How many samples each one's episode has from it on, int64 ``(samples,)``."""
        ends: Ints = self._anchors.offsets[1:].take(self.episodes)
        return ends - self.numbers


@dataclass(frozen=True)
class Anchors:
    """Numbers the samples of a set of episodes.

    Args:
        starts: int64 ``(episodes,)``: the first row of each episode.
        offsets: int64 ``(episodes + 1,)``: the first sample of each episode, and after them how many there are.
        kept: where only some samples count, their numbers among all of them, ascending.
        first: int64 ``(episodes,)``: the step of each episode's first sample; None for 0.
        stride: steps from a sample to the next one of its episode.

    Example:
        >>> Anchors.of(np.array([0, 10]), np.array([2, 3])).find(np.array([1, 2])).rows
        array([ 1, 10])
    """

    starts: Ints
    offsets: Ints
    kept: Ints | None = None
    first: Ints | None = None
    stride: int = 1

    @classmethod
    def of(cls, starts: Ints, counts: Ints, *, first: Ints | None = None, stride: int = 1) -> Anchors:
        """All samples of episodes that begin at these rows and have so many samples each."""
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        return cls(starts, offsets, first=first, stride=stride)

    @classmethod
    def strided(cls, starts: Ints, first: Ints, last: Ints, stride: int) -> Anchors:
        """The steps ``first, first + stride, ...`` of each episode up to ``last``; none where that is smaller."""
        counts = np.maximum(last - first + stride, 0) // stride
        return cls.of(starts, counts, first=first if first.any() else None, stride=stride)

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

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.offsets)

    @cached_property
    def rows_between(self) -> tuple[int, int] | None:
        """Rows before the first sample, and rows without a sample from each episode to the next; None where they vary.

        Episodes that were recorded one after another, and of which all steps are samples, leave the same few rows
        without a sample each. Then a row is the number of its sample and those of the episodes before it, and where
        each of a million episodes begins need not be looked up (``benchmarks.load --large``).
        """
        if self.stride != 1 or self.first is not None or not len(self.starts):
            return None
        before = self.starts - self.offsets[:-1]
        base, step = int(before[0]), int(before[1] - before[0]) if len(before) > 1 else 0
        return (base, step) if (before == base + step * np.arange(len(before), dtype=np.int64)).all() else None

    def first_samples(self, episodes: slice | Sequence[int] = slice(None)) -> Ints:
        """The number of the first sample that belongs to each of these episodes or a later one, int64.

        By default of all episodes, and after them how many samples there are: ``(episodes + 1,)``.
        """
        flat = self.offsets[episodes]
        return flat if self.kept is None else np.searchsorted(self.kept, flat).astype(np.int64)


class Lookup:
    """Finds the range of a number: ``np.searchsorted(offsets, numbers, side="right") - 1``, faster.

    Of ranges of one length, the last of which may be shorter, the range is a quotient.

    Of others, the numbers are cut into cells of a power of two, mostly such that no more than one range begins inside
    each. A table has one word for a cell, which tells the range of its first number and where the next one begins: one
    cache miss for each number where there are millions of ranges. Where more ranges begin in some cell, a step leads to
    the next one, and the few numbers that are further on are searched for. Binary search takes ten steps for 1000
    ranges and twenty for a million, each a branch and, of the larger tables, a cache miss. The method is that of guide
    tables: H.-C. Chen and Y. Asau, "On Generating Random Variates from an Empirical Distribution", AIIE
    Transactions 6(2), 1974.

    The word of a cell of ``size`` numbers from ``begin`` on is ``first * size - begin + behind``: ``first`` is the
    range of number ``begin``, and ``behind`` how many numbers of the cell are in later ranges. Number ``begin + i``
    added to it makes ``first * size + i + behind``, which reaches ``(first + 1) * size`` just where the next range has
    begun. Divided by ``size`` that is the range.

    Args:
        offsets: int64 ``(ranges + 1,)``, ascending from 0: range i is ``offsets[i] .. offsets[i + 1] - 1``, and may
            be empty. The table takes at most 32 bytes a range, or 64 KiB.

    Example:
        >>> Lookup(np.array([0, 2, 2, 5])).find(np.array([0, 1, 2, 4]))
        array([0, 0, 2, 2])
    """

    def __init__(self, offsets: Ints) -> None:
        self._offsets = offsets
        self._ends = offsets[1:]
        self._length = _common_length(offsets)
        self._table: Ints | None = None
        self._searched = 0

    def _make_table(self) -> Ints:
        offsets = self._offsets
        begins = offsets[1 : np.searchsorted(offsets, offsets[-1])]  # of what has numbers before and behind it
        total = int(offsets[-1])
        self._shift, self._more = _size_of_cells(begins, total, len(self._ends))
        size = 1 << self._shift
        cells = np.arange(((total - 1) >> self._shift) + 1, dtype=np.int64) << self._shift
        first = np.bincount((begins + (size - 1)) >> self._shift, minlength=len(cells)).cumsum()[: len(cells)]
        # In place: of ten million ranges, each of these arrays has a hundred megabytes.
        left = self._ends.take(first)
        left -= cells
        np.minimum(left, size, out=left)
        first <<= self._shift
        first -= cells
        first += size
        first -= left
        self._table = first
        return first

    def find(self, numbers: Ints) -> Ints:
        """The range of each number, int64 of the same shape.

        Args:
            numbers: int64, each in one of the ranges; which range is given for others, or whether an IndexError is
                raised, is not said.
        """
        if self._length:
            quotients: Ints = numbers // self._length
            return quotients
        table = self._table
        if table is None:
            self._searched += numbers.size
            if self._searched < len(self._ends) // _RANGES_PER_SEARCH:
                ranges: Ints = self._offsets.searchsorted(numbers, side="right") - 1
                return ranges
            table = self._make_table()
        found: Ints = table.take(numbers >> self._shift)
        found += numbers
        found >>= self._shift
        if self._more:
            found += self._ends.take(found) <= numbers
        if self._more > 1:
            behind = self._ends.take(found) <= numbers
            if behind.any():
                found[behind] = self._offsets.searchsorted(numbers[behind], side="right") - 1
        return found


def _common_length(offsets: Ints) -> int:
    """The length of all ranges, but that the last one may be shorter; 0 where they differ."""
    if offsets[-1] == 0:
        return 1  # there are no numbers
    length = int(offsets[1])
    # Those that differ mostly do so among the first.
    if (
        any((np.diff(few) != length).any() for few in (offsets[:-1][:64], offsets[:-1]))
        or offsets[-1] - offsets[-2] > length
    ):
        return 0
    return length


def _size_of_cells(begins: Ints, total: int, ranges: int) -> tuple[int, int]:
    """The number of bits of a cell, and how many ranges begin inside of one at most, beside the first that does."""
    most_cells = max(_CELLS_PER_RANGE * ranges, _FEW_CELLS)
    usual = shift = (total // (2 * ranges)).bit_length()  # one or two cells for each range
    more_usually = more = _more_in_a_cell(begins, usual)
    while more > 0 and total >> (shift - 1) < most_cells:
        shift -= 1
        more = _more_in_a_cell(begins, shift)
    return (shift, 0) if more == 0 else (usual, more_usually)


def _more_in_a_cell(begins: Ints, shift: int) -> int:
    """How many ranges begin inside of a cell at most, but one: 0, 1, or 2 where there are more.

    What begins with the cell does not count.
    """
    cells = begins[(begins & ((1 << shift) - 1)) != 0]
    cells >>= shift
    return next((more for more in (2, 1) if (cells[more:] == cells[:-more]).any()), 0)


def n_step_lengths(samples: Samples, n_steps: int) -> Ints:
    """How many of ``n_steps`` steps from each sample stay in the episode, of whose steps all with a next row count."""
    lengths = np.empty(samples.numbers.shape, np.int64)
    if n_steps == 1:  # all of them have a row behind them
        lengths.fill(1)
        return lengths
    return np.minimum(n_steps, samples.left, out=lengths)


class Stretch(NamedTuple):
    """Of each sample, rows of one episode that may be read, and a step among them. Rows count from the episode's first.

    Attributes:
        episodes, steps: int64 ``(samples,)``.
        low, high: the first and the last row, int64 ``(samples,)`` or one for all; None where no offset leads beyond.
    """

    episodes: Ints
    steps: Ints
    low: Ints | int | None = None
    high: Ints | int | None = None

    @property
    def left(self) -> Ints:
        """How many rows there are from the step to the last one, int64 ``(samples,)``."""
        assert self.high is not None
        return self.high - self.steps + 1

    def reach(self, nearest: int, farthest: int) -> tuple[bool, bool]:
        """Whether any offset from ``nearest`` to ``farthest`` leads to before the first row, and to after the last."""
        before = 0 if self.low is None else np.count_nonzero(self.steps + nearest < self.low)
        after = 0 if self.high is None else np.count_nonzero(self.steps + farthest > self.high)
        return bool(before), bool(after)

    def rows(self, offsets: Ints | int, fill: tuple[Fill, Fill]) -> tuple[Ints, Bools, Bools | None]:
        """The rows at offsets around each step.

        Args:
            offsets: int64 ``(time,)``, or one for no time axis.
            fill: what is delivered instead of rows before the first and after the last one: ``"edge"``, the nearest
                row that exists, or ``"zero"``.

        Returns:
            Rows ``(samples, time)`` or ``(samples,)``, those that do not exist replaced by the nearest; a mask of that
            shape, True where the row exists; and one that is False where zeros are delivered, None where that is
            nowhere.
        """
        steps, low, high = self.steps, self.low, self.high
        if not isinstance(offsets, int):
            steps = steps[:, None]
            low, high = (one[:, None] if isinstance(one, np.ndarray) else one for one in (low, high))
        wanted = inside = steps + offsets
        if low is not None:
            inside = np.maximum(inside, low)
        if high is not None:
            inside = np.minimum(inside, high)
        exists = inside == wanted
        if ZERO not in fill:
            return inside, exists, None
        if fill[0] == EDGE:
            return inside, exists, inside >= wanted
        return inside, exists, inside <= wanted if fill[1] == EDGE else exists


class Crops(NamedTuple):
    """Stretches of steps: of sample i the transitions ``first[i] .. first[i] + counts[i]`` of its episode.

    The first ``burn_in[i]`` of them lead up to what was drawn.
    """

    first: Ints
    counts: Ints
    burn_in: Ints


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


def draw(seed: int, epoch: int, count: int, episodes: Ints, steps: Ints, positions: Ints | None = None) -> Floats:
    """``count`` random numbers from [0, 1) that belong to each sample, float64 ``(count, samples)``.

    They are a pure function of the arguments: which batch a sample is in, and which process gathers it, makes no
    difference. Seed, epoch, episode and step are added to a state one after another, each of which is then mixed by the
    output function of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014, with
    Stafford's variant 13). The numbers of a sample are that generator's outputs from there on, so the first ones are
    the same whatever ``count`` is.

    Args:
        seed: any integer; those that are equal modulo 2**64 are the same.
        epoch: from 0 on.
        count: how many.
        episodes, steps: int64 ``(samples,)``: which sample.
        positions: int64 ``(samples,)``: where in the epoch it comes, if it is to have other numbers each time.

    Example:
        >>> draw(0, 0, 2, np.array([3, 3, 4]), np.array([0, 1, 0])).round(3)
        array([[0.551, 0.919, 0.687],
               [0.672, 0.701, 0.874]])
    """
    one = np.uint64(1)
    state = np.zeros(1, np.uint64)
    for number in (seed, epoch):
        state = finished(state + GOLDEN + np.array(number % 2**64, np.uint64))
    mixed = finished(episodes.astype(np.uint64) + state)
    mixed = finished(mixed + (steps.astype(np.uint64) + one) * GOLDEN)
    if positions is not None:
        mixed = finished(mixed + (positions.astype(np.uint64) + one) * GOLDEN)
    outputs = finished(mixed + np.arange(1, count + 1, dtype=np.uint64)[:, None] * GOLDEN)
    uniform: Floats = (outputs >> np.uint64(11)) * 2.0**-53
    return uniform

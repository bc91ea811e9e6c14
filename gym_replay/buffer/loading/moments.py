"""The statistics of one field, taken of values that come in pieces; and which fields are images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.order import uniforms
from gym_replay.schema.fields import Field

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

QUANTILE_BYTES = 1 << 27
"""Of the values of one field that are kept for its quantiles."""

_LARGEST_ORIGIN = 1e300  # a difference to more might be no number


@dataclass(frozen=True)
class FieldStatistics:
    """The statistics of one field, all of one shape: the field's, or ``(1, 1, channels)`` of images.

    Attributes:
        count: int64: how many values there are, not counting NaN.
        mean, std, min, max: float64. ``std`` is that of the population, and at least the floor.
        quantiles: float64, by probability.
    """

    count: Ints
    mean: Floats
    std: Floats
    min: Floats
    max: Floats
    quantiles: Mapping[float, Floats]


def is_image(field: Field) -> bool:
    """Whether a field is an image: uint8, height, width and 1, 3 or 4 channels."""
    if field.ragged or field.dtype != np.uint8 or len(field.shape) != 3:
        return False
    height, width, channels = field.shape
    return channels in (1, 3, 4) and min(height, width) > channels


def statistics_shape(field: Field) -> tuple[int, ...]:
    """The shape of a field's statistics."""
    return (1, 1, field.shape[-1]) if is_image(field) else field.shape


def field_statistics(
    field: Field, rows: int, pieces: Iterator[npt.NDArray[Any]], quantiles: Sequence[float]
) -> FieldStatistics:
    """The statistics of a field, with the deviation as it is.

    Args:
        field: the field.
        rows: how many rows there are.
        pieces: their values, ``(rows, *field.shape)`` each time.
        quantiles: probabilities.
    """
    shape = statistics_shape(field)
    width = math.prod(shape)
    moments, sample = _Moments(width), _Sample(rows, field, width) if quantiles else None
    for piece in pieces:
        values = piece.reshape(-1, width) if width else np.empty((len(piece), 0), piece.dtype)
        moments.add(values)
        if sample is not None:
            sample.add(values)
    found = sample.quantiles(quantiles) if sample is not None else ()
    return FieldStatistics(
        moments.count.reshape(shape),
        moments.mean.reshape(shape),
        moments.std.reshape(shape),
        moments.min.reshape(shape),
        moments.max.reshape(shape),
        {probability: values.reshape(shape) for probability, values in zip(quantiles, found, strict=True)},
    )


class _Moments:
    """Count, mean, sum of squared deviations, minimum and maximum of each column.

    The first value of each is taken off all of them: of values that are far from zero and close together, the
    difference is exact, and means of pieces would be rounded to more than what they differ by.
    """

    def __init__(self, width: int) -> None:
        self.count = np.zeros(width, np.int64)
        self._origin = np.zeros(width)
        self._mean, self._squares = np.full(width, np.nan), np.full(width, np.nan)
        self.min, self.max = np.full(width, np.nan), np.full(width, np.nan)

    def add(self, values: npt.NDArray[Any]) -> None:
        """More values, ``(rows, width)``."""
        if len(values) == 0:
            return
        self.min = np.fmin(self.min, np.fmin.reduce(values, axis=0).astype(np.float64))
        self.max = np.fmax(self.max, np.fmax.reduce(values, axis=0).astype(np.float64))
        exact = values.astype(np.float64)
        if not self.count.all():
            self._origin = np.where(self.count == 0, _first_of(exact), self._origin)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            exact -= self._origin
            self._combine(*_moments(exact))

    def _combine(self, count: Ints, mean: Floats, squares: Floats) -> None:
        first, neither = self.count == 0, count == 0
        total = np.maximum(self.count + count, 1)
        delta = mean - self._mean
        share = count / total
        new_mean = self._mean + delta * share
        new_squares = self._squares + squares + delta * delta * (self.count * share)
        self._mean = np.where(neither, self._mean, np.where(first, mean, new_mean))
        self._squares = np.where(neither, self._squares, np.where(first, squares, new_squares))
        self.count = self.count + count

    @property
    def mean(self) -> Floats:
        """NaN where there is no value."""
        mean: Floats = self._origin + self._mean
        return mean

    @property
    def std(self) -> Floats:
        """Of the population."""
        with np.errstate(invalid="ignore"):
            deviations: Floats = np.sqrt(self._squares / np.maximum(self.count, 1))
        return deviations


def _first_of(values: Floats) -> Floats:
    """The first finite value of each column; 0 where there is none."""
    finite = np.isfinite(values)
    first: Floats = values[finite.argmax(axis=0), np.arange(values.shape[1])]
    return np.where(finite.any(axis=0) & (np.abs(first) < _LARGEST_ORIGIN), first, 0.0)


def _moments(values: Floats) -> tuple[Ints, Floats, Floats]:
    """Count, mean and sum of squared deviations of each column; ``values`` is overwritten."""
    missing = np.isnan(values)
    if not missing.any():
        count = np.full(values.shape[1], len(values), np.int64)
        mean = values.mean(axis=0)
        values -= mean
    else:
        count = len(values) - np.count_nonzero(missing, axis=0)
        values[missing] = 0
        mean = values.sum(axis=0) / count
        values -= mean
        values[missing] = 0
    # The mean was rounded; what is left of the deviations corrects it and the sum of their squares.
    rest = values.sum(axis=0) / np.maximum(count, 1)
    rest[~np.isfinite(rest)] = 0
    squares = np.einsum("ij,ij->j", values, values) - count * rest * rest
    return count, mean + rest, np.maximum(squares, 0)


class _Sample:
    """All values of each column, or where they are too many, those of one random row from each of equal stretches."""

    def __init__(self, rows: int, field: Field, width: int) -> None:
        self._per_row = math.prod(field.shape) // max(1, width)
        row_nbytes = max(1, field.nbytes)
        self._rows, self._number = rows, rows
        if rows * row_nbytes > QUANTILE_BYTES:
            self._number = max(1, QUANTILE_BYTES // row_nbytes)
        self._kept = np.empty((self._number * max(1, self._per_row), width), field.dtype)
        self._filled = self._seen = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        """The next values, ``(rows, width)``."""
        if self._number == self._rows:
            self._keep(values)
            return
        per_row = max(1, self._per_row)
        rows = len(values) // per_row
        picked = self._picked(self._seen, self._seen + rows) - self._seen
        self._keep(values.reshape(rows, -1)[picked].reshape(-1, values.shape[1]))
        self._seen += rows

    def _picked(self, begin: int, end: int) -> Ints:
        """Which rows from ``begin`` to ``end - 1`` are taken. For all at once, this takes more than they."""
        first, last = begin * self._number // self._rows, -(-end * self._number // self._rows)
        stretches = np.arange(max(0, first - 1), min(last + 1, self._number) + 1)
        edges = -(-stretches * self._rows // self._number)
        chances = uniforms(stretches[:-1], 0, 0)
        rows: Ints = edges[:-1] + (chances * np.diff(edges)).astype(np.int64)
        return rows[(rows >= begin) & (rows < end)]

    def _keep(self, values: npt.NDArray[Any]) -> None:
        self._kept[self._filled : self._filled + len(values)] = values
        self._filled += len(values)

    def quantiles(self, probabilities: Sequence[float]) -> Floats:
        """Float64 ``(probabilities, width)``, interpolated linearly between the values around."""
        found = np.full((len(probabilities), self._kept.shape[1]), np.nan)
        for column in range(self._kept.shape[1]):
            present = self._kept[: self._filled, column]
            if present.dtype.kind == "f" and (missing := np.isnan(present)).any():
                present = present[~missing]
            if len(present):
                found[:, column] = _quantiles(present, probabilities)
        return found


def _quantiles(values: npt.NDArray[Any], probabilities: Sequence[float]) -> Floats:
    """As ``numpy.quantile`` of one axis, in float64; ``values`` are put in another order, and not copied."""
    positions = np.asarray(probabilities) * (len(values) - 1)
    below = positions.astype(np.int64)
    above = np.minimum(below + 1, len(values) - 1)
    values.partition(np.unique(np.concatenate((below, above))))
    share = positions - below
    with np.errstate(invalid="ignore"):
        low, high = values[below].astype(np.float64), values[above].astype(np.float64)
        # From the nearer of the two, so that rounding never gives the larger probability the smaller quantile.
        return np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))

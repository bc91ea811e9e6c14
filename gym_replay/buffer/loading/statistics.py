"""What the values of each field are like: count, mean, deviation, range and quantiles over chosen episodes.

They stay in a buffer's folder, in ``statistics.json``, until the buffer changes. The file is a convenience: whoever
finds it missing, of other data, damaged, or not to be written, computes. It is read like everything in a folder, as if
a stranger had written it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from gym_replay.buffer.loading.order import uniforms
from gym_replay.buffer.loading.selection import Condition, Episodes
from gym_replay.buffer.loading.source import Source
from gym_replay.buffer.storage.reader import HasSnapshots, snapshots_of
from gym_replay.errors import EpisodeEvictedError, FieldError, GymReplayError
from gym_replay.files.directory import Directory, open_beneath
from gym_replay.files.documents import LARGEST, parse_json, size_fault
from gym_replay.files.writing import replace_file
from gym_replay.markup import numbers, table
from gym_replay.notices import bar, did_you_mean
from gym_replay.schema.arguments import checked_number
from gym_replay.schema.arrays import Array, Floats, Ints
from gym_replay.schema.fields import Field
from gym_replay.schema.pictures import is_frame

QUANTILE_BYTES = 1 << 27
"""Of the values of one field that are kept for its quantiles."""

_ARRAYS = ("count", "mean", "std", "min", "max")
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


def statistics_shape(field: Field) -> tuple[int, ...]:
    """The shape of a field's statistics."""
    return (1, 1, field.shape[-1]) if is_frame(field) else field.shape


def field_statistics(field: Field, rows: int, pieces: Iterator[Array], quantiles: Sequence[float]) -> FieldStatistics:
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
    own = {name: getattr(moments, name).reshape(shape) for name in _ARRAYS}
    return FieldStatistics(
        **own, quantiles={p: values.reshape(shape) for p, values in zip(quantiles, found, strict=True)}
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

    def add(self, values: Array) -> None:
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

    def add(self, values: Array) -> None:
        """The next values, ``(rows, width)``."""
        if self._number < self._rows:
            rows = len(values) // max(1, self._per_row)
            picked = self._picked(self._seen, self._seen + rows) - self._seen
            values = values.reshape(rows, -1)[picked].reshape(-1, values.shape[1])
            self._seen += rows
        self._kept[self._filled : self._filled + len(values)] = values
        self._filled += len(values)

    def _picked(self, begin: int, end: int) -> Ints:
        """Which rows from ``begin`` to ``end - 1`` are taken. For all at once, this takes more than they."""
        first, last = begin * self._number // self._rows, -(-end * self._number // self._rows)
        stretches = np.arange(max(0, first - 1), min(last + 1, self._number) + 1)
        edges = -(-stretches * self._rows // self._number)
        chances = uniforms(stretches[:-1], 0, 0)
        rows: Ints = edges[:-1] + (chances * np.diff(edges)).astype(np.int64)
        return rows[(rows >= begin) & (rows < end)]

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


def _quantiles(values: Array, probabilities: Sequence[float]) -> Floats:
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


QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
STD_FLOOR = 1e-3
CHUNK_BYTES = 1 << 24
"""Of float64 values, looked at together."""

CACHE = "statistics.json"
_FORMAT = {"format": "gym_replay statistics", "version": 1}
_MOST_ENTRIES = 16


class Statistics(dict[str, FieldStatistics]):
    """Statistics by field name.

    Example:
        >>> found = statistics(buffer)  # doctest: +SKIP
        >>> found["observation"].mean  # doctest: +SKIP
        array([ 0.02, -0.11])
        >>> loader = buffer.dataloader(256, n_steps=1, normalize=found.only("observation"))  # doctest: +SKIP
    """

    def only(self, *names: str) -> Statistics:
        """Of these fields only.

        Raises:
            FieldError: there are none of one of them.
        """
        if unknown := [name for name in names if name not in self]:
            raise FieldError(f"no statistics of {unknown[0]!r}{did_you_mean(unknown[0], self)}")
        return Statistics({name: self[name] for name in names})

    def __repr__(self) -> str:
        return f"Statistics({', '.join(self)})"

    def _repr_html_(self) -> str:
        columns = ("mean", "std", "min", "max")
        rows = ([name, *(numbers(getattr(found, column)) for column in columns)] for name, found in self.items())
        return table(("field", *columns), rows)


Normalize: TypeAlias = Mapping[str, FieldStatistics] | Collection[str] | None
"""Statistics, or names of fields."""


class Resolved(dict[str, FieldStatistics]):
    """The statistics that fields are normalized with, of whatever dtype they are."""


def statistics(
    buffer: HasSnapshots,
    fields: Sequence[str] | None = None,
    *,
    episodes: Episodes | None = None,
    filter_meta: Mapping[str, Condition] | None = None,
    quantiles: Sequence[float] = QUANTILES,
    std_floor: float = STD_FLOOR,
    cache: bool = True,
    progress: bool = True,
) -> Statistics:
    """Count, mean, standard deviation, minimum, maximum and quantiles of fields over the chosen episodes.

    Only values that were recorded count: the T+1 of a state field (T where the last observation is missing), the T of
    every other field. NaN counts as missing; where all are NaN, or there are infinities, the results are NaN or
    infinite.

    Each file is read once, in pieces. Deviations are summed in float64 around the mean of each piece, and pieces are
    combined as in T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for Computing the Sample Variance", The
    American Statistician 37(3), 1983, so that values with a large common part lose nothing. Quantiles are interpolated
    linearly, and exact where a field's values take up to 128 MiB. Of more, a random sample of as many whole rows is
    taken, one from each of equal stretches, the same one every time; with k rows, the share of values below what is
    called the p-quantile is off by more than e with a probability of at most 2 exp(-2 k e^2) (P. Massart, "The Tight
    Constant in the Dvoretzky-Kiefer-Wolfowitz Inequality", The Annals of Probability 18(3), 1990).

    Images, which are uint8 fields of shape (height, width, channels) with 1, 3 or 4 channels, have one value for each
    channel. Everything else has one for each element.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        fields: names; None takes all but ragged ones.
        episodes: which episodes, as for the loaders: an index, indices or a slice, a mask, or a function of the meta
            fields that returns one; None takes all.
        filter_meta: conditions on meta fields that choose among them, as for the loaders.
        quantiles: probabilities, from 0 to 1.
        std_floor: the least standard deviation to return, so that values that hardly vary are not blown up by the
            division. At 0, constant fields cannot be used to normalize.
        cache: keep the results in ``statistics.json`` in the buffer's folder, where it can be written, and take them
            from there as long as the buffer does not change. Not for concatenations.
        progress: show a bar where it takes longer than a second.

    Raises:
        EmptyBufferError: no episode was chosen.
        FieldError: a name is unknown, a field is ragged, or another argument is out of range.
        IndexError: there is no such episode.
        EpisodeEvictedError: an episode left the circular buffer before it was read.

    Example:
        >>> statistics(buffer, ["observation"], episodes=range(100))["observation"].std  # doctest: +SKIP
        array([0.56, 0.91])
    """
    source = Source(snapshots_of(buffer), filter_meta=filter_meta, episodes=episodes)
    return statistics_of(source, fields, quantiles=quantiles, std_floor=std_floor, cache=cache, progress=progress)


def statistics_of(
    source: Source,
    fields: Sequence[str] | None = None,
    *,
    quantiles: Sequence[float] = QUANTILES,
    std_floor: float = STD_FLOOR,
    cache: bool = True,
    progress: bool = True,
) -> Statistics:
    """The statistics of the selected episodes; see :func:`statistics`."""
    names = _checked_names(source, fields)
    source.require_up_to_date(names)
    wanted = tuple(map(float, quantiles))
    if not all(0 <= probability <= 1 for probability in wanted):
        raise FieldError(f"quantiles: expected probabilities from 0 to 1, got {list(quantiles)!r}")
    std_floor = checked_number("std_floor", std_floor)
    key = _key(source, wanted) if cache and len(source.parts) == 1 else None
    found = {} if key is None else _load(source, key, wanted)
    counts = {name: int(_counts(source, name).sum()) for name in names if name not in found}
    total = sum(counts.values())
    with bar(total, "statistics", "row", progress=progress, unit_scale=True) as shown:
        for name, count in counts.items():
            pieces = _pieces(source, name, shown.update)
            found[name] = field_statistics(source.fields[name], count, pieces, wanted)
    if counts and key is not None:
        _store(source, key, found)
    # NaN stays NaN.
    return Statistics({name: replace(found[name], std=np.maximum(found[name].std, std_floor)) for name in names})


def resolve(normalize: Normalize, source: Source) -> Resolved | None:
    """Statistics as they are; of names, those of the selected episodes.

    Of statistics, only floating-point fields are normalized: what a recorded integer counts, or which of several things
    it chooses, is lost otherwise. Names say it for any field.
    """
    if normalize is None or isinstance(normalize, Resolved):
        return normalize
    given: Any = normalize
    if given is False:
        return None
    if given is True or not hasattr(normalize, "__len__"):
        floats = tuple(name for name, info in source.fields.items() if info.dtype.kind == "f" and not info.ragged)
        raise FieldError(
            f"normalize={normalize!r:.60}: expected names of fields, such as {floats[:1] or ('observation',)}, or "
            "statistics(buffer), which normalizes all floating-point fields"
        )
    if not isinstance(normalize, Mapping) and not normalize:
        return None
    if isinstance(normalize, str):
        raise FieldError(f"normalize={normalize!r}: expected statistics or a sequence of names; write ({normalize!r},)")
    if isinstance(normalize, Mapping):
        known = source.fields
        if unknown := [name for name in normalize if name not in known]:
            raise FieldError(f"normalize: unknown field {unknown[0]!r}{did_you_mean(unknown[0], known)}")
        return Resolved((name, found) for name, found in normalize.items() if known[name].dtype.kind == "f")
    return Resolved(statistics_of(source, list(normalize)))


def to_state(statistics: Resolved | None) -> dict[str, Any] | None:
    """What fields are normalized with, as dicts and lists of numbers, exactly."""
    if statistics is None:
        return None
    return {
        str(name): {what: np.asarray(getattr(found, what), np.float64).tolist() for what in ("mean", "std")}
        for name, found in statistics.items()
    }


def from_state(state: Mapping[str, Any] | None) -> Resolved | None:
    """What :func:`to_state` was given; nothing but mean and deviation is known of the fields."""
    if state is None:
        return None
    found = {}
    for name, values in state.items():
        mean, std = (np.asarray(values[what], np.float64) for what in ("mean", "std"))
        unknown = np.full_like(mean, np.nan)
        found[name] = FieldStatistics(np.zeros(mean.shape, np.int64), mean, std, unknown, unknown, {})
    return Resolved(found)


def _checked_names(source: Source, fields: Sequence[str] | None) -> list[str]:
    if isinstance(fields, str):
        raise FieldError(f"fields={fields!r}: expected a sequence of names; write ({fields!r},)")
    if fields is None:
        return [name for name, field in source.fields.items() if not field.ragged]
    for name in fields:
        if name not in source.fields:
            raise FieldError(f"statistics: unknown field {name!r}{did_you_mean(name, source.fields)}")
        if source.fields[name].ragged:
            raise FieldError(f"statistics: field {name!r} is ragged, which has no statistics; leave it out")
    return list(dict.fromkeys(fields))


def _counts(source: Source, name: str) -> Ints:
    """How many rows of a field are recorded in each episode."""
    return source.last_rows + 1 if source.fields[name].state else source.lengths


def _pieces(source: Source, name: str, advance: Callable[[int], Any]) -> Iterator[Array]:
    """The recorded values of a field, ``(rows, *field.shape)`` each time.

    Raises:
        EpisodeEvictedError: an episode left the circular buffer before it was read.
    """
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(_counts(source, name))))
    size = max(1, CHUNK_BYTES // (8 * max(1, math.prod(source.fields[name].shape))))
    for begin in range(0, int(offsets[-1]), size):
        end = min(begin + size, int(offsets[-1]))
        low = int(np.searchsorted(offsets, begin, side="right")) - 1
        high = int(np.searchsorted(offsets, end))
        inside = np.minimum(offsets[low + 1 : high + 1], end) - np.maximum(offsets[low:high], begin)
        rows = np.repeat(source.starts[low:high] - offsets[low:high], inside) + np.arange(begin, end)
        values = source.rows.take(name, rows)
        if not source.are_live(np.arange(low, high)):
            raise EpisodeEvictedError(
                "an episode was evicted from the circular buffer while its statistics were taken; choose newer "
                "ones or take them while nothing is recorded"
            )
        yield values
        advance(end - begin)


# --- the file in the folder ---


def _key(source: Source, quantiles: tuple[float, ...]) -> str:
    """Tells one state of a buffer, selection of episodes and of quantiles from another."""
    (part,) = source.parts
    counters, metadata = part.counters, part.metadata
    state = (metadata.uuid, metadata.revision, counters.first, counters.next, counters.deletions, quantiles)
    digest = hashlib.sha256(repr(state).encode())
    for array in (source.ids, source.starts, source.lengths, source.has_final):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _entries(source: Source) -> dict[str, Any]:
    """What is in the file, by key; nothing where it cannot be read."""
    with suppress(OSError, GymReplayError, ValueError, KeyError, TypeError, AttributeError):
        with os.fdopen(open_beneath(source.parts[0].reader.folder, CACHE, os.O_RDONLY), "rb") as stream:
            document = parse_json(stream.read(LARGEST + 1))
        if _FORMAT.items() <= document.items():
            return dict(document["entries"])
    return {}


def _load(source: Source, key: str, quantiles: tuple[float, ...]) -> dict[str, FieldStatistics]:
    found = {}
    with suppress(ValueError, KeyError, TypeError, AttributeError, OverflowError):
        for name, value in _entries(source).get(key, {}).items():
            if name in source.fields:
                found[name] = _from_json(source.fields[name], value, quantiles)
    return found


def _store(source: Source, key: str, found: Mapping[str, FieldStatistics]) -> None:
    """Keep these, where the folder can be written."""
    others = {other: entry for other, entry in _entries(source).items() if other != key}
    entries = [*others.items()][1 - _MOST_ENTRIES :]
    entries.append((key, {name: _to_json(statistics) for name, statistics in found.items()}))
    content = json.dumps({**_FORMAT, "entries": dict(entries)}, allow_nan=False).encode()
    if size_fault(content) is None:
        with suppress(OSError, GymReplayError), Directory(source.parts[0].reader.folder) as directory:
            replace_file(directory, CACHE, f"{CACHE}.new", content)


def _to_json(found: FieldStatistics) -> dict[str, Any]:
    lists = {name: _listed(getattr(found, name)) for name in _ARRAYS}
    return {**lists, "quantiles": [_listed(values) for values in found.quantiles.values()]}


def _listed(values: Array) -> list[float | str]:
    """A flat list of numbers, and of strings for what JSON does not have."""
    return [value if math.isfinite(value) else str(value) for value in values.reshape(-1).tolist()]


def _from_json(field: Field, value: Mapping[str, Any], quantiles: tuple[float, ...]) -> FieldStatistics:
    """The statistics of one field; raises ValueError, KeyError, TypeError or OverflowError where they are damaged."""
    shape = statistics_shape(field)
    count, mean, std, low, high, *rest = (
        np.array([float(item) for item in listed], np.float64).reshape(shape)
        for listed in (*(value[name] for name in _ARRAYS), *value["quantiles"])
    )
    if (std < 0).any() or not ((count >= 0) & (count < 1 << 53) & (count % 1 == 0)).all():
        raise ValueError("no statistics")
    return FieldStatistics(count.astype(np.int64), mean, std, low, high, dict(zip(quantiles, rest, strict=True)))

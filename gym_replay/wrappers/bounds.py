"""Values outside of their space's bounds: they are kept, counted, and warned about once for each field."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import Piece
from gym_replay.spaces import Leaf
from gym_replay.spaces.node import standard_node

RUN_BYTES = 1 << 18
"""Bytes that are compared at once: to compare each short episode would cost more than its steps."""

_AT_ONCE = 1 << 16
"""Elements that one comparison takes, at most, unless a row has more."""

Bound = npt.NDArray[Any]


class BoundsCheck:
    """Compares rows with the bounds of their spaces, some time after they were written.

    Args:
        leaves: the fields; those that are ragged, or whose dtype has no other values, are not compared.
    """

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self._bounds = {
            leaf.name: _Bounds(*bounds, leaf.field.shape)
            for leaf in leaves
            if not leaf.field.ragged and leaf.field.nbytes and (bounds := _bounds_of(leaf)) is not None
        }
        self._fields = {leaf.name: leaf.field for leaf in leaves}
        # Of each field the id, the first row, whether it ends with row T, and the bytes, one after another: a tuple for
        # each episode is one more object that Python's garbage collector looks at.
        self._pending: dict[str, list[Any]] = {name: [] for name in self._bounds}
        self._nbytes = 0
        self.counts: dict[str, int] = {}

    @property
    def names(self) -> Collection[str]:
        """The fields that are compared."""
        return self._bounds.keys()

    def add(self, episode: int, pieces: Sequence[Piece], ends_with_row_t: bool) -> None:
        """What was written of an episode; with row T, that is no value of fields without state."""
        for name, _, first, data in pieces:
            if name in self._pending:
                self._pending[name].extend((episode, first, ends_with_row_t, data))
                self._nbytes += len(data)
        if self._nbytes >= RUN_BYTES:
            self.finish()

    def finish(self) -> None:
        """Compare all that was given."""
        self._nbytes = 0
        for name, pending in self._pending.items():
            given, pending[:] = pending[:], []
            # Row T is among them: mostly it is inside, and there is nothing to tell apart.
            if given and self._bounds[name].exclude_any(self._rows(name, b"".join(given[3::4]))):
                field = self._fields[name]
                self._count(
                    name,
                    [
                        (episode, first, data[: -field.nbytes] if ends_with_row_t and not field.state else data)
                        for episode, first, ends_with_row_t, data in zip(*[iter(given)] * 4, strict=True)
                    ],
                )

    def _rows(self, name: str, data: bytes) -> npt.NDArray[Any]:
        field = self._fields[name]
        return np.frombuffer(data, field.dtype).reshape(-1, *field.shape)

    def _count(self, name: str, pending: list[tuple[int, int, bytes]]) -> None:
        """Count the rows that are outside of stretches: an episode's id, the first row, and the bytes of each."""
        bounds = self._bounds[name]
        rows = self._rows(name, b"".join(data for _, _, data in pending))
        outside = (rows < bounds.low) | (rows > bounds.high)  # NaN is neither
        places = np.flatnonzero(outside.reshape(len(rows), -1).any(axis=1))
        if len(places) == 0:
            return
        is_first, self.counts[name] = name not in self.counts, self.counts.get(name, 0) + len(places)
        if is_first:
            self._warn(name, rows, outside, pending, int(places[0]))

    def _warn(self, name: str, rows: Bound, outside: Bound, pending: list[tuple[int, int, bytes]], place: int) -> None:
        field, bounds = self._fields[name], self._bounds[name]
        index = tuple(int(at[0]) for at in np.nonzero(outside[place])) if field.shape else ()
        value = rows[place][index]
        lowest, highest = (np.broadcast_to(bound, field.shape)[index] for bound in (bounds.low, bounds.high))
        ends = np.cumsum([len(data) // field.nbytes for _, _, data in pending])
        number = int(np.searchsorted(ends, place, side="right"))
        episode, first, data = pending[number]
        row = first + place - int(ends[number]) + len(data) // field.nbytes
        where = f"episode {episode}, row {row}" + (f", index {index}" if index else "")
        warnings.warn(
            f"{name}: {value} is outside of its space's bounds {lowest} to {highest} ({where}); such values are kept "
            "as they are, and counted in out_of_bounds",
            stacklevel=2,
        )


def _bounds_of(leaf: Leaf) -> tuple[Bound, Bound] | None:
    """Lowest and highest value of each element, or None where every value of the dtype is inside."""
    bounds = standard_node(leaf.space).bounds(leaf.space)
    if bounds is None:
        return None
    (low, high), dtype = bounds, leaf.field.dtype
    if dtype.kind == "b" or dtype != leaf.space.dtype:  # another storage dtype rounds, and may round out of the bounds
        return None
    info: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    if dtype.kind == "f" and np.isinf(low).all() and np.isinf(high).all():
        return None
    if dtype.kind in "iu" and (low <= info.min).all() and (high >= info.max).all():
        return None
    return low.astype(dtype), high.astype(dtype)


class _Bounds:
    """The lowest and highest value of each element of a row.

    NumPy compares many short rows with one row of bounds in a loop for each, so that the bounds are repeated until
    they are as long as all that is compared: then it is one loop.
    """

    def __init__(self, low: Bound, high: Bound, shape: tuple[int, ...]) -> None:
        self.low, self.high = np.broadcast_to(low, shape), np.broadcast_to(high, shape)
        # Integers from zero on: as unsigned ones, those below zero are the highest.
        self._as: Any = np.dtype(f"u{low.dtype.itemsize}") if low.dtype.kind in "iu" and not low.any() else None
        self._has_low = self._as is None and not (low == -np.inf).all()
        self._has_high = not (high == np.inf).all()
        self._repeat(1)

    def _repeat(self, times: int) -> None:
        low, high = (np.tile(bound.reshape(-1), times) for bound in (self.low, self.high))
        self._tiled = low, high if self._as is None else high.view(self._as)  # one object: an interrupt may come

    def exclude_any(self, rows: Bound) -> bool:
        """Whether any row is outside; NaN is not."""
        values = rows.reshape(-1)
        if self._as is not None:
            values = values.view(self._as)
        count = values.size
        longest = self._tiled[0].size
        if count <= longest:
            return self._exclude(values, count)
        width = self.low.size
        most = max(_AT_ONCE // width, 1) * width
        if longest < min(count, most):
            self._repeat(min(2 * count, most) // width)
            longest = self._tiled[0].size
        return any(self._exclude(part, part.size) for part in np.split(values, range(longest, count, longest)))

    def _exclude(self, values: Bound, count: int) -> bool:
        low, high = self._tiled
        # To look for a 1 among the bytes takes half of the time that NumPy takes to count.
        if self._has_low and 1 in (values < low[:count]).tobytes():
            return True
        return self._has_high and 1 in (values > high[:count]).tobytes()

"""Values outside of their space's bounds: they are kept, counted, and warned about once for each field."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from gym_replay.buffer.storage.staging import Piece
from gym_replay.wrappers.spaces import Leaf

RUN_BYTES = 1 << 18
"""Bytes that are compared at once: to compare each short episode would cost more than its steps."""

_COMPARED = 1 << 10
"""Elements that one comparison takes at least."""

Bound = npt.NDArray[Any]


class BoundsCheck:
    """Compares rows with the bounds of their spaces, some time after they were written.

    Args:
        leaves: the fields; those that are ragged, or whose dtype has no other values, are not compared.
    """

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self._bounds = {
            leaf.name: bounds
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
            if given and any_outside(self._rows(name, b"".join(given[3::4])), *self._bounds[name]):
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
        low, high = self._bounds[name]
        rows = self._rows(name, b"".join(data for _, _, data in pending))
        outside = (rows < low) | (rows > high)  # NaN is neither
        places = np.flatnonzero(outside.reshape(len(rows), -1).any(axis=1))
        if len(places) == 0:
            return
        is_first, self.counts[name] = name not in self.counts, self.counts.get(name, 0) + len(places)
        if is_first:
            self._warn(name, rows, outside, pending, int(places[0]))

    def _warn(self, name: str, rows: Bound, outside: Bound, pending: list[tuple[int, int, bytes]], place: int) -> None:
        field, (low, high) = self._fields[name], self._bounds[name]
        index = tuple(int(at[0]) for at in np.nonzero(outside[place])) if field.shape else ()
        value = rows[place][index]
        lowest, highest = (np.broadcast_to(bound, field.shape)[index] for bound in (low, high))
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
    space = leaf.space
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
    elif isinstance(space, spaces.Discrete):
        low, high = np.asarray(space.start), np.asarray(space.start + space.n - 1)
    elif isinstance(space, spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
    elif isinstance(space, spaces.MultiBinary):
        low, high = np.asarray(0), np.asarray(1)
    else:
        return None
    dtype = leaf.field.dtype
    if dtype.kind == "b" or dtype != space.dtype:  # another storage dtype rounds, and may round out of the bounds
        return None
    info: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    if dtype.kind == "f" and np.isinf(low).all() and np.isinf(high).all():
        return None
    if dtype.kind in "iu" and (low <= info.min).all() and (high >= info.max).all():
        return None
    return _uniform(low), _uniform(high)


def any_outside(rows: Bound, low: Bound, high: Bound) -> bool:
    """Whether any row is outside; NaN is not.

    The lowest and highest values of many rows are found first, lying side by side as one long row: a comparison for
    each value would take several times longer, and one for each short row longer still.
    """
    is_float = rows.dtype.kind == "f"
    lowest, highest = (np.fmin, np.fmax) if is_float else (np.minimum, np.maximum)  # these two skip NaN
    width = math.prod(rows.shape[1:])
    many = min(max(_COMPARED // width, 1), max(len(rows), 1))
    # The last ones are looked at twice, which takes less time than to look at a few short rows.
    for part in (rows[: len(rows) // many * many], rows[-many:] if len(rows) % many else rows[:0]):
        if len(part):
            values = part.reshape(-1, many * width)
            below = lowest.reduce(values, axis=0).reshape(-1, width) < low.reshape(-1)
            if below.any() or (highest.reduce(values, axis=0).reshape(-1, width) > high.reshape(-1)).any():
                return True
    return False


def _uniform(bound: Bound) -> Bound:
    """One number instead of many equal ones: to compare with it is much faster."""
    return bound.reshape(-1)[0] if bound.size and (bound == bound.reshape(-1)[0]).all() else bound

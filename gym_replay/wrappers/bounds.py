"""Values outside of their space's bounds: they are kept, counted, and warned about once for each field."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from gym_replay.buffer.storage.staging import Piece
from gym_replay.wrappers.spaces import Leaf

RUN_BYTES = 1 << 18
"""Bytes of the first field that are compared at once: to compare each short episode would cost more than its steps."""

Bound = npt.NDArray[Any]

Written: TypeAlias = tuple[int, Sequence[Piece], bool]
"""An episode's id, pieces of its fields, and whether each ends with row T, no value of fields without state."""


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
        self._pending: list[Written] = []
        self._nbytes = 0
        self.counts: dict[str, int] = {}

    @property
    def names(self) -> Collection[str]:
        """The fields that are compared."""
        return self._bounds.keys()

    def add(self, written: Written, nbytes: int) -> None:
        """What was written of an episode; ``nbytes`` of the first of its pieces."""
        self._pending.append(written)
        self._nbytes += nbytes
        if self._nbytes >= RUN_BYTES:
            self.finish()

    def finish(self) -> None:
        """Compare all that was given."""
        pending, self._pending, self._nbytes = self._pending, [], 0
        stretches: dict[str, list[tuple[int, int, bytes]]] = {name: [] for name in self._bounds}
        for episode, pieces, ends_with_row_t in pending:
            for name, is_elements, first, data in pieces:
                if name in stretches and not is_elements:
                    info = self._fields[name]
                    values = data[: -info.nbytes] if ends_with_row_t and not info.state else data
                    stretches[name].append((episode, first, values))
        for name, given in stretches.items():
            if given:
                self._compare(name, given)

    def _compare(self, name: str, pending: list[tuple[int, int, bytes]]) -> None:
        field, (low, high) = self._fields[name], self._bounds[name]
        rows = np.frombuffer(b"".join(data for _, _, data in pending), field.dtype).reshape(-1, *field.shape)
        outside = (rows < low) | (rows > high)  # NaN is neither
        if not outside.any():
            return
        places = np.flatnonzero(outside.reshape(len(rows), -1).any(axis=1))
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


def _uniform(bound: Bound) -> Bound:
    """One number instead of many equal ones: to compare with it is much faster."""
    return bound.reshape(-1)[0] if bound.size and (bound == bound.reshape(-1)[0]).all() else bound

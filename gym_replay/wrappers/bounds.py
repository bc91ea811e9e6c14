"""Values outside of their space's bounds: they are kept, counted, and warned about once for each field."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import Piece, decoded
from gym_replay.spaces import Leaf
from gym_replay.spaces.node import standard_node

RUN_BYTES = 1 << 18
"""Bytes that are compared at once: to compare each short episode would cost more than its steps (``record``)."""

_Array: TypeAlias = "npt.NDArray[Any]"
_Rows: TypeAlias = "tuple[int, int, _Array | None, bool, Any]"
"""The first episode's id and its first row, where each of several episodes ends, whether each ends with row T, and a
buffer of all rows."""


class BoundsCheck:
    """Compares rows with the bounds of their spaces, some time after they were written.

    Args:
        leaves: the fields as they are stored; those that are ragged, or have a lossy codec, or whose dtype has no other
            values, are not compared.

    Attributes:
        counts: by field, how many rows were outside.
    """

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self._bounds = {leaf.name: bounds for leaf in leaves if (bounds := bounds_of(leaf)) is not None}
        self._fields = {leaf.name: leaf.field for leaf in leaves}
        self._pending: dict[str, list[_Rows]] = {name: [] for name in self._bounds}
        self._nbytes = 0
        self.counts: dict[str, int] = {}

    @property
    def names(self) -> Collection[str]:
        """The fields that are compared."""
        return self._bounds.keys()

    def add(self, episode: int, pieces: Sequence[Piece], ends_with_row_t: bool) -> None:
        """What was written of one episode, and whether it ends with row T."""
        encoded: bytes | memoryview = b""
        for name, is_elements, first, data in pieces:
            if name in self._pending:
                if is_elements:
                    encoded = data  # the spans come next
                    continue
                if self._fields[name].codec is not None:
                    data = decoded(self._fields[name], encoded, data).tobytes()
                self._add(name, (episode, first, None, ends_with_row_t, data), len(data))

    def add_block(self, first_id: int, rows: Mapping[str, _Array], ends: _Array, lengths: Sequence[int]) -> None:
        """The rows of episodes that were committed together.

        Args:
            first_id: the id of the first.
            rows: by field, those of all episodes; nobody changes them any more.
            ends: one past the last row of each.
            lengths: how many transitions each has.
        """
        ends_with_row_t = ends.item(0) > lengths[0]
        for name in self._bounds:
            self._add(name, (first_id, 0, ends, ends_with_row_t, rows[name]), rows[name].nbytes)

    def _add(self, name: str, rows: _Rows, nbytes: int) -> None:
        self._pending[name].append(rows)
        self._nbytes += nbytes
        if self._nbytes >= RUN_BYTES:
            self.finish()

    def finish(self) -> None:
        """Compare all that was given."""
        self._nbytes = 0
        for name, pending in self._pending.items():
            given, pending[:] = pending[:], []
            # Row T is among them: mostly it is inside, and there is nothing to tell apart.
            if given and self._may_be_outside(name, b"".join([rows[-1] for rows in given])):
                for rows in given:
                    self._count(name, *rows)

    def _rows(self, name: str, data: Any) -> _Array:
        field = self._fields[name]
        return np.frombuffer(data, field.dtype).reshape(-1, *field.shape)

    def _may_be_outside(self, name: str, data: bytes | memoryview) -> bool:
        rows, (low, high) = self._rows(name, data), self._bounds[name]
        if len(rows) == 0:
            return False
        if low.ndim == high.ndim == 0:  # to find one minimum takes a fraction of the time
            with np.errstate(invalid="ignore"):  # NaN is neither, and looked at again
                return not (rows.min() >= low and rows.max() <= high)
        # One loop over all values, which pays on "1024" of benchmarks.record_vector: NumPy has one for each short row.
        values, (low, high) = rows.reshape(-1), (np.tile(bound.reshape(-1), len(rows)) for bound in (low, high))
        return bool((values < low).any() or (values > high).any())

    def _count(
        self, name: str, first_id: int, first: int, ends: _Array | None, ends_with_row_t: bool, data: Any
    ) -> None:
        """Count the rows of some episodes that are outside, and warn of the field's first one."""
        rows, (low, high) = self._rows(name, data), self._bounds[name]
        edges = np.append(0, len(rows) if ends is None else ends)
        outside = (rows < low) | (rows > high)
        if ends_with_row_t and not self._fields[name].state:  # row T is no value of it
            outside[edges[1:] - 1] = False
        found = np.flatnonzero(outside.reshape(len(rows), -1).any(axis=1))
        if len(found) == 0:
            return
        is_first, self.counts[name] = name not in self.counts, self.counts.get(name, 0) + len(found)
        if not is_first:
            return
        at = int(found[0])
        nth = int(np.searchsorted(edges, at, side="right")) - 1
        shape = rows.shape[1:]
        index = tuple(int(axis[0]) for axis in np.nonzero(outside[at])) if shape else ()
        lowest, highest = (np.broadcast_to(bound, shape)[index] for bound in (low, high))
        where = f"episode {first_id + nth}, row {first + at - int(edges[nth])}" + (f", index {index}" if index else "")
        warnings.warn(
            f"{name}: {rows[at][index]} is outside of its space's bounds {lowest} to {highest} ({where}); such values "
            "are kept as they are, and counted in out_of_bounds",
            stacklevel=2,
        )


def bounds_of(leaf: Leaf) -> tuple[_Array, _Array] | None:
    """Lowest and highest value of each element, each one number where all are the same.

    None where every value of the dtype is inside, and of fields that are not compared.
    """
    bounds, dtype = standard_node(leaf.space).bounds(leaf.space), leaf.field.dtype
    if bounds is None or leaf.field.ragged or leaf.field.is_lossy or not leaf.field.nbytes:
        return None
    if dtype.kind == "b" or dtype != leaf.space.dtype:  # another storage dtype rounds, and may round out of the bounds
        return None
    low, high = (np.asarray(bound, dtype) for bound in bounds)
    least, most = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if (low == least).all() and (high == most).all():
        return None
    is_uniform = (low == low.flat[0]).all() and (high == high.flat[0]).all()
    return (low.flat[0], high.flat[0]) if is_uniform else (low, high)

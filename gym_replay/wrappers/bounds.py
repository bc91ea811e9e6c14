"""Values outside of their space's bounds: they are kept, counted, and warned about once for each field."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.spaces import Leaf
from gym_replay.spaces.node import standard_node

RUN_BYTES = 1 << 18
"""Bytes that are compared at once: to compare each short episode would cost more than its steps (``record``)."""

_Array: TypeAlias = "npt.NDArray[Any]"


class _Pending(NamedTuple):
    """Rows of one or several episodes that are to be compared.

    Attributes:
        first_id: the first episode's id.
        lengths: T of each episode.
        before: rows of the first one that come before these.
        columns: the rows of each field that is compared.
    """

    first_id: int
    lengths: Sequence[int]
    before: int
    columns: Sequence[Any]


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
        self._fields = {leaf.name: leaf.field for leaf in leaves if leaf.name in self._bounds}
        row_nbytes = sum(field.nbytes for field in self._fields.values())
        self._run = RUN_BYTES // max(row_nbytes, 1)  # in steps
        self._pending: list[_Pending] = []
        self._steps = 0
        self.counts: dict[str, int] = {}

    def add(self, first_id: int, rows: Mapping[str, Any], lengths: Sequence[int], before: int = 0) -> None:
        """Compare rows that were written, which nobody changes any more.

        Args:
            first_id: the id of the first episode.
            rows: by field those of one episode after another, as a block has them.
            lengths: how many transitions each episode has, of one that goes on how many so far.
            before: rows of the first episode that came before these.
        """
        if not self._bounds:
            return
        self._pending.append(_Pending(first_id, lengths, before, [rows[name] for name in self._bounds]))
        self._steps += sum(lengths) - before
        if self._steps >= self._run:
            self.finish()

    def finish(self) -> None:
        """Compare all that was given."""
        pending, self._pending, self._steps = self._pending, [], 0
        messages = []
        for at, name in enumerate(self._bounds):
            columns = [self._content(name, given.columns[at]) for given in pending]
            # Row T is among them: mostly it is inside, and there is nothing to tell apart.
            if pending and self._may_be_outside(name, b"".join(columns)):
                found = [self._count(name, given, column) for given, column in zip(pending, columns, strict=True)]
                messages += [message for message in found if message]
        for message in messages:
            warnings.warn(message, stacklevel=2)

    def _content(self, name: str, column: Any) -> Any:
        """A buffer of rows; of a field with a codec no bytes stand for the default."""
        if not isinstance(column, list):
            return column
        default = self._fields[name].default_value().tobytes()
        return b"".join([row or default for row in column])

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

    def _count(self, name: str, given: _Pending, column: Any) -> str | None:
        """Count the rows that are outside; what to say where they are the field's first."""
        rows, (low, high) = self._rows(name, column), self._bounds[name]
        has_row_t = given.before + len(rows) > sum(given.lengths)
        ends = np.cumsum(np.add(given.lengths, has_row_t)) - given.before
        outside = (rows < low) | (rows > high)
        if has_row_t and not self._fields[name].state:  # row T is no value of it
            outside[ends - 1] = False
        found = np.flatnonzero(outside.reshape(len(rows), -1).any(axis=1))
        if len(found) == 0:
            return None
        is_first, self.counts[name] = name not in self.counts, self.counts.get(name, 0) + len(found)
        if not is_first:
            return None
        at = int(found[0])
        nth = int(np.searchsorted(ends, at, side="right"))
        row = at - int(ends[nth - 1]) if nth else given.before + at
        shape = rows.shape[1:]
        index = tuple(int(axis[0]) for axis in np.nonzero(outside[at])) if shape else ()
        lowest, highest = (np.broadcast_to(bound, shape)[index] for bound in (low, high))
        where = f"episode {given.first_id + nth}, row {row}" + (f", index {index}" if index else "")
        return (
            f"{name}: {rows[at][index]} is outside of its space's bounds {lowest} to {highest} ({where}); such values "
            "are kept as they are, and counted in out_of_bounds"
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

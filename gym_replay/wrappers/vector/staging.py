"""The rows of open episodes, time-major: one row of all sub-environments for each vector step.

The small fields of a step are packed into one record for each sub-environment, so that an episode that is taken out
touches memory once for each of its rows, not once for each of its values; a large field has a ring of its own. The
rings are rings over time that grow with the longest open episode. Past :data:`STAGING_BYTES` the oldest rows go to
nameless files in the buffer's folder, which are gone with the process, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.schema.fields import Field
from gym_replay.wrappers.vector.batches import BatchEncoder, Column
from gym_replay.wrappers.vector.ring import FEWEST_ROWS, Numbers, Ring

STAGING_BYTES = 1 << 28
"""Bytes of open episodes that are kept in memory; ragged fields, which always are, do not count."""

_LARGE = 256
"""Bytes of a value from which on its field has a ring of its own."""

_FIRST_ROWS = 16

_RaggedRows = dict[int, list[npt.NDArray[Any]]]
"""By time, the values of all sub-environments."""


class Staging:
    """The rows of all open episodes.

    Args:
        fields: the fields that rows have.
        num_envs: how many sub-environments there are.
        folder: the buffer's.
    """

    def __init__(self, fields: Mapping[str, Field], num_envs: int, folder: Path) -> None:
        self._num_envs, self._folder = num_envs, folder
        self._fields: dict[str, Field] = {}
        self._rings: list[Ring] = []
        self._ring_of: dict[str, Ring] = {}
        self._ragged: dict[str, _RaggedRows] = {}
        self._no_bytes: dict[str, bytes] = {}
        self._multiples = np.arange(0)
        self.full_at = 0
        self.add_fields(fields, 0)

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields that rows have; another object after each change."""
        return self._fields

    def check(self, fields: Mapping[str, Field]) -> None:
        """Raise FieldError where a value so far would change in the wider dtype of a field; others are new."""
        for ring in self._rings:
            wider = {name: fields[name] for name in ring.fields if name in fields}
            if wider:
                ring.check(wider)

    def add_fields(self, fields: Mapping[str, Field], now: int) -> None:
        """Take more fields, of which all rows so far hold the default, or take a wider dtype for some."""
        wider, fields = fields, {name: info for name, info in fields.items() if name not in self._fields}
        rings = [ring.with_fields(wider) if wider.keys() & ring.fields.keys() else ring for ring in self._rings]
        dense = {name: info for name, info in fields.items() if not info.ragged and info.nbytes}
        small = {name: info for name, info in dense.items() if info.nbytes < _LARGE}
        large = [{name: info} for name, info in dense.items() if info.nbytes >= _LARGE]
        rows = len(self._rings[0].ring) if self._rings else _FIRST_ROWS
        new = []
        for group in ([small] if small else []) + large:
            width = max(sum(info.nbytes for info in group.values()) * self._num_envs, 1)
            while rows > FEWEST_ROWS and rows * width > STAGING_BYTES:
                rows //= 2
            ring = Ring(group, self._num_envs, rows, self._folder)
            ring.begin_at(max(now - rows + 2, 0))
            new.append(ring)
        found = {name: ring for ring in (*rings, *new) for name in ring.fields}
        ragged: dict[str, dict[int, list[npt.NDArray[Any]]]] = {
            name: {} for name, info in fields.items() if info.ragged
        }
        self.__dict__.update(
            _fields={**self._fields, **wider},
            _rings=[*rings, *new],
            _ring_of=found,
            _ragged={**self._ragged, **ragged},
            _no_bytes={**self._no_bytes, **dict.fromkeys(fields.keys() - dense.keys(), b"")},
            full_at=0,
        )

    def redefine(self, name: str, field: Field, now: int) -> None:
        """Let a field be another one. Of the rows, only the one of ``now`` is kept, without that field."""
        kept = {each: self.read(now, each) for each in self._fields if each != name}
        other = Staging({**self._fields, name: field}, self._num_envs, self._folder)
        other.make_room(now, lambda: now)
        for each, values in kept.items():
            other.write(now, each, values)
        self.release()
        self.__dict__.update(other.__dict__)

    def release(self) -> None:
        """Let the files go: no episode is open."""
        for ring in self._rings:
            ring.release()

    @property
    def nbytes(self) -> int:
        """Bytes in memory, apart from those of ragged fields."""
        return sum(ring.nbytes for ring in self._rings)

    def make_room(self, now: int, low: Callable[[], int]) -> None:
        """Have room for the rows of ``now`` and of the time after it; times before ``low()`` are needed no more.

        Raises:
            StorageError: rows had to go to a file, and the disk refused.
        """
        for ring in self._rings:
            if now >= ring.full_at:
                ring.make_room(now, low(), STAGING_BYTES - self.nbytes + ring.nbytes)
        full_at = min((ring.full_at for ring in self._rings), default=now + _FIRST_ROWS)
        if self._ragged:
            lowest, full_at = low(), min(full_at, now + _FIRST_ROWS)
            self._ragged = {
                name: {time: row for time, row in rows.items() if time >= lowest} for name, rows in self._ragged.items()
            }
        self.full_at = full_at

    def write(self, time: int, name: str, values: Column, numbers: Numbers | None = None) -> None:
        """Put a field's values into the row of a time: those of all sub-environments, or of those with the numbers."""
        ring = self._ring_of.get(name)
        if ring is not None:
            row_of_all = ring.rows[name][time & ring.mask]
            row_of_all[... if numbers is None else numbers] = values
        elif name in self._ragged:
            row = self._ragged[name].setdefault(time, [self._fields[name].default_value()] * self._num_envs)
            for number, value in zip(
                range(self._num_envs) if numbers is None else numbers.tolist(), values, strict=True
            ):
                row[number] = value

    def put(self, time: int, encoder: BatchEncoder, value: Any) -> None:
        """Put a value of a batched space into the row of a time.

        Raises:
            FieldError: it does not fit; the row means nothing then.
        """
        ring_of = self._ring_of
        name, dtype, shape = encoder.plain
        if type(value) is np.ndarray and value.dtype is dtype and value.shape == shape and name in ring_of:
            ring = ring_of[name]
            ring.rows[name][time & ring.mask][...] = value
            return
        for leaf, values in zip(encoder.leaves, encoder.encode(value), strict=True):
            if leaf.name in ring_of:
                ring = ring_of[leaf.name]
                ring.rows[leaf.name][time & ring.mask][...] = values
            else:
                self.write(time, leaf.name, values)

    def write_reward(self, time: int, rewards: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Put the rewards into the row of a time; they as they are there."""
        ring = self._ring_of.get("reward")
        if ring is None:  # of a shape without elements
            return rewards
        row = ring.rows["reward"][time & ring.mask]
        row[...] = rewards
        return row

    def write_default(self, time: int, name: str) -> None:
        """Put the field's default into the row of a time."""
        info = self._fields[name]
        if info.ragged:
            self._ragged[name].pop(time, None)
        else:
            self.write(time, name, info.default_value())

    def read(self, time: int, name: str) -> Column:
        """A field's values of all sub-environments in the row of a time, which is one of the last two."""
        if name in self._ring_of:
            ring = self._ring_of[name]
            return np.array(ring.rows[name][time & ring.mask])
        info = self._fields[name]
        if name in self._ragged:
            row: list[npt.NDArray[Any]] = self._ragged[name].get(time, [info.default_value()] * self._num_envs)
            return row
        return _without_bytes(self._num_envs, info)

    def columns(self, numbers: Numbers, starts: Numbers, edges: Numbers) -> dict[str, Column]:
        """The rows of several episodes, one after another, by field; those of ragged fields as a list.

        Args:
            numbers, starts: of each episode: the sub-environment, and the first time.
            edges: the first row of each, and the end.
        """
        count, every, firsts = int(edges[-1]), self._num_envs, edges[:-1]
        rows = edges[1:] - firsts
        if count > len(self._multiples):
            self._multiples = np.arange(2 * count) * every
        found: dict[str, Column] = {}
        mask, places = -1, self._multiples
        for ring in self._rings:
            if ring.mask != mask:
                mask = ring.mask
                begins = starts & mask
                begins -= firsts
                begins *= every
                begins += numbers
                places = begins.repeat(rows)
                places += self._multiples[:count]
            ring.add_columns(found, numbers, starts, edges, places)
        for name, held in self._ragged.items():
            empty = [self._fields[name].default_value()] * every
            found[name] = [
                held.get(time, empty)[number]
                for number, start, length in zip(numbers.tolist(), starts.tolist(), rows.tolist(), strict=True)
                for time in range(start, start + length)
            ]
        self._add_empty(found, count)
        return found

    def columns_of_one(self, number: int, start: int, rows: int) -> dict[str, Column] | None:
        """The rows of one episode by field; None where some went to a file, or are ragged."""
        found: dict[str, Column] = {}
        for ring in self._rings:
            if start < ring.hot:
                return None
            ring.add_one(found, number, start, rows)
        if self._ragged:
            return None
        self._add_empty(found, rows)
        return found

    def _add_empty(self, found: dict[str, Column], rows: int) -> None:
        """Add the fields whose values have no bytes."""
        if len(found) < len(self._fields):
            for name, info in self._fields.items():
                if name not in found:
                    found[name] = _without_bytes(rows, info)


def _without_bytes(rows: int, info: Field) -> npt.NDArray[Any]:
    nothing: npt.NDArray[Any] = np.zeros((rows, *info.shape), info.dtype)
    return nothing

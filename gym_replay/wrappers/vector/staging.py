"""The rows of open episodes, time-major: for each field one array over time and sub-environments.

The arrays are rings over time, which grow with the longest open episode. Past :data:`STAGING_BYTES` the oldest rows go
to a nameless file in the buffer's folder, which is gone with the process, however it ends. All that changes at once is
one frozen object that is replaced, so that an interrupt leaves the rows as they were or as they are afterwards.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gym_replay.cached import cached_property
from gym_replay.files.directory import storage_error
from gym_replay.files.garbage import Descriptor
from gym_replay.files.writing import read_at, write_at
from gym_replay.schema.fields import Field, widened
from gym_replay.wrappers.vector.autoreset import EnvIndices
from gym_replay.wrappers.vector.batches import Column, default_of

Ints = npt.NDArray[np.int64]

STAGING_BYTES = 1 << 28
"""Bytes of open episodes that are kept in memory; ragged fields, which always are, do not count."""

FIRST_ROWS, FEWEST_ROWS = 16, 8
"""Powers of two, as all numbers of rows are: the row of a time is at ``time & (rows - 1)``."""


def _nameless_file(folder: Path) -> Descriptor:
    """A file without a name, which is closed when nothing refers to it."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            return Descriptor(os.dup(file.fileno()))
    except OSError as error:
        raise storage_error(error, folder, 0) from error


@dataclass(frozen=True)
class _Spilled:
    """Rows of one stretch of time that went to a file: of each field those of a sub-environment side by side.

    Attributes:
        first, count: the stretch of time.
        fields: what the rows are made of.
        offsets: where the rows of each field begin in the file.
        offset, end: where all of them begin and end.
        file: the file.
        ragged: the values of ragged fields, which stay in memory: ``(num_envs, count)``.
    """

    first: int
    count: int
    fields: Mapping[str, Field]
    offsets: Mapping[str, int]
    offset: int
    end: int
    file: Descriptor
    ragged: Mapping[str, Column]

    def read(self, name: str, env_index: int, begin: int, end: int) -> Column:
        """A field's rows of one sub-environment from time ``begin`` to ``end - 1``."""
        if name in self.ragged:
            values: Column = self.ragged[name][env_index, begin - self.first : end - self.first]
            return values
        info, row = self.fields[name], env_index * self.count + begin - self.first
        data = read_at(self.file.number, (end - begin) * info.nbytes, self.offsets[name] + row * info.nbytes)
        rows: Column = np.ndarray((end - begin, *info.shape), info.dtype, data)
        return rows


@dataclass(frozen=True)
class Rows:
    """The rows of all open episodes at one moment.

    Attributes:
        fields: what a row is made of.
        arrays: of each field ``(count, num_envs, *field.shape)``; of a ragged one ``(count, num_envs)``, objects.
        count: rows of each array.
        first: the earliest time whose row is in the arrays.
        spilled: the rows of earlier times that are still needed.
    """

    fields: Mapping[str, Field]
    arrays: Mapping[str, Column]
    count: int
    first: int = 0
    spilled: tuple[_Spilled, ...] = ()

    @cached_property
    def mask(self) -> int:
        """The row of a time is at ``time & mask``."""
        return self.count - 1

    @cached_property
    def full_at(self) -> int:
        """The first time before which :meth:`Staging.make_room` must be called."""
        return self.first + self.count - 1

    @cached_property
    def flat(self) -> dict[str, Column]:
        """The arrays with one axis for time and sub-environment together."""
        return {name: array.reshape(-1, *array.shape[2:]) for name, array in self.arrays.items()}

    @cached_property
    def defaults(self) -> dict[str, Column]:
        """The default of each field, as it is assigned to rows."""
        return {name: default_of(info) for name, info in self.fields.items()}

    @cached_property
    def row_t(self) -> dict[str, Column]:
        """The defaults of the fields that have no value at the last observation of an episode."""
        return {name: self.defaults[name] for name, info in self.fields.items() if not info.state}

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the arrays, apart from those of ragged fields."""
        return sum(array.nbytes for name, array in self.arrays.items() if not self.fields[name].ragged)

    def resized(self, fields: Mapping[str, Field], num_envs: int, count: int) -> Rows:
        """These rows in arrays of another length and of other fields; what is new, or has a new shape, is default."""
        arrays = {}
        for name, info in fields.items():
            default = default_of(info)
            arrays[name] = array = np.zeros((count, num_envs, *default.shape), default.dtype)
            if any(default.tobytes()):
                array[...] = default
        same = [(arrays[name], old) for name, old in self.arrays.items() if arrays[name].shape[2:] == old.shape[2:]]
        time, end = self.first, self.first + min(count, self.count)
        while time < end:  # stretches that wrap in neither of the rings
            at, before = time & (count - 1), time & self.mask
            length = min(end - time, count - at, self.count - before)
            for array, old in same:
                array[at : at + length] = old[before : before + length]
            time += length
        return replace(self, fields=fields, arrays=arrays, count=count)

    def with_spilled(self, until: int, folder: Path) -> Rows:
        """These rows, those before the time ``until`` in the file.

        Raises:
            StorageError: the disk refused.
        """
        count, times = until - self.first, np.arange(self.first, until) & self.mask
        by_env = {name: np.ascontiguousarray(array[times].swapaxes(0, 1)) for name, array in self.arrays.items()}
        ragged = {name: by_env.pop(name) for name, info in self.fields.items() if info.ragged}
        nbytes, offset = sum(rows.nbytes for rows in by_env.values()), 0
        for other in sorted(self.spilled, key=lambda other: other.offset):  # the first gap that is large enough
            if offset + nbytes <= other.offset:
                break
            offset = other.end
        file = self.spilled[-1].file if self.spilled else _nameless_file(folder)
        offsets, end = {}, offset
        for name, rows in by_env.items():
            offsets[name] = end
            if rows.nbytes:
                write_at(file.number, rows.data, end, folder)
            end += rows.nbytes
        spilled = _Spilled(self.first, count, self.fields, offsets, offset, end, file, ragged)
        return replace(self, first=until, spilled=(*self.spilled, spilled))


class Staging:
    """The rows of all open episodes.

    Args:
        fields: what a row is made of.
        num_envs: how many sub-environments there are.
        folder: the buffer's.

    Attributes:
        rows: what there is at this moment; another object after each change but those of values.
    """

    def __init__(self, fields: Mapping[str, Field], num_envs: int, folder: Path) -> None:
        self._num_envs, self._folder = num_envs, folder
        self.rows = Rows({}, {}, FIRST_ROWS)
        self._offsets = np.arange(0)
        self.change_fields(fields, 0)

    def check(self, fields: Mapping[str, Field]) -> None:
        """Raise FieldError where a value so far would change in the wider dtype of a field; others are new."""
        rows = self.rows
        for name, before in rows.fields.items():
            if name in fields and fields[name].dtype != before.dtype:
                widened(name, rows.arrays[name], fields[name].dtype)
                for part in rows.spilled:
                    for env_index in range(self._num_envs if name in part.fields else 0):
                        values = part.read(name, env_index, part.first, part.first + part.count)
                        widened(name, values, fields[name].dtype)

    def change_fields(self, fields: Mapping[str, Field], now: int) -> None:
        """Take more fields, of which all rows so far hold the default, or fields with a wider dtype or another shape.

        Raises:
            StorageError: rows had to go to a file, and the disk refused.
        """
        rows, fields = self.rows, {**self.rows.fields, **fields}
        width = self._num_envs * sum(info.nbytes for info in fields.values() if not info.ragged)
        count = rows.count
        while count > FEWEST_ROWS and count * width > STAGING_BYTES:
            count //= 2
        self.rows = self._spill(rows, now, count).resized(fields, self._num_envs, count)

    def make_room(self, now: int, low: Callable[[], int]) -> None:
        """Have room for the rows of ``now`` and of the time after it; times before ``low()`` are needed no more.

        Raises:
            StorageError: rows had to go to a file, and the disk refused.
        """
        rows, lowest = self.rows, min(low(), now)
        spilled = tuple(part for part in rows.spilled if part.first + part.count > lowest)
        rows = replace(rows, first=max(rows.first, lowest), spilled=spilled)
        if now >= rows.full_at and 2 * rows.nbytes <= STAGING_BYTES:
            rows = rows.resized(rows.fields, self._num_envs, 2 * rows.count)
        self.rows = self._spill(rows, now, rows.count)

    def _spill(self, rows: Rows, now: int, count: int) -> Rows:
        """These rows, of which as many are in the file as it takes to have room for ``now`` in ``count`` ones."""
        if now < rows.first + count - 1:
            return rows
        return rows.with_spilled(now + 2 - count + count // 4, self._folder)

    def release(self) -> None:
        """Forget the rows that went to the file, and close it: no episode is open."""
        self.rows = replace(self.rows, spilled=())

    # --- one time ---

    def put(self, time: int, columns: Mapping[str, Column]) -> None:
        """Put the values of fields, those of all sub-environments or one for all, into the row of a time."""
        rows = self.rows
        arrays, row = rows.arrays, time & rows.mask
        for name, values in columns.items():
            arrays[name][row] = values

    def put_row_t(self, time: int) -> None:
        """Have the default where episodes have no value at their last observation, which is in the row of a time."""
        self.put(time, self.rows.row_t)

    def put_some(self, time: int, columns: Mapping[str, Column], env_indices: EnvIndices) -> None:
        """Put the values of fields, those of some sub-environments, into the row of a time."""
        rows = self.rows
        for name, values in columns.items():
            rows.arrays[name][time & rows.mask][env_indices] = values

    def read(self, time: int, name: str) -> Column:
        """A copy of a field's values of all sub-environments in the row of a time, which is one of the last two."""
        rows = self.rows
        return np.array(rows.arrays[name][time & rows.mask])

    def take(self, name: str, times: Ints, env_indices: Ints) -> Column:
        """A copy of a field's values in the rows of times that are needed, each of one sub-environment.

        Args:
            name: the field.
            times, env_indices: of any shape, the same.

        Returns:
            ``(*times.shape, *field.shape)``.
        """
        rows = self.rows
        found: Column = rows.flat[name].take((times & rows.mask) * self._num_envs + env_indices, axis=0)
        if rows.spilled:
            flat = found.reshape(-1, *found.shape[times.ndim :])
            of_each = zip(times.ravel().tolist(), env_indices.ravel().tolist(), strict=True)
            for index, (time, env_index) in enumerate(of_each):
                if time < rows.first:
                    self._read_spilled(env_index, time, {name: flat[index : index + 1]})
        return found

    # --- whole episodes ---

    def extract(self, env_indices: EnvIndices, starts: Ints, counts: Ints, ends: Ints) -> dict[str, Column]:
        """The rows of several episodes, one episode after another, by field.

        Args:
            env_indices, starts: of each episode the sub-environment, and the first time.
            counts, ends: of each episode how many rows it has, and one past the last of them.
        """
        rows, every, total = self.rows, self._num_envs, ends.item(-1)
        if len(ends) == 1 and not rows.spilled:
            # "8" of benchmarks.record_vector, most of whose commits are of one episode, pays for it.
            first, env_index = starts.item() & rows.mask, env_indices.item()
            if first + total <= rows.count:
                return {name: array[first : first + total, env_index].copy() for name, array in rows.arrays.items()}
        if total > len(self._offsets):
            self._offsets = np.arange(2 * total) * every
        at = starts & rows.mask  # of each row: (time - the time in row 0) * num_envs + the sub-environment
        at += counts
        at -= ends
        at *= every
        at += env_indices
        at = at.repeat(counts)
        at += self._offsets[:total]
        found = {name: flat.take(at, axis=0, mode="wrap") for name, flat in rows.flat.items()}
        if rows.spilled:
            for episode in np.flatnonzero(starts < rows.first).tolist():
                part = slice(int(ends[episode] - counts[episode]), int(ends[episode]))
                columns = {name: column[part] for name, column in found.items()}
                self._read_spilled(int(env_indices[episode]), int(starts[episode]), columns)
        return found

    def _read_spilled(self, env_index: int, start: int, columns: Mapping[str, Column]) -> None:
        """Fill in the rows from time ``start`` on that are in the file, or are older than their field."""
        rows = self.rows
        for name, column in columns.items():
            column[: rows.first - start] = rows.defaults[name]
            for part in rows.spilled:
                begin, end = max(part.first, start), min(part.first + part.count, start + len(column))
                if begin < end and name in part.fields:
                    column[begin - start : end - start] = part.read(name, env_index, begin, end)

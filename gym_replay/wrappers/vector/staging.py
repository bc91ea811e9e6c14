"""The rows of open episodes, time-major: one row of all sub-environments for each vector step.

The small fields of a step are packed into one record for each sub-environment, so that an episode that is taken out
touches memory once for each of its rows, not once for each of its values; a large field has a block of its own. The
blocks are rings over time that grow with the longest open episode. Past :data:`STAGING_BYTES` the oldest rows go to
nameless files in the buffer's folder, which are gone with the process, however it ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.columns import storage_error, write_at
from gym_replay.buffer.storage.fields import Field
from gym_replay.wrappers.vector.batches import Column

STAGING_BYTES = 1 << 28
"""Bytes of open episodes that are kept in memory; ragged fields, which always are, do not count."""

_LARGE = 256
"""Bytes of a value from which on its field has a block of its own."""

_LARGEST_SCRATCH = 1 << 22
_FIRST_ROWS = 16
_FEWEST_ROWS = 8
_SPILLED_SHARE = 4
_CARRIERS = {1: "u1", 2: "u2", 4: "u4", 8: "u8"}

_RaggedRows = dict[int, list[npt.NDArray[Any]]]
"""By time, the values of all sub-environments."""

Numbers = npt.NDArray[np.int64]


class _ColdRows:
    """Rows that went to a file: of each sub-environment the rows of one stretch of time side by side."""

    def __init__(self, first: int, count: int, place: int) -> None:
        self.first, self.count, self.place = first, count, place


class _Block:
    """A ring over time of one record for each sub-environment.

    Args:
        fields: what a record is made of.
        num_envs: how many sub-environments there are.
        rows: how many rows there is room for; a power of two.
        folder: where rows go that there is no memory for.
    """

    def __init__(self, fields: Mapping[str, Field], num_envs: int, rows: int, folder: Path) -> None:
        self.fields = fields
        self._folder, self._num_envs = folder, num_envs
        sizes = [info.nbytes for info in fields.values()]
        # What has a shape is copied as one thing.
        formats = [
            _CARRIERS.get(info.nbytes, f"V{info.nbytes}") if info.shape else info.dtype for info in fields.values()
        ]
        offsets = np.cumsum([0, *(-(-size // 8) * 8 for size in sizes)]).tolist()
        names = [f"f{place}" for place in range(len(sizes))]
        layout: Any = {"names": names, "formats": formats, "offsets": offsets[:-1], "itemsize": offsets[-1]}
        self._parts = np.dtype(layout) if len(sizes) > 1 else np.dtype(formats[0])
        # Records are copied as plain bytes: NumPy would copy one that has gaps field by field.
        self._dtype = np.dtype(f"V{self._parts.itemsize}")
        self._file: Any = None
        self._cold: list[_ColdRows] = []
        self._free: list[int] = []
        self.hot = 0
        # Whether rows of running episodes may be in the file, or nowhere: those before the fields were added.
        self._lacks_rows = False
        values: Any = {
            "names": names,
            "formats": [(info.dtype, info.shape) for info in fields.values()],
            "offsets": offsets[:-1],
            "itemsize": self._parts.itemsize,
        }
        self._values = np.dtype(values)
        self._default = np.zeros(1, self._dtype)
        for name, info in zip(names, fields.values(), strict=True):
            self._default.view(self._values)[name] = info.default_value()
        self._use(self._filled(rows))
        self._use_scratch(np.empty(0, self._dtype))

    def _filled(self, rows: int) -> npt.NDArray[Any]:
        """A ring of defaults; zeros cost nothing before they are used."""
        if not any(self._default.tobytes()):
            return np.zeros((rows, self._num_envs), self._dtype)
        return np.full((rows, self._num_envs), self._default[0], self._dtype)

    def _use(self, ring: npt.NDArray[Any]) -> None:
        values = ring.view(self._values)
        views = {name: values[place] for name, place in zip(self.fields, self._values.names or (), strict=True)}
        # In one call: an interrupt in between would leave views of another ring.
        self.__dict__.update(
            ring=ring,
            flat=ring.reshape(-1),
            rows={name: list(view) for name, view in views.items()},
            parts=[(name, info.state, part) for name, info, part in self._parts_of(ring)],
            mask=len(ring) - 1,
        )

    ring: npt.NDArray[Any]
    flat: npt.NDArray[Any]
    rows: dict[str, list[npt.NDArray[Any]]]
    """Of each field a view of each row: to make one takes as long as to write a few values through it."""
    parts: list[tuple[str, bool, npt.NDArray[Any]]]
    """Of each field its name, whether it is a state, and a view of which each value is one thing."""
    mask: int
    _scratch: npt.NDArray[Any]
    _scratch_parts: list[tuple[str, Field, npt.NDArray[Any]]]

    def _use_scratch(self, records: npt.NDArray[Any]) -> None:
        """Put records that are taken apart at once here: new memory each time would cost as much as to fill it."""
        self.__dict__.update(_scratch=records, _scratch_parts=self._parts_of(records))

    def _parts_of(self, records: npt.NDArray[Any]) -> list[tuple[str, Field, npt.NDArray[Any]]]:
        parts = records.view(self._parts)
        names = parts.dtype.names
        each = [parts] if names is None else [parts[name] for name in names]
        return [(name, info, part) for (name, info), part in zip(self.fields.items(), each, strict=True)]

    def begin_at(self, time: int) -> None:
        """Rows before this time are nowhere."""
        self.hot, self._lacks_rows = time, time > 0

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.ring.nbytes

    def add_bytes(self, found: dict[str, bytes], number: int, start: int, until: int) -> None:
        """Find the fields' values of one sub-environment from ``start`` to ``until``, all of them in memory.

        Fields that are no state have none in the row of ``until``.
        """
        begin, rows = start & self.mask, self.mask + 1
        end = begin + until - start
        for name, is_state, part in self.parts:
            stop = end + is_state
            if stop <= rows:
                found[name] = part[begin:stop, number].tobytes()
            else:
                found[name] = part[begin:, number].tobytes() + part[: stop - rows, number].tobytes()

    @property
    def full_at(self) -> int:
        """The first time of which, and of the one after it, there is no room for the rows."""
        return self.hot + len(self.ring) - 1

    def make_room(self, now: int, low: int, budget: int) -> None:
        """Make it; times before ``low`` are needed no more, and the ring may grow to ``budget`` bytes.

        Raises:
            StorageError: rows had to go to a file, and the disk refused.
        """
        gone = [rows.place for rows in self._cold if rows.first + rows.count <= low]
        hot = max(self.hot, min(low, now))
        self.__dict__.update(
            _free=self._free + gone,
            _cold=[rows for rows in self._cold if rows.first + rows.count > low],
            hot=hot,
            _lacks_rows=low < hot,
        )
        while now >= self.full_at:
            if 2 * self.nbytes <= budget or len(self.ring) < _FEWEST_ROWS:
                self._grow(now)
            else:
                self._spill()

    def _grow(self, now: int) -> None:
        grown = self._filled(2 * len(self.ring))
        time = self.hot
        while time <= now:  # stretches that wrap in neither ring: two or three
            begin, place = time & self.mask, time & (len(grown) - 1)
            count = min(now + 1 - time, len(self.ring) - begin, len(grown) - place)
            grown[place : place + count] = self.ring[begin : begin + count]
            time += count
        self._use(grown)

    def _spill(self) -> None:
        count = max(len(self.ring) // _SPILLED_SHARE, 1)
        times = np.arange(self.hot, self.hot + count)
        rows = np.ascontiguousarray(self.ring[times & self.mask].T)
        data = rows.view(np.uint8).reshape(-1).data
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise storage_error(error, self._folder, len(data)) from error
        place = self._free[-1] if self._free else len(self._cold) * len(data)
        write_at(self._file.fileno(), data, place, self._folder)
        free = self._free[:-1]
        cold = [*self._cold, _ColdRows(self.hot, count, place)]
        self.__dict__.update(hot=self.hot + count, _cold=cold, _free=free, _lacks_rows=True)

    def release(self) -> None:
        """Let the file go, with all rows that are in it."""
        file, self._file = self._file, None
        self.__dict__.update(_cold=[], _free=[])
        if file is not None:
            file.close()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.release()

    def add_columns(
        self, found: dict[str, Any], numbers: Numbers, starts: Numbers, edges: Numbers, places: Numbers
    ) -> None:
        """Find the rows of several episodes, one after another, by field.

        Args:
            found: where to put them.
            numbers, starts: of each episode: the sub-environment, and the first time.
            edges: the first row of each, and the end.
            places: of each row ``time * num_envs + sub-environment``, where the time counts from any that is in the
                ring's first row.
        """
        count = len(places)
        if self._lacks_rows and int(starts.min()) < self.hot:
            parts = self._parts_of(self._gather_cold(numbers, starts, edges, places))
        elif self._parts.names is None or count * self._dtype.itemsize > _LARGEST_SCRATCH:
            parts = self._parts_of(self.flat.take(places, mode="wrap"))
        else:
            if count > len(self._scratch):
                self._use_scratch(np.empty(2 * count, self._dtype))
            parts = self._scratch_parts
            self.flat.take(places, out=self._scratch[:count], mode="wrap")
        for name, info, part in parts:
            column = part if self._parts.names is None else part[:count].copy()
            found[name] = column.view(info.dtype).reshape(count, *info.shape) if info.shape else column

    def _gather_cold(self, numbers: Numbers, starts: Numbers, edges: Numbers, places: Numbers) -> npt.NDArray[Any]:
        """The records of several episodes, of which some are in the file."""
        taken: npt.NDArray[Any] = self.flat.take(places % self.flat.size)
        for episode in np.flatnonzero(starts < self.hot).tolist():
            begin, end = edges[episode : episode + 2].tolist()
            self._read_cold(int(numbers[episode]), int(starts[episode]), taken[begin:end])
        return taken

    def _read_cold(self, number: int, start: int, out: npt.NDArray[Any]) -> None:
        """Fill in the records from time ``start`` on that are in the file."""
        out[: max(self.hot - start, 0)] = self._default[0]  # of fields added later than these rows
        for cold in self._cold:
            begin, end = max(cold.first, start), min(cold.first + cold.count, start + len(out))
            if begin < end:
                width = self._dtype.itemsize
                place = cold.place + (number * cold.count + begin - cold.first) * width
                data = os.pread(self._file.fileno(), (end - begin) * width, place)
                out[begin - start : end - start] = np.frombuffer(data, self._dtype)


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
        self._blocks: list[_Block] = []
        self._block_of: dict[str, _Block] = {}
        self._ragged: dict[str, _RaggedRows] = {}
        self._multiples = np.arange(0)
        self.full_at = 0
        self.add_fields(fields, 0)

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields that rows have; another object after each change."""
        return self._fields

    def add_fields(self, fields: Mapping[str, Field], now: int) -> None:
        """Take more fields, of which all rows so far hold the default."""
        dense = {name: info for name, info in fields.items() if not info.ragged and info.nbytes}
        small = {name: info for name, info in dense.items() if info.nbytes < _LARGE}
        large = [{name: info} for name, info in dense.items() if info.nbytes >= _LARGE]
        rows = len(self._blocks[0].ring) if self._blocks else _FIRST_ROWS
        new = []
        for group in ([small] if small else []) + large:
            width = max(sum(info.nbytes for info in group.values()) * self._num_envs, 1)
            while rows > _FEWEST_ROWS and rows * width > STAGING_BYTES:
                rows //= 2
            block = _Block(group, self._num_envs, rows, self._folder)
            block.begin_at(max(now - rows + 2, 0))
            new.append(block)
        found = {name: block for block in new for name in block.fields}
        ragged: dict[str, dict[int, list[npt.NDArray[Any]]]] = {
            name: {} for name, info in fields.items() if info.ragged
        }
        self.__dict__.update(
            _fields={**self._fields, **fields},
            _blocks=[*self._blocks, *new],
            _block_of={**self._block_of, **found},
            _ragged={**self._ragged, **ragged},
            full_at=0,
        )

    def release(self) -> None:
        """Let the files go: no episode is open."""
        for block in self._blocks:
            block.release()

    @property
    def nbytes(self) -> int:
        """Bytes in memory, apart from those of ragged fields."""
        return sum(block.nbytes for block in self._blocks)

    def make_room(self, now: int, low: Callable[[], int]) -> None:
        """Have room for the rows of ``now`` and of the time after it; times before ``low()`` are needed no more.

        Raises:
            StorageError: rows had to go to a file, and the disk refused.
        """
        for block in self._blocks:
            if now >= block.full_at:
                block.make_room(now, low(), STAGING_BYTES - self.nbytes + block.nbytes)
        full_at = min((block.full_at for block in self._blocks), default=now + _FIRST_ROWS)
        if self._ragged:
            lowest, full_at = low(), min(full_at, now + _FIRST_ROWS)
            self._ragged = {
                name: {time: row for time, row in rows.items() if time >= lowest} for name, rows in self._ragged.items()
            }
        self.full_at = full_at

    def write(self, time: int, name: str, values: Column, numbers: Numbers | None = None) -> None:
        """Put a field's values into the row of a time: those of all sub-environments, or of those with the numbers."""
        block = self._block_of.get(name)
        if block is not None:
            row_of_all = block.rows[name][time & block.mask]
            row_of_all[... if numbers is None else numbers] = values
        elif name in self._ragged:
            row = self._ragged[name].setdefault(time, [self._fields[name].default_value()] * self._num_envs)
            for number, value in zip(
                range(self._num_envs) if numbers is None else numbers.tolist(), values, strict=True
            ):
                row[number] = value

    def write_each(self, time: int, names: Sequence[str], columns: Sequence[Column]) -> None:
        """The same of several fields and all sub-environments."""
        block_of = self._block_of
        for name, values in zip(names, columns, strict=True):
            block = block_of.get(name)
            if block is None:
                self.write(time, name, values)
            else:
                block.rows[name][time & block.mask][...] = values

    def write_reward(self, time: int, rewards: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Put the rewards into the row of a time; they as they are there."""
        block = self._block_of.get("reward")
        if block is None:  # of a shape without elements
            return rewards
        row = block.rows["reward"][time & block.mask]
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
        if name in self._block_of:
            block = self._block_of[name]
            return np.array(block.rows[name][time & block.mask])
        info = self._fields[name]
        if name in self._ragged:
            row: list[npt.NDArray[Any]] = self._ragged[name].get(time, [info.default_value()] * self._num_envs)
            return row
        return _without_bytes(self._num_envs, info)

    def bytes_of(self, number: int, start: int, until: int) -> dict[str, bytes] | None:
        """The rows of one sub-environment from ``start`` to ``until``, by field, unless some went to a file.

        Fields that are no state have none in the row of ``until``.
        """
        found = dict.fromkeys(self._fields, b"")
        for block in self._blocks:
            if start < block.hot:
                return None
            block.add_bytes(found, number, start, until)
        return found

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
        for block in self._blocks:
            if block.mask != mask:
                mask = block.mask
                begins = starts & mask
                begins -= firsts
                begins *= every
                begins += numbers
                places = begins.repeat(rows)
                places += self._multiples[:count]
            block.add_columns(found, numbers, starts, edges, places)
        for name, held in self._ragged.items():
            empty = [self._fields[name].default_value()] * every
            found[name] = [
                held.get(time, empty)[number]
                for number, start, length in zip(numbers.tolist(), starts.tolist(), rows.tolist(), strict=True)
                for time in range(start, start + length)
            ]
        if len(found) < len(self._fields):
            for name, info in self._fields.items():
                if name not in found:  # fields whose values have no bytes
                    found[name] = _without_bytes(count, info)
        return found


def _without_bytes(rows: int, info: Field) -> npt.NDArray[Any]:
    nothing: npt.NDArray[Any] = np.zeros((rows, *info.shape), info.dtype)
    return nothing

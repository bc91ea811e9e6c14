"""A ring over time of one record for each sub-environment; rows that there is no memory for go to a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.files.directory import storage_error
from gym_replay.files.writing import write_at
from gym_replay.schema.fields import Field, widened

Numbers = npt.NDArray[np.int64]

FEWEST_ROWS = 8
"""Rows of a ring, at least."""

_ARENA_BYTES = 1 << 26
"""Bytes of addresses that a ring may grow in without moving; memory is taken when a row is first written."""

_LARGEST_SCRATCH = 1 << 22
_SPILLED_SHARE = 4
_CARRIERS = {1: "u1", 2: "u2", 4: "u4", 8: "u8"}


class _File:
    """A nameless file, which is gone when nobody needs it."""

    def __init__(self, folder: Path) -> None:
        self.file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115

    def fileno(self) -> int:
        """The descriptor."""
        return int(self.file.fileno())

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


@dataclass(frozen=True)
class _ColdRows:
    """Rows that went to a file: of each sub-environment the rows of one stretch of time side by side.

    Attributes:
        first, count: of the stretch.
        place: where they are in the file.
        file: the file.
        values: the dtype of a record.
    """

    first: int
    count: int
    place: int
    file: _File
    values: np.dtype[Any]

    def read(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Some of the records, which lie one after another in the file."""
        width = self.values.itemsize
        data = os.pread(self.file.fileno(), (end - begin) * width, self.place + begin * width)
        return np.frombuffer(data, self.values)


class Ring:
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
        self._file: _File | None = None
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
        arena = self._new_arena(rows)
        self._fill(arena[:rows])
        self._use(arena, rows)
        self._use_scratch(np.empty(0, self._dtype))

    def _new_arena(self, rows: int) -> npt.NDArray[Any]:
        """Memory for so many rows, or for more, to come without moving: zeros cost nothing before they are used."""
        while 2 * rows * self._num_envs * self._dtype.itemsize <= _ARENA_BYTES:
            rows *= 2
        return np.zeros((rows, self._num_envs), self._dtype)

    def _fill(self, rows: npt.NDArray[Any]) -> None:
        if any(self._default.tobytes()):
            rows[...] = self._default[0]

    def _use(self, arena: npt.NDArray[Any], rows: int) -> None:
        """Let the ring be the first so many rows of the memory."""
        ring = arena[:rows]
        known = self.rows if arena is self._arena else {name: [] for name in self.fields}
        before = min(map(len, known.values()))
        values = ring[before:].view(self._values)
        views = {name: list(values[place]) for name, place in zip(self.fields, self._values.names or (), strict=True)}
        # In one call: an interrupt in between would leave views of another ring.
        self.__dict__.update(
            _arena=arena,
            ring=ring,
            flat=ring.reshape(-1),
            rows={name: known[name] + views[name] for name in known},
            parts=self._parts_of(ring),
            mask=rows - 1,
        )

    _arena: npt.NDArray[Any] | None = None
    ring: npt.NDArray[Any]
    flat: npt.NDArray[Any]
    parts: list[tuple[str, Field, npt.NDArray[Any]]]
    """Of each field its name, the field, and a view of which each value is one thing."""
    rows: dict[str, list[npt.NDArray[Any]]]
    """Of each field a view of each row: to make one takes as long as to write a few values through it."""
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

    def check(self, fields: Mapping[str, Field]) -> None:
        """Raise FieldError where a value would change in the wider dtype of a field."""
        cold = [rows.read(0, rows.count * self._num_envs) for rows in self._cold]
        for place, (name, field) in zip(self._values.names or (), self.fields.items(), strict=True):
            if name in fields and fields[name].dtype != field.dtype:
                for records in (self.ring.view(self._values), *cold):
                    widened(name, records[place], fields[name].dtype)

    def with_fields(self, fields: Mapping[str, Field]) -> Ring:
        """The same rows, some fields of which have a wider dtype."""
        wider = {name: fields.get(name, info) for name, info in self.fields.items()}
        ring = Ring(wider, self._num_envs, len(self.ring), self._folder)
        ring._copy(ring.ring, self.ring.view(self._values))
        ring.hot, ring._lacks_rows, ring._cold = self.hot, self._lacks_rows, self._cold
        return ring

    def _copy(self, records: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
        """Fill records with values, some fields of which may have a narrower dtype."""
        if values.dtype == self._values:
            records[...] = values.view(self._dtype)
            return
        for place in self._values.names or ():
            records.view(self._values)[place] = values[place]

    def begin_at(self, time: int) -> None:
        """Rows before this time are nowhere."""
        self.hot, self._lacks_rows = time, time > 0

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.ring.nbytes

    def add_one(self, found: dict[str, Any], number: int, start: int, count: int) -> None:
        """Find ``count`` rows of one sub-environment from time ``start`` on, all of them in memory, by field."""
        begin, rows = start & self.mask, self.mask + 1
        end = begin + count
        for name, info, part in self.parts:
            if end <= rows:
                column = part[begin:end, number].copy()
            else:
                column = np.concatenate((part[begin:, number], part[: end - rows, number]))
            found[name] = column.view(info.dtype).reshape(count, *info.shape) if info.shape else column

    @property
    def full_at(self) -> int:
        """The first time of which, and of the one after it, there is no room for the rows."""
        return self.hot + len(self.ring) - 1

    def make_room(self, now: int, low: int, budget: int) -> None:
        """Make it; times before ``low`` are needed no more, and the ring may grow to ``budget`` bytes.

        Raises:
            StorageError: rows had to go to a file, and the disk refused.
        """
        gone = [rows.place for rows in self._cold if rows.first + rows.count <= low and rows.file is self._file]
        hot = max(self.hot, min(low, now))
        self.__dict__.update(
            _free=self._free + gone,
            _cold=[rows for rows in self._cold if rows.first + rows.count > low],
            hot=hot,
            _lacks_rows=low < hot,
        )
        while now >= self.full_at:
            if 2 * self.nbytes <= budget or len(self.ring) < FEWEST_ROWS:
                self._grow(now)
            else:
                self._spill()

    def _grow(self, now: int) -> None:
        rows, arena = len(self.ring), self._arena
        assert arena is not None
        if 2 * rows > len(arena):
            arena = self._new_arena(2 * rows)
            arena[:rows] = self.ring
        self._fill(arena[rows : 2 * rows])
        time = self.hot
        while time <= now:  # stretches that wrap in neither ring: two or three
            begin, place = time & self.mask, time & (2 * rows - 1)
            count = min(now + 1 - time, rows - begin)
            if place != begin:
                arena[place : place + count] = self.ring[begin : begin + count]
            time += count
        self._use(arena, 2 * rows)

    def _spill(self) -> None:
        count = max(len(self.ring) // _SPILLED_SHARE, 1)
        times = np.arange(self.hot, self.hot + count)
        rows = np.ascontiguousarray(self.ring[times & self.mask].T)
        data = rows.view(np.uint8).reshape(-1).data
        try:
            if self._file is None:
                self._file = _File(self._folder)
        except OSError as error:
            raise storage_error(error, self._folder, len(data)) from error
        place = self._free[-1] if self._free else sum(rows.file is self._file for rows in self._cold) * len(data)
        write_at(self._file.fileno(), data, place, self._folder)
        free = self._free[:-1]
        cold = [*self._cold, _ColdRows(self.hot, count, place, self._file, self._values)]
        self.__dict__.update(hot=self.hot + count, _cold=cold, _free=free, _lacks_rows=True)

    def release(self) -> None:
        """Let the file go, with all rows that are in it."""
        self.__dict__.update(_file=None, _cold=[], _free=[])

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
                skipped = number * cold.count - cold.first
                self._copy(out[begin - start : end - start], cold.read(skipped + begin, skipped + end))

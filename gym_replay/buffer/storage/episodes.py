"""The counters that make episodes visible, and the table with one record per episode."""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.columns import ColumnWriter, encode_header, open_beneath, sync_descriptor
from gym_replay.buffer.storage.maps import Stretch
from gym_replay.errors import CorruptBufferError

HAS_FINAL = 1
"""Flag: row T holds the last observation."""
COMPLETE = 2
"""Flag: the episode was not cut by a reset or a close."""
DELETED = 4
"""Flag: hidden; the only one that changes after the commit, so record checksums leave it out."""

_NAMES = ("revision", "base", "first", "next", "summed", "deletions")
_PLACES = {name: place for place, name in enumerate(_NAMES)}
_NEXT = _PLACES["next"]
_DTYPE = np.dtype("<i8")
_HEADER = encode_header(_DTYPE, (), len(_NAMES))
_unpack = struct.Struct(f"<{len(_NAMES)}q").unpack

NUM_COUNTERS = len(_NAMES)


def read_counters(descriptor: int, path: Path | str) -> tuple[int, ...]:
    """The counters in an open file: revision, base, first, next, summed, deletions.

    Raises:
        CorruptBufferError: it is no such file.
    """
    size = len(_HEADER) + _DTYPE.itemsize * NUM_COUNTERS
    content = os.pread(descriptor, size + 1, 0)
    if len(content) != size or not content.startswith(_HEADER):
        raise CorruptBufferError(f"{path}: expected {NUM_COUNTERS} 64-bit counters in {size} bytes")
    return _unpack(content[len(_HEADER) :])


class Counters:
    """The counters of ``commit.npy``, shared by all processes through a map.

    Each is an aligned 8-byte integer, so a store is seen whole or not at all.
    """

    def __init__(self, folder: Path, relative: str, *, writable: bool) -> None:
        self.path = folder / relative
        try:
            descriptor = open_beneath(folder, relative, os.O_RDWR if writable else os.O_RDONLY)
        except FileNotFoundError:
            raise CorruptBufferError(f"{self.path}: the file is missing") from None
        try:
            read_counters(descriptor, self.path)
            size = len(_HEADER) + _DTYPE.itemsize * NUM_COUNTERS
            self.inode = os.fstat(descriptor).st_ino
            if writable:
                self._map = mmap.mmap(descriptor, size, access=mmap.ACCESS_WRITE)
                whole = memoryview(self._map)
            else:  # nothing stays open for it
                whole = Stretch(size, descriptor).array(0, np.dtype("u1"), (size,)).data
        finally:
            os.close(descriptor)
        # A view of 64-bit numbers stores each with one instruction; format 'q' is little-endian where this runs.
        self._values = whole[len(_HEADER) :].cast("q")

    @staticmethod
    def create(folder: Path, relative: str, *, first_id: int = 0, revision: int = 0) -> None:
        """Write the file whole, so that storing into its map can never run out of disk."""
        values = np.array([revision, first_id, first_id, first_id, first_id, 0], _DTYPE)
        writer = ColumnWriter.create(folder, relative, _DTYPE)
        try:
            writer.set_rows(len(values))
            writer.write(0, values.tobytes())
            writer.sync()
        finally:
            writer.close()

    @property
    def revision(self) -> int:
        """The metadata's revision that the files belong to."""
        return self._values[0]

    @property
    def base(self) -> int:
        """Id of the episode in slot 0 of the table."""
        return self._values[1]

    @property
    def first(self) -> int:
        """Id of the oldest live episode."""
        return self._values[2]

    @property
    def next(self) -> int:
        """Id of the next episode; storing it is the commit."""
        return self._values[3]

    @property
    def summed(self) -> int:
        """Episodes below this id have checksums."""
        return self._values[4]

    @property
    def deletions(self) -> int:
        """How often episodes were deleted."""
        return self._values[5]

    def put(self, name: str, value: int) -> None:
        """Store one counter."""
        self._values[_PLACES[name]] = value

    def put_next(self, value: int) -> None:
        """Store the counter ``next``: the commit."""
        self._values[_NEXT] = value

    def cut(self, episode_id: int) -> None:
        """Let go of an episode and all after it."""
        for name in ("summed", "first", "next"):
            self.put(name, min(getattr(self, name), episode_id))

    def sync(self) -> None:
        """Have the counters on the disk before returning."""
        self._map.flush()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            sync_descriptor(descriptor, self.path)
        finally:
            os.close(descriptor)

    def check(self) -> None:
        """Raise CorruptBufferError where the counters contradict one another."""
        self.check_values(self._values.tolist())

    def check_values(self, found: Sequence[int]) -> None:
        """Raise CorruptBufferError where these values of them contradict one another."""
        values = dict(zip(_NAMES, found, strict=True))
        if not 0 <= values["base"] <= values["first"] <= values["next"] < 1 << 61 or not (
            values["base"] <= values["summed"] <= values["next"]
        ):
            raise CorruptBufferError(f"{self.path}: the counters contradict one another: {values}")


def record_crcs(
    ids: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    flags: npt.NDArray[np.uint8],
    meta: Sequence[npt.NDArray[Any]],
) -> npt.NDArray[np.uint32]:
    """CRC-32 (zlib's) of each record: id, start, length, flags without the deleted one, then the meta values."""
    layout = RecordLayout([(column.dtype, column.shape[1:]) for column in meta])
    return layout.crcs(ids, starts, lengths, flags & np.uint8(255 - DELETED), meta)


class RecordLayout:
    """What the check values of records with meta values of these dtypes and shapes are computed from, without gaps."""

    def __init__(self, meta: Iterable[tuple[np.dtype[Any], tuple[int, ...]]]) -> None:
        columns = [*((np.dtype(kind), ()) for kind in ("<i8", "<i8", "<i8", "u1")), *meta]
        self._packed = np.dtype([(f"f{place}", *column) for place, column in enumerate(columns)])
        self._names = self._packed.names or ()
        self._bytes = np.dtype(f"V{self._packed.itemsize}")
        self._use(np.zeros(0, self._packed))

    def _use(self, records: npt.NDArray[Any]) -> None:
        """Put records together here from now on."""
        self._records, self._parts = records.view(self._bytes), [records[name] for name in self._names]
        self._held: list[bytes | None] = [None] * len(self._parts)  # of each column the value that all records hold

    def crcs(
        self,
        ids: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        flags: npt.NDArray[np.uint8] | bytes,
        meta: Sequence[npt.NDArray[Any] | bytes],
    ) -> npt.NDArray[np.uint32]:
        """CRC-32 of each record; the flags are without the deleted one, and bytes are a value of all records."""
        count, held = len(ids), self._held
        if count > len(self._records):
            self._use(np.zeros(2 * count, self._packed))
            held = self._held
        for place, (part, column) in enumerate(zip(self._parts, (ids, starts, lengths, flags, *meta), strict=True)):
            if type(column) is not bytes:
                held[place] = None
                part[:count] = column
            elif column != held[place]:
                held[place] = None  # an interrupt may come
                part[...] = np.frombuffer(column, part.dtype).reshape(part.shape[1:])
                held[place] = column
        return np.fromiter(map(zlib.crc32, self._records[:count].tolist()), np.uint32, count)


pack_record = struct.Struct("<qqqB").pack
"""What comes before the meta values in a record whose episode is not deleted: id, start, length, flags."""


def slots_of(ids: npt.NDArray[np.int64], base: int, capacity: int | None) -> npt.NDArray[np.int64]:
    """The table slot of each id: ``(id - base) mod capacity``."""
    slots = ids - base
    return slots if capacity is None else slots % capacity


RECORDS_AT_ONCE = 1 << 15
"""Records that are read in one piece, at most."""


def record_runs(
    first: int, end: int, base: int, capacity: int | None, record_nbytes: int
) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """The ids from ``first`` to ``end - 1`` in runs whose records lie side by side, each with its first slot.

    Whoever reads a table run by run, and stops at the first damaged record, allocates no more than the sound records
    take, whatever the counters say.
    """
    longest = max(min(RECORDS_AT_ONCE, (1 << 24) // max(record_nbytes, 1)), 1)
    while first < end:
        slot = first - base if capacity is None else (first - base) % capacity
        until = min(end, first + longest)
        if capacity is not None:
            until = min(until, first + capacity - slot)
        yield np.arange(first, until, dtype=np.int64), slot
        first = until

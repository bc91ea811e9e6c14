"""Checksums, CRC-32 of each episode's rows of each field: they follow the commits, most of them in long runs."""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from zlib import crc32

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.block import Block
from gym_replay.buffer.storage.columns import PIECE, ColumnWriter
from gym_replay.buffer.storage.open_files import OpenFiles
from gym_replay.buffer.storage.records import DELETED, slots_of
from gym_replay.errors import StorageError

CHECKSUM_RUN = 1 << 20
"""Bytes of rows after which missing checksums are filled in."""

LARGE_EPISODE = 1 << 15
"""Bytes of an episode from which on a call for each of its checksums takes less time than the summing itself. Such
checksums are computed at the commit from what is in memory, and otherwise beside the recording."""

_pack_sum = struct.Struct("<I").pack


class Checksums:
    """Follow the commits to the files of one revision.

    Args:
        files: the files.
        power: whether they are on the disk before the counter ``summed`` says so.
    """

    def __init__(self, files: OpenFiles, *, power: bool) -> None:
        self._files, self._power = files, power
        self._unsummed = 0  # bytes of rows that were committed since
        self.job: SumsJob | None = None

    def follow(self, block: Block, first_id: int, nbytes: int) -> None:
        """A block whose rows have ``nbytes`` bytes was committed: write checksums where it is time.

        What the disk refuses is left to flush and close.
        """
        self._unsummed += nbytes
        if block.sums is not None and self._files.counters.summed == first_id:
            self._put(block.sums, first_id, len(block.lengths))
        elif LARGE_EPISODE <= nbytes <= CHECKSUM_RUN and self._may_sum_in_memory(block, first_id):
            with suppress(StorageError):
                self._sum_in_memory(block, first_id)
        elif self._unsummed >= CHECKSUM_RUN and not (block.sums_may_wait and not self._episodes_are_large()):
            with suppress(StorageError):
                self._sum_a_run()

    def _may_sum_in_memory(self, block: Block, first_id: int) -> bool:
        """Whether a block is a single episode with all its rows, and its checksums are the next ones."""
        files = self._files
        is_whole = len(block.lengths) == 1 and block.spill is None and files.is_plain
        return is_whole and not block.sums_may_wait and files.counters.summed == first_id and not self._power

    def _sum_in_memory(self, block: Block, episode_id: int) -> None:
        """Write the checksums of a single episode, while the processor has the bytes at hand."""
        files = self._files
        sums = {name: _pack_sum(crc32(data)) for name, _, _, data in block.pieces}
        files.sums.write(files.slot(episode_id), b"".join([sums[name] for name in files.steps]))
        files.counters.put("summed", episode_id + 1)
        self._unsummed = 0

    def _put(self, found: Mapping[str, npt.NDArray[np.uint32]], first_id: int, count: int) -> None:
        """Write the checksums of episodes with consecutive ids, which are the next ones."""
        files = self._files
        sums = np.zeros(count, files.sums.dtype)
        for name, column in found.items():
            sums[name] = column
        slots = slots_of(np.arange(first_id, first_id + count), files.base, files.capacity)
        files.sums.write_scattered(slots, sums)
        files.counters.put("summed", first_id + count)
        self._unsummed = 0

    def _episodes_are_large(self) -> bool:
        """Whether those without checksums are, on average."""
        counters = self._files.counters
        return self._unsummed >= LARGE_EPISODE * (counters.next - counters.summed)

    def _sum_a_run(self) -> None:
        """Write the checksums of a run of episodes, or have them computed meanwhile where the episodes are large."""
        if not self._episodes_are_large():
            self.fill()
        elif self.job is None or not self.job.is_alive():
            self._take()
            self.job = self._next_job()
            self._unsummed = 0
            if self.job is not None:
                self.job.start()

    def fill(self) -> None:
        """Write the checksums of all committed episodes that have none yet.

        Raises:
            StorageError: the disk refused.
        """
        self._take()
        job = self._next_job()
        if job is not None:
            self._store(job, job.compute())
        self._unsummed = 0

    def join(self) -> SumsJob | None:
        """The checksums that were computed meanwhile, once they are through."""
        job = self.job
        if job is not None:
            job.join()
            self.job = None
        return job

    def _take(self) -> None:
        """Write what was computed meanwhile."""
        job = self.join()
        if job is not None and job.sums is not None:
            self._store(job, job.sums)

    def _next_job(self) -> SumsJob | None:
        """What is to be summed; None where there is nothing."""
        files = self._files
        counters = files.counters
        ids = np.arange(max(counters.summed, counters.first), counters.next, dtype=np.int64)
        if len(ids) == 0:
            return None
        slots = slots_of(ids, files.base, files.capacity)
        records = files.table.read_scattered(slots)
        kept = (records["flags"] & DELETED) == 0  # the rows of others may be what was damaged
        starts, lengths = records["start"][kept], records["length"][kept]
        fields = [(name, column, files.elements.get(name)) for name, column in files.steps.items()]
        return SumsJob(fields, int(ids[-1]) + 1, ids[kept], slots[kept], starts, lengths + files.metadata.has_state)

    def _store(self, job: SumsJob, found: Mapping[str, npt.NDArray[np.uint32]]) -> None:
        files = self._files
        live = job.ids >= files.counters.first  # the rows and slots of others may have been given to newer ones since
        sums = np.zeros(len(job.slots), files.sums.dtype)
        for name, column in found.items():
            sums[name] = column
        files.sums.write_scattered(job.slots[live], sums[live])
        if self._power:
            files.sums.sync()
        files.counters.put("summed", max(job.end, files.counters.summed))


def field_checksums(
    rows_column: ColumnWriter,
    elements: ColumnWriter | None,
    starts: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
) -> npt.NDArray[np.uint32]:
    """CRC-32 (zlib's) of each episode's part of a field, as uint32.

    Args:
        rows_column: the field's rows, or its spans.
        elements: its elements, where it is ragged: then the sum is over the spans, counted from the episode's first
            element, and then the elements.
        starts, rows: first row and number of rows of each episode.
    """
    if elements is None:
        return row_checksums(rows_column, starts, rows)
    pairs = zip(starts.tolist(), rows.tolist(), strict=True)
    return np.array([_ragged_checksum(rows_column, elements, start, count) for start, count in pairs], np.uint32)


class SumsJob(threading.Thread):
    """The checksums of a run of episodes, computed here with :meth:`run` or beside the recording with ``start``.

    Reading and summing large rows happens without Python's global lock, so that it costs the recording nothing where
    there is a second core.

    Args:
        fields: name, rows (or spans), and elements of each field.
        end: one past the last id.
        ids, slots, starts, rows: of each episode: id, table slot, first row and number of rows.

    Attributes:
        sums: by field; None before they are there, or where computing them failed.
    """

    def __init__(
        self,
        fields: Sequence[tuple[str, ColumnWriter, ColumnWriter | None]],
        end: int,
        ids: npt.NDArray[np.int64],
        slots: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
    ) -> None:
        super().__init__(name="gym_replay checksums", daemon=True)
        self.end, self.ids, self.slots = end, ids, slots
        self.sums: dict[str, npt.NDArray[np.uint32]] | None = None
        self._fields = fields
        self._starts, self._rows = starts, rows

    def compute(self) -> dict[str, npt.NDArray[np.uint32]]:
        """The checksums by field."""
        return {
            name: field_checksums(column, elements, self._starts, self._rows) for name, column, elements in self._fields
        }

    def run(self) -> None:
        """Compute, for whoever joins; what fails here is tried again, and told, at the next flush or close."""
        with suppress(Exception):
            self.sums = self.compute()


def _ragged_checksum(spans: ColumnWriter, elements: ColumnWriter, start: int, rows: int) -> int:
    base, count = elements_between(spans, start, rows)
    value, longest = 0, PIECE // spans.row_nbytes
    for row in range(0, rows, longest):
        part = spans.read_array(start + row, min(longest, rows - row)) - np.array([base, 0])
        value = crc32(part.tobytes(), value)
    longest = max(PIECE // elements.row_nbytes, 1)
    for element in range(0, count, longest):
        value = crc32(elements.read(base + element, min(longest, count - element)), value)
    return value


def elements_between(spans: ColumnWriter, start: int, rows: int) -> tuple[int, int]:
    """First element, and number of elements, of an episode of ``rows`` rows from ``start``."""
    first = int(spans.read_array(start, 1)[0, 0])
    begin, count = spans.read_array(start + rows - 1, 1)[0].tolist()
    return first, begin + count - first


def row_checksums(
    column: ColumnWriter, starts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """CRC-32 (zlib's) of the rows ``starts[i] .. starts[i] + rows[i]`` of a column, for each i, as uint32.

    Episodes that lie back to back are read in one piece.
    """
    sums = np.zeros(len(starts), np.uint32)
    width = column.row_nbytes
    if width == 0:
        return sums
    longest = max(PIECE // width, 1)
    ends = starts + rows
    gaps = np.append(np.flatnonzero(starts[1:] != ends[:-1]) + 1, len(starts))  # where another stretch begins
    first = 0
    while first < len(starts):
        stop = int(gaps[np.searchsorted(gaps, first, side="right")])
        fitting = int(np.searchsorted(ends[first:stop], starts[first] + longest, side="right"))
        last = first + max(fitting, 1)
        end = int(ends[last - 1])
        if rows[first] > longest:
            sums[first] = _long_checksum(column, int(starts[first]), int(rows[first]), longest)
        else:
            begin = int(starts[first])
            content = memoryview(column.read(begin, end - begin))
            edges = ((np.append(starts[first:last], end) - begin) * width).tolist()
            sums[first:last] = [crc32(content[low:high]) for low, high in pairwise(edges)]
        first = last
    return sums


def _long_checksum(column: ColumnWriter, start: int, rows: int, longest: int) -> int:
    value = 0
    for row in range(0, rows, longest):
        value = crc32(column.read(start + row, min(longest, rows - row)), value)
    return value

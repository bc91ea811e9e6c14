"""Checksums, CRC-32 of each episode's rows of each field: they follow the commits, most of them in long runs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.block import Block
from gym_replay.buffer.storage.columns import PIECE, ColumnWriter
from gym_replay.buffer.storage.open_files import OpenFiles
from gym_replay.buffer.storage.records import CHECKSUM, DELETED, slots_of
from gym_replay.errors import StorageError

CHECKSUM_RUN = 1 << 20
"""Bytes of rows after which missing checksums are filled in."""

LARGE_EPISODE = 1 << 15
"""Bytes of an episode from which on a call for each of its checksums takes less time than the summing itself. Such
checksums are computed at the commit from what is in memory, and otherwise beside the recording."""

THREAD = "gym_replay checksums"


class Checksums:
    """Follow the commits to the files of one revision.

    Args:
        files: the files.
        power: whether they are on the disk before the counter ``summed`` says so.
    """

    def __init__(self, files: OpenFiles, *, power: bool) -> None:
        self._files, self._power = files, power
        self._unsummed = self._episodes = 0  # bytes of rows, and episodes, that were committed since
        self._thread: threading.Thread | None = None
        self._found: _Run | None = None  # with the checksums that were computed in the thread

    def follow(self, block: Block, first_id: int, nbytes: int) -> None:
        """A block whose rows have ``nbytes`` bytes was committed: write checksums where it is time.

        What the disk refuses is left to flush and close.
        """
        self._unsummed += nbytes
        self._episodes += (count := len(block.lengths))
        is_run = self._unsummed >= CHECKSUM_RUN
        if not is_run and nbytes < LARGE_EPISODE and block.sums is None:
            return
        with suppress(StorageError):
            if (sums := self._known(block, nbytes)) is not None and self._files.counters.summed == first_id:
                self._put(sums, first_id, count)
            elif is_run and self._unsummed >= LARGE_EPISODE * self._episodes:  # on average
                self._start()
            elif is_run and not block.sums_may_wait:
                self.fill()

    def _known(self, block: Block, nbytes: int) -> Mapping[str, Any] | None:
        """The checksums that come with a block, or those of a single episode, while the processor has all its rows."""
        is_whole = len(block.lengths) == 1 and block.early is None and not self._files.elements
        if block.sums is None and is_whole and LARGE_EPISODE <= nbytes <= CHECKSUM_RUN and not self._power:
            count, rows = block.lengths[0] + self._files.metadata.has_state, block.rows
            return {name: [crc32(rows.get(name, default * count))] for name, _, default in self._files.plain}
        return block.sums

    def _put(self, found: Mapping[str, Any], first_id: int, count: int) -> None:
        """Write the checksums of episodes with consecutive ids."""
        files = self._files
        sums = np.empty((count, *files.sums.shape), CHECKSUM)
        for at, name in enumerate(files.metadata.fields):
            sums[:, at] = found.get(name, 0)  # there are none of rows without bytes
        files.write_slots(files.sums, first_id, sums.tobytes())
        files.counters.put("summed", first_id + count)
        self._unsummed = self._episodes = 0

    def _start(self) -> None:
        """Have the checksums of a run of large episodes computed beside the recording, unless others are just now.

        Reading and summing large rows happens without Python's global lock, so that it costs the recording nothing
        where there is a second core.
        """
        if self._thread is None or not self._thread.is_alive():
            self._store(self._joined())
            run = self._next_run()
            if run is not None:
                thread = threading.Thread(target=self._compute, args=(run,), name=THREAD, daemon=True)
                try:
                    thread.start()
                    self._thread = thread
                except RuntimeError:  # the interpreter is at its end, or the system gives no thread
                    self._store(self._summed(run))
            self._unsummed = self._episodes = 0

    def _compute(self, run: _Run) -> None:
        with suppress(Exception):  # it is tried again, and told, at the next flush or close
            self._found = self._summed(run)

    def fill(self) -> None:
        """Write the checksums of all committed episodes that have none yet.

        Raises:
            StorageError: the disk refused.
        """
        self._store(self._joined())
        run = self._next_run()
        if run is not None:
            self._store(self._summed(run))
        self._unsummed = self._episodes = 0

    def join(self) -> None:
        """Wait for what is computed, and forget it."""
        self._joined()

    def _joined(self) -> _Run | None:
        # It may be this thread, in which garbage is collected.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread, (found, self._found) = None, (self._found, None)
        return found

    def _next_run(self) -> _Run | None:
        """The episodes that are to be summed; None where there are none."""
        files = self._files
        counters = files.counters
        ids = np.arange(max(counters.summed, counters.first), counters.next, dtype=np.int64)
        if len(ids) == 0:
            return None
        slots = slots_of(ids, files.base, files.capacity)
        records = files.table.read_scattered(slots)
        live = (records["flags"] & DELETED) == 0  # the rows of others may be what was damaged
        rows = records["length"] + files.metadata.has_state
        return _Run(int(ids[-1]) + 1, ids[live], slots[live], records["start"][live], rows[live])

    def _summed(self, run: _Run) -> _Run:
        files = self._files
        sums = np.empty((len(run.ids), *files.sums.shape), CHECKSUM)
        for at, name in enumerate(files.metadata.fields):
            sums[:, at] = field_checksums(files.steps[name], files.elements.get(name), run.starts, run.rows)
        return replace(run, sums=sums)

    def _store(self, run: _Run | None) -> None:
        if run is None or run.sums is None:
            return
        files = self._files
        live = run.ids >= files.counters.first  # the rows and slots of others may have been given to newer ones since
        files.sums.write_scattered(run.slots[live], run.sums[live])
        if self._power:
            files.sums.sync()
        files.counters.put("summed", max(run.end, files.counters.summed))


@dataclass(frozen=True)
class _Run:
    """Episodes that are summed together.

    Attributes:
        end: one past the last id.
        ids, slots, starts, rows: of each: id, table slot, first row and number of rows.
        sums: the checksums of each, ``(episodes, fields)``, once they are computed.
    """

    end: int
    ids: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    sums: npt.NDArray[Any] | None = None


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

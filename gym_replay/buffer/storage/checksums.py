"""CRC-32 of each episode's rows of each field, computed in long runs after the commits."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from zlib import crc32

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.columns import PIECE, ColumnWriter


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

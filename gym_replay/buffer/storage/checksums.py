"""CRC-32 of each episode's rows of each field, computed in long runs after the commits."""

from __future__ import annotations

import zlib
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.columns import PIECE, ColumnWriter


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
    first = 0
    while first < len(starts):
        last = first + 1
        end = int(starts[first] + rows[first])
        while last < len(starts) and starts[last] == end and end + rows[last] - starts[first] <= longest:
            end += int(rows[last])
            last += 1
        if rows[first] > longest:
            sums[first] = _long_checksum(column, int(starts[first]), int(rows[first]), longest)
        else:
            content = memoryview(column.read(int(starts[first]), end - int(starts[first])))
            edges = ((np.append(starts[first:last], end) - starts[first]) * width).tolist()
            sums[first:last] = [zlib.crc32(content[low:high]) for low, high in pairwise(edges)]
        first = last
    return sums


def _long_checksum(column: ColumnWriter, start: int, rows: int, longest: int) -> int:
    value = 0
    for row in range(0, rows, longest):
        value = zlib.crc32(column.read(start + row, min(longest, rows - row)), value)
    return value

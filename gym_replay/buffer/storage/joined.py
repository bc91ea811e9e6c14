"""The rows of several files as one array: maps side by side in one stretch of addresses.

A column of one buffer is an array over one map. For a concatenation of buffers, a gather would have to sort its rows
by file, take from each, and put the pieces back in order, many calls where one would do. Instead the files are mapped
into one reserved stretch of addresses, at distances that are whole numbers of rows, and the stretch is an array: row
``first[p] + r`` is row r of part p. What lies between the parts reads as zeros.

A map begins at a page, so the distance between two parts must be a whole number of pages too. It is for every field
where it is a multiple of ``PAGE`` rows, which is why one numbering of rows serves all fields.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.maps import Stretch

PAGE = mmap.ALLOCATIONGRANULARITY

_LARGEST = 1 << 46


def first_rows(rows: Sequence[int]) -> npt.NDArray[np.int64]:
    """Where each part begins in the common numbering of rows, and where the last one ends: int64 ``(parts + 1,)``.

    One part begins at 0. Of several, each begins at a multiple of ``PAGE``, at least one row after the end of the one
    before and at least ``PAGE`` bytes: the map of a part begins before its first row, with the file's header.
    """
    firsts = [0]
    for count in rows:
        firsts.append(firsts[-1] + (count if len(rows) == 1 else (count + 2 * PAGE - 1) // PAGE * PAGE))
    return np.array(firsts, np.int64)


class Mappable(Protocol):
    """A column's file, as :func:`join` needs it."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def opened(self, rows: int) -> AbstractContextManager[tuple[int, int]]:
        """The descriptor of a file with so many rows, and where they begin in it."""


def join(columns: Sequence[Mappable], rows: Sequence[int], firsts: npt.NDArray[np.int64]) -> npt.NDArray[Any] | None:
    """One read-only array ``(firsts[-1], *shape)`` over the first ``rows[p]`` rows of each column.

    No file stays open.

    Args:
        columns: of one dtype and shape, with at least a byte a row.
        rows: how many rows of each are needed.
        firsts: of :func:`first_rows`, or a part of it, less its first number.

    Returns:
        None where they cannot be mapped so: a header has another length than the others, or the
        operating system has no such stretch of addresses to give.

    Raises:
        CorruptBufferError: a file holds fewer rows.
    """
    dtype, shape = columns[0].dtype, columns[0].shape
    width = dtype.itemsize * math.prod(shape)
    used = [(column, count, int(first)) for column, count, first in zip(columns, rows, firsts, strict=False) if count]
    nbytes = int(firsts[-1]) * width + PAGE
    if not used or nbytes > _LARGEST:
        return None
    stretch: Stretch | None = None
    header = 0
    for column, count, first in used:
        with column.opened(count) as (descriptor, offset):
            if offset > PAGE:
                return None
            try:
                if stretch is None:
                    header, stretch = offset, Stretch(nbytes)
                if offset != header:
                    return None
                stretch.map(first * width, header + count * width, descriptor)
            except (OSError, AttributeError):  # refused, or there is no such function to call
                return None
    assert stretch is not None
    return stretch.array(header, dtype, (int(firsts[-1]), *shape))

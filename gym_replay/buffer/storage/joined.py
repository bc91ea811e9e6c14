"""The rows of several files as one array: maps side by side in one stretch of addresses.

A column of one buffer is an array over one map. For a concatenation of buffers, a gather would have to sort its rows
by file, take from each, and put the pieces back in order, many calls where one would do. Instead the files are mapped
into one reserved stretch of addresses, at distances that are whole numbers of rows, and the stretch is an array: row
``first[p] + r`` is row r of part p. What lies between the parts reads as zeros.

A map begins at a page, so the distance between two parts must be a whole number of pages too. It is for every field
where it is a multiple of ``PAGE`` rows, which is why one numbering of rows serves all fields.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.advice import HUGE
from gym_replay.buffer.storage.columns import Column

PAGE = mmap.ALLOCATIONGRANULARITY

_MAP_FIXED = 0x10  # the same number on Linux and macOS
_MAP_NORESERVE = 0x40 if os.uname().sysname == "Darwin" else 0x4000
_FAILED = ctypes.c_void_p(-1).value
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


class _Libc:
    """``mmap`` with an address, which Python's own has not."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        size, number, address = ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
        self.mmap, self.munmap = library.mmap, library.munmap
        # Files are mapped from their beginning only, so the width of off_t does not matter.
        self.mmap.restype, self.mmap.argtypes = address, (address, size, number, number, number, ctypes.c_int64)
        self.munmap.restype, self.munmap.argtypes = number, (address, size)


class _Stretch:
    """Addresses that are ours until this is deleted."""

    def __init__(self, nbytes: int) -> None:
        self._libc = _Libc()
        self._nbytes = nbytes + HUGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._reserved = self._mapped(self._libc.mmap(None, self._nbytes, mmap.PROT_READ, flags, -1, 0))
        # Large pages of a file can be mapped as such where they are aligned in memory as they are in the file.
        self._address = -(-self._reserved // HUGE) * HUGE

    def map(self, offset: int, nbytes: int, descriptor: int) -> None:
        """Map the beginning of a file, ``nbytes`` of it, at a distance from the beginning of the stretch."""
        flags = mmap.MAP_SHARED | _MAP_FIXED
        self._mapped(self._libc.mmap(self._address + offset, nbytes, mmap.PROT_READ, flags, descriptor, 0))

    def _mapped(self, address: int | None) -> int:
        if address is None or address == _FAILED:
            raise OSError(ctypes.get_errno(), "mmap refused")
        return address

    def array(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """A read-only array over the stretch, which keeps it."""
        self.__array_interface__ = {
            "data": (self._address + offset, True),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }
        return np.asarray(self)

    def __del__(self) -> None:
        if hasattr(self, "_reserved"):
            self._libc.munmap(self._reserved, self._nbytes)


def join(columns: Sequence[Column], rows: Sequence[int], firsts: npt.NDArray[np.int64]) -> npt.NDArray[Any] | None:
    """One read-only array ``(firsts[-1], *shape)`` over the first ``rows[p]`` rows of each column.

    Args:
        columns: of one dtype and shape, with at least a byte a row.
        rows: how many rows of each are needed.
        firsts: of :func:`first_rows`.

    Returns:
        None where they cannot be mapped so: a column was closed, a header has another length than the others, or the
        operating system has no such stretch of addresses to give.
    """
    dtype, shape = columns[0].dtype, columns[0].shape
    width = dtype.itemsize * math.prod(shape)
    used = [(column, count, int(first)) for column, count, first in zip(columns, rows, firsts, strict=False) if count]
    maps = [column.map_of(count) for column, count, _ in used]
    if not used or None in maps:
        return None
    headers = {header for _, header in filter(None, maps)}
    nbytes = int(firsts[-1]) * width + PAGE
    if len(headers) != 1 or max(headers) > PAGE or nbytes > _LARGEST:
        return None
    (header,) = headers
    try:
        stretch = _Stretch(nbytes)
        for (_, count, first), found in zip(used, maps, strict=True):
            assert found is not None
            stretch.map(first * width, header + count * width, found[0])
    except (OSError, AttributeError):  # refused, or there is no such function to call
        return None
    return stretch.array(header, dtype, (int(firsts[-1]), *shape))

"""Files mapped into memory without keeping them open: one by one, or several side by side as one array.

Python's own ``mmap`` duplicates the descriptor and keeps it for as long as anybody looks at the map, so that views
handed out by a closed buffer would hold its files open. A map itself needs no descriptor once it is made.

**Side by side.** A column of one buffer is an array over one map. For a concatenation of buffers, a gather would have
to sort its rows by file, take from each, and put the pieces back in order, many calls where one would do. Instead the
files are mapped into one reserved stretch of addresses, at distances that are whole numbers of rows, and the stretch
is an array: row ``first[p] + r`` is row r of part p. What lies between the parts reads as zeros. A map begins at a
page, so the distance between two parts must be a whole number of pages too. It is for every field where it is a
multiple of ``PAGE`` rows, which is why one numbering of rows serves all fields.

**Advice.** Without a word from us, the system guesses from page faults what will be read next, and of blocks in random
order all of that is read for nothing. So such a map is said to be read at random, which ends the guessing, and blocks
that will be needed are asked for by name. So is one of single rows in random order, where there is more than memory
takes: what is read along would have left it before it is needed (``benchmarks.scale``, the first batch: 13 s of the
processor with a read-ahead of 8 MiB, under a tenth of one without). What fits into memory comes faster by being read
along. Where advice is not understood, reading is slower, and no different.
"""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gym_replay.errors import StorageError
from gym_replay.files.garbage import AtEnd

MAP_FIXED = 0x10  # the same number on Linux and macOS
MAP_NORESERVE = 0x40 if os.uname().sysname == "Darwin" else 0x4000
_FAILED = ctypes.c_void_p(-1).value

PAGE = mmap.ALLOCATIONGRANULARITY
ADVISED = 1 << 17
"""Bytes that are asked for in one call: Linux reads no more than its read-ahead of one, 128 KiB by default."""

_LARGEST = 1 << 46
_COLD = 20  # Linux 5.4; Python's mmap has no name for it

_MAPS_OF_A_FOLDER = 2  # its counters and its episodes
_MAPS_OF_A_FIELD = 2  # the rows, and what lies between them and those of the next folder


def most_maps() -> int | None:
    """How many maps the system gives a process; None where it does not say."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):  # not Linux
        return None


def require_mappable(folders: int, fields: int) -> None:
    """Refuse to read so many fields of so many folders together where the system cannot map them.

    Raises:
        StorageError: it says how many folders fit.
    """
    most, each = most_maps(), _MAPS_OF_A_FOLDER + _MAPS_OF_A_FIELD * fields
    if most is None:
        return
    fitting = (most - most // 16) // each  # the rest is for everything else that a process maps
    if folders > fitting:
        raise StorageError(
            errno.ENOMEM,
            f"{folders} folders with {fields} fields to read need {folders * each} maps, and the system gives a "
            f"process {most} (vm.max_map_count): {fitting} such folders fit. merge(folders, target) makes one of them, "
            "fewer fields need fewer maps, and sysctl raises the limit",
        )


class _Libc:
    """``mmap`` as the operating system has it: with an address, and without a duplicate of the descriptor."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        size, number, address = ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
        self._mmap, self._munmap = library.mmap, library.munmap
        # Files are mapped from their beginning only, so the width of off_t does not matter.
        self._mmap.restype, self._mmap.argtypes = address, (address, size, number, number, number, ctypes.c_int64)
        self._munmap.restype, self._munmap.argtypes = number, (address, size)
        # Python's own madvise is for maps of its own, and keeps the interpreter's lock.
        self._madvise = library.madvise
        self._madvise.restype, self._madvise.argtypes = number, (address, size, number)

    def map(self, address: int | None, nbytes: int, flags: int, descriptor: int) -> int:
        """Map for reading; the address of the map.

        Raises:
            OSError: the operating system refused.
        """
        mapped: int | None = self._mmap(address, nbytes, mmap.PROT_READ, flags, descriptor, 0)
        if mapped is None or mapped == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return mapped

    def unmapping(self, address: int, nbytes: int) -> AtEnd:
        """What undoes a map when it is garbage."""
        return AtEnd(self._munmap, address, nbytes)

    def advise(self, address: int, nbytes: int, advice: int) -> None:
        """Tell of a stretch of a map what will be read of it."""
        begin = address // mmap.PAGESIZE * mmap.PAGESIZE
        self._madvise(begin, address + nbytes - begin, advice)


@lru_cache(maxsize=1)
def libc() -> _Libc:
    """The functions of the C library, looked up once."""
    return _Libc()


class Stretch:
    """Addresses that are ours, for reading, until this and every array over it are gone.

    Args:
        nbytes: how many.
        descriptor: the file whose beginning they show; None for zeros that take no memory.

    Raises:
        OSError: the operating system refused.
    """

    def __init__(self, nbytes: int, descriptor: int | None = None) -> None:
        self._libc = libc()
        if descriptor is not None:
            self._address = self._libc.map(None, nbytes, mmap.MAP_SHARED, descriptor)
        else:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
            self._address = self._libc.map(None, nbytes, flags, -1)
        self._unmapping = self._libc.unmapping(self._address, nbytes)

    def map(self, offset: int, nbytes: int, descriptor: int) -> None:
        """Show the beginning of a file, ``nbytes`` of it, at a distance from the beginning of the stretch."""
        self._libc.map(self._address + offset, nbytes, mmap.MAP_SHARED | MAP_FIXED, descriptor)

    def array(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """A read-only array over the stretch, which keeps it."""
        shown = np.asarray(_Shown(self, self._address + offset, dtype, shape))
        return shown if dtype.names is None else shown.view(dtype)  # of columns, NumPy's interface shows the bytes only


class _Shown:
    """An array in a stretch, as NumPy asks for it."""

    def __init__(self, stretch: Stretch, address: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._stretch = stretch
        self.__array_interface__ = {"data": (address, True), "shape": shape, "typestr": dtype.str, "version": 3}


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


def memory_bytes() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def without_read_ahead(array: npt.NDArray[Any]) -> None:
    """Say that of a map, or maps side by side, that nothing else reads, only what is asked for will be read."""
    if array.nbytes:
        libc().advise(array.ctypes.data, array.nbytes, mmap.MADV_RANDOM)


def will_need(address: int, nbytes: int) -> None:
    """Ask for a stretch of a map to be in memory soon."""
    for at in range(0, nbytes, ADVISED):
        libc().advise(address + at, min(ADVISED, nbytes - at), mmap.MADV_WILLNEED)


def let_go(address: int, nbytes: int) -> None:
    """Say that what this process has read of a map may go first where memory gets short."""
    if sys.platform == "linux" and nbytes:
        libc().advise(address, nbytes, _COLD)

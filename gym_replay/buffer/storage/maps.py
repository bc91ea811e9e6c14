"""Files mapped into memory without keeping them open.

Python's own ``mmap`` duplicates the descriptor and keeps it for as long as anybody looks at the map, so that views
handed out by a closed buffer would hold its files open. A map itself needs no descriptor once it is made.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.errors import StorageError
from gym_replay.files.garbage import when_garbage

MAP_FIXED = 0x10  # the same number on Linux and macOS
MAP_NORESERVE = 0x40 if os.uname().sysname == "Darwin" else 0x4000
_FAILED = ctypes.c_void_p(-1).value

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

    def unmap_with(self, owner: object, address: int, nbytes: int) -> None:
        """Have a map undone when its owner is garbage."""
        when_garbage(owner, ("map", address), self._munmap, address, nbytes)


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
            self._libc.unmap_with(self, self._address, nbytes)
            return
        self._address = self._libc.map(None, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, -1)
        self._libc.unmap_with(self, self._address, nbytes)

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

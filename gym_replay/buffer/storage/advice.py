"""What the operating system is told about maps of which blocks are read in random order.

Without a word from us, the system guesses from page faults what will be read next, and of blocks in random order all of
that is read for nothing. So such a map is said to be read at random, which ends the guessing, and blocks that will be
needed are asked for by name. All of this is advice: where it is not understood, reading is slower, and no different.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import lru_cache
from typing import Any

import numpy.typing as npt

PIECE = 1 << 17
"""Bytes that are asked for in one call: Linux reads no more than its read-ahead of one, 128 KiB by default."""

_COLD = 20  # Linux 5.4; Python's mmap has no name for it


@lru_cache(maxsize=1)
def _libc() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    # Python's own madvise is for maps of its own, and keeps the interpreter's lock.
    library.madvise.restype, library.madvise.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return library


def _advise(address: int, nbytes: int, advice: int) -> None:
    begin = address // mmap.PAGESIZE * mmap.PAGESIZE
    _libc().madvise(begin, address + nbytes - begin, advice)


def expect_blocks(array: npt.NDArray[Any]) -> None:
    """Say that of a map, or maps side by side, that nothing else reads, only what is asked for will be read."""
    if array.nbytes:
        _advise(array.ctypes.data, array.nbytes, mmap.MADV_RANDOM)


def will_need(address: int, nbytes: int) -> None:
    """Ask for a stretch of a map to be in memory soon."""
    for at in range(0, nbytes, PIECE):
        _advise(address + at, min(PIECE, nbytes - at), mmap.MADV_WILLNEED)


def let_go(address: int, nbytes: int) -> None:
    """Say that what this process has read of a map may go first where memory gets short."""
    if sys.platform == "linux" and nbytes:
        _advise(address, nbytes, _COLD)

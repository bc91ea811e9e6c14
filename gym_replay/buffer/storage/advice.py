"""What the operating system is told about maps of which stretches are read in random order.

Without a word from us, the system guesses from page faults what will be read next, and around each fault it reads what
it thinks worth while: 128 KiB by default, 8 MiB on some disks. Of blocks that come in random order, all that is beyond
the block is read for nothing. So these maps are said to be read at random, which ends the guessing, and each stretch is
brought in by name. Where the file system can, that is in pages of 2 MiB: a disk was measured to deliver twice as many
bytes in them as in pages of 4 KiB, one page fault maps what took 512, and random reads miss fewer entries of the
processor's table of pages. All of this is advice; where it is not understood, reading is slower, and no different.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy.typing as npt

HUGE = 1 << 21
"""The large pages that are asked for; where the processor's are of another size, none are."""

_POPULATE_READ = 22  # Linux 5.14; Python's mmap has no name for it
_HUGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


@lru_cache(maxsize=1)
def _libc() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    # Python's own madvise keeps the interpreter's lock, and bringing in takes as long as the disk does.
    library.madvise.restype, library.madvise.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    library.mincore.restype = ctypes.c_int
    library.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    return library


@lru_cache(maxsize=1)
def _has_huge_pages() -> bool:
    try:
        return hasattr(mmap, "MADV_HUGEPAGE") and int(_HUGE_SIZE.read_text()) == HUGE
    except (OSError, ValueError):
        return False


def _advise(address: int, nbytes: int, advice: int) -> bool:
    begin = address // mmap.PAGESIZE * mmap.PAGESIZE
    return bool(_libc().madvise(begin, address + nbytes - begin, advice) == 0)


def expect_stretches(array: npt.NDArray[Any]) -> bool:
    """Say that of a map, or maps side by side, that nothing else reads, only announced stretches will be read."""
    known = array.nbytes > 0 and hasattr(mmap, "MADV_RANDOM")
    return known and _advise(array.ctypes.data, array.nbytes, mmap.MADV_RANDOM)


def use_huge_pages(array: npt.NDArray[Any]) -> bool:
    """Ask for large pages in a map; return whether there may be any."""
    return _has_huge_pages() and _advise(array.ctypes.data, array.nbytes, mmap.MADV_HUGEPAGE)


def can_populate(array: npt.NDArray[Any]) -> bool:
    """Whether the system knows how to bring in stretches of a map with :func:`populate`."""
    return populate(array.ctypes.data, 1)  # its first page is all there is to populate for now


def populate(address: int, nbytes: int) -> bool:
    """Have a stretch of a map in memory and in the table of pages when this returns; False where that cannot be."""
    return _advise(address, nbytes, _POPULATE_READ)


def unmap(address: int, nbytes: int) -> None:
    """Take a stretch of a map out of this process's table of pages; the page cache keeps it for now."""
    _advise(address, nbytes, mmap.MADV_DONTNEED)


def is_held(address: int) -> bool:
    """Whether the page cache has what is at this address of a map; True where the system does not say."""
    held = ctypes.create_string_buffer(1)
    told = _libc().mincore(address // mmap.PAGESIZE * mmap.PAGESIZE, 1, held) == 0
    return not told or bool(held.raw[0] & 1)

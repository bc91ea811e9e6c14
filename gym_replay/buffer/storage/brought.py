"""Stretches of mapped files in memory of this process, in the place of the map: for data larger than memory.

What is read through the page cache stays there until the system finds something better to keep, and under a limit on
memory that is as often what was read ahead as what is done with. A stretch that is brought takes memory of its own
until it is put back, and not a page besides, where the file system reads past its cache (``O_DIRECT``).

A stretch has the addresses that it has in the map of its file, so that nobody who reads the map needs to know. It is
read into memory elsewhere, which is then moved over the map in one step, and putting back maps the file again in one
step: other threads see the file's bytes at any time. A stretch that was brought shows no later change of the file, so
only rows may be brought that are not written again while anybody asks for them; see ``Source.are_live``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress

from gym_replay.buffer.storage.advice import HUGE, expect_random, want_huge_pages
from gym_replay.buffer.storage.maps import MAP_FIXED, MAP_NORESERVE, libc

_DIRECT: int = getattr(os, "O_DIRECT", 0)
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
_BOTH = mmap.PROT_READ | mmap.PROT_WRITE


def can_bring() -> bool:
    """Whether this system can."""
    return libc().can_move


def bring(descriptor: int, begin: int, end: int, address: int) -> bool:
    """Bring the pages of a mapped file that these bytes are in.

    Args:
        descriptor: of the file.
        begin, end: which bytes of it.
        address: where byte ``begin`` is in the map.

    Returns:
        Whether it was done; if not, all is as before.
    """
    begin, nbytes, address = _pages(begin, end, address)
    try:
        reserved = libc().map(None, nbytes + HUGE, _PRIVATE, -1, protection=_BOTH)
    except OSError:
        return False
    # A disk reads into a few large pages much faster than into as many bytes of small ones, also where they are mapped
    # in small pieces after the move.
    place, after = -(-reserved // HUGE) * HUGE, reserved + nbytes + HUGE
    held = [(reserved, place), (place, after)]
    try:
        want_huge_pages(place, (nbytes + HUGE // 4) // HUGE * HUGE)
        _read(descriptor, begin, place, nbytes)
        libc().move(place, nbytes, address)
        held[1] = (place + nbytes, after)
    except OSError:
        return False
    finally:
        for low, high in held:
            if low < high:
                libc().unmap(low, high - low)
    return True


def put_back(descriptor: int, begin: int, end: int, address: int) -> None:
    """Map the file again where :func:`bring` was called with the same numbers; the memory is free then."""
    begin, nbytes, address = _pages(begin, end, address)
    with suppress(OSError):  # it stays brought, then
        libc().map(address, nbytes, mmap.MAP_SHARED | MAP_FIXED, descriptor, begin)
        expect_random(address, nbytes)


def _pages(begin: int, end: int, address: int) -> tuple[int, int, int]:
    """The first byte of the pages of these bytes, how many they have, and where the first one is."""
    first = begin // mmap.PAGESIZE * mmap.PAGESIZE
    return first, -(-end // mmap.PAGESIZE) * mmap.PAGESIZE - first, address - (begin - first)


def _read(descriptor: int, begin: int, address: int, nbytes: int) -> None:
    """Read whole pages of a file, past the page cache where that can be; behind the end of the file are zeros.

    Raises:
        OSError: it cannot be read.
    """
    into = memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")
    done = 0
    while done < nbytes:
        count = os.preadv(descriptor, [into[done:]], begin + done)
        if count == 0:
            return
        done += count


def reopened(descriptor: int) -> int:
    """A descriptor of the same file that reads past the page cache, or one like the first; to be closed."""
    if _DIRECT:
        with suppress(OSError):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | _DIRECT)
    return os.dup(descriptor)

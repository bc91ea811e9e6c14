"""Stretches of mapped files in memory of this process, in the place of the map: for data larger than memory.

What is read through the page cache stays there until the system finds something better to keep, and under a limit on
memory that is as often what was read ahead as what is done with. A stretch that is brought takes memory of its own
until it is put back, and not a page besides, where the file system reads past its cache (``O_DIRECT``). The memory is
used again for the next stretch: pages that are new to the process cost as much as a disk takes to fill them.

A stretch has the addresses that it has in the map of its file, so that nobody who reads the map needs to know. It is
read into memory elsewhere, of which the pages are then moved over the map in one step. Nobody may read the map while
something is put back, which takes two. A stretch that was brought shows no later change of the file, so only rows may
be brought that are not written again while anybody asks for them; see ``Source.are_live``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress
from threading import Lock

from gym_replay.buffer.storage.advice import HUGE, expect_random, want_huge_pages
from gym_replay.buffer.storage.maps import MAP_FIXED, MAP_NORESERVE, libc

_DIRECT: int = getattr(os, "O_DIRECT", 0)
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
_BOTH = mmap.PROT_READ | mmap.PROT_WRITE
_SPARE = 4 * mmap.PAGESIZE
"""Blocks of as many rows differ by a page, by where in a page they begin."""


def can_bring() -> bool:
    """Whether this system can."""
    return libc().can_move


class Memory:
    """Memory into which stretches are brought, as much as was in use at one time, until this is gone.

    Its methods may be called from several threads.
    """

    def __init__(self) -> None:
        self._libc = libc()
        self._lock = Lock()
        self._sizes: dict[int, int] = {}
        """Of each place, by its address; also of those whose pages are in a map for now."""
        self._free: list[int] = []
        self._brought: dict[tuple[int, int], int] = {}
        """Where in the file the addresses are that are brought, or will be soon."""
        self._shown: dict[int, tuple[int, int]] = {}
        """To which addresses the pages of a place were moved."""

    def bring(self, descriptor: int, begin: int, end: int, address: int) -> int | None:
        """Bring the pages of a mapped file that these bytes are in.

        Args:
            descriptor: of the file.
            begin, end: which bytes of it.
            address: where byte ``begin`` is in the map.

        Returns:
            The place whose pages are there now, for :meth:`put_back`; None where it cannot be, and all is as before.
        """
        begin, nbytes, address = _pages(begin, end, address)
        with self._lock:
            low, high = self._not_brought(address, address + nbytes)
            if low >= high:
                return None
            # Until it is done, nobody else brings these pages.
            self._brought[(low, high)] = begin + low - address
        place: int | None = None
        try:
            place = self._take(high - low)
            _read(descriptor, begin + low - address, place, high - low)
            self._libc.move(place, high - low, low)
        except OSError:
            with self._lock:
                del self._brought[(low, high)]
                if place is not None:
                    self._free.append(place)
            return None
        with self._lock:
            self._shown[place] = low, high
        return place

    def put_back(self, place: int, descriptor: int) -> None:
        """Map the file again where it was brought; where that is refused, it stays. Nobody may read there meanwhile."""
        with self._lock:
            low, high = self._shown.pop(place)
            begin = self._brought[(low, high)]
        with suppress(OSError):  # then its memory goes, and is new the next time
            self._libc.move(low, high - low, place)
        try:
            self._libc.map(low, high - low, mmap.MAP_SHARED | MAP_FIXED, descriptor, begin)
        except OSError:  # what was moved away left zeros, which nobody may see
            self._libc.move(place, high - low, low)
            with self._lock:
                self._shown[place] = low, high
            return
        expect_random(low, high - low)
        with self._lock:
            del self._brought[(low, high)]
            self._free.append(place)

    def _not_brought(self, low: int, high: int) -> tuple[int, int]:
        """These addresses, without what is brought already at their beginning or end: pages of two stretches."""
        for begin, end in self._brought:
            if begin <= low < end:
                low = end
            if begin < high <= end:
                high = begin
        inside = any(low <= begin < high for begin, _ in self._brought)
        return (low, low) if inside else (low, high)

    def _take(self, nbytes: int) -> int:
        """A place of at least so many bytes, and not much more.

        Raises:
            OSError: there is none.
        """
        dropped: list[tuple[int, int]] = []
        most = nbytes + nbytes // 4 + 2 * _SPARE
        with self._lock:
            fitting = [place for place in self._free if nbytes <= self._sizes[place] <= most]
            if fitting:
                found = min(fitting, key=self._sizes.__getitem__)
                self._free.remove(found)
                return found
            # Of other sizes, as much goes as comes.
            while self._free and sum(size for _, size in dropped) < nbytes:
                place = self._free.pop(0)
                dropped.append((place, self._sizes.pop(place)))
        for place, size in dropped:
            self._libc.unmap(place, size)
        return self._reserve(nbytes + _SPARE)

    def _reserve(self, nbytes: int) -> int:
        reserved = self._libc.map(None, nbytes + HUGE, _PRIVATE, -1, protection=_BOTH)
        # A disk reads into a few large pages much faster than into as many bytes of small ones, also where they are
        # mapped in small pieces after a move.
        place, after = -(-reserved // HUGE) * HUGE, reserved + nbytes + HUGE
        for low, high in ((reserved, place), (place + nbytes, after)):
            if low < high:
                self._libc.unmap(low, high - low)
        want_huge_pages(place, nbytes)
        with self._lock:
            self._sizes[place] = nbytes
        return place

    def __del__(self) -> None:
        for place, size in getattr(self, "_sizes", {}).items():
            self._libc.unmap(place, size)


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

"""Reading ahead of a shuffle by blocks, and letting go of what is done, in threads beside the one that gathers."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from threading import Lock
from typing import Any, Protocol

from gym_replay.buffer.loading.blocks import Read
from gym_replay.buffer.loading.gather import Rows

READERS = 4
"""Threads that read, of which each waits for the disk most of its time: disks work on several things at once."""

Stretch = tuple[int, int, int]
Held = tuple[Rows, Collection[str], Stretch]


class Spans(Protocol):
    """What knows where samples are: a dataset."""

    read_fields: Collection[str]
    source: Any

    def stretches(self, first: int, last: int) -> list[Stretch]:
        """Where the rows of these samples are."""


@lru_cache(maxsize=1)
def _readers(process: int) -> ThreadPoolExecutor:
    """The threads of this process; a forked one has none and starts its own."""
    return ThreadPoolExecutor(READERS, thread_name_prefix="gym_replay-read-ahead")


class Kept:
    """What was read and is done with: it stays in the page cache for the next epoch, as far as there is memory.

    Once the oldest of it has gone, memory is short. From then on no more than half of what was still there is kept, so
    that what makes room is what is done with, and never what was read ahead. The system cannot know which is which, and
    once it has read something twice it takes that for what is worth keeping.
    """

    def __init__(self) -> None:
        self._spans: deque[Held] = deque()
        self._used: dict[tuple[int, Read], list[Stretch]] = {}
        self._rows, self._most = 0, 0
        self._is_short = False
        self._lock = Lock()

    def use(self, key: tuple[int, Read], stretches: list[Stretch]) -> None:
        """These are read now, and in use from then on."""
        with self._lock:
            self._used[key] = stretches
        self.make_room()

    def done(self, key: tuple[int, Read], rows: Rows, names: Collection[str]) -> None:
        """They are done with."""
        with self._lock:
            for stretch in self._used.pop(key, ()):
                self._spans.append((rows, names, stretch))
                self._rows += stretch[2] - stretch[1]
        self.make_room()

    def make_room(self) -> None:
        """Let go of the oldest, where memory is short."""
        with self._lock:
            while self._spans and not _is_there(self._spans[0]):
                self._forget()
                self._is_short, self._most = True, self._rows // 2
            gone = []
            while self._is_short and self._rows > self._most:
                gone.append(self._forget())
            used = [self._used_beside(stretch) for _, _, stretch in gone]
        for (rows, names, (part, first, last)), beside in zip(gone, used, strict=True):
            for name in names:
                rows.let_go(name, part, first, last, beside)

    def _used_beside(self, stretch: Stretch) -> tuple[int | None, int | None]:
        """Where the nearest rows that are in use end before a stretch, and begin after it; None without any."""
        part, first, last = stretch
        others = [(low, high) for used in self._used.values() for number, low, high in used if number == part]
        before = max((high for low, high in others if low < first), default=None)
        return before, min((low for low, high in others if high > last), default=None)

    def _forget(self) -> Held:
        oldest = self._spans.popleft()
        self._rows -= oldest[2][2] - oldest[2][1]
        return oldest


def _is_there(held: Held) -> bool:
    rows, names, (_, first, last) = held
    return all(rows.are_held(name, (first + last) // 2) for name in names)


class ReadAhead:
    """Reads what is asked for, and is done with it when the batches reach the pool after."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._pending: deque[tuple[tuple[int, int], Future[None]]] = deque()
        """Pieces of work, each with the epoch and pool that is not to be entered before it is done."""
        self._asked: deque[tuple[int, Read]] = deque()
        self._kept = Kept()
        self._last: tuple[int, int] | None = None

    def serve(self, spans: Spans, epoch: int, pool: int, reads: Sequence[tuple[int, int, int]]) -> None:
        """Begin to read; where a batch enters a pool, wait until that pool has been read.

        Until then nobody waits, and all of the next pool may be asked for, so that a disk which is slower than the
        batches is never idle: it reads the next pool for as long as there are batches of this one. It is not asked for
        more than that: what is read too early is gone from memory again before it is used.

        Args:
            spans: where the samples are.
            epoch, pool: of the first sample of the batch that is to be made.
            reads: samples of this pool or of the next two.
        """
        if self._process != os.getpid():  # what another process was asked for is nothing to wait for
            self.__init__()  # type: ignore[misc]
        # A batch that reaches into another pool comes with the first reads of the one after that.
        reached = max([pool, *(needed - 1 for _, _, needed in reads)])
        is_entering = (epoch, reached) != self._last
        self._last = epoch, reached
        # Pools come in order; in another epoch, or after a jump, nothing that was asked for is still to come.
        while self._asked and not (self._asked[0][0] == epoch and pool <= self._asked[0][1].pool <= pool + 2):
            of, done = self._asked.popleft()
            # Before the next pool is read, so that there is room for it; in the pool after, it must be over.
            self._submit((epoch, reached + 1), partial(self._finish, spans, of, done))
        for read in map(Read._make, reads):
            self._asked.append((epoch, read))
            self._submit((epoch, read.pool), partial(self._read, spans, epoch, read))
        # What a batch needs must be there: each page that it found missing would be read on its own.
        if is_entering or any(needed <= reached for _, _, needed in reads):
            self.wait((epoch, reached))

    def wait(self, reached: tuple[int, int] | None = None) -> None:
        """Wait for what must be done before an epoch's pool is entered; without one, for all."""
        later = deque[tuple[tuple[int, int], Future[None]]]()
        while self._pending:
            needed, piece = self._pending.popleft()
            if reached is not None and needed[0] == reached[0] and needed[1] > reached[1]:
                later.append((needed, piece))
            else:
                piece.exception()  # what cannot be read ahead is read again, by the batch
        self._pending = later

    def _submit(self, needed: tuple[int, int], piece: Callable[[], None]) -> None:
        self._pending.append((needed, _readers(self._process).submit(piece)))

    def _read(self, spans: Spans, epoch: int, read: Read) -> None:
        stretches = spans.stretches(read.first, read.last)
        self._kept.use((epoch, read), stretches)
        for part, first, last in stretches:
            for name in spans.read_fields:
                spans.source.rows.read_ahead(name, part, first, last)

    def _finish(self, spans: Spans, epoch: int, read: Read) -> None:
        self._kept.done((epoch, read), spans.source.rows, spans.read_fields)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

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
BEHIND = 2 * READERS
"""Pieces that may still be unread when the next batch is made. What is needed sooner, the batch itself reads."""

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
        self._rows, self._most = 0, 0
        self._is_short = False
        self._lock = Lock()

    def add(self, held: Held) -> None:
        """One more stretch is done with."""
        with self._lock:
            self._spans.append(held)
            self._rows += held[2][2] - held[2][1]
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
        for rows, names, (part, first, last) in gone:
            for name in names:
                rows.let_go(name, part, first, last)

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
        self._pending: deque[Future[None]] = deque()
        self._asked: deque[tuple[int, Read]] = deque()
        self._kept = Kept()
        self._last: tuple[int, int] | None = None

    def serve(self, spans: Spans, epoch: int, pool: int, reads: Sequence[tuple[int, int, int]]) -> None:
        """Begin to read, and wait until no more than a few of the pieces from before are left.

        A disk that is too slow must not be asked for more and more of what will be read, and gone from memory again,
        before it is done.

        Args:
            spans: where the samples are.
            epoch, pool: of the first sample of the batch that is to be made.
            reads: samples of this pool or of the next two.
        """
        if self._process != os.getpid():  # what another process was asked for is nothing to wait for
            self.__init__()  # type: ignore[misc]
        # What the batch needs of a pool that it enters must be there; each page that is not is read on its own.
        is_entering = (epoch, pool) != self._last or any(needed > pool + 1 for _, _, needed in reads)
        self.wait(0 if is_entering else BEHIND)
        self._last = epoch, pool
        # Pools come in order; in another epoch, or after a jump, nothing that was asked for is still to come.
        while self._asked and not (self._asked[0][0] == epoch and pool <= self._asked[0][1].pool <= pool + 2):
            _, done = self._asked.popleft()
            self._submit(partial(self._finish, spans, done))
        for read in map(Read._make, reads):
            self._asked.append((epoch, read))
            self._submit(partial(self._read, spans, read))
        if any(needed == pool for _, _, needed in reads):
            self.wait()  # the batch needs them: each page that it found missing would be read with all around it

    def wait(self, left: int = 0) -> None:
        """Wait until no more than so many pieces are left."""
        while len(self._pending) > left:
            self._pending.popleft().exception()  # what cannot be read ahead is read again, by the batch

    def _submit(self, piece: Callable[[], None]) -> None:
        self._pending.append(_readers(self._process).submit(piece))

    def _read(self, spans: Spans, read: Read) -> None:
        self._kept.make_room()
        for part, first, last in spans.stretches(read.first, read.last):
            for name in spans.read_fields:
                spans.source.rows.read_ahead(name, part, first, last)

    def _finish(self, spans: Spans, read: Read) -> None:
        for stretch in spans.stretches(read.first, read.last):
            self._kept.add((spans.source.rows, spans.read_fields, stretch))

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

"""Reading ahead of a shuffle by blocks, and letting go of what is done, in threads beside the one that gathers."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

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


class _Beside:
    """Finds the nearest of many stretches ``(stretches, 2)``, which may overlap."""

    def __init__(self, spans: npt.NDArray[np.int64]) -> None:
        by_low, by_high = spans[spans[:, 0].argsort()], spans[spans[:, 1].argsort()]
        self._lows, self._highest = by_low[:, 0], np.maximum.accumulate(by_low[:, 1])
        self._highs, self._lowest = by_high[:, 1], np.minimum.accumulate(by_high[::-1, 0])[::-1]

    def of(self, first: int, last: int) -> tuple[int | None, int | None]:
        """Where the last of those ends that begin before ``first``, and the first begins that ends after ``last``."""
        before, after = int(self._lows.searchsorted(first)), int(self._highs.searchsorted(last, side="right"))
        return (
            int(self._highest[before - 1]) if before else None,
            int(self._lowest[after]) if after < len(self._lowest) else None,
        )


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

    def done(self, key: tuple[int, Read], rows: Rows, names: Collection[str], all_rows: int) -> None:
        """They are done with, and are some of so many rows."""
        with self._lock:
            for stretch in self._used.pop(key, ()):
                self._spans.append((rows, names, stretch))
                self._rows += stretch[2] - stretch[1]
            while self._rows > all_rows:  # the oldest are among the newer ones again
                self._forget()
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
            used = self._used_beside([stretch for _, _, stretch in gone])
        for (rows, names, (part, first, last)), beside in zip(gone, used, strict=True):
            for name in names:
                rows.let_go(name, part, first, last, beside)

    def _used_beside(self, gone: Sequence[Stretch]) -> list[tuple[int | None, int | None]]:
        """Where the nearest rows that are in use end before each stretch, and begin after it; None without any."""
        if not gone:
            return []
        of_part: dict[int, list[tuple[int, int]]] = {}
        for used in self._used.values():
            for part, low, high in used:
                of_part.setdefault(part, []).append((low, high))
        beside = {part: _Beside(np.array(spans)) for part, spans in of_part.items()}
        return [beside[part].of(first, last) if part in beside else (None, None) for part, first, last in gone]

    def _forget(self) -> Held:
        oldest = self._spans.popleft()
        self._rows -= oldest[2][2] - oldest[2][1]
        return oldest


def _is_there(held: Held) -> bool:
    rows, names, (_, first, last) = held
    return all(rows.are_held(name, (first + last) // 2) for name in names)


class _Pending(NamedTuple):
    """A piece of work.

    Attributes:
        needed: the epoch and pool that is not to be entered before it is done.
        is_read: whether it only reads, so that it may be left out.
        piece: what it is.
    """

    needed: tuple[int, int]
    is_read: bool
    piece: Future[None]


class ReadAhead:
    """Reads what is asked for, and is done with it when the batches reach the pool after."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._pending: deque[_Pending] = deque()
        self._asked: deque[tuple[int, Read]] = deque()
        self._kept = Kept()
        self._last: tuple[int, int] | None = None

    def serve(self, spans: Spans, epoch: int, pool: int, reached: int, reads: Sequence[tuple[int, int, int]]) -> None:
        """Begin to read; where a batch enters a pool, wait until that pool has been read.

        Until then nobody waits, and all of the next pool may be asked for, so that a disk which is slower than the
        batches is never idle: it reads the next pool for as long as there are batches of this one. It is not asked for
        more than that: what is read too early is gone from memory again before it is used.

        Args:
            spans: where the samples are.
            epoch, pool: of the first sample of the batch that is to be made.
            reached: the pool of its last one.
            reads: samples of these pools or of later ones.
        """
        if self._process != os.getpid():  # what another process was asked for is nothing to wait for
            self.__init__()  # type: ignore[misc]
        is_entering = (epoch, reached) != self._last
        if is_jump := self._last is not None and not (self._last[0] == epoch and self._last[1] <= reached):
            self.cancel()
            self.wait()  # for what is being read: only then can it be done with
        self._last = epoch, reached
        # Pools come in order; in another epoch, or after a jump, nothing that was asked for is still to come.
        while self._asked and (is_jump or self._asked[0][1].pool < pool):
            of, done = self._asked.popleft()
            # Before the next pool is read, so that there is room for it; in the pool after, it must be over.
            self._submit((epoch, reached + 1), partial(self._finish, spans, of, done))
        for read in map(Read._make, reads):
            self._asked.append((epoch, read))
            self._submit((epoch, read.pool), partial(self._read, spans, epoch, read), is_read=True)
        # What a batch needs must be there: each page that it found missing would be read on its own.
        if is_entering or any(needed <= reached for _, _, needed in reads):
            self.wait((epoch, reached))

    def wait(self, reached: tuple[int, int] | None = None) -> None:
        """Wait for what must be done before an epoch's pool is entered; without one, for all."""
        later = deque[_Pending]()
        while self._pending:
            pending = self._pending.popleft()
            if reached is not None and pending.needed[0] == reached[0] and pending.needed[1] > reached[1]:
                later.append(pending)
            else:
                pending.piece.exception()  # what cannot be read ahead is read again, by the batch
        self._pending = later

    def cancel(self) -> None:
        """Read nothing more of what was asked for and is not begun: nobody waits for it any more."""
        if self._process == os.getpid():
            self._pending = deque(one for one in self._pending if not (one.is_read and one.piece.cancel()))

    def _submit(self, needed: tuple[int, int], piece: Callable[[], None], *, is_read: bool = False) -> None:
        self._pending.append(_Pending(needed, is_read, _readers(self._process).submit(piece)))

    def _read(self, spans: Spans, epoch: int, read: Read) -> None:
        stretches = spans.stretches(read.first, read.last)
        self._kept.use((epoch, read), stretches)
        for part, first, last in stretches:
            for name in spans.read_fields:
                spans.source.rows.read_ahead(name, part, first, last)

    def _finish(self, spans: Spans, epoch: int, read: Read) -> None:
        rows = spans.source.rows
        self._kept.done((epoch, read), rows, spans.read_fields, int(rows.firsts[-1]))

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

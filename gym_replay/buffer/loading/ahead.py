"""Reading ahead of a shuffle by blocks, and letting go of what is done, in a thread beside the one that gathers."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, Protocol

from gym_replay.buffer.loading.gather import Rows

BEHIND = 4
"""Pieces that may still be unread when the next batch is made. What is needed sooner, the batch itself reads."""

Span = tuple[int, int]
Stretch = tuple[int, int, int]


class Spans(Protocol):
    """What knows where samples are: a dataset."""

    read_fields: Collection[str]
    source: Any

    def stretches(self, span: Span) -> list[Stretch]:
        """Where the rows of these samples are."""


@lru_cache(maxsize=1)
def _reader(process: int) -> ThreadPoolExecutor:
    """The thread of this process; a forked one has none and starts its own."""
    return ThreadPoolExecutor(1, thread_name_prefix="gym_replay-read-ahead")


class Kept:
    """What was read and is done with: it stays in the page cache for the next epoch, as far as there is memory.

    Once the oldest of it has gone, memory is short. Then no more than was still there is kept, so that it is what is
    done with that makes room, and never what was read ahead: the system cannot know which is which, and once it has
    read something twice, it takes that for what is worth keeping.
    """

    def __init__(self) -> None:
        self._spans: deque[tuple[Rows, Collection[str], Stretch]] = deque()
        self._rows, self._most = 0, 0
        self._is_short = False

    def add(self, rows: Rows, names: Collection[str], stretch: Stretch) -> None:
        """One more stretch is done with."""
        self._spans.append((rows, names, stretch))
        self._rows += stretch[2] - stretch[1]
        while self._spans and not self._is_there(self._spans[0]):
            self._forget()
            # A quarter less than is left, since other things want memory too.
            self._is_short, self._most = True, self._rows * 3 // 4
        while self._is_short and self._rows > self._most:
            of, names, (part, first, last) = self._forget()
            for name in names:
                of.let_go(name, part, first, last)

    def _is_there(self, span: tuple[Rows, Collection[str], Stretch]) -> bool:
        rows, names, (_, first, last) = span
        return all(rows.are_held(name, (first + last) // 2) for name in names)

    def _forget(self) -> tuple[Rows, Collection[str], Stretch]:
        oldest = self._spans.popleft()
        self._rows -= oldest[2][2] - oldest[2][1]
        return oldest


class ReadAhead:
    """Reads what is asked for, one piece after another, and lets go of it two pools later."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._pending: deque[Future[None]] = deque()
        self._moment: tuple[int, int] | None = None
        self._now: list[Span] = []
        self._before: list[Span] = []
        self._kept = Kept()

    def serve(self, spans: Spans, moment: tuple[int, int], reads: Sequence[Span]) -> None:
        """Begin to read, and wait until no more than a few of the pieces from before are left.

        A disk that is too slow must not be asked for more and more of what will be read, and gone from memory again,
        before it is done.

        Args:
            spans: where the samples are.
            moment: epoch and pool of the batch that is to be made.
            reads: samples of this pool or of the next one.
        """
        if self._process != os.getpid():  # what another process was asked for is nothing to wait for
            self.__init__()  # type: ignore[misc]
        self.wait(BEHIND)
        if moment != self._moment:
            # What was asked for in the pool before the last was read in the last one at the latest.
            done, self._before, self._now, self._moment = self._before, self._now, [], moment
            for span in done:
                self._submit(partial(self._finish, spans, span))
        self._now += reads
        for span in reads:
            self._submit(partial(_read, spans, span))

    def wait(self, left: int = 0) -> None:
        """Wait until no more than so many pieces are left."""
        while len(self._pending) > left:
            self._pending.popleft().exception()  # what cannot be read ahead is read again, by the batch

    def _submit(self, piece: Callable[[], None]) -> None:
        self._pending.append(_reader(self._process).submit(piece))

    def _finish(self, spans: Spans, span: Span) -> None:
        for stretch in spans.stretches(span):
            self._kept.add(spans.source.rows, spans.read_fields, stretch)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


def _read(spans: Spans, span: Span) -> None:
    for part, first, last in spans.stretches(span):
        for name in spans.read_fields:
            spans.source.rows.read_ahead(name, part, first, last)

"""Asking for the rows of a shuffle by blocks before they are needed, in a thread beside the one that gathers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

from gym_replay.buffer.loading.blocks import Read

Advise = Callable[[Sequence[Read], Sequence[Read]], None]
"""Asks for the samples of the first, and is done with those of the second."""


@lru_cache(maxsize=1)
def _thread(process: int) -> ThreadPoolExecutor:
    """The thread of this process; a forked one has none and starts its own."""
    return ThreadPoolExecutor(1, thread_name_prefix="gym_replay-read-ahead")


class ReadAhead:
    """Has the kernel read a pool while the batches of the one before are made, and says what is done with.

    Nobody waits for it: a row that has not come yet is waited for by the system when it is gathered.
    """

    def __init__(self) -> None:
        self._asked: list[tuple[int, Read]] = []
        self._pending: Future[None] | None = None

    def enter(self, advise: Advise, epoch: int, pool: int, reads: Sequence[Read]) -> None:
        """Ask for these samples; what was asked for pools before this one, or in another epoch, is done with."""
        done = [read for of, read in self._asked if of != epoch or read.pool < pool]
        self._asked = [(of, read) for of, read in self._asked if of == epoch and read.pool >= pool]
        self._asked += [(epoch, read) for read in reads]
        self._pending = _thread(os.getpid()).submit(partial(advise, reads, done))

    def cancel(self) -> None:
        """Ask for nothing more that is not begun: nobody needs it any more."""
        if self._pending is not None:
            self._pending.cancel()

    def __getstate__(self) -> dict[str, Any]:
        return {"_asked": [], "_pending": None}

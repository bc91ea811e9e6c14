"""Work that threads share: one pool for each process, and a list of pieces from which each thread takes the next."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

_T = TypeVar("_T")

MOST_THREADS = 16
_ENOUGH = 4  # for what a caller did not ask for


def storage_threads() -> int:
    """How many threads the storage may use by itself: one where other processes do the same work beside this one."""
    if multiprocessing.parent_process() is not None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _ENOUGH)


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads beside the caller's, started as they are needed; a forked process has none and starts its own."""
    return ThreadPoolExecutor(MOST_THREADS - 1, thread_name_prefix="gym_replay-shared")


def share(work: Callable[[Iterator[_T]], None], pieces: Sequence[_T], workers: int) -> None:
    """Have ``work`` go through all pieces, in the caller's thread and up to ``workers - 1`` others.

    ``work`` is called with an iterator that it shares with the other threads: a thread that comes late finds less to
    do, or nothing. What one of them raises is raised here, when all have ended.
    """
    coming = iter(pieces)
    helping: list[Future[Any]] = []
    try:
        for _ in range(min(workers, len(pieces), MOST_THREADS) - 1):
            helping.append(_pool(os.getpid()).submit(work, coming))  # noqa: PERF401
    except RuntimeError:  # the interpreter is at its end, and starts no thread any more
        pass
    try:
        work(coming)
    finally:
        for _ in coming:  # where an exception came, nothing more is begun
            pass
        failed = [error for one in helping if not one.cancel() and (error := one.exception()) is not None]
    if failed:
        raise failed[0]

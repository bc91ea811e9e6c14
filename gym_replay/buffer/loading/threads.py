"""One large gather by several threads, which take pieces of it until there are none left.

Torch's own threads wait for one another at the end of each call. Where the computer has other work, as it does while a
model trains, one that waits for its turn holds up the rest, and ``index_select`` was measured at seven times the time
of one thread. Here a thread that comes late finds less to do, or nothing.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

PIECE_BYTES = 1 << 18
"""No piece but the last is smaller: between two, a thread may wait for the interpreter as long as a piece takes."""

_MOST_THREADS = 4  # memory is what limits the speed, and a few threads reach it


def threads() -> int:
    """How many threads a gather may use: as many as torch in this process, which in a loader's worker is one."""
    return min(torch.get_num_threads(), _MOST_THREADS)


@lru_cache(maxsize=1)
def _pool(process: int, helpers: int) -> ThreadPoolExecutor:
    """Threads beside the caller's; a forked process has none and starts its own."""
    return ThreadPoolExecutor(helpers, thread_name_prefix="gym_replay-gather")


def take(array: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """``array[rows]`` for rows of one axis: ``(len(rows), *array.shape[1:])``.

    Raises:
        IndexError: there is no such row.
    """
    if rows.min() < 0 or rows.max() >= len(array):
        raise IndexError(f"rows {rows.min()} .. {rows.max()} of an array of {len(array)}")
    out = np.empty((len(rows), *array.shape[1:]), array.dtype)
    workers = threads()
    pieces = iter(_pieces(len(rows), max(1, PIECE_BYTES * len(rows) // out.nbytes), workers))  # shared

    def work() -> None:
        for begin, end in pieces:
            # NumPy lets go of the interpreter while it copies. "clip" copies straight into place; nothing is clipped.
            array.take(rows[begin:end], 0, out[begin:end], "clip")

    pool = _pool(os.getpid(), workers - 1)
    helping = [pool.submit(work) for _ in range(workers - 1)]
    work()
    for one in helping:
        if not one.cancel():
            one.result()
    return out


def _pieces(count: int, least: int, workers: int) -> list[tuple[int, int]]:
    """Where the pieces of so many rows begin and end: large ones first, small ones for whoever is done early."""
    pieces, begin = [], 0
    while begin < count:
        end = min(count, begin + max(least, (count - begin) // (workers + 1)))
        pieces.append((begin, end))
        begin = end
    return pieces

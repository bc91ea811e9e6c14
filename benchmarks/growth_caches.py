"""What caches and pages do to random rows, without this package: why loading slows down as a buffer grows."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.curves import Panel, Study
from benchmarks.growing import Ints
from benchmarks.timing import per_item, take_turns

BATCH, ROW = 256, 16
PAGES = {"pages of 4 KB": "MADV_NOHUGEPAGE", "pages of 2 MB": "MADV_HUGEPAGE"}


def caches(sizes: Sequence[int], batches: int, repeats: int) -> Study:
    """``numpy.take`` of random rows of arrays of so many bytes, in pages of both sizes where the system has them."""
    panel = Panel(f"numpy.take of {BATCH} random rows of {ROW} bytes", "bytes of the array", "us per take")
    generator = np.random.default_rng(0)
    advices = {name: getattr(mmap, advice) for name, advice in PAGES.items() if hasattr(mmap, advice)}
    for size in sizes:
        lot = [generator.integers(0, size // ROW, BATCH) for _ in range(batches)]
        arrays = {name: _array(size, advice) for name, advice in (advices or {"pages": None}).items()}
        runs = {name: _takes(array, lot) for name, array in arrays.items()}
        turns = {name: partial(per_item, run, batches) for name, run in runs.items()}
        for name, values in take_turns(turns, repeats).items():
            panel.add(name, size, values)
    return Study("Random rows of larger and larger arrays in memory", {"take": panel})


def _takes(array: npt.NDArray[Any], lot: Sequence[Ints]) -> Iterator[npt.NDArray[Any]]:
    for rows in itertools.cycle(lot):
        yield array.take(rows, 0)


def _array(nbytes: int, advice: int | None) -> npt.NDArray[Any]:
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if advice is not None:
        memory.madvise(advice)
    array = np.frombuffer(memory, np.float32).reshape(-1, ROW // 4)
    array[:] = 1.0
    return array

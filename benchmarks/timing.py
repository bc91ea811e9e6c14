"""Timing of contenders that take turns, so that whatever else the computer does falls on all of them alike."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


def take_turns(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Each contender once per round; a round begins with another contender than the one before.

    Args:
        contenders: by name, a function that runs once and returns what it measured.
        repeats: how many rounds count; one more goes before them and does not.

    Returns:
        What was measured, by name, one entry per round.
    """
    names = list(contenders)
    measured: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # what is imported by now need not be searched for garbage before every turn
    try:
        for turn in range(repeats + 1):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                gc.collect()
                value = contenders[name]()
                if turn:
                    measured[name].append(value)
    finally:
        gc.unfreeze()
    return measured


def spread(values: Sequence[float]) -> str:
    """``median (lowest .. highest)``, with as many decimals as the median needs."""
    low, middle, high = min(values), statistics.median(values), max(values)
    digits = 2 if middle < 10 else 1 if middle < 100 else 0
    return f"{middle:.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"


def forever(loader: Iterable[T]) -> Iterator[T]:
    """One epoch after the other."""
    while True:
        yield from loader


def batches_in_turns(contenders: Mapping[str, Iterator[Any]], most: int) -> dict[str, Callable[[], float]]:
    """What takes the next batches of each; who takes a hundred times as long is asked for fewer of them."""
    return {
        name: partial(per_item, batches, max(4, min(most, int(3e5 / per_item(batches, 4)))))
        for name, batches in contenders.items()
    }


def per_item(items: Iterator[Any], count: int) -> float:
    """Microseconds for each of the next ``count`` items."""
    begin = time.perf_counter()
    for _ in itertools.islice(items, count):
        pass
    return 1e6 * (time.perf_counter() - begin) / count

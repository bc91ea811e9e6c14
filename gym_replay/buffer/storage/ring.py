"""Where the next episode's rows go: pure arithmetic over the stretches of rows that live episodes own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


class RowRing:
    """The rows that live episodes own, as runs in order of age.

    Episodes leave in the order in which they came, so the free rows before, between and behind the runs can be
    found without a free list, and there are few runs.

    Args:
        runs: ``(first row, end row)`` of each run, the oldest first.

    Attributes:
        end: one past the highest owned row.
        highest: one past the highest row that was ever owned.

    Example:
        >>> ring = RowRing([(10, 30)])
        >>> ring.place(10), ring.place(11), ring.place(11, end=30)
        (0, 30, None)
    """

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._runs: deque[tuple[int, int]] = deque(runs)
        self.end = self.highest = self._find_end()

    @classmethod
    def of_episodes(cls, starts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> RowRing:
        """The ring of episodes given in order of age: their first rows and numbers of rows."""
        if len(starts) == 0:
            return cls()
        ends = starts + rows
        breaks = np.flatnonzero(starts[1:] != ends[:-1]) + 1
        first = starts[np.concatenate(([0], breaks))]
        last = ends[np.concatenate((breaks - 1, [len(ends) - 1]))]
        return cls(zip(first.tolist(), last.tolist(), strict=True))

    def _find_end(self) -> int:
        return max((end for _, end in self._runs), default=0)

    def place(self, rows: int, *, end: int | None = None) -> int | None:
        """The lowest row at which ``rows`` free rows begin, none of them at or past ``end``; None if there is none."""
        candidate = 0
        for start, stop in sorted(self._runs):
            if candidate + rows <= start:
                break
            candidate = max(candidate, stop)
        return candidate if end is None or candidate + rows <= end else None

    def take(self, start: int, rows: int) -> None:
        """Let the newest episode own ``rows`` rows from ``start``."""
        runs, stop = self._runs, start + rows
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
        if stop > self.end:
            self.end = stop
            self.highest = max(stop, self.highest)

    def release(self, rows: int) -> None:
        """Let the oldest episode, of ``rows`` rows, go."""
        start, end = self._runs[0]
        if start + rows < end:
            self._runs[0] = (start + rows, end)
        else:
            self._runs.popleft()
            self.end = self._find_end()

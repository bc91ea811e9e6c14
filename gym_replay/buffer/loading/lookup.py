"""Which of many consecutive ranges a number is in, for many numbers at once. Sees arrays, never a buffer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_CELLS_PER_RANGE = 2
_MOST_STEPS = 4


class Lookup:
    """Finds the range of a number: ``np.searchsorted(offsets, numbers, side="right") - 1``, faster.

    The numbers are cut into cells of a power of two, one or two to a range, and a table holds the range in which each
    cell begins. From there it is mostly no step, or one, to the range of a number. Binary search takes ten steps for
    1000 ranges and twenty for a million, each a branch and, of the larger tables, a cache miss. The method is that of
    guide tables: H.-C. Chen and Y. Asau, "On Generating Random Variates from an Empirical Distribution", AIIE
    Transactions 6(2), 1974.

    Args:
        offsets: int64 ``(ranges + 1,)``, ascending from 0: range i is ``offsets[i] .. offsets[i + 1] - 1``, and may
            be empty. The table takes at most 8 bytes a range where there are fewer than ``2**31``.

    Example:
        >>> Lookup(np.array([0, 2, 2, 5])).find(np.array([0, 1, 2, 4]))
        array([0, 0, 2, 2])
    """

    def __init__(self, offsets: Ints) -> None:
        self._offsets = offsets
        self._ends = offsets[1:]  # a view: the same lines of the cache as the beginnings
        total, ranges = int(offsets[-1]), len(offsets) - 1
        self._shift = max(0, (total // max(1, _CELLS_PER_RANGE * ranges)).bit_length())
        cells = (total >> self._shift) + 1
        begins = np.arange(cells, dtype=np.int64) << self._shift
        table = np.searchsorted(offsets, begins, side="right") - 1
        lasts = np.searchsorted(offsets, np.minimum(begins + (1 << self._shift), total) - 1, side="right") - 1
        self._most_steps = int((lasts - table).max(initial=0))
        # Of many ranges, half the size is half of what falls out of the cache.
        self._table = table.astype(np.int32 if ranges < 1 << 31 else np.int64)

    def find(self, numbers: Ints) -> Ints:
        """The range of each number, int64 of the same shape.

        Raises:
            IndexError: a number is far outside of them; one that is just outside may be given a range.
        """
        if numbers.size == 0:
            return np.zeros(numbers.shape, np.int64)
        places: Ints = self._table.take(numbers >> self._shift).astype(np.int64, copy=False)
        for _ in range(min(self._most_steps, _MOST_STEPS)):
            places += self._ends.take(places) <= numbers
        if self._most_steps <= _MOST_STEPS:
            return places
        # Many short ranges in one cell: those numbers that are not there yet are searched for.
        behind = self._ends.take(places) <= numbers
        places[behind] = np.searchsorted(self._offsets, numbers[behind], side="right") - 1
        return places

"""Which of many consecutive ranges a number is in, for many numbers at once. Sees arrays, never a buffer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_CELLS_PER_RANGE = 4
"""A table may have so many cells for each range, where that spares steps; otherwise it has one or two."""

_FEW_CELLS = 1 << 13
"""Tables of so many cells are small enough for any cache."""


class Lookup:
    """Finds the range of a number: ``np.searchsorted(offsets, numbers, side="right") - 1``, faster.

    Of ranges of one length, the last of which may be shorter, the range is a quotient.

    Of others, the numbers are cut into cells of a power of two, mostly such that no more than one range begins inside
    each. A table has one word for a cell, which tells the range of its first number and where the next one begins: one
    cache miss for each number where there are millions of ranges. Where more ranges begin in some cell, a step leads to
    the next one, and the few numbers that are further on are searched for. Binary search takes ten steps for 1000
    ranges and twenty for a million, each a branch and, of the larger tables, a cache miss. The method is that of guide
    tables: H.-C. Chen and Y. Asau, "On Generating Random Variates from an Empirical Distribution", AIIE
    Transactions 6(2), 1974.

    The word of a cell of ``size`` numbers from ``begin`` on is ``first * size - begin + behind``: ``first`` is the
    range of number ``begin``, and ``behind`` how many numbers of the cell are in later ranges. Number ``begin + i``
    added to it makes ``first * size + i + behind``, which reaches ``(first + 1) * size`` just where the next range has
    begun. Divided by ``size`` that is the range.

    Args:
        offsets: int64 ``(ranges + 1,)``, ascending from 0: range i is ``offsets[i] .. offsets[i + 1] - 1``, and may
            be empty. The table takes at most 32 bytes a range, or 64 KiB.

    Example:
        >>> Lookup(np.array([0, 2, 2, 5])).find(np.array([0, 1, 2, 4]))
        array([0, 0, 2, 2])
    """

    def __init__(self, offsets: Ints) -> None:
        self._offsets = offsets
        self._ends = offsets[1:]
        self._length = _common_length(offsets)
        if self._length:
            return
        begins = offsets[1 : np.searchsorted(offsets, offsets[-1])]  # of what has numbers before and behind it
        total = int(offsets[-1])
        self._shift, self._more = _size_of_cells(begins, total, len(self._ends))
        size = 1 << self._shift
        cells = np.arange(((total - 1) >> self._shift) + 1, dtype=np.int64) << self._shift
        first = np.bincount((begins + (size - 1)) >> self._shift, minlength=len(cells)).cumsum()[: len(cells)]
        self._table: Ints = (first << self._shift) - cells + size - np.minimum(self._ends.take(first) - cells, size)

    def find(self, numbers: Ints) -> Ints:
        """The range of each number, int64 of the same shape.

        Args:
            numbers: int64, each in one of the ranges; which range is given for others, or whether an IndexError is
                raised, is not said.
        """
        if self._length:
            quotients: Ints = numbers // self._length
            return quotients
        places: Ints = self._table.take(numbers >> self._shift)
        places += numbers
        places >>= self._shift
        if self._more:
            places += self._ends.take(places) <= numbers
        if self._more > 1:
            behind = self._ends.take(places) <= numbers
            if behind.any():
                places[behind] = self._offsets.searchsorted(numbers[behind], side="right") - 1
        return places


def _common_length(offsets: Ints) -> int:
    """The length of all ranges, but that the last one may be shorter; 0 where they differ."""
    if offsets[-1] == 0:
        return 1  # there are no numbers
    length = int(offsets[1])
    if (np.diff(offsets[:-1]) != length).any() or offsets[-1] - offsets[-2] > length:
        return 0
    return length


def _size_of_cells(begins: Ints, total: int, ranges: int) -> tuple[int, int]:
    """The number of bits of a cell, and how many ranges begin inside of one at most, beside the first that does."""
    most_cells = max(_CELLS_PER_RANGE * ranges, _FEW_CELLS)
    usual = shift = (total // (2 * ranges)).bit_length()  # one or two cells for each range
    more_usually = more = _more_in_a_cell(begins, usual)
    while more > 0 and total >> (shift - 1) < most_cells:
        shift -= 1
        more = _more_in_a_cell(begins, shift)
    return (shift, 0) if more == 0 else (usual, more_usually)


def _more_in_a_cell(begins: Ints, shift: int) -> int:
    """How many ranges begin inside of a cell at most, but one; what begins with the cell does not count."""
    inside = begins[(begins & ((1 << shift) - 1)) != 0]
    return max(0, int(np.bincount(inside >> shift, minlength=1).max()) - 1)

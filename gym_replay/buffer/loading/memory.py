"""Memory of large batches, which is used again once nobody holds the batch any more.

What the allocator makes of blocks of megabytes that come and go depends on what lies beside them: it keeps them, or it
hands each back to the system and asks for it anew, which then clears it and maps it page by page. Batches of 9 MB were
measured to take twice the time in such a process, and nothing tells beforehand which one will be such.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 1 << 24
"""Bytes of a block that is kept, at most."""

_spare: deque[npt.NDArray[np.uint8]] = deque(maxlen=4)  # of the last ones; older ones go to the allocator


class _Loan:
    """Memory on loan: what all arrays over it, and tensors over these, hold. The last of them gives it back."""

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        self._memory, self._spare = memory, _spare
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._spare.append(self._memory)  # in one step, for it may happen in any thread, at any time


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """``numpy.empty``, in memory that earlier arrays had, as soon as neither they nor anything over them is left.

    Example:
        >>> empty((2, 3), np.dtype("float32")).shape
        (2, 3)
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes == 0 or nbytes > LARGEST:
        return np.empty(shape, dtype)
    memory = _found(nbytes)
    array: npt.NDArray[Any] = np.asarray(_Loan(np.empty(nbytes, np.uint8) if memory is None else memory))
    return array.view(dtype).reshape(shape)


def _found(nbytes: int) -> npt.NDArray[np.uint8] | None:
    """A spare block of this size, of several the last one: some of it may be in the processor's cache still."""
    for _ in range(len(_spare)):
        try:
            memory = _spare.pop()
        except IndexError:  # another thread took it
            return None
        if memory.nbytes == nbytes:
            return memory
        _spare.appendleft(memory)
    return None

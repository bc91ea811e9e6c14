"""What the worker processes of a DataLoader have in common with the process that started them."""

from __future__ import annotations

from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawArray
from typing import Any

import numpy as np
import torch

from gym_replay.errors import FieldError


class Moment:
    """A seed and an epoch that running workers see change: they lie in memory that is shared with them.

    Forked workers have this memory from the start; those that are spawned are given it, and torch's default dtype, by
    the pickle that starts them. A copy, or any other pickle, holds the two numbers in memory of its own.
    """

    def __init__(self, seed: int = 0, epoch: int = 0) -> None:
        self._shared: Any = RawArray("Q", 2)
        self.set(seed, epoch)

    @property
    def seed(self) -> int:
        """The seed, modulo 2**64."""
        return int(self._shared[0])

    @property
    def epoch(self) -> int:
        """The epoch, from 0 on."""
        return int(self._shared[1])

    def set(self, seed: int, epoch: int) -> None:
        """Let these be the seed and the epoch, in every process that shares this."""
        self._shared[:] = seed % 2**64, epoch

    def __getstate__(self) -> tuple[Any, ...]:
        is_for_worker = get_spawning_popen() is not None
        return (self._shared, torch.get_default_dtype()) if is_for_worker else (self.seed, self.epoch)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if isinstance(state[1], torch.dtype):
            self._shared = state[0]
            torch.set_default_dtype(state[1])  # a forked worker has it, a spawned one would deliver float32
        else:
            self.__init__(*state)  # type: ignore[misc]


def checked_epoch(epoch: Any) -> int:
    """The number of an epoch.

    Raises:
        FieldError: it is no integer from 0 on.
    """
    if isinstance(epoch, bool) or not isinstance(epoch, (int, np.integer)) or not 0 <= epoch < 2**64:
        raise FieldError(f"epoch: expected an integer from 0 on, got {epoch!r}")
    return int(epoch)

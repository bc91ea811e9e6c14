"""The rows of the open episodes of a vector environment, for whoever reads them while they are recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.wrappers.vector.staging import Ints, Staging

_TIMES = 40
"""Bits of a row's number that say its time; those above them say its sub-environment."""


class VectorRows:
    """The rows of the episodes that are running at one time.

    Args:
        staging: their rows.
        env_indices, firsts: of each the sub-environment, and the time of its first observation.
        now: the time of their last observations.
        meta: gives the user's meta fields.
        are_running: whether episodes of these sub-environments that began at these times are running.
    """

    def __init__(
        self,
        staging: Staging,
        env_indices: Ints,
        firsts: Ints,
        now: int,
        *,
        meta: Callable[[], Mapping[str, npt.NDArray[Any]]],
        are_running: Callable[[Ints, Ints], bool],
    ) -> None:
        self._staging, self._env_indices, self._firsts = staging, env_indices, firsts
        self.meta, self._are_running = meta, are_running
        self.starts = (env_indices << _TIMES) + firsts
        self.lengths = now - firsts

    def take(self, name: str, rows: Ints) -> npt.NDArray[Any] | None:
        if name not in self._staging.rows.fields:
            return None
        return self._staging.take(name, rows & ((1 << _TIMES) - 1), rows >> _TIMES)

    def are_valid(self, rows: Ints) -> bool:
        asked = np.isin(self._env_indices, rows >> _TIMES)
        return self._are_running(self._env_indices[asked], self._firsts[asked])

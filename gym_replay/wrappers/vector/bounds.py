"""Values outside of their space's bounds, in the rows of many episodes at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.wrappers.bounds import RUN_BYTES, BoundsCheck
from gym_replay.wrappers.spaces import Leaf


class BlockBounds(BoundsCheck):
    """Compares whole episodes with the bounds of their spaces, after they were committed: many of them at once.

    Args:
        leaves: as of :class:`BoundsCheck`.
        has_state: whether the last row of an episode is no value of fields without state.
    """

    def __init__(self, leaves: Sequence[Leaf], *, has_state: bool) -> None:
        super().__init__(leaves)
        self._has_state = has_state
        self._left_out = {name: int(has_state and not self._fields[name].state) for name in self._bounds}
        row_nbytes = sum(self._fields[name].nbytes for name in self._bounds)
        self._most_rows = RUN_BYTES // row_nbytes if row_nbytes else 0
        # Rows are copied to the same memory again and again: to hold on to those that were committed means that the
        # next ones are put where the processor's caches have nothing, or into new pages.
        self._scratch: dict[str, npt.NDArray[Any]] = {}
        self._num_rows = 0
        self._blocks: list[tuple[int, npt.NDArray[np.int64]]] = []  # first id, and edges in the scratch

    def add_one(self, episode: int, rows: Mapping[str, bytes]) -> None:
        """The rows of one episode."""
        nbytes = self._nbytes
        for name, pending in self._pending.items():
            data = rows[name]
            pending += episode, 0, self._has_state, data
            nbytes += len(data)
        self._nbytes = nbytes
        if nbytes >= RUN_BYTES:
            self.finish()

    def add_block(self, first_id: int, rows: Mapping[str, Any], edges: npt.NDArray[np.int64]) -> None:
        """The rows of episodes that were committed together.

        Args:
            first_id: the id of the first.
            rows: by field, those of all episodes.
            edges: the first row of each, and the end.
        """
        if not self._bounds:
            return
        first, count = self._num_rows, int(edges[-1])
        if first + count > self._most_rows:
            self.finish()
            first = 0
        if count > self._most_rows:
            self._compare(rows, count, [(first_id, edges)])
            return
        if not self._scratch:
            self._scratch = {
                name: np.empty((self._most_rows, *self._fields[name].shape), self._fields[name].dtype)
                for name in self._bounds
            }
        for name, scratch in self._scratch.items():
            scratch[first : first + count] = rows[name]
        self._blocks.append((first_id, edges + first if first else edges))
        self._num_rows = first + count

    def finish(self) -> None:
        """Compare all that was given."""
        super().finish()
        blocks, count = self._blocks, self._num_rows
        self._blocks, self._num_rows = [], 0
        if blocks:
            self._compare(self._scratch, count, blocks)

    def _compare(
        self, rows: Mapping[str, Any], count: int, blocks: Sequence[tuple[int, npt.NDArray[np.int64]]]
    ) -> None:
        for name, bounds in self._bounds.items():
            column = rows[name][:count]
            if not bounds.exclude_any(column):
                continue
            pending = []
            for first_id, edges in blocks:
                pairs = zip(edges[:-1].tolist(), (edges[1:] - self._left_out[name]).tolist(), strict=True)
                pending += [(first_id + at, 0, column[a:b].tobytes()) for at, (a, b) in enumerate(pairs)]
            self._count(name, pending)

"""Values outside of their space's bounds, in the rows of many episodes at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.wrappers.bounds import RUN_BYTES, BoundsCheck, any_outside
from gym_replay.wrappers.spaces import Leaf

_MANY = 8
"""Blocks from which on their rows are put together before they are compared."""


class BlockBounds(BoundsCheck):
    """Compares whole episodes with the bounds of their spaces, some time after they were committed.

    Args:
        leaves: as of :class:`BoundsCheck`.
        has_state: whether the last row of an episode is no value of fields without state.
    """

    def __init__(self, leaves: Sequence[Leaf], *, has_state: bool) -> None:
        super().__init__(leaves)
        self._has_state = has_state
        self._blocks: list[tuple[int, npt.NDArray[np.int64], dict[str, npt.NDArray[Any]]]] = []

    def add_block(self, first_id: int, rows: Mapping[str, Any], edges: npt.NDArray[np.int64]) -> None:
        """The rows of episodes that were committed together.

        Args:
            first_id: the id of the first.
            rows: by field, those of all episodes.
            edges: the first row of each, and the end.
        """
        if not self._bounds:
            return
        columns = {name: rows[name] for name in self._bounds}
        self._blocks.append((first_id, edges, columns))
        self._nbytes += sum(column.nbytes for column in columns.values())
        if self._nbytes >= RUN_BYTES:
            self.finish()

    def add_one(self, episode: int, rows: Mapping[str, bytes]) -> None:
        """The rows of one episode."""
        if self._bounds:
            self.add(episode, [(name, False, 0, rows[name]) for name in self._bounds], self._has_state)

    def finish(self) -> None:
        """Compare all that was given."""
        super().finish()
        blocks, self._blocks, self._nbytes = self._blocks, [], 0
        if not blocks:
            return
        for name, bounds in self._bounds.items():
            columns = [columns[name] for _, _, columns in blocks]
            many = len(columns) > _MANY
            if not any(any_outside(rows, *bounds) for rows in ([np.concatenate(columns)] if many else columns)):
                continue
            left_out = self._has_state and not self._fields[name].state
            pending = []
            for (first_id, edges, _), column in zip(blocks, columns, strict=True):
                pairs = zip(edges[:-1].tolist(), (edges[1:] - left_out).tolist(), strict=True)
                pending += [(first_id + at, 0, column[a:b].tobytes()) for at, (a, b) in enumerate(pairs)]
            self._count(name, pending)

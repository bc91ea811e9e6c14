"""Values outside of their space's bounds, in the rows of many episodes at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.spaces import Leaf
from gym_replay.wrappers.bounds import BoundsCheck


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

    def add_block(self, first_id: int, rows: Mapping[str, Any], edges: npt.NDArray[np.int64]) -> None:
        """The rows of episodes that were committed together.

        Args:
            first_id: the id of the first.
            rows: by field, those of all episodes.
            edges: the first row of each, and the end.
        """
        if len(edges) == 2:  # a short comparison takes as long as the commit
            rows_of_one = [(name, False, 0, rows[name].tobytes()) for name in self._bounds]
            self.add(first_id, rows_of_one, self._has_state)
            return
        # At once, while they are in the processor's caches: to keep them for a longer comparison costs as much.
        count = int(edges[-1])
        for name, bounds in self._bounds.items():
            column = rows[name]
            if count and bounds.exclude_any(column):
                pairs = zip(edges[:-1].tolist(), (edges[1:] - self._left_out[name]).tolist(), strict=True)
                self._count(name, [(first_id + at, 0, column[a:b].tobytes()) for at, (a, b) in enumerate(pairs)])

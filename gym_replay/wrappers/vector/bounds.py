"""Values outside of their space's bounds, in the rows of many episodes at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.wrappers.bounds import BoundsCheck


class BlockBounds(BoundsCheck):
    """Compares the rows of whole episodes when they were committed: the lowest and highest first, which suffice."""

    def add_block(
        self, first_id: int, rows: Mapping[str, Any], edges: npt.NDArray[np.int64], *, ends_with_row_t: bool
    ) -> None:
        """The rows of episodes that were committed together.

        Args:
            first_id: the id of the first.
            rows: by field, those of all episodes.
            edges: the first row of each, and the end.
            ends_with_row_t: whether the last row of each is no value of fields without state.
        """
        for name, bounds in self._bounds.items():
            column = rows[name]
            flat = column.reshape(len(column), -1)
            low, high = (np.broadcast_to(bound, self._fields[name].shape).reshape(-1) for bound in bounds)
            with np.errstate(invalid="ignore"):
                is_inside = (np.fmin.reduce(flat) >= low).all() and (np.fmax.reduce(flat) <= high).all()
            if is_inside:
                continue
            left_out = ends_with_row_t and not self._fields[name].state
            pairs = zip(edges[:-1].tolist(), (edges[1:] - left_out).tolist(), strict=True)
            self._compare(name, [(first_id + at, 0, column[a:b].tobytes()) for at, (a, b) in enumerate(pairs)])

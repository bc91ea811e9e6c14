"""From rows to one contiguous array per field, in one call per field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.fields import Field


def take_rows(column: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """``column[rows]`` in memory of its own: ``(*rows.shape, *column.shape[1:])``."""
    return column.take(rows, axis=0)


def take_slices(pieces: Sequence[npt.NDArray[Any]], width: int, field: Field) -> npt.NDArray[Any]:
    """Stretches of rows side by side, padded with zeros on the right: ``(len(pieces), width, *field.shape)``."""
    out = np.empty((len(pieces), width, *field.shape), field.dtype)
    for place, piece in zip(out, pieces, strict=True):
        place[: len(piece)] = piece
        place[len(piece) :] = 0
    return out

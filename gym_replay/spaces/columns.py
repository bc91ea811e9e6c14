"""Values of many items as arrays, checked on their way out of a value and out of the storage."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from gymnasium import Space

from gym_replay.errors import FieldError
from gym_replay.schema.fields import describe

Column: TypeAlias = "npt.NDArray[Any]"


def check_items(name: str, value: Any) -> Any:
    """The value, if it is a sequence of items: a tuple, a list or an array."""
    if isinstance(value, (tuple, list)):
        return value
    if isinstance(value, np.ndarray) or hasattr(value, "detach"):
        if value.ndim > 0:
            return value
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return list(value)
    raise FieldError(
        f"field {name!r}: expected a tuple of items, got {describe(value)}; pass a tuple, which may be empty"
    )


def read_spans(count: int, lengths: Any, elements: Any) -> list[tuple[int, int]]:
    """Begin and end of the elements of each of ``count`` items among the elements of all."""
    column = np.asarray(lengths)
    if column.shape != (count,) or column.dtype.kind not in "iu" or (count and column.min() < 0):
        raise FieldError(f"unflatten: expected {count} lengths, got {describe(column)}; check the buffer")
    edges = list(accumulate(column.tolist(), initial=0))
    if edges[-1] != len(elements):
        raise FieldError(
            f"unflatten: the lengths sum up to {edges[-1]}, there are {len(elements)} elements; check the buffer"
        )
    return list(pairwise(edges))


def stored_array(space: Space[Any], count: int | None, value: Any, dtype: Any, shape: tuple[int, ...]) -> Column:
    """A stored value as an array ``(count, *shape)``, or ``shape`` where ``count`` is None, of the dtype."""
    array = np.asarray(value, dtype=dtype)
    expected = shape if count is None else (count, *shape)
    if array.shape != expected:
        raise FieldError(
            f"unflatten: expected shape {expected} for {type(space).__name__}, got {array.shape}; pass one value of "
            "each field, all of the same row"
        )
    return array

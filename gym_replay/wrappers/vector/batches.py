"""Values of a batched space as columns: one array over the sub-environments for each field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError
from gym_replay.schema.fields import Field, elements_of, fit, to_array
from gym_replay.spaces import Leaf, Node
from gym_replay.spaces.node import of_one
from gym_replay.wrappers.recorded_schema import warn_of_dtype

Column: TypeAlias = "npt.NDArray[Any] | list[npt.NDArray[Any]]"
"""A field's values of all sub-environments: ``(num_envs, *field.shape)``, or of a ragged field one array for each."""


class BatchEncoder:
    """Takes a value of a batched space apart, and checks it against the fields.

    Args:
        tree: that of the space of one sub-environment.
        count: how many sub-environments there are.

    Attributes:
        leaves: the fields.
        plain: name, dtype and shape of values that are columns as they are; without a name where there are none.
    """

    def __init__(self, tree: Node, count: int) -> None:
        self.leaves = tree.leaves
        self._tree, self._count = tree, count
        self._warned: set[str] = set()
        self.plain: tuple[str, Any, tuple[int, ...]] = "", None, ()
        if tree.is_leaf:
            field = tree.leaves[0].field
            self.plain = tree.leaves[0].name, np.dtype(field.dtype.type), (count, *field.shape)

    def encode(self, value: Any) -> list[Column]:
        """The columns of a batched value, in the order of the leaves; they may share its memory.

        Raises:
            FieldError: the value does not fit; the message names the field, and the sub-environment where it can.
        """
        parts = self._tree.flatten_batch(value, self._count)
        return [self._fit(leaf, part, range(self._count)) for leaf, part in zip(self.leaves, parts, strict=True)]

    def encode_each(self, values: Sequence[Any], numbers: Sequence[int]) -> list[Column]:
        """The columns of values of the space of one sub-environment, of the sub-environments with these numbers."""
        rows = [of_one(self._tree.flatten, value, number) for value, number in zip(values, numbers, strict=True)]
        parts = zip(*rows, strict=True)
        return [self._fit(leaf, list(part), numbers) for leaf, part in zip(self.leaves, parts, strict=True)]

    def _fit(self, leaf: Leaf, part: Any, numbers: Sequence[int]) -> Column:
        name, field = leaf.name, leaf.field
        if field.ragged:
            return [np.array(of_one(_elements(name, field), row, i)) for row, i in zip(part, numbers, strict=True)]
        try:
            array = to_array(part, name)
            fitted = np.ascontiguousarray(fit(name, array, field, lead=(len(numbers),)))
            if array.dtype not in (leaf.space.dtype, field.dtype) and isinstance(part, np.ndarray):
                self._warn(leaf, array.dtype)
            return fitted
        except FieldError:
            if not hasattr(part, "__len__") or len(part) != len(numbers):
                raise
            rows = [of_one(_value(name, field), row, number) for row, number in zip(part, numbers, strict=True)]
            return np.stack(rows)

    def _warn(self, leaf: Leaf, dtype: np.dtype[Any]) -> None:
        if leaf.name not in self._warned and leaf.space.dtype is not None:
            self._warned.add(leaf.name)
            warn_of_dtype(leaf, dtype, stacklevel=6)


def _elements(name: str, field: Field) -> Callable[[Any], npt.NDArray[Any]]:
    return lambda value: elements_of(name, value, field)


def _value(name: str, field: Field) -> Callable[[Any], npt.NDArray[Any]]:
    return lambda value: fit(name, to_array(value, name), field)

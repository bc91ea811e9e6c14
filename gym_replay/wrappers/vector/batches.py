"""Values of a batched space as columns: one array over the sub-environments for each field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError
from gym_replay.schema.fields import Field, elements_of, fit, to_array
from gym_replay.spaces import Leaf, Node
from gym_replay.spaces.node import of_one
from gym_replay.wrappers.recorded_schema import warn_of_dtype
from gym_replay.wrappers.recorder import outside_level

Column: TypeAlias = "npt.NDArray[Any]"
"""A field's values along the first axis: ``(n, *field.shape)``; of a ragged field ``(n,)``, each element an array."""


def ragged_column(values: Sequence[npt.NDArray[Any]]) -> Column:
    """The values of a ragged field, an array each, as a column."""
    column = np.empty(len(values), object)
    for i, value in enumerate(values):  # at once, NumPy would look into arrays of the same shape
        column[i] = value
    return column


def default_of(info: Field) -> Column:
    """The default of a field, as it is assigned to the rows of a column."""
    return ragged_column([info.default_value()]).reshape(()) if info.ragged else info.default_value()


class BatchEncoder:
    """Takes a value of a batched space apart, and checks it against the fields.

    Args:
        tree: that of the space of one sub-environment.
        count: how many sub-environments there are.

    Attributes:
        leaves: the fields.
    """

    def __init__(self, tree: Node, count: int) -> None:
        self.leaves = tree.leaves
        self._tree, self._count = tree, count
        self._warned: set[str] = set()
        # Name, dtype and shape of values that are columns as they are.
        self._plain: tuple[str, Any, tuple[int, ...]] = "", None, ()
        if tree.is_leaf:
            field = tree.leaves[0].field
            self._plain = tree.leaves[0].name, np.dtype(field.dtype.type), (count, *field.shape)

    def encode(self, value: Any) -> dict[str, Column]:
        """The columns of a batched value by field; they may share its memory.

        Raises:
            FieldError: the value does not fit; the message names the field, and the sub-environment where it can.
        """
        name, dtype, shape = self._plain
        if type(value) is np.ndarray and value.dtype is dtype and value.shape == shape:
            return {name: value}
        return self._fitted(self._tree.flatten_batch(value, self._count), range(self._count))

    def encode_each(self, values: Sequence[Any], whose: Sequence[int | str]) -> dict[str, Column]:
        """The columns of values of the space of one sub-environment.

        Args:
            values: the values, at least one.
            whose: the index of each one's sub-environment, or another name, for errors.
        """
        rows = [of_one(self._tree.flatten, value, name) for value, name in zip(values, whose, strict=True)]
        return self._fitted(map(list, zip(*rows, strict=True)), whose)

    def _fitted(self, parts: Iterable[Any], whose: Sequence[int | str]) -> dict[str, Column]:
        return {leaf.name: self._fit(leaf, part, whose) for leaf, part in zip(self.leaves, parts, strict=True)}

    def _fit(self, leaf: Leaf, part: Any, whose: Sequence[int | str]) -> Column:
        name, field = leaf.name, leaf.field
        if field.ragged:
            each = zip(part, whose, strict=True)
            return ragged_column([np.array(of_one(_elements(name, field), row, i)) for row, i in each])
        try:
            array = to_array(part, name)
            fitted = np.ascontiguousarray(fit(name, array, field, lead=(len(whose),)))
            if array.dtype not in (leaf.space.dtype, field.dtype) and isinstance(part, np.ndarray):
                self._warn(leaf, array.dtype)
            return fitted
        except FieldError:
            if not hasattr(part, "__len__") or len(part) != len(whose):
                raise
            return np.stack([of_one(_value(name, field), row, i) for row, i in zip(part, whose, strict=True)])

    def _warn(self, leaf: Leaf, dtype: np.dtype[Any]) -> None:
        if leaf.name not in self._warned and leaf.space.dtype is not None:
            self._warned.add(leaf.name)
            warn_of_dtype(leaf, dtype, stacklevel=outside_level() + 1)


def _elements(name: str, field: Field) -> Callable[[Any], npt.NDArray[Any]]:
    return lambda value: elements_of(name, value, field)


def _value(name: str, field: Field) -> Callable[[Any], npt.NDArray[Any]]:
    return lambda value: fit(name, to_array(value, name), field)

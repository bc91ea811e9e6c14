"""Values of a batched space as columns: one array over the sub-environments for each field."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from gymnasium import Space, spaces
from gymnasium.vector.utils import iterate

from gym_replay.buffer.custom_spaces import find_rule
from gym_replay.buffer.storage.fields import Field, describe, elements_of, fit, to_array
from gym_replay.errors import FieldError
from gym_replay.wrappers.recorded_schema import warn_of_dtype
from gym_replay.wrappers.space_leaf import Leaf, LeafMaker, Place, check_dict, check_tuple, keyed
from gym_replay.wrappers.space_rows import make_row
from gym_replay.wrappers.spaces import make_flattener

Column: TypeAlias = "npt.NDArray[Any] | list[npt.NDArray[Any]]"
"""A field's values of all sub-environments: ``(num_envs, *field.shape)``, or of a ragged field one array for each."""

_Take = Callable[[Any, list[Any]], None]
"""Takes a batched value and appends the values of its leaves."""


class BatchEncoder:
    """Takes a value of a batched space apart, and checks it against the fields.

    Args:
        space: the space of one sub-environment.
        batched: that of all of them.
        leaves: the fields of ``space``, from :func:`~gym_replay.wrappers.spaces.space_leaves`.
        count: how many sub-environments there are.

    Attributes:
        leaves: the fields.
        plain: name, dtype and shape of values that are columns as they are; without a name where there are none.
    """

    def __init__(self, space: Space[Any], batched: Space[Any], leaves: Sequence[Leaf], count: int) -> None:
        self.leaves = list(leaves)
        self._count = count
        root = Place(leaves[0].name, leaves[0].keys).groups()[0] if leaves else "value"
        self._take = _taking(space, batched, Place(root), count)
        self._flatten = make_flattener(space, root)
        self._warned: set[str] = set()
        self.plain: tuple[str, Any, tuple[int, ...]] = "", None, ()
        if len(leaves) == 1 and leaves[0].space is space and not leaves[0].field.ragged:
            field = leaves[0].field
            self.plain = leaves[0].name, np.dtype(field.dtype.type), (count, *field.shape)

    def encode(self, value: Any) -> list[Column]:
        """The columns of a batched value, in the order of the leaves; they may share its memory.

        Raises:
            FieldError: the value does not fit; the message names the field, and the sub-environment where it can.
        """
        parts: list[Any] = []
        self._take(value, parts)
        return [self._fit(leaf, part, range(self._count)) for leaf, part in zip(self.leaves, parts, strict=True)]

    def encode_each(self, values: Sequence[Any], numbers: Sequence[int]) -> list[Column]:
        """The columns of values of the space of one sub-environment, of the sub-environments with these numbers."""
        rows = [_of_one(self._flatten, value, number) for value, number in zip(values, numbers, strict=True)]
        parts = zip(*rows, strict=True)
        return [self._fit(leaf, list(part), numbers) for leaf, part in zip(self.leaves, parts, strict=True)]

    def _fit(self, leaf: Leaf, part: Any, numbers: Sequence[int]) -> Column:
        name, field = leaf.name, leaf.field
        if field.ragged:
            return [np.array(_of_one(_elements(name, field), row, i)) for row, i in zip(part, numbers, strict=True)]
        try:
            array = to_array(part, name)
            fitted = np.ascontiguousarray(fit(name, array, field, lead=(len(numbers),)))
            if array.dtype not in (leaf.space.dtype, field.dtype) and isinstance(part, np.ndarray):
                self._warn(leaf, array.dtype)
            return fitted
        except FieldError:
            if not hasattr(part, "__len__") or len(part) != len(numbers):
                raise
            rows = [_of_one(_value(name, field), row, number) for row, number in zip(part, numbers, strict=True)]
            return np.stack(rows)

    def _warn(self, leaf: Leaf, dtype: np.dtype[Any]) -> None:
        if leaf.name not in self._warned and leaf.space.dtype is not None:
            self._warned.add(leaf.name)
            warn_of_dtype(leaf, dtype, stacklevel=6)


def _of_one(function: Callable[[Any], Any], value: Any, number: int) -> Any:
    """What a function says of one sub-environment's value."""
    try:
        return function(value)
    except FieldError as error:
        raise FieldError(f"sub-environment {number}: {error}") from None


def _elements(name: str, field: Field) -> Callable[[Any], npt.NDArray[Any]]:
    return lambda value: elements_of(name, value, field)


def _value(name: str, field: Field) -> Callable[[Any], npt.NDArray[Any]]:
    return lambda value: fit(name, to_array(value, name), field)


def _taking(space: Space[Any], batched: Space[Any], place: Place, count: int) -> _Take:
    """A function that takes a value of ``batched`` apart."""
    if find_rule(space, place.name) is None:
        if isinstance(space, spaces.Dict) and isinstance(batched, spaces.Dict):
            return _taking_dict(space, batched, place, count)
        if isinstance(space, spaces.Tuple) and isinstance(batched, spaces.Tuple):
            return _taking_tuple(space, batched, place, count)
        if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            return lambda value, parts: parts.append(value)
    return _taking_each(space, batched, place, count)


def _taking_dict(space: spaces.Dict, batched: spaces.Dict, place: Place, count: int) -> _Take:
    takes = {
        key: _taking(child, batched.spaces[key], at, count)
        for key, at, child in keyed(place, list(space.spaces.items()))
    }
    keys = list(takes)

    def take_dict(value: Any, parts: list[Any]) -> None:
        given = check_dict(place.name, keys, value)
        for key, take in takes.items():
            take(given[key], parts)

    return take_dict


def _taking_tuple(space: Any, batched: Any, place: Place, count: int) -> _Take:
    children = zip(keyed(place, list(enumerate(space.spaces))), batched.spaces, strict=True)
    takes = [_taking(child, wide, at, count) for (_, at, child), wide in children]

    def take_tuple(value: Any, parts: list[Any]) -> None:
        for part, take in zip(check_tuple(place.name, len(takes), value), takes, strict=True):
            take(part, parts)

    return take_tuple


def _taking_each(space: Space[Any], batched: Space[Any], place: Place, count: int) -> _Take:
    """Of spaces whose values are batched one after another: Text, Sequence, Graph, OneOf, and those of one's own."""
    row = make_row(space, place, LeafMaker(place.name))
    flatten, width = make_flattener(space, place.name), len(row.leaves)

    def take_each(value: Any, parts: list[Any]) -> None:
        rows = [_of_one(flatten, item, number) for number, item in enumerate(_items(place.name, batched, value, count))]
        parts += [[row[at] for row in rows] for at in range(width)]

    return take_each


def _items(name: str, batched: Space[Any], value: Any, count: int) -> Iterator[Any]:
    items = value if isinstance(value, (tuple, list, np.ndarray)) else None
    if isinstance(value, Mapping):
        items = list(iterate(batched, value))
    if items is None or len(items) != count:
        raise FieldError(
            f"field {name!r}: expected one value for each of {count} sub-environments, got {describe(value)}"
        )
    return iter(items)

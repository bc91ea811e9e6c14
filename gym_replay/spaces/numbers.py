"""Box, Discrete, MultiDiscrete and MultiBinary: arrays of one dtype and shape."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import Space, spaces

from gym_replay.errors import CorruptBufferError, FieldError, UnsupportedSpaceError
from gym_replay.schema.fields import Field, fit, to_array
from gym_replay.spaces.checked_json import (
    Json,
    SpaceReader,
    brief,
    dtype_to_json,
    member,
    numbers_to_json,
    read_dtype,
    read_numbers,
)
from gym_replay.spaces.columns import Column, stored_array
from gym_replay.spaces.leaf import Leaf, LeafMaker, Place
from gym_replay.spaces.node import Flatten, Node, SpaceNode


class Elements(Node):
    """Arrays of one dtype and shape, which are their only leaf's values.

    Args:
        space: the space of the arrays, or of what they are part of.
        name: where they are.
        leaf: their field; None of items without bytes.
    """

    def __init__(self, space: Space[Any], name: str, leaf: Leaf | None, dtype: Any, shape: tuple[int, ...]) -> None:
        self.name = name
        self.leaves = [] if leaf is None else [leaf]
        self._space, self._dtype, self._shape = space, np.dtype(dtype), shape

    def unflatten(self, values: Iterator[Any]) -> Any:
        return stored_array(self._space, None, next(values), self._dtype, self._shape)

    def split(self, values: Sequence[Any]) -> list[Column]:
        column = self._column(values)
        return [column] if self.leaves else []

    def _column(self, values: Sequence[Any]) -> Column:
        count = len(values)
        if count == 0 and not (isinstance(values, np.ndarray) and values.ndim > 1):
            return np.empty((0, *self._shape), self._dtype)
        try:
            column = to_array(values, self.name)
        except FieldError:
            column = None
        if column is None or column.shape != (count, *self._shape):
            if count == 0:
                raise FieldError(self._empty_message(values))
            column = np.stack([self._element(value) for value in values])
        return column

    def _empty_message(self, values: Any) -> str:
        expected = (0, *self._shape)
        return f"field {self.name!r}: expected shape {expected}, got {values.shape}; reshape it, or pass ()"

    def _element(self, value: Any) -> Column:
        """One item of its own; the message of one that does not fit is about it alone."""
        array = to_array(value, self.name)
        return fit(self.name, array, Field(array.dtype, self._shape))

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        column = self.join_batch(count, columns)
        return list(column) if self._shape else [column[i, ...] for i in range(count)]

    def join_batch(self, count: int, columns: Iterator[Column]) -> Column:
        if not self.leaves:
            return np.empty((count, *self._shape), self._dtype)
        return stored_array(self._space, count, next(columns), self._dtype, self._shape)

    def stack(self, items: Sequence[Any]) -> Column:
        return np.array(items, self._dtype).reshape(len(items), *self._shape)


class NumberNode(Elements, SpaceNode):
    """What the four kinds of numbers have in common."""

    def __init__(self, space: Any, place: Place, maker: LeafMaker) -> None:
        leaf = maker.numbers(place, space, ragged=place.has_items and 0 not in space.shape)
        has_bytes = leaf.field.ragged or not place.has_items
        super().__init__(space, place.name, leaf if has_bytes else None, space.dtype, space.shape)

    def batch_flattener(self, batched: Space[Any], count: int) -> Flatten:
        return lambda batch: (batch,)


def arrays_to_json(kind: str, space: Any, place: str, *names: str) -> dict[str, Json]:
    """A space of arrays as JSON, with those of its attributes that are arrays as well."""
    value = {"type": kind, "dtype": dtype_to_json(space.dtype, place), "shape": list(space.shape)}
    return value | {name: numbers_to_json(getattr(space, name)) for name in names}


class BoxNode(NumberNode, of=spaces.Box):
    """Arrays of numbers."""

    @classmethod
    def bounds(cls, space: spaces.Box) -> tuple[Any, Any]:
        return space.low, space.high

    @classmethod
    def to_json(cls, space: spaces.Box, place: str) -> dict[str, Json]:
        value = arrays_to_json("Box", space, place, "low", "high")
        # An integer Box may be unbounded although its low and high are finite.
        for name, natural in (("bounded_below", space.low > -np.inf), ("bounded_above", space.high < np.inf)):
            bounded = getattr(space, name, natural)
            if not np.array_equal(bounded, natural):
                value[name] = numbers_to_json(bounded)
        return value

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, place: str) -> Space[Any]:
        dtype, shape = read_dtype(value, place), reader.shape(value, place)
        low = read_numbers(value, "low", shape, dtype, place)
        high = read_numbers(value, "high", shape, dtype, place)
        if not np.all(low <= high):
            raise CorruptBufferError(f"{place}: a lower bound is above its upper bound")
        space = spaces.Box(low, high, shape=shape, dtype=dtype)  # type: ignore[arg-type, unused-ignore]
        for name in ("bounded_below", "bounded_above"):
            if name in value:
                setattr(space, name, read_numbers(value, name, shape, np.dtype(bool), place))
        return space


class DiscreteNode(NumberNode, of=spaces.Discrete):
    """Integers."""

    def unflatten(self, values: Iterator[Any]) -> Any:
        return super().unflatten(values)[()]

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        return list(self.join_batch(count, columns))

    @classmethod
    def bounds(cls, space: spaces.Discrete) -> tuple[Any, Any]:
        return np.asarray(space.start), np.asarray(space.start + space.n - 1)

    @classmethod
    def to_json(cls, space: spaces.Discrete, place: str) -> dict[str, Json]:
        dtype = dtype_to_json(space.dtype, place)
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": dtype}

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, place: str) -> Space[Any]:
        dtype = read_dtype(value, place, kinds="iu")
        n, start = (int(read_numbers(value, name, (), dtype, place)) for name in ("n", "start"))
        if n <= 0:
            raise CorruptBufferError(f"{place}: n is {n}, expected a positive number")
        if dtype == np.int64:
            return spaces.Discrete(n, start=start)
        if "dtype" not in inspect.signature(spaces.Discrete.__init__).parameters:
            raise UnsupportedSpaceError(
                f"{place}: Discrete of {dtype.name} needs a newer Gymnasium than {gym.__version__}; upgrade gymnasium"
            )
        return spaces.Discrete(n, start=start, dtype=dtype)


class MultiDiscreteNode(NumberNode, of=spaces.MultiDiscrete):
    """Arrays of integers."""

    @classmethod
    def bounds(cls, space: spaces.MultiDiscrete) -> tuple[Any, Any]:
        return space.start, space.start + space.nvec - 1

    @classmethod
    def to_json(cls, space: spaces.MultiDiscrete, place: str) -> dict[str, Json]:
        return arrays_to_json("MultiDiscrete", space, place, "nvec", "start")

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, place: str) -> Space[Any]:
        dtype, shape = read_dtype(value, place, kinds="iu"), reader.shape(value, place)
        nvec = read_numbers(value, "nvec", shape, dtype, place)
        start = read_numbers(value, "start", shape, dtype, place)
        if not np.all(nvec > 0):
            raise CorruptBufferError(f"{place}: nvec holds a number that is not positive")
        return spaces.MultiDiscrete(nvec, dtype=dtype, start=start)  # type: ignore[arg-type, unused-ignore]


class MultiBinaryNode(NumberNode, of=spaces.MultiBinary):
    """Arrays of zeros and ones."""

    @classmethod
    def bounds(cls, space: spaces.MultiBinary) -> tuple[Any, Any]:
        return np.asarray(0), np.asarray(1)

    @classmethod
    def to_json(cls, space: spaces.MultiBinary, place: str) -> dict[str, Json]:
        return {"type": "MultiBinary", "n": list(space.n) if isinstance(space.n, tuple) else int(space.n)}

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, place: str) -> Space[Any]:
        n = member(value, "n", (int, list), place)
        sizes = n if isinstance(n, list) else [n]
        if len(sizes) > 32 or not all(type(size) is int and size > 0 for size in sizes):
            raise CorruptBufferError(f"{place}: expected n to be positive, got {brief(n)}")
        reader.charge(math.prod(sizes), place)
        return spaces.MultiBinary(tuple(n) if isinstance(n, list) else n)

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
from gym_replay.spaces.leaf import LeafMaker, SpacePath
from gym_replay.spaces.node import Column, Node, check_items


class NumberNode(Node):
    """Arrays of one dtype and shape, which are their only leaf's values; items without bytes have no leaf."""

    def __init__(self, space: Any, path: SpacePath, maker: LeafMaker) -> None:
        super().__init__(space, path, maker)
        self._dtype, self._shape = space.dtype, space.shape
        has_bytes = 0 not in space.shape
        leaf = maker.leaf(path, space, ragged=path.has_items and has_bytes)
        self.leaves = [leaf] if has_bytes or not path.has_items else []

    def flatten(self, value: Any) -> Sequence[Any]:
        return (value,)

    def flatten_batch(self, batch: Any, count: int) -> list[Any]:
        return [batch]

    def unflatten(self, values: Iterator[Any]) -> Any:
        return self._stored(next(values), self._shape)

    def _stored(self, value: Any, shape: tuple[int, ...]) -> Column:
        array = np.asarray(value, dtype=self._dtype)
        if array.shape != shape:
            raise FieldError(
                f"unflatten: expected shape {shape} for {type(self.space).__name__}, got {array.shape}; pass one value "
                "of each field, all of the same row"
            )
        return array

    def split(self, items: Sequence[Any]) -> list[Column]:
        column = self._column(items)
        return [column] if self.leaves else []

    def unstack(self, batch: Any) -> Any:
        return self._column(check_items(self.name, batch))

    def _column(self, items: Any) -> Column:
        whole = (len(items), *self._shape)
        if len(items) == 0 and not (isinstance(items, np.ndarray) and items.ndim > 1):
            return np.empty(whole, self._dtype)
        try:
            column = to_array(items, self.name)
        except FieldError:
            column = None
        if column is None or column.shape != whole:
            if len(items) == 0:
                raise FieldError(
                    f"field {self.name!r}: expected shape {whole}, got {items.shape}; reshape it, or pass ()"
                )
            column = np.stack([self._element(item) for item in items])
        return column

    def _element(self, item: Any) -> Column:
        """One item of its own; the message of one that does not fit is about it alone."""
        array = to_array(item, self.name)
        return fit(self.name, array, Field(array.dtype, self._shape))

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        column = self.join_batch(count, columns)
        return list(column) if self._shape else [column[i, ...] for i in range(count)]

    def join_batch(self, count: int, columns: Iterator[Column]) -> Column:
        whole = (count, *self._shape)
        return self._stored(next(columns), whole) if self.leaves else np.empty(whole, self._dtype)

    def stack(self, items: Sequence[Any]) -> Column:
        return np.array(items, self._dtype).reshape(len(items), *self._shape)


def arrays_to_json(kind: str, space: Any, path: str, *names: str) -> dict[str, Json]:
    """A space of arrays as JSON, with those of its attributes that are arrays as well."""
    value = {"type": kind, "dtype": dtype_to_json(space.dtype, path), "shape": list(space.shape)}
    return value | {name: numbers_to_json(getattr(space, name)) for name in names}


class BoxNode(NumberNode, of=spaces.Box):
    """Arrays of numbers."""

    @classmethod
    def bounds(cls, space: spaces.Box) -> tuple[Any, Any]:
        return space.low, space.high

    @classmethod
    def to_json(cls, space: spaces.Box, path: str) -> dict[str, Json]:
        value = arrays_to_json("Box", space, path, "low", "high")
        # An integer Box may be unbounded although its low and high are finite.
        for name, natural in (("bounded_below", space.low > -np.inf), ("bounded_above", space.high < np.inf)):
            bounded = getattr(space, name, natural)
            if not np.array_equal(bounded, natural):
                value[name] = numbers_to_json(bounded)
        return value

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, path: str) -> Space[Any]:
        dtype, shape = read_dtype(value, path), reader.shape(value, path)
        low = read_numbers(value, "low", shape, dtype, path)
        high = read_numbers(value, "high", shape, dtype, path)
        if not np.all(low <= high):
            raise CorruptBufferError(f"{path}: a lower bound is above its upper bound")
        space = spaces.Box(low, high, shape=shape, dtype=dtype)  # type: ignore[arg-type, unused-ignore]
        for name in ("bounded_below", "bounded_above"):
            if name in value:
                setattr(space, name, read_numbers(value, name, shape, np.dtype(bool), path))
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
    def to_json(cls, space: spaces.Discrete, path: str) -> dict[str, Json]:
        dtype = dtype_to_json(space.dtype, path)
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": dtype}

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, path: str) -> Space[Any]:
        dtype = read_dtype(value, path, kinds="iu")
        n, start = (int(read_numbers(value, name, (), dtype, path)) for name in ("n", "start"))
        if n <= 0:
            raise CorruptBufferError(f"{path}: n is {n}, expected a positive number")
        if dtype == np.int64:
            return spaces.Discrete(n, start=start)
        if "dtype" not in inspect.signature(spaces.Discrete.__init__).parameters:
            raise UnsupportedSpaceError(
                f"{path}: Discrete of {dtype.name} needs a newer Gymnasium than {gym.__version__}; upgrade gymnasium"
            )
        return spaces.Discrete(n, start=start, dtype=dtype)


class MultiDiscreteNode(NumberNode, of=spaces.MultiDiscrete):
    """Arrays of integers."""

    @classmethod
    def bounds(cls, space: spaces.MultiDiscrete) -> tuple[Any, Any]:
        return space.start, space.start + space.nvec - 1

    @classmethod
    def to_json(cls, space: spaces.MultiDiscrete, path: str) -> dict[str, Json]:
        return arrays_to_json("MultiDiscrete", space, path, "nvec", "start")

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, path: str) -> Space[Any]:
        dtype, shape = read_dtype(value, path, kinds="iu"), reader.shape(value, path)
        nvec = read_numbers(value, "nvec", shape, dtype, path)
        start = read_numbers(value, "start", shape, dtype, path)
        if not np.all(nvec > 0):
            raise CorruptBufferError(f"{path}: nvec holds a number that is not positive")
        return spaces.MultiDiscrete(nvec, dtype=dtype, start=start)  # type: ignore[arg-type, unused-ignore]


class MultiBinaryNode(NumberNode, of=spaces.MultiBinary):
    """Arrays of zeros and ones."""

    @classmethod
    def bounds(cls, space: spaces.MultiBinary) -> tuple[Any, Any]:
        return np.asarray(0), np.asarray(1)

    @classmethod
    def to_json(cls, space: spaces.MultiBinary, path: str) -> dict[str, Json]:
        return {"type": "MultiBinary", "n": list(space.n) if isinstance(space.n, tuple) else int(space.n)}

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, path: str) -> Space[Any]:
        n = member(value, "n", (int, list), path)
        sizes = n if isinstance(n, list) else [n]
        if len(sizes) > 32 or not all(type(size) is int and size > 0 for size in sizes):
            raise CorruptBufferError(f"{path}: expected n to be positive, got {brief(n)}")
        reader.charge(math.prod(sizes), path)
        return spaces.MultiBinary(tuple(n) if isinstance(n, list) else n)

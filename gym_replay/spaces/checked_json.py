"""Numbers, dtypes and spaces as JSON, and read from JSON that a stranger may have written.

Whatever is malformed raises :class:`~gym_replay.errors.CorruptBufferError`, and nothing large is allocated on its word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from gymnasium import Space

from gym_replay.errors import CorruptBufferError, UnsupportedSpaceError
from gym_replay.schema.fields import NUMERIC, number_to_json

Json: TypeAlias = Any

MAX_DEPTH = 32
"""How deep spaces, and the values of environment arguments, may be nested."""

MAX_ELEMENTS = 2**25
"""How many elements the bounds of all spaces in one JSON value may have together; a space itself counts for 1024.

33 million elements are a 4K colour image. The largest allocation that a stranger's file can cause is about 34 bytes
for each: two float64 bounds, their copies, and two flags.
"""

MAX_COPIED = 4
"""How deep Graph and stacked Sequence spaces may be nested: Gymnasium copies what they hold, so each level doubles."""

_ELEMENTS_PER_SPACE = 1024


class SpaceReader:
    """Builds the spaces of one JSON value, and counts their elements before anything is allocated.

    Args:
        kinds: builds a space of each type.
    """

    def __init__(self, kinds: Mapping[str, Callable[[SpaceReader, Json, str], Space[Any]]]) -> None:
        self._kinds = kinds
        self._elements = self._copied = self._depth = 0

    def read(self, value: Json, path: str) -> Space[Any]:
        """The space of a JSON value."""
        kind = member(value, "type", str, path)
        if kind not in self._kinds:
            raise CorruptBufferError(f"{path}: expected one of {', '.join(self._kinds)}, got {brief(kind)}")
        if self._depth >= MAX_DEPTH:
            raise CorruptBufferError(f"{path}: spaces are nested deeper than {MAX_DEPTH}")
        self.charge(_ELEMENTS_PER_SPACE, path)
        self._depth += 1
        space = self._kinds[kind](self, value, path)
        self._depth -= 1
        return space

    def read_all(self, value: Json, path: str) -> list[Space[Any]]:
        """Those of the member ``spaces``."""
        return [self.read(child, f"{path}.{i}") for i, child in enumerate(member(value, "spaces", list, path))]

    def read_batched(self, value: Json, path: str) -> Space[Any]:
        """A space of which Gymnasium makes one more copy, for values in batches."""
        before = self._elements
        self._copied += 1
        if self._copied > MAX_COPIED:
            raise CorruptBufferError(f"{path}: Graph and stacked Sequence spaces are nested deeper than {MAX_COPIED}")
        space = self.read(value, path)
        self._copied -= 1
        self.charge(self._elements - before, path)
        return space

    def charge(self, elements: int, path: str) -> None:
        """Count elements that are about to be allocated."""
        self._elements += elements
        if self._elements > MAX_ELEMENTS:
            raise CorruptBufferError(f"{path}: the spaces have more than {MAX_ELEMENTS} elements")

    def shape(self, value: Json, path: str) -> tuple[int, ...]:
        """The member ``shape``, whose elements are counted."""
        shape = read_shape(value, path)
        self.charge(math.prod(shape), path)
        return shape


def read_shape(value: Json, path: str) -> tuple[int, ...]:
    """The member ``shape`` of a JSON value."""
    sizes = member(value, "shape", list, path)
    if len(sizes) > 32 or not all(type(size) is int and size >= 0 for size in sizes):
        raise CorruptBufferError(f"{path}: expected a shape, got {brief(sizes)}")
    return tuple(sizes)


def dtype_to_json(dtype: Any, path: str) -> str:
    """The name of a dtype.

    Raises:
        UnsupportedSpaceError: it is none of numbers that a buffer holds.
    """
    dtype = np.dtype(dtype)
    if dtype.name not in NUMERIC:
        raise UnsupportedSpaceError(f"{path}: dtype {dtype.name} cannot be stored; use one of {sorted(NUMERIC)}")
    return str(dtype.name if dtype.isnative else dtype.str)


def numbers_to_json(array: npt.NDArray[Any]) -> Json:
    """One number where all elements have the same bits, otherwise all of them in C order."""
    flat = np.asarray(array).reshape(-1)
    is_uniform = flat.size and flat.tobytes() == flat[:1].tobytes() * flat.size
    return number_to_json(flat[0].item() if is_uniform else flat.tolist())


def member(value: Json, name: str, kind: type | tuple[type, ...], path: str) -> Any:
    """``value[name]``, checked to be of the kind; a bool is no int here."""
    if not isinstance(value, dict) or name not in value:
        raise CorruptBufferError(f"{path}: expected an object with {name!r}, got {brief(value)}")
    member = value[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(member) not in kinds:
        expected = " or ".join(k.__name__ for k in kinds)
        raise CorruptBufferError(f"{path}: expected {name!r} to be {expected}, got {brief(member)}")
    return member


def read_dtype(value: Json, path: str, kinds: str = "fiub") -> np.dtype[Any]:
    """The member ``dtype`` of a JSON value."""
    name = member(value, "dtype", str, path)
    if name in NUMERIC or (len(name) == 3 and name[0] in "<>" and name[1] in "fiu" and name[2] in "248"):
        dtype: np.dtype[Any] = np.dtype(name)
        if dtype.kind in kinds:
            return dtype
    raise CorruptBufferError(f"{path}: {brief(name)} is no dtype of this space")


def read_numbers(value: Json, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], path: str) -> npt.NDArray[Any]:
    """The array of ``shape`` that :func:`numbers_to_json` was given; its size was checked before."""
    numbers = member(value, name, (list, bool, int, float, str), path)
    if not isinstance(numbers, list):
        return np.full(shape, read_number(numbers, name, dtype, path), dtype)
    if len(numbers) != math.prod(shape):
        raise CorruptBufferError(f"{path}: expected {math.prod(shape)} numbers in {name!r}, got {len(numbers)}")
    return np.array([read_number(number, name, dtype, path) for number in numbers], dtype).reshape(shape)


def read_number(number: Json, name: str, dtype: np.dtype[Any], path: str) -> bool | int | float:
    """A number that the dtype holds."""
    if dtype.kind == "b" and type(number) is bool:
        return number
    if dtype.kind in "iu" and type(number) is int and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
        return number
    if dtype.kind == "f":
        if number in ("inf", "-inf"):
            return float(number)
        if type(number) in (int, float) and abs(number) <= float(np.finfo(dtype).max):
            return float(number)
    raise CorruptBufferError(f"{path}: {brief(number)} in {name!r} is no number of {dtype.name}")


def brief(value: Any) -> str:
    """A value from a file in a few characters."""
    if isinstance(value, (dict, list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a very large integer"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

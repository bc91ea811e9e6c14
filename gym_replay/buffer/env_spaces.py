"""Spaces as JSON, and back.

The JSON may come from a folder that a stranger wrote: whatever is malformed raises
:class:`~gym_replay.errors.CorruptBufferError`, and nothing large is allocated on its word.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable
from functools import singledispatch
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import Space, spaces

from gym_replay.buffer.custom_spaces import find_rule, recorded_space
from gym_replay.buffer.storage.names import encode_key, encode_siblings, key_from_json, key_to_json
from gym_replay.errors import CorruptBufferError, FieldError, GymReplayError, UnsupportedSpaceError

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
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
NUMERIC = frozenset(
    ["bool", "float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
)


def space_to_json(space: Space[Any], root: str = "space") -> dict[str, Json]:
    """A space as JSON, from which :func:`space_from_json` makes an equal space.

    A subclass of a standard space is written as its nearest standard base, a space of one's own as the standard space
    that its values are recorded as (:func:`~gym_replay.buffer.custom_spaces.register_space`). Float bounds keep every
    bit.

    Args:
        space: any standard Gymnasium space, or one that was registered.
        root: what messages call the space, such as ``"observation"``.

    Raises:
        UnsupportedSpaceError: the space or one inside it is unknown, is nested deeper than ``MAX_DEPTH``, has
            more than ``MAX_ELEMENTS`` elements, or could not be built again; the message names its type and place.

    Example:
        >>> space_to_json(spaces.Discrete(2))
        {'type': 'Discrete', 'n': 2, 'start': 0, 'dtype': 'int64'}
    """
    try:
        value = _to_json(space, root)
        space_from_json(value)  # what cannot be opened again must not be recorded
    except (CorruptBufferError, RecursionError) as error:
        raise UnsupportedSpaceError(f"{root}: {type(space).__name__} cannot be stored ({error})") from None
    return value


def _to_json(space: Any, place: str) -> dict[str, Json]:
    rule = find_rule(space, place)
    return _standard_to_json(space, place) if rule is None else _to_json(recorded_space(space, rule, place), place)


@singledispatch
def _standard_to_json(space: Any, place: str) -> dict[str, Json]:
    raise AssertionError(f"find_rule lets no other space through than those below, got {type(space)}")


@_standard_to_json.register
def _(space: spaces.Box, place: str) -> dict[str, Json]:
    value = {
        "type": "Box",
        "dtype": dtype_to_json(space.dtype, place),
        "shape": list(space.shape),
        "low": _numbers_to_json(space.low),
        "high": _numbers_to_json(space.high),
    }
    # An integer Box may be unbounded although its low and high are finite.
    for name, natural in (("bounded_below", space.low > -np.inf), ("bounded_above", space.high < np.inf)):
        bounded = getattr(space, name, natural)
        if not np.array_equal(bounded, natural):
            value[name] = _numbers_to_json(bounded)
    return value


@_standard_to_json.register
def _(space: spaces.Discrete, place: str) -> dict[str, Json]:
    return {
        "type": "Discrete",
        "n": int(space.n),
        "start": int(space.start),
        "dtype": dtype_to_json(space.dtype, place),
    }


@_standard_to_json.register
def _(space: spaces.MultiDiscrete, place: str) -> dict[str, Json]:
    return {
        "type": "MultiDiscrete",
        "dtype": dtype_to_json(space.dtype, place),
        "shape": list(space.shape),
        "nvec": _numbers_to_json(space.nvec),
        "start": _numbers_to_json(space.start),
    }


@_standard_to_json.register
def _(space: spaces.MultiBinary, place: str) -> dict[str, Json]:
    return {"type": "MultiBinary", "n": list(space.n) if isinstance(space.n, tuple) else int(space.n)}


@_standard_to_json.register
def _(space: spaces.Text, place: str) -> dict[str, Json]:
    if any(len(character) != 1 for character in space.character_list):
        raise UnsupportedSpaceError(f"{place}: Text needs a charset of single characters, got {space.character_list}")
    characters = list(space.character_list)
    if _SURROGATE_PAIR.search("".join(characters)):
        characters.sort(key=lambda character: not "\udc00" <= character <= "\udfff")  # JSON would make one of the two
    return {
        "type": "Text",
        "min_length": space.min_length,
        "max_length": space.max_length,
        "charset": "".join(characters),
    }


@_standard_to_json.register
def _(space: spaces.Dict, place: str) -> dict[str, Json]:
    items = []
    for key, child in space.spaces.items():
        try:
            stored = key_to_json(key)
            back = key_from_json(json.loads(json.dumps(stored)))
        except ValueError as error:
            raise UnsupportedSpaceError(f"{place}: {error}") from None
        if back != key or hash(back) != hash(key):  # NaN, members of an enum
            raise UnsupportedSpaceError(f"{place}: key {key!r} ({type(key).__name__}) cannot be found again by value")
        items.append((stored, child))
    names = encode_siblings(space.spaces)
    return {
        "type": "Dict",
        "items": [[key, _to_json(child, f"{place}.{name}")] for (key, child), name in zip(items, names, strict=True)],
    }


@_standard_to_json.register(spaces.Tuple)
def _(space: Any, place: str) -> dict[str, Json]:
    return {"type": "Tuple", "spaces": [_to_json(child, f"{place}.{i}") for i, child in enumerate(space.spaces)]}


@_standard_to_json.register(spaces.OneOf)
def _(space: Any, place: str) -> dict[str, Json]:
    return {"type": "OneOf", "spaces": [_to_json(child, f"{place}.{i}") for i, child in enumerate(space.spaces)]}


@_standard_to_json.register
def _(space: spaces.Sequence, place: str) -> dict[str, Json]:
    return {
        "type": "Sequence",
        "feature_space": _to_json(space.feature_space, f"{place}.feature_space"),
        "stack": bool(space.stack),
    }


@_standard_to_json.register
def _(space: spaces.Graph, place: str) -> dict[str, Json]:
    edge = space.edge_space
    return {
        "type": "Graph",
        "node_space": _to_json(space.node_space, f"{place}.node_space"),
        "edge_space": None if edge is None else _to_json(edge, f"{place}.edge_space"),
    }


def dtype_to_json(dtype: Any, place: str) -> str:
    dtype = np.dtype(dtype)
    if dtype.name not in NUMERIC:
        raise UnsupportedSpaceError(f"{place}: dtype {dtype.name} cannot be stored; use one of {sorted(NUMERIC)}")
    return str(dtype.name if dtype.isnative else dtype.str)


def _numbers_to_json(array: npt.NDArray[Any]) -> Json:
    """One number where all elements have the same bits, otherwise all of them in C order."""
    flat = np.asarray(array).reshape(-1)
    if flat.size and flat.tobytes() == flat[:1].tobytes() * flat.size:
        return float_to_json(flat[0].item())
    return [float_to_json(number) for number in flat.tolist()]


def float_to_json(number: Any) -> Json:
    return str(number) if isinstance(number, float) and not math.isfinite(number) else number


def space_from_json(value: Json) -> Space[Any]:
    """The space that :func:`space_to_json` was given.

    Nothing is allocated before its size is checked against ``MAX_ELEMENTS``.

    Raises:
        CorruptBufferError: no space has this JSON form; the message names the place.
        UnsupportedSpaceError: the installed Gymnasium is too old for this space.
    """
    try:
        return SpaceReader().read(value, "space", 0)
    except GymReplayError:
        raise
    except Exception as error:  # what Gymnasium raises for a bad argument differs from version to version
        raise CorruptBufferError(f"space: {brief(value)} is no space ({type(error).__name__}: {error})") from None


class SpaceReader:
    """Builds the spaces of one JSON value and counts their elements."""

    def __init__(self) -> None:
        self.elements = 0
        self.copied = 0

    def read(self, value: Json, place: str, depth: int) -> Space[Any]:
        kind = member(value, "type", str, place)
        if kind not in _READERS:
            raise CorruptBufferError(f"{place}: expected one of {', '.join(_READERS)}, got {brief(kind)}")
        if depth >= MAX_DEPTH:
            raise CorruptBufferError(f"{place}: spaces are nested deeper than {MAX_DEPTH}")
        self.charge(_ELEMENTS_PER_SPACE, place)
        return _READERS[kind](self, value, place, depth + 1)

    def charge(self, elements: int, place: str) -> None:
        self.elements += elements
        if self.elements > MAX_ELEMENTS:
            raise CorruptBufferError(f"{place}: the spaces have more than {MAX_ELEMENTS} elements")

    def batched(self, value: Json, place: str, depth: int) -> Space[Any]:
        """A space of which Gymnasium makes one more copy, for values in batches."""
        before = self.elements
        self.copied += 1
        if self.copied > MAX_COPIED:
            raise CorruptBufferError(f"{place}: Graph and stacked Sequence spaces are nested deeper than {MAX_COPIED}")
        space = self.read(value, place, depth)
        self.copied -= 1
        self.charge(self.elements - before, place)
        return space

    def shape(self, value: Json, place: str) -> tuple[int, ...]:
        sizes = member(value, "shape", list, place)
        if len(sizes) > 32 or not all(type(size) is int and size >= 0 for size in sizes):
            raise CorruptBufferError(f"{place}: expected a shape, got {brief(sizes)}")
        self.charge(math.prod(sizes), place)
        return tuple(sizes)

    def box(self, value: Json, place: str, depth: int) -> Space[Any]:
        dtype, shape = read_dtype(value, place), self.shape(value, place)
        low = _read_numbers(value, "low", shape, dtype, place)
        high = _read_numbers(value, "high", shape, dtype, place)
        if not np.all(low <= high):
            raise CorruptBufferError(f"{place}: a lower bound is above its upper bound")
        space = spaces.Box(low, high, shape=shape, dtype=dtype)  # type: ignore[arg-type, unused-ignore]
        for name in ("bounded_below", "bounded_above"):
            if name in value:
                setattr(space, name, _read_numbers(value, name, shape, np.dtype(bool), place))
        return space

    def discrete(self, value: Json, place: str, depth: int) -> Space[Any]:
        dtype = read_dtype(value, place, kinds="iu")
        n, start = (int(_read_numbers(value, name, (), dtype, place)) for name in ("n", "start"))
        if n <= 0:
            raise CorruptBufferError(f"{place}: n is {n}, expected a positive number")
        if dtype == np.int64:
            return spaces.Discrete(n, start=start)
        if "dtype" not in inspect.signature(spaces.Discrete.__init__).parameters:
            raise UnsupportedSpaceError(
                f"{place}: Discrete of {dtype.name} needs a newer Gymnasium than {gym.__version__}; upgrade gymnasium"
            )
        return spaces.Discrete(n, start=start, dtype=dtype)

    def multi_discrete(self, value: Json, place: str, depth: int) -> Space[Any]:
        dtype, shape = read_dtype(value, place, kinds="iu"), self.shape(value, place)
        nvec = _read_numbers(value, "nvec", shape, dtype, place)
        start = _read_numbers(value, "start", shape, dtype, place)
        if not np.all(nvec > 0):
            raise CorruptBufferError(f"{place}: nvec holds a number that is not positive")
        return spaces.MultiDiscrete(nvec, dtype=dtype, start=start)  # type: ignore[arg-type, unused-ignore]

    def multi_binary(self, value: Json, place: str, depth: int) -> Space[Any]:
        n = member(value, "n", (int, list), place)
        sizes = n if isinstance(n, list) else [n]
        if len(sizes) > 32 or not all(type(size) is int and size > 0 for size in sizes):
            raise CorruptBufferError(f"{place}: expected n to be positive, got {brief(n)}")
        self.charge(math.prod(sizes), place)
        return spaces.MultiBinary(tuple(n) if isinstance(n, list) else n)

    def text(self, value: Json, place: str, depth: int) -> Space[Any]:
        shortest, longest = member(value, "min_length", int, place), member(value, "max_length", int, place)
        if not 0 <= shortest <= longest < 2**63:
            raise CorruptBufferError(f"{place}: lengths {brief(shortest)} to {brief(longest)} are no range")
        charset = member(value, "charset", str, place)
        return spaces.Text(longest, min_length=shortest, charset=charset)

    def dict(self, value: Json, place: str, depth: int) -> Space[Any]:
        children: dict[Any, Space[Any]] = {}
        for item in member(value, "items", list, place):
            if not isinstance(item, list) or len(item) != 2:
                raise CorruptBufferError(f"{place}: expected [key, space], got {brief(item)}")
            try:
                key = key_from_json(item[0])
            except FieldError:
                raise CorruptBufferError(f"{place}: {brief(item[0])} is no key") from None
            if key in children:
                raise CorruptBufferError(f"{place}: key {brief(key)} comes twice")
            children[key] = self.read(item[1], f"{place}.{encode_key(key)}", depth)
        return spaces.Dict(list(children.items()))  # a list: a mapping would be sorted

    def children(self, value: Json, place: str, depth: int) -> list[Space[Any]]:
        return [self.read(v, f"{place}.{i}", depth) for i, v in enumerate(member(value, "spaces", list, place))]

    def tuple(self, value: Json, place: str, depth: int) -> Space[Any]:
        return spaces.Tuple(self.children(value, place, depth))

    def one_of(self, value: Json, place: str, depth: int) -> Space[Any]:
        children = self.children(value, place, depth)
        if not children:
            raise CorruptBufferError(f"{place}: OneOf needs at least one space")
        return spaces.OneOf(children)

    def sequence(self, value: Json, place: str, depth: int) -> Space[Any]:
        stack = member(value, "stack", bool, place)
        read = self.batched if stack else self.read
        feature = read(member(value, "feature_space", dict, place), f"{place}.feature_space", depth)
        return spaces.Sequence(feature, stack=stack)

    def graph(self, value: Json, place: str, depth: int) -> Space[Any]:
        node = self.batched(member(value, "node_space", dict, place), f"{place}.node_space", depth)
        edge = member(value, "edge_space", (dict, type(None)), place)
        return spaces.Graph(node, None if edge is None else self.batched(edge, f"{place}.edge_space", depth))


_READERS: dict[str, Callable[[SpaceReader, Json, str, int], Space[Any]]] = {
    "Box": SpaceReader.box,
    "Discrete": SpaceReader.discrete,
    "MultiDiscrete": SpaceReader.multi_discrete,
    "MultiBinary": SpaceReader.multi_binary,
    "Text": SpaceReader.text,
    "Dict": SpaceReader.dict,
    "Tuple": SpaceReader.tuple,
    "OneOf": SpaceReader.one_of,
    "Sequence": SpaceReader.sequence,
    "Graph": SpaceReader.graph,
}


def member(value: Json, name: str, kind: type | tuple[type, ...], place: str) -> Any:
    """``value[name]``, checked to be of the kind; a bool is no int here."""
    if not isinstance(value, dict) or name not in value:
        raise CorruptBufferError(f"{place}: expected an object with {name!r}, got {brief(value)}")
    member = value[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(member) not in kinds:
        expected = " or ".join(k.__name__ for k in kinds)
        raise CorruptBufferError(f"{place}: expected {name!r} to be {expected}, got {brief(member)}")
    return member


def read_dtype(value: Json, place: str, kinds: str = "fiub") -> np.dtype[Any]:
    name = member(value, "dtype", str, place)
    if name in NUMERIC or (len(name) == 3 and name[0] in "<>" and name[1] in "fiu" and name[2] in "248"):
        dtype: np.dtype[Any] = np.dtype(name)
        if dtype.kind in kinds:
            return dtype
    raise CorruptBufferError(f"{place}: {brief(name)} is no dtype of this space")


def _read_numbers(value: Json, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], place: str) -> npt.NDArray[Any]:
    """The array of ``shape`` that :func:`_numbers_to_json` was given; its size was checked before."""
    numbers = member(value, name, (list, bool, int, float, str), place)
    if not isinstance(numbers, list):
        return np.full(shape, read_number(numbers, name, dtype, place), dtype)
    if len(numbers) != math.prod(shape):
        raise CorruptBufferError(f"{place}: expected {math.prod(shape)} numbers in {name!r}, got {len(numbers)}")
    return np.array([read_number(number, name, dtype, place) for number in numbers], dtype).reshape(shape)


def read_number(number: Json, name: str, dtype: np.dtype[Any], place: str) -> bool | int | float:
    if dtype.kind == "b" and type(number) is bool:
        return number
    if dtype.kind in "iu" and type(number) is int and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
        return number
    if dtype.kind == "f":
        if number in ("inf", "-inf"):
            return float(number)
        if type(number) in (int, float) and abs(number) <= float(np.finfo(dtype).max):
            return float(number)
    raise CorruptBufferError(f"{place}: {brief(number)} in {name!r} is no number of {dtype.name}")


def brief(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a very large integer"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Spaces of one's own: which standard space their values are recorded as."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from gym_replay.errors import FieldError, UnsupportedSpaceError
from gym_replay.schema.fields import describe
from gym_replay.spaces.checked_json import Json, SpaceReader
from gym_replay.spaces.columns import Column
from gym_replay.spaces.leaf import LeafMaker, Place
from gym_replay.spaces.node import NODES, RULES, Flatten, SpaceNode, SpaceRule, make_node, standard_node, to_json

ANY_CHARACTER = "".join(map(chr, (*b"\t\n\r", *range(0x20, 0x7F), *range(0xA0, 0x180))))
"""The charset of strings that have none of their own: what Latin scripts print. Storage takes every other as well."""

LONGEST_TEXT = 4096
"""How long strings without a bound of their own may be in the space; short enough that ``sample`` stays quick."""

_STRINGS = SpaceRule(lambda space: spaces.Text(LONGEST_TEXT, min_length=0, charset=ANY_CHARACTER))


def register_space(
    cls: type[Space[Any]],
    to_space: Callable[[Any], Space[Any]],
    encode: Callable[[Any, Any], Any] | None = None,
    decode: Callable[[Any, Any], Any] | None = None,
) -> None:
    """Say how values of a space of one's own are recorded: as values of a standard space.

    It holds for ``cls`` and its subclasses, at any depth inside Dict, Tuple and other spaces, for this process, and
    takes the place of what was said about ``cls`` before. Two kinds of spaces need no registration: subclasses of a
    standard space are recorded as that space, and spaces whose dtype is a string as Text.

    The metadata hold the standard space, so a buffer opened later, without ``cls``, gives values of the standard
    space. ``decode`` serves whoever has the space itself.

    Args:
        cls: the class of the space.
        to_space: takes the space, gives the space that its values are recorded as: a standard one, or one made of
            standard and registered ones. It must give an equal space each time.
        encode: takes the space and one of its values, gives the value of the standard space. None: they are the same.
        decode: takes the space and a value of the standard space, gives the value again. None: they are the same.

    Raises:
        FieldError: ``cls`` is no class of spaces, or a standard one.

    Example:
        >>> class Celsius(Space):
        ...     pass
        >>> register_space(
        ...     Celsius,
        ...     to_space=lambda space: spaces.Box(0.0, np.inf, (), np.float64),
        ...     encode=lambda space, value: value + 273.15,
        ...     decode=lambda space, value: float(value) - 273.15,
        ... )
    """
    if not (isinstance(cls, type) and issubclass(cls, Space)):
        raise FieldError(f"register_space: expected a subclass of gymnasium.Space, got {cls!r:.60}; pass the class")
    if cls in NODES:
        raise FieldError(f"register_space: {cls.__name__} is recorded as it is; register a subclass of it")
    for name, function in (("to_space", to_space), ("encode", encode), ("decode", decode)):
        if not (callable(function) or (function is None and name != "to_space")):
            raise FieldError(f"register_space: expected {name} to be a function, got {function!r:.60}; pass a function")
    RULES[cls] = SpaceRule(to_space, encode, decode)


class CustomNode(SpaceNode, of=Space):
    """Values of a space of one's own, as values of the standard space that they are recorded as.

    Batches are those of the nearest standard base, and tuples where there is none.
    """

    def __init__(self, space: Any, place: Place, maker: LeafMaker) -> None:
        self.name, self._space, self._rule = place.name, space, rule_of(space, place.name)
        self._node = make_node(recorded_space(space, place.name), place, maker)
        self._has_base = standard_node(space) is not CustomNode
        self.leaves = self._node.leaves
        self.flatten = self._node.flatten if self._rule.encode is None else self._encoding(self._node.flattener())

    def _encoding(self, flatten: Flatten) -> Flatten:
        return lambda value: flatten(self._encode(value))

    def _encode(self, value: Any) -> Any:
        if self._rule.encode is None:
            return value
        try:
            return self._rule.encode(self._space, value)
        except Exception as error:
            raise FieldError(
                f"field {self.name!r}: expected a value of {type(self._space).__name__}, got {describe(value)}; "
                f"encode, registered for it, raised {type(error).__name__}: {error}"
            ) from error

    def _decode(self, value: Any) -> Any:
        return value if self._rule.decode is None else self._rule.decode(self._space, value)

    def unflatten(self, values: Iterator[Any]) -> Any:
        return self._decode(self._node.unflatten(values))

    def split(self, values: Sequence[Any]) -> list[Column]:
        return self._node.split(values if self._rule.encode is None else [self._encode(value) for value in values])

    def split_batch(self, batch: Any) -> tuple[int | None, list[Column]]:
        if self._has_base:
            batch = list(iterate(batch_space(self._space, 1), batch))
        return super().split_batch(batch)

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        return [self._decode(item) for item in self._node.join(count, columns)]

    def stack(self, items: Sequence[Any]) -> Any:
        if not self._has_base:
            return tuple(items)
        out: Any = create_empty_array(self._space, len(items))
        return concatenate(self._space, items, out)

    @classmethod
    def to_json(cls, space: Any, place: str) -> dict[str, Json]:
        return to_json(recorded_space(space, place), place)

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, place: str) -> Space[Any]:
        raise AssertionError("a space of one's own is written as a standard one")


def rule_of(space: Space[Any], place: str) -> SpaceRule:
    """How a space that is not recorded as it is, is recorded.

    Raises:
        UnsupportedSpaceError: nobody has said how; the message names the place and the call to make.
    """
    for cls in type(space).__mro__:
        if cls in RULES:
            return RULES[cls]
    if space.dtype is not None and space.dtype.kind == "U":
        return _STRINGS
    raise UnsupportedSpaceError(
        f"{place}: {_kind(space)} is no standard Gymnasium space; say first which one its values are recorded as:\n\n"
        + _call(space)
    )


def recorded_space(space: Space[Any], place: str) -> Space[Any]:
    """The space that the values of a space of one's own are recorded as.

    Raises:
        UnsupportedSpaceError: nobody has said which, or the rule gives none.
    """
    rule = rule_of(space, place)
    try:
        standard = rule.to_space(space)
    except Exception as error:
        raise UnsupportedSpaceError(
            f"{place}: to_space, registered for {_kind(space)}, raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(standard, Space) or type(standard) is type(space):
        raise UnsupportedSpaceError(
            f"{place}: to_space, registered for {_kind(space)}, gave {standard!r:.60}; expected a standard space"
        )
    return standard


def _kind(space: object) -> str:
    return f"{type(space).__module__}.{type(space).__qualname__}"


def _call(space: Space[Any]) -> str:
    """The call that registers a space, ready to be pasted; where the space has a shape and a dtype, it is complete."""
    cls = type(space)
    dtype = space.dtype
    if space.shape is not None and dtype is not None and dtype.kind in "biuf" and dtype.itemsize <= 8:
        shape, note = space.shape, ""
    else:
        shape, dtype, note = (3,), np.dtype("float32"), "  # put in what np.asarray(value) has"
    scalar = "np.bool_" if dtype.kind == "b" else f"np.{dtype.name}"
    bounds = {"f": "-np.inf, np.inf", "b": "0, 1"}.get(dtype.kind, f"np.iinfo({scalar}).min, np.iinfo({scalar}).max")
    lines = [
        "import gym_replay",
        "import gymnasium as gym",
        "import numpy as np",
        *([f"from {cls.__module__} import {cls.__name__}"] if cls.__qualname__ == cls.__name__ else []),
        "",
        "gym_replay.register_space(",
        f"    {cls.__name__},",
        f"    to_space=lambda space: gym.spaces.Box({bounds}, {shape}, {scalar}),{note}",
        "    encode=lambda space, value: np.asarray(value),",
        "    decode=lambda space, value: value,",
        ")",
    ]
    return "".join(f"    {line}".rstrip() + "\n" for line in lines)

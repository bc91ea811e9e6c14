"""Spaces of one's own: which standard space their values are recorded as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from gym_replay.errors import FieldError, UnsupportedSpaceError
from gym_replay.schema.fields import describe
from gym_replay.spaces.checked_json import Json, SpaceReader
from gym_replay.spaces.converted import ConvertedNode
from gym_replay.spaces.leaf import LeafMaker, SpacePath
from gym_replay.spaces.node import NODES, standard_node, to_json

ANY_CHARACTER = "".join(map(chr, (*b"\t\n\r", *range(0x20, 0x7F), *range(0xA0, 0x180))))
"""The charset of strings that have none of their own: what Latin scripts print. Storage takes every other as well."""

LONGEST_TEXT = 4096
"""How long strings without a bound of their own may be in the space; short enough that ``sample`` stays quick."""


@dataclass(frozen=True)
class SpaceRule:
    """How values of a space that is not standard are recorded; see :func:`register_space`."""

    to_space: Callable[[Any], Space[Any]]
    encode: Callable[[Any, Any], Any]
    decode: Callable[[Any, Any], Any]


RULES: dict[type[Any], SpaceRule] = {}
"""The rules that were registered, by the class of the space."""


def _as_it_is(space: Any, value: Any) -> Any:
    return value


_STRINGS = SpaceRule(lambda space: spaces.Text(LONGEST_TEXT, min_length=0, charset=ANY_CHARACTER), _as_it_is, _as_it_is)


def register_space(
    cls: type[Space[Any]],
    to_space: Callable[[Any], Space[Any]],
    encode: Callable[[Any, Any], Any] | None = None,
    decode: Callable[[Any, Any], Any] | None = None,
) -> None:
    """Say how values of a space of one's own are recorded: as values of a standard space.

    It holds for ``cls`` and its subclasses, at any depth inside Dict, Tuple and other spaces, for this process, and
    replaces what was said about ``cls`` before. Two kinds of spaces need no registration: subclasses of a
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
    if cls in NODES and cls not in RULES:
        raise FieldError(f"register_space: {cls.__name__} is recorded as it is; register a subclass of it")
    for name, function in (("to_space", to_space), ("encode", encode), ("decode", decode)):
        if not (callable(function) or (function is None and name != "to_space")):
            raise FieldError(f"register_space: expected {name} to be a function, got {function!r:.60}; pass a function")
    NODES[cls] = CustomNode
    RULES[cls] = SpaceRule(to_space, encode or _as_it_is, decode or _as_it_is)


class CustomNode(ConvertedNode, of=Space):
    """Values of a space of one's own, as values of the standard space that they are recorded as.

    Batches are those of the nearest standard base, and tuples where there is none.
    """

    def __init__(self, space: Any, path: SpacePath, maker: LeafMaker) -> None:
        super().__init__(space, path, maker)
        self._rule = rule_of(space, path.name)
        self._has_base = standard_node(space) is not CustomNode

    def encode(self, value: Any) -> Any:
        try:
            return self._rule.encode(self.space, value)
        except Exception as error:
            raise FieldError(
                f"field {self.name!r}: expected a value of {type(self.space).__name__}, got {describe(value)}; "
                f"encode, registered for it, raised {type(error).__name__}: {error}"
            ) from error

    def decode(self, value: Any) -> Any:
        return self._rule.decode(self.space, value)

    def unstack(self, batch: Any) -> Any:
        return list(iterate(batch_space(self.space, 1), batch)) if self._has_base else super().unstack(batch)

    def stack(self, items: Sequence[Any]) -> Any:
        if not self._has_base:
            return tuple(items)
        out: Any = create_empty_array(self.space, len(items))
        return concatenate(self.space, items, out)

    @classmethod
    def recorded(cls, space: Any, path: str) -> Space[Any]:
        rule = rule_of(space, path)
        try:
            standard = rule.to_space(space)
        except Exception as error:
            raise UnsupportedSpaceError(
                f"{path}: to_space, registered for {_kind(space)}, raised {type(error).__name__}: {error}"
            ) from error
        if not isinstance(standard, Space) or type(standard) is type(space):
            raise UnsupportedSpaceError(
                f"{path}: to_space, registered for {_kind(space)}, gave {standard!r:.60}; expected a standard space"
            )
        return standard

    @classmethod
    def to_json(cls, space: Any, path: str) -> dict[str, Json]:
        return to_json(cls.recorded(space, path), path)

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, path: str) -> Space[Any]:
        raise AssertionError("a space of one's own is written as a standard one")


def rule_of(space: Space[Any], path: str) -> SpaceRule:
    """How a space that is not recorded as it is, is recorded.

    Raises:
        UnsupportedSpaceError: nobody has said how; the message names the path and the call to make.
    """
    for cls in type(space).__mro__:
        if cls in RULES:
            return RULES[cls]
    if space.dtype is not None and space.dtype.kind == "U":
        return _STRINGS
    raise UnsupportedSpaceError(
        f"{path}: {_kind(space)} is no standard Gymnasium space; say first which one its values are recorded as:\n\n"
        + _call(space)
    )


def _kind(space: object) -> str:
    return f"{type(space).__module__}.{type(space).__qualname__}"


def _call(space: Space[Any]) -> str:
    """The call that registers a space, ready to be pasted; where the space has a shape and a dtype, it is complete."""
    cls = type(space)
    dtype = space.dtype
    has_fixed_size = space.shape is not None and min(space.shape, default=0) >= 0
    if has_fixed_size and dtype is not None and dtype.kind in "biuf" and dtype.itemsize <= 8:
        shape, note = space.shape, ""
    else:
        note = "  # what np.asarray(value) has; or gym.spaces.Text, or Sequence"
        shape, dtype = (3,), np.dtype("float32")
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

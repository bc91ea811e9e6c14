"""The tree of a space: a node for each space in it, of one class for each kind of space.

A kind of space is one class in one file of this folder. The class says all that is known of the kind: its fields, how
its values become rows and values again, its JSON, its bounds. Everybody else visits the tree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import Space
from gymnasium.vector.utils import iterate

from gym_replay.errors import FieldError, UnsupportedSpaceError
from gym_replay.schema.fields import describe
from gym_replay.schema.names import Key
from gym_replay.spaces.checked_json import Json, SpaceReader
from gym_replay.spaces.columns import Column, check_items
from gym_replay.spaces.leaf import Leaf, LeafMaker, Place

Flatten = Callable[[Any], Sequence[Any]]
"""Takes a value and gives the values of its leaves."""


class Node(ABC):
    """A space, or a part of one, with the fields of its values.

    A row has one value of it, or any number of items (``Place.has_items``). One value goes through ``flatten`` and
    ``unflatten``. Items go through ``split`` and ``join``, as one column per leaf; the first column has one element per
    item. A batch is what Gymnasium makes of several values, as in a stacked Sequence and in a vector environment: an
    array with one more axis, a dict or a tuple of batches, or a tuple of values.

    Attributes:
        name: the name of a field that lies here.
        leaves: the fields.
        flatten: gives the leaf values of one value; None where the value is the value of its only leaf.
    """

    name: str
    leaves: list[Leaf]
    flatten: Flatten | None = None

    @abstractmethod
    def unflatten(self, values: Iterator[Any]) -> Any:
        """The value of which the next leaf values are."""

    def flattener(self) -> Flatten:
        """``flatten``, where it is None as a function."""
        return self.flatten or (lambda value: (value,))

    def batch_flattener(self, batched: Space[Any], count: int) -> Flatten:
        """A function that gives the leaf values of all ``count`` sub-environments, of a value of ``batched``."""
        name, flatten, width = self.name, self.flattener(), len(self.leaves)

        def flatten_each(batch: Any) -> list[Any]:
            items = batch if isinstance(batch, (tuple, list, np.ndarray)) else None
            if isinstance(batch, Mapping):
                items = list(iterate(batched, batch))
            if items is None or len(items) != count:
                raise FieldError(
                    f"field {name!r}: expected one value for each of {count} sub-environments, got {describe(batch)}"
                )
            rows = [of_one(flatten, item, index) for index, item in enumerate(items)]
            return [[row[at] for row in rows] for at in range(width)]

        return flatten_each

    @abstractmethod
    def split(self, values: Sequence[Any]) -> list[Column]:
        """The columns of these items."""

    def split_batch(self, batch: Any) -> tuple[int | None, list[Column]]:
        """How many items are in a batch, None where it does not show; and their columns."""
        values = check_items(self.name, batch)
        return len(values), self.split(values)

    @abstractmethod
    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        """The ``count`` items of which the next columns are."""

    def join_batch(self, count: int, columns: Iterator[Column]) -> Any:
        """The batch of the ``count`` items of which the next columns are."""
        return self.stack(self.join(count, columns))

    def stack(self, items: Sequence[Any]) -> Any:
        """The batch of these items."""
        return tuple(items)


def of_one(function: Callable[[Any], Any], value: Any, index: int) -> Any:
    """What a function says of one sub-environment's value."""
    try:
        return function(value)
    except FieldError as error:
        raise FieldError(f"sub-environment {index}: {error}") from None


NODES: dict[type[Any], type[SpaceNode]] = {}
"""The class for each of Gymnasium's kinds of spaces; the one for ``Space`` itself takes spaces of one's own."""


class SpaceNode(Node):
    """A kind of space: ``class TextNode(SpaceNode, of=spaces.Text)`` is the one place that knows of Text."""

    standard: ClassVar[type[Any]]
    """The class of Gymnasium's."""

    is_shared: ClassVar[bool] = True
    """Whether Gymnasium keeps values in shared memory; what it does not, it reads from there once and for all."""

    def __init_subclass__(cls, of: type[Any] | None = None) -> None:
        if of is not None:
            cls.standard = of
            NODES[of] = cls

    @abstractmethod
    def __init__(self, space: Any, place: Place, maker: LeafMaker) -> None: ...

    @classmethod
    def parts_of(cls, space: Any) -> dict[Key, Space[Any]]:
        """The spaces of the parts that a value is made of, by key or index; none of values without such parts."""
        return {}

    @classmethod
    def bounds(cls, space: Any) -> tuple[Any, Any] | None:
        """The lowest and highest values; None where there are none."""
        return None

    @classmethod
    @abstractmethod
    def to_json(cls, space: Any, place: str) -> dict[str, Json]:
        """The space as JSON; ``place`` is what messages call it."""

    @classmethod
    @abstractmethod
    def from_json(cls, reader: SpaceReader, value: Json, place: str) -> Space[Any]:
        """The space that was written as this JSON, which may be damaged."""

    @classmethod
    def json_parts(cls, value: Json) -> dict[Key, Json] | tuple[Json, ...] | None:
        """The parts that have components of the fields' names, by key, or as a tuple; None where there are none.

        Nothing of the JSON is checked.
        """
        return None


@dataclass(frozen=True)
class SpaceRule:
    """How values of a space that is not standard are recorded; see :func:`gym_replay.register_space`."""

    to_space: Callable[[Any], Space[Any]]
    encode: Callable[[Any, Any], Any] | None = None
    decode: Callable[[Any, Any], Any] | None = None


RULES: dict[type[Any], SpaceRule] = {}
"""The rules that were registered, by the class of the space."""


def standard_node(space: Space[Any]) -> type[SpaceNode]:
    """The class for the nearest standard space among a space's bases; the one for ``Space`` where there is none."""
    return next(NODES[cls] for cls in type(space).__mro__ if cls in NODES)


def node_class(space: object, place: str) -> type[SpaceNode]:
    """The class for a space; a rule that was registered for it goes before its standard base.

    Raises:
        UnsupportedSpaceError: it is no space.
    """
    for cls in type(space).__mro__:
        if cls in RULES:
            return NODES[Space]
        if cls in NODES:
            return NODES[cls]
    raise UnsupportedSpaceError(f"{place}: expected a gymnasium.Space, got {type(space).__name__}; pass a space")


def make_node(space: object, place: Place, maker: LeafMaker) -> Node:
    """The tree of a space.

    Raises:
        UnsupportedSpaceError: the space, or one inside it, cannot be recorded.
    """
    return node_class(space, place.name)(space, place, maker)


def to_json(space: object, place: str) -> dict[str, Json]:
    """A space as JSON, which is not checked.

    Raises:
        UnsupportedSpaceError: the space, or one inside it, cannot be recorded.
    """
    return node_class(space, place).to_json(space, place)


def parts_of_json(value: Json) -> dict[Key, Json] | tuple[Json, ...] | None:
    """:meth:`SpaceNode.json_parts` of a space in JSON; None of what is no space."""
    if not isinstance(value, dict):
        return None
    kind = value["type"]
    return next((node.json_parts(value) for cls, node in NODES.items() if cls.__name__ == kind), None)

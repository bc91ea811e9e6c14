"""The tree of a space: a node for each space in it, of one class for each kind of space.

A kind of space is one class in one file of this folder. The class says all that is known of the kind: its fields, how
its values become rows and values again, its JSON, its bounds. Everybody else visits the tree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from gymnasium import Space

from gym_replay.errors import FieldError, UnsupportedSpaceError
from gym_replay.schema.fields import describe
from gym_replay.schema.names import Key
from gym_replay.spaces.checked_json import Json, SpaceReader
from gym_replay.spaces.leaf import Leaf, LeafMaker, SpacePath

Column: TypeAlias = "npt.NDArray[Any]"

NODES: dict[type[Any], type[Node]] = {}
"""The class for each of Gymnasium's kinds of spaces, and for those that were registered.

The one for ``Space`` itself takes spaces of one's own.
"""


class Node(ABC):
    """A space, or a part of one, with the fields of its values: ``class TextNode(Node, of=spaces.Text)``.

    A row has one value, or any number of items (``SpacePath.has_items``). One value goes through ``flatten`` and
    ``unflatten``. Items go through ``split`` and ``join``, as one column per leaf; the first column has one element per
    item. A batch is what Gymnasium makes of several values, as in a stacked Sequence and in a vector environment: an
    array with one more axis, a dict or a tuple of batches, or a tuple of values. ``stack`` makes one, and ``unstack``
    takes it apart.

    Attributes:
        standard: Gymnasium's class for the kind.
        is_shared: whether Gymnasium keeps values in shared memory; it reads the others from there once and for all.
        space: the space.
        name: the name of a field at its path.
        leaves: the fields.
    """

    standard: ClassVar[type[Any]]
    is_shared: ClassVar[bool] = True
    leaves: list[Leaf]

    def __init_subclass__(cls, of: type[Any] | None = None) -> None:
        if of is not None:
            cls.standard = of
            NODES[of] = cls

    def __init__(self, space: Any, path: SpacePath, maker: LeafMaker) -> None:
        self.space, self.name = space, path.name

    @property
    def is_leaf(self) -> bool:
        """Whether a value is the value of its only leaf, as it is."""
        return len(self.leaves) == 1 and self.leaves[0].space is self.space

    @abstractmethod
    def flatten(self, value: Any) -> Sequence[Any]:
        """The leaf values of one value."""

    @abstractmethod
    def unflatten(self, values: Iterator[Any]) -> Any:
        """The value that has the next leaf values."""

    @abstractmethod
    def split(self, items: Sequence[Any]) -> list[Column]:
        """The columns of these items."""

    @abstractmethod
    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        """The ``count`` items that have the next columns."""

    def join_batch(self, count: int, columns: Iterator[Column]) -> Any:
        """The batch of the ``count`` items that have the next columns."""
        return self.stack(self.join(count, columns))

    def stack(self, items: Sequence[Any]) -> Any:
        """The batch of these items."""
        return tuple(items)

    def unstack(self, batch: Any) -> Any:
        """The items of a batch, a list, tuple or array; None where the batch does not show how many there are."""
        return check_items(self.name, batch)

    def flatten_batch(self, batch: Any, count: int) -> list[Any]:
        """The leaf values of all ``count`` sub-environments, of a batch of their values.

        Of each leaf they are one array, or a list of one leaf value for each sub-environment.
        """
        items = self.unstack(batch)
        if items is None or len(items) != count:
            raise FieldError(
                f"field {self.name!r}: expected one value for each of {count} sub-environments, got {describe(batch)}"
            )
        rows = [of_one(self.flatten, item, env_index) for env_index, item in enumerate(items)]
        return [list(column) for column in zip(*rows, strict=True)]

    @classmethod
    def parts_of(cls, space: Any) -> dict[Key, Space[Any]] | tuple[Space[Any], ...] | None:
        """The spaces whose keys are components of the fields' names, by key or as a tuple; None where there are none.

        Where a batch of rows is nested, it is a dict or a tuple of this form.
        """
        return None

    @classmethod
    def bounds(cls, space: Any) -> tuple[Any, Any] | None:
        """The lowest and highest values; None where there are none."""
        return None

    @classmethod
    @abstractmethod
    def to_json(cls, space: Any, path: str) -> dict[str, Json]:
        """The space as JSON; ``path`` is what messages call it."""

    @classmethod
    @abstractmethod
    def from_json(cls, reader: SpaceReader, value: Json, path: str) -> Space[Any]:
        """The space that was written as this JSON, which may be damaged."""


def of_one(function: Callable[[Any], Any], value: Any, whose: int | str) -> Any:
    """What a function says of one value of several; an error of it names whose it is.

    Args:
        function: the function.
        value: the value.
        whose: the index of a sub-environment, or another name.
    """
    try:
        return function(value)
    except FieldError as error:
        name = whose if isinstance(whose, str) else f"sub-environment {whose}"
        raise FieldError(f"{name}: {error}") from None


def check_items(name: str, value: Any) -> Any:
    """The value, if it is a sequence of items: a tuple, a list or an array."""
    if isinstance(value, (tuple, list)):
        return value
    if isinstance(value, np.ndarray) or hasattr(value, "detach"):
        if value.ndim > 0:
            return value
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return list(value)
    raise FieldError(
        f"field {name!r}: expected a tuple of items, got {describe(value)}; pass a tuple, which may be empty"
    )


def standard_node(space: Space[Any]) -> type[Node]:
    """The class for the nearest standard space among a space's bases; the one for ``Space`` where there is none."""
    return next(NODES[cls] for cls in type(space).__mro__ if cls in NODES and NODES[cls].standard is cls)


def node_class(space: object, path: str) -> type[Node]:
    """The class for a space.

    Raises:
        UnsupportedSpaceError: it is no space.
    """
    for cls in type(space).__mro__:
        if cls in NODES:
            return NODES[cls]
    raise UnsupportedSpaceError(f"{path}: expected a gymnasium.Space, got {type(space).__name__}; pass a space")


def make_node(space: object, path: SpacePath, maker: LeafMaker) -> Node:
    """The tree of a space.

    Raises:
        UnsupportedSpaceError: the space, or one inside it, cannot be recorded.
    """
    return node_class(space, path.name)(space, path, maker)


def to_json(space: object, path: str) -> dict[str, Json]:
    """A space as JSON, which is not checked.

    Raises:
        UnsupportedSpaceError: the space, or one inside it, cannot be recorded.
    """
    return node_class(space, path).to_json(space, path)

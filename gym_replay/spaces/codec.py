"""Values of a space as the values of its fields, as bytes, and as values of the space again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
from gymnasium import Space

from gym_replay.errors import FieldError
from gym_replay.schema.fields import make_encoder
from gym_replay.spaces.leaf import Leaf, LeafMaker, Place
from gym_replay.spaces.node import Flatten, Node, make_node


def space_tree(space: Space[Any], root: str) -> Node:
    """The tree of a space, whose fields have the space's own dtypes.

    Raises:
        UnsupportedSpaceError: as :func:`space_leaves`.
    """
    return make_node(space, Place(root), LeafMaker(root))


def space_leaves(
    space: Space[Any], root: str, *, state: bool = False, dtypes: Mapping[str, Any] | None = None
) -> list[Leaf]:
    """The fields of a space, depth first and in the order of its keys.

    Args:
        space: any standard space, one of a dtype that is a string, or a registered one
            (:func:`~gym_replay.register_space`).
        root: the name that the fields' names begin with; a space without parts has the one field ``root``.
        state: whether the fields are state fields.
        dtypes: storage dtypes other than the space's own, by the name of a field or of a group of fields such as
            ``"observation"``; the longest name that fits counts. Strings and what tells about structure (lengths,
            indices, links) have no other dtype, and a group's is not theirs.

    Raises:
        UnsupportedSpaceError: a part of the space cannot be stored; the message names its type and place.
        FieldError: a name in ``dtypes`` is none of the space's, or of a field that has no other dtype.

    Example:
        >>> from gymnasium import spaces
        >>> space = spaces.Dict({"camera": spaces.Box(0, 255, (2, 2), np.uint8), "said": spaces.Text(9)})
        >>> [(leaf.name, leaf.field.shape, leaf.field.ragged) for leaf in space_leaves(space, "observation")]
        [('observation.camera', (2, 2), False), ('observation.said', (), True)]
    """
    maker = LeafMaker(root, state=state, dtypes=dtypes)
    leaves = make_node(space, Place(root), maker).leaves
    maker.check_dtypes()
    return leaves


def make_flattener(space: Space[Any], root: str) -> Flatten:
    """A function that takes a value of the space and gives its leaf values, in the order of :func:`space_leaves`.

    It checks the keys of dicts and the lengths of tuples, and leaves the values of leaves that are not ragged as they
    are. The value of a ragged leaf is an array ``(n, *field.shape)``.

    Raises:
        UnsupportedSpaceError: as :func:`space_leaves`.
    """
    return space_tree(space, root).flattener()


def make_space_encoder(space: Space[Any], leaves: Sequence[Leaf]) -> Callable[[Any], tuple[bytes, ...]]:
    """A function that checks a value of the space and gives the bytes of each leaf, copied.

    Args:
        space: the space.
        leaves: its leaves, from :func:`space_leaves`.

    Returns:
        A function that raises FieldError where a value does not fit. It checks dtype and shape, not the bounds.
    """
    encoders = [make_encoder(leaf.name, leaf.field) for leaf in leaves]
    flatten = space_tree(space, root_of(leaves)).flatten
    if flatten is None:
        (encode_leaf,) = encoders
        return lambda value: (encode_leaf(value),)

    def encode(value: Any) -> tuple[bytes, ...]:
        return tuple([encode(part) for encode, part in zip(encoders, flatten(value), strict=True)])

    return encode


def root_of(leaves: Sequence[Leaf]) -> str:
    """What the names of a space's fields begin with."""
    return Place(leaves[0].name, leaves[0].keys).groups()[0] if leaves else "value"


def make_unflattener(space: Space[Any]) -> Callable[[Sequence[npt.NDArray[Any]]], Any]:
    """:func:`unflatten` for many values of one space.

    Raises:
        UnsupportedSpaceError: as :func:`space_leaves`.
    """
    node = space_tree(space, "value")
    kind, count = type(space).__name__, len(node.leaves)

    def unflatten_one(values: Sequence[npt.NDArray[Any]]) -> Any:
        if len(values) != count:
            few_or_many = "few" if len(values) < count else "many"
            raise FieldError(f"unflatten: {len(values)} values are too {few_or_many} for {kind}; expected {count}")
        return node.unflatten(iter(values))

    return unflatten_one


def unflatten(space: Space[Any], values: Sequence[npt.NDArray[Any]]) -> Any:
    """The value of the space that has these leaf values, of the types that ``space.sample`` gives.

    Args:
        space: the space.
        values: one value per leaf, each of the leaf's shape, or ``(n, *field.shape)`` of a ragged leaf. Arrays of the
            space's own dtype are not copied.

    Raises:
        FieldError: the number of values or a shape does not fit.
        UnsupportedSpaceError: as :func:`space_leaves`.
    """
    return make_unflattener(space)(values)

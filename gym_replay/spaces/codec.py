"""A space as the tree of its fields and as JSON, and its values as bytes and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
from gymnasium import Space

from gym_replay.errors import CorruptBufferError, FieldError, GymReplayError, UnsupportedSpaceError
from gym_replay.schema.fields import make_encoder
from gym_replay.spaces.checked_json import Json, SpaceReader, brief
from gym_replay.spaces.leaf import Leaf, LeafMaker, SpacePath
from gym_replay.spaces.node import NODES, Node, make_node, to_json


def space_tree(space: Space[Any], root: str, *, state: bool = False, dtypes: Mapping[str, Any] | None = None) -> Node:
    """The tree of a space: its fields, depth first and in the order of its keys, and its values as theirs and back.

    ``flatten`` of the tree checks the keys of dicts and the lengths of tuples, and leaves the values of leaves that are
    not ragged as they are. The value of a ragged leaf is an array ``(n, *field.shape)``.

    Args:
        space: any standard space, one of a dtype that is a string, or a registered one
            (:func:`~gym_replay.register_space`).
        root: the name that the fields' names begin with; a space without parts has the one field ``root``.
        state: whether the fields are state fields.
        dtypes: storage dtypes other than the space's own, by the name of a field or of a group of fields such as
            ``"observation"``; the longest name that fits counts. Strings and what tells about structure (lengths,
            indices, links) have no other dtype, and a group's is not theirs.

    Raises:
        UnsupportedSpaceError: a part of the space cannot be stored; the message names its type and path.
        FieldError: a name in ``dtypes`` is none of the space's, or of a field that has no other dtype.

    Example:
        >>> from gymnasium import spaces
        >>> space = spaces.Dict({"camera": spaces.Box(0, 255, (2, 2), np.uint8), "said": spaces.Text(9)})
        >>> [(leaf.name, leaf.field.shape, leaf.field.ragged) for leaf in space_tree(space, "observation").leaves]
        [('observation.camera', (2, 2), False), ('observation.said', (), True)]
    """
    maker = LeafMaker(root, state=state, dtypes=dtypes)
    tree = make_node(space, SpacePath(root), maker)
    maker.check_dtypes()
    return tree


def make_space_encoder(tree: Node, leaves: Sequence[Leaf] | None = None) -> Callable[[Any], tuple[bytes, ...]]:
    """A function that checks a value of a space and gives the bytes of each leaf, copied.

    Args:
        tree: the tree of the space.
        leaves: its leaves, where their fields are stored in other dtypes than the tree's own.

    Returns:
        A function that raises FieldError where a value does not fit. It checks dtype and shape, not the bounds.
    """
    encoders = [make_encoder(leaf.name, leaf.field) for leaf in (tree.leaves if leaves is None else leaves)]
    if tree.is_leaf:
        (encode_leaf,) = encoders
        return lambda value: (encode_leaf(value),)

    flatten = tree.flatten

    def encode(value: Any) -> tuple[bytes, ...]:
        return tuple([encode(part) for encode, part in zip(encoders, flatten(value), strict=True)])

    return encode


def unflatten(tree: Node, values: Sequence[npt.NDArray[Any]]) -> Any:
    """The value of a space that has these leaf values, of the types that ``space.sample`` gives.

    Args:
        tree: the tree of the space.
        values: one value per leaf, each of the leaf's shape, or ``(n, *field.shape)`` of a ragged leaf. Arrays of the
            space's own dtype are not copied.

    Raises:
        FieldError: the number of values or a shape does not fit.
    """
    count = len(tree.leaves)
    if len(values) != count:
        few_or_many = "few" if len(values) < count else "many"
        kind = type(tree.space).__name__
        raise FieldError(f"unflatten: {len(values)} values are too {few_or_many} for {kind}; expected {count}")
    return tree.unflatten(iter(values))


def space_to_json(space: Space[Any], root: str = "space") -> dict[str, Json]:
    """A space as JSON, from which :func:`space_from_json` makes an equal space.

    A subclass of a standard space is written as its nearest standard base, a space of one's own as the standard space
    that its values are recorded as (:func:`~gym_replay.register_space`). Float bounds keep every bit.

    Args:
        space: any standard Gymnasium space, or one that was registered.
        root: what messages call the space, such as ``"observation"``.

    Raises:
        UnsupportedSpaceError: the space or one inside it is unknown, is nested deeper than ``MAX_DEPTH``, has
            more than ``MAX_ELEMENTS`` elements, or could not be built again; the message names its type and path.

    Example:
        >>> from gymnasium import spaces
        >>> space_to_json(spaces.Discrete(2))
        {'type': 'Discrete', 'n': 2, 'start': 0, 'dtype': 'int64'}
    """
    try:
        value = to_json(space, root)
        space_from_json(value)  # what cannot be opened again must not be recorded
    except (CorruptBufferError, RecursionError) as error:
        raise UnsupportedSpaceError(f"{root}: {type(space).__name__} cannot be stored ({error})") from None
    return value


def space_from_json(value: Json) -> Space[Any]:
    """The space that :func:`space_to_json` was given.

    Nothing is allocated before its size is checked against ``MAX_ELEMENTS``.

    Raises:
        CorruptBufferError: no space has this JSON form; the message names the path.
        UnsupportedSpaceError: the installed Gymnasium is too old for this space.
    """
    kinds = {cls.__name__: node.from_json for cls, node in NODES.items() if node.standard is cls is not Space}
    try:
        return SpaceReader(kinds).read(value, "space")
    except GymReplayError:
        raise
    except Exception as error:  # what Gymnasium raises for a bad argument differs from version to version
        raise CorruptBufferError(f"space: {brief(value)} is no space ({type(error).__name__}: {error})") from None

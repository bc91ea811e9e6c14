"""Space <-> fields: the leaves of a space, its values as bytes, and leaf values as a value of the space again.

A value of fixed size is one row of one field per leaf. Of what differs in size, the fields are ragged:

==================================  ===================================================================================
Text at ``said``                    ``said``: the string's UTF-8 bytes
Sequence at ``path``                the fields of its items, at the same place, with one element per item
OneOf at ``move``                   ``move.index``: which space; ``move.0``, ``move.1``: none or one item of each space
Graph at ``map``                    ``map.nodes``, ``map.edges``, ``map.edge_links``: as of Sequences; ``map.has_edges``
                                    and ``map.has_edge_links``: whether they are anything but None
==================================  ===================================================================================

Inside a Sequence, where a field may have any number of elements per item, ``path.%lengths`` has how many (those of
Sequences inside Sequences, at the same place, are ``path.%lengths2`` and so on). Items that have no bytes leave
``path.%items`` behind, a zero for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space

from gym_replay.buffer.storage.fields import Field, make_encoder
from gym_replay.errors import FieldError
from gym_replay.wrappers.space_leaf import Leaf, LeafMaker, Place, Visit
from gym_replay.wrappers.space_rows import make_row

__all__ = [
    "Flattener",
    "Leaf",
    "make_flattener",
    "make_space_encoder",
    "make_unflattener",
    "space_leaves",
    "unflatten",
]


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
    leaves = make_row(space, Place(root), maker).leaves
    maker.check_dtypes()
    return leaves


Flattener = Callable[[Any], Sequence[Any]]


def make_flattener(space: Space[Any], root: str) -> Flattener:
    """A function that takes a value of the space and gives its leaf values, in the order of :func:`space_leaves`.

    It checks the keys of dicts and the lengths of tuples, and leaves the values of leaves that are not ragged as they
    are. The value of a ragged leaf is an array ``(n, *field.shape)``.

    Raises:
        UnsupportedSpaceError: as :func:`space_leaves`.
    """
    visit = make_row(space, Place(root), LeafMaker(root)).visit
    return (lambda value: (value,)) if visit is None else _make_visiting(visit)


def _make_visiting(visit: Visit) -> Flattener:
    def flatten(value: Any) -> list[Any]:
        values: list[Any] = []
        visit(value, values.append)
        return values

    return flatten


def make_space_encoder(space: Space[Any], leaves: Sequence[Leaf]) -> Callable[[Any], tuple[bytes, ...]]:
    """A function that checks a value of the space and gives the bytes of each leaf, copied.

    Args:
        space: the space.
        leaves: its leaves, from :func:`space_leaves`.

    Returns:
        A function that raises FieldError where a value does not fit. It checks dtype and shape, not the bounds.
    """
    encoders = [make_encoder(leaf.name, leaf.field) for leaf in leaves]
    root = _root_name(leaves)
    visit = make_row(space, Place(root), LeafMaker(root)).visit
    if visit is None:
        return _make_leaf_encoder(leaves[0].field, encoders[0])
    flatten = _make_visiting(visit)

    def encode(value: Any) -> tuple[bytes, ...]:
        return tuple([encode(part) for encode, part in zip(encoders, flatten(value), strict=True)])

    return encode


def _make_leaf_encoder(field: Field, general: Callable[[Any], bytes]) -> Callable[[Any], tuple[bytes, ...]]:
    """``general`` with the most common case taken before the call: recording pays for each call."""
    shape, scalar_type = field.shape, field.dtype.type
    native = np.dtype(scalar_type)
    ndarray = np.ndarray

    def encode_array(value: Any) -> tuple[bytes, ...]:
        if type(value) is ndarray and value.dtype is native and value.shape == shape:
            return (value.tobytes(),)
        return (general(value),)

    def encode_scalar(value: Any) -> tuple[bytes, ...]:
        if type(value) is scalar_type:
            return (value.tobytes(),)
        return (general(value),)

    return encode_array if shape else encode_scalar


def _root_name(leaves: Sequence[Leaf]) -> str:
    return Place(leaves[0].name, leaves[0].keys).groups()[0] if leaves else "value"


def make_unflattener(space: Space[Any]) -> Callable[[Sequence[npt.NDArray[Any]]], Any]:
    """:func:`unflatten` for many values of one space.

    Raises:
        UnsupportedSpaceError: as :func:`space_leaves`.
    """
    row = make_row(space, Place("value"), LeafMaker("value"))
    kind, count = type(space).__name__, len(row.leaves)

    def unflatten_one(values: Sequence[npt.NDArray[Any]]) -> Any:
        if len(values) != count:
            few_or_many = "few" if len(values) < count else "many"
            raise FieldError(f"unflatten: {len(values)} values are too {few_or_many} for {kind}; expected {count}")
        return row.join(iter(values))

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

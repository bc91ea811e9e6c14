"""Space <-> fields: the leaves of a space, its values as bytes, and leaf values as a value of the space again.

A value of fixed size is one row of one field per leaf. Of what differs in size, the fields are ragged:

==================================  ===================================================================================
Text at ``said``                    ``said``: the string's UTF-8 bytes
Sequence at ``path``                the fields of its items, at the same path, with one element per item
OneOf at ``move``                   ``move.index``: which space; ``move.0``, ``move.1``: none or one item of each space
Graph at ``map``                    ``map.nodes``, ``map.edges``, ``map.edge_links``: as of Sequences; ``map.has_edges``
                                    and ``map.has_edge_links``: whether they are anything but None
==================================  ===================================================================================

Inside a Sequence, where a field may have any number of elements per item, ``path.%lengths`` has how many (those of
Sequences inside Sequences, at the same path, are ``path.%lengths2`` and so on). Items that have no bytes have the field
``path.%items``, a zero for each.
"""

from gym_replay.spaces import numbers, groups, sequence, converted, custom  # noqa: F401, I001  # each kind
from gym_replay.spaces.codec import (
    make_space_encoder,
    space_from_json,
    space_to_json,
    space_tree,
    unflatten,
)
from gym_replay.spaces.custom import register_space
from gym_replay.spaces.leaf import Leaf
from gym_replay.spaces.node import Node

__all__ = [
    "Leaf",
    "Node",
    "make_space_encoder",
    "register_space",
    "space_from_json",
    "space_to_json",
    "space_tree",
    "unflatten",
]

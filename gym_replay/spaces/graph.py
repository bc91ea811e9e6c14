"""Graph: nodes, edges and the links that say which nodes an edge joins."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Space, spaces

from gym_replay.errors import FieldError
from gym_replay.schema.fields import describe
from gym_replay.schema.names import Key
from gym_replay.spaces.checked_json import Json, SpaceReader, member
from gym_replay.spaces.groups import PartsNode
from gym_replay.spaces.leaf import LeafMaker, Place
from gym_replay.spaces.node import Node, to_json
from gym_replay.spaces.numbers import Elements
from gym_replay.spaces.sequence import Items, counted_items

LINK = np.dtype(np.int32)
"""What Gymnasium numbers the two nodes of an edge with."""


class GraphNode(PartsNode, of=spaces.Graph):
    """The nodes, edges and links, each as a stacked Sequence, and whether there are edges and links at all."""

    def __init__(self, space: spaces.Graph, place: Place, maker: LeafMaker) -> None:
        def batch(key: str, items: Node) -> Node:
            return Items(space, items, True, place.part(key), maker, optional=key != "nodes")

        def flag(key: str) -> Node:
            leaf = maker.other(place.part(key), space, np.bool_, ragged=place.has_items)
            return Elements(space, leaf.name, leaf, np.bool_, ())

        parts = {"nodes": batch("nodes", counted_items(space.node_space, place.part("nodes"), maker))}
        if space.edge_space is not None:
            parts["has_edges"] = flag("has_edges")
            parts["edges"] = batch("edges", counted_items(space.edge_space, place.part("edges"), maker))
        parts["has_edge_links"] = flag("has_edge_links")
        links = maker.other(place.part("edge_links").items(), space, LINK, (2,))
        parts["edge_links"] = batch("edge_links", Elements(space, links.name, links, LINK, (2,)))
        self._set_parts(place.name, parts)

    def apart(self, value: Any) -> list[Any]:
        if not isinstance(value, (tuple, list)) or len(value) != 3:
            raise FieldError(
                f"field {self.name!r}: expected a GraphInstance, got {describe(value)}; pass GraphInstance(nodes, "
                "edges, edge_links)"
            )
        nodes, edges, links = value
        if "edges" in self.parts:
            return [nodes, edges is not None, edges, links is not None, links]
        if edges is not None:
            raise FieldError(
                f"field {self.name!r}: expected a graph whose edges are None, got {describe(edges)}; give the Graph an "
                "edge_space"
            )
        return [nodes, links is not None, links]

    @staticmethod
    def value_of(parts: dict[Key, Any]) -> spaces.GraphInstance:
        edges, links = (parts[key] if parts.get(f"has_{key}") else None for key in ("edges", "edge_links"))
        return spaces.GraphInstance(parts["nodes"], edges, links)

    @classmethod
    def to_json(cls, space: spaces.Graph, place: str) -> dict[str, Json]:
        edge = space.edge_space
        return {
            "type": "Graph",
            "node_space": to_json(space.node_space, f"{place}.node_space"),
            "edge_space": None if edge is None else to_json(edge, f"{place}.edge_space"),
        }

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, place: str) -> Space[Any]:
        node = reader.read_batched(member(value, "node_space", dict, place), f"{place}.node_space")
        edge = member(value, "edge_space", (dict, type(None)), place)
        return spaces.Graph(node, None if edge is None else reader.read_batched(edge, f"{place}.edge_space"))

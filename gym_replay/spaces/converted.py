"""Text, OneOf and Graph: kinds whose values are recorded as values of another space, made of simpler kinds."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from gym_replay.errors import CorruptBufferError, FieldError, UnsupportedSpaceError
from gym_replay.schema.fields import describe, encode_text
from gym_replay.schema.names import Key
from gym_replay.spaces.checked_json import Json, SpaceReader, brief, member
from gym_replay.spaces.leaf import LeafMaker, SpacePath, Structure
from gym_replay.spaces.node import Column, Node, make_node, to_json

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class ConvertedNode(Node):
    """Values of a space that become values of the space that they are recorded as; a batch is a tuple of values."""

    def __init__(self, space: Any, path: SpacePath, maker: LeafMaker) -> None:
        super().__init__(space, path, maker)
        self._recorded = make_node(self.recorded(space, path.name), path, maker)
        self.leaves = self._recorded.leaves

    @classmethod
    @abstractmethod
    def recorded(cls, space: Any, path: str) -> Space[Any]:
        """The space that the values are recorded as; ``path`` is what messages call the space."""

    @abstractmethod
    def encode(self, value: Any) -> Any:
        """The value of the recorded space."""

    @abstractmethod
    def decode(self, value: Any) -> Any:
        """The value of which the recorded space has this value."""

    def flatten(self, value: Any) -> Sequence[Any]:
        return self._recorded.flatten(self.encode(value))

    def unflatten(self, values: Iterator[Any]) -> Any:
        return self.decode(self._recorded.unflatten(values))

    def split(self, items: Sequence[Any]) -> list[Column]:
        return self._recorded.split([self.encode(item) for item in items])

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        return [self.decode(item) for item in self._recorded.join(count, columns)]


class TextNode(ConvertedNode, of=spaces.Text):
    """A string, as the sequence of its UTF-8 bytes."""

    is_shared = False

    @classmethod
    def recorded(cls, space: Any, path: str) -> Space[Any]:
        return spaces.Sequence(Structure(np.uint8), stack=True)

    def flatten(self, value: Any) -> list[Column]:
        return [self.encode(value)]

    def encode(self, value: Any) -> Column:
        return np.frombuffer(encode_text(self.name, value), np.uint8)

    def decode(self, value: Column) -> str:
        try:
            return value.tobytes().decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise FieldError(f"unflatten: a string is damaged ({error}); check the buffer") from None

    @classmethod
    def to_json(cls, space: spaces.Text, path: str) -> dict[str, Json]:
        characters = list(space.character_list)
        if any(len(character) != 1 for character in characters):
            raise UnsupportedSpaceError(
                f"{path}: Text needs a charset of single characters, got {space.character_list}"
            )
        if _SURROGATE_PAIR.search("".join(characters)):
            characters.sort(key=lambda character: not "\udc00" <= character <= "\udfff")  # JSON would make one of two
        return {
            "type": "Text",
            "min_length": space.min_length,
            "max_length": space.max_length,
            "charset": "".join(characters),
        }

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, path: str) -> Space[Any]:
        shortest, longest = member(value, "min_length", int, path), member(value, "max_length", int, path)
        if not 0 <= shortest <= longest < 2**63:
            raise CorruptBufferError(f"{path}: lengths {brief(shortest)} to {brief(longest)} are no range")
        charset = member(value, "charset", str, path)
        return spaces.Text(longest, min_length=shortest, charset=charset)


class OneOfNode(ConvertedNode, of=spaces.OneOf):
    """A value of one of several spaces, as the index of its space and a sequence of none or one item of each."""

    is_shared = False

    @classmethod
    def parts_of(cls, space: Any) -> dict[Key, Space[Any]]:
        return dict(enumerate(space.spaces))

    @classmethod
    def recorded(cls, space: Any, path: str) -> Space[Any]:
        parts: list[Any] = [("index", Structure(np.int64))]
        parts += [(i, spaces.Sequence(child)) for i, child in enumerate(space.spaces)]
        return spaces.Dict(parts)

    def encode(self, value: Any) -> dict[Key, Any]:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise FieldError(
                f"field {self.name!r}: expected a tuple (index, value), got {describe(value)}; pass the index of the "
                "space that the value is of, and the value"
            )
        count = len(self.space.spaces)
        try:
            index = value[0].__index__()
        except (AttributeError, TypeError):
            index = -1
        if not 0 <= index < count:
            raise FieldError(
                f"field {self.name!r}: expected an index from 0 to {count - 1}, got {describe(value[0])}; pass the "
                "index of the space that the value is of"
            )
        return {"index": index, **dict.fromkeys(range(count), ()), index: (value[1],)}

    def decode(self, value: dict[Key, Any]) -> tuple[Any, Any]:
        index = value["index"][()]
        chosen = value.get(int(index), ())
        if len(chosen) != 1:
            raise FieldError(f"unflatten: index {index} of a OneOf has {len(chosen)} values; check the buffer")
        return index, chosen[0]

    @classmethod
    def to_json(cls, space: Any, path: str) -> dict[str, Json]:
        return {"type": "OneOf", "spaces": [to_json(child, f"{path}.{i}") for i, child in enumerate(space.spaces)]}

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, path: str) -> Space[Any]:
        children = reader.read_all(value, path)
        if not children:
            raise CorruptBufferError(f"{path}: OneOf needs at least one space")
        return spaces.OneOf(children)


class GraphNode(ConvertedNode, of=spaces.Graph):
    """A graph, as stacked sequences of nodes, edges and links, and whether there are edges and links at all."""

    @classmethod
    def recorded(cls, space: Any, path: str) -> Space[Any]:
        sequences = {"nodes": space.node_space, "edges": space.edge_space, "edge_links": Structure(np.int32, (2,))}
        parts: list[tuple[str, Space[Any]]] = []
        for key, items in sequences.items():
            if items is not None:
                flag = [] if key == "nodes" else [(f"has_{key}", Structure(np.bool_))]
                parts += [*flag, (key, spaces.Sequence(items, stack=True))]
        return spaces.Dict(parts)

    def encode(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, (tuple, list)) or len(value) != 3:
            raise FieldError(
                f"field {self.name!r}: expected a GraphInstance, got {describe(value)}; pass GraphInstance(nodes, "
                "edges, edge_links)"
            )
        nodes, edges, links = value
        parts = {"nodes": nodes, "has_edge_links": links is not None, "edge_links": () if links is None else links}
        if self.space.edge_space is not None:
            parts |= {"has_edges": edges is not None, "edges": () if edges is None else edges}
        elif edges is not None:
            raise FieldError(
                f"field {self.name!r}: expected a graph whose edges are None, got {describe(edges)}; give the Graph an "
                "edge_space"
            )
        return parts

    def decode(self, value: dict[str, Any]) -> spaces.GraphInstance:
        edges, links = (value[key] if value.get(f"has_{key}") else None for key in ("edges", "edge_links"))
        return spaces.GraphInstance(value["nodes"], edges, links)

    @classmethod
    def to_json(cls, space: spaces.Graph, path: str) -> dict[str, Json]:
        edge = space.edge_space
        return {
            "type": "Graph",
            "node_space": to_json(space.node_space, f"{path}.node_space"),
            "edge_space": None if edge is None else to_json(edge, f"{path}.edge_space"),
        }

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, path: str) -> Space[Any]:
        node = reader.read_batched(member(value, "node_space", dict, path), f"{path}.node_space")
        edge = member(value, "edge_space", (dict, type(None)), path)
        return spaces.Graph(node, None if edge is None else reader.read_batched(edge, f"{path}.edge_space"))

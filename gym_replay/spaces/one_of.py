"""OneOf: values of one of several spaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.schema.fields import describe
from gym_replay.schema.names import Key
from gym_replay.spaces.checked_json import Json, SpaceReader
from gym_replay.spaces.columns import Column, stored_array
from gym_replay.spaces.leaf import LeafMaker, Place, places_of
from gym_replay.spaces.node import SpaceNode, make_node, to_json


class OneOfNode(SpaceNode, of=spaces.OneOf):
    """The index of a value's space, and of each space the values that are of it, as items: one or none in a row."""

    is_shared = False

    def __init__(self, space: Any, place: Place, maker: LeafMaker) -> None:
        self.name, self._space = place.name, space
        self.leaves = [maker.other(place.part("index"), space, np.int64, ragged=place.has_items)]
        places = places_of(place.items(), list(range(len(space.spaces))))
        self._choices = [make_node(child, at, maker) for child, at in zip(space.spaces, places, strict=True)]
        self.leaves += chain.from_iterable(choice.leaves for choice in self._choices)

    def flatten(self, value: Any) -> list[Any]:
        index, chosen = self._chosen(value)
        values: list[Any] = [np.int64(index)]
        for i, choice in enumerate(self._choices):
            values += choice.split((chosen,) if i == index else ())
        return values

    def unflatten(self, values: Iterator[Any]) -> Any:
        index = stored_array(self._space, None, next(values), np.int64, ())
        return self.join(1, chain([index[None]], values))[0]

    def split(self, values: Sequence[Any]) -> list[Column]:
        chosen = [self._chosen(value) for value in values]
        columns: list[Column] = [np.array([index for index, _ in chosen], np.int64)]
        for i, choice in enumerate(self._choices):
            columns += choice.split([value for index, value in chosen if index == i])
        return columns

    def _chosen(self, value: Any) -> tuple[int, Any]:
        """Index and value."""
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise FieldError(
                f"field {self.name!r}: expected a tuple (index, value), got {describe(value)}; pass the index of the "
                "space that the value is of, and the value"
            )
        try:
            index = value[0].__index__()
        except (AttributeError, TypeError):
            index = -1
        if not 0 <= index < len(self._choices):
            raise FieldError(
                f"field {self.name!r}: expected an index from 0 to {len(self._choices) - 1}, got "
                f"{describe(value[0])}; pass the index of the space that the value is of"
            )
        return index, value[1]

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        column = stored_array(self._space, count, next(columns), np.int64, ())
        if (wrong := column[(column < 0) | (column >= len(self._choices))]).size:
            raise FieldError(f"unflatten: index {wrong[0]} is none of {len(self._choices)} spaces; check the buffer")
        joined = [
            iter(choice.join(int(np.count_nonzero(column == i)), columns)) for i, choice in enumerate(self._choices)
        ]
        return [(index, next(joined[index])) for index in column]

    @classmethod
    def to_json(cls, space: Any, place: str) -> dict[str, Json]:
        return {"type": "OneOf", "spaces": [to_json(child, f"{place}.{i}") for i, child in enumerate(space.spaces)]}

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, place: str) -> Space[Any]:
        children = reader.read_all(value, place)
        if not children:
            raise CorruptBufferError(f"{place}: OneOf needs at least one space")
        return spaces.OneOf(children)

    @classmethod
    def json_parts(cls, value: Json) -> dict[Key, Json]:
        return dict(enumerate(value["spaces"]))

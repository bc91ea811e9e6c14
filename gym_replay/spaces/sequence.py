"""Sequence: any number of items, one after another or as a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from gym_replay.schema.names import ITEMS, Key
from gym_replay.spaces.checked_json import Json, SpaceReader, member
from gym_replay.spaces.columns import Column, check_items, read_spans
from gym_replay.spaces.leaf import LeafMaker, Place
from gym_replay.spaces.node import Node, SpaceNode, make_node, parts_of_json, to_json


class Items(Node):
    """Any number of items in a row; of items that are sequences themselves the items of all, and the length of each.

    Args:
        items: what they are, with at least one leaf.
        is_stacked: whether they come as a batch.
        optional: whether there may be None instead, which is stored as no items.
    """

    def __init__(
        self, space: Space[Any], items: Node, is_stacked: bool, place: Place, maker: LeafMaker, optional: bool = False
    ) -> None:
        self.name = place.name
        self._items, self._is_stacked, self._optional = items, is_stacked, optional
        lengths = [maker.other(place.lengths(), space, np.int64)] if place.has_items else []
        self.leaves = [*lengths, *items.leaves]

    def flatten(self, value: Any) -> list[Column]:
        if value is None and self._optional:
            return self._items.split(())
        if self._is_stacked:
            return self._items.split_batch(value)[1]
        return self._items.split(check_items(self.name, value))

    def unflatten(self, values: Iterator[Any]) -> Any:
        columns = [next(values) for _ in self.leaves]
        join = self._items.join_batch if self._is_stacked else self._items.join
        items = join(len(columns[0]), iter(columns))
        return items if self._is_stacked else tuple(items)

    def split(self, values: Sequence[Any]) -> list[Column]:
        if self._is_stacked:
            return self._split_batches(values)
        sequences = [check_items(self.name, value) for value in values]
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        return [lengths, *self._items.split(list(chain.from_iterable(sequences)))]

    def _split_batches(self, batches: Sequence[Any]) -> list[Column]:
        lengths, parts = np.zeros(len(batches), np.int64), []
        for i, batch in enumerate(batches):
            if batch is None and self._optional:
                continue
            count, columns = self._items.split_batch(batch)
            if count:  # an empty list has no dtype of its own to bring
                lengths[i] = count
                parts.append(columns)
        whole = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)] if parts else self._items.split(())
        return [lengths, *whole]

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        lengths, own = next(columns), [next(columns) for _ in self._items.leaves]
        spans = read_spans(count, lengths, own[0])
        items = self._items.join(len(own[0]), iter(own))
        gather = self._items.stack if self._is_stacked else tuple
        return [gather(items[begin:end]) for begin, end in spans]


class _Counted(Node):
    """Items without bytes: a zero is stored for each."""

    def __init__(self, space: Space[Any], items: Node, place: Place, maker: LeafMaker) -> None:
        self.name = place.name
        self._items = items
        self.leaves = [maker.other(place.part(ITEMS), space, np.uint8)]

    def unflatten(self, values: Iterator[Any]) -> Any:
        raise AssertionError("one value is no items")

    def split(self, values: Sequence[Any]) -> list[Column]:
        self._items.split(values)
        return [np.zeros(len(values), np.uint8)]

    def split_batch(self, batch: Any) -> tuple[int | None, list[Column]]:
        count, _ = self._items.split_batch(batch)
        return count, [np.zeros(count or 0, np.uint8)]

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        next(columns)
        return self._items.join(count, columns)

    def join_batch(self, count: int, columns: Iterator[Column]) -> Any:
        next(columns)
        return self._items.join_batch(count, columns)

    def stack(self, items: Sequence[Any]) -> Any:
        return self._items.stack(items)


def counted_items(space: Space[Any], place: Place, maker: LeafMaker) -> Node:
    """The items of a sequence at ``place``, with at least one leaf."""
    at = place.items()
    items = make_node(space, at, maker)
    return items if items.leaves else _Counted(space, items, at, maker)


class SequenceNode(Items, SpaceNode, of=spaces.Sequence):
    """Sequences."""

    def __init__(self, space: Any, place: Place, maker: LeafMaker) -> None:
        super().__init__(space, counted_items(space.feature_space, place, maker), space.stack, place, maker)

    @classmethod
    def to_json(cls, space: Any, place: str) -> dict[str, Json]:
        feature = to_json(space.feature_space, f"{place}.feature_space")
        return {"type": "Sequence", "feature_space": feature, "stack": bool(space.stack)}

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, place: str) -> Space[Any]:
        stack = member(value, "stack", bool, place)
        read = reader.read_batched if stack else reader.read
        feature = read(member(value, "feature_space", dict, place), f"{place}.feature_space")
        return spaces.Sequence(feature, stack=stack)

    @classmethod
    def json_parts(cls, value: Json) -> dict[Key, Json] | tuple[Json, ...] | None:
        return parts_of_json(value["feature_space"]) or None  # the items are where the sequence is

"""Sequence: any number of items, one after another or as a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from gym_replay.errors import FieldError
from gym_replay.schema.fields import describe
from gym_replay.schema.names import ITEMS, Key
from gym_replay.spaces.checked_json import Json, SpaceReader, member
from gym_replay.spaces.leaf import LeafMaker, SpacePath, Structure
from gym_replay.spaces.node import Column, Node, check_items, make_node, standard_node, to_json
from gym_replay.spaces.numbers import NumberNode


class SequenceNode(Node, of=spaces.Sequence):
    """Any number of items in a row; of items that are sequences the items of all, and the length of each."""

    def __init__(self, space: Any, path: SpacePath, maker: LeafMaker) -> None:
        super().__init__(space, path, maker)
        self._is_stacked = space.stack
        at = path.items()
        self._items = make_node(space.feature_space, at, maker)
        # Items without bytes: a zero is stored for each.
        self._own = self._items.leaves or [maker.leaf(at.part(ITEMS), Structure(np.uint8), ragged=True)]
        lengths = [maker.leaf(path.lengths(), Structure(np.int64), ragged=True)] if path.has_items else []
        self.leaves = [*lengths, *self._own]
        self._is_array = self._is_stacked and isinstance(self._items, NumberNode)  # of which a part is an array again

    def _items_of(self, value: Any) -> Any:
        if self._is_array or (self._is_stacked and not (isinstance(value, (tuple, list)) and len(value) == 0)):
            items = self._items.unstack(value)
            return () if items is None else items
        return check_items(self.name, value)

    def _columns(self, items: Sequence[Any]) -> list[Column]:
        return self._items.split(items) or [np.zeros(len(items), np.uint8)]

    def flatten(self, value: Any) -> list[Column]:
        return self._columns(self._items_of(value))

    def unflatten(self, values: Iterator[Any]) -> Any:
        columns = [next(values) for _ in self.leaves]
        join = self._items.join_batch if self._is_stacked else self._items.join
        items = join(len(columns[0]), iter(columns))
        return items if self._is_stacked else tuple(items)

    def split(self, items: Sequence[Any]) -> list[Column]:
        each = [self._items_of(value) for value in items]
        lengths = np.array([len(sequence) for sequence in each], np.int64)
        filled = [sequence for sequence in each if len(sequence)]  # an empty one has no dtype of its own to bring
        inner: Any = np.concatenate(filled) if filled and self._is_array else list(chain.from_iterable(filled))
        return [lengths, *self._columns(inner)]

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        lengths, own = next(columns), [next(columns) for _ in self._own]
        spans = _spans(count, lengths, own[0])
        if self._is_array:
            batch = self._items.join_batch(len(own[0]), iter(own))
            return [batch[begin:end] for begin, end in spans]
        items = self._items.join(len(own[0]), iter(own))
        gather = self._items.stack if self._is_stacked else tuple
        return [gather(items[begin:end]) for begin, end in spans]

    @classmethod
    def parts_of(cls, space: Any) -> dict[Key, Space[Any]] | tuple[Space[Any], ...] | None:
        return standard_node(space.feature_space).parts_of(space.feature_space) or None  # items have the same path

    @classmethod
    def to_json(cls, space: Any, path: str) -> dict[str, Json]:
        feature = to_json(space.feature_space, f"{path}.feature_space")
        return {"type": "Sequence", "feature_space": feature, "stack": bool(space.stack)}

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, path: str) -> Space[Any]:
        stack = member(value, "stack", bool, path)
        read = reader.read_batched if stack else reader.read
        feature = read(member(value, "feature_space", dict, path), f"{path}.feature_space")
        return spaces.Sequence(feature, stack=stack)


def _spans(count: int, lengths: Any, elements: Any) -> list[tuple[int, int]]:
    """Begin and end of the elements of each of ``count`` items among the elements of all."""
    column = np.asarray(lengths)
    if column.shape != (count,) or column.dtype.kind not in "iu" or (count and column.min() < 0):
        raise FieldError(f"unflatten: expected {count} lengths, got {describe(column)}; check the buffer")
    edges = list(accumulate(column.tolist(), initial=0))
    if edges[-1] != len(elements):
        raise FieldError(
            f"unflatten: the lengths sum up to {edges[-1]}, there are {len(elements)} elements; check the buffer"
        )
    return list(pairwise(edges))

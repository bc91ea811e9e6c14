"""Values of a space, one per row: the leaf values of one value, and the value again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from gym_replay.buffer.custom_spaces import SpaceRule, find_rule, recorded_space
from gym_replay.buffer.storage.fields import encode_text
from gym_replay.buffer.storage.names import Key
from gym_replay.errors import FieldError
from gym_replay.wrappers.space_items import (
    Conversion,
    Items,
    counted_items,
    decode_text,
    link_items,
    make_choices,
)
from gym_replay.wrappers.space_leaf import (
    Append,
    Leaf,
    LeafMaker,
    Place,
    Visit,
    check_choice,
    check_graph,
    check_items,
    check_tuple,
    dict_message,
    keyed,
    stored_array,
)


class Row(ABC):
    """One value of one space.

    ``visit`` takes a value and appends its leaf values; it is None where the value is its only leaf's value.
    """

    leaves: list[Leaf]
    visit: Visit | None

    @abstractmethod
    def join(self, values: Iterator[Any]) -> Any:
        """The value of which the next leaf values are."""


def make_row(space: Space[Any], place: Place, maker: LeafMaker) -> Row:
    """The codec for one value of the space.

    Raises:
        UnsupportedSpaceError: the space, or one inside it, cannot be recorded.
    """
    rule = find_rule(space, place.name)
    if rule is not None:
        return _CustomRow(space, rule, place, maker)
    if isinstance(space, spaces.Text):
        return _TextRow(space, place, maker)
    if isinstance(space, spaces.Dict):
        return _DictRow(space, place, maker)
    if isinstance(space, spaces.Tuple):
        return _TupleRow(space, place, maker)
    if isinstance(space, spaces.OneOf):
        return _OneOfRow(space, place, maker)
    if isinstance(space, spaces.Sequence):
        return _SequenceRow(counted_items(space.feature_space, place, maker), space.stack, place)
    if isinstance(space, spaces.Graph):
        return _GraphRow(space, place, maker)
    return _NumberRow(space, place, maker)


class _NumberRow(Row):
    """A value of a Box, Discrete, MultiDiscrete or MultiBinary space."""

    visit = None

    def __init__(self, space: Any, place: Place, maker: LeafMaker) -> None:
        self.leaves = [maker.numbers(place, space)]
        self._space = space
        self._is_discrete = isinstance(space, spaces.Discrete)

    def join(self, values: Iterator[Any]) -> Any:
        space = self._space
        array = stored_array(space, None, next(values), space.dtype, space.shape)
        return array[()] if self._is_discrete else array


class _TextRow(Row):
    """A string: its UTF-8 bytes."""

    def __init__(self, space: Space[Any], place: Place, maker: LeafMaker) -> None:
        self.leaves = [maker.other(place, space, np.uint8)]
        self._name = place.name

    def visit(self, value: Any, append: Append) -> None:
        append(np.frombuffer(encode_text(self._name, value), np.uint8))

    def join(self, values: Iterator[Any]) -> str:
        return decode_text(next(values))


class _DictRow(Row):
    def __init__(self, space: spaces.Dict, place: Place, maker: LeafMaker) -> None:
        parts = keyed(place, list(space.spaces.items()))
        self._parts = {key: make_row(child, at, maker) for key, at, child in parts}
        self.leaves = list(chain.from_iterable(part.leaves for part in self._parts.values()))
        self.visit = _dict_visitor(place.name, [(key, part.visit) for key, part in self._parts.items()])

    def join(self, values: Iterator[Any]) -> dict[Any, Any]:
        return {key: part.join(values) for key, part in self._parts.items()}


def _dict_visitor(name: str, visitors: list[tuple[Key, Visit | None]]) -> Visit:
    count = len(visitors)
    keys = [key for key, _ in visitors]

    def visit_dict(value: Any, append: Append) -> None:
        if type(value) is not dict:
            if not isinstance(value, Mapping):
                raise FieldError(dict_message(name, keys, value))
            value = dict(value)  # a defaultdict would make up the keys that it lacks
        if len(value) != count:
            raise FieldError(dict_message(name, keys, value))
        for key, visit in visitors:
            try:
                part = value[key]
            except KeyError:
                raise FieldError(dict_message(name, keys, value)) from None
            if visit is None:
                append(part)
            else:
                visit(part, append)

    return visit_dict


class _TupleRow(Row):
    def __init__(self, space: Any, place: Place, maker: LeafMaker) -> None:
        self._parts = [make_row(child, at, maker) for _, at, child in keyed(place, list(enumerate(space.spaces)))]
        self.leaves = list(chain.from_iterable(part.leaves for part in self._parts))
        self.visit = _tuple_visitor(place.name, [part.visit for part in self._parts])

    def join(self, values: Iterator[Any]) -> tuple[Any, ...]:
        return tuple([part.join(values) for part in self._parts])


def _tuple_visitor(name: str, visitors: Sequence[Visit | None]) -> Visit:
    count = len(visitors)

    def visit_tuple(value: Any, append: Append) -> None:
        if type(value) is not tuple or len(value) != count:
            value = check_tuple(name, count, value)
        for part, visit in zip(value, visitors, strict=True):
            if visit is None:
                append(part)
            else:
                visit(part, append)

    return visit_tuple


class _OneOfRow(Row):
    """A value of one of several spaces: the index of its space; each space has one item or none."""

    def __init__(self, space: Any, place: Place, maker: LeafMaker) -> None:
        self._space, self._name = space, place.name
        self.leaves = [maker.other(place.part("index"), space, np.int64, ragged=False)]
        self._choices = make_choices(space, place, maker)
        self.leaves += chain.from_iterable(choice.leaves for choice in self._choices)

    def visit(self, value: Any, append: Append) -> None:
        index, chosen = check_choice(self._name, len(self._choices), value)
        append(np.int64(index))
        for i, choice in enumerate(self._choices):
            choice.split([chosen] if i == index else (), append)

    def join(self, values: Iterator[Any]) -> tuple[Any, Any]:
        index = stored_array(self._space, None, next(values), np.int64, ())[()]
        if not 0 <= index < len(self._choices):
            raise FieldError(f"unflatten: index {index} is none of {len(self._choices)} spaces; check the buffer")
        items = [item for i, choice in enumerate(self._choices) for item in choice.join(int(i == index), values)]
        return index, items[0]


class _SequenceRow(Row):
    """Any number of items.

    Args:
        items: the codec for the items, with at least one leaf.
        is_stacked: whether they come as a batch.
    """

    def __init__(self, items: Items, is_stacked: bool, place: Place) -> None:
        self._items, self._is_stacked, self._name = items, is_stacked, place.name
        self.leaves = items.leaves

    def visit(self, value: Any, append: Append) -> None:
        if self._is_stacked:
            self._items.split_batch(value, append)
        else:
            self._items.split(check_items(self._name, value), append)

    def visit_optional(self, value: Any, append: Append) -> None:
        """:meth:`visit`, and None as no items."""
        if value is None:
            self._items.split((), append)
        else:
            self.visit(value, append)

    def join(self, values: Iterator[Any]) -> Any:
        columns = [next(values) for _ in self.leaves]
        count = len(columns[0])
        if self._is_stacked:
            return self._items.join_batch(count, iter(columns))
        return tuple(self._items.join(count, iter(columns)))


class _GraphRow(Row):
    """One graph: its nodes, edges and links, and whether it has edges and links at all."""

    def __init__(self, space: spaces.Graph, place: Place, maker: LeafMaker) -> None:
        self._name = place.name

        def batch(part: str, child: Space[Any]) -> _SequenceRow:
            return _SequenceRow(counted_items(child, place.part(part), maker), True, place.part(part))

        def flag(part: str) -> Leaf:
            return maker.other(place.part(part), space, np.bool_, ragged=False)

        self._nodes = batch("nodes", space.node_space)
        self.leaves = [*self._nodes.leaves]
        self._edges = None
        if space.edge_space is not None:
            self._edges = batch("edges", space.edge_space)
            self.leaves += [flag("has_edges"), *self._edges.leaves]
        at = place.part("edge_links")
        self._links = _SequenceRow(link_items(space, at, maker), True, at)
        self.leaves += [flag("has_edge_links"), *self._links.leaves]

    def visit(self, value: Any, append: Append) -> None:
        nodes, edges, links = check_graph(self._name, self._edges is not None, value)
        self._nodes.visit(nodes, append)
        if self._edges is not None:
            append(edges is not None)
            self._edges.visit_optional(edges, append)
        append(links is not None)
        self._links.visit_optional(links, append)

    def join(self, values: Iterator[Any]) -> spaces.GraphInstance:
        nodes = self._nodes.join(values)
        edges = None if self._edges is None else _join_optional(self._edges, values)
        return spaces.GraphInstance(nodes, edges, _join_optional(self._links, values))


def _join_optional(row: Row, values: Iterator[Any]) -> Any:
    is_there = bool(next(values))
    value = row.join(values)
    return value if is_there else None


class _CustomRow(Row):
    """A value of a space of one's own, as a value of the standard space that it is recorded as."""

    def __init__(self, space: Space[Any], rule: SpaceRule, place: Place, maker: LeafMaker) -> None:
        self._row = make_row(recorded_space(space, rule, place.name), place, maker)
        self._conversion = Conversion(space, rule, place.name)
        self.leaves = self._row.leaves
        self.visit = _custom_visitor(self._row.visit, self._conversion) if self._conversion.encodes else self._row.visit

    def join(self, values: Iterator[Any]) -> Any:
        return self._conversion.decode(self._row.join(values))


def _custom_visitor(visit: Visit | None, conversion: Conversion) -> Visit:
    def visit_custom(value: Any, append: Append) -> None:
        encoded = conversion.encode(value)
        if visit is None:
            append(encoded)
        else:
            visit(encoded, append)

    return visit_custom

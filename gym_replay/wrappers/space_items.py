"""Values of a space, many at once: the items of a sequence as one column per leaf, and the items again.

A column is an array with one element for every item; of a space whose values differ in size, the elements of all items
lie one after another, and a column of lengths tells how many each item has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from gym_replay.buffer.custom_spaces import SpaceRule, find_rule, recorded_space, standard_base
from gym_replay.buffer.storage.fields import Field, describe, encode_text, fit, to_array
from gym_replay.buffer.storage.names import ITEMS
from gym_replay.errors import FieldError
from gym_replay.wrappers.space_leaf import (
    Append,
    Column,
    Leaf,
    LeafMaker,
    Place,
    check_choice,
    check_dict,
    check_graph,
    check_items,
    check_tuple,
    keyed,
    stored_array,
)

LINK = np.dtype(np.int32)
"""What Gymnasium numbers the two nodes of an edge with."""


class Items(ABC):
    """Any number of values of one space.

    The first leaf, where there is one, has exactly one element per item. A batch is what Gymnasium makes of several
    values, as in a stacked Sequence: an array with one more axis, a dict or a tuple of batches, or a tuple of values.
    """

    name: str
    leaves: list[Leaf]

    @abstractmethod
    def split(self, values: Sequence[Any], append: Append) -> None:
        """Append one column per leaf."""

    def split_batch(self, batch: Any, append: Append) -> int | None:
        """:meth:`split` for a batch; how many items are in it, or None where it does not show."""
        values = check_items(self.name, batch)
        self.split(values, append)
        return len(values)

    @abstractmethod
    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        """The ``count`` items of which the next columns are."""

    def join_batch(self, count: int, columns: Iterator[Column]) -> Any:
        """:meth:`join` as a batch."""
        return self.stack(self.join(count, columns))

    def stack(self, items: Sequence[Any]) -> Any:
        """The batch of these items."""
        return tuple(items)


def make_items(space: Space[Any], place: Place, maker: LeafMaker) -> Items:
    """The codec for items of the space.

    Raises:
        UnsupportedSpaceError: the space, or one inside it, cannot be recorded.
    """
    rule = find_rule(space, place.name)
    if rule is not None:
        return _CustomItems(space, rule, place, maker)
    if isinstance(space, spaces.Text):
        return _TextItems(space, place, maker)
    if isinstance(space, spaces.Dict):
        return _DictItems(space, place, maker)
    if isinstance(space, spaces.Tuple):
        return _TupleItems(space, place, maker)
    if isinstance(space, spaces.OneOf):
        return _OneOfItems(space, place, maker)
    if isinstance(space, spaces.Sequence):
        return _SequenceItems(
            space, counted_items(space.feature_space, place.items(), maker), space.stack, place, maker
        )
    if isinstance(space, spaces.Graph):
        return _GraphItems(space, place, maker)
    return _NumberItems(space, place, maker)


def counted_items(space: Space[Any], place: Place, maker: LeafMaker) -> Items:
    """The codec for items of the space, with at least one leaf."""
    items = make_items(space, place, maker)
    return items if items.leaves else _CountedItems(space, items, place, maker)


class ElementItems(Items):
    """Items that are arrays of one dtype and shape.

    Args:
        space: the space of the items, or of what they are part of.
        place: where they are.
        leaf: their field; None where an item has no bytes.
    """

    def __init__(
        self, space: Space[Any], place: Place, leaf: Leaf | None, dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> None:
        self.name = place.name
        self.leaves = [] if leaf is None else [leaf]
        self._space, self._dtype, self._shape = space, dtype, shape

    def split(self, values: Sequence[Any], append: Append) -> None:
        column = self._column(values)
        if self.leaves:
            append(column)

    def _column(self, values: Sequence[Any]) -> Column:
        count = len(values)
        if count == 0 and not (isinstance(values, np.ndarray) and values.ndim > 1):
            return np.empty((0, *self._shape), self._dtype)
        try:
            column = to_array(values, self.name)
        except FieldError:
            column = None
        if column is None or column.shape != (count, *self._shape):
            if count == 0:
                raise FieldError(self._empty_message(values))
            column = np.stack([self._element(value) for value in values])
        return column

    def _empty_message(self, values: Any) -> str:
        expected = (0, *self._shape)
        return f"field {self.name!r}: expected shape {expected}, got {values.shape}; reshape it, or pass ()"

    def _element(self, value: Any) -> Column:
        """One item of its own; the message of one that does not fit is about it alone."""
        array = to_array(value, self.name)
        return fit(self.name, array, Field(array.dtype, self._shape))

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        column = self.join_batch(count, columns)
        return list(column) if self._shape else [column[i, ...] for i in range(count)]

    def join_batch(self, count: int, columns: Iterator[Column]) -> Column:
        if not self.leaves:
            return np.empty((count, *self._shape), self._dtype)
        return stored_array(self._space, count, next(columns), self._dtype, self._shape)

    def stack(self, items: Sequence[Any]) -> Column:
        return np.array(items, self._dtype).reshape(len(items), *self._shape)


class _NumberItems(ElementItems):
    """Items of a Box, Discrete, MultiDiscrete or MultiBinary space."""

    def __init__(self, space: Any, place: Place, maker: LeafMaker) -> None:
        leaf = maker.numbers(place, space, ragged=0 not in space.shape)
        super().__init__(space, place, leaf if leaf.field.ragged else None, space.dtype, space.shape)
        self._is_discrete = isinstance(space, spaces.Discrete)

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        return list(self.join_batch(count, columns)) if self._is_discrete else super().join(count, columns)


class _TextItems(Items):
    """Strings: the number of bytes of each, and the UTF-8 bytes of all."""

    def __init__(self, space: Space[Any], place: Place, maker: LeafMaker) -> None:
        self.name = place.name
        self.leaves = [maker.other(place.lengths(), space, np.int64), maker.other(place, space, np.uint8)]

    def split(self, values: Sequence[Any], append: Append) -> None:
        encoded = [encode_text(self.name, value) for value in values]
        append(np.array([len(text) for text in encoded], np.int64))
        append(np.frombuffer(b"".join(encoded), np.uint8))

    def join(self, count: int, columns: Iterator[Column]) -> list[str]:
        spans = read_spans(count, next(columns))
        data = np.asarray(next(columns), np.uint8)
        check_total(spans, len(data))
        return [decode_text(data[begin:end]) for begin, end in spans]


def decode_text(data: Column) -> str:
    """The string of these UTF-8 bytes."""
    try:
        return np.asarray(data, np.uint8).tobytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise FieldError(f"unflatten: a string is damaged ({error}); check the buffer") from None


def read_spans(count: int, lengths: Any) -> list[tuple[int, int]]:
    """Begin and end of the elements of each item."""
    column = np.asarray(lengths)
    if column.shape != (count,) or column.dtype.kind not in "iu" or (count and column.min() < 0):
        raise FieldError(f"unflatten: expected {count} lengths, got {describe(column)}; check the buffer")
    return list(pairwise(accumulate(column.tolist(), initial=0)))


def check_total(spans: list[tuple[int, int]], count: int) -> None:
    total = spans[-1][1] if spans else 0
    if total != count:
        raise FieldError(f"unflatten: the lengths sum up to {total}, there are {count} elements; check the buffer")


class _DictItems(Items):
    def __init__(self, space: spaces.Dict, place: Place, maker: LeafMaker) -> None:
        self.name = place.name
        parts = keyed(place, list(space.spaces.items()))
        self._parts = {key: make_items(child, at, maker) for key, at, child in parts}
        self._keys = list(self._parts)
        self.leaves = list(chain.from_iterable(part.leaves for part in self._parts.values()))

    def split(self, values: Sequence[Any], append: Append) -> None:
        dicts = [check_dict(self.name, self._keys, value) for value in values]
        for key, part in self._parts.items():
            part.split([value[key] for value in dicts], append)

    def split_batch(self, batch: Any, append: Append) -> int | None:
        batch = check_dict(self.name, self._keys, batch)
        return same_count(self.name, [part.split_batch(batch[key], append) for key, part in self._parts.items()])

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        joined = [part.join(count, columns) for part in self._parts.values()]
        return [dict(zip(self._keys, [values[i] for values in joined], strict=True)) for i in range(count)]

    def join_batch(self, count: int, columns: Iterator[Column]) -> Any:
        return {key: part.join_batch(count, columns) for key, part in self._parts.items()}

    def stack(self, items: Sequence[Any]) -> Any:
        return {key: part.stack([item[key] for item in items]) for key, part in self._parts.items()}


def same_count(name: str, counts: Sequence[int | None]) -> int | None:
    """How many items there are in a batch, whose parts have as many each; None where none of them tells."""
    known = sorted({count for count in counts if count is not None})
    if len(known) > 1:
        raise FieldError(f"field {name!r}: expected as many items in each part, got {known}; stack all items")
    return known[0] if known else None


class _TupleItems(Items):
    def __init__(self, space: Any, place: Place, maker: LeafMaker) -> None:
        self.name = place.name
        self._parts = [make_items(child, at, maker) for _, at, child in keyed(place, list(enumerate(space.spaces)))]
        self.leaves = list(chain.from_iterable(part.leaves for part in self._parts))

    def split(self, values: Sequence[Any], append: Append) -> None:
        tuples = [check_tuple(self.name, len(self._parts), value) for value in values]
        for i, part in enumerate(self._parts):
            part.split([value[i] for value in tuples], append)

    def split_batch(self, batch: Any, append: Append) -> int | None:
        batch = check_tuple(self.name, len(self._parts), batch)
        return same_count(self.name, [part.split_batch(batch[i], append) for i, part in enumerate(self._parts)])

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        joined = [part.join(count, columns) for part in self._parts]
        return [tuple([values[i] for values in joined]) for i in range(count)]

    def join_batch(self, count: int, columns: Iterator[Column]) -> Any:
        return tuple([part.join_batch(count, columns) for part in self._parts])

    def stack(self, items: Sequence[Any]) -> Any:
        return tuple([part.stack([item[i] for item in items]) for i, part in enumerate(self._parts)])


class _OneOfItems(Items):
    """Values of one of several spaces: the index of each one's space, and the values of each space."""

    def __init__(self, space: Any, place: Place, maker: LeafMaker) -> None:
        self.name = place.name
        self.leaves = [maker.other(place.part("index"), space, np.int64)]
        self._choices = make_choices(space, place, maker)
        self.leaves += chain.from_iterable(choice.leaves for choice in self._choices)

    def split(self, values: Sequence[Any], append: Append) -> None:
        chosen = [check_choice(self.name, len(self._choices), value) for value in values]
        append(np.array([index for index, _ in chosen], np.int64))
        for i, choice in enumerate(self._choices):
            choice.split([value for index, value in chosen if index == i], append)

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        column = np.asarray(next(columns), np.int64)
        if column.shape != (count,) or not all(0 <= index < len(self._choices) for index in column):
            raise FieldError(
                f"unflatten: expected {count} indices below {len(self._choices)}, got {describe(column)}; check the "
                "buffer"
            )
        joined = [
            iter(choice.join(int(np.count_nonzero(column == i)), columns)) for i, choice in enumerate(self._choices)
        ]
        return [(index, next(joined[index])) for index in column]


def make_choices(space: Any, place: Place, maker: LeafMaker) -> list[Items]:
    """The codecs for the items of each space of a OneOf space."""
    return [make_items(child, at, maker) for _, at, child in keyed(place, list(enumerate(space.spaces)))]


class _SequenceItems(Items):
    """Sequences: the length of each, and the items of all.

    Args:
        items: the codec for the items of one sequence, with at least one leaf.
        optional: whether None is taken as well, as an empty sequence.
    """

    def __init__(
        self,
        space: Space[Any],
        items: Items,
        is_stacked: bool,
        place: Place,
        maker: LeafMaker,
        *,
        optional: bool = False,
    ) -> None:
        self.name = place.name
        self._items, self._is_stacked, self._optional = items, is_stacked, optional
        self.leaves = [maker.other(place.lengths(), space, np.int64), *items.leaves]

    def split(self, values: Sequence[Any], append: Append) -> None:
        if self._is_stacked:
            self._split_batches(values, append)
            return
        sequences = [check_items(self.name, value) for value in values]
        append(np.array([len(sequence) for sequence in sequences], np.int64))
        self._items.split(list(chain.from_iterable(sequences)), append)

    def _split_batches(self, batches: Sequence[Any], append: Append) -> None:
        lengths, parts = np.zeros(len(batches), np.int64), []
        for i, batch in enumerate(batches):
            if batch is None and self._optional:
                continue
            columns: list[Column] = []
            lengths[i] = self._items.split_batch(batch, columns.append) or 0
            if lengths[i]:  # an empty list has no dtype of its own to bring
                parts.append(columns)
        append(lengths)
        if parts:
            for pieces in zip(*parts, strict=True):
                append(np.concatenate(pieces))
        else:
            self._items.split((), append)

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        spans = read_spans(count, next(columns))
        own = [next(columns) for _ in self._items.leaves]
        check_total(spans, len(own[0]))
        items = self._items.join(len(own[0]), iter(own))
        gather = self._items.stack if self._is_stacked else tuple
        return [gather(items[begin:end]) for begin, end in spans]


class _CountedItems(Items):
    """Items that leave nothing behind but their number."""

    def __init__(self, space: Space[Any], items: Items, place: Place, maker: LeafMaker) -> None:
        self.name = place.name
        self._items = items
        self.leaves = [maker.other(place.part(ITEMS), space, np.uint8)]

    def split(self, values: Sequence[Any], append: Append) -> None:
        self._items.split(values, append)
        append(np.zeros(len(values), np.uint8))

    def split_batch(self, batch: Any, append: Append) -> int | None:
        count = self._items.split_batch(batch, append)
        append(np.zeros(count or 0, np.uint8))
        return count

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        next(columns)
        return self._items.join(count, columns)

    def join_batch(self, count: int, columns: Iterator[Column]) -> Any:
        next(columns)
        return self._items.join_batch(count, columns)

    def stack(self, items: Sequence[Any]) -> Any:
        return self._items.stack(items)


def link_items(space: spaces.Graph, place: Place, maker: LeafMaker) -> Items:
    """The codec for the edge links of one graph."""
    return ElementItems(space, place, maker.other(place, space, LINK, (2,)), LINK, (2,))


class _GraphItems(Items):
    """Graphs: the nodes, the edges and the links of all, and which of the graphs have edges and links."""

    def __init__(self, space: spaces.Graph, place: Place, maker: LeafMaker) -> None:
        self.name = place.name

        def batches(part: str, items: Items, optional: bool) -> Items:
            return _SequenceItems(space, items, True, place.part(part), maker, optional=optional)

        def inner(part: str, child: Space[Any]) -> Items:
            return counted_items(child, place.part(part).items(), maker)

        def flags(part: str) -> Items:
            at = place.part(part)
            return ElementItems(space, at, maker.other(at, space, np.bool_), np.dtype(np.bool_), ())

        self._nodes = batches("nodes", inner("nodes", space.node_space), False)
        self._has_edges = self._edges = None
        if space.edge_space is not None:
            self._has_edges = flags("has_edges")
            self._edges = batches("edges", inner("edges", space.edge_space), True)
        self._has_links = flags("has_edge_links")
        self._links = batches("edge_links", link_items(space, place.part("edge_links").items(), maker), True)
        parts = (self._nodes, self._has_edges, self._edges, self._has_links, self._links)
        self.leaves = list(chain.from_iterable(part.leaves for part in parts if part is not None))

    def split(self, values: Sequence[Any], append: Append) -> None:
        graphs = [check_graph(self.name, self._edges is not None, value) for value in values]
        self._nodes.split([nodes for nodes, _, _ in graphs], append)
        if self._has_edges is not None and self._edges is not None:
            self._has_edges.split([edges is not None for _, edges, _ in graphs], append)
            self._edges.split([edges for _, edges, _ in graphs], append)
        self._has_links.split([links is not None for _, _, links in graphs], append)
        self._links.split([links for _, _, links in graphs], append)

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        nodes = self._nodes.join(count, columns)
        edges: list[Any] = [None] * count
        if self._has_edges is not None and self._edges is not None:
            edges = _where(self._has_edges.join(count, columns), self._edges.join(count, columns))
        links = _where(self._has_links.join(count, columns), self._links.join(count, columns))
        return [spaces.GraphInstance(*parts) for parts in zip(nodes, edges, links, strict=True)]


def _where(flags: list[Any], values: list[Any]) -> list[Any]:
    return [value if flag else None for flag, value in zip(flags, values, strict=True)]


class Conversion:
    """Values of a space of one's own, to values of the standard space that they are recorded as, and back."""

    def __init__(self, space: Space[Any], rule: SpaceRule, name: str) -> None:
        self.space, self.name = space, name
        self.encodes = rule.encode is not None
        self._rule = rule

    def encode(self, value: Any) -> Any:
        if self._rule.encode is None:
            return value
        try:
            return self._rule.encode(self.space, value)
        except Exception as error:
            raise FieldError(
                f"field {self.name!r}: expected a value of {type(self.space).__name__}, got {describe(value)}; encode, "
                f"registered for it, raised {type(error).__name__}: {error}"
            ) from error

    def decode(self, value: Any) -> Any:
        return value if self._rule.decode is None else self._rule.decode(self.space, value)


class _CustomItems(Items):
    """Items of a space of one's own. Batches are the standard base's if it has one, and tuples if it has none."""

    def __init__(self, space: Space[Any], rule: SpaceRule, place: Place, maker: LeafMaker) -> None:
        self.name = place.name
        self._space = space
        self._conversion = Conversion(space, rule, place.name)
        self._items = make_items(recorded_space(space, rule, place.name), place, maker)
        self._has_base = standard_base(space) is not None
        self.leaves = self._items.leaves

    def split(self, values: Sequence[Any], append: Append) -> None:
        encode = self._conversion.encode
        self._items.split([encode(value) for value in values] if self._conversion.encodes else values, append)

    def split_batch(self, batch: Any, append: Append) -> int | None:
        if self._has_base:
            batch = list(iterate(batch_space(self._space, 1), batch))
        return super().split_batch(batch, append)

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        items = self._items.join(count, columns)
        return [self._conversion.decode(item) for item in items]

    def stack(self, items: Sequence[Any]) -> Any:
        if not self._has_base:
            return tuple(items)
        out: Any = create_empty_array(self._space, len(items))
        return concatenate(self._space, items, out)

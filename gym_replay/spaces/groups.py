"""Dict and Tuple: values made of parts, which have fields of their own."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np
from gymnasium import Space, spaces

from gym_replay.errors import CorruptBufferError, FieldError, UnsupportedSpaceError
from gym_replay.schema.fields import describe
from gym_replay.schema.names import Key, encode_key, encode_siblings, key_from_json, key_to_json
from gym_replay.spaces.checked_json import Json, SpaceReader, brief, member
from gym_replay.spaces.columns import Column
from gym_replay.spaces.leaf import LeafMaker, Place, places_of
from gym_replay.spaces.node import Flatten, Node, SpaceNode, make_node, to_json


class PartsNode(SpaceNode):
    """Values made of parts.

    Args:
        parts: their nodes, by key or index.

    Attributes:
        apart: gives the parts of a value in their order.
    """

    apart: Callable[[Any], Sequence[Any]]

    def _set_parts(self, name: str, parts: dict[Key, Node]) -> None:
        self.name, self.parts = name, parts
        self.leaves = list(chain.from_iterable(part.leaves for part in parts.values()))
        self.flatten = flattener_of(self.apart, [part.flatten for part in parts.values()])

    @staticmethod
    @abstractmethod
    def value_of(parts: dict[Key, Any]) -> Any:
        """The value with these parts."""

    def unflatten(self, values: Iterator[Any]) -> Any:
        return self.value_of({key: part.unflatten(values) for key, part in self.parts.items()})

    def split(self, values: Sequence[Any]) -> list[Column]:
        rows = [self.apart(value) for value in values]
        columns: list[Column] = []
        for i, part in enumerate(self.parts.values()):
            columns += part.split([row[i] for row in rows])
        return columns

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        joined = {key: part.join(count, columns) for key, part in self.parts.items()}
        return [self.value_of({key: items[i] for key, items in joined.items()}) for i in range(count)]


def flattener_of(apart: Flatten, flatteners: Sequence[Flatten | None]) -> Flatten:
    """``flatten`` of values that ``apart`` makes parts of, one for each of the flatteners."""
    if not any(flatteners):
        return apart

    def flatten(value: Any) -> list[Any]:
        values: list[Any] = []
        for part, flatten in zip(apart(value), flatteners):  # noqa: B905  # apart counts, and strict takes time
            if flatten is None:
                values.append(part)
            else:
                values += flatten(part)
        return values

    return flatten


class GroupNode(PartsNode):
    """A value of a Dict or Tuple space; a batch of them has a batch of each part."""

    is_keyed: ClassVar[bool] = False
    """Whether parts have keys that stay the same where one of them is left out."""

    def __init__(self, space: Any, place: Place, maker: LeafMaker) -> None:
        parts = self.placed_parts(space, place)
        self.apart = self.make_apart(place.name, [key for key, _, _ in parts])
        self._set_parts(place.name, {key: make_node(child, at, maker) for key, at, child in parts})

    @classmethod
    def placed_parts(cls, space: Any, place: Place) -> list[tuple[Key, Place, Space[Any]]]:
        """The parts of the space with their keys and places.

        Raises:
            UnsupportedSpaceError: one of the keys cannot be kept.
        """
        parts = cls.parts_of(space)
        return list(zip(parts, places_of(place, list(parts)), parts.values(), strict=True))

    @staticmethod
    @abstractmethod
    def make_apart(name: str, keys: list[Key]) -> Flatten:
        """A function that gives the parts of a value, and raises FieldError where they are not these."""

    @staticmethod
    @abstractmethod
    def space_of(parts: dict[Key, Space[Any]]) -> Space[Any]:
        """The space with these parts."""

    def batch_flattener(self, batched: Space[Any], count: int) -> Flatten:
        if not isinstance(batched, self.standard):
            return super().batch_flattener(batched, count)
        wide = self.parts_of(batched)
        flatteners = [part.batch_flattener(wide[key], count) for key, part in self.parts.items()]
        return flattener_of(self.apart, flatteners)

    def split_batch(self, batch: Any) -> tuple[int | None, list[Column]]:
        parts = zip(self.parts.values(), self.apart(batch), strict=True)
        split = [part.split_batch(values) for part, values in parts]
        known = sorted({count for count, _ in split if count is not None})
        if len(known) > 1:
            raise FieldError(f"field {self.name!r}: expected as many items in each part, got {known}; stack all items")
        return (known[0] if known else None), [column for _, columns in split for column in columns]

    def join_batch(self, count: int, columns: Iterator[Column]) -> Any:
        return self.value_of({key: part.join_batch(count, columns) for key, part in self.parts.items()})

    def stack(self, items: Sequence[Any]) -> Any:
        return self.value_of({key: part.stack([item[key] for item in items]) for key, part in self.parts.items()})


class DictNode(GroupNode, of=spaces.Dict):
    """Dicts, with the keys of the space in its order."""

    is_keyed = True

    @classmethod
    def parts_of(cls, space: spaces.Dict) -> dict[Key, Space[Any]]:
        return dict(space.spaces)

    @staticmethod
    def space_of(parts: dict[Key, Space[Any]]) -> Space[Any]:
        return spaces.Dict(list(parts.items()))  # a list: a mapping would be sorted

    @staticmethod
    def value_of(parts: dict[Key, Any]) -> Any:
        return parts

    @staticmethod
    def make_apart(name: str, keys: list[Key]) -> Flatten:
        count = len(keys)
        get = itemgetter(*keys) if count > 1 else lambda value: tuple([value[key] for key in keys])

        def apart(value: Any) -> Any:
            if type(value) is not dict:
                if not isinstance(value, Mapping):
                    raise FieldError(_dict_message(name, keys, value))
                value = dict(value)  # a defaultdict would make up the keys that it lacks
            if len(value) == count:
                try:
                    return get(value)
                except KeyError:
                    pass
            raise FieldError(_dict_message(name, keys, value))

        return apart

    @classmethod
    def to_json(cls, space: spaces.Dict, place: str) -> dict[str, Json]:
        keys = [_key_to_json(key, place) for key in space.spaces]
        names = encode_siblings(space.spaces)
        children = [to_json(child, f"{place}.{name}") for name, child in zip(names, space.spaces.values(), strict=True)]
        return {"type": "Dict", "items": [list(item) for item in zip(keys, children, strict=True)]}

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, place: str) -> Space[Any]:
        children: dict[Any, Space[Any]] = {}
        for item in member(value, "items", list, place):
            if not isinstance(item, list) or len(item) != 2:
                raise CorruptBufferError(f"{place}: expected [key, space], got {brief(item)}")
            try:
                key = key_from_json(item[0])
            except FieldError:
                raise CorruptBufferError(f"{place}: {brief(item[0])} is no key") from None
            if key in children:
                raise CorruptBufferError(f"{place}: key {brief(key)} comes twice")
            children[key] = reader.read(item[1], f"{place}.{encode_key(key)}")
        return cls.space_of(children)

    @classmethod
    def json_parts(cls, value: Json) -> dict[Key, Json]:
        return {key_from_json(key): child for key, child in value["items"]}


def _key_to_json(key: Key, place: str) -> Json:
    try:
        stored = key_to_json(key)
        back = key_from_json(json.loads(json.dumps(stored)))
    except ValueError as error:
        raise UnsupportedSpaceError(f"{place}: {error}") from None
    if back != key or hash(back) != hash(key):  # NaN, members of an enum
        raise UnsupportedSpaceError(f"{place}: key {key!r} ({type(key).__name__}) cannot be found again by value")
    return stored


def _dict_message(name: str, keys: Sequence[Key], value: Any) -> str:
    """What is wrong with a value of a Dict space with these keys."""
    expected = list(keys)
    if not isinstance(value, Mapping):
        return f"field {name!r}: expected a dict with keys {expected}, got {describe(value)}; pass one value per key"
    missing = [key for key in expected if key not in value]
    extra = [key for key in value if key not in expected]
    faults = [f"{fault} {keys}" for fault, keys in (("missing", missing), ("unknown", extra)) if keys]
    return (
        f"field {name!r}: expected a dict with keys {expected}, got {' and '.join(faults)}; give every key of the "
        "space and no other, or correct the space"
    )


class TupleNode(GroupNode, of=spaces.Tuple):
    """Tuples."""

    @classmethod
    def parts_of(cls, space: Any) -> dict[Key, Space[Any]]:
        return dict(enumerate(space.spaces))

    @staticmethod
    def space_of(parts: dict[Key, Space[Any]]) -> Space[Any]:
        return spaces.Tuple(list(parts.values()))

    @staticmethod
    def value_of(parts: dict[Key, Any]) -> Any:
        return tuple(parts.values())

    @staticmethod
    def make_apart(name: str, keys: list[Key]) -> Flatten:
        count = len(keys)

        def apart(value: Any) -> Any:
            if not isinstance(value, (tuple, list)):
                is_array = isinstance(value, np.ndarray) or hasattr(value, "detach")
                if not is_array or value.ndim == 0:
                    raise FieldError(
                        f"field {name!r}: expected a tuple of {count}, got {describe(value)}; pass one value per part"
                    )
            if len(value) != count:
                raise FieldError(
                    f"field {name!r}: expected a tuple of {count}, got {len(value)} values; pass one value per part"
                )
            return value

        return apart

    @classmethod
    def to_json(cls, space: Any, place: str) -> dict[str, Json]:
        return {"type": "Tuple", "spaces": [to_json(child, f"{place}.{i}") for i, child in enumerate(space.spaces)]}

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, place: str) -> Space[Any]:
        return spaces.Tuple(reader.read_all(value, place))

    @classmethod
    def json_parts(cls, value: Json) -> tuple[Json, ...]:
        return tuple(value["spaces"])

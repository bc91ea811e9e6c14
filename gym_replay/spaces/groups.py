"""Dict and Tuple: values made of parts, which have fields of their own."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np
from gymnasium import Space, spaces

from gym_replay.errors import CorruptBufferError, FieldError, UnsupportedSpaceError
from gym_replay.schema.fields import describe
from gym_replay.schema.names import Key, encode_key, encode_siblings, key_from_json, key_to_json
from gym_replay.spaces.checked_json import Json, SpaceReader, brief, member
from gym_replay.spaces.leaf import LeafMaker, SpacePath
from gym_replay.spaces.node import Column, Node, make_node, to_json
from gym_replay.spaces.numbers import NumberNode


class GroupNode(Node):
    """Values made of parts; a batch of them has a batch of each part.

    Attributes:
        parts: the trees of the parts, by key or index.
        is_keyed: whether parts have keys that stay the same where one of them is left out.
    """

    is_keyed: ClassVar[bool] = False

    def __init__(self, space: Any, path: SpacePath, maker: LeafMaker) -> None:
        super().__init__(space, path, maker)
        self.parts = {key: make_node(child, at, maker) for key, at, child in self.parts_with_paths(space, path)}
        self.leaves = [leaf for part in self.parts.values() for leaf in part.leaves]
        if all(isinstance(part, NumberNode) for part in self.parts.values()):  # no call for each part
            self.flatten = self.values_of  # type: ignore[method-assign]

    @classmethod
    def parts_with_paths(cls, space: Any, path: SpacePath) -> list[tuple[Key, SpacePath, Space[Any]]]:
        """The parts of the space with their keys and paths.

        Raises:
            UnsupportedSpaceError: one of the keys cannot be kept.
        """
        parts = cls.parts_of(space)
        keyed = parts if isinstance(parts, dict) else dict(enumerate(parts or ()))
        return list(zip(keyed, path.parts(keyed), keyed.values(), strict=True))

    @abstractmethod
    def values_of(self, value: Any) -> Sequence[Any]:
        """The values of the parts of a value, in the order of the parts.

        Raises:
            FieldError: the value has other parts; the message names the field.
        """

    @staticmethod
    @abstractmethod
    def value_of(parts: dict[Key, Any]) -> Any:
        """The value with these parts."""

    @staticmethod
    @abstractmethod
    def space_of(parts: dict[Key, Space[Any]]) -> Space[Any]:
        """The space with these parts."""

    def flatten(self, value: Any) -> Sequence[Any]:
        values = zip(self.parts.values(), self.values_of(value), strict=True)
        return [leaf for part, of_it in values for leaf in part.flatten(of_it)]

    def flatten_batch(self, batch: Any, count: int) -> list[Any]:
        values = zip(self.parts.values(), self.values_of(batch), strict=True)
        return [leaf for part, of_it in values for leaf in part.flatten_batch(of_it, count)]

    def unflatten(self, values: Iterator[Any]) -> Any:
        return self.value_of({key: part.unflatten(values) for key, part in self.parts.items()})

    def split(self, items: Sequence[Any]) -> list[Column]:
        rows = [self.values_of(item) for item in items]
        return [column for i, part in enumerate(self.parts.values()) for column in part.split([row[i] for row in rows])]

    def join(self, count: int, columns: Iterator[Column]) -> list[Any]:
        joined = {key: part.join(count, columns) for key, part in self.parts.items()}
        return [self.value_of({key: items[i] for key, items in joined.items()}) for i in range(count)]

    def join_batch(self, count: int, columns: Iterator[Column]) -> Any:
        return self.value_of({key: part.join_batch(count, columns) for key, part in self.parts.items()})

    def stack(self, items: Sequence[Any]) -> Any:
        return self.value_of({key: part.stack([item[key] for item in items]) for key, part in self.parts.items()})

    def unstack(self, batch: Any) -> Any:
        values = self.values_of(batch)
        parts = [part.unstack(of_it) for part, of_it in zip(self.parts.values(), values, strict=True)]
        known = sorted({len(items) for items in parts if items is not None})
        if not known:
            return None
        if len(known) > 1:
            raise FieldError(f"field {self.name!r}: expected as many items in each part, got {known}; stack all items")
        # A batch of values without any parts is what each of the values is.
        columns = [[of_it] * known[0] if items is None else items for items, of_it in zip(parts, values, strict=True)]
        return [self.value_of(dict(zip(self.parts, row, strict=True))) for row in zip(*columns, strict=True)]


class DictNode(GroupNode, of=spaces.Dict):
    """Dicts, with the keys of the space in its order."""

    is_keyed = True

    @classmethod
    def parts_of(cls, space: spaces.Dict) -> dict[Key, Space[Any]]:
        return dict(space.spaces)

    def __init__(self, space: Any, path: SpacePath, maker: LeafMaker) -> None:
        super().__init__(space, path, maker)
        keys = list(self.parts)
        self._get = itemgetter(*keys) if len(keys) > 1 else lambda value: [value[key] for key in keys]

    def values_of(self, value: Any) -> Sequence[Any]:
        if type(value) is not dict and isinstance(value, Mapping):
            value = dict(value)  # a defaultdict would make up the keys that it lacks
        if type(value) is dict and len(value) == len(self.parts):
            try:
                return self._get(value)
            except KeyError:
                pass
        raise FieldError(_dict_message(self.name, list(self.parts), value))

    @staticmethod
    def value_of(parts: dict[Key, Any]) -> Any:
        return parts

    @staticmethod
    def space_of(parts: dict[Key, Space[Any]]) -> Space[Any]:
        return spaces.Dict(list(parts.items()))  # a list: a mapping would be sorted

    @classmethod
    def to_json(cls, space: spaces.Dict, path: str) -> dict[str, Json]:
        keys = [_key_to_json(key, path) for key in space.spaces]
        names = encode_siblings(space.spaces)
        children = [to_json(child, f"{path}.{name}") for name, child in zip(names, space.spaces.values(), strict=True)]
        return {"type": "Dict", "items": [list(item) for item in zip(keys, children, strict=True)]}

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, path: str) -> Space[Any]:
        children: dict[Any, Space[Any]] = {}
        for item in member(value, "items", list, path):
            if not isinstance(item, list) or len(item) != 2:
                raise CorruptBufferError(f"{path}: expected [key, space], got {brief(item)}")
            try:
                key = key_from_json(item[0])
            except FieldError:
                raise CorruptBufferError(f"{path}: {brief(item[0])} is no key") from None
            if key in children:
                raise CorruptBufferError(f"{path}: key {brief(key)} comes twice")
            children[key] = reader.read(item[1], f"{path}.{encode_key(key)}")
        return cls.space_of(children)


def _key_to_json(key: Key, path: str) -> Json:
    try:
        stored = key_to_json(key)
        back = key_from_json(json.loads(json.dumps(stored)))
    except ValueError as error:
        raise UnsupportedSpaceError(f"{path}: {error}") from None
    if back != key or hash(back) != hash(key):  # NaN, members of an enum
        raise UnsupportedSpaceError(f"{path}: key {key!r} ({type(key).__name__}) cannot be found again by value")
    return stored


def _dict_message(name: str, expected: list[Key], value: Any) -> str:
    """What is wrong with a value of a Dict space with the expected keys."""
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
    def parts_of(cls, space: Any) -> tuple[Space[Any], ...]:
        return tuple(space.spaces)

    def values_of(self, value: Any) -> Sequence[Any]:
        is_array = isinstance(value, np.ndarray) or hasattr(value, "detach")
        if isinstance(value, (tuple, list)) or (is_array and value.ndim > 0):
            if len(value) == len(self.parts):
                return value  # type: ignore[no-any-return]
            got = f"{len(value)} values"
        else:
            got = describe(value)
        raise FieldError(
            f"field {self.name!r}: expected a tuple of {len(self.parts)}, got {got}; pass one value per part"
        )

    @staticmethod
    def value_of(parts: dict[Key, Any]) -> Any:
        return tuple(parts.values())

    @staticmethod
    def space_of(parts: dict[Key, Space[Any]]) -> Space[Any]:
        return spaces.Tuple(list(parts.values()))

    @classmethod
    def to_json(cls, space: Any, path: str) -> dict[str, Json]:
        return {"type": "Tuple", "spaces": [to_json(child, f"{path}.{i}") for i, child in enumerate(space.spaces)]}

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, path: str) -> Space[Any]:
        return spaces.Tuple(reader.read_all(value, path))

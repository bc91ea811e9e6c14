"""One field of a space: where in the space it is, and what its name, dtype and shape are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space

from gym_replay.buffer.storage.fields import Field, describe
from gym_replay.buffer.storage.names import Key, encode_siblings, lengths_component
from gym_replay.errors import FieldError, UnsupportedSpaceError

Append = Callable[[Any], None]
"""Takes the value of the next leaf."""

Visit = Callable[[Any, Append], None]
"""Takes a value of a space and appends the values of its leaves."""

Column = npt.NDArray[Any]


@dataclass(frozen=True)
class Leaf:
    """One field of a space.

    Args:
        keys: the path to it inside the space: keys of Dict spaces, indices of Tuple and OneOf spaces, and the fields'
            own names below OneOf, Sequence, Graph and Text. The items of a Sequence are where the Sequence is.
        name: the field's name, such as ``"observation.camera.rgb"``.
        field: its dtype and shape; ragged where each row may hold another number of elements.
        space: the space of its values, or of what it tells about.
    """

    keys: tuple[Key, ...]
    name: str
    field: Field
    space: Space[Any]


@dataclass(frozen=True)
class Place:
    """Where in a space something is.

    Args:
        name: the name of a field that lies here.
        keys: the path here; each key is one component of the name after the root.
        level: how many sequences here have a field of lengths already.
    """

    name: str
    keys: tuple[Key, ...] = ()
    level: int = 0

    def part(self, key: Key, component: str | None = None) -> Place:
        """One component further in; ``component`` is the key itself where it is left out."""
        return Place(f"{self.name}.{key if component is None else component}", (*self.keys, key))

    def lengths(self) -> Place:
        """Where the lengths of what is here are."""
        return self.part(lengths_component(self.level))

    def items(self) -> Place:
        """Where the items of a sequence with lengths are."""
        return replace(self, level=self.level + 1)

    def groups(self) -> list[str]:
        """The name, and before it those of all groups that the field belongs to, the root first."""
        components = self.name.split(".")
        root = len(components) - len(self.keys)
        return [".".join(components[:end]) for end in range(root, len(components) + 1)]


class LeafMaker:
    """Makes the leaves of a space with the storage dtypes that were asked for.

    Args:
        root: the name that the fields' names begin with.
        state: whether the fields are state fields.
        dtypes: storage dtypes other than the space's own, by field or group of fields; the longest name counts.
    """

    def __init__(self, root: str, *, state: bool = False, dtypes: Mapping[str, Any] | None = None) -> None:
        self._state = state
        self._dtypes = dict(dtypes or {})
        self._numbers = {root}
        self._others: dict[str, str] = {}

    def numbers(self, place: Place, space: Space[Any], *, ragged: bool = False) -> Leaf:
        """The field of a Box, Discrete, MultiDiscrete or MultiBinary space."""
        groups = place.groups()
        self._numbers.update(groups)
        chosen = [self._dtypes[group] for group in groups if group in self._dtypes][-1:]
        try:
            field = Field(chosen[0] if chosen else space.dtype, space.shape, state=self._state, ragged=ragged)
        except FieldError as error:
            if chosen:
                raise FieldError(f"dtypes: {place.name!r}: {error}") from None
            raise UnsupportedSpaceError(f"{place.name}: {type(space).__name__} cannot be stored: {error}") from None
        return Leaf(place.keys, place.name, field, space)

    def other(
        self, place: Place, space: Space[Any], dtype: Any, shape: tuple[int, ...] = (), *, ragged: bool = True
    ) -> Leaf:
        """A field whose dtype is the format's, not the space's."""
        field = Field(dtype, shape, state=self._state, ragged=ragged)
        self._others.update(dict.fromkeys(place.groups(), field.dtype.name))
        return Leaf(place.keys, place.name, field, space)

    def check_dtypes(self) -> None:
        """Raise FieldError where a dtype was asked for that no field can have."""
        for name in self._dtypes:
            if name in self._numbers:
                continue
            if name in self._others:
                raise FieldError(f"dtypes: {name!r} is always stored as {self._others[name]}; leave it out")
            raise FieldError(
                f"dtypes: {name!r} is no field or group of fields; expected one of {sorted(self._numbers)}"
            )


def keyed(place: Place, children: Sequence[tuple[Key, Space[Any]]]) -> list[tuple[Key, Place, Space[Any]]]:
    """The parts of a Dict or Tuple space with their places."""
    try:
        components = encode_siblings(key for key, _ in children)
    except FieldError as error:
        raise UnsupportedSpaceError(f"{place.name}: {error}") from None
    return [
        (key, place.part(key, component), child) for (key, child), component in zip(children, components, strict=True)
    ]


def check_dict(name: str, keys: Sequence[Key], value: Any) -> dict[Key, Any]:
    """The value, if it is a mapping with these keys and no other."""
    if not isinstance(value, Mapping) or len(value) != len(keys) or not all(key in value for key in keys):
        raise FieldError(dict_message(name, keys, value))
    return dict(value)


def dict_message(name: str, keys: Sequence[Key], value: Any) -> str:
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


def check_tuple(name: str, count: int, value: Any) -> Any:
    """The value, if it is a tuple or list of ``count``, or an array of as many rows."""
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


def check_items(name: str, value: Any) -> Any:
    """The value, if it is a sequence of items: a tuple, a list or an array."""
    if isinstance(value, (tuple, list)):
        return value
    if isinstance(value, np.ndarray) or hasattr(value, "detach"):
        if value.ndim > 0:
            return value
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return list(value)
    raise FieldError(
        f"field {name!r}: expected a tuple of items, got {describe(value)}; pass a tuple, which may be empty"
    )


def check_choice(name: str, count: int, value: Any) -> tuple[int, Any]:
    """Index and value of a value of a OneOf space."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise FieldError(
            f"field {name!r}: expected a tuple (index, value), got {describe(value)}; pass the index of the space "
            "that the value is of, and the value"
        )
    try:
        index = value[0].__index__()
    except (AttributeError, TypeError):
        index = -1
    if not 0 <= index < count:
        raise FieldError(
            f"field {name!r}: expected an index from 0 to {count - 1}, got {describe(value[0])}; pass the index of "
            "the space that the value is of"
        )
    return index, value[1]


def check_graph(name: str, has_edge_space: bool, value: Any) -> tuple[Any, Any, Any]:
    """Nodes, edges and edge links of a value of a Graph space."""
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise FieldError(
            f"field {name!r}: expected a GraphInstance, got {describe(value)}; pass GraphInstance(nodes, edges, "
            "edge_links)"
        )
    nodes, edges, links = value
    if edges is not None and not has_edge_space:
        raise FieldError(
            f"field {name!r}: expected a graph whose edges are None, got {describe(edges)}; give the Graph an "
            "edge_space"
        )
    return nodes, edges, links


def stored_array(space: Space[Any], count: int | None, value: Any, dtype: Any, shape: tuple[int, ...]) -> Column:
    """A stored value as an array ``(count, *shape)``, or ``shape`` where ``count`` is None, of the dtype."""
    array = np.asarray(value, dtype=dtype)
    expected = shape if count is None else (count, *shape)
    if array.shape != expected:
        raise FieldError(
            f"unflatten: expected shape {expected} for {type(space).__name__}, got {array.shape}; pass one value of "
            "each field, all of the same row"
        )
    return array

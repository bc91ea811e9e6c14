"""One field of a space: where in the space it is, and what its name, dtype and shape are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gymnasium import Space

from gym_replay.errors import FieldError, UnsupportedSpaceError
from gym_replay.schema.fields import Field
from gym_replay.schema.names import Key, encode_siblings, lengths_component


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
    """Where in a space something is, and whether a row has one value of it or any number of items.

    Args:
        name: the name of a field that lies here.
        keys: the path here; each key is one component of the name after the root.
        level: None where each row has one value; of items, how many sequences here have a field of lengths already.
    """

    name: str
    keys: tuple[Key, ...] = ()
    level: int | None = None

    @property
    def has_items(self) -> bool:
        """Whether a row has any number of values."""
        return self.level is not None

    def part(self, key: Key, component: str | None = None) -> Place:
        """One component further in; ``component`` is the key itself where it is left out."""
        name = f"{self.name}.{key if component is None else component}"
        return Place(name, (*self.keys, key), 0 if self.has_items else None)

    def lengths(self) -> Place:
        """Where the lengths of what is here are."""
        return self.part(lengths_component(self.level or 0))

    def items(self) -> Place:
        """Where the items of what is here are; sequences of items have a field of lengths."""
        return replace(self, level=0 if self.level is None else self.level + 1)

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


def places_of(place: Place, keys: list[Key]) -> list[Place]:
    """The places of the parts with these keys.

    Raises:
        UnsupportedSpaceError: one of the keys cannot be kept.
    """
    try:
        return [place.part(key, component) for key, component in zip(keys, encode_siblings(keys), strict=True)]
    except FieldError as error:
        raise UnsupportedSpaceError(f"{place.name}: {error}") from None

"""One field of a space: where in the space it is, and what its name, dtype and shape are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from gym_replay.errors import FieldError, UnsupportedSpaceError
from gym_replay.schema.fields import Field
from gym_replay.schema.names import Key, encode_siblings, lengths_component


@dataclass(frozen=True)
class Leaf:
    """One field of a space.

    Args:
        keys: the path to it inside the space: keys of Dict spaces, indices of Tuple and OneOf spaces, and the fields'
            own names below OneOf, Sequence and Graph. The items of a Sequence have the path of the Sequence.
        name: the field's name, such as ``"observation.camera.rgb"``.
        field: its dtype and shape; ragged where each row may hold another number of elements.
        space: the space of its values.
    """

    keys: tuple[Key, ...]
    name: str
    field: Field
    space: Space[Any]


@dataclass(frozen=True)
class SpacePath:
    """Where in a space a part of it is, and whether a row has one value of the part or any number of items.

    Args:
        name: the name of a field at this path.
        keys: the keys from the root; each is one component of the name after the root.
        level: None where each row has one value; of items, how many sequences at this path have a field of lengths.
    """

    name: str
    keys: tuple[Key, ...] = ()
    level: int | None = None

    @property
    def has_items(self) -> bool:
        """Whether a row has any number of values."""
        return self.level is not None

    def part(self, key: Key, component: str | None = None) -> SpacePath:
        """One component further in; ``component`` is the key itself where it is left out."""
        name = f"{self.name}.{key if component is None else component}"
        return SpacePath(name, (*self.keys, key), 0 if self.has_items else None)

    def parts(self, keys: Iterable[Key]) -> list[SpacePath]:
        """The paths of the parts with these keys.

        Raises:
            UnsupportedSpaceError: one of the keys cannot be kept.
        """
        keys = list(keys)
        try:
            return [self.part(key, component) for key, component in zip(keys, encode_siblings(keys), strict=True)]
        except FieldError as error:
            raise UnsupportedSpaceError(f"{self.name}: {error}") from None

    def lengths(self) -> SpacePath:
        """The path of the field that has the length of each sequence at this path."""
        return self.part(lengths_component(self.level or 0))

    def items(self) -> SpacePath:
        """The path of the items of a sequence at this path; a sequence of items has a field of lengths."""
        return replace(self, level=0 if self.level is None else self.level + 1)

    def groups(self) -> list[str]:
        """The names of all groups that the field belongs to, the root first, and the field's own name last."""
        components = self.name.split(".")
        root = len(components) - len(self.keys)
        return [".".join(components[:end]) for end in range(root, len(components) + 1)]


class Structure(spaces.Box):
    """Numbers that say how a value is laid out, whose dtype no user chooses: lengths, indices, flags, bytes of text."""

    def __init__(self, dtype: Any, shape: tuple[int, ...] = ()) -> None:
        dtype = np.dtype(dtype)
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        super().__init__(np.full(shape, low, dtype), np.full(shape, high, dtype), shape, dtype.type)


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
        self._choosable = {root}
        self._fixed: dict[str, str] = {}

    def leaf(self, path: SpacePath, space: Space[Any], *, ragged: bool) -> Leaf:
        """The field of a space of arrays of one dtype and shape."""
        groups, dtype, chosen = path.groups(), space.dtype, []
        if isinstance(space, Structure):
            self._fixed.update(dict.fromkeys(groups, str(np.dtype(dtype).name)))
        else:
            self._choosable.update(groups)
            chosen = [self._dtypes[group] for group in groups if group in self._dtypes]
        try:
            field = Field(chosen[-1] if chosen else dtype, space.shape, state=self._state, ragged=ragged)
        except FieldError as error:
            if chosen:
                raise FieldError(f"dtypes: {path.name!r}: {error}") from None
            raise UnsupportedSpaceError(f"{path.name}: {type(space).__name__} cannot be stored: {error}") from None
        return Leaf(path.keys, path.name, field, space)

    def check_dtypes(self) -> None:
        """Raise FieldError where a dtype was asked for that no field can have."""
        for name in self._dtypes:
            if name in self._choosable:
                continue
            if name in self._fixed:
                raise FieldError(f"dtypes: {name!r} is always stored as {self._fixed[name]}; leave it out")
            raise FieldError(
                f"dtypes: {name!r} is no field or group of fields; expected one of {sorted(self._choosable)}"
            )

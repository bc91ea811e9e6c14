"""Space <-> fields: the leaves of a space, its values as bytes, and leaf values as a value of the space again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space, spaces

from gym_replay.buffer.storage.fields import Field, make_encoder
from gym_replay.buffer.storage.names import Key, encode_siblings, join_components
from gym_replay.errors import FieldError, UnsupportedSpaceError


@dataclass(frozen=True)
class Leaf:
    """One field of a space.

    Args:
        keys: the path to it inside the space: keys of Dict spaces and indices of Tuple spaces.
        name: the field's name, such as ``"observation.camera.rgb"``.
        field: its dtype and shape.
        space: the space of its values.
    """

    keys: tuple[Key, ...]
    name: str
    field: Field
    space: Space[Any]


def space_leaves(
    space: Space[Any], root: str, *, state: bool = False, dtypes: Mapping[str, Any] | None = None
) -> list[Leaf]:
    """The fields of a space, depth first and in the order of its keys.

    Args:
        space: Box, Discrete, MultiDiscrete or MultiBinary, or Dict and Tuple spaces of these to any depth.
        root: the name that the fields' names begin with; a space without parts has the one field ``root``.
        state: whether the fields are state fields.
        dtypes: storage dtypes other than the space's own, by the name of a field or of a group of fields such as
            ``"observation"``; the longest name that fits counts.

    Raises:
        UnsupportedSpaceError: a part of the space cannot be stored; the message names its type and place.
        FieldError: a name in ``dtypes`` is none of the space's.

    Example:
        >>> space = spaces.Dict({"camera": spaces.Box(0, 255, (2, 2), np.uint8), "speed": spaces.Box(0, 1, ())})
        >>> [(leaf.name, leaf.field) for leaf in space_leaves(space, "observation")]
        [('observation.camera', Field(dtype='uint8', shape=(2, 2), default=None, state=False)), \
('observation.speed', Field(dtype='float32', shape=(), default=None, state=False))]
    """
    dtypes = dict(dtypes or {})
    known = {root}
    leaves = []
    for keys, components, part in _walk(space, root, (), ()):
        groups = [join_components([root, *components[:depth]]) for depth in range(len(components) + 1)]
        known.update(groups)
        chosen = [dtypes[group] for group in groups if group in dtypes]
        leaves.append(Leaf(keys, groups[-1], _leaf_field(part, groups[-1], chosen[-1:], state), part))
    unknown = sorted(set(dtypes) - known)
    if unknown:
        raise FieldError(f"dtypes: {unknown[0]!r} is no field or group of fields; expected one of {sorted(known)}")
    return leaves


def _leaf_field(space: Space[Any], name: str, chosen: Sequence[Any], state: bool) -> Field:
    try:
        return Field(chosen[0] if chosen else space.dtype, space.shape, state=state)
    except FieldError as error:
        if chosen:
            raise FieldError(f"dtypes: {name!r}: {error}") from None
        raise UnsupportedSpaceError(f"{name}: {type(space).__name__} cannot be stored: {error}") from None


def _walk(
    space: Space[Any], place: str, keys: tuple[Key, ...], components: tuple[str, ...]
) -> Iterator[tuple[tuple[Key, ...], tuple[str, ...], Space[Any]]]:
    children = _children(space, place)
    if children is None:
        yield keys, components, space
        return
    for key, component, child in children:
        yield from _walk(child, f"{place}.{component}", (*keys, key), (*components, component))


@singledispatch
def _children(space: Any, place: str) -> list[tuple[Key, str, Space[Any]]] | None:
    """The parts of a space with their keys and name components, or None for a leaf."""
    kind = type(space).__name__ if type(space).__module__.startswith("gymnasium.") else type(space)
    raise UnsupportedSpaceError(
        f"{place}: {kind} spaces cannot be recorded; drop the part or convert it to a Box with a wrapper"
    )


@_children.register(spaces.Box)
@_children.register(spaces.Discrete)
@_children.register(spaces.MultiDiscrete)
@_children.register(spaces.MultiBinary)
def _(space: Space[Any], place: str) -> None:
    return None


@_children.register
def _(space: spaces.Dict, place: str) -> list[tuple[Key, str, Space[Any]]]:
    return _with_components(list(space.spaces.items()), place)


@_children.register(spaces.Tuple)
def _(space: Any, place: str) -> list[tuple[Key, str, Space[Any]]]:
    return _with_components(list(enumerate(space.spaces)), place)


def _with_components(children: list[tuple[Key, Space[Any]]], place: str) -> list[tuple[Key, str, Space[Any]]]:
    try:
        components = encode_siblings(key for key, _ in children)
    except FieldError as error:
        raise UnsupportedSpaceError(f"{place}: {error}") from None
    return [(key, component, child) for (key, child), component in zip(children, components, strict=True)]


Flattener = Callable[[Any], Sequence[Any]]
_Append = Callable[[Any], None]


def make_flattener(space: Space[Any], root: str) -> Flattener:
    """A function that takes a value of the space and gives its leaf values, in the order of :func:`space_leaves`.

    It checks the keys of dicts and the lengths of tuples, and leaves the leaf values as they are.

    Raises:
        UnsupportedSpaceError: as :func:`space_leaves`.
    """
    visit = _make_visitor(space, root)
    if visit is None:
        return lambda value: (value,)

    def flatten(value: Any) -> list[Any]:
        values: list[Any] = []
        visit(value, values.append)
        return values

    return flatten


def _make_visitor(space: Space[Any], place: str) -> Callable[[Any, _Append], None] | None:
    """A function that appends the leaf values of a value, or None for a leaf."""
    children = _children(space, place)
    if children is None:
        return None
    visitors = [(key, _make_visitor(child, f"{place}.{component}")) for key, component, child in children]
    if isinstance(space, spaces.Dict):
        return _dict_visitor(place, visitors)
    return _tuple_visitor(place, [visit for _, visit in visitors])


def _dict_visitor(
    place: str, visitors: list[tuple[Key, Callable[[Any, _Append], None] | None]]
) -> Callable[[Any, _Append], None]:
    count = len(visitors)

    def visit_dict(value: Any, append: _Append) -> None:
        if type(value) is not dict:
            if not isinstance(value, Mapping):
                raise FieldError(_dict_message(place, visitors, value))
            value = dict(value)  # a defaultdict would make up the keys that it lacks
        if len(value) != count:
            raise FieldError(_dict_message(place, visitors, value))
        for key, visit in visitors:
            try:
                part = value[key]
            except KeyError:
                raise FieldError(_dict_message(place, visitors, value)) from None
            if visit is None:
                append(part)
            else:
                visit(part, append)

    return visit_dict


def _dict_message(place: str, visitors: Sequence[tuple[Key, Any]], value: Any) -> str:
    expected = [key for key, _ in visitors]
    if not isinstance(value, Mapping):
        return f"field {place!r}: expected a dict with keys {expected}, got {_describe(value)}; pass one value per key"
    missing = [key for key in expected if key not in value]
    extra = [key for key in value if key not in expected]
    faults = [f"{fault} {keys}" for fault, keys in (("missing", missing), ("unknown", extra)) if keys]
    return (
        f"field {place!r}: expected a dict with keys {expected}, got {' and '.join(faults)}; give every key of the "
        "space and no other, or correct the space"
    )


def _tuple_visitor(place: str, visitors: list[Callable[[Any, _Append], None] | None]) -> Callable[[Any, _Append], None]:
    count = len(visitors)

    def visit_tuple(value: Any, append: _Append) -> None:
        if not isinstance(value, (tuple, list)):
            is_array = isinstance(value, np.ndarray) or hasattr(value, "detach")
            if not is_array or value.ndim == 0:
                raise FieldError(
                    f"field {place!r}: expected a tuple of {count}, got {_describe(value)}; pass one value per part"
                )
        if len(value) != count:
            raise FieldError(
                f"field {place!r}: expected a tuple of {count}, got {len(value)} values; pass one value per part"
            )
        for part, visit in zip(value, visitors, strict=True):
            if visit is None:
                append(part)
            else:
                visit(part, append)

    return visit_tuple


def _describe(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def make_space_encoder(space: Space[Any], leaves: Sequence[Leaf]) -> Callable[[Any], tuple[bytes, ...]]:
    """A function that checks a value of the space and gives the bytes of each leaf, copied.

    Args:
        space: the space.
        leaves: its leaves, from :func:`space_leaves`.

    Returns:
        A function that raises FieldError where a value does not fit. It checks dtype and shape, not the bounds.
    """
    encoders = [make_encoder(leaf.name, leaf.field) for leaf in leaves]
    if len(leaves) == 1 and not leaves[0].keys:
        return _make_leaf_encoder(leaves[0].field, encoders[0])
    flatten = make_flattener(space, _root_name(leaves))

    def encode(value: Any) -> tuple[bytes, ...]:
        return tuple([encode(part) for encode, part in zip(encoders, flatten(value), strict=True)])

    return encode


def _make_leaf_encoder(field: Field, general: Callable[[Any], bytes]) -> Callable[[Any], tuple[bytes, ...]]:
    """``general`` with the most common case taken before the call: recording pays for each call."""
    shape, scalar_type = field.shape, field.dtype.type
    native = np.dtype(scalar_type)
    ndarray = np.ndarray

    def encode_array(value: Any) -> tuple[bytes, ...]:
        if type(value) is ndarray and value.dtype is native and value.shape == shape:
            return (value.tobytes(),)
        return (general(value),)

    def encode_scalar(value: Any) -> tuple[bytes, ...]:
        if type(value) is scalar_type:
            return (value.tobytes(),)
        return (general(value),)

    return encode_array if shape else encode_scalar


def _root_name(leaves: Sequence[Leaf]) -> str:
    if not leaves:
        return "value"
    components = leaves[0].name.split(".")
    return join_components(components[: len(components) - len(leaves[0].keys)])


def unflatten(space: Space[Any], values: Sequence[npt.NDArray[Any]]) -> Any:
    """The value of the space that has these leaf values.

    Args:
        space: the space.
        values: one value per leaf, each of the leaf's shape. Arrays of the space's own dtype are not copied.

    Raises:
        FieldError: the number of values or a shape does not fit.
    """
    remaining = iter(values)
    try:
        value = _rebuild(space, remaining)
    except StopIteration:
        raise FieldError(f"unflatten: {len(values)} values are too few for {type(space).__name__}") from None
    if next(remaining, None) is not None:
        raise FieldError(f"unflatten: {len(values)} values are too many for {type(space).__name__}")
    return value


@singledispatch
def _rebuild(space: Any, values: Iterator[Any]) -> Any:
    raise UnsupportedSpaceError(f"{type(space).__name__} spaces cannot be recorded")


@_rebuild.register(spaces.Box)
@_rebuild.register(spaces.MultiDiscrete)
@_rebuild.register(spaces.MultiBinary)
def _(space: Any, values: Iterator[Any]) -> npt.NDArray[Any]:
    return _as_leaf(space, next(values))


@_rebuild.register
def _(space: spaces.Discrete, values: Iterator[Any]) -> Any:
    return _as_leaf(space, next(values))[()]


@_rebuild.register
def _(space: spaces.Dict, values: Iterator[Any]) -> dict[Any, Any]:
    return {key: _rebuild(child, values) for key, child in space.spaces.items()}


@_rebuild.register(spaces.Tuple)
def _(space: Any, values: Iterator[Any]) -> tuple[Any, ...]:
    return tuple([_rebuild(child, values) for child in space.spaces])


def _as_leaf(space: Space[Any], value: Any) -> npt.NDArray[Any]:
    array = np.asarray(value, dtype=space.dtype)
    if array.shape != space.shape:
        raise FieldError(f"unflatten: expected shape {space.shape}, got {array.shape}; pass one value of the field")
    return array

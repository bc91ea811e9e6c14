"""Observations and actions: the fields of a space as the nested values that Minari has, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space, spaces

from gym_replay.buffer.episode import Episode
from gym_replay.errors import CorruptBufferError, FieldError, UnsupportedSpaceError
from gym_replay.interop.minari.limits import CannotHold, Limits
from gym_replay.schema.fields import Field, encode_text, exact_cast
from gym_replay.schema.names import Key
from gym_replay.spaces import Node, space_to_json, space_tree
from gym_replay.spaces.converted import TextNode
from gym_replay.spaces.groups import GroupNode
from gym_replay.spaces.leaf import SpacePath
from gym_replay.spaces.node import standard_node
from gym_replay.spaces.numbers import NumberNode


@dataclass(frozen=True)
class Part:
    """A space, or a part of one, on its way to Minari.

    Args:
        space: the space that the dataset says: of the dtypes that are stored.
        source: the space as it was recorded, without what is left out.
        names: the fields of it.
        take: gives the values of an episode, all steps: arrays ``(rows, *field.shape)``, lists of strings, dicts and
            tuples. It raises CannotHold where one of them does not fit the format.
    """

    space: Space[Any]
    source: Space[Any]
    names: list[str]
    take: Callable[[Episode], Any]


def plan_part(space: Space[Any], place: SpacePath, fields: Mapping[str, Field], limits: Limits) -> Part | None:
    """How a space is written; None where it is left out.

    Raises:
        UnsupportedSpaceError: the format cannot hold a part of it, and nothing is to be left out.
        FieldError: the fields are not those of the space.
    """
    kind = standard_node(space)
    part: Part | None = None
    if issubclass(kind, GroupNode):
        return _plan_group(kind, space, place, fields, limits)
    if issubclass(kind, TextNode):
        fault, name = _fault_of_space(space), place.name
        part = Part(space, space, [name], lambda episode: texts_of(name, episode, limits))
    elif issubclass(kind, NumberNode):
        part = _number_part(space, place.name, fields)
        fault = _fault_of_numbers(part.space, limits)
    else:
        fault = f"Minari has no {type(space).__name__} spaces"
    if fault:
        limits.cannot_hold(place.name, fault, UnsupportedSpaceError)
        return None
    return part


def _fault_of_numbers(space: Space[Any], limits: Limits) -> str | None:
    is_image = import_module("minari.dataset.minari_storage").is_image_space(space)
    shape: tuple[int, ...] = space.shape or ()
    if limits.jpeg_encoding and is_image and len(shape) == 3 and shape[2] != 3:
        return f"JPEG has three channels or none, and its shape is {shape}"
    if not limits.is_hdf5 and 0 in shape:
        return f"its shape {shape} has no elements"
    return _fault_of_space(space)


def _fault_of_space(space: Space[Any]) -> str | None:
    """Why Minari does not read back a space without parts, or None."""
    serialization = import_module("minari.serialization")
    try:
        back = serialization.deserialize_space(serialization.serialize_space(space))
    except Exception as error:  # whatever Gymnasium and Minari raise of a space that they do not take
        return f"of {space!r:.80}, Minari says {type(error).__name__}: {error}"
    if type(back) is not type(space) or back.shape != space.shape:
        return f"of {space!r:.80}, Minari makes {back!r:.80}"
    return None


def _plan_group(
    group: type[GroupNode], space: Space[Any], place: SpacePath, fields: Mapping[str, Field], limits: Limits
) -> Part | None:
    parts: dict[Key, Part] = {}
    for key, at, child in group.parts_with_paths(space, place):
        if group.is_keyed and (fault := limits.key_fault(key)):
            limits.cannot_hold(at.name, fault, UnsupportedSpaceError)
        elif (part := plan_part(child, at, fields, limits)) is not None:
            parts[key] = part
        elif not group.is_keyed:  # the others would move to other indices
            limits.cannot_hold(place.name, f"{at.name} is left out, and so the whole Tuple is", UnsupportedSpaceError)
            return None
    if not parts and not limits.is_hdf5:
        kind = group.standard.__name__
        limits.cannot_hold(place.name, f"a {kind} space without parts has no rows", UnsupportedSpaceError)
        return None
    return Part(
        group.space_of({key: part.space for key, part in parts.items()}),
        group.space_of({key: part.source for key, part in parts.items()}),
        [name for part in parts.values() for name in part.names],
        lambda episode: group.value_of({key: part.take(episode) for key, part in parts.items()}),
    )


def _number_part(space: Any, name: str, fields: Mapping[str, Field]) -> Part:
    """Values of a Box, Discrete, MultiDiscrete or MultiBinary space."""
    field = fields.get(name)
    if field is None or field.shape != space.shape or field.ragged:
        raise FieldError(
            f"{name}: expected a field of shape {space.shape} for {space!r:.80}, got {field}; pass the space that the "
            "fields are of"
        )
    is_other = isinstance(space, spaces.Box) and field.dtype.name != space.dtype.name
    stored = box_of(space, field.dtype) if is_other else space
    return Part(stored, space, [name], lambda episode: numbers_of(name, episode, stored.dtype.newbyteorder("=")))


def texts_of(name: str, episode: Episode, limits: Limits) -> list[str]:
    """The strings of an episode."""
    texts = [row.tobytes().decode("utf-8", "surrogatepass") for row in episode[name]]
    for text in texts:
        if fault := limits.text_fault(text):
            raise CannotHold(f"{name}: the string {text!r:.60} {fault}")
    return texts


def numbers_of(name: str, episode: Episode, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The numbers of an episode, in the dtype that the dataset says."""
    try:
        return cast_exactly(name, episode[name], dtype)
    except FieldError as error:
        raise CannotHold(str(error)) from None


def box_of(space: spaces.Box, dtype: np.dtype[Any]) -> spaces.Box:
    """A Box of the same shape, of another dtype: with its bounds where they are that dtype's, else unbounded."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            low, high = space.low.astype(dtype), space.high.astype(dtype)
        if (low <= high).all():
            return spaces.Box(low, high, space.shape, dtype.type)
    return unbounded_box(space.shape, dtype)


def unbounded_box(shape: tuple[int, ...], dtype: np.dtype[Any]) -> spaces.Box:
    """A Box that holds every value of a dtype."""
    if dtype.kind == "f":
        least, most = -np.inf, np.inf
    elif dtype.kind == "b":
        least, most = 0, 1
    else:
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    return spaces.Box(np.full(shape, least, dtype), np.full(shape, most, dtype), shape, dtype.type)


def cast_exactly(name: str, array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The same numbers in another dtype.

    Raises:
        FieldError: one of them would change.
    """
    if array.dtype == dtype:
        return array
    cast = exact_cast(array, dtype)
    if cast is None or cast.astype(array.dtype).tobytes() != array.tobytes():  # not even the sign of a zero
        raise FieldError(f"{name}: {array.dtype.name} values do not fit {dtype.name} without a change")
    return cast


def guess_space(root: str, fields: Mapping[str, Field]) -> Space[Any]:
    """An unbounded space for the fields of a buffer that was stored by hand: a Box, or a Dict of them.

    Raises:
        FieldError: there is no such field, or no space has fields of these names.
    """
    if root in fields:
        field = fields[root]
        if field.ragged:
            raise FieldError(f"field {root!r}: of ragged fields the space must be told; pass {root}_space=...")
        return unbounded_box(field.shape, field.dtype)
    keys = list(dict.fromkeys(name.split(".")[1] for name in fields if name.startswith(f"{root}.")))
    if not keys:
        raise FieldError(
            f"no field {root!r}: an exported buffer has the fields observation (a state field), action, reward, "
            f"terminated and truncated; there are {list(fields)}"
        )
    children = {key: guess_space(key, _below(root, fields)) for key in keys}
    if [at.name for at in SpacePath(root).parts(keys)] != [f"{root}.{key}" for key in keys]:
        raise FieldError(f"fields below {root!r}: {keys} are no keys of a Dict space; pass {root}_space=...")
    return spaces.Dict(list(children.items()))


def _below(root: str, fields: Mapping[str, Field]) -> dict[str, Field]:
    return {name.partition(".")[2]: field for name, field in fields.items() if name.startswith(f"{root}.")}


def take_apart(tree: Node, values: Any, into: dict[str, Any]) -> None:
    """Put the values of a Minari episode, all steps, into ``into`` by the names of their fields.

    Arrays are ``(rows, *shape)``; of a Text space it is a list of ``(n,)`` uint8 arrays, the UTF-8 bytes.

    Args:
        tree: that of the space of the values.
        values: what the dataset has.
        into: where to put them.

    Raises:
        CorruptBufferError: they are not of the space.
    """
    if isinstance(tree, GroupNode):
        if tree.is_keyed and isinstance(values, Mapping):  # what the space does not have is left out
            values = {key: values[key] for key in tree.parts if key in values}
        try:
            found = tree.values_of(values)
        except FieldError as error:
            raise CorruptBufferError(str(error)) from None
        for part, value in zip(tree.parts.values(), found, strict=True):
            take_apart(part, value, into)
    elif isinstance(tree, TextNode):
        into[tree.name] = [np.frombuffer(encode_text(tree.name, text), np.uint8) for text in values]
    else:
        shape = tree.space.shape or ()
        array = in_shape(np.asarray(values), shape)
        if array.dtype.kind not in "biuf" or array.shape[1:] != shape:
            raise CorruptBufferError(
                f"{tree.name}: expected numbers of shape {shape}, got {array.dtype} {array.shape[1:]}"
            )
        into[tree.name] = array


def in_shape(array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Values ``(rows, *shape)`` that came with more axes of one, or fewer: a Discrete action as ``(rows, 1)``."""
    given = [size for size in array.shape[1:] if size != 1]
    is_same = array.ndim > 0 and given == [size for size in shape if size != 1]
    return array.reshape(len(array), *shape) if is_same else array


def held_part(space: Space[Any], place: SpacePath, refuse: Callable[..., None]) -> Space[Any] | None:
    """A space without the parts that a buffer cannot hold; None where nothing is left."""
    kind = standard_node(space)
    if not issubclass(kind, GroupNode):
        try:
            space_to_json(space, place.name)
            space_tree(space, place.name)
        except (UnsupportedSpaceError, FieldError) as error:
            refuse(str(error), type(error))
            return None
        return space
    parts = {key: held_part(child, at, refuse) for key, at, child in kind.parts_with_paths(space, place)}
    kept = {key: part for key, part in parts.items() if part is not None}
    if kind.is_keyed:
        return kind.space_of(kept) if kept or not parts else None
    if len(kept) < len(parts):  # the others would move to other indices
        refuse(f"{place.name}: a part of the Tuple is left out, and so the whole Tuple is", UnsupportedSpaceError)
        return None
    return space

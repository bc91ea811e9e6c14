"""Observations and actions: spaces without what one side cannot hold, and their values, nested and by field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from gym_replay.buffer.episode import Episode
from gym_replay.errors import CorruptBufferError, FieldError, UnsupportedSpaceError
from gym_replay.interop.minari.limits import Limits, Losses
from gym_replay.schema.arrays import Array
from gym_replay.schema.fields import Field, encode_text, exact_cast
from gym_replay.schema.names import Key
from gym_replay.spaces import Node, space_to_json, space_tree
from gym_replay.spaces.converted import TextNode
from gym_replay.spaces.groups import GroupNode
from gym_replay.spaces.leaf import SpacePath
from gym_replay.spaces.node import standard_node
from gym_replay.spaces.numbers import NumberNode

LeafMap = Callable[[Space[Any], str], Space[Any] | None]
"""What becomes of a space without parts at the field of this name; None where it is left out."""


# --- spaces ---


def map_space(
    space: Space[Any],
    path: SpacePath,
    leaf: LeafMap,
    losses: Losses,
    key_fault: Callable[[Key], str | None] = lambda key: None,
) -> Space[Any] | None:
    """A space whose parts are what a function makes of them; None where nothing is left.

    Args:
        space: a Dict, a Tuple, or a space without parts.
        path: where it is.
        leaf: for each space without parts, empty Dicts and Tuples included.
        losses: is told of Tuples that are left out because one of their parts is, and of keys.
        key_fault: why a Dict space cannot have a key, or None.
    """
    kind = standard_node(space)
    if not issubclass(kind, GroupNode):
        return leaf(space, path.name)
    parts: dict[Key, Space[Any]] = {}
    found = kind.parts_with_paths(space, path)
    for key, at, child in found:
        if kind.is_keyed and (fault := key_fault(key)):
            losses.refuse(f"{at.name}: {fault}", UnsupportedSpaceError)
        elif (part := map_space(child, at, leaf, losses, key_fault)) is not None:
            parts[key] = part
    if len(parts) < len(found) and not kind.is_keyed:  # the others would move to other indices
        losses.refuse(f"{path.name}: a part of the Tuple is left out, and so the whole Tuple is", UnsupportedSpaceError)
        return None
    made = kind.space_of(parts)
    return made if parts else leaf(made, path.name)


def storable(space: Space[Any], root: str, losses: Losses) -> Space[Any] | None:
    """A space without the parts that a buffer cannot hold; None where nothing is left."""

    def leaf(space: Space[Any], name: str) -> Space[Any] | None:
        try:
            space_to_json(space, name)
            space_tree(space, name)
        except (UnsupportedSpaceError, FieldError) as error:
            losses.refuse(str(error), type(error))
            return None
        return space

    return map_space(space, SpacePath(root), leaf, losses)


@dataclass(frozen=True)
class Part:
    """Observations or actions on their way to Minari.

    Args:
        source: the space as it was recorded, without what is left out.
        tree: that of the space that the dataset says: of the dtypes that are stored.
    """

    source: Space[Any]
    tree: Node

    @property
    def names(self) -> list[str]:
        """The fields."""
        return [leaf.name for leaf in self.tree.leaves]


def exportable(space: Space[Any], root: str, fields: Mapping[str, Field], limits: Limits) -> Part:
    """A space without the parts that Minari cannot hold.

    Raises:
        UnsupportedSpaceError: the format cannot hold a part of it, and nothing is to be left out; or nothing is left.
        FieldError: the fields are not those of the space.
    """

    def leaf(space: Space[Any], name: str) -> Space[Any] | None:
        if fault := _fault(space, name, fields, limits):
            limits.cannot_hold(name, fault, UnsupportedSpaceError)
            return None
        return space

    source = map_space(space, SpacePath(root), leaf, limits, limits.key_fault)
    if source is None:
        raise UnsupportedSpaceError(f"nothing of the {root} space {space!r:.80} would be left")
    stored = map_space(source, SpacePath(root), lambda space, name: _as_stored(space, name, fields), limits)
    assert stored is not None
    return Part(source, space_tree(stored, root))


def _fault(space: Space[Any], name: str, fields: Mapping[str, Field], limits: Limits) -> str | None:
    """Why Minari cannot hold a space without parts, or None."""
    kind = standard_node(space)
    if issubclass(kind, GroupNode):
        return None if limits.is_hdf5 else f"a {kind.standard.__name__} space without parts has no rows"
    if not issubclass(kind, (TextNode, NumberNode)):
        return f"Minari has no {type(space).__name__} spaces"
    space, shape = _as_stored(space, name, fields), space.shape or ()
    is_image = import_module("minari.dataset.minari_storage").is_image_space(space)
    if limits.jpeg_encoding and is_image and len(shape) == 3 and shape[2] != 3:
        return f"JPEG has three channels or none, and its shape is {shape}"
    if not limits.is_hdf5 and 0 in shape:
        return f"its shape {shape} has no elements"
    serialization = import_module("minari.serialization")
    try:
        back = serialization.deserialize_space(serialization.serialize_space(space))
    except Exception as error:  # whatever Gymnasium and Minari raise of a space that they do not take
        return f"of {space!r:.80}, Minari says {type(error).__name__}: {error}"
    if type(back) is not type(space) or back.shape != space.shape:
        return f"of {space!r:.80}, Minari makes {back!r:.80}"
    return None


def _as_stored(space: Space[Any], name: str, fields: Mapping[str, Field]) -> Space[Any]:
    """A space without parts in the dtype of its field.

    Raises:
        FieldError: the field is not of the space.
    """
    if not issubclass(standard_node(space), NumberNode):
        return space
    field = fields.get(name)
    if field is None or field.shape != space.shape or field.ragged:
        raise FieldError(
            f"{name}: expected a field of shape {space.shape} for {space!r:.80}, got {field}; pass the space that the "
            "fields are of"
        )
    if not isinstance(space, spaces.Box) or field.dtype.name == np.dtype(space.dtype).name:
        return space
    if field.dtype.kind == "f":
        with np.errstate(over="ignore"):
            low, high = space.low.astype(field.dtype), space.high.astype(field.dtype)
        if (low <= high).all():
            return spaces.Box(low, high, space.shape, field.dtype.type)
    return _unbounded(field)


def _unbounded(field: Field) -> spaces.Box:
    """A Box that holds every value of a field."""
    dtype, shape = field.dtype, field.shape
    if dtype.kind == "f":
        least, most = -np.inf, np.inf
    elif dtype.kind == "b":
        least, most = 0, 1
    else:
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    return spaces.Box(np.full(shape, least, dtype), np.full(shape, most, dtype), shape, dtype.type)


def guess_space(root: str, fields: Mapping[str, Field]) -> Space[Any]:
    """An unbounded space for the fields of a buffer that was stored by hand: a Box, or a Dict of them.

    Raises:
        FieldError: there is no such field, or no space has fields of these names.
    """
    if root in fields:
        if fields[root].ragged:
            raise FieldError(f"field {root!r}: of ragged fields the space must be told; pass {root}_space=...")
        return _unbounded(fields[root])
    keys = list(dict.fromkeys(name[len(root) + 1 :].split(".")[0] for name in fields if name.startswith(f"{root}.")))
    if not keys:
        raise FieldError(
            f"no field {root!r}: an exported buffer has the fields observation (a state field), action, reward, "
            f"terminated and truncated; there are {list(fields)}"
        )
    if [at.name for at in SpacePath(root).parts(keys)] != [f"{root}.{key}" for key in keys]:
        raise FieldError(f"fields below {root!r}: {keys} are no keys of a Dict space; pass {root}_space=...")
    return spaces.Dict([(key, guess_space(f"{root}.{key}", fields)) for key in keys])


# --- values ---


def nested(tree: Node, episode: Episode, limits: Limits) -> Any:
    """The values of an episode, all steps, as Minari nests them: dicts and tuples of arrays and of lists of strings.

    Raises:
        FieldError: one of them does not fit the format, or the dtype that the dataset says.
    """
    if isinstance(tree, GroupNode):
        return tree.value_of({key: nested(part, episode, limits) for key, part in tree.parts.items()})
    if not isinstance(tree, TextNode):
        return cast_exactly(tree.name, episode[tree.name], np.dtype(tree.space.dtype).newbyteorder("="))
    texts = [row.tobytes().decode("utf-8", "surrogatepass") for row in episode[tree.name]]
    for text in texts:
        if fault := limits.text_fault(text):
            raise FieldError(f"{tree.name}: the string {text!r:.60} {fault}")
    return texts


def by_field(tree: Node, values: Any) -> dict[str, Any]:
    """The values of a Minari episode, all steps, by the names of their fields.

    Arrays are ``(rows, *shape)``; of a Text space it is a list of ``(n,)`` uint8 arrays, the UTF-8 bytes.

    Args:
        tree: that of the space of the values.
        values: what the dataset has.

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
        parts = zip(tree.parts.values(), found, strict=True)
        return {name: value for part, of_it in parts for name, value in by_field(part, of_it).items()}
    if isinstance(tree, TextNode):
        return {tree.name: [np.frombuffer(encode_text(tree.name, text), np.uint8) for text in values]}
    shape = tree.space.shape or ()
    array = in_shape(np.asarray(values), shape)
    if array.dtype.kind not in "biuf" or array.shape[1:] != shape:
        raise CorruptBufferError(f"{tree.name}: expected numbers of shape {shape}, got {array.dtype} {array.shape[1:]}")
    return {tree.name: array}


def in_shape(array: Array, shape: tuple[int, ...]) -> Array:
    """Values ``(rows, *shape)`` that came with more axes of one, or fewer: a Discrete action as ``(rows, 1)``."""
    given = [size for size in array.shape[1:] if size != 1]
    is_same = array.ndim > 0 and given == [size for size in shape if size != 1]
    return array.reshape(len(array), *shape) if is_same else array


def cast_exactly(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
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

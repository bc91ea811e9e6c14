"""Flat entries of a batch, ``observation.camera.rgb``, nested as the space was: dicts by key, tuples by index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.schema.names import encode_siblings

OWN = "%values"
"""The key of a field that lies where other fields are below: the items of a sequence beside their lengths."""

_MISSING = object()


@dataclass(frozen=True)
class _Slot:
    """Where in a tree an entry of the batch belongs."""

    entry: str


def roots_of(environment: Mapping[str, Any] | None) -> dict[str, Any]:
    """The recorded spaces, as JSON, by the first component of their fields' names."""
    recorded = environment or {}
    return {root: recorded.get(f"{root}_space") for root in ("observation", "action")}


class Nesting:
    """Puts the entries of a batch into trees.

    Args:
        spaces: JSON of the recorded spaces, by the name that their fields' names begin with.

    The parts of a Dict space become a dict with the space's own keys, and those of a Tuple space a tuple, or a dict by
    index where some of them are not in the batch. Below other spaces, and in fields that no space describes, the keys
    are the components of the name, as they are.
    """

    def __init__(self, spaces: Mapping[str, Any]) -> None:
        self._spaces = spaces
        self._members: dict[str, tuple[str, dict[tuple[str, ...], _Slot]]] = {}
        self._trees: dict[str, Any] = {}
        self._tree_of: dict[str, str] = {}

    def place(self, entry: str, field: str, prefix: str, suffix: str) -> str:
        """Note an entry of a field, called ``prefix + field + suffix``; the name of the tree that it will be in."""
        first, *below = field.split(".")
        root = f"{prefix}{first}{suffix}"
        self._members.setdefault(root, (first, {}))[1][tuple(below)] = _Slot(entry)
        self._tree_of[entry] = root
        return root

    def build(self, entries: Iterable[str]) -> None:
        """Make the trees of those entries that will be in the batch.

        Raises:
            CorruptBufferError: the metadata's description of a space is damaged.
        """
        from gym_replay.spaces import space_from_json  # it imports Gymnasium

        wanted = set(entries)
        for root, (first, members) in self._members.items():
            parts: dict[tuple[str, ...], Any] = {path: slot for path, slot in members.items() if slot.entry in wanted}
            if not parts:
                continue
            recorded = self._spaces.get(first)
            try:
                space = None if recorded is None else space_from_json(recorded)
            except CorruptBufferError as error:
                raise CorruptBufferError(f"metadata.json: 'environment': {first}_space: {error}") from None
            self._trees[root] = _tree(space, parts)

    def fold(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with its entries in trees, each where its first entry was; those not noted stay as they are."""
        folded: dict[str, Any] = {}
        for name, value in batch.items():
            root = self._tree_of.get(name)
            if root is None or root not in self._trees:
                folded[name] = value
            elif root not in folded:
                folded[root] = _filled(self._trees[root], batch)
        return folded


def _tree(space: Any, parts: dict[tuple[str, ...], Any]) -> Any:
    """The tree of the entries at these paths below a space."""
    children = _parts_of(space)
    if children is None and set(parts) == {()}:
        return parts[()]
    keyed = dict(enumerate(children)) if isinstance(children, tuple) else children or {}
    tree = _keyed(keyed, parts)
    return tuple(tree.values()) if isinstance(children, tuple) and len(tree) == len(children) else tree


def _keyed(children: Mapping[Any, Any], parts: dict[tuple[str, ...], Any]) -> dict[Any, Any]:
    tree: dict[Any, Any] = {}
    below: dict[str, dict[tuple[str, ...], Any]] = {}
    for path, slot in parts.items():
        if path:
            below.setdefault(path[0], {})[path[1:]] = slot
        else:
            tree[OWN] = slot
    for (key, child), component in zip(children.items(), encode_siblings(children), strict=True):
        inside = below.pop(component, {})
        if inside or _is_empty(child):
            tree[key] = _tree(child, inside)
    for component, inside in below.items():
        if component in tree:
            raise FieldError(f"nested=True: two fields would be at the key {component!r}; use nested=False")
        tree[component] = _tree(None, inside)
    return tree


def _is_empty(space: Any) -> bool:
    """Whether it is a Dict or Tuple space without parts, which no field tells of."""
    return _parts_of(space) in ({}, ())


def _parts_of(space: Any) -> dict[Any, Any] | tuple[Any, ...] | None:
    """The spaces inside a space that components of field names stand for; None where there is no space."""
    from gym_replay.spaces.node import standard_node  # it imports Gymnasium

    return None if space is None else standard_node(space).parts_of(space)


def _filled(tree: Any, batch: Mapping[str, Any]) -> Any:
    if isinstance(tree, _Slot):
        return batch.get(tree.entry, _MISSING)
    if isinstance(tree, tuple):
        values = [_filled(part, batch) for part in tree]
        if not any(value is _MISSING for value in values):
            return tuple(values)
        tree = dict(enumerate(tree))
    filled = ((key, _filled(part, batch)) for key, part in tree.items())
    return {key: value for key, value in filled if value is not _MISSING}

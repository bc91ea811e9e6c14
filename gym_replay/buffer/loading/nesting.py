"""What the entries of a batch are called, which are asked for, and how the space nests them: dicts, and tuples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.notices import did_you_mean
from gym_replay.schema.names import encode_siblings

OWN = "%values"
"""The key of a field that lies where other fields are below: the items of a sequence beside their lengths."""

_MISSING = object()


class BatchNames:
    """The names of a batch's entries: flat, ``observation.camera.rgb``, or in trees, nested as the space was.

    The parts of a Dict space become a dict with the space's own keys, and those of a Tuple space a tuple, or a dict by
    index where some of them are not in the batch. Below other spaces, and in fields that no space describes, the keys
    are the components of the name, as they are. Entries that were renamed are in no tree.

    Args:
        entries: of those that show a field, its name.
        available: all entries that there may be, in their order.
        renamed: other names for entries.
        only: the names, or trees, that are asked for; None for all.
        environment: with the recorded spaces by which entries are nested; None to have them flat.

    Raises:
        FieldError: a name is unknown, or two entries would have the same.
        CorruptBufferError: the metadata's description of a space is damaged.
    """

    def __init__(
        self,
        entries: Mapping[str, str],
        available: Sequence[str],
        *,
        renamed: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        self._renamed, self._only = dict(renamed or {}), only
        self._root: dict[str, str] = {}
        if unknown := [name for name in self._renamed if name not in available]:
            raise FieldError(f"fieldname_map: unknown entry {unknown[0]!r}{did_you_mean(unknown[0], available)}")
        _check_distinct([self.out(name) for name in available])
        members: dict[str, tuple[str, dict[tuple[str, ...], Any]]] = {}
        for entry, name in entries.items() if environment is not None else ():
            first, *below = name.split(".")
            for whole in (entry, f"{entry}_lens", f"{entry}_is_pad"):
                if whole in available and whole not in self._renamed:
                    self._root[whole] = root = f"{entry.removesuffix(name)}{first}{whole.removeprefix(entry)}"
                    members.setdefault(root, (first, {}))[1][tuple(below)] = whole
        flat = [self.out(name) for name in available if name not in self._root]
        outputs = [*dict.fromkeys(self._root.values()), *flat]
        _check_distinct(outputs)
        if missing := sorted({*(only or ())} - {*outputs}):
            raise FieldError(f"field {missing[0]!r} is not in the batch; it has {outputs}")
        self._trees: dict[str, Any] = {}
        for root, (first, parts) in members.items():
            if only is None or root in only:
                self._trees[root] = _tree(_space(environment or {}, f"{first}_space"), parts)

    def out(self, name: str) -> str:
        """What an entry is called, where it is in no tree."""
        return self._renamed.get(name, name)

    def is_wanted(self, name: str) -> bool:
        """Whether an entry is asked for."""
        return self._only is None or self._root.get(name, self.out(name)) in self._only

    def nest(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its entries in trees, each where its first entry was."""
        if not self._trees:
            return batch
        nested: dict[str, Any] = {}
        for name, value in batch.items():
            root = self._root.get(name)
            if root not in self._trees:
                nested[name] = value
            elif root not in nested:
                nested[root] = _filled(self._trees[root], batch)
        return nested


def _check_distinct(outputs: Sequence[str]) -> None:
    if twice := sorted({name for name in outputs if outputs.count(name) > 1}):
        raise FieldError(f"two entries of the batch would be called {twice[0]!r}; use fieldname_map")


def _space(environment: Mapping[str, Any], name: str) -> Any:
    """A recorded space; None where there is none."""
    from gym_replay.spaces import space_from_json  # it imports Gymnasium

    try:
        return None if environment.get(name) is None else space_from_json(environment[name])
    except CorruptBufferError as error:
        raise CorruptBufferError(f"metadata.json: 'environment': {name}: {error}") from None


def _parts_of(space: Any) -> dict[Any, Any] | tuple[Any, ...] | None:
    """The spaces inside a space that components of field names stand for; None where there is no space."""
    from gym_replay.spaces.node import standard_node  # it imports Gymnasium

    return None if space is None else standard_node(space).parts_of(space)


def _tree(space: Any, parts: dict[tuple[str, ...], Any]) -> Any:
    """The tree of the entries at these paths below a space: dicts, tuples, and the entries' names."""
    children = _parts_of(space)
    if children is None and set(parts) == {()}:
        return parts[()]
    keyed = dict(enumerate(children)) if isinstance(children, tuple) else children or {}
    tree: dict[Any, Any] = {}
    below: dict[str, dict[tuple[str, ...], Any]] = {}
    for path, entry in parts.items():
        if path:
            below.setdefault(path[0], {})[path[1:]] = entry
        else:
            tree[OWN] = entry
    for (key, child), component in zip(keyed.items(), encode_siblings(keyed), strict=True):
        inside = below.pop(component, {})
        if inside or _parts_of(child) in ({}, ()):  # a space without parts, which no field tells of
            tree[key] = _tree(child, inside)
    for component, inside in below.items():
        if component in tree:
            raise FieldError(f"nested=True: two fields would be at the key {component!r}; use nested=False")
        tree[component] = _tree(None, inside)
    return tuple(tree.values()) if isinstance(children, tuple) and len(tree) == len(children) else tree


def _filled(tree: Any, batch: Mapping[str, Any]) -> Any:
    if isinstance(tree, str):
        return batch.get(tree, _MISSING)
    if isinstance(tree, tuple):
        values = [_filled(part, batch) for part in tree]
        if not any(value is _MISSING for value in values):
            return tuple(values)
        tree = dict(enumerate(tree))
    filled = ((key, _filled(part, batch)) for key, part in tree.items())
    return {key: value for key, value in filled if value is not _MISSING}

"""What the entries of a batch are called, which are asked for, and how the space nests them: dicts, and tuples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.notices import did_you_mean
from gym_replay.schema.names import encode_siblings

OWN = "%values"
"""The key of a field that lies where other fields are below: the items of a sequence beside their lengths."""

_LENS = "%lens"
"""What the lengths of a ragged field are called in a path, where they lie beside its leaf; no component is."""

_MISSING = object()


class BatchNames:
    """The names of a batch's entries: flat, ``observation.camera.rgb``, or in trees, nested as the space was.

    The parts of a Dict space become a dict with the space's own keys, and those of a Tuple space a tuple, or a dict by
    index where some of them are not in the batch. Below other spaces, and in fields that no space describes, the keys
    are the components of the name, as they are. Entries that were renamed are in no tree.

    The lengths of a ragged part lie beside it, ``batch["observation"]["words_lens"]``, where its key is a string. Those
    of an element of a tuple, and of a whole observation, have a tree of their own, ``batch["observation_lens"]``.

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
        spaces: dict[str, Any] = {}
        for entry, name in entries.items() if environment is not None else ():
            first, *below = name.split(".")
            if first not in spaces:
                spaces[first] = _space(environment or {}, f"{first}_space")
            own_root = f"{entry.removesuffix(name)}{first}"
            for suffix in ("", "_lens", "_is_pad"):
                if (whole := f"{entry}{suffix}") not in available or whole in self._renamed:
                    continue
                root, path = f"{own_root}{suffix}", tuple(below)
                if suffix == "_lens" and _has_text_key(spaces[first], path):
                    root, path = own_root, (*path, _LENS)
                self._root[whole] = root
                members.setdefault(root, (first, {}))[1][path] = whole
        flat = [self.out(name) for name in available if name not in self._root]
        outputs = [*dict.fromkeys(self._root.values()), *flat]
        _check_distinct(outputs)
        if missing := sorted({*(only or ())} - {*outputs}):
            raise FieldError(f"field {missing[0]!r} is not in the batch; it has {outputs}")
        self._trees: dict[str, Any] = {}
        for root, (first, parts) in members.items():
            if only is None or root in only:
                self._trees[root] = _tree(spaces[first], parts)

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


def _has_text_key(space: Any, path: tuple[str, ...]) -> bool:
    """Whether the last key of a path below a space is a string of a dict, beside which there is room for another."""
    if not path:
        return False
    for component in path[:-1]:
        space = _child(space, component)[1]
    return isinstance(_child(space, path[-1])[0], str)


def _child(space: Any, component: str) -> tuple[Any, Any]:
    """The key, and the space, that a component of a field's name stands for below a space."""
    children = _parts_of(space) or {}
    keyed = dict(enumerate(children)) if isinstance(children, tuple) else children
    found = dict(zip(encode_siblings(keyed), keyed.items(), strict=True))
    return found.get(component, (component, None))


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
        lens = inside.pop((_LENS,), None)
        if inside or _parts_of(child) in ({}, ()):  # a space without parts, which no field tells of
            tree[key] = _tree(child, inside)
        if lens is not None:
            tree[f"{key}_lens"] = lens
    for component, inside in below.items():
        lens = inside.pop((_LENS,), None)
        if component in tree:
            raise FieldError(f"nested=True: two fields would be at the key {component!r}; use nested=False")
        if inside:
            tree[component] = _tree(None, inside)
        if lens is not None:
            tree[f"{component}_lens"] = lens
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

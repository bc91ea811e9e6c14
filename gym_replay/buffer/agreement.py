"""What the schemas of several buffers have in common, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from gym_replay.buffer.storage.choice import Choice
from gym_replay.buffer.storage.layout import Metadata
from gym_replay.errors import ConfigMismatchError, FieldError
from gym_replay.schema.fields import Field

Wanted: TypeAlias = "Sequence[str] | str | None"
"""Names of fields, ``"common"``, or None where all buffers must have the same."""

COMMON = "common"
_MOST_FOLDERS = 3


@dataclass
class _Variant:
    """One schema, and the buffers that have it."""

    metadata: Metadata
    folders: list[Path]

    def fields(self, kind: str) -> Mapping[str, Field]:
        found: Mapping[str, Field] = getattr(self.metadata, kind)
        return found


def agree(schemas: Sequence[tuple[Path, Metadata]], fields: Wanted = None, meta_fields: Wanted = None) -> Choice | None:
    """What is read of buffers with these schemas.

    Fields are the same where dtype, shape, ``state`` and ``ragged`` are: defaults matter to writers only. Meta fields
    that the recorder keeps by itself, and that not all buffers have, are left out.

    Args:
        schemas: folder and metadata of each buffer.
        fields, meta_fields: names that all buffers have; ``"common"`` for all such; None where there must be no other.

    Returns:
        What to show of each; None where that is everything, for all of them.

    Raises:
        ConfigMismatchError: they differ in what is wanted; the message lists all differences.
        FieldError: no buffer has such a field.
    """
    variants = _variants(schemas)
    faults: list[str] = []
    chosen_fields = _chosen("fields", fields, variants, faults)
    chosen_meta = _chosen("meta_fields", meta_fields, variants, faults)
    if faults:
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise ConfigMismatchError(
            f"the schemas of {len(schemas)} buffers differ:{lines}\nTo read what they share, name it with "
            f"fields=[...] and meta_fields=[...], or pass {COMMON!r} for either"
        )
    if not chosen_fields:
        raise FieldError("fields: expected at least one that all buffers have, got none")
    first = schemas[0][1]
    own = tuple(name for name in chosen_meta if name in first.recorder_meta)
    choice = Choice(tuple(chosen_fields), tuple(chosen_meta), own)
    whole = all(
        set(choice.fields) == set(variant.metadata.fields)
        and set(choice.meta_fields) == set(variant.metadata.meta_fields)
        for variant in variants
    )
    return None if whole and choice == Choice.all_of(first) else choice


def _variants(schemas: Sequence[tuple[Path, Metadata]]) -> list[_Variant]:
    """The different schemas; of thousands of buffers, most share the objects that describe them."""
    known: dict[tuple[int, int], _Variant] = {}
    for folder, metadata in schemas:
        key = id(metadata.fields), id(metadata.meta_fields)
        known.setdefault(key, _Variant(metadata, [])).folders.append(folder)
    return list(known.values())


def _chosen(kind: str, wanted: Wanted, variants: Sequence[_Variant], faults: list[str]) -> list[str]:
    """The names that are read; what is wrong with them goes to ``faults``."""
    names = list(dict.fromkeys(name for variant in variants for name in variant.fields(kind)))
    looks = {name: _looks(kind, name, variants) for name in names}
    if isinstance(wanted, str):
        if wanted != COMMON:
            raise FieldError(f"{kind}={wanted!r}: expected a sequence of names, or {COMMON!r}; write ({wanted!r},)")
        return [name for name in names if len(looks[name]) == 1]
    if wanted is not None:
        chosen = list(dict.fromkeys(wanted))
        if unknown := [name for name in chosen if name not in looks]:
            raise FieldError(f"{kind}: no buffer has {unknown[0]!r}; there are {names}")
    else:
        own = {
            name
            for name in names
            if kind == "meta_fields"
            and all(name in v.metadata.recorder_meta for v in variants if name in v.metadata.meta_fields)
        }
        chosen = [name for name in names if name not in own or len(looks[name]) == 1]
    kind_of_one = kind.replace("_", " ").removesuffix("s")
    faults += [f"{kind_of_one} {name!r}: {_listed(looks[name])}" for name in chosen if len(looks[name]) > 1]
    return chosen


def _looks(kind: str, name: str, variants: Sequence[_Variant]) -> dict[str, list[Path]]:
    """What a field is, and in which buffers it is that."""
    looks: dict[str, list[Path]] = {}
    for variant in variants:
        looks.setdefault(_look(variant.fields(kind).get(name)), []).extend(variant.folders)
    return looks


def _look(field: Field | None) -> str:
    if field is None:
        return "missing"
    words = [field.dtype_name, *(["of shape " + str(field.shape)] if field.shape else [])]
    words += [word for word in ("state", "ragged") if getattr(field, word)]
    return " ".join(words)


def _listed(looks: Mapping[str, list[Path]]) -> str:
    """Each variant with the first buffers that have it."""
    parts = []
    for look, folders in looks.items():
        named = ", ".join(map(str, folders[:_MOST_FOLDERS]))
        more = f" and {len(folders) - _MOST_FOLDERS} more" if len(folders) > _MOST_FOLDERS else ""
        parts.append(f"{look} in {named}{more}")
    return "; ".join(parts)

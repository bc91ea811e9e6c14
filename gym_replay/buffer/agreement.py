"""What the schemas of several buffers have in common, and the schema of one that takes the episodes of all."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from gym_replay.buffer.storage.layout import Choice, Metadata
from gym_replay.buffer.storage.reference_returns import ReferenceReturns
from gym_replay.errors import ConfigMismatchError, FieldError
from gym_replay.notices import did_you_mean
from gym_replay.schema.fields import Field

Wanted: TypeAlias = "Sequence[str] | str | None"
"""Names of fields, ``"common"``, or None where all buffers must have the same."""

Schemas: TypeAlias = Sequence[tuple[Path, Metadata]]
"""Folder and metadata of each buffer."""

COMMON = "common"
_MOST_FOLDERS = 3

_ABOUT = ("minari", "lerobot", "robomimic")
"""What is noted with the environment and is not about it: who made a data set, and of which id."""


def agree(
    schemas: Schemas, fields: Wanted = None, meta_fields: Wanted = None, *, recorders_own_may_differ: bool = True
) -> Choice | None:
    """What is read of buffers with these schemas.

    Fields are the same where dtype, shape, ``state``, ``ragged`` and ``codec`` are: defaults matter to writers only.

    Args:
        schemas: at least one.
        fields, meta_fields: names that all buffers have; ``"common"`` for all such; None where there must be no other.
        recorders_own_may_differ: leave out meta fields that the recorder keeps by itself and that not all buffers have.

    Returns:
        What to show of each; None where that is everything, for all of them.

    Raises:
        ConfigMismatchError: they differ in what is wanted; the message lists all differences.
        FieldError: no buffer has such a field.
    """
    by_field = _looks([(folder, metadata.fields) for folder, metadata in schemas])
    by_meta_field = _looks([(folder, metadata.meta_fields) for folder, metadata in schemas])
    of_users = {name for _, one in schemas for name in one.meta_fields.keys() - set(one.recorder_meta)}
    own = by_meta_field.keys() - of_users if recorders_own_may_differ else ()
    chosen = _chosen("fields", fields, by_field)
    chosen_meta = _chosen("meta_fields", meta_fields, by_meta_field, own)
    faults = [f"field {name!r}: {_listed(by_field[name])}" for name in chosen if len(by_field[name]) > 1]
    faults += [
        f"meta field {name!r}: {_listed(by_meta_field[name])}" for name in chosen_meta if len(by_meta_field[name]) > 1
    ]
    if faults:
        lines = "".join(f"\n  {fault}" for fault in faults)
        encoded = [name for name in chosen if len(by_field[name]) > 1 and "with codec" in "".join(by_field[name])]
        if encoded:
            lines += (
                f"\nTo convert one of them: gym-replay select FOLDER COPY --codec {encoded[0]}=CODEC (raw for none), "
                f"or select(folder, copy, codecs={{{encoded[0]!r}: codec}})"
            )
        raise ConfigMismatchError(
            f"the schemas of {len(schemas)} buffers differ:{lines}\nRead them one at a time, or take what they share: "
            f"fields=[...] and meta_fields=[...], or {COMMON!r} for either; with gym-replay merge it is "
            f"--fields {COMMON} --meta-fields {COMMON}"
        )
    if not chosen:
        raise FieldError("fields: expected at least one that all buffers have, got none")
    first = schemas[0][1]
    own_chosen = tuple(name for name in chosen_meta if name in first.recorder_meta)
    choice = Choice(tuple(chosen), tuple(chosen_meta), own_chosen)
    is_whole = by_field.keys() == set(chosen) and by_meta_field.keys() == set(chosen_meta)
    return None if is_whole and choice == Choice.all_of(first) else choice


def _looks(found: Sequence[tuple[Path, Mapping[str, Field]]]) -> dict[str, dict[str, list[Path]]]:
    """By name, what a field is, and in which buffers it is that."""
    variants: dict[int, tuple[Mapping[str, Field], list[int]]] = {}
    for index, (_, fields) in enumerate(found):  # of thousands of buffers, most share the objects that describe them
        variants.setdefault(id(fields), (fields, []))[1].append(index)
    looks: dict[str, dict[str, list[Path]]] = {}
    for name in {name: None for fields, _ in variants.values() for name in fields}:
        by_look: dict[str, list[int]] = {}
        for fields, indices in variants.values():
            by_look.setdefault(_look(fields.get(name)), []).extend(indices)
        looks[name] = {look: [found[index][0] for index in sorted(indices)] for look, indices in by_look.items()}
    return looks


def _look(field: Field | None) -> str:
    if field is None:
        return "missing"
    words = [field.dtype_name, *(["of shape " + str(field.shape)] if field.shape else [])]
    words += [word for word in ("state", "ragged") if getattr(field, word)]
    words += [f"with codec {json.dumps(field.codec)}"] if field.codec is not None else []
    return " ".join(words)


def _chosen(
    kind: str, wanted: Wanted, looks: Mapping[str, Mapping[str, list[Path]]], may_differ: Collection[str] = ()
) -> list[str]:
    """The names that are meant, also of fields that differ; None stands for all but those of ``may_differ`` that do."""
    common = [name for name, by_look in looks.items() if len(by_look) == 1]
    if wanted is None:
        return [name for name in looks if name in common or name not in may_differ]
    if isinstance(wanted, str):
        if wanted != COMMON:
            raise FieldError(f"{kind}={wanted!r}: expected a sequence of names, or {COMMON!r}; write ({wanted!r},)")
        return common
    if unknown := [name for name in wanted if name not in looks]:
        raise FieldError(f"{kind}: no buffer has {unknown[0]!r}{did_you_mean(unknown[0], looks)}")
    return list(dict.fromkeys(wanted))


def _listed(looks: Mapping[str, list[Path]]) -> str:
    """Each variant with the first buffers that have it."""
    parts = []
    for look, folders in looks.items():
        named = ", ".join(map(str, folders[:_MOST_FOLDERS]))
        more = f" and {len(folders) - _MOST_FOLDERS} more" if len(folders) > _MOST_FOLDERS else ""
        parts.append(f"{look} in {named}{more}")
    return "; ".join(parts)


def merged_schema(schemas: Schemas, fields: Wanted = None, meta_fields: Wanted = None) -> Metadata:
    """The metadata of a buffer without limits that takes the episodes of all buffers with these schemas.

    Args:
        schemas: at least one.
        fields, meta_fields: as for :func:`agree`. With ``fields`` the environments may differ: what is alike in all is
            kept, a space only where all its fields are taken.

    Raises:
        ConfigMismatchError: the buffers differ; the message lists how.
        FieldError: a name is unknown.
    """
    choice, first = agree(schemas, fields, meta_fields, recorders_own_may_differ=False), schemas[0][1]
    chosen = first if choice is None else choice.of(first)
    if fields is None:
        _check_environments(schemas)
    return Metadata(
        fields=chosen.fields,
        meta_fields=chosen.meta_fields,
        recorder_meta=chosen.recorder_meta,
        environment=_environment(schemas, chosen.fields),
        reference_returns=_reference_returns(schemas),
    )


def _reference_returns(schemas: Schemas) -> ReferenceReturns | None:
    """Those that all buffers have alike."""
    found = {metadata.reference_returns for _, metadata in schemas}
    return found.pop() if len(found) == 1 else None


def _check_environments(schemas: Schemas) -> None:
    """Raise ConfigMismatchError where the buffers were not recorded from one environment."""
    home, first = schemas[0][0], schemas[0][1].environment or {}
    for folder, metadata in schemas[1:]:
        other = metadata.environment or {}
        compared = [name for name in {**first, **other} if name not in _ABOUT]
        if apart := [name for name in compared if first.get(name) != other.get(name)]:
            specs = [found.get("env_spec") for found in (first, other)]
            ids = [spec.get("id") if isinstance(spec, dict) else None for spec in specs]
            which = f" ({ids[0]} and {ids[1]})" if ids[0] != ids[1] else ""
            raise ConfigMismatchError(
                f"{home} and {folder} were recorded from different environments{which}: their {', '.join(apart)} "
                f"differ. fields={COMMON!r} copies the steps all the same, and of the environment what is alike"
            )


def _environment(schemas: Schemas, fields: Mapping[str, Field]) -> dict[str, Any] | None:
    """What is kept of the recorded environments: spaces and spec that all have alike, a space with all its fields."""
    found = [metadata.environment or {} for _, metadata in schemas]
    kept = {name: value if all(one.get(name) == value for one in found) else None for name, value in found[0].items()}
    missing = {name for _, metadata in schemas for name in metadata.fields} - set(fields)
    for root in ("observation", "action"):
        if any(name == root or name.startswith(f"{root}.") for name in missing):
            kept[f"{root}_space"] = None
    return kept if any(value is not None for value in kept.values()) else None

"""The fields of the buffer that a Minari dataset becomes: those that were exported, or what the dataset has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from gym_replay.buffer.door import Metadata, metadata_from_json
from gym_replay.buffer.env_spec import spec_to_json
from gym_replay.errors import FieldError
from gym_replay.interop.minari.limits import IMPORTED, Losses
from gym_replay.interop.minari.metadata import OWN, about_import, reference_of
from gym_replay.interop.minari.parts import by_field, storable
from gym_replay.interop.old_data import step_shape
from gym_replay.schema.fields import Field
from gym_replay.schema.names import check_distinct, check_field_name, encode_key
from gym_replay.spaces import space_to_json, space_tree
from gym_replay.wrappers.infos import PRESENT, ROOT
from gym_replay.wrappers.recorded_schema import FLAGS, core_fields, meta_fields, trees_of

KNOWN_META = ("episode_seed", "episode_return", "episode_complete", "episode_options", "episode_run")
"""The recorder's meta fields that a dataset of another origin tells something about."""

_ROOTS = ("observation", "action")
"""The fields, or groups of fields, that are of the environment's spaces."""

_STEPS = (*_ROOTS, "reward", *FLAGS, ROOT, PRESENT)
"""Which fields of the steps there may be, or what their names begin with."""

Keys = tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """A buffer to be.

    Args:
        metadata: of it.
        roots: the spaces of observation and action, as the dataset has them, without what a buffer cannot hold.
        entries: per meta field of the dataset's own, the keys of the metadata entry, one for each level.
        is_exported: whether :func:`export_minari` wrote the dataset.
    """

    metadata: Metadata
    roots: dict[str, Space[Any]]
    entries: dict[str, Keys]
    is_exported: bool


def _roots(source: Any) -> dict[str, Space[Any]]:
    return dict(zip(_ROOTS, (source.observation_space, source.action_space), strict=True))


def exported_schema(source: Any, exported: Any) -> Schema:
    """The schema of the buffer that was exported.

    Raises:
        CorruptBufferError: what the dataset says of it is damaged.
    """
    metadata = metadata_from_json(exported, Path(source.storage.data_path) / "metadata.json")
    environment = {**(metadata.environment or {}), IMPORTED: about_import(source)}
    metadata = replace(metadata, environment=environment, reference_returns=reference_of(source))
    return Schema(metadata, _roots(source), {}, is_exported=True)


def found_schema(source: Any, first: Mapping[str, Any], metadatas: Iterable[Any], losses: Losses) -> Schema:
    """The schema for a dataset of another origin.

    Args:
        source: the dataset.
        first: one of its episodes, which tells the dtypes: they may be others than those of the spaces.
        metadatas: of all episodes.
        losses: is told of parts of spaces and of metadata that a buffer cannot hold.
    """
    parts = {root: storable(space, root, losses) for root, space in _roots(source).items()}
    roots = {root: part for root, part in parts.items() if part is not None}
    dtypes: dict[str, Any] = {}
    for root, space in roots.items():
        values = by_field(space_tree(space, root), first[f"{root}s"])
        dtypes |= {name: value.dtype for name, value in values.items() if isinstance(value, np.ndarray)}
    stored = {root: spaces.Dict({}) if part is None else part for root, part in parts.items()}
    observation, action = trees_of(stored["observation"], stored["action"], dtypes)
    rewards = np.asarray(first["rewards"])
    reward = step_shape("reward", rewards.dtype, rewards.shape[1:])
    own = meta_fields(reward)
    entries = _entries(metadatas, losses)
    metadata = Metadata(
        fields=core_fields(observation, action, reward),
        meta_fields={**{name: own[name] for name in KNOWN_META}, **{name: found[1] for name, found in entries.items()}},
        recorder_meta=KNOWN_META,
        environment={
            **{f"{root}_space": space_to_json(space, root) for root, space in stored.items()},
            "env_spec": spec_to_json(source.env_spec),
            IMPORTED: about_import(source),
        },
        reference_returns=reference_of(source),
    )
    return Schema(metadata, roots, {name: key for name, (key, _) in entries.items()}, is_exported=False)


def _entries(metadatas: Iterable[Mapping[str, Any]], losses: Losses) -> dict[str, tuple[Keys, Field]]:
    """Metadata entries that become meta fields: field name to keys and field."""
    seen: dict[Keys, Field | None] = {}
    for metadata in metadatas:
        for keys, value in entries_of(metadata):
            if keys[0] in OWN or (keys in seen and seen[keys] is None):
                continue
            seen[keys] = _wider(seen.get(keys), _field_of(value))
    fields: dict[str, tuple[Keys, Field]] = {}
    for keys, field in seen.items():
        name = ".".join(map(encode_key, keys))
        if name in KNOWN_META or name.partition(".")[0] in _STEPS:
            name = f"minari.{name}"
        if field is None:
            losses.refuse(
                f"metadata {'/'.join(keys)!r}: not in all episodes a number, an array of one shape, or a string"
            )
            continue
        try:
            if name in fields:
                raise FieldError(f"its name {name!r} is that of another entry")
            check_distinct([*KNOWN_META, *fields, check_field_name(name)])
        except FieldError as error:
            losses.refuse(f"metadata {'/'.join(keys)!r}: {error}")
        else:
            fields[name] = keys, field
    return fields


def entries_of(entries: Any, above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """The entries of nested infos or metadata with their keys, one for each level."""
    for key, value in (entries or {}).items():
        keys = (*above, str(key))
        if isinstance(value, Mapping):
            yield from entries_of(value, keys)
        else:
            yield keys, value


def _field_of(value: Any) -> Field | None:
    """The meta field for a value, or None."""
    if isinstance(value, str):
        return Field("str")
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            return None
        return Field(array.dtype, array.shape, default=np.nan if array.dtype.kind == "f" else None)
    except (FieldError, ValueError):
        return None


def _wider(one: Field | None, other: Field | None) -> Field | None:
    """A field for the values of both; None where there is none."""
    if one is None or one == other or other is None:
        return other
    if one.is_text or other.is_text or one.shape != other.shape or "b" in (one.dtype.kind, other.dtype.kind):
        return None
    dtype = np.promote_types(one.dtype, other.dtype)
    return Field(dtype, one.shape, default=np.nan if dtype.kind == "f" else None)

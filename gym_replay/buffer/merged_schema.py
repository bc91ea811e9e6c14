"""The schema of a buffer that takes the episodes of several others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from gym_replay.buffer.storage.layout import Metadata
from gym_replay.errors import ConfigMismatchError, FieldError
from gym_replay.schema.fields import Field

_ABOUT = ("minari",)
"""What is noted with the environment and is not about it: who made a data set, and of which id."""

Sources: TypeAlias = Sequence[tuple[Path, Metadata]]


def merged_schema(
    sources: Sources, fields: Sequence[str] | None = None, meta_fields: Sequence[str] | None = None
) -> Metadata:
    """The metadata of a buffer without limits that takes the episodes of all sources.

    Args:
        sources: folder and metadata of each, at least one.
        fields, meta_fields: names to take; None takes all, which then must be the same everywhere. With ``fields`` the
            environments may differ: what is alike in all is kept, a space only where all its fields are taken.

    Raises:
        ConfigMismatchError: the sources differ; the message lists how.
        FieldError: a name is unknown.
    """
    first = sources[0][1]
    chosen = _common(sources, "fields", fields)
    chosen_meta = _common(sources, "meta_fields", meta_fields)
    if not chosen:
        raise FieldError("fields: expected at least one name")
    if fields is None:
        _check_environments(sources, chosen)
    return Metadata(
        fields=chosen,
        meta_fields=chosen_meta,
        recorder_meta=tuple(name for name in first.recorder_meta if name in chosen_meta),
        environment=_environment(sources, chosen),
    )


def _common(sources: Sources, kind: str, names: Sequence[str] | None) -> dict[str, Field]:
    """The fields, or meta fields, of these names (None: all), which every source must have alike."""
    if isinstance(names, str):
        raise FieldError(f"{kind}={names!r}: expected a sequence of names; write ({names!r},)")
    (home, schema), others = sources[0], sources[1:]
    first: dict[str, Field] = getattr(schema, kind)
    differing: dict[str, str] = {}
    for folder, metadata in others:
        other: dict[str, Field] = getattr(metadata, kind)
        for name in {**first, **other} if names is None else names:
            if first.get(name) != other.get(name) and name not in differing:
                here, there = first.get(name, "missing"), other.get(name, "missing")
                differing[name] = f"{name}: {here} in {home}, {there} in {folder}"
    if unknown := [name for name in names or () if name not in first and name not in differing]:
        raise FieldError(f"{kind}: unknown name {unknown[0]!r}; there are {list(first)}")
    if differing:
        schemas: list[dict[str, Field]] = [getattr(metadata, kind) for _, metadata in others]
        alike = [name for name, info in first.items() if all(other.get(name) == info for other in schemas)]
        raise ConfigMismatchError(
            f"the sources differ in their {kind.replace('_', ' ')}: {'; '.join(differing.values())}. "
            f"{kind}={alike!r} takes what they have in common"
        )
    return dict(first) if names is None else {name: first[name] for name in names}


def _check_environments(sources: Sources, fields: Mapping[str, Field]) -> None:
    """Raise ConfigMismatchError where the sources were not recorded from one environment."""
    home, first = sources[0][0], sources[0][1].environment or {}
    for folder, metadata in sources[1:]:
        other = metadata.environment or {}
        compared = [name for name in {**first, **other} if name not in _ABOUT]
        if apart := [name for name in compared if first.get(name) != other.get(name)]:
            specs = [found.get("env_spec") for found in (first, other)]
            ids = [spec.get("id") if isinstance(spec, dict) else None for spec in specs]
            which = f" ({ids[0]} and {ids[1]})" if ids[0] != ids[1] else ""
            raise ConfigMismatchError(
                f"{home} and {folder} were recorded from different environments{which}: their {', '.join(apart)} "
                f"differ. fields={list(fields)!r} copies the steps all the same, and of the environment what is alike"
            )


def _environment(sources: Sources, fields: Mapping[str, Field]) -> dict[str, Any] | None:
    """What is kept of the recorded environments: spaces and spec that all have alike, a space with all its fields."""
    found = [metadata.environment or {} for _, metadata in sources]
    kept = {name: value if all(one.get(name) == value for one in found) else None for name, value in found[0].items()}
    missing = {name for _, metadata in sources for name in metadata.fields} - set(fields)
    for root in ("observation", "action"):
        if any(name == root or name.startswith(f"{root}.") for name in missing):
            kept[f"{root}_space"] = None
    return kept if any(value is not None for value in kept.values()) else None

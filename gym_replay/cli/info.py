"""``gym-replay info``: what is in a folder, and how it was recorded."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay.buffer.door import Metadata, Snapshot
from gym_replay.buffer.loading.selection import EpisodeValues
from gym_replay.buffer.provenance import numbers_of, runs_of, when_recorded
from gym_replay.buffer.sizes import SAMPLE, field_size, sampled_ratio
from gym_replay.cli import output
from gym_replay.cli.verbs import FOLDER, verb
from gym_replay.errors import GymReplayError, MissingExtraError
from gym_replay.files.folders import bytes_beneath
from gym_replay.schema.codec_choice import is_image
from gym_replay.schema.codecs import short_name
from gym_replay.schema.fields import Field
from gym_replay.viewing.text import number

_ENDS = ("terminated", "truncated", "complete")
WORTH_A_SAMPLE = 1 << 30
"""Bytes of raw images from which on it is looked at what a codec would save."""
SUGGESTED = "zstd"
_WORTH_SAYING = 1.1
_LIMITS = ("max_episodes", "max_timesteps", "max_steps")


@verb(
    "info",
    "show what is in a folder, and how it was recorded",
    "Shows fields, spaces, numbers of episodes and steps, the room on the disk, how episode lengths and returns are "
    "distributed, and which runs and versions recorded the episodes.",
    ["gym-replay info data/cartpole", "gym-replay info data/shards --json | jq .num_steps"],
    FOLDER,
)
def info(args: argparse.Namespace) -> int:
    """Show what is in a folder."""
    from gym_replay.buffer.concat import open_source

    with open_source(args.folder) as buffer:
        parts = buffer.snapshots()
        found = _describe(
            replace(buffer.metadata, reference_returns=buffer.reference_returns),
            [part.reader.folder for part in parts],
            EpisodeValues(parts),
        )
        for field in found["fields"]:
            field |= _sizes(buffer.metadata.fields[field["name"]], field["name"], parts)
    return output.show(args, {"folder": args.folder, **found}, _lines(args.folder, found))


def _describe(metadata: Metadata, folders: Sequence[Path], episodes: EpisodeValues) -> dict[str, Any]:
    """All that is shown, as plain values."""
    environment = metadata.environment or {}
    spec = environment.get("env_spec")
    lengths, returns = episodes["length"], numbers_of(episodes, "episode_return")
    return {
        "num_episodes": episodes.count,
        "num_steps": int(lengths.sum()),
        "num_buffers": len(folders),
        "bytes": sum(map(bytes_beneath, folders)),
        "fields": [_field(name, info) for name, info in metadata.fields.items()],
        "meta_fields": [
            {**_field(name, info), "recorder": name in metadata.recorder_meta}
            for name, info in metadata.meta_fields.items()
        ],
        "env_id": spec.get("id") if isinstance(spec, dict) else None,
        "env_spec": spec,
        "observation_space": environment.get("observation_space"),
        "action_space": environment.get("action_space"),
        "reference_returns": None if metadata.reference_returns is None else vars(metadata.reference_returns),
        "circular": metadata.circular,
        **{name: getattr(metadata, name) for name in _LIMITS},
        "episode_length": output.distribution(lengths),
        "episode_return": None if returns is None else output.distribution(returns),
        "ends": {
            name: int(episodes[name].sum()) for name in _ENDS if name in episodes and episodes[name].dtype == np.bool_
        },
        "recorded": when_recorded(episodes),
        "runs": runs_of(episodes),
    }


def _field(name: str, info: Field) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": info.dtype_name,
        "shape": list(info.shape),
        "state": info.state,
        "ragged": info.ragged,
        "codec": info.codec,
        "lossy": info.is_lossy,
    }


def _sizes(info: Field, name: str, parts: Sequence[Snapshot]) -> dict[str, Any]:
    """What a field takes, and would take raw; of large raw images, how many times smaller a codec would make them."""
    size = field_size(parts, name)
    found: dict[str, Any] = {"bytes": size.stored, "raw_bytes": size.raw}
    if is_image(info) and info.codec is None and size.raw >= WORTH_A_SAMPLE:
        try:
            found[f"{SUGGESTED}_ratio"] = sampled_ratio(parts, name, SUGGESTED)
        except MissingExtraError as error:
            found["hint"] = str(error)
    return found


def _lines(place: str, found: Mapping[str, Any]) -> list[str]:
    steps = f"{found['num_steps']} steps in {found['num_episodes']} episodes, {output.nbytes(found['bytes'])}"
    shards = f", {found['num_buffers']} buffers" if found["num_buffers"] > 1 else ""
    lines = [*output.wrapped(f"{place}: {steps}{shards}"), ""]
    limits = [*(["circular"] if found["circular"] else []), *_counts(found, _LIMITS, "{} {}")]
    ends = _counts(found["ends"], _ENDS, "{} in {}")
    shown = {
        "environment": found["env_id"],
        "observations": _space(found["observation_space"]),
        "actions": _space(found["action_space"]),
        "references": ", ".join(_counts(found["reference_returns"] or {}, ("random", "expert"), "{} return {:.6g}")),
        "limits": ", ".join(limits),
        "recorded": _when(found["recorded"]),
        "by": _versions(found["runs"]),
        "last step": f"{', '.join(ends)} episodes" if ends else None,
    }
    for name, text in shown.items():
        if text:
            lines += output.labelled(name, str(text))
    header = ("field", "values", "kind", "size")
    rows = [_row(field, "state" if field["state"] else "step") for field in found["fields"]]
    rows += [_row(field, "meta, recorder's" if field["recorder"] else "meta") for field in found["meta_fields"]]
    lines += ["", *output.table(header, rows)]
    for field in found["fields"]:
        lines += [line for text in _about_codec(field) for line in output.wrapped(text)]
    lines += output.histogram("length", found["episode_length"])
    lines += output.histogram("return", found["episode_return"] or {"count": 0})
    return lines


def _counts(found: Mapping[str, Any], names: Sequence[str], form: str) -> list[str]:
    return [form.format(name, found[name]) for name in names if found.get(name) is not None]


def _row(field: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    values = field["dtype"] + (f" {tuple(field['shape'])}" if field["shape"] else "")
    values = f"any number of {values}" if field["ragged"] else values
    size = output.nbytes(field["bytes"]) if "bytes" in field else ""
    return field["name"], values, kind, size


def _about_codec(field: Mapping[str, Any]) -> Iterator[str]:
    """What there is to say of how a field is stored, or could be."""
    name, raw = field["name"], output.nbytes(field["raw_bytes"])
    if field["codec"] is not None and field["bytes"]:
        lossy = ", lossy" if field["lossy"] else ""
        ratio, what = field["raw_bytes"] / field["bytes"], "smaller"
        if ratio < 1:
            ratio, what = 1 / ratio, "larger"
        yield (
            f"{name}: {output.nbytes(field['bytes'])} with codec {short_name(field['codec'])}{lossy}, raw {raw}: "
            f"{number(ratio, 3)} times {what}"
        )
    if (ratio := field.get(f"{SUGGESTED}_ratio")) is not None and ratio > _WORTH_SAYING:
        yield (
            f"{name}: raw {raw}; {SUGGESTED} would make it {number(ratio, 3)} times smaller, by a sample of "
            f"{SAMPLE} rows: gym-replay select FOLDER NEW_FOLDER --codec {name}={SUGGESTED}"
        )
    if "hint" in field:
        yield f"{name}: raw {raw}; what a codec would save is not known: {field['hint']}"


def _space(value: Any) -> str | None:
    """A stored space as Gymnasium writes it."""
    if value is None:
        return None
    from gym_replay.spaces import space_from_json

    try:
        return " ".join(str(space_from_json(value)).split())
    except GymReplayError as error:
        return f"cannot be decoded: {error}"


def _when(recorded: Mapping[str, float] | None) -> str | None:
    if recorded is None:
        return None
    first, last = output.moment(recorded["first"]), output.moment(recorded["last"])
    until = "" if first == last else f" to {last}"
    return f"{first}{until}, {recorded['duration']:.1f} s of play, added up over all episodes"


def _versions(runs: Sequence[Mapping[str, Any]]) -> str | None:
    if not runs:
        return None
    versions = runs[-1].get("versions")
    told = ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}{'; the last with ' if told else ''}{told}"

"""``gym-replay info``: what is in a folder, and how it was recorded."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay.buffer.door import Metadata
from gym_replay.buffer.loading.selection import EpisodeValues
from gym_replay.cli import output
from gym_replay.cli.options import SOURCE_HELP, add_verb
from gym_replay.errors import GymReplayError
from gym_replay.files.documents import parse_json
from gym_replay.files.folders import bytes_beneath
from gym_replay.schema.fields import Field

_ENDS = ("terminated", "truncated", "complete")
_LIMITS = ("max_episodes", "max_timesteps", "max_steps")


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "info",
        run,
        "show what is in a folder, and how it was recorded",
        "Shows fields, spaces, numbers of episodes and steps, the room on the disk, how episode lengths and returns "
        "are distributed, and which runs and versions recorded the episodes.",
        ["gym-replay info data/cartpole", "gym-replay info data/shards --json | jq .num_steps"],
    )
    parser.add_argument("folder", help=SOURCE_HELP)


def run(args: argparse.Namespace) -> int:
    """Show what is there."""
    from gym_replay.buffer.concat import open_source

    with open_source(args.folder) as buffer:
        parts = buffer.snapshots()
        folders = [part.reader.folder for part in parts]
        found = describe(buffer.metadata, folders, EpisodeValues(parts))
    if args.json:
        output.write_json({"folder": args.folder, **found})
    else:
        print("\n".join(_lines(args.folder, found)))
    return 0


def describe(metadata: Metadata, folders: Sequence[Path], values: EpisodeValues) -> dict[str, Any]:
    """All that is shown, as plain values."""
    environment = metadata.environment or {}
    spec = environment.get("env_spec")
    lengths = values["length"]
    return {
        "num_episodes": values.count,
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
        "circular": metadata.circular,
        **{name: getattr(metadata, name) for name in _LIMITS},
        "episode_length": output.distribution(lengths),
        "episode_return": _returns(values),
        "ends": {name: int(values[name].sum()) for name in _ENDS if name in values and values[name].dtype == np.bool_},
        "recorded": _recorded(values),
        "runs": _runs(values),
    }


def _field(name: str, info: Field) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": info.dtype_name,
        "shape": list(info.shape),
        "state": info.state,
        "ragged": info.ragged,
    }


def _returns(values: EpisodeValues) -> dict[str, Any] | None:
    """How returns are distributed; None where there are none, or more than one number for each episode."""
    if "episode_return" not in values:
        return None
    returns = values["episode_return"]
    return output.distribution(returns) if returns.ndim == 1 and returns.dtype.kind in "buif" else None


def _recorded(values: EpisodeValues) -> dict[str, float] | None:
    """When the first episode began, when the last one ended, and how long all of them took, in seconds."""
    names = ("episode_start", "episode_duration")
    if values.count == 0 or not all(name in values for name in names):
        return None
    if any(values[name].shape != (values.count,) or values[name].dtype.kind not in "biuf" for name in names):
        return None  # meta fields of the user's, with these names
    starts, durations = (values[name].astype(np.float64) for name in names)
    return {
        "first": float(starts.min()),
        "last": float((starts + durations).max()),
        "duration": math.fsum(durations[np.isfinite(durations)].tolist()),
    }


def _runs(values: EpisodeValues) -> list[dict[str, Any]]:
    """The recorders' runs in their order: id, when it began, versions, and how many episodes it made."""
    if "episode_run" not in values or values["episode_run"].dtype != np.dtype(object):
        return []
    counts: dict[str, int] = {}
    for text in values["episode_run"].tolist():
        counts[text] = counts.get(text, 0) + 1
    found = []
    for text, count in counts.items():
        try:
            told = parse_json(text.encode(), finite=False)
        except ValueError:  # any string may be stored
            told = None
        if isinstance(told, dict):
            found.append({**told, "episodes": count})
    return found


def _lines(place: str, found: Mapping[str, Any]) -> list[str]:
    steps = f"{found['num_steps']} steps in {found['num_episodes']} episodes, {output.nbytes(found['bytes'])}"
    shards = f", {found['num_buffers']} buffers" if found["num_buffers"] > 1 else ""
    lines = [*output.wrapped(f"{place}: {steps}{shards}"), ""]
    values = {
        "environment": found["env_id"],
        "observations": _space(found["observation_space"]),
        "actions": _space(found["action_space"]),
        "limits": _limits(found),
        "recorded": _when(found["recorded"]),
        "by": _versions(found["runs"]),
        "last step": _ends(found["ends"]),
    }
    for name, text in values.items():
        if text:
            lines += output.labelled(name, str(text))
    header = ("field", "dtype", "shape", "kind")
    rows = [_row(field, "state" if field["state"] else "step") for field in found["fields"]]
    rows += [_row(field, "meta, recorder's" if field["recorder"] else "meta") for field in found["meta_fields"]]
    lines += ["", *output.table(header, rows)]
    lines += output.histogram("length", found["episode_length"])
    lines += output.histogram("return", found["episode_return"] or {"count": 0})
    return lines


def _row(field: Mapping[str, Any], kind: str) -> tuple[str, str, str, str]:
    shape = str(tuple(field["shape"])) + (" each" if field["ragged"] else "")
    return field["name"], field["dtype"], shape, f"{kind}, ragged" if field["ragged"] else kind


def _space(value: Any) -> str | None:
    """A stored space as Gymnasium writes it."""
    if value is None:
        return None
    from gym_replay.spaces import space_from_json

    try:
        return " ".join(str(space_from_json(value)).split())
    except GymReplayError as error:
        return f"cannot be decoded: {error}"


def _limits(found: Mapping[str, Any]) -> str | None:
    limits = [f"{name} {found[name]}" for name in _LIMITS if found[name] is not None]
    return ", ".join([*(["circular"] if found["circular"] else []), *limits]) or None


def _when(recorded: Mapping[str, float] | None) -> str | None:
    if recorded is None:
        return None
    first, last = output.moment(recorded["first"]), output.moment(recorded["last"])
    return f"{first}{'' if first == last else f' to {last}'}, episodes took {recorded['duration']:.1f} s"


def _versions(runs: Sequence[Mapping[str, Any]]) -> str | None:
    if not runs:
        return None
    versions = runs[-1].get("versions")
    told = ", ".join(f"{name} {version}" for name, version in versions.items()) if isinstance(versions, dict) else ""
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}{'; the last with ' if told else ''}{told}"


def _ends(ends: Mapping[str, int]) -> str | None:
    if not ends:
        return None
    return ", ".join(f"{name} in {count}" for name, count in ends.items()) + " episodes"

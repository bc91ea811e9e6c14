"""What a buffer has and LeRobot lacks: it lies beside a dataset's own files, in a folder that LeRobot does not look at.

In ``gym_replay/`` of the dataset are the schema of the buffer, a buffer ``steps`` with all fields that are no feature,
and where state fields are features a buffer ``last`` with their row T, one step for each episode. Whether an episode
was cut, and its meta fields, are in ``steps``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from gym_replay.buffer.door import Encoded, Metadata, metadata_from_json, metadata_to_json
from gym_replay.buffer.episode import Episode
from gym_replay.buffer.replay_buffer import ReplayBuffer, open_buffer
from gym_replay.errors import CorruptBufferError
from gym_replay.files.folders import entries_beneath
from gym_replay.interop.lerobot.features import Feature
from gym_replay.interop.lerobot.layout import DatasetFolder, Info
from gym_replay.schema.fields import Field

REST = "gym_replay"
"""The folder."""

_SCHEMA, _STEPS, _LAST = f"{REST}/schema.json", f"{REST}/steps", f"{REST}/last"
_HAS_LAST = "has_last"
_VERSION = 1


def rest_fields(fields: Mapping[str, Field], features: Sequence[Feature]) -> dict[str, Field]:
    """The fields that go along: those that are no feature, and those whose codec is lossy, which are there as stored.

    There is one at least, since a buffer has one.
    """
    own = {each.field for each in features}
    rest = {name: info for name, info in fields.items() if name not in own or info.is_lossy}
    if not rest:
        smallest = min(fields, key=lambda name: fields[name].nbytes)
        rest = {smallest: fields[smallest]}
    return rest


class RestWriter:
    """Writes what goes along.

    Args:
        root: the folder of the dataset.
        metadata: of the buffer.
        features: what LeRobot has of it.
        tasks_are_given: whether the tasks were an argument of the export, and are none of the buffer's.
    """

    def __init__(self, root: Path, metadata: Metadata, features: Sequence[Feature], *, tasks_are_given: bool) -> None:
        self._fields = rest_fields(metadata.fields, features)
        self._metadata, self._features, self._root = metadata, features, root
        self._tasks_are_given = tasks_are_given
        config = {"fields": self._fields, "meta_fields": metadata.meta_fields, "recorder_meta": metadata.recorder_meta}
        (root / REST).mkdir()
        self._steps = open_buffer(root / _STEPS, config, overwrite=False)
        last = {each.field: replace_state(each.info) for each in features if each.info.state}
        self._last = None
        if last:
            self._last = open_buffer(
                root / _LAST, {"fields": last, "meta_fields": {_HAS_LAST: Field("bool")}}, overwrite=False
            )

    def add(self, episode: Episode) -> None:
        """Add an episode."""
        values = {name: episode[name] for name in self._fields}
        self._steps.put_episode({**values, **episode.meta}, complete=episode.complete)
        if self._last is not None:
            row = {name: [episode[name][len(episode)]] for name in self._last.metadata.fields if episode.has_final}
            missing = {name: field.default_value()[None] for name, field in self._last.metadata.fields.items()}
            self._last.put_episode({**missing, **row, _HAS_LAST: episode.has_final})

    def close(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """End the buffers, and write the schema last.

        Args:
            entries: what ``meta/info.json`` says of all features.
        """
        self._steps.close()
        if self._last is not None:
            self._last.close()
        limits: dict[str, Any] = {"circular": False, "max_episodes": None, "max_timesteps": None, "max_steps": None}
        plain = replace(self._metadata, derived={}, revision=0, pending=(), obsolete=(), **limits)
        schema = {
            "version": _VERSION,
            "buffer": metadata_to_json(plain),
            "features": {
                each.field: {"key": each.key, "dtype": each.dtype, "shape": list(entries[each.key]["shape"])}
                for each in self._features
            },
            "tasks_are_given": self._tasks_are_given,
        }
        (self._root / _SCHEMA).write_text(json.dumps(schema, indent=1))


def replace_state(info: Field) -> Field:
    """The field for the last rows of a state field."""
    return replace(info, dtype=info.dtype_name, state=False)


class Rest:
    """What went along with a dataset, read again.

    Attributes:
        metadata: of the buffer that was exported.
        features: what LeRobot has of it.
        tasks_are_given: whether the buffer had no tasks of its own.

    Raises:
        CorruptBufferError: it is damaged.
    """

    def __init__(self, folder: DatasetFolder) -> None:
        schema = folder.json(_SCHEMA)
        where = folder.root / _SCHEMA
        if schema.get("version") != _VERSION or not isinstance(schema.get("features"), dict):
            raise CorruptBufferError(f"{where}: expected version {_VERSION} and features, got {str(schema)[:80]!r}")
        self.metadata = metadata_from_json(schema.get("buffer"), where)
        self.tasks_are_given = schema.get("tasks_are_given") is True
        self.features: list[Feature] = []
        self._shapes: dict[str, Any] = {}
        for name, entry in schema["features"].items():
            key, dtype = (entry.get(part) if isinstance(entry, dict) else None for part in ("key", "dtype"))
            if name not in self.metadata.fields or not isinstance(key, str) or not isinstance(dtype, str):
                raise CorruptBufferError(f"{where}: the feature of {name!r:.60} is damaged")
            self.features.append(Feature(name, key, self.metadata.fields[name], dtype))
            self._shapes[key] = entry.get("shape")
        has_last = any(each.info.state for each in self.features)
        self._files = ExitStack()
        root = self._without_links(folder)
        self.steps = ReplayBuffer.from_folder(root / _STEPS, read_only=True)
        self.last = ReplayBuffer.from_folder(root / _LAST, read_only=True) if has_last else None
        expected = rest_fields(self.metadata.fields, self.features)
        if self.steps.metadata.fields != expected or self.steps.metadata.meta_fields != self.metadata.meta_fields:
            raise CorruptBufferError(f"{folder.root / _STEPS}: its fields are not those of {where}")

    def _without_links(self, folder: DatasetFolder) -> Path:
        """Where the buffers are: in a snapshot of the hub's cache, of which each file is a link, a copy of them."""
        files = [name for name, entry in entries_beneath(folder.root / REST) if entry.is_symlink()]
        if not files:
            return folder.root
        root = Path(self._files.enter_context(TemporaryDirectory(prefix="gym-replay-")))
        for name in files:
            copy = root / REST / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder.path(f"{REST}/{name}"), copy)
        return root

    def mismatch(self, info: Info, lengths: Iterable[int]) -> str | None:
        """Why it does not belong to a dataset with these features and lengths of episodes, or None."""
        for each in self.features:
            entry = info.features.get(each.key)
            if entry is None or entry["dtype"] != each.dtype or list(entry["shape"]) != self._shapes[each.key]:
                return f"the feature {each.key!r:.60} is another one"
        found = np.concatenate([one.lengths for one in self.steps.snapshots()])
        others = np.fromiter(lengths, np.int64)
        if len(found) != len(others) or (found != others).any():
            return "its episodes are others"
        if self.last is not None and len(self.last) != len(found):
            return "the last observations are of other episodes"
        return None

    def episode(self, index: int) -> tuple[Episode, dict[str, Any] | None]:
        """What went along of an episode, and the last rows of state fields that are features, if it has any.

        Fields with a codec are :class:`Encoded`, as they were stored.
        """
        episode = self.steps.episode(index)
        if self.last is None:
            return episode, None
        last = self.last.episode(index)
        if not last.meta[_HAS_LAST]:
            return episode, None
        return episode, {name: last[name] for name in last}

    def close(self) -> None:
        """Close the buffers."""
        self.steps.close()
        if self.last is not None:
            self.last.close()
        self._files.close()


def with_last_row(rows: Any, last: Any) -> Any:
    """Rows, encoded or not, with one more behind them."""
    if isinstance(rows, Encoded):
        return Encoded(type(rows.stored).concatenate([rows.stored, last.stored]), rows.field)
    return np.concatenate([rows, np.asarray(last)])

"""Data sets of robomimic: HDF5 files with a group for each demonstration."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.extras import require
from gym_replay.files.documents import parse_json
from gym_replay.files.folders import local_path
from gym_replay.interop import old_data
from gym_replay.interop.hdf5 import data_sets
from gym_replay.schema.arrays import Array
from gym_replay.schema.fields import LARGEST_TEXT, Field
from gym_replay.schema.names import check_distinct

IMPORTED = "robomimic"
"""The member of a buffer's environment that holds what a file said of its environment."""

_OBSERVATIONS, _NEXT = "obs", "next_obs"
_CALLED = {"actions": "action", "rewards": "reward"}
_TEXTS = ("model_file", "ep_meta")
"""Attributes of a demonstration, without which its simulator cannot be set to one of its states again."""

_META = {name: Field("str") for name in ("demo", "filter_keys", *_TEXTS)}
_FOLLOWS = ("total", "num_samples")


def from_robomimic(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, filter_key: str | None = None
) -> old_data.ImportReport:
    """Copy a data set of robomimic into a new buffer, demonstration by demonstration.

    ``obs/<name>`` becomes the state field ``observation.<name>``, with the last row of ``next_obs/<name>`` behind it
    where there is one; ``actions`` the field ``action`` and ``rewards``, which may be missing, ``reward``. All else
    with a row for each step becomes a field of its name, such as ``states``, which a simulator takes, and ``dones``:
    these are 1 where a task was solved, where a demonstration ended, or both, as whoever made the file chose, so they
    are not taken for ``terminated``. Demonstrations come in the order of their numbers. Their names, the filter keys
    that they are in, the model of the simulator and ``ep_meta`` are meta fields; ``env_args`` and other texts about all
    of them, such as LIBERO's ``problem_info``, are kept with the environment. The report lists what else there is.
    (robomimic's documentation, "Dataset Contents and Visualization".)

    Args:
        source: the HDF5 file.
        target: a folder that does not exist yet. It appears when all is in it.
        filter_key: take only the demonstrations that ``mask/<filter_key>`` of the file names, such as ``"train"``.

    Returns:
        What was made, and what the data set does not tell.

    Raises:
        MissingExtraError: h5py is not installed.
        FieldError: a demonstration lacks a part, or does not fit the first one; or there is no such filter key.
        CorruptBufferError: the file cannot be read, claims to be larger than it can be, or has no group ``data``.
        NotABufferError: there is something at the target.
        EmptyBufferError: there is no step.

    Example:
        >>> report = from_robomimic("lift/ph/low_dim.hdf5", "data/lift", filter_key="train")  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    h5py = require("h5py", "hdf5", "from_robomimic")
    path, new = Path(local_path(source)), old_data.check_new(target)
    with _opened(h5py, path) as file:
        demos = _Demos(file, path)
        names = demos.chosen(filter_key)
        with old_data.new_buffer(new, demos.config(names)) as buffer:
            for name in names:
                values, length = demos.episode(name, buffer.buffer.metadata.fields)
                buffer.store(values, length, complete=False)
            return buffer.report(demos.not_known(), demos.left_out())


@contextmanager
def _opened(h5py: Any, path: Path) -> Iterator[Any]:
    with open(path, "rb") as file:  # so that a missing file is an error as for every other
        file.read(1)
    try:
        opened = h5py.File(path, "r")
    except OSError as error:
        raise CorruptBufferError(f"{path}: it is no HDF5 file: {error}") from None
    with opened as found:
        yield found


@dataclass
class _Demos:
    """The demonstrations of a file.

    Args:
        file: the opened file.
        path: of it, for messages.
    """

    file: Any
    path: Path
    _steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    _links: list[str] = field(default_factory=list)
    _masks: dict[str, set[str]] = field(default_factory=dict)
    _dropped: dict[str, str] = field(default_factory=dict)
    _without: dict[str, int] = field(default_factory=lambda: {"rewards": 0})

    def __post_init__(self) -> None:
        found, self._links = data_sets(self.file, self.path)
        for name, values in found.items():
            root, _, rest = name.partition("/")
            demo, _, part = rest.partition("/")
            if root == "data" and part:
                self._steps.setdefault(demo, {})[part] = values
            elif root == "mask" and rest:
                self._masks[rest] = {_as_text(each) for each in np.asarray(values[...]).reshape(-1).tolist()}
            else:
                self._dropped[name] = "it is no part of a demonstration"
        if not self._steps:
            raise CorruptBufferError(
                f"{self.path}: expected a group 'data' with demonstrations, got {sorted(found)[:9]}"
            )

    def chosen(self, filter_key: str | None) -> list[str]:
        """The names of the demonstrations in the order of their numbers."""
        if filter_key is not None and filter_key not in self._masks:
            raise FieldError(f"filter_key={filter_key!r}: the file has {sorted(self._masks) or 'none'}")
        mine = self._steps.keys() if filter_key is None else self._steps.keys() & self._masks[filter_key]
        return sorted(
            mine, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
        )

    def config(self, names: list[str]) -> dict[str, Any]:
        """The metadata of the new buffer, of which the first demonstration has all fields."""
        self._find_uneven(names)
        fields = old_data.fields_of(dict(self._kept(names[0])) if names else {})
        if names and "action" not in fields:
            raise FieldError(f"demonstration {names[0]!r} has no actions; it has {sorted(self._steps[names[0]])}")
        check_distinct([*fields, *_META])
        about = self._about()
        return {"fields": fields, "meta_fields": _META, **({"environment": {IMPORTED: about}} if about else {})}

    def _kept(self, demo: str) -> Iterator[tuple[str, Any]]:
        """The arrays of a demonstration that become fields, with the fields' names; lines are noted about others."""
        for part, values in self._steps[demo].items():
            name = _field_name(part)
            if part in self._dropped:
                continue
            why = "it is a single value" if not values.shape else old_data.why_no_field(values)
            if name is not None and why is None:
                yield name, values
            elif name is not None:
                self._dropped[part] = str(why)

    def _find_uneven(self, demos: list[str]) -> None:
        """Note the arrays that have no row for each step in one of the demonstrations, such as MimicGen's sources."""
        for demo in demos:
            steps = self._steps[demo]
            for part, values in steps.items():
                is_needed = part in _CALLED or part.partition("/")[0] in (_OBSERVATIONS, _NEXT)
                if not is_needed and "actions" in steps and values.shape[:1] != steps["actions"].shape[:1]:
                    self._dropped[part] = "it has no row for each step"

    def _about(self) -> dict[str, Any]:
        """What the file says of all demonstrations: JSON values, and other texts."""
        about: dict[str, Any] = {}
        for name, value in self.file["data"].attrs.items():
            if name in _FOLLOWS:
                continue
            if not isinstance(value, (str, bytes)):
                self._dropped[f"the attribute {name}"] = "it is no text"
                continue
            try:
                about[name] = parse_json(_as_text(value).encode())
            except ValueError as error:
                if name == "env_args":
                    self._dropped[name] = f"it is no JSON that can be kept: {error}"
                else:
                    about[name] = _as_text(value)
        return about

    def episode(self, name: str, fields: Mapping[str, Field]) -> tuple[dict[str, Any], int]:
        """The values of a demonstration, and how many steps it has.

        Raises:
            FieldError: a part is missing or has another number of rows.
        """
        steps = self._steps[name]
        length = len(steps["actions"]) if "actions" in steps and steps["actions"].shape else 0
        values: dict[str, Any] = {}
        for key, array in self._kept(name):
            if key not in fields or len(array) != length:
                known = f"{length} rows" if key in fields else "no such field, as the first one has none"
                raise FieldError(f"demonstration {name!r}: {key!r}: expected {known}, got shape {array.shape}")
            values[key] = np.asarray(array[...])
        if missing := [key for key in fields if key not in values and key not in old_data.FLAGS]:
            raise FieldError(f"demonstration {name!r} has no {missing[0]!r}, which the first one has")
        values |= self._with_last(name, steps, values)
        self._without["rewards"] += "rewards" not in steps
        return {**values, **old_data.episode_flags(dict.fromkeys(old_data.FLAGS), length), **self._meta(name)}, length

    def _with_last(self, name: str, steps: Mapping[str, Any], values: Mapping[str, Array]) -> dict[str, Array]:
        """Observations with the last of the next ones, where each has some; else none has one more row."""
        keys = [key for key in values if key.startswith("observation.")]
        following = {
            f"observation.{_component(part)}": one for part, one in steps.items() if part.startswith(f"{_NEXT}/")
        }
        if not keys or any(key not in following or not len(following[key]) for key in keys):
            return {}
        for key in keys:
            if following[key].shape != values[key].shape:
                raise FieldError(f"demonstration {name!r}: next {key!r}: got shape {following[key].shape}")
        return {key: old_data.with_last(values[key], np.asarray(following[key][-1:])) for key in keys}

    def _meta(self, name: str) -> dict[str, str]:
        attributes = self.file["data"][name].attrs
        texts = {key: _as_text(attributes.get(key, "")) for key in _TEXTS}
        for key, text in texts.items():
            if len(text.encode()) > LARGEST_TEXT:
                raise FieldError(f"demonstration {name!r}: {key!r} is longer than {LARGEST_TEXT} bytes")
        for key in attributes.keys() - {*_TEXTS, *_FOLLOWS}:
            self._dropped[f"the attribute {key} of demonstrations"] = "no field has it"
        keys = ",".join(sorted(key for key, demos in self._masks.items() if name in demos))
        return {"demo": name, "filter_keys": keys, **texts}

    def not_known(self) -> list[str]:
        """What the file does not tell, beside last observations."""
        found = [f"the rewards of {count} demonstrations" for count in self._without.values() if count]
        return [*found, "whether demonstrations terminated or were truncated: dones may mean either"]

    def left_out(self) -> list[str]:
        """What else the file has."""
        return [
            *(f"{name}: it is a link" for name in self._links),
            *(f"{n}: {why}" for n, why in self._dropped.items()),
        ]


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _component(part: str) -> str:
    """The rest of a field's name for the rest of a path: ``obs/robot0/eye`` is ``robot0.eye``."""
    return old_data.field_name(part.partition("/")[2])


def _field_name(part: str) -> str | None:
    """The field of an array of a demonstration; None for next observations."""
    root, _, rest = part.partition("/")
    if root == _NEXT:
        return None
    if root == _OBSERVATIONS and rest:
        return f"observation.{_component(part)}"
    name = _CALLED.get(part, old_data.field_name(part))
    taken = ("observation", *_CALLED.values(), *old_data.FLAGS)
    return f"robomimic.{name}" if name.partition(".")[0] in taken and part not in _CALLED else name

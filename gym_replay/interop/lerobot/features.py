"""Which field of a buffer is which feature of a LeRobot dataset, and the other way round."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gym_replay.buffer.door import Metadata
from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.interop.lerobot.layout import BOOKKEEPING, Info
from gym_replay.interop.old_data import FLAGS, is_observation, step_shape
from gym_replay.notices import did_you_mean
from gym_replay.schema.fields import Field
from gym_replay.schema.names import check_distinct, check_field_name, encode_key
from gym_replay.schema.pictures import is_frame, lerobot_key

REWARD, DONE, TRUNCATED = "next.reward", "next.done", "next.truncated"

IMPORTED = "lerobot"
"""The member of a buffer's environment that holds what a dataset said of itself when it was imported."""

TASK, SUBTASK = "task", "subtask"
"""The meta field with an episode's task, and the word for a part of one. The step fields ``task_index``, where an
episode has several tasks, and ``subtask_index`` have their numbers."""

_ROOTS = ("observation", "action")
_MOST_AXES = 5
_LARGEST_VALUE = 1 << 27
"""Numbers of one value of a feature, at most."""

_CHANNELS = (1, 3, 4)
_IMAGE_AXES = ["height", "width", "channels"]


@dataclass(frozen=True)
class Feature:
    """A field whose values a feature has.

    Args:
        field: its name.
        key: of the feature.
        info: of the field.
        dtype: of the feature: ``"image"``, ``"video"``, or that of the field.
        names: of the numbers of a value, where it has one axis.
    """

    field: str
    key: str
    info: Field
    dtype: str
    names: tuple[str, ...] | None = None

    @property
    def is_picture(self) -> bool:
        """Whether the values are images, in files of video or in the tables."""
        return self.dtype in ("image", "video")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one value, as LeRobot has it: a single number has one axis, and a frame of video three channels."""
        if self.dtype == "video":
            return (*self.info.shape[:2], 3)
        return self.info.shape or (1,)

    def to_json(self, fps: int) -> dict[str, Any]:
        """The entry of ``meta/info.json``, but for what is known of a file of video."""
        if not self.is_picture:
            names = None if self.names is None else list(self.names)
            return {"dtype": self.dtype, "shape": list(self.shape), "names": names, "fps": fps}
        return {"dtype": self.dtype, "shape": list(self.shape), "names": _IMAGE_AXES}


def own_features(
    metadata: Metadata,
    keys: Mapping[str, str | None] | None,
    element_names: Mapping[str, Sequence[str]] | None,
    *,
    as_video: bool,
) -> list[Feature]:
    """The fields that become features: observations, actions, rewards, what an import brought, and what is asked for.

    Args:
        metadata: of the buffer.
        keys: by field, another key, or None for no feature.
        element_names: by field, what its numbers are called.
        as_video: whether images go to files of video.

    Raises:
        FieldError: a field of ``keys`` or ``element_names`` is unknown, LeRobot cannot hold it so, or two features
            have one key.
    """
    fields, chosen = metadata.fields, _default_keys(metadata)
    for name, key in (keys or {}).items():
        if name not in fields:
            raise FieldError(f"keys: unknown field {name!r}{did_you_mean(name, fields)}")
        if key is not None and (fault := _fault(fields[name], key)) is not None:
            raise FieldError(f"keys: field {name!r} as {key!r}: {fault}")
        chosen[name] = key
    features: dict[str, Feature] = {}
    for name, info in fields.items():
        key = chosen.get(name)
        if key is None or _fault(info, key) is not None:
            continue
        if key in features:
            raise FieldError(
                f"the fields {features[key].field!r} and {name!r} are both the feature {key!r}; name others with "
                f"keys={{{name!r}: ...}}, or None to leave it out"
            )
        dtype = str(info.dtype.name)
        if is_frame(info):
            dtype = "video" if as_video and info.shape[2] != 4 else "image"
        features[key] = Feature(name, key, info, dtype)
    return _named(list(features.values()), imported_from(metadata) or {}, element_names or {})


def _named(
    features: Sequence[Feature], imported: Mapping[str, Any], names: Mapping[str, Sequence[str]]
) -> list[Feature]:
    """The features with names of their numbers: those that are given, those of an import, or the key with a number.

    Raises:
        FieldError: names that are given do not fit.
    """
    fields = [each.field for each in features]
    if unused := [name for name in names if name not in fields]:
        raise FieldError(f"element_names: no feature is made of a field {unused[0]!r}{did_you_mean(unused[0], fields)}")
    known = imported.get("names")
    found = []
    for each in features:
        shape = () if each.is_picture else each.shape
        chosen: Any = names.get(each.field)
        if chosen is not None and not _are_names(chosen, shape):
            one = f"{shape[0]} different ones, one for each number" if len(shape) == 1 else "a field of one axis"
            raise FieldError(f"element_names: field {each.field!r}: expected {one}, got {chosen!r:.100}")
        if chosen is None and isinstance(known, dict):
            chosen = known.get(each.key)
            if isinstance(chosen, dict) and len(chosen) == 1:  # {"motors": [...]}, of older versions
                [chosen] = chosen.values()
        if not _are_names(chosen, shape):
            last = each.key.rpartition(".")[2]
            is_named = len(shape) == 1 and each.key.partition(".")[0] in _ROOTS
            chosen = [f"{last}_{number}" for number in range(shape[0])] if is_named else None
        found.append(each if chosen is None else replace(each, names=tuple(chosen)))
    return found


def _are_names(names: Any, shape: tuple[int, ...]) -> bool:
    """Whether there is one name for each number of a value of this shape."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        return False
    return shape == (len(names),) and len(set(names)) == len(names)


def _default_keys(metadata: Metadata) -> dict[str, str | None]:
    imported = imported_from(metadata)
    known = imported.get("features", {}) if imported is not None else {}
    keys: dict[str, str | None] = {}
    for name, info in metadata.fields.items():
        if isinstance(known, dict) and isinstance(known.get(name), str):
            keys[name] = known[name]
        elif name == "reward" or name.partition(".")[0] in _ROOTS:
            keys[name] = lerobot_key(name, info)
    return keys


def imported_from(metadata: Metadata) -> dict[str, Any] | None:
    """What was noted of the dataset that a buffer was imported from, if it was."""
    found = (metadata.environment or {}).get(IMPORTED)
    return found if isinstance(found, dict) else None


def _fault(info: Field, key: str) -> str | None:
    """Why LeRobot cannot hold a field under a key, or None."""
    if not key or "/" in key or "\0" in key:
        return "no feature has such a key"
    if key in (TASK, *BOOKKEEPING):
        return "LeRobot needs this key for itself"
    if info.ragged:
        return "its rows have different sizes"
    if len(info.shape) > _MOST_AXES or 0 in info.shape:
        return f"no feature has values of shape {info.shape}"
    return None


# --- of a dataset that was not exported from here ---


@dataclass(frozen=True)
class Found:
    """The fields of the buffer that a dataset becomes.

    Args:
        features: which feature becomes which field.
        left_out: lines about the others.
        flags: the keys of ``next.done`` and ``next.truncated``, where both are there and say how episodes ended.
    """

    features: list[Feature]
    left_out: list[str]
    flags: bool


def found_features(info: Info) -> Found:
    """The fields for the features of a dataset.

    Raises:
        CorruptBufferError: a feature has values larger than any file could hold.
        FieldError: two of them would be one field.
    """
    has_flags = all(_is_flag(info.features.get(key)) for key in (DONE, TRUNCATED))
    features: list[Feature] = []
    left_out: list[str] = []
    for key, entry in info.features.items():
        if (key in BOOKKEEPING and key != "timestamp") or (has_flags and key in (DONE, TRUNCATED)):
            continue
        made = _found(_field_name(key, info.features), key, entry)
        if isinstance(made, str):
            left_out.append(f"{key}: {made}")
        else:
            features.append(made)
    names = [each.field for each in features]
    check_distinct([check_field_name(name) for name in (*names, *FLAGS)])
    return Found(sorted(features, key=lambda each: not is_observation(each.field)), left_out, has_flags)


def _is_flag(entry: Mapping[str, Any] | None) -> bool:
    return entry is not None and entry["dtype"] == "bool" and entry["shape"] in ((), (1,))


def _field_name(key: str, keys: Collection[str]) -> str:
    """The name of a feature's field; what is no reward or flag of the buffer has another one than these."""
    if key == REWARD:
        return "reward"
    name = ".".join(encode_key(part) for part in key.split("."))
    taken = (*FLAGS, *(["reward"] if REWARD in keys else []))
    return f"{IMPORTED}.{name}" if name.partition(".")[0] in taken else name


def _found(name: str, key: str, entry: Mapping[str, Any]) -> Feature | str:
    """A feature as a field, or why it is left out."""
    shape, dtype = entry["shape"], entry["dtype"]
    if math.prod(shape) > _LARGEST_VALUE:
        raise CorruptBufferError(f"feature {key!r:.100}: a value of shape {shape} is larger than any that is read")
    if dtype in ("image", "video"):
        return _found_picture(key, name, entry)
    try:
        numeric = np.dtype(dtype)
    except TypeError:
        return f"its values are {dtype!r:.40}, and a field holds numbers"
    if numeric.kind not in "biuf" or numeric.itemsize > 8 or 0 in shape or len(shape) > _MOST_AXES:
        return f"its values are {dtype!r:.40} of shape {shape}, and no field has such"
    is_state = is_observation(name)
    field = Field(numeric, step_shape(name, numeric, shape), state=is_state)
    if not is_state and name.partition(".")[0] != "action" and shape == (1,):
        field = Field(numeric)
    return Feature(name, key, field, str(numeric.name))


def _found_picture(key: str, name: str, entry: Mapping[str, Any]) -> Feature | str:
    about = {**(entry.get("video_info") or {}), **(entry.get("info") or {})}
    if about.get("is_depth_map") or about.get("video.is_depth_map"):
        return "it is a map of depth in LeRobot's own numbers, not an image"
    shape, axes = entry["shape"], entry.get("names")
    if len(shape) != 3:
        return f"an image of shape {shape} has not height, width and channels"
    channels_first = shape[2] not in _CHANNELS and shape[0] in _CHANNELS
    if isinstance(axes, list) and len(axes) == 3:
        channels_first = str(axes[0]).startswith("channel")
    if channels_first:
        shape = (*shape[1:], shape[0])
    if shape[2] not in _CHANNELS or 0 in shape:
        return f"images of {shape[2]} channels are not read"
    return Feature(name, key, Field("uint8", shape, state=is_observation(name)), str(entry["dtype"]))

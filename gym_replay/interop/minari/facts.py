"""What an episode has once: meta fields as Minari's episode metadata, and back, bit for bit.

A meta field is the entry of its name, as a number, an array or a string. Where that is taken by Minari's own, or the
format would change the value (a NUL in a string of HDF5, a NaN with a payload in JSON), it is in the entry
``gym_replay``, which is a JSON object: ``complete`` (False for an episode that was cut), ``id`` in the exported buffer,
and ``exact``, the bytes of such values in hexadecimal digits. The seed and the reset options are Minari's own entries
too, wherever the format takes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from gym_replay.buffer.episode import Episode
from gym_replay.errors import CorruptBufferError
from gym_replay.files.documents import parse_json
from gym_replay.interop.minari.limits import GROUP, Limits
from gym_replay.schema.fields import Field

STATISTICS = ("rewards_sum", "rewards_mean", "rewards_std", "rewards_max", "rewards_min")
"""What Minari's collector adds to the metadata of each episode; it follows from the rewards."""

OWN = frozenset({"id", "total_steps", "seed", "options", GROUP, *STATISTICS})
"""Entries of an episode's metadata that are no meta fields."""

UNKNOWN_SEED = -1


def seed_of(meta: Mapping[str, Any]) -> int | None:
    """The seed of an episode's reset, also one that was too large for ``episode_seed`` and came from Minari."""
    seed = int(meta.get("episode_seed", UNKNOWN_SEED))
    if seed != UNKNOWN_SEED:
        return seed
    run = _object(meta.get("episode_run", ""))
    imported = run.get("imported")
    large = imported.get("seed") if isinstance(imported, dict) else None
    return large if type(large) is int and 0 <= large < 1 << 64 else None


def options_of(meta: Mapping[str, Any], limits: Limits) -> dict[str, Any] | None:
    """The reset options as Minari keeps them; None where there were none, or the format takes no such options."""
    text = meta.get("episode_options", "")
    options = _object(text)
    if not text or (limits.is_hdf5 and not _fits_attributes(options, limits)):
        return None
    return options


def _object(text: str) -> dict[str, Any]:
    try:
        value = parse_json(text.encode(), finite=False) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _fits_attributes(options: Mapping[str, Any], limits: Limits) -> bool:
    """Whether options are names and numbers, strings or regular lists of numbers, as attributes of HDF5 are."""
    for key, value in options.items():
        if limits.key_fault(key) is not None:
            return False
        if isinstance(value, dict):
            if not value or not _fits_attributes(value, limits):
                return False
        elif isinstance(value, str):
            if not limits.holds_meta_text(value):
                return False
        else:
            try:
                array = np.asarray(value)
            except (ValueError, OverflowError):
                return False
            if array.dtype.kind not in "biuf" or not limits.holds_meta_array(array):
                return False
    return True


def to_metadata(episode: Episode, fields: Mapping[str, Field], limits: Limits) -> dict[str, Any]:
    """The metadata of an episode beside Minari's own."""
    metadata: dict[str, Any] = {}
    exact: dict[str, str] = {}
    meta = episode.meta
    for name, field in fields.items():
        value = meta[name]
        if field.is_text:
            fits, natural, content = limits.holds_meta_text(value), value, value.encode("utf-8", "surrogatepass")
        else:
            array = np.asarray(value, field.dtype)
            fits, content = limits.holds_meta_array(array), array.tobytes()
            natural = array[()] if limits.is_hdf5 else array.tolist()
        if fits and name not in OWN:
            metadata[name] = natural
        else:
            exact[name] = content.hex()
    metadata[GROUP] = json.dumps({"id": episode.id, "complete": episode.complete, "exact": exact})
    return metadata


def own_entry(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an export noted of an episode; None where the episode is not from one."""
    text = metadata.get(GROUP)
    if text is None:
        return None
    own = _object(text) if isinstance(text, str) else {}
    if not isinstance(own.get("complete"), bool) or not isinstance(own.get("exact"), dict):
        raise CorruptBufferError(f"the metadata entry {GROUP!r} is damaged: {text!r:.80}")
    return own


def from_metadata(metadata: Mapping[str, Any], own: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """The meta fields that :func:`to_metadata` was given; those that are not there are left out."""
    meta: dict[str, Any] = {}
    for name, field in fields.items():
        if name in own["exact"]:
            meta[name] = _from_hex(name, own["exact"][name], field)
        elif name in metadata and name not in OWN:
            meta[name] = from_entry(name, metadata[name], field)
    return meta


def _from_hex(name: str, digits: Any, field: Field) -> Any:
    try:
        content = bytes.fromhex(digits)
        if field.is_text:
            return content.decode("utf-8", "surrogatepass")
        return np.frombuffer(content, field.dtype).reshape(field.shape)
    except (TypeError, ValueError) as error:
        raise CorruptBufferError(f"meta field {name!r}: {error}") from None


def from_entry(name: str, value: Any, field: Field) -> Any:
    """A value of an entry as one of a meta field.

    Raises:
        CorruptBufferError: it is none.
    """
    if field.is_text:
        if not isinstance(value, str):
            raise CorruptBufferError(f"meta field {name!r}: expected a string, got {value!r:.60}")
        return value
    try:
        with np.errstate(all="ignore"):
            cast = np.asarray(value).astype(field.dtype) if hasattr(value, "dtype") else np.array(value, field.dtype)
        # As Python's numbers, which are compared exactly: of a list of large and small ones, NumPy makes floats.
        given = np.asarray(value, None if hasattr(value, "dtype") else object)
        pairs = zip(cast.ravel().tolist(), given.ravel().tolist(), strict=True)
        is_same = all(new == old or (new != new and old != old) for new, old in pairs)
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptBufferError(f"meta field {name!r}: {error}") from None
    if not is_same:
        raise CorruptBufferError(f"meta field {name!r}: {value!r:.60} is no {field.dtype.name}")
    if cast.shape != field.shape:
        raise CorruptBufferError(f"meta field {name!r}: expected shape {field.shape}, got {cast.shape}")
    return cast

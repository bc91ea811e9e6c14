"""Statistics that stay in a buffer's folder, in ``statistics.json``, until the buffer changes.

The file is a convenience: whoever finds it missing, of other data, damaged, or not to be written, computes. It is read
like everything in a folder, as if a stranger had written it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.field_statistics import FieldStatistics, statistics_shape
from gym_replay.buffer.loading.source import Source
from gym_replay.buffer.storage.layout import NEW
from gym_replay.errors import CorruptBufferError
from gym_replay.files.directory import Directory, open_beneath
from gym_replay.files.documents import LARGEST, parse_json, size_fault
from gym_replay.files.writing import write_at
from gym_replay.schema.fields import Field

NAME = "statistics.json"
_FORMAT = "gym_replay statistics"
_VERSION = 1
_MOST_ENTRIES = 16
_ABANDONED_SECONDS = 60.0

Found = dict[str, FieldStatistics]


class Cache:
    """The statistics of one selection of a buffer's episodes, as far as they are kept.

    Args:
        folder: the buffer's.
        data: what tells whether the buffer has changed.
        selection: tells one selection of episodes, and of quantiles, from another.
        fields: the buffer's.
        quantiles: probabilities.
    """

    def __init__(
        self,
        folder: Path,
        data: Mapping[str, Any],
        selection: str,
        fields: Mapping[str, Field],
        quantiles: tuple[float, ...],
    ) -> None:
        self._folder, self._data, self._selection = folder, dict(data), selection
        self._fields, self._quantiles = fields, quantiles

    @classmethod
    def of(cls, source: Source, quantiles: tuple[float, ...]) -> Cache | None:
        """For the selected episodes; None for a concatenation."""
        if len(source.parts) != 1:
            return None
        (part,) = source.parts
        counters = part.counters
        data = {
            "uuid": part.metadata.uuid,
            "revision": part.metadata.revision,
            "first": int(counters.first),
            "next": int(counters.next),
            "deletions": int(counters.deletions),
        }
        digest = hashlib.sha256(repr(quantiles).encode())
        for array in (source.ids, source.starts, source.lengths, source.has_final):
            digest.update(array.tobytes())
        return cls(part.reader.folder, data, digest.hexdigest(), source.fields, quantiles)

    def load(self) -> Found:
        """What is kept; nothing where it cannot be read or is of other data."""
        for entry in self._entries():
            if entry["selection"] == self._selection:
                found = {}
                for name, value in entry["fields"].items():
                    if name in self._fields and (one := self._parse(self._fields[name], value)) is not None:
                        found[name] = one
                return found
        return {}

    def store(self, computed: Found) -> None:
        """Keep these too, where the folder can be written."""
        entries = self._entries()
        mine: dict[str, Any] = {"selection": self._selection, "fields": {}}
        for entry in entries:
            if entry["selection"] == self._selection:
                mine = entry
        entries = [entry for entry in entries if entry is not mine][-(_MOST_ENTRIES - 1) :]
        mine["fields"].update({name: _to_json(found) for name, found in computed.items()})
        document = {"format": _FORMAT, "version": _VERSION, "data": self._data, "entries": [*entries, mine]}
        content = json.dumps(document, allow_nan=False).encode()
        if size_fault(content) is None:
            _replace(self._folder, content)

    def _entries(self) -> list[dict[str, Any]]:
        """The entries of the file that are of this data."""
        try:
            with os.fdopen(open_beneath(self._folder, NAME, os.O_RDONLY), "rb") as stream:
                document = parse_json(stream.read(LARGEST + 1))
        except (OSError, ValueError, CorruptBufferError):
            return []
        if not isinstance(document, dict) or document.get("format") != _FORMAT or document.get("version") != _VERSION:
            return []
        if document.get("data") != self._data or not isinstance(document.get("entries"), list):
            return []
        return [entry for entry in document["entries"] if _is_entry(entry)]

    def _parse(self, field: Field, value: Any) -> FieldStatistics | None:
        """The statistics of one field; None where they are not whole."""
        if not isinstance(value, dict) or field.ragged:
            return None
        shape = statistics_shape(field)
        names = ["mean", "std", "min", "max"]
        arrays = {name: _numbers(value.get(name), shape) for name in names}
        count = _numbers(value.get("count"), shape)
        listed = value.get("quantiles")
        if not isinstance(listed, list) or len(listed) != len(self._quantiles) or count is None:
            return None
        quantiles = {
            probability: _numbers(item, shape) for probability, item in zip(self._quantiles, listed, strict=True)
        }
        mean, std, low, high = (arrays[name] for name in names)
        if mean is None or std is None or low is None or high is None or (std < 0).any():
            return None
        sound = {probability: item for probability, item in quantiles.items() if item is not None}
        if len(sound) != len(quantiles) or not ((count >= 0) & (count < 1 << 53) & (count % 1 == 0)).all():
            return None
        return FieldStatistics(count.astype(np.int64), mean, std, low, high, sound)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("selection"), str) and isinstance(entry.get("fields"), dict)


def _numbers(value: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64] | None:
    """An array of a flat list of numbers, and of the strings that stand for what JSON does not have."""
    if not isinstance(value, list) or len(value) != math.prod(shape):
        return None
    if not all(type(item) in (int, float) or item in ("inf", "-inf", "nan") for item in value):
        return None
    try:
        return np.array([float(item) for item in value], np.float64).reshape(shape)
    except OverflowError:
        return None


def _to_json(found: FieldStatistics) -> dict[str, Any]:
    return {
        "count": found.count.reshape(-1).tolist(),
        **{name: _listed(getattr(found, name)) for name in ("mean", "std", "min", "max")},
        "quantiles": [_listed(values) for values in found.quantiles.values()],
    }


def _listed(values: npt.NDArray[np.float64]) -> list[float | str]:
    return [value if math.isfinite(value) else str(value) for value in values.reshape(-1).tolist()]


def _replace(folder: Path, content: bytes) -> None:
    """Put the file in place, whole or not at all. Of two processes that do so at once, one leaves it to the other."""
    new = NAME + NEW
    with suppress(OSError, CorruptBufferError), Directory(folder) as directory:
        _remove_abandoned(directory, new)
        descriptor = directory.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)  # refused where another process is at it
        try:
            try:
                write_at(descriptor, content, 0, folder / new)
            finally:
                os.close(descriptor)
            directory.rename(new, NAME)
        except OSError:
            directory.unlink(new)


def _remove_abandoned(directory: Directory, new: str) -> None:
    """Remove what a process left that was killed while it wrote."""
    with suppress(FileNotFoundError):
        written = os.stat(new, dir_fd=directory.descriptor, follow_symlinks=False).st_mtime
        if time.time() - written > _ABANDONED_SECONDS:
            directory.unlink(new)

"""What a dataset says of its sizes, checked before Minari allocates anything on its word."""

from __future__ import annotations

import json
import math
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from gym_replay.errors import CorruptBufferError
from gym_replay.interop.hdf5 import check_claim, data_sets
from gym_replay.interop.minari.old_versions import FILE


def check_metadata(data_path: Path, metadata: Any) -> None:
    """Raise CorruptBufferError where there are not as many episodes, or bounds of a space, as the metadata say."""
    if not isinstance(metadata, dict):
        raise CorruptBufferError(f"{data_path}: the metadata are no object")
    count = metadata.get("total_episodes")
    if (data_path / FILE).exists():
        with import_module("h5py").File(data_path / FILE, "r") as file:
            found = len(file)
    else:
        found = sum(entry.is_dir() for entry in os.scandir(data_path))
    if type(count) is not int or not 0 <= count <= found:
        raise CorruptBufferError(f"{data_path}: total_episodes is {count!r:.60}, and there are {found}")
    for kind in ("observation", "action"):
        if isinstance(text := metadata.get(f"{kind}_space"), str):
            _check_space(f"{data_path}: {kind}_space", json.loads(text))


def _check_space(place: str, space: Any) -> None:
    """Raise CorruptBufferError where a Box has a shape of other size than its bounds, which would be made as large."""
    if not isinstance(space, dict):
        raise CorruptBufferError(f"{place}: expected a space, got {type(space).__name__}")
    if space.get("type") == "Box" and not _size(space["low"]) == _size(space["high"]) == math.prod(space["shape"]):
        raise CorruptBufferError(f"{place}: the bounds of a Box are not of its shape {space['shape']!r:.60}")
    children = space.get("subspaces", [])
    for child in children.values() if isinstance(children, dict) else children:
        _check_space(place, child)


def _size(nested: Any) -> int:
    return sum(map(_size, nested)) if isinstance(nested, list) else 1


def check_episode(storage: Any, number: int) -> None:
    """Raise CorruptBufferError where an episode is larger than its file can hold, or lies in other files."""
    path = Path(storage.data_path)
    if storage.FORMAT == "hdf5":
        with import_module("h5py").File(path / FILE, "r") as file:
            _, links = data_sets(file[f"episode_{number}"], path / FILE)
        if links:
            raise CorruptBufferError(f"{links[0]} is a link, which is not followed; h5repack makes one file")
        return
    for file in (path / str(number)).iterdir():
        if file.suffix in (".arrow", ".parquet"):
            rows = import_module("pyarrow.dataset").dataset(file, format=storage.FORMAT).count_rows()
            check_claim(file, rows)

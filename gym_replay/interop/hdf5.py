"""HDF5 files, also from strangers: their data sets by name, none of which is larger than its file can hold."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

from gym_replay.errors import CorruptBufferError

_UNPACKED = 2000
"""How many bytes one byte of a file may become: Deflate makes at most 1032 of one."""


def check_claim(path: str | os.PathLike[str], claimed: int) -> None:
    """Raise CorruptBufferError where a file claims to hold more bytes than its size allows, however well packed."""
    size = os.path.getsize(path)
    if claimed > _UNPACKED * size:
        raise CorruptBufferError(f"{path}: it claims to hold {claimed} bytes of arrays, and has {size}; it is damaged")


def data_sets(group: Any, path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[str]]:
    """The data sets of an HDF5 file or group by their names, and the names of the links among them.

    A link is not followed, because it may lead into another file. A group with several names is there under one.

    Raises:
        CorruptBufferError: a data set takes its values from other files, or all together are larger than the file.
    """
    found: dict[str, Any] = {}
    links: list[str] = []
    for name, item in _members(group):
        if item is None:
            links.append(name)
        elif item.shape is not None:  # an empty one, of HDF5's null space, has none
            found[name] = item
            if item.is_virtual or item.external:
                raise CorruptBufferError(
                    f"{path}: {name!r} takes its values from other files, which are not opened; h5repack makes one file"
                )
    check_claim(path, sum(math.prod(item.shape) * item.dtype.itemsize for item in found.values()))
    return found, links


def _members(top: Any) -> Iterator[tuple[str, Any]]:
    from h5py import Dataset, Group, HardLink

    waiting, seen = [("", top)], {top.id}
    for prefix, group in waiting:  # which grows meanwhile
        for key in group:
            name = f"{prefix}{key}"
            item = group[key] if isinstance(group.get(key, getlink=True), HardLink) else None
            if isinstance(item, Group) and item.id not in seen:
                seen.add(item.id)
                waiting.append((f"{name}/", item))
            else:
                yield name, item if isinstance(item, Dataset) else None

"""HDF5 files, also from strangers: their data sets by name, none of which is larger than its file can hold."""

from __future__ import annotations

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
    from h5py import Dataset, h5d

    found: dict[str, Any] = {}
    links: list[str] = []
    claimed = 0
    for name, item in _members(group):
        if item is None:
            links.append(name.decode("utf-8", "replace"))
            continue
        creation = item.get_create_plist()
        if creation.get_external_count() or creation.get_layout() == h5d.VIRTUAL:
            raise CorruptBufferError(
                f"{path}: {name.decode('utf-8', 'replace')!r} takes its values from other files, which are not opened; "
                "h5repack makes one file"
            )
        made = Dataset(item)
        if made.shape is not None:  # an empty one, of HDF5's null space, has none
            found[name.decode("utf-8", "surrogateescape")] = made
            claimed += item.get_space().get_simple_extent_npoints() * item.get_type().get_size()
    check_claim(path, claimed)
    return found, links


def _members(group: Any) -> Iterator[tuple[bytes, Any]]:
    """The names of data sets and links, the first with what they name."""
    from h5py import h5d, h5g, h5l, h5o

    names: list[tuple[bytes, bool]] = []
    group.id.links.visit(lambda name, info: names.append((name, info.type == h5l.TYPE_HARD)), info=True)
    groups = {h5o.get_info(group.id).addr}
    for name, is_hard in names:
        item = h5o.open(group.id, name) if is_hard else None
        if isinstance(item, h5g.GroupID):
            address = h5o.get_info(item).addr
            if address in groups:
                yield name, None
            groups.add(address)
        elif item is None or isinstance(item, h5d.DatasetID):
            yield name, item

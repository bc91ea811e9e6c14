"""Which folders of buffers a path means: a buffer, a folder of buffers, or a pattern."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from gym_replay.buffer.storage.layout import METADATA
from gym_replay.buffer.storage.reader import has_buffer
from gym_replay.errors import BufferNotFoundError


def buffers_at(path: str | os.PathLike[str]) -> list[Path]:
    """The buffers that a path means, sorted: itself, those below a folder, or those of a pattern with ``*``.

    Hidden folders are left out: an unfinished copy is one.

    Raises:
        BufferNotFoundError: there is none.

    Example:
        >>> buffers_at("data/shards/worker-*")  # doctest: +SKIP
        [PosixPath('data/shards/worker-00000'), PosixPath('data/shards/worker-00001')]
    """
    whole = Path(path)
    if has_buffer(whole):
        return [whole]
    roots = [whole] if whole.exists() else [Path(found) for found in sorted(glob.glob(os.fspath(path)))]
    found = [buffer for root in roots for buffer in _below(root)]
    if not found:
        raise BufferNotFoundError(errno.ENOENT, "no buffer here, nor below it; check the path", str(path))
    return found


def _below(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        if METADATA in files:
            names.clear()
            yield Path(folder)
        names[:] = sorted(name for name in names if not name.startswith("."))

"""From what a user names to the folders of buffers: one folder, a folder of shards, or a pattern."""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from gym_replay.buffer.storage.layout import foreign_files
from gym_replay.buffer.storage.reader import has_buffer
from gym_replay.errors import BufferNotFoundError, ConfigMismatchError, StorageError
from gym_replay.files.folders import entries_beneath, local_path
from gym_replay.notices import did_you_mean

SHARDS = "shards"
"""The folder below a data set's own in which each worker has a buffer."""

_DIGITS = re.compile(r"(\d+)")


def find_buffers(source: str | os.PathLike[str]) -> list[Path]:
    """The folders of the buffers that a path or a pattern stands for, in natural order: ``w-2`` before ``w-10``.

    Args:
        source: the folder of a buffer; a folder with buffers in ``shards/``; a folder whose folders are buffers; or a
            string with ``*``, ``?``, ``[`` or ``**``, each of whose matches is one of these. ``**`` stands for any
            number of folders, none of them hidden, a link, or deeper than 64.

    Returns:
        Absolute paths. Of a folder of buffers, hidden folders, files, and folders in which a buffer is just being
        created are left out.

    Raises:
        BufferNotFoundError: there is nothing there, or a folder that holds no buffer; the message names it.

    Example:
        >>> find_buffers("data/*/")  # doctest: +SKIP
        [PosixPath('/home/me/data/run-1'), PosixPath('/home/me/data/run-2')]
    """
    text = local_path(source)
    if not isinstance(source, str) or not glob.has_magic(text) or os.path.lexists(text):
        return _buffers_of(Path(os.path.abspath(text)))
    matches = sorted(_matches(text), key=natural_key)
    folders = [Path(os.path.abspath(match)) for match in matches if os.path.isdir(match)]
    if not folders:
        raise BufferNotFoundError(errno.ENOENT, "no folder matches the pattern; check it", text)
    return [found for folder in folders for found in _buffers_of(folder)]


def _matches(pattern: str) -> set[str]:
    """The paths that match; ``**`` does not go through links, which may go round."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return set(glob.glob(pattern))
    at = parts.index("**")
    found: set[str] = set()
    for head in glob.glob(os.path.join(*parts[:at])) if at else ["."]:
        for folder in _visible_folders(Path(head)):
            found |= _matches(os.path.join(glob.escape(folder), *parts[at + 1 :])) if parts[at + 1 :] else {folder}
    return found


def _visible_folders(folder: Path) -> list[str]:
    """A folder and those below it that are not hidden."""
    below = [relative for relative, entry in entries_beneath(folder) if entry.is_dir(follow_symlinks=False)]
    return [str(folder), *(str(folder / relative) for relative in below if "/." not in f"/{relative}")]


def natural_key(path: str | os.PathLike[str]) -> tuple[tuple[int, str], ...]:
    """A key to sort by, in which the digits of a path count as numbers."""
    pieces = _DIGITS.split(os.fspath(path))
    # Of equal numbers, the one with fewer zeros in front comes first.
    return tuple((int(piece), piece) if place % 2 else (-1, piece) for place, piece in enumerate(pieces))


def require_distinct(folders: Sequence[Path]) -> None:
    """Refuse a folder that comes twice, under whatever name.

    Raises:
        ConfigMismatchError: naming it.
    """
    seen: dict[str, Path] = {}
    for folder in folders:
        real = os.path.realpath(folder)
        if real in seen:
            other = "" if seen[real] == folder else f" (as {seen[real]} and as {folder})"
            raise ConfigMismatchError(
                f"{folder} is named twice{other}; name it once, and draw more of it with buffer_weights of the loaders"
            )
        seen[real] = folder


def what_is_there(folder: Path) -> str:
    """What a folder without a buffer holds, and what to do about it."""
    if not folder.is_dir():
        parent = folder.parent
        names = [child.name for child in _folders_in(parent)] if parent.is_dir() else []
        near = did_you_mean(folder.name, names) if names else ""
        return "there is no such folder" + (near if near.startswith("; did") else "; check the path")
    room = folder / SHARDS if (folder / SHARDS).is_dir() else folder
    found = sorted(filter(has_buffer, _folders_in(room)), key=natural_key)
    if not found:
        return "check the path"
    below = ", ".join(path.relative_to(folder).as_posix() for path in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"there are buffers below it ({below}{more}): open one of them, or all as ConcatReplayBuffer({str(folder)!r})"
    )


def _buffers_of(folder: Path) -> list[Path]:
    if has_buffer(folder):
        return [folder]
    if not folder.is_dir():
        raise BufferNotFoundError(errno.ENOENT, what_is_there(folder), str(folder))
    room = folder / SHARDS if (folder / SHARDS).is_dir() else folder
    children = sorted(_folders_in(room), key=lambda path: natural_key(path.name))
    found: list[Path] = []
    others: list[Path] = []
    for child in children:
        (found if has_buffer(child) else others).append(child)
    if not found:
        raise BufferNotFoundError(errno.ENOENT, "neither a buffer nor a folder of buffers; check the path", str(folder))
    if wrong := [child for child in others if foreign_files(child)]:
        raise BufferNotFoundError(
            errno.ENOENT,
            f"no buffer, but {room} has {len(found)} of them beside it; move it elsewhere, or name the buffers one by "
            "one",
            str(wrong[0]),
        )
    return found


def _folders_in(room: Path) -> Iterable[Path]:
    try:
        entries = list(os.scandir(room))
    except OSError as error:
        raise StorageError(error.errno, f"{error.strerror}; it cannot be listed", str(room)) from error
    else:
        return [room / entry.name for entry in entries if not entry.name.startswith(".") and os.path.isdir(entry.path)]

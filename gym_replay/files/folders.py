"""What a folder argument means, wherever one is taken, and what is in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gym_replay.errors import FieldError, StorageError

_REMOTE = re.compile(r"[\w.@+-]+:[:/\\]")


def local_path(path: str | os.PathLike[str]) -> str:
    """A path of this machine, as given but with ``~`` and ``~user`` at its beginning replaced by the home folder.

    Raises:
        FieldError: it is empty, holds a NUL, names the home of nobody, or is the address of something elsewhere.
        TypeError: it is no path.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"expected a path (str or os.PathLike), got {type(path).__name__}")
    text = os.fsdecode(path)
    if not text:
        raise FieldError("expected a path, got an empty string; the folder that you are in is '.'")
    if "\0" in text:
        raise FieldError(f"path {text!r:.200}: no path holds a NUL character")
    if _REMOTE.match(text):
        raise FieldError(
            f"path {text!r:.200}: this looks like a URL or a path on another machine, and only folders of this machine "
            "are read and written; of what was pushed, ReplayBuffer.from_url(url) reads it there and pull(url, folder) "
            f"gets it here; write {'./' + text!r:.200} for a folder of that name"
        )
    home = os.path.expanduser(text)
    if home.startswith("~"):
        raise FieldError(
            f"path {text!r:.200}: there is no home folder of {text.split('/')[0][1:]!r:.100}; write an absolute path "
            "for a folder of that name"
        )
    return home


def folder_of(folder: str | os.PathLike[str]) -> Path:
    """The absolute path that a folder argument means; raises as :func:`local_path` does.

    Example:
        >>> folder_of("/data/../data/cartpole")
        PosixPath('/data/cartpole')
    """
    return Path(os.path.abspath(local_path(folder)))


DEEPEST = 64
"""How many folders inside of one another are looked into. No buffer has more."""


def entries_beneath(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below a folder: relative paths, each folder before what is in it. Links are not followed.

    Whatever is inside of more than ``DEEPEST`` folders is left out.

    Raises:
        StorageError: a folder may not be looked into.
    """
    waiting = [("", 1)]
    while waiting:
        inside, depth = waiting.pop()
        try:
            with os.scandir(folder / inside) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):  # it has gone meanwhile
            continue
        except OSError as error:
            raise StorageError(error.errno, f"{error.strerror}; it cannot be listed", str(folder / inside)) from error
        for entry in entries:
            relative = f"{inside}/{entry.name}" if inside else entry.name
            yield relative, entry
            if depth < DEEPEST and entry.is_dir(follow_symlinks=False):
                waiting.append((relative, depth + 1))


def is_too_deep(relative: str) -> bool:
    """Whether a relative path is inside of as many folders as are looked into."""
    return relative.count("/") >= DEEPEST - 1


def bytes_beneath(folder: Path, *, on_disk: bool = False) -> int:
    """The sizes of all files below a folder, or the room that they take on the disk."""
    total = 0
    for _, entry in entries_beneath(folder):
        with suppress(OSError):  # a writer replaces files
            if not entry.is_dir(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                total += status.st_blocks * 512 if on_disk else status.st_size
    return total

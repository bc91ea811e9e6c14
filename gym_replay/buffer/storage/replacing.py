"""Small files that are replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path

from gym_replay.buffer.storage.columns import (
    open_beneath,
    storage_error,
    sync_descriptor,
    sync_directory,
    unlink_beneath,
    write_at,
)
from gym_replay.errors import StorageError


def replace_file(folder: Path, name: str, new: str, content: bytes) -> None:
    """Put a file in place, whole or not at all: written under another name, synced, renamed.

    Args:
        folder: where; nobody else writes these files.
        name: of the file.
        new: the other name. What a killed process left there goes.
        content: of the file.

    Raises:
        StorageError: the operating system refused; the file is what it was.
    """
    path = folder / new
    try:
        unlink_beneath(folder, new)
        descriptor = open_beneath(folder, new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            write_at(descriptor, content, 0, path)
            sync_descriptor(descriptor, path)
        finally:
            os.close(descriptor)
        os.replace(path, folder / name)
    except StorageError:
        unlink_beneath(folder, new)
        raise
    except OSError as error:
        unlink_beneath(folder, new)
        raise storage_error(error, path, len(content)) from error
    sync_directory(folder)

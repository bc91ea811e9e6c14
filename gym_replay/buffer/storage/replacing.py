"""Small files that are replaced as a whole."""

from __future__ import annotations

import os
from contextlib import suppress

from gym_replay.buffer.storage.columns import write_at
from gym_replay.buffer.storage.directory import Directory, storage_error, sync_descriptor
from gym_replay.errors import StorageError


def replace_file(folder: Directory, name: str, new: str, content: bytes) -> None:
    """Put a file in place, whole or not at all: written under another name, synced, renamed.

    Args:
        folder: where; nobody else writes these files.
        name: of the file.
        new: the other name. What a killed process left there goes.
        content: of the file.

    Raises:
        StorageError: the operating system refused. Where the message does not say that the file is in place, it is
            what it was.
    """
    path = folder / new
    try:
        folder.unlink(new)
        descriptor = folder.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            write_at(descriptor, content, 0, path)
            sync_descriptor(descriptor, path)
        finally:
            os.close(descriptor)
        folder.rename(new, name)
    except OSError as error:
        with suppress(StorageError):
            folder.unlink(new)
        raise storage_error(error, path, len(content)) from error
    folder.sync()

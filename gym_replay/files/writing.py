"""Bytes read and written whole at a position of a file, and small files that are replaced whole."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np

from gym_replay.errors import StorageError
from gym_replay.files.directory import Directory, storage_error, sync_descriptor

Buffer: TypeAlias = "bytes | bytearray | memoryview"

LONGEST_WRITE = 1 << 30
"""Bytes that the operating system is given in one call."""


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


def read_at(descriptor: int, nbytes: int, position: int) -> bytes:
    """The bytes at a position, fewer where the file ends before."""
    pieces = []
    while nbytes and (piece := os.pread(descriptor, min(nbytes, LONGEST_WRITE), position)):
        pieces.append(piece)
        position += len(piece)
        nbytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def write_at(descriptor: int, data: Buffer, position: int, path: Path) -> None:
    """Write all of ``data``, which is contiguous, at a byte position.

    Raises:
        StorageError: the operating system took less than all of it.
    """
    written, total = 0, memoryview(data).nbytes
    try:
        if total <= LONGEST_WRITE:
            written = os.pwrite(descriptor, data, position)
        while written < total:
            piece = np.frombuffer(data, np.uint8)[written : written + LONGEST_WRITE].data
            count = os.pwrite(descriptor, piece, position + written)
            if count == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            written += count
    except OSError as error:
        raise storage_error(error, path, total - written) from error

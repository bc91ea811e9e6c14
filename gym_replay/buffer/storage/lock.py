"""One writer at a time: an advisory lock on ``writer.lock`` that dies with its process."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gym_replay.buffer.storage.columns import storage_error
from gym_replay.errors import BufferLockedError

LOCK_NAME = "writer.lock"


class WriterLock:
    """The right to write into a folder, held from construction to :meth:`release`.

    The operating system drops the lock when the process that took it ends, however it ends. A forked child does
    not hold it.

    Raises:
        BufferLockedError: another writer, in this process or another one, holds it.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_NAME
        self._lock = FileLock(path, blocking=False, thread_local=False)
        holder = _read_holder(path)
        try:
            self._lock.acquire()
        except OSError as error:
            if isinstance(error, Timeout):
                raise self._refusal(folder, holder) from None
            raise storage_error(error, path, 0) from error
        with suppress(OSError):  # a full disk: the lock holds, and only its message will lack the process id
            path.write_text(f"{os.getpid()}\n")

    @staticmethod
    def _refusal(folder: Path, holder: int | None) -> BufferLockedError:
        who = f"process {holder}" if holder else "another process"
        if holder == os.getpid():
            who = f"this process ({holder})"
        return BufferLockedError(
            errno.EAGAIN,
            f"{who} is writing to this buffer; close it there (buffer.close() or env.close()), open the folder with "
            "read_only=True, or record to another folder",
            str(folder),
        )

    @property
    def is_held(self) -> bool:
        """Whether it was not released yet."""
        return self._lock.is_locked

    def release(self) -> None:
        """Let the next writer in."""
        self._lock.release()


def _read_holder(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return int(os.read(descriptor, 32))
        finally:
            os.close(descriptor)
    return None

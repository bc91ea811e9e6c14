"""One writer at a time: an advisory lock on ``writer.lock`` that dies with its process."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

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
        except Timeout:
            who = "this process" if holder == os.getpid() else f"process {holder}" if holder else "another process"
            raise BufferLockedError(
                errno.EAGAIN,
                f"{who} is writing to this buffer; close it there (buffer.close() or env.close()), open the folder "
                "with read_only=True, or record to another folder",
                str(folder),
            ) from None
        with suppress(OSError):  # a full disk: the lock holds, and only its message will lack the process id
            path.write_text(f"{os.getpid()}\n")

    def release(self) -> None:
        """Let the next writer in."""
        self._lock.release()


def _read_holder(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None

"""One writer at a time: an advisory lock on ``writer.lock`` that dies with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from contextlib import suppress
from pathlib import Path

from gym_replay.buffer.storage.columns import open_beneath, storage_error, write_at
from gym_replay.errors import BufferLockedError

LOCK_NAME = "writer.lock"

_HELD: weakref.WeakSet[WriterLock] = weakref.WeakSet()


class WriterLock:
    """The right to write into a folder, held from construction to :meth:`release`.

    The operating system drops the lock when the process that took it ends, however it ends. A forked child does
    not hold it.

    Raises:
        BufferLockedError: another writer, in this process or another one, holds it.
        CorruptBufferError: ``writer.lock`` is a link of either sort, or no file.
        StorageError: the operating system refused.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_NAME
        try:
            self._descriptor = _locked(folder)
        except BlockingIOError:
            raise self._refusal(folder) from None
        except OSError as error:
            raise storage_error(error, path, 0) from error
        _HELD.add(self)
        with suppress(OSError):  # a full disk: the lock holds, and only its message will lack the process id
            os.ftruncate(self._descriptor, 0)
            write_at(self._descriptor, f"{os.getpid()}\n".encode(), 0, path)

    @staticmethod
    def _refusal(folder: Path) -> BufferLockedError:
        # Not by the process id alone: in containers, several processes have the same one.
        there = _identity(folder / LOCK_NAME)
        holder = _read_holder(folder / LOCK_NAME)
        who = f"process {holder}" if holder else "another process"
        if there is not None and any(lock.is_held and _identity(lock._descriptor) == there for lock in list(_HELD)):
            who = f"this process ({os.getpid()})"
        return BufferLockedError(
            errno.EAGAIN,
            f"{who} is writing to this buffer; close it there (buffer.close() or env.close()), open the folder with "
            "read_only=True, or record to another folder",
            str(folder),
        )

    @property
    def is_held(self) -> bool:
        """Whether it was not released yet, in the process that took it."""
        return self._descriptor >= 0

    def release(self) -> None:
        """Let the next writer in."""
        if self.is_held:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._forget()

    def _forget(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _forget_in_child() -> None:
    """A forked child closes what it inherited, or the lock would outlive the process that took it."""
    for lock in list(_HELD):
        lock._forget()


os.register_at_fork(after_in_child=_forget_in_child)


def _locked(folder: Path) -> int:
    """A descriptor of the lock's file with the lock; BlockingIOError where somebody else has it."""
    while True:
        descriptor = open_beneath(folder, LOCK_NAME, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was deleted before it was locked, and another one may be there now


def _identity(file: Path | int) -> tuple[int, int] | None:
    with suppress(OSError):
        status = os.stat(file)
        return status.st_dev, status.st_ino
    return None


def _read_holder(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return int(os.read(descriptor, 32))
        finally:
            os.close(descriptor)
    return None

"""One writer at a time: advisory locks on a folder and on its ``writer.lock``, which die with their process."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import weakref
from contextlib import suppress
from pathlib import Path

from gym_replay.errors import BufferLockedError, BufferNotFoundError, ConfigMismatchError, GymReplayError
from gym_replay.files.directory import Directory, refusal
from gym_replay.files.garbage import Descriptor
from gym_replay.files.writing import replace_file

LOCK_NAME = "writer.lock"

_REFUSED = (errno.EAGAIN, errno.EACCES)
_ATTEMPTS = 100

_HELD: set[weakref.ref[WriterLock]] = set()  # no WeakSet: none can be iterated while another thread adds to it


class WriterLock:
    """The right to write into a folder, held from construction to :meth:`release`.

    The folder itself is locked too, where the file system can do that, so that a ``writer.lock`` that somebody deletes
    lets nobody in. The operating system drops the locks when the process that took them ends, however it ends. A forked
    child does not hold them.

    Args:
        folder: it must exist.

    Attributes:
        directory: the folder, held open.
        is_inherited: whether this is a forked child of the process that took the locks, which keeps them.

    Raises:
        BufferLockedError: another writer, in this process or another one, holds it.
        StorageError: the operating system refused.
    """

    def __init__(self, folder: Path) -> None:
        # Resolved: a link to the folder may be given another target while it is written to.
        self._path = os.path.join(os.path.realpath(folder), LOCK_NAME)
        self.is_inherited = False
        try:
            self.directory = Directory(folder)
            self._take_in_place()
        except FileNotFoundError:
            raise BufferNotFoundError(errno.ENOENT, "there is no such folder (any more)", str(folder)) from None
        except OSError as error:
            if isinstance(error, GymReplayError):
                raise
            raise refusal(error, folder / LOCK_NAME, "the folder could not be locked for writing") from error

    def _take_in_place(self) -> None:
        try:
            for _ in range(_ATTEMPTS):
                try:
                    self._take()
                except BufferLockedError:
                    # A recorder that an exception ended is in a circle with its traceback, and lets go as garbage.
                    if not self._is_held_here():
                        raise
                    gc.collect()
                    self._take()
                if self._is_in_place():
                    return
                self._file.close()  # it was removed, or replaced, between the two calls
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        except BaseException:
            self.directory.close()
            raise

    def _take(self) -> None:
        self._file = Descriptor(self.directory.open(LOCK_NAME, os.O_RDWR | os.O_CREAT))
        descriptor = self._file.number
        own = os.fstat(descriptor)
        self._identity = own.st_ino, own.st_dev
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lock_folder()
            _HELD.add(weakref.ref(self, _HELD.discard))
            with suppress(OSError):  # a full disk: the lock holds, and only its message will lack the process id
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BaseException as error:
            refused = self._refusal() if isinstance(error, OSError) and error.errno in _REFUSED else error
            self._file.close()
            raise refused from None

    def _lock_folder(self) -> None:
        try:
            fcntl.flock(self.directory.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # not every file system can lock a folder
            if error.errno in _REFUSED:
                raise

    def _refusal(self) -> BufferLockedError:
        # Not by the process id alone: in containers, several processes have the same one.
        holder = None
        with suppress(OSError, ValueError):
            holder = int(os.pread(self._file.number, 32, 0))
        who = f"process {holder}" if holder else "another process"
        again = ""
        if self._is_held_here():
            who = f"this process ({os.getpid()})"
            again = "; after an interrupt in a notebook, whose traceback holds the recorder, run the cell once more"
        return BufferLockedError(
            errno.EAGAIN,
            f"{who} is writing to this buffer; close it there (buffer.close() or env.close()), open the folder with "
            f"read_only=True, or record to another folder{again}",
            str(self.directory),
        )

    def _is_held_here(self) -> bool:
        return any(lock.is_held and lock._identity == self._identity for lock in _held())

    @property
    def is_held(self) -> bool:
        """Whether it was not released yet."""
        return self._file.number >= 0

    def check(self) -> None:
        """Raise where the folder is not, any more, the one under its path with this lock in it.

        Raises:
            BufferNotFoundError: the folder was deleted or moved away.
            ConfigMismatchError: another folder has taken its place.
            BufferLockedError: its ``writer.lock`` was deleted or replaced.
        """
        if not self._is_in_place():
            raise self._fault()

    def put_file(self, name: str, content: bytes) -> None:
        """Put a file beside the buffer's into the folder, whole or not at all.

        Raises:
            GymReplayError: as :meth:`check` does.
            StorageError: the operating system refused.
        """
        self.check()
        replace_file(self.directory, name, f"{name}.new", content)

    def _is_in_place(self) -> bool:
        try:
            found = os.lstat(self._path)
        except OSError:
            return False
        # Where the file has another name, it may be in two folders.
        return (found.st_ino, found.st_dev) == self._identity and (found.st_nlink == 1 or self._is_folder_in_place())

    def _is_folder_in_place(self) -> bool:
        now, held = os.stat(os.path.dirname(self._path)), os.fstat(self.directory.descriptor)
        return (now.st_ino, now.st_dev) == (held.st_ino, held.st_dev)

    def _fault(self) -> GymReplayError:
        folder = str(self.directory)
        try:
            is_folder_in_place = self._is_folder_in_place()
        except OSError:
            return BufferNotFoundError(
                errno.ENOENT,
                "the folder was deleted, moved away or unmounted while it was written to; nothing more is written. Put "
                "it back, or open the buffer where it is now",
                folder,
            )
        if not is_folder_in_place:
            return ConfigMismatchError(
                f"{folder}: another folder was put in its place while it was written to; nothing more is written, here "
                "or there. Open the buffer anew"
            )
        return BufferLockedError(
            errno.ENOLCK,
            f"{LOCK_NAME} was deleted or replaced while the buffer was written to, so somebody else may write to it by "
            "now; nothing more is written. Close the buffer and open it anew",
            folder,
        )

    def is_of(self, folder: Path) -> bool:
        """Whether the folder that is held is the one at a path."""
        return os.path.samestat(os.stat(folder, follow_symlinks=False), os.fstat(self.directory.descriptor))

    @property
    def is_in_folder(self) -> bool:
        """Whether the folder that is held, wherever it is now, still has this lock in it."""
        try:
            found = os.stat(LOCK_NAME, dir_fd=self.directory.descriptor, follow_symlinks=False)
        except OSError:
            return False
        return (found.st_ino, found.st_dev) == self._identity

    def release(self) -> None:
        """Let the next writer in."""
        if self.is_held and not self.is_inherited:  # a child shares the locks of its parent
            fcntl.flock(self._file.number, fcntl.LOCK_UN)
            with suppress(OSError):
                fcntl.flock(self.directory.descriptor, fcntl.LOCK_UN)
        self._file.close()
        self.directory.close()


def _held() -> list[WriterLock]:
    """The locks of this process."""
    return [lock for each in list(_HELD) if (lock := each()) is not None]


def _release_in_child() -> None:
    """A forked child closes what it inherited, or the lock would outlive the process that took it."""
    for lock in _held():
        lock.is_inherited = True
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)

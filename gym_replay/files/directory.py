"""A folder that is held open, and files below a folder that are reached without following a link.

Whoever writes goes through a :class:`Directory`: what is done through it is done in the folder that was opened,
wherever that has been moved, and never in another one that took its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from gym_replay.errors import CorruptBufferError, StorageError
from gym_replay.files.descriptors import OUT_OF_DESCRIPTORS, too_many_files
from gym_replay.files.folders import DEEPEST
from gym_replay.files.garbage import Descriptor

_LINK_ERRORS = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO)
NOT_THE_FILES_FAULT = (*OUT_OF_DESCRIPTORS, errno.EACCES, errno.EPERM)
"""Refusals that say nothing about what is in a file."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_PLAIN = os.O_NOFOLLOW | os.O_NONBLOCK


def storage_error(error: OSError, path: Path | Directory | str, needed: int) -> StorageError:
    """The error of ours for a refused write of ``needed`` more bytes."""
    if isinstance(error, StorageError):
        return error
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        size = f"{needed} more bytes were needed" if needed else "room for one more file was needed"
        return StorageError(
            error.errno, f"{reason}: {size} (free some space and go on with the same buffer)", str(path)
        )
    remedy = _REMEDIES.get(error.errno or 0, "nothing more can be written there now")
    if error.errno == errno.EMFILE:
        remedy = too_many_files()
    return StorageError(error.errno, f"{reason}: {remedy}; committed episodes are intact", str(path))


_REMEDIES = {
    errno.EACCES: "give this user the right to write there, or choose another folder",
    errno.EPERM: "give this user the right to write there, or choose another folder",
    errno.EROFS: "the file system is mounted read-only; choose another folder",
    errno.ENOENT: "the folder is missing: it was moved or deleted, or its disk is not mounted",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.ENFILE: "the system has too many open files; close some",
}


def refusal(error: OSError, path: Path | Directory | str, what: str) -> StorageError:
    """The error of ours for a refused call that was no write of bytes, and what it means."""
    return StorageError(error.errno, f"{storage_error(error, path, 0).strerror}; {what}", str(path))


def _open(folder: Folder, relative: str, name: str | Path, flags: int, directory: int | None = None) -> int:
    """``os.open`` of a new descriptor that no other program inherits; ``folder / relative`` is for the message.

    Raises:
        StorageError: there are no more descriptors, or no permission, which says nothing about the file.
    """
    try:
        return os.open(name, flags | os.O_CLOEXEC, 0o666, dir_fd=directory)
    except OSError as error:
        if error.errno in NOT_THE_FILES_FAULT:
            raise storage_error(error, folder / relative, 0) from error
        raise


def _link_error(folder: Path | Directory, relative: str) -> CorruptBufferError:
    return CorruptBufferError(f"{folder / relative}: expected a plain file, reached through no links")


class Directory:
    """A folder, held open.

    ``directory / "metadata.json"`` is a path for messages only: nothing is opened by it.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = Descriptor(_open(path, "", path, _DIRECTORY))

    @property
    def descriptor(self) -> int:
        """Of the folder."""
        return self._file.number

    def __truediv__(self, relative: str) -> Path:
        return self.path / relative

    def __str__(self) -> str:
        return str(self.path)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder."""
        self._file.close()

    @contextlib.contextmanager
    def _entry(self, relative: str, refused: str | None = None) -> Iterator[tuple[int, str]]:
        """The descriptor of the directory that a path ends in, until the block ends, and the last name of the path.

        Args:
            relative: the path of a file; of a directory with a slash behind it, and then the name is empty.
            refused: what it means where the operating system refuses something inside of the block.

        Raises:
            CorruptBufferError: a component of the path is a link.
            FileNotFoundError: there is no such file.
            StorageError: the operating system refused, and ``refused`` was given.
        """
        *parents, name = relative.split("/")
        directory = self.descriptor
        try:
            for parent in parents:
                below = _open(self, parent, parent, _DIRECTORY | os.O_NOFOLLOW, directory)
                above, directory = directory, below
                if above != self.descriptor:
                    os.close(above)
            yield directory, name
        except OSError as error:
            if error.errno in _LINK_ERRORS:
                raise _link_error(self, relative) from None
            if refused is None or isinstance(error, FileNotFoundError):
                raise
            raise refusal(error, self / relative, refused) from error
        finally:
            if directory != self.descriptor:
                os.close(directory)

    def open(self, relative: str, flags: int) -> int:
        """Open a plain file; the caller closes the descriptor.

        Raises:
            CorruptBufferError: a component of the path is a link, or the end is no plain file.
            FileNotFoundError: it does not exist.
        """
        with self._entry(relative) as (directory, name):
            return _open_plain(self, relative, name, flags, directory)

    def _mode_of(self, relative: str) -> int:
        with contextlib.suppress(OSError, CorruptBufferError), self._entry(relative) as (directory, name):
            return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        return 0

    def exists(self, relative: str) -> bool:
        """Whether there is anything of this name, a broken link included."""
        return self._mode_of(relative) != 0

    def has(self, name: str, descriptor: int) -> bool:
        """Whether the file of this name, in the folder itself, is an open one."""
        with contextlib.suppress(OSError):
            found = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
            return os.path.samestat(found, os.fstat(descriptor))
        return False

    def is_plain_file(self, relative: str) -> bool:
        """Whether there is a file of this name, reached through no links."""
        return stat.S_ISREG(self._mode_of(relative))

    def files(self, relative: str) -> list[str]:
        """The paths of all that lies below a directory of the folder and is none itself, reached through no links."""
        found: list[str] = []
        with contextlib.suppress(CorruptBufferError, FileNotFoundError), self._entry(f"{relative}/") as (directory, _):
            for name in sorted(os.listdir(directory)):
                below = f"{relative}/{name}"
                if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                    found.append(below)
                elif below.count("/") < DEEPEST:
                    found += self.files(below)
        return found

    def make_parents(self, relative: str) -> None:
        """Make the directories above a file.

        Raises:
            CorruptBufferError: a component of the path is a link.
            FileNotFoundError: the folder was deleted.
            StorageError: the operating system refused.
        """
        parents = relative.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            with (
                self._entry("/".join(parents[:depth]), "it could not be made") as (directory, name),
                contextlib.suppress(FileExistsError),
            ):
                os.mkdir(name, dir_fd=directory)

    def rename(self, relative: str, new_name: str, *, missing_ok: bool = False) -> None:
        """Give a file another name in its directory.

        Raises:
            CorruptBufferError: a component of the path is a link.
            StorageError: the operating system refused.
        """
        refused = f"it could not be renamed to {new_name}"
        try:
            with self._entry(relative, refused) as (directory, name):
                if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                    raise CorruptBufferError(f"{self / relative}: expected a plain file")
                os.replace(name, new_name, src_dir_fd=directory, dst_dir_fd=directory)
        except FileNotFoundError as error:
            if not missing_ok:
                raise refusal(error, self / relative, refused) from error

    def unlink(self, relative: str) -> None:
        """Delete a file; what is missing, no file, or behind a link stays as it is.

        Raises:
            StorageError: the operating system refused.
        """
        with (
            contextlib.suppress(CorruptBufferError, FileNotFoundError),
            self._entry(relative, "it could not be deleted") as (directory, name),
            contextlib.suppress(PermissionError),
        ):
            os.unlink(name, dir_fd=directory)

    def remove_empty_parents(self, relative: str) -> None:
        """Delete the directories above a file that has gone, as far as they are empty."""
        parents = relative.split("/")[:-1]
        with contextlib.suppress(OSError, CorruptBufferError):
            for depth in range(len(parents), 0, -1):
                with self._entry("/".join(parents[:depth])) as (directory, name):
                    os.rmdir(name, dir_fd=directory)

    def sync(self, relative: str = "") -> None:
        """Have the entries of the folder, or of a directory below it, on the disk before returning.

        Raises:
            StorageError: the operating system refused.
        """
        path = f"{relative}/" if relative else ""
        with self._entry(path, "the names of its files may not have reached the disk") as (directory, _):
            os.fsync(directory)

    def sync_parents(self, paths: Iterable[str]) -> None:
        """:meth:`sync` for the folder and every directory above these files.

        What is no directory any more, or behind a link, is left out: the entries of those above it say so.
        """
        parents = {"/".join(path.split("/")[:depth]) for path in paths for depth in range(path.count("/") + 1)}
        for parent in sorted({"", *parents}):
            if not parent or stat.S_ISDIR(self._mode_of(parent)):
                self.sync(parent)

    def sync_files(self, paths: Iterable[str]) -> None:
        """Have the bytes of files on the disk before returning.

        Raises:
            CorruptBufferError: one of them is missing.
            StorageError: not everything that was written to them reached the disk.
        """
        for path in paths:
            try:
                descriptor = self.open(path, os.O_RDONLY)
            except FileNotFoundError:
                raise CorruptBufferError(f"{self / path}: the file is missing") from None
            try:
                sync_descriptor(descriptor, self / path)
            finally:
                os.close(descriptor)


Folder: TypeAlias = "Path | Directory"
"""Where a reader finds files: below a path, looked up each time, or in a folder that is held open."""


def open_beneath(folder: Folder, relative: str, flags: int) -> int:
    """As :meth:`Directory.open`, also for a folder that is not held open."""
    if isinstance(folder, Directory):
        return folder.open(relative, flags)
    if "/" not in relative:
        return _open_plain(folder, relative, os.path.join(folder, relative), flags)
    with Directory(folder) as directory:
        return directory.open(relative, flags)


def content_beneath(folder: Folder, relative: str, most: int) -> bytes | None:
    """The content of a small file, or its first ``most + 1`` bytes; None where there is no such file.

    Raises:
        CorruptBufferError: a component of the path is a link, or the end is no plain file.
    """
    try:
        descriptor = open_beneath(folder, relative, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(most + 1)


def exists_beneath(folder: Folder, relative: str) -> bool:
    """As :meth:`Directory.exists`, also for a folder that is not held open."""
    return folder.exists(relative) if isinstance(folder, Directory) else os.path.lexists(folder / relative)


def _open_plain(folder: Folder, relative: str, name: str, flags: int, directory: int | None = None) -> int:
    """Open a plain file that is no link, and for writing none that has a second name elsewhere."""
    try:
        descriptor = _open(folder, relative, name, flags & ~os.O_TRUNC | _PLAIN, directory)
    except OSError as error:
        if error.errno in _LINK_ERRORS:
            raise _link_error(folder, relative) from None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CorruptBufferError(f"{folder / relative}: expected a plain file")
        if flags & (os.O_WRONLY | os.O_RDWR) and status.st_nlink > 1:
            raise CorruptBufferError(
                f"{folder / relative}: the file has {status.st_nlink} names (hard links), and what is written under "
                "one of them changes the others; copy the folder, as with cp -r, and write to the copy"
            )
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def sync_entry(folder: Path) -> None:
    """Have the entry of the folder itself on the disk, and of the folders above it on the same disk.

    Folders that may be entered but not read are left out.
    """
    actual = Path(os.path.realpath(folder))
    device = os.stat(actual).st_dev
    for parent in actual.parents:
        if os.stat(parent).st_dev != device:
            break
        with contextlib.suppress(PermissionError):
            descriptor = os.open(parent, _DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def sync_descriptor(descriptor: int, path: Path) -> None:
    """``fsync``, and on macOS the call that also empties the drive's own cache.

    Raises:
        StorageError: not everything that was written to the file reached the disk.
    """
    if sys.platform == "darwin":  # pragma: no cover
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise storage_error(error, path, 0) from error

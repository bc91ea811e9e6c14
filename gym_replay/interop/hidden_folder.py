"""A folder that takes its name when it is complete."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from gym_replay.errors import GymReplayError, NotABufferError, StorageError


class HiddenFolder:
    """A context that makes a folder for what will be at ``target``, and removes what is left of it at the end.

    It lies in a hidden folder, on which whoever makes it holds a lock that the operating system drops when the process
    ends. So what a killed process left for the same target is found, whatever its process id was, and removed first.

    Args:
        target: where the complete folder will be.
        parent: where the hidden one is, on the same file system; beside the target where it is left out.
    """

    def __init__(self, target: Path, parent: Path | None = None) -> None:
        self._target = target
        self._parent = target.parent if parent is None else parent

    def __enter__(self) -> Path:
        head = f".{self._target.name[:100]}.gym-replay-"
        try:
            self._parent.mkdir(parents=True, exist_ok=True)
            for path in self._parent.glob(f"{_literal(head)}*"):
                _remove_abandoned(path)
            while not self._make(self._parent / f"{head}{uuid.uuid4().hex}"):
                pass  # another process took it for an abandoned one before it was locked
        except OSError as error:
            raise self._refused(error) from error
        self._made.mkdir()
        return self._made

    @property
    def _made(self) -> Path:
        """The folder that will be at the target. A buffer in it locks it for itself."""
        return self._path / "made"

    def _make(self, path: Path) -> bool:
        """Make the folder and lock it; False where another process has removed it in between."""
        path.mkdir()
        try:
            self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = path.exists()
        except OSError as error:  # on a file system without locks, what a killed process leaves stays
            is_ours = not isinstance(error, BlockingIOError)
        if is_ours:
            self._path = path
        else:
            os.close(self._lock)
        return is_ours

    def put_in_place(self) -> None:
        """Give the folder its name.

        Raises:
            NotABufferError: there is something now.
        """
        self._target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(self._made, self._target)  # over an empty folder, too
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise NotABufferError(
                    errno.EEXIST, "another process has put something here meanwhile", str(self._target)
                ) from error
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._lock)
        if isinstance(error, OSError) and not isinstance(error, GymReplayError):
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            error.errno or errno.EIO, f"{error.strerror or error}; nothing of it is left here", str(self._target)
        )


def _literal(name: str) -> str:
    """A pattern that only this name matches."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _remove_abandoned(path: Path) -> None:
    """Remove a hidden folder that nobody holds."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)

"""A folder that is made beside its place, and takes its name at once when it is complete and on the disk."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gym_replay.errors import BufferLockedError, BufferNotFoundError, GymReplayError, NotABufferError, StorageError
from gym_replay.files.directory import Directory, refusal, sync_descriptor, sync_entry
from gym_replay.files.folders import entries_beneath
from gym_replay.files.lock import LOCK_NAME, WriterLock

_MADE = "made"
_LONGEST_NAME = 200

_AT_FDCWD = -100
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


class NewFolder:
    """The right to make a folder and give it its name.

    The new folder is ``made`` inside a hidden one, ``.<name>.gym-replay-new``. Whoever makes it holds the
    ``writer.lock`` in the hidden folder, so one that nobody holds is what a killed process left, and the next one to
    the same target takes it over.

    Args:
        target: where the folder will be.
        parent: where the hidden folder is, on the same file system and above the target; the target's own parent where
            it is left out.
        resume: begin with what :meth:`leave`, or a killed process, left of this folder.

    Attributes:
        target: where the folder will be.
        folder: where it is made; empty, unless ``resume`` found something.
        is_published: whether it has taken its name.

    Raises:
        BufferLockedError: another process makes a folder for the same target.
        NotABufferError: something else lies where the hidden folder would be, or a replacement that was cut in the
            middle was undone just now.
        OSError: the operating system refused.
    """

    def __init__(self, target: Path, parent: Path | None = None, *, resume: bool = False) -> None:
        self.target = target
        parent = target.parent if parent is None else parent
        name = _short("-".join(target.relative_to(parent).parts))
        self._hidden = parent / f".{name}.gym-replay-new"
        self.folder = self._hidden / _MADE
        self._old = target.parent / f".{name}.gym-replay-old"
        self.is_published = False
        self._lock = self._take()
        try:
            self._recover()
            if self.folder.exists() and not (resume and not self.folder.is_symlink()):
                shutil.rmtree(self.folder)
            self.folder.mkdir(exist_ok=resume)
        except BaseException:
            self._lock.release()
            raise

    def _take(self) -> WriterLock:
        hidden = self._hidden
        hidden.mkdir(parents=True, exist_ok=True)
        if hidden.is_symlink():
            raise NotABufferError(errno.EEXIST, "expected a folder that is being made, found a link", str(hidden))
        if foreign := set(os.listdir(hidden)) - {LOCK_NAME, _MADE}:
            raise NotABufferError(
                errno.EEXIST,
                f"expected a folder that is being made, found {sorted(foreign)[0]!r}; move the folder away",
                str(hidden),
            )
        try:
            return WriterLock(hidden)
        except (BufferLockedError, BufferNotFoundError):  # the latter where it was published just now
            raise BufferLockedError(
                errno.EAGAIN,
                "another process is making this folder; wait for it, or choose another one",
                str(self.target),
            ) from None

    def _recover(self) -> None:
        """Undo a replacement in two steps that was cut between them, or end one that was cut after them."""
        if not os.path.lexists(self._old):
            return
        if os.path.lexists(self.target):
            shutil.rmtree(self._old)
            return
        os.rename(self._old, self.target)
        raise NotABufferError(
            errno.EEXIST,
            "a process was killed while it replaced this folder, which is in its place again; start once more",
            str(self.target),
        )

    def publish(self, old: WriterLock | None = None) -> None:
        """Have all of the folder on the disk and give it its name.

        Args:
            old: held on the folder that is at the target and is to be replaced; None where there is nothing, or an
                empty folder.

        Raises:
            NotABufferError: something else has come to be at the target.
            GymReplayError: the folder to be replaced is not, any more, what was locked.
            StorageError: the operating system refused; ``is_published`` says whether it was published all the same.
        """
        if old is not None:
            old.check()
        try:
            _sync(self.folder)
            self.target.parent.mkdir(parents=True, exist_ok=True)
            sync_entry(self.target.parent)  # the folders above may be new, too
            if old is None:
                os.rename(self.folder, self.target)
            else:
                self._exchange(old)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                reason = "something else has been put here meanwhile"
                raise NotABufferError(errno.EEXIST, reason, str(self.target)) from error
            raise refusal(error, self.target, "nothing was changed there") from error
        self.is_published = True
        with Directory(self.target.parent) as parent:
            parent.sync()

    def _exchange(self, old: WriterLock) -> None:
        """Put the folder where another one is, which is in the hidden folder afterwards."""
        if _swap(self.folder, self.target):
            if not old.is_of(self.folder):  # not what was locked: it goes back
                _swap(self.folder, self.target)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            return
        os.rename(self.target, self._old)  # beside its place: a rename within a directory is whole after a power loss
        try:
            os.rename(self.folder, self.target)
        except OSError:
            os.rename(self._old, self.target)
            raise

    def leave(self) -> None:
        """Keep what was made so far for the next one that resumes it."""
        self._lock.release()

    def discard(self) -> None:
        """Remove what was not published, and what was replaced."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.is_published:
            shutil.rmtree(self._old, ignore_errors=True)
        with suppress(OSError):
            os.unlink(self._hidden / LOCK_NAME)  # last, since it says whose the folder is
            os.rmdir(self._hidden)
        self._lock.release()


@contextmanager
def new_folders(*targets: Path, parent: Path | None = None) -> Iterator[list[NewFolder]]:
    """Folders that are made together. What is not published at the end of the context is removed.

    Raises:
        StorageError: the operating system refused; the message says which folders are complete.
        GymReplayError: as for :class:`NewFolder`.
    """
    made: list[NewFolder] = []
    with ExitStack() as stack:
        try:
            for target in targets:
                made.append(NewFolder(target, parent))
                stack.callback(made[-1].discard)
            yield made
        except OSError as error:
            if isinstance(error, GymReplayError) and not isinstance(error, StorageError):
                raise
            raise _failure(error, targets, [str(each.target) for each in made if each.is_published]) from error


def folder_beside(target: Path, what: str) -> Path:
    """A hidden folder beside a target, for what is needed to make it: ``.<name>.gym-replay-<what>``."""
    return target.parent / f".{_short(target.name)}.gym-replay-{what}"


def _short(name: str) -> str:
    """The name, or where a longer one would be none, what stands for it."""
    return name if len(os.fsencode(name)) <= _LONGEST_NAME else hashlib.sha256(os.fsencode(name)).hexdigest()[:32]


def _failure(error: OSError, targets: tuple[Path, ...], complete: list[str]) -> StorageError:
    """An error that says what was made, without the advice that is given to those who record."""
    reason = (error.strerror or str(error)).partition(" (")[0]
    remedy = "; free some space and start it again" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    left = f"complete are {', '.join(complete)}" if complete else "nothing of it is left"
    return StorageError(error.errno or errno.EIO, f"{reason}; {left}{remedy}", error.filename or str(targets[0]))


def _sync(folder: Path) -> None:
    """Have all that is in a folder, and the names of it, on the disk."""
    paths = [folder, *(folder / relative for relative, _ in entries_beneath(folder))]
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sync_descriptor(descriptor, path)
        finally:
            os.close(descriptor)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, so that there is one at each place at any time; False where that cannot be."""
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":  # pragma: no cover
            return bool(library.renamex_np(first, second, _EXCHANGE) == 0)
        return bool(library.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _EXCHANGE) == 0)
    except AttributeError:  # pragma: no cover
        return False

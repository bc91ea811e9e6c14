"""A folder that is made beside its place, and takes it at once when it is complete.

It lies in the same directory as ``.<name>.gym-replay-copy``. Whoever makes it holds its ``writer.lock``, so a folder of
that name which nobody holds is what a killed process left, and the next one to the same place removes it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from gym_replay.buffer.storage.creation import check_target
from gym_replay.buffer.storage.layout import NEW, STEPS, TOP_FILES, read_metadata
from gym_replay.buffer.storage.reader import has_buffer
from gym_replay.errors import BufferLockedError, CorruptBufferError, GymReplayError, NotABufferError
from gym_replay.files.directory import Directory, refusal, sync_entry
from gym_replay.files.folders import entries_beneath, is_too_deep
from gym_replay.files.lock import LOCK_NAME, WriterLock

SUFFIX = ".gym-replay-copy"
_OLD = "-old"
_STATISTICS = "statistics.json"
_LONGEST_NAME = 200

_AT_FDCWD = -100
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


class FolderAside:
    """The right to make a folder and put it in its place; ended by :meth:`publish` or :meth:`discard`.

    Args:
        target: where it will be. Nothing may be there but an empty folder, or with ``overwrite`` a buffer, whose lock
            is held meanwhile.

    Attributes:
        folder: where it is made; empty but for the lock.
        is_published: whether it has taken its place.

    Raises:
        NotABufferError: at the target, or where the folder would be made, is something else.
        BufferLockedError: somebody writes to the buffer there, or copies to the same place.
        StorageError: the operating system refused.
    """

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        self.target = target
        self.folder = _aside(target)
        self.is_published = False
        self._old_lock: WriterLock | None = None
        self._lock: WriterLock | None = None
        _recover(target)
        _check(target, overwrite=overwrite)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if has_buffer(target):
                self._old_lock = WriterLock(target)
            self._lock = self._take()
            _remove_contents(self.folder, but=LOCK_NAME)
        except OSError as error:
            self._release()
            if isinstance(error, GymReplayError):
                raise
            raise refusal(error, self.folder, "the copy could not be begun") from error
        except BaseException:
            self._release()
            raise

    def _take(self) -> WriterLock:
        """Make the folder, or take over the one that a killed process left, with its lock."""
        self.folder.mkdir(exist_ok=True)
        if self.folder.is_symlink():
            raise NotABufferError(errno.EEXIST, "expected what a copy leaves, found a link", str(self.folder))
        if foreign := _foreign(self.folder):
            raise NotABufferError(
                errno.EEXIST,
                f"expected what a copy leaves, found {foreign[0]!r}; move the folder away",
                str(self.folder),
            )
        before = self.folder.stat().st_ino
        lock = WriterLock(self.folder)
        with suppress(FileNotFoundError):
            if self.folder.stat().st_ino == before:
                return lock
        lock.release()  # another process has put it in its place since
        raise BufferLockedError(errno.EAGAIN, "another process is copying to this place", str(self.target))

    def publish(self) -> None:
        """Let the folder, which is complete and synced, take its place. What was there is removed.

        Raises:
            NotABufferError: something else has come to be at the target meanwhile.
            StorageError: the operating system refused; ``is_published`` says whether it has taken its place all the
                same.
        """
        _check(self.target, overwrite=self._old_lock is not None)
        if self._old_lock is not None:
            self._old_lock.check()  # what is replaced is what was locked
        try:
            sync_entry(self.target.parent)  # the folders above may be new, too
            if self._old_lock is not None and has_buffer(self.target):
                removed = _exchange(self.folder, self.target)
                if not self._old_lock.is_of(removed):  # not what was locked: it goes back
                    _exchange(removed, self.target)
                    raise NotABufferError(errno.EEXIST, "another folder was put there meanwhile", str(self.target))
                self.is_published = True
                with suppress(OSError):  # the new one is in place; the next copy to it removes the rest
                    _remove(removed)
            else:
                os.rename(self.folder, self.target)
                self.is_published = True
        except OSError as error:
            if isinstance(error, GymReplayError):
                raise
            raise refusal(error, self.target, "nothing was changed there") from error
        with Directory(self.target.parent) as parent:
            parent.sync()
        self._release()

    @property
    def directory(self) -> Directory:
        """The folder, held open."""
        assert self._lock is not None
        return self._lock.directory

    def discard(self) -> None:
        """Remove what was made so far."""
        if self._lock is not None:
            with suppress(OSError):
                _remove(self.folder)
        self._release()

    def _release(self) -> None:
        for lock in (self._lock, self._old_lock):
            if lock is not None:
                lock.release()
        self._lock = self._old_lock = None


def _aside(target: Path, suffix: str = SUFFIX) -> Path:
    name = target.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return target.parent / f".{name}{suffix}"


def _check(target: Path, *, overwrite: bool) -> None:
    """Raise NotABufferError where something is in the way at the target."""
    check_target(target, overwrite=overwrite)
    if inside := next((parent for parent in target.parents if has_buffer(parent)), None):
        raise NotABufferError(errno.EEXIST, f"inside of the buffer at {inside}; choose a folder beside it", str(target))
    if has_buffer(target) and not overwrite:
        raise NotABufferError(
            errno.EEXIST,
            "there is a buffer already; choose another folder, or overwrite=True to replace it",
            str(target),
        )
    if target.is_symlink():
        raise NotABufferError(errno.EEXIST, "expected a folder or nothing, found a link; name its target", str(target))
    if not has_buffer(target):
        # check_target lets what an interrupted creation left be; a folder is put only in the place of an empty one.
        if target.is_dir() and (found := sorted(os.listdir(target))):
            if LOCK_NAME in found:
                WriterLock(target).release()  # BufferLockedError where somebody is just creating a buffer
            raise NotABufferError(errno.EEXIST, f"the folder is not empty: it holds {found[0]!r}", str(target))
        return
    try:
        metadata = read_metadata(target)
    except GymReplayError as error:
        raise CorruptBufferError(f"{error}; delete the folder yourself to put a copy in its place") from error
    own = {*metadata.columns, *metadata.obsolete}
    if foreign := _foreign(target, own | {path + NEW for path in own}):
        names = ", ".join(foreign[:3])
        raise NotABufferError(
            errno.EEXIST, f"beside the buffer, the folder holds other files ({names}); move them away", str(target)
        )


def _foreign(folder: Path, arrays: Collection[str] | None = None) -> list[str]:
    """Files in a folder that are not a buffer's; ``arrays`` are the paths of its array files, None allows any."""
    own = {f"{name}{new}" for name in (*TOP_FILES, _STATISTICS) for new in ("", NEW)} | {LOCK_NAME}
    found = []
    for relative, entry in entries_beneath(folder):
        in_room = relative.partition("/")[0] == STEPS
        if entry.is_dir(follow_symlinks=False):
            is_ours = in_room
        elif arrays is None:
            is_ours = relative in own or (in_room and relative.endswith((".npy", ".npy" + NEW)))
        else:
            is_ours = relative in own or relative in arrays
        if entry.is_symlink() or not is_ours or is_too_deep(relative):
            found.append(relative)
    return sorted(found)


def _recover(target: Path) -> None:
    """Finish an exchange that was interrupted where it takes two steps: the old folder goes back, or goes."""
    old = _aside(target, SUFFIX + _OLD)
    if not old.is_dir() or old.is_symlink() or _foreign(old):
        return
    with suppress(OSError):
        if target.exists():
            _remove(old)
        else:
            os.rename(old, target)


def _remove(folder: Path) -> None:
    """Remove a buffer's folder; the lock goes last, since it says whose the folder is."""
    _remove_contents(folder, but=LOCK_NAME)
    (folder / LOCK_NAME).unlink(missing_ok=True)
    folder.rmdir()


def _remove_contents(folder: Path, *, but: str) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        elif entry.name != but:
            os.unlink(entry.path)


def _exchange(made: Path, target: Path) -> Path:
    """Put ``made`` in the place of ``target``; returns where that is now."""
    if _swap(made, target):
        return made
    old = _aside(target, SUFFIX + _OLD)
    os.rename(target, old)
    try:
        os.rename(made, target)
    except OSError:
        os.rename(old, target)
        raise
    return old


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

"""Files of a revision on this disk, in which only what was asked for is there.

The files have their full sizes and no bytes at first. Whoever is about to read a range of one asks for it with
:meth:`Mirror.need`, which fetches the blocks that are missing, many requests at a time, and compares each with its
checksum. What was fetched takes room up to a limit: then the blocks that were read longest ago are given back to the
disk, as holes. What somebody holds is never given back: in a ``with mirror.hold()`` all that this thread asks for stays
until its end, and what is asked for outside of one stays for good, since views of it may be anywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np
import numpy.typing as npt

from gym_replay.errors import BufferLockedError, CorruptBufferError, FieldError, StorageError
from gym_replay.files.directory import Directory, storage_error
from gym_replay.files.garbage import Descriptor, finalize
from gym_replay.files.threads import submit
from gym_replay.files.writing import read_at, write_at
from gym_replay.remote.objects.manifest import BLOCK, Published
from gym_replay.remote.objects.store import requests

Ints: TypeAlias = "npt.NDArray[np.int64]"

CACHE_BYTES = 4 << 30
"""Bytes that a mirror takes, where nobody says."""

_MOST_BLOCKS = 8
"""Blocks of one request, at most: 2 MiB, of which a few under way fill a fast link."""

_FREED = 8
"""Where room is needed, a part of this many of it is given back at once."""

_MISSING, _COMING, _THERE = range(3)
_PUNCH_HOLE = 1 | 2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_PREFIX = "gym-replay-"
_LOCK = "lock"


@dataclass
class _File:
    """What is there of a file.

    Attributes:
        state: uint8 ``(blocks,)``: missing, coming or there.
        used: int64 ``(blocks,)``: when each was asked for last, as a count of the times that anything was.
        holders: int32 ``(blocks,)``: how many hold each.
        sums: uint32 ``(blocks,)``: the checksum of each.
        coming: what is waited for, by block.
    """

    path: str
    sums: npt.NDArray[np.uint32]
    coming: dict[int, Future[None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = np.zeros(len(self.sums), np.uint8)
        self.used = np.zeros(len(self.sums), np.int64)
        self.holders = np.zeros(len(self.sums), np.int32)


class Mirror:
    """Files of a revision below a folder of this process. A forked process has a folder of its own, which is empty.

    Any thread may ask.

    Args:
        published: the revision.
        cache: the folder in which the mirror has its own; by default ``gym_replay`` below the user's folder of caches.
        cache_bytes: how many bytes may be there.
        kept: a folder for this mirror alone, which stays when the mirror goes, until :meth:`close`. What an earlier
            mirror has left there is compared with the checksums and not fetched again.

    Raises:
        BufferLockedError: another mirror has the folder.
        FieldError: ``cache_bytes`` is too small to be of use.
        StorageError: the folder cannot be made.
    """

    def __init__(
        self,
        published: Published,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
        *,
        kept: Path | None = None,
    ) -> None:
        if cache_bytes < 4 * BLOCK:
            raise FieldError(f"cache_bytes={cache_bytes}: expected at least {4 * BLOCK}")
        self.published = published
        self._cache = default_cache() if cache is None else Path(os.path.abspath(os.path.expanduser(cache)))
        self._most = cache_bytes // BLOCK
        self._sums = published.sums()
        self._kept = kept
        self._token = secrets.token_hex(8)
        _ALL[self._token] = self
        self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        return _mirror_here, (self._token, self.published, self._cache, self._most * BLOCK)

    def _begin(self) -> None:
        """Make the folder of this process, and know of no file."""
        self._process = os.getpid()
        self._changed = threading.RLock()
        self._files: dict[str, _File] = {}
        self._blocks = self._clock = 0
        self._holds = threading.local()
        self._can_punch = True
        kept, self._kept = self._kept, None  # a forked process has another one
        self._resumes = kept is not None
        if kept is not None:
            self._take(kept)
            return
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self._cache)
            made = Path(tempfile.mkdtemp(prefix=".", dir=self._cache))
            self._lock = Descriptor(os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            fcntl.flock(self._lock.number, fcntl.LOCK_EX)
            self._folder = made.rename(self._cache / f"{_PREFIX}{self._process}{made.name}")
            self._directory = Directory(self._folder)
        except OSError as error:
            raise storage_error(error, self._cache, 0) from error
        weakref.finalize(self, finalize, _remove, self._folder, self._process)

    def _take(self, folder: Path) -> None:
        """Have the folder that is kept, and its lock."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._folder, self._directory = folder, Directory(folder)
            self._lock = Descriptor(self._directory.open(_LOCK, os.O_RDWR | os.O_CREAT))
            fcntl.flock(self._lock.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "another process is fetching into this folder; wait for it, or choose another one"
            raise BufferLockedError(errno.EAGAIN, what, str(folder)) from None
        except OSError as error:
            raise storage_error(error, folder, 0) from error

    def close(self, *, keep: bool) -> None:
        """Wait for what is under way, and let go of the folder, which goes unless it is to be kept.

        Nothing can be asked for afterwards.
        """
        with self._changed:
            coming = {future for file in self._files.values() for future in file.coming.values()}
        for future in coming:
            future.cancel()
        wait(coming)
        if not keep:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()

    def _here(self) -> None:
        if self._process != os.getpid():
            self._begin()

    @property
    def folder(self) -> Path:
        """Where the files of this process are."""
        self._here()
        return self._folder

    @property
    def address(self) -> str:
        """Where the files come from."""
        return self.published.store.url

    def open(self, path: str) -> int:
        """The descriptor of a file, of its full size, to be closed by the caller.

        Raises:
            FileNotFoundError: the revision has no such file.
            StorageError: the file cannot be made.
        """
        self._file(path)
        return self._directory.open(path, os.O_RDWR)

    def _file(self, path: str) -> _File:
        self._here()
        with self._changed:
            if path not in self._files:
                self._files[path] = self._made(path)
            return self._files[path]

    def _made(self, path: str) -> _File:
        info = self.published.manifest.files.get(path)
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "the revision has no such file", path)
        try:
            self._directory.make_parents(path)
            file = _File(path, self._sums[path])
            descriptor = self._directory.open(path, os.O_RDWR | os.O_CREAT | (0 if self._resumes else os.O_EXCL))
            try:
                os.ftruncate(descriptor, info.size)
                if self._resumes:
                    self._find(descriptor, info.size, file)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise storage_error(error, self._folder / path, info.size) from error
        return file

    def _find(self, descriptor: int, size: int, file: _File) -> None:
        """Note which blocks of a file are there already, as their checksums say; of holes nothing is read."""
        at = 0
        while at < size:
            try:
                begin = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # nothing but a hole is left
            at = os.lseek(descriptor, begin, os.SEEK_HOLE)
            for block in range(begin // BLOCK, -(-at // BLOCK)):
                if crc32(read_at(descriptor, BLOCK, block * BLOCK)) == file.sums[block]:
                    file.state[block] = _THERE
        self._blocks += int(np.count_nonzero(file.state == _THERE))

    @contextlib.contextmanager
    def hold(self, *, for_good: bool = False) -> Iterator[None]:
        """Keep what this thread asks for until the end of the context, and no longer; or for good after all."""
        self._here()
        mine: list[tuple[_File, Ints]] = []
        before, self._holds.held = getattr(self._holds, "held", None), None if for_good else mine
        try:
            yield
        finally:
            self._holds.held = before
            with self._changed:
                for file, blocks in mine:
                    file.holders[blocks] -= 1

    def need(self, path: str, begins: Ints, ends: Ints) -> None:
        """Have ranges of bytes of a file there when this returns, and held.

        Args:
            path: of the file.
            begins, ends: int64 ``(ranges,)``; what lies past the end of the file is left out.

        Raises:
            CorruptBufferError: an object is missing, cut or changed.
            StorageError: the store or the disk refused, or all that is held does not fit.
        """
        file = self._file(path)
        blocks = _blocks_of(begins, ends, len(file.sums))
        held = getattr(self._holds, "held", None)
        with self._changed:
            file.holders[blocks] += 1
        try:
            while (file.state[blocks] != _THERE).any():
                with self._changed:
                    waiting = self._ask(file, blocks, must=True)
                wait(waiting, return_when=FIRST_COMPLETED)
                for future in waiting:
                    if future.done():
                        future.result()
        except BaseException:
            with self._changed:
                file.holders[blocks] -= 1
            raise
        with self._changed:
            self._clock += 1
            file.used[blocks] = self._clock
            if held is not None:
                held.append((file, blocks))

    def expect(self, path: str, begins: Ints, ends: Ints) -> None:
        """Fetch ranges of bytes of a file as far as there is room, and do not wait for them."""
        file = self._file(path)
        blocks = _blocks_of(begins, ends, len(file.sums))
        with self._changed:
            self._clock += 1
            file.used[blocks] = self._clock
            self._ask(file, blocks, must=False)

    def _ask(self, file: _File, blocks: Ints, *, must: bool) -> list[Future[None]]:
        """Ask for blocks that are missing, as far as there is room; returns what is to be waited for.

        Raises:
            StorageError: there is no room, there must be, and there will be none.
        """
        missing = blocks[file.state[blocks] == _MISSING]
        missing = missing[: self._room_for(len(missing))]
        file.state[missing] = _COMING
        self._blocks += len(missing)
        for first, last in self.published.runs(file.path, missing, _MOST_BLOCKS):
            future = submit(requests(self._process), self._fetch, file, first, last)
            if not future.done():
                file.coming |= dict.fromkeys(range(first, last), future)
            elif must:  # this thread has fetched them
                future.result()
        coming = blocks[file.state[blocks] == _COMING].tolist()
        found = list(dict.fromkeys(file.coming[block] for block in coming))
        if must and not found:  # what others wait for, or what somebody expects, goes first
            found = [future for other in self._files.values() for future in set(other.coming.values())]
            if not found and (file.state[blocks] != _THERE).any():
                raise self._no_room(len(blocks))
        return found

    def _fetch(self, file: _File, first: int, last: int) -> None:
        there = False
        try:
            content = self.published.run(file.path, first, last, file.sums)
            descriptor = self.open(file.path)
            try:
                write_at(descriptor, content, first * BLOCK, self._folder / file.path)
            finally:
                os.close(descriptor)
            there = True
        finally:
            with self._changed:
                file.state[first:last] = _THERE if there else _MISSING
                self._blocks -= 0 if there else last - first
                for block in range(first, last):
                    file.coming.pop(block, None)

    def _room_for(self, count: int) -> int:
        """For how many of so many more blocks there is room, once others were given back."""
        if self._blocks + count > self._most:
            self._give_back(max(self._blocks + count - self._most, self._most // _FREED))
        return min(max(self._most - self._blocks, 0), count)

    def _no_room(self, count: int) -> StorageError:
        why = "all of it is held" if self._can_punch else "this file system gives no room of a file back"
        return StorageError(
            errno.ENOSPC,
            f"{count * BLOCK} bytes of {self.address} are to be read at once, and {why} of a cache of "
            f"{self._most * BLOCK}; give cache_bytes=... more, or a cache=... on another disk, read less at once, or "
            "pull the data set",
            str(self._folder),
        )

    def _give_back(self, count: int) -> None:
        """Give back so many blocks, those that were asked for longest ago, as far as nobody holds them."""
        if not self._can_punch:
            return
        idle = [(file, np.flatnonzero((file.state == _THERE) & (file.holders == 0))) for file in self._files.values()]
        used = np.concatenate([np.empty(0, np.int64), *(file.used[blocks] for file, blocks in idle)])
        if not len(used):
            return
        latest = np.partition(used, min(count, len(used)) - 1)[min(count, len(used)) - 1]
        for file, blocks in idle:
            self._give_back_of(file, blocks[file.used[blocks] <= latest])

    def _give_back_of(self, file: _File, blocks: Ints) -> None:
        if not len(blocks):
            return
        descriptor = self.open(file.path)
        try:
            for first, last in _stretches(blocks):
                if not _punch(descriptor, first * BLOCK, (last - first) * BLOCK):
                    self._can_punch = False
                    return
                file.state[first:last] = _MISSING
                self._blocks -= last - first
        finally:
            os.close(descriptor)

    def content(self, path: str) -> bytes:
        """All of a small file; raises as :meth:`Published.content` does."""
        return self.published.content(path)


def _blocks_of(begins: Ints, ends: Ints, count: int) -> Ints:
    """The blocks that ranges of bytes touch, ascending, of a file that has so many."""
    some = ends > begins
    first, last = begins[some] // BLOCK, -(-ends[some] // BLOCK)
    if not len(first):
        return np.empty(0, np.int64)
    if first.min() < 0:
        raise CorruptBufferError(f"no file has bytes at {begins.min()}")
    counts = np.maximum(np.minimum(last, count) - first, 0)
    ends = np.cumsum(counts)
    return np.unique(np.repeat(first - (ends - counts), counts) + np.arange(ends[-1]))


def _stretches(blocks: Ints) -> Iterator[tuple[int, int]]:
    """Ascending blocks as stretches: the first, and past the last."""
    if len(blocks):
        apart = np.flatnonzero(np.diff(blocks) != 1) + 1
        firsts, lasts = blocks[[0, *apart]], blocks[[*(apart - 1), -1]]
        yield from zip(firsts.tolist(), (lasts + 1).tolist(), strict=True)


@lru_cache(maxsize=1)
def _fallocate() -> Any:
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
    return function


def _punch(descriptor: int, begin: int, nbytes: int) -> bool:
    """Give a range of a file back to the disk, so that it reads as zeros; whether the system could."""
    if sys.platform != "linux":  # pragma: no cover
        return False
    try:
        return bool(_fallocate()(descriptor, _PUNCH_HOLE, begin, nbytes) == 0)
    except AttributeError:  # pragma: no cover
        return False


def default_cache() -> Path:
    """Where mirrors are, where nobody says."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gym_replay"


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            _remove_abandoned(folder.parent)  # worker processes end without a word


def _remove_abandoned(cache: Path) -> None:
    """Remove the folders of processes that were killed: nobody has their lock."""
    for entry in os.scandir(cache):
        if not entry.name.startswith(_PREFIX) or not entry.is_dir(follow_symlinks=False):
            continue
        try:
            descriptor = os.open(os.path.join(entry.path, _LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # it is being made, or goes just now
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry.path, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(descriptor)


_ALL: weakref.WeakValueDictionary[str, Mirror] = weakref.WeakValueDictionary()


def _mirror_here(token: str, published: Published, cache: Path, cache_bytes: int) -> Mirror:
    """The mirror that another process has, or had, as this process has it: one for all that were sent here."""
    found = _ALL.get(token)
    if found is None:
        found = Mirror(published, cache, cache_bytes)
        found._token = token
        _ALL[token] = found
    return found

"""Files that are mapped when they are asked for, and let go of when there are too many maps.

The kernel limits how many maps a process may have (65,530 by default on Linux) and how many files it may have open
(often 1024). Of thousands of buffers, each of a dozen files, neither all files nor all maps can be held. Here no file
stays open, and the maps that were used last stay, up to a bound.

A file that is opened later than the snapshot whose rows it is to give may have been replaced in between: by ``clear``,
``update`` or a field that was added. Files are replaced in one way only (:mod:`~gym_replay.buffer.storage.layout`): the
metadata changes before the first of them does. So a file that was opened is that of the snapshot where the metadata,
read after it, is still the same, byte for byte; where it is not, the read is refused with BufferChangedError.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt

from gym_replay.buffer.storage.columns import Column, read_column
from gym_replay.buffer.storage.directory import DirectoriesBeneath, open_beneath
from gym_replay.buffer.storage.layout import Metadata, current_path, read_metadata_bytes
from gym_replay.buffer.storage.records import CHECKSUMS, EPISODES
from gym_replay.errors import BufferChangedError, BufferNotFoundError, CorruptBufferError

_T = TypeVar("_T")

_MOST_MAPS = 32_000
_ATTEMPTS = 200
_numbers = itertools.count()


def default_bound() -> int:
    """How many maps the pool of a process may hold: 32,000, or half of the kernel's limit where that is less.

    The rest is for everything else that a process maps. The number is the same on all machines with the usual limit
    or a higher one, because it decides how large concatenations are shuffled.
    """
    try:
        limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):  # not Linux
        return _MOST_MAPS
    return max(1, min(_MOST_MAPS, limit // 2))


class MapPool:
    """Values that hold maps, in the order of their last use; the oldest go where there are more than ``bound`` maps.

    A value that is in use elsewhere keeps its maps until that use ends.

    Args:
        bound: how many maps; a single value that has more is held alone.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._maps = 0
        self._lock = threading.Lock()
        _pools.add(self)

    @property
    def maps(self) -> int:
        """How many maps are held."""
        return self._maps

    def get(self, key: Hashable) -> Any:
        """The value of a key, now the last one used; None where there is none."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        try:
            self._entries.move_to_end(key)
        except KeyError:  # another thread needed the room
            return entry[0]
        return entry[0]

    def put(self, key: Hashable, value: Any, maps: int) -> None:
        """Hold a value, and let go of others."""
        let_go = []
        with self._lock:
            if (before := self._entries.pop(key, None)) is not None:
                self._maps -= before[1]
                let_go.append(before)
            self._entries[key] = (value, maps)
            self._maps += maps
            while self._maps > self.bound and len(self._entries) > 1:
                _, oldest = self._entries.popitem(last=False)
                self._maps -= oldest[1]
                let_go.append(oldest)
        del let_go  # its maps go here, outside of the lock

    def make_room(self, maps: int) -> None:
        """Let go of as much as so many new maps need, before they are made."""
        let_go = []
        with self._lock:
            while self._entries and self._maps + maps > self.bound:
                _, oldest = self._entries.popitem(last=False)
                self._maps -= oldest[1]
                let_go.append(oldest)

    def discard(self, owner: int) -> None:
        """Let go of all values whose keys begin with this number."""
        let_go = []
        with self._lock:
            for key in [key for key in self._entries if isinstance(key, tuple) and key[0] == owner]:
                let_go.append(self._entries.pop(key))
                self._maps -= let_go[-1][1]

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process has maps of its own.
        return (shared_pool, ()) if self is shared_pool() else (MapPool, (self.bound,))


_pools: weakref.WeakSet[MapPool] = weakref.WeakSet()


def _renew_locks() -> None:
    for pool in _pools:  # a thread that held one is not there in the child
        pool._lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_locks)


@cache
def shared_pool() -> MapPool:
    """The pool of this process."""
    return MapPool(default_bound())


class Maps:
    """The maps of one set of buffers within a pool, which go when nobody reads from the set any more.

    Args:
        pool: holds them, among others.
    """

    def __init__(self, pool: MapPool) -> None:
        self.pool = pool
        self.number = next(_numbers)
        weakref.finalize(self, pool.discard, self.number).atexit = False

    def get(self, key: Hashable, make: Callable[[], _T], maps: int) -> _T:
        """What was made for a key, or make it now, with so many maps."""
        whole = (self.number, key)
        found: _T | None = self.pool.get(whole)
        if found is not None:
            return found
        self.pool.make_room(maps)
        made = make()
        if made is not None:
            self.pool.put(whole, made, maps)
        return made

    def held(self, key: Hashable) -> Any:
        """What was made for a key; None where it is not there, or no more."""
        return self.pool.get((self.number, key))

    def discard(self) -> None:
        """Let go of all that is held for the set."""
        self.pool.discard(self.number)

    def __reduce__(self) -> tuple[Any, ...]:
        return Maps, (self.pool,)


def digest_of(content: bytes) -> bytes:
    """What tells one content of ``metadata.json`` from another."""
    return hashlib.blake2b(content, digest_size=16).digest()


class _InMemory(Column):
    """A column of the episode table, read whole."""

    def __init__(self, folder: Path, relative: str, array: npt.NDArray[Any]) -> None:
        self._folder, self._relative = folder, relative
        self.dtype, self.shape = array.dtype, array.shape[1:]
        self._array = array

    def view(self, rows: int) -> npt.NDArray[Any]:
        self._require(rows, len(self._array))
        return self._array[:rows]


class PooledFiles(Mapping[str, Column]):
    """The columns of a buffer by path, each mapped when it is asked for, and perhaps mapped anew the next time.

    Args:
        folder: the buffer's.
        metadata: as it was when the episodes to read were found.
        digest: of the content that it was read from.
        maps: holds the columns.
    """

    def __init__(self, folder: Path, metadata: Metadata, digest: bytes, maps: Maps) -> None:
        self.folder, self.metadata, self.digest, self.maps = folder, metadata, digest, maps
        self._number = next(_numbers)
        self._tables: dict[str, Column] | None = None
        self._directories = DirectoriesBeneath(folder)

    def __getitem__(self, path: str) -> Column:
        if self._tables is not None and path in (EPISODES, CHECKSUMS):
            if path not in self._tables:
                self._tables[path] = self._read(path)
            return self._tables[path]
        return self.maps.get((self._number, path), partial(self.unmapped, path), 1)

    def __iter__(self) -> Iterator[str]:
        return iter(self.metadata.kinds)

    def __len__(self) -> int:
        return len(self.metadata.kinds)

    def unmapped(self, path: str) -> Column:
        """The column, outside of the pool: it is mapped when its rows are asked for."""
        dtype, shape = self.metadata.kinds[path]
        return Column(self.folder, path, dtype, shape, opener=partial(self.open, path))

    def open(self, path: str) -> int:
        """The descriptor of a file, to be closed by the caller.

        Raises:
            BufferChangedError: it is not what it was when the episodes were found.
            CorruptBufferError: it is missing.
        """
        try:
            descriptor = self._open(path)
        except (FileNotFoundError, CorruptBufferError) as error:
            self.require_same()
            raise CorruptBufferError(
                f"{self.folder / path}: the file is missing" if isinstance(error, FileNotFoundError) else str(error)
            ) from None
        try:
            self.require_same()
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _open(self, path: str) -> int:
        for _ in range(_ATTEMPTS):
            current = current_path(self.folder, self.metadata, path)
            try:
                if self._tables is not None:
                    return self._directories.open(current, os.O_RDONLY)
                return open_beneath(self.folder, current, os.O_RDONLY)
            except FileNotFoundError:
                if current == path:  # otherwise it was renamed after it had been looked for
                    raise
        raise FileNotFoundError(path)

    def require_same(self) -> None:
        """Raise BufferChangedError where the buffer's files were replaced since the episodes were found."""
        if not self.is_same():
            raise BufferChangedError(
                f"{self.folder}: the buffer was cleared or edited after it was opened, and what it held then is gone; "
                "call refresh() and make a new loader"
            )

    def is_same(self) -> bool:
        """Whether no file was replaced since the episodes were found."""
        try:
            return digest_of(read_metadata_bytes(self.folder)) == self.digest
        except BufferNotFoundError:
            return False

    @contextmanager
    def tables_in_memory(self) -> Iterator[None]:
        """Read each column of the episode table that is asked for whole, once, and map none of them."""
        self.begin_tables()
        try:
            yield
        finally:
            self._tables = None
            self._directories.close()

    def begin_tables(self) -> None:
        """Forget what was read, and read from now on."""
        self._tables = {}

    def _read(self, path: str) -> Column:
        dtype, shape = self.metadata.kinds[path]
        try:
            descriptor = self._open(path)
        except FileNotFoundError:
            raise CorruptBufferError(f"{self.folder / path}: the file is missing") from None
        try:
            return _InMemory(self.folder, path, read_column(descriptor, f"{self.folder}/{path}", dtype, shape))
        finally:
            os.close(descriptor)

"""Reading one of very many buffers: opened once for its episodes, then closed until its rows are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gym_replay.buffer.storage.choice import Choice
from gym_replay.buffer.storage.counters import COUNTERS, Counters, CounterValues
from gym_replay.buffer.storage.directory import open_beneath
from gym_replay.buffer.storage.layout import Metadata, current_path, parse_metadata, read_metadata_bytes
from gym_replay.buffer.storage.pool import Maps, PooledFiles, digest_of
from gym_replay.buffer.storage.reader import FolderReader, Snapshot
from gym_replay.errors import ConfigMismatchError, CorruptBufferError

_ATTEMPTS = 200
_GONE = (-1, 0, 1 << 61, 1 << 61, 0, 0)
"""What counters say that were replaced: another revision, and none of the episodes of before is live."""


class DetachedCounters(Counters):
    """The counters, read from the file each time; nothing stays open or mapped.

    Args:
        folder: the buffer's.
        relative: the file's path below it.
        inode: of the file that is meant; None for the one that is there now.
    """

    def __init__(self, folder: Path, relative: str, uuid: str, *, inode: int | None = None) -> None:
        self._folder, self._relative = folder, relative
        self._decoder = CounterValues(uuid, f"{folder}/{relative}")
        self.inode = -1 if inode is None else inode
        self.first_look: tuple[int, ...] = _GONE
        if inode is None:
            self.inode, self.first_look = self._read()

    @property
    def path(self) -> Path:  # type: ignore[override]
        return self._folder / self._relative

    def _read(self) -> tuple[int, tuple[int, ...]]:
        try:
            descriptor = open_beneath(self._folder, self._relative, os.O_RDONLY)
        except FileNotFoundError:
            raise CorruptBufferError(f"{self.path}: the file is missing") from None
        try:
            return os.fstat(descriptor).st_ino, self._decoder.in_file(descriptor)
        finally:
            os.close(descriptor)

    def now(self) -> tuple[int, ...]:
        """All counters: revision, base, first, next, summed, deletions."""
        try:
            inode, values = self._read()
        except (CorruptBufferError, FileNotFoundError):
            return _GONE
        return values if inode == self.inode else _GONE

    @property
    def revision(self) -> int:
        return self.now()[0]

    @property
    def base(self) -> int:
        return self.first_look[1]  # it does not change as long as the file is the same

    @property
    def first(self) -> int:
        return self.now()[2]

    @property
    def next(self) -> int:
        return self.now()[3]

    @property
    def summed(self) -> int:
        return self.now()[4]

    @property
    def deletions(self) -> int:
        return self.now()[5]


class PooledReader(FolderReader):
    """A buffer whose episodes are known and whose columns are mapped on demand, from a pool of maps.

    A snapshot of it does not keep the files of its moment: where the buffer is cleared or edited later, columns that
    are not mapped at that time give BufferChangedError, until :meth:`refresh`.

    Args:
        folder: the buffer's.
        maps: holds the columns that are mapped.
    """

    counters: DetachedCounters
    _columns: PooledFiles

    def __init__(self, folder: Path, maps: Maps) -> None:
        self.maps = maps
        super().__init__(folder)

    def origin(self) -> tuple[Callable[..., FolderReader], tuple[Any, ...]]:
        return PooledReader, (self.folder, self.maps)

    def _load_files(self) -> None:
        for _ in range(_ATTEMPTS):
            content = read_metadata_bytes(self.folder)
            metadata = parse_metadata(content, self.folder)
            files = PooledFiles(self.folder, metadata, digest_of(content), self.maps)
            try:
                counters = DetachedCounters(self.folder, current_path(self.folder, metadata, COUNTERS), metadata.uuid)
                break
            except CorruptBufferError:  # unless it was replaced between the two looks
                if files.is_same():
                    raise
        else:
            raise CorruptBufferError(f"{self.folder}: the files change faster than they can be read")
        previous = getattr(self, "metadata", None)
        if previous is not None and previous.uuid != metadata.uuid:
            raise ConfigMismatchError(f"{self.folder}: another buffer was created in its place; open it anew")
        self.metadata, self.counters, self._columns = metadata, counters, files
        self._revision = counters.first_look[0]
        self._snapshot, self._seen, self._checked, self._bad_id = None, (), 0, None

    def refresh(self) -> Snapshot:
        revision, _, first, end, _, deletions = self.counters.now()
        if revision != self._revision or not self._columns.is_same():
            return self.load()
        if self._snapshot is not None and self._seen == (first, end, deletions):
            return self._snapshot
        return super().refresh()

    def snapshot(self) -> Snapshot:
        _, _, first, end, _, deletions = self.counters.now()
        seen = first, end, deletions
        if self._snapshot is None or seen != self._seen:
            self._snapshot, self._seen = self._read_table(), seen
        return self._snapshot

    def _is_outdated(self) -> bool:
        # The metadata is read after the table, whose files are therefore those that it was read with.
        return self.counters.revision != self._revision or not self._columns.is_same()

    def _read_records(self) -> Snapshot:
        with self._columns.tables_in_memory():
            return super()._read_records()

    def _begin_table(self) -> None:
        self._columns.begin_tables()

    def _check_rows(self, rows: int) -> None:
        """Nothing: that a column has its rows is checked whenever it is mapped."""

    def reduce(self, snapshot: Snapshot) -> tuple[Any, ...]:
        files, counters = snapshot.columns, snapshot.counters  # which the reader may have left behind
        assert isinstance(files, PooledFiles)
        state = (self.folder, files.metadata, files.digest, self.maps, counters.inode)
        return _reopen, (*state, snapshot.arrays, snapshot.choice)

    def close(self) -> None:
        self._snapshot = None


def _reopen(
    folder: Path,
    metadata: Metadata,
    digest: bytes,
    maps: Maps,
    inode: int,
    arrays: tuple[Any, ...],
    choice: Choice | None,
) -> Snapshot:
    """A snapshot in another process. No file is opened: each is checked against the digest when it is."""
    reader = PooledReader.__new__(PooledReader)
    reader.folder, reader.maps = folder, maps
    counters = DetachedCounters(folder, current_path(folder, metadata, COUNTERS), metadata.uuid, inode=inode)
    reader.metadata, reader.counters = metadata, counters
    reader._columns, reader._revision = PooledFiles(folder, metadata, digest, maps), _GONE[0]
    reader._snapshot, reader._seen, reader._checked, reader._bad_id = None, (), 0, None
    snapshot = Snapshot(reader, metadata, reader._columns, counters, *arrays)
    return snapshot if choice is None else snapshot.limited_to(choice)

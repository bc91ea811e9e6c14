"""The files of a buffer as they are at one moment, as whole files of bytes, while somebody writes to the buffer.

A writer appends rows and records, moves counters, and goes on writing into files that others have open. What is given
here is what the files would be if the episodes of a snapshot were all that there is: each ends behind the last row, or
element, of a live episode, and every episode has checksums.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from gym_replay.buffer.storage.columns import Column, encode_header
from gym_replay.buffer.storage.copies import BLOCK, CopiedPieces, batches
from gym_replay.buffer.storage.counters import COUNTERS, encode_counters
from gym_replay.buffer.storage.layout import METADATA, encode_metadata, values_path
from gym_replay.buffer.storage.reader import FolderReader, Snapshot
from gym_replay.buffer.storage.records import CHECKSUMS, EPISODES, slots_of
from gym_replay.buffer.storage.revision import settled_number
from gym_replay.buffer.storage.strings import STRINGS
from gym_replay.errors import CorruptBufferError, EpisodeEvictedError, StorageError
from gym_replay.files.writing import read_at


@dataclass(frozen=True)
class FrozenFile:
    """A file of a buffer at one moment.

    Attributes:
        path: below the folder.
        size: its bytes.
        read: gives the bytes from one position to before another one; raises StorageError where the disk refuses.
    """

    path: str
    size: int
    read: Callable[[int, int], bytes]

    @classmethod
    def of_bytes(cls, path: str, content: bytes) -> FrozenFile:
        """A file with this content."""
        return cls(path, len(content), lambda begin, end: content[begin:end])


class Frozen:
    """The files of a buffer at the moment of a snapshot; made by :func:`frozen`.

    Attributes:
        snapshot: the live episodes.
    """

    def __init__(self, snapshot: Snapshot, end: int) -> None:
        self.snapshot = snapshot
        self._base, self._next = snapshot.counters.base, end
        capacity = snapshot.metadata.table_capacity
        self._slots = self._next - self._base if capacity is None else min(self._next - self._base, capacity)

    def files(self) -> Iterator[FrozenFile]:
        """All files. The counters come last, and are to be read when all others were.

        Raises:
            CorruptBufferError: an episode is damaged.
            StorageError: the disk refused to read.
        """
        snapshot, metadata = self.snapshot, self.snapshot.metadata
        settled = replace(metadata, revision=settled_number(metadata), pending=(), obsolete=())
        yield FrozenFile.of_bytes(METADATA, encode_metadata(settled))
        rows = {metadata.rows_path(name): snapshot.rows for name in metadata.fields} | {EPISODES: self._slots}
        for name in metadata.element_fields:
            taken = snapshot.lengths + metadata.has_state
            first, counts = snapshot.reader.elements_of(name, snapshot.starts, taken, np.zeros(len(snapshot), np.bool_))
            rows[values_path(name)] = int((first + counts).max(initial=0))
        if metadata.text_fields:
            offsets = np.concatenate([snapshot.stored_meta(name) for name in metadata.text_fields])
            rows[STRINGS] = snapshot.reader.end_of_strings(offsets)
        for path, column in snapshot.columns.items():
            if path != CHECKSUMS:
                yield _of_rows(path, column, rows[path])
        yield self._checksums()
        yield FrozenFile(COUNTERS, len(self._counters()), lambda begin, end: self._counters()[begin:end])

    def _checksums(self) -> FrozenFile:
        """Those that the writer has written, and the others, which it has not yet."""
        snapshot, column = self.snapshot, self.snapshot.columns[CHECKSUMS]
        sums = np.zeros((self._slots, *column.shape), column.dtype)
        known = min(column.rows_held(0), self._slots)
        sums[:known] = column.view(known)
        late = np.flatnonzero(snapshot.ids >= snapshot.counters.summed)
        with ThreadPoolExecutor(1, "gym_replay checksums") as thread:
            for part in batches(snapshot.lengths[late] * _width(snapshot), BLOCK):
                pieces = CopiedPieces(some := snapshot.only(late[part]), snapshot.metadata, thread)
                deque(pieces, 0)
                slots = slots_of(some.ids, self._base, snapshot.metadata.table_capacity)
                for at, name in enumerate(snapshot.metadata.fields):
                    sums[slots, at] = pieces.sums[name]
        return FrozenFile.of_bytes(CHECKSUMS, encode_header(column.dtype, column.shape, self._slots) + sums.tobytes())

    def _counters(self) -> bytes:
        """Without the episodes that have left a ring since: their rows may have been overwritten.

        Raises:
            EpisodeEvictedError: none is left.
        """
        snapshot, counters = self.snapshot, self.snapshot.counters
        first = counters.first
        if len(snapshot) and first >= self._next:
            raise EpisodeEvictedError(
                f"{snapshot.reader.folder}: all episodes were evicted while they were read; read it while less is "
                "recorded, or give the ring more room"
            )
        values = (settled_number(snapshot.metadata), self._base, first, self._next, self._next, counters.deletions)
        return encode_counters(snapshot.metadata.uuid, values)


def _width(snapshot: Snapshot) -> int:
    return max(1, sum(info.nbytes for info in snapshot.metadata.fields.values()))


def _of_rows(path: str, column: Column, rows: int) -> FrozenFile:
    """A file with the first rows of a column."""
    header = encode_header(column.dtype, column.shape, rows)
    return FrozenFile(path, len(header) + rows * column.row_nbytes, partial(_read, column, rows, header))


def _read(column: Column, rows: int, header: bytes, begin: int, end: int) -> bytes:
    head = header[begin:end]
    begin, end = max(begin - len(header), 0), max(end - len(header), 0)
    if begin >= end:
        return head
    with column.opened(rows) as (descriptor, offset):
        try:
            content = read_at(descriptor, end - begin, offset + begin)
        except OSError as error:
            reason = f"{error.strerror or error}: it cannot be read"
            raise StorageError(error.errno, reason, str(column.path)) from error
    if len(content) < end - begin:
        raise CorruptBufferError(f"{column.path}: the file ends before the rows that its header speaks of")
    return head + content


@contextmanager
def frozen(folder: Path) -> Iterator[Frozen]:
    """The files of a folder as they are now; they stay readable until the end of the context, whatever is written.

    Raises:
        BufferNotFoundError: there is no buffer in the folder.
        CorruptBufferError: a record or a file is damaged.
    """
    reader = FolderReader(folder, for_copy=True)
    try:
        end = reader.counters.next
        snapshot = reader.refresh()
        if reader.valid_end < reader.counters.next:
            raise CorruptBufferError(
                f"{folder}: the record of the episode with id {reader.valid_end} is damaged, so that it and those "
                "after it are not known; check_buffer(folder, repair=True) keeps those before it"
            )
        snapshot = snapshot.only(slice(0, int(np.searchsorted(snapshot.ids, end))))
        try:
            yield Frozen(snapshot, end)
        except CorruptBufferError:
            if len(snapshot):
                snapshot.require_live(int(snapshot.ids[0]))  # where it has left, what was read may be anything
            raise
    finally:
        reader.close()

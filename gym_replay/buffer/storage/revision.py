"""One revision of a folder: its files, all of the same moment, and the episodes that its records tell of."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.columns import Column
from gym_replay.buffer.storage.counters import COUNTERS, Counters
from gym_replay.buffer.storage.layout import METADATA, Metadata, current_path, parse_metadata, read_metadata_bytes
from gym_replay.buffer.storage.records import CHECKSUMS, DELETED, EPISODES, Ints, record_runs
from gym_replay.errors import (
    BufferChangedError,
    BufferClosedError,
    BufferNotFoundError,
    CorruptBufferError,
    EpisodeEvictedError,
)
from gym_replay.files.directory import Directory, Folder, open_beneath

ATTEMPTS = 200
"""How often files that a writer changes meanwhile are read again."""

_LOOKS = 4
_EXTENT = ("id", "start", "length", "flags")


class OutdatedError(Exception):
    """The writer has switched files since these were opened."""


@dataclass(frozen=True, eq=False)
class Extents:
    """The live episodes of one moment, the oldest first.

    Attributes:
        ids, slots, starts, lengths: int64 ``(episodes,)``: id, table slot, first row and number of transitions T.
        flags: uint8 ``(episodes,)``.
        rows: how many rows of each column the episodes reach into.
    """

    ids: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint8]
    rows: int


class Opener:
    """Opens the files of one revision, each only where no other revision has come instead.

    Files are replaced in one way only (:mod:`~gym_replay.buffer.storage.layout`): the metadata changes before the first
    of them does. So a file that was opened is of this revision where the metadata, looked at after it, is still that of
    this revision.

    Args:
        folder: the buffer's.
        source: where the files are opened: the folder, or the same one held open.

    Attributes:
        metadata: what the folder says of its buffer.

    Raises:
        BufferNotFoundError: there is no buffer in the folder.
        CorruptBufferError: its metadata is damaged.
    """

    def __init__(self, folder: Path, source: Folder) -> None:
        self.folder, self.source = folder, source
        self._kept: dict[str, int] = {}
        self._look = _look_at(source)  # before the file is read: one that comes in between is read again
        self.metadata = parse_metadata(read_metadata_bytes(source), folder)

    def keep(self, paths: Iterable[str]) -> None:
        """Keep these files open until :meth:`release`, so that they can be read whatever comes instead of them."""
        for path in paths:
            self._kept[path] = self.open(path)

    def open(self, path: str) -> int:
        """The descriptor of a file, to be closed by the caller.

        Raises:
            BufferChangedError: the revision is not the present one any more.
            CorruptBufferError: the file is missing, or is no plain file.
        """
        if path in self._kept:
            return os.dup(self._kept[path])
        for _ in range(ATTEMPTS):
            metadata = self.metadata
            try:
                descriptor = self._open(path)
            except FileNotFoundError:
                self.require_present()
                raise CorruptBufferError(f"{self.folder / path}: the file is missing") from None
            except CorruptBufferError:
                self.require_present()
                raise
            try:
                self.require_present()
            except BaseException:
                os.close(descriptor)
                raise
            if self.metadata is metadata:
                return descriptor
            os.close(descriptor)  # the switch has ended: <path>.new may belong to the next one, which is being prepared
        raise CorruptBufferError(f"{self.folder}: the files change faster than they can be read")

    def column(self, path: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Column:
        """The reading side of a file of the revision."""
        return Column(self.source, path, dtype, shape, opener=partial(self.open, path))

    def _open(self, path: str) -> int:
        for _ in range(ATTEMPTS):
            current = current_path(self.source, self.metadata, path)
            try:
                return open_beneath(self.source, current, os.O_RDONLY)
            except FileNotFoundError:
                if current == path:  # otherwise it was renamed after it had been looked for
                    raise
        raise FileNotFoundError(path)

    def release(self) -> None:
        """Close the files that are kept open."""
        while self._kept:
            os.close(self._kept.popitem()[1])

    def require_present(self) -> None:
        """Raise BufferChangedError where files of the revision may have been replaced."""
        if not self.is_present():
            raise BufferChangedError(
                f"{self.folder}: the buffer was cleared or edited after it was opened, and what it held then is gone; "
                "call refresh() and make a new loader"
            )

    def is_present(self) -> bool:
        """Whether no file of the revision was replaced so far."""
        look = _look_at(self.source)
        if look is not None and look == self._look:
            return True
        try:
            found = parse_metadata(read_metadata_bytes(self.source), self.folder)
        except (BufferNotFoundError, CorruptBufferError):
            return False
        if (found.uuid, settled_number(found)) != (self.metadata.uuid, settled_number(self.metadata)):
            return False
        self._look = look
        if found.revision != self.metadata.revision:
            self.metadata = found  # the same files, under the names that they keep
        return True


class Revision:
    """The counters and columns of one revision, and the live episodes that its records tell of.

    Args:
        opener: opens its files.
        for_copy: read the file of checksums too, and do not warn of a damaged record, which whoever copies refuses.
        lazy: map the rows of a field when they are asked for. What they hold, and that they are there at all, is found
            out then.

    Attributes:
        counters: changed by the writer at any moment.
        columns: the files of arrays, by path.
        number: the counter of the revision when the files were opened; -1 where they are to be opened anew.

    Raises:
        BufferChangedError: another revision came meanwhile.
        CorruptBufferError: a file is missing, damaged, or contradicts another.
    """

    def __init__(self, opener: Opener, *, for_copy: bool, lazy: bool) -> None:
        self.opener, self._lazy, self._for_copy = opener, lazy, for_copy
        metadata, source = opener.metadata, opener.source
        open_counters = partial(opener.open, COUNTERS)
        self.counters = Counters(source, COUNTERS, metadata.uuid, writable=False, opener=open_counters)
        self.counters.check()
        self.columns = {
            path: opener.column(path, dtype, shape)
            for path, (dtype, shape) in metadata.columns.items()
            if for_copy or path != CHECKSUMS
        }
        if not lazy:
            for column in self.columns.values():
                column.follow()
        self.number = self.counters.revision
        self._checked = 0  # records of episodes before this id are known to be sound
        self._bad_id: int | None = None

    @property
    def metadata(self) -> Metadata:
        """What the folder says of its buffer."""
        return self.opener.metadata

    def closed(self) -> Revision:
        """What is left of it: the metadata. Its files are released, and the maps once nobody reads them any more."""
        self.opener.release()
        left = copy(self)
        del left.counters, left.columns
        return left

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("counters", "columns"):  # another thread reads, or this one in the middle of what a signal did
            raise BufferClosedError(f"{self.opener.folder}: the buffer was closed; open it anew")
        raise AttributeError(name)

    @property
    def valid_end(self) -> int:
        """One past the newest episode whose record, and every record before it, is sound."""
        end = self.counters.next
        return end if self._bad_id is None else min(end, self._bad_id)

    @property
    def is_outdated(self) -> bool:
        """Whether the writer has switched files since these were opened."""
        return self.counters.revision != self.number

    def live_episodes(self) -> Extents:
        """The live episodes of this moment.

        Raises:
            OutdatedError: the files were switched.
            CorruptBufferError: records contradict one another or the files.
        """
        try:
            found = self._read_records()
        except BufferChangedError:
            raise OutdatedError from None
        except CorruptBufferError:
            if self.is_outdated:
                raise OutdatedError from None
            raise
        # A writer that switches files says so before it commits again. Where it has not, the rows of all episodes
        # that were found are in the files that are open here.
        if self.is_outdated:
            raise OutdatedError
        return found

    def _read_records(self) -> Extents:
        metadata, counters = self.metadata, self.counters
        for _ in range(ATTEMPTS):
            end = self.valid_end
            first = min(counters.first, end)
            self.columns[EPISODES].view(self._slots_needed(first, end))
            runs = [_extents(np.empty(0, metadata.record.dtype), 0)]
            bad_id = None
            for ids, slot in record_runs(first, end, counters.base, metadata.table_capacity, metadata.record.nbytes):
                records, bad_id = self._sound_records(ids, slot)
                runs.append(_extents(records, slot))
                if bad_id is not None:
                    break
            overtaken = counters.first
            if overtaken > first:  # evicted meanwhile: their slots may hold newer records
                continue
            if bad_id is not None:
                if self.is_outdated:
                    raise OutdatedError
                self._bad_id = bad_id
                if not self._for_copy:
                    warnings.warn(
                        f"{self.opener.folder}: the record of episode {self._bad_id} does not match its check value; "
                        f"it and the {counters.next - self._bad_id - 1} after it are left out",
                        stacklevel=2,
                    )
                continue
            self._checked = end
            return self._live_of([np.concatenate(columns) for columns in zip(*runs, strict=True)])
        raise EpisodeEvictedError(f"{self.opener.folder}: episodes are evicted faster than the table can be read")

    def _sound_records(self, ids: Ints, slot: int) -> tuple[npt.NDArray[Any], int | None]:
        """The records of ids whose slots follow one another, and the first id whose record is damaged.

        Records that were seen before are known to be sound. A deletion changes the last bytes of one at any moment, so
        what looks damaged is looked at again.
        """
        record_format, known = self.metadata.record, int(np.searchsorted(ids, self._checked))
        bad_id = None
        for _ in range(_LOOKS):
            records = self.columns[EPISODES].view(slot + len(ids))[slot:].copy()
            sound = record_format.are_sound(records[known:], ids[known:])
            if sound.all():
                return records, None
            bad_id = int(ids[known:][~sound][0])
            time.sleep(0.0005)
        return records, bad_id

    def _live_of(self, extents: Sequence[npt.NDArray[Any]]) -> Extents:
        """The episodes that are not deleted, of the columns that :func:`_extents` gives."""
        live = (extents[3] & DELETED) == 0
        if not live.all():
            extents = [column[live] for column in extents]
        ids, starts, lengths, flags, slots = extents
        self._check_ranges(starts, lengths)
        rows = int((starts + lengths).max()) + self.metadata.has_state if len(ids) else 0
        return Extents(ids, slots, starts, lengths, flags, rows)

    def _slots_needed(self, first: int, end: int) -> int:
        """How many slots the table must have for these ids; nothing of that size is allocated before it is known."""
        capacity, used = self.metadata.table_capacity, end - self.counters.base
        if capacity is not None and end - first > capacity:
            raise CorruptBufferError(
                f"{self.counters.path}: {end - first} live episodes in a table of {capacity} slots"
            )
        if first == end:
            return 0
        if capacity is None:
            return used
        wraps = (used - 1) // capacity != (first - self.counters.base) // capacity
        return capacity if wraps else (used - 1) % capacity + 1

    def _check_ranges(self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> None:
        if len(starts) == 0:
            return
        metadata = self.metadata
        if (lengths < 1).any() or (starts < 0).any() or lengths.max() >= 1 << 60 or starts.max() >= 1 << 60:
            raise CorruptBufferError(
                f"{self.opener.folder / EPISODES}: a live episode has a negative start or no transition"
            )
        ends = starts + lengths + metadata.has_state
        order = np.argsort(starts, kind="stable") if metadata.circular else slice(None)
        if (starts[order][1:] < ends[order][:-1]).any():
            raise CorruptBufferError(f"{self.opener.folder / EPISODES}: the rows of two live episodes overlap")
        if not self._lazy:
            self._map_rows(int(ends.max()))

    def _map_rows(self, rows: int) -> None:
        """Map what belongs to so many rows; raises CorruptBufferError where a column has fewer."""
        rows_paths = {self.metadata.rows_path(name) for name in self.metadata.fields}
        for path, column in self.columns.items():
            if path in rows_paths:
                column.view(rows)
            elif path not in (EPISODES, CHECKSUMS):  # elements and strings, as many as there are
                column.follow()


def _look_at(folder: Folder) -> tuple[int, ...] | None:
    """What tells the file of metadata from another one without reading it; None where there is none."""
    try:
        if isinstance(folder, Directory):
            status = os.stat(METADATA, dir_fd=folder.descriptor)
        else:
            status = os.stat(os.path.join(folder, METADATA))
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def settled_number(metadata: Metadata) -> int:
    """The number of the metadata's revision once its files have their names."""
    return metadata.revision + bool(metadata.pending or metadata.obsolete)


def _extents(records: npt.NDArray[Any], slot: int) -> list[npt.NDArray[Any]]:
    """Ids, first rows, lengths, flags and slots of records that follow one another, each in memory of its own."""
    columns = [np.ascontiguousarray(records[name]) for name in _EXTENT]
    return [*columns, np.arange(slot, slot + len(records), dtype=np.int64)]

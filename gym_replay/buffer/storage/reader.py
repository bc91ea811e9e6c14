"""The reading side of a folder: metadata, counters and columns as they stand, and snapshots of the live episodes."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.choice import Choice
from gym_replay.buffer.storage.columns import Column
from gym_replay.buffer.storage.counters import COUNTERS, Counters
from gym_replay.buffer.storage.layout import (
    METADATA,
    Metadata,
    current_path,
    parse_metadata,
    read_metadata_bytes,
    spans_path,
    step_path,
    values_path,
)
from gym_replay.buffer.storage.ragged import Ragged
from gym_replay.buffer.storage.records import (
    CHECKSUMS,
    COMPLETE,
    DELETED,
    EPISODES,
    HAS_FINAL,
    Ints,
    meta_column,
    record_runs,
)
from gym_replay.buffer.storage.strings import STRINGS, StringWriter, read_strings
from gym_replay.errors import (
    BufferChangedError,
    BufferNotFoundError,
    ConfigMismatchError,
    CorruptBufferError,
    EpisodeEvictedError,
)
from gym_replay.files.directory import Directory, Folder, open_beneath, sync_entry
from gym_replay.schema.fields import NO_TEXT

_ATTEMPTS = 200
_PENDING_ATTEMPTS = 30
_LOOKS = 4
_EXTENT = np.dtype([("id", "<i8"), ("start", "<i8"), ("length", "<i8"), ("flags", "u1")])


@dataclass(frozen=True)
class Snapshot:
    """The live episodes at one moment, the oldest first.

    It keeps what is mapped of the files of its moment: where the buffer is cleared or updated later, that goes on to
    show what was, and rows that are not mapped yet raise BufferChangedError.

    Attributes:
        ids, slots, starts, lengths: int64 ``(episodes,)``: id, table slot, first row and number of transitions T.
        flags: uint8 ``(episodes,)``.
        rows: how many rows of each column the episodes reach into.
        choice: the part of the schema that ``metadata`` was limited to; None for all of it.
    """

    reader: FolderReader
    metadata: Metadata
    columns: Mapping[str, Column]
    counters: Counters
    ids: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint8]
    rows: int
    choice: Choice | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_steps(self) -> int:
        """Transitions of all live episodes."""
        return int(self.lengths.sum())

    @property
    def has_final(self) -> npt.NDArray[np.bool_]:
        """Whether row T of each episode holds its last observation."""
        present: npt.NDArray[np.bool_] = (self.flags & HAS_FINAL) != 0
        return present

    @property
    def complete(self) -> npt.NDArray[np.bool_]:
        """Whether each episode ended by itself."""
        complete: npt.NDArray[np.bool_] = (self.flags & COMPLETE) != 0
        return complete

    def column(self, name: str) -> npt.NDArray[Any]:
        """Read-only view of the rows of a field that is not ragged, ``(rows, *field.shape)``."""
        return self.columns[step_path(name)].view(self.rows)

    def ragged(self, name: str) -> Ragged:
        """The rows of a ragged field."""
        spans = self.columns[spans_path(name)]
        return Ragged(spans.view(self.rows), lambda end: self.columns[values_path(name)].view(end), spans.path)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What the episodes are, without their data."""
        return self.ids, self.slots, self.starts, self.lengths, self.flags, self.rows

    def limited_to(self, choice: Choice) -> Snapshot:
        """The same episodes with a part of the schema."""
        return replace(self, metadata=choice.of(self.metadata), choice=choice)

    def meta(self, name: str) -> npt.NDArray[Any]:
        """A meta field's values, ``(episodes, *field.shape)``, copied; of a string field Python strings.

        Of episodes that have left the ring, they may be anything.
        """
        values = self.stored_meta(name)
        return self._texts(values) if self.metadata.meta_fields[name].is_text else values

    def _texts(self, places: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The strings at these places, one per episode."""
        try:
            return read_strings(self.columns[STRINGS], places)
        except CorruptBufferError:
            gone = (self.ids < self.counters.first) & (places != NO_TEXT)
            if not gone.any():
                raise
        places[gone] = NO_TEXT  # their strings may have been overwritten
        return self._texts(places)

    def stored_meta(self, name: str) -> npt.NDArray[Any]:
        """The same, of a string field the places of the strings."""
        if len(self.ids) == 0:
            info = self.metadata.meta_fields[name]
            return np.empty((0, *info.shape), info.dtype)
        table = self.columns[EPISODES].view(int(self.slots.max()) + 1)
        values: npt.NDArray[Any] = table[meta_column(name)][self.slots]
        return values

    def meta_of(self, place: int) -> dict[str, Any]:
        """The meta values of one episode, copied: arrays and NumPy scalars, and Python strings."""
        slot = int(self.slots[place])
        record = self.columns[EPISODES].view(slot + 1)[slot : slot + 1].copy()
        values = {}
        for name, info in self.metadata.meta_fields.items():
            value = record[meta_column(name)].copy()
            try:
                values[name] = read_strings(self.columns[STRINGS], value)[0] if info.is_text else value[0]
            except CorruptBufferError:
                self.require_live(int(self.ids[place]))
                raise
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        revision = self.metadata.uuid, _settled(self.metadata)
        return _reopen_snapshot, (self.reader.folder, revision, self.reader.lazy, self.arrays, self.choice)

    def is_live(self, oldest: int) -> bool:
        """Whether the episode with id ``oldest``, and so every newer one, still owns its rows."""
        return self.counters.first <= oldest

    def require_live(self, oldest: int) -> None:
        """Raise EpisodeEvictedError where rows just copied may have been overwritten meanwhile."""
        if not self.is_live(oldest):
            raise EpisodeEvictedError(
                f"episode {oldest} was evicted from the circular buffer at {self.reader.folder} while it was read; "
                "call refresh() and take another sample"
            )


class HasSnapshots(Protocol):
    """What can be loaded from: a buffer, or several as one."""

    def snapshots(self) -> list[Snapshot]:
        """The live episodes of each folder."""


class Revision:
    """One revision of a folder's files, of which each is opened where no other revision has come instead.

    Files are replaced in one way only (:mod:`~gym_replay.buffer.storage.layout`): the metadata changes before the first
    of them does. So a file that was opened is of this revision where the metadata, looked at after it, is still that of
    this revision.

    Args:
        folder: the buffer's.
        place: the same, where it is held open.

    Attributes:
        folder: the buffer's.
        metadata: of the revision.
    """

    def __init__(self, folder: Path, place: Folder) -> None:
        self.folder, self._place = folder, place
        self._held: dict[str, int] = {}
        self._look = _look_at(place)  # before the file is read: one that comes in between is read again
        self.metadata = parse_metadata(read_metadata_bytes(place), folder)

    def open(self, path: str) -> int:
        """The descriptor of a file, to be closed by the caller.

        Raises:
            BufferChangedError: the revision is not the present one any more.
            CorruptBufferError: the file is missing, or is no plain file.
        """
        if path in self._held:
            return os.dup(self._held[path])
        for _ in range(_ATTEMPTS):
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

    def _open(self, path: str) -> int:
        for _ in range(_ATTEMPTS):
            current = current_path(self._place, self.metadata, path)
            try:
                return open_beneath(self._place, current, os.O_RDONLY)
            except FileNotFoundError:
                if current == path:  # otherwise it was renamed after it had been looked for
                    raise
        raise FileNotFoundError(path)

    def hold(self, paths: Iterable[str]) -> None:
        """Keep these files open until :meth:`release`: they can be opened again whatever comes instead of them."""
        for path in paths:
            self._held[path] = self.open(path)

    def release(self) -> None:
        """Close the files that were kept open."""
        while self._held:
            os.close(self._held.popitem()[1])

    def require_present(self) -> None:
        """Raise BufferChangedError where files of the revision may have been replaced."""
        if not self.is_present():
            raise BufferChangedError(
                f"{self.folder}: the buffer was cleared or edited after it was opened, and what it held then is gone; "
                "call refresh() and make a new loader"
            )

    def is_present(self) -> bool:
        """Whether no file of the revision was replaced so far."""
        look = _look_at(self._place)
        if look is not None and look == self._look:
            return True
        try:
            found = parse_metadata(read_metadata_bytes(self._place), self.folder)
        except (BufferNotFoundError, CorruptBufferError):
            return False
        if (found.uuid, _settled(found)) != (self.metadata.uuid, _settled(self.metadata)):
            return False
        self._look = look
        if found.revision != self.metadata.revision:
            self.metadata = found  # the same files, under the names that they keep
        return True


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


def _settled(metadata: Metadata) -> int:
    """The number of a revision once its files have their names."""
    return metadata.revision + bool(metadata.pending or metadata.obsolete)


class _OutdatedError(Exception):
    """The writer has switched files since these were opened."""


class FolderReader:
    """A buffer's files, for reading. Locks nothing and blocks nobody.

    No file stays open, but for a copy.

    Args:
        folder: the buffer's.
        for_copy: read the file of checksums too, and keep all files open until :meth:`close`, so that a copy is of one
            moment.
        lazy: map the rows of a field when they are asked for, and not all of them now. Then what they hold, and that
            they are there at all, is found out when they are asked for.
        directory: the folder where it is held open: then it is not looked up by its path.

    Raises:
        BufferNotFoundError: there is no buffer in the folder.
        CorruptBufferError: a file is missing, damaged, or contradicts another.
        UnsupportedFormatError: a newer version of this package wrote it.
    """

    metadata: Metadata
    counters: Counters
    _revision: int

    def __init__(
        self, folder: Path, *, for_copy: bool = False, lazy: bool = False, directory: Directory | None = None
    ) -> None:
        self._begin(folder, for_copy=for_copy, lazy=lazy, directory=directory)
        self.load()

    def _begin(
        self, folder: Path, *, for_copy: bool = False, lazy: bool = False, directory: Directory | None = None
    ) -> None:
        """What there is before the first file is opened."""
        self.folder = folder
        self.lazy = lazy
        self._place: Folder = folder if directory is None else directory
        self._for_copy = for_copy
        self._files: Revision | None = None
        self._columns: Mapping[str, Column] = {}
        self._snapshot: Snapshot | None = None
        self._seen: tuple[int, ...] = ()
        self._checked = 0
        self._bad_id: int | None = None

    def load(self) -> Snapshot:
        """Read the metadata, open the files that it lists, all of one revision, and take a snapshot of them."""
        for _ in range(_ATTEMPTS):
            self._load_files()
            with suppress(_OutdatedError):
                return self.snapshot()
        raise CorruptBufferError(f"{self.folder}: the files change faster than they can be read")

    def _load_files(self) -> None:
        for attempt in range(_ATTEMPTS):
            files = Revision(self.folder, self._place)
            try:
                counters, columns = self._open_files(files)
                revision = counters.revision
            except (CorruptBufferError, BufferChangedError):
                # A writer that switches files at this moment explains a missing one: then the metadata changes.
                files.release()
                pending = files.metadata.pending and attempt < _PENDING_ATTEMPTS
                if attempt + 1 < _ATTEMPTS and (pending or not files.is_present()):
                    time.sleep(0.0001 * attempt)
                    continue
                raise
            if files.is_present():
                break
            files.release()
        previous = getattr(self, "metadata", None)
        if previous is not None and previous.uuid != files.metadata.uuid:
            raise ConfigMismatchError(f"{self.folder}: another buffer was created in its place; open it anew")
        # In one call: an interrupt, or another thread that reads, finds all of the one revision or of the other.
        self.__dict__.update(
            metadata=files.metadata,
            counters=counters,
            _files=files,
            _columns=columns,
            _revision=revision,
            _snapshot=None,
            _seen=(),
            _checked=0,
            _bad_id=None,
        )

    def look_again(self) -> None:
        """Open the files anew at the next :meth:`refresh`: they may have been switched, and nothing says so yet."""
        self._revision = -1

    @property
    def must_look_again(self) -> bool:
        """Whether what is known here may be out of date, without a sign of it in the folder."""
        return self._revision < 0

    def last_snapshot(self) -> Snapshot:
        """The snapshot as it was last taken."""
        return self._snapshot if self._snapshot is not None else self.snapshot()

    def refresh(self) -> Snapshot:
        """The snapshot of this moment; reopens the files where they were switched."""
        try:
            moved = (self.folder / COUNTERS).stat().st_ino != self.counters.inode
        except FileNotFoundError:
            moved = True
        if not moved and not self._is_outdated():
            with suppress(_OutdatedError):
                return self.snapshot()
        return self.load()

    def _is_outdated(self) -> bool:
        return self.counters.revision != self._revision

    def snapshot(self) -> Snapshot:
        """The live episodes; the last snapshot again where nothing was committed, evicted or deleted since."""
        counters = self.counters
        seen = (counters.first, counters.next, counters.deletions)
        if self._snapshot is None or seen != self._seen:
            self._snapshot = self._read_table()
            self._seen = seen
        return self._snapshot

    def _open_files(self, files: Revision) -> tuple[Counters, dict[str, Column]]:
        metadata = files.metadata
        if self._for_copy:
            files.hold(metadata.columns)
        opener = partial(files.open, COUNTERS)
        counters = Counters(self._place, COUNTERS, metadata.uuid, writable=False, opener=opener)
        counters.check()
        columns = {
            path: Column(self._place, path, dtype, shape, opener=partial(files.open, path))
            for path, (dtype, shape) in metadata.columns.items()
            if self._for_copy or path != CHECKSUMS
        }
        if not self.lazy:
            for column in columns.values():
                column.follow()
        return counters, columns

    @property
    def valid_end(self) -> int:
        """One past the newest episode whose record, and every record before it, is sound."""
        end = self.counters.next
        return end if self._bad_id is None else min(end, self._bad_id)

    def _read_table(self) -> Snapshot:
        try:
            snapshot = self._read_records()
        except BufferChangedError:
            raise _OutdatedError from None
        except CorruptBufferError:
            if self._is_outdated():
                raise _OutdatedError from None
            raise
        # A writer that switches files says so before it commits again. Where it has not, the rows of all episodes
        # that were found are in the files that are open here.
        if self._is_outdated():
            raise _OutdatedError
        return snapshot

    def _read_records(self) -> Snapshot:
        metadata, counters = self.metadata, self.counters
        for _ in range(_ATTEMPTS):
            end = self.valid_end
            first = min(counters.first, end)
            self._columns[EPISODES].view(self._slots_needed(first, end))
            runs, slots = [np.empty(0, _EXTENT)], [np.empty(0, np.int64)]
            bad_id = None
            for ids, slot in record_runs(first, end, counters.base, metadata.table_capacity, metadata.record.nbytes):
                records, bad_id = self._sound_records(ids, slot)
                runs.append(_extents(records))
                slots.append(np.arange(slot, slot + len(ids)))
                if bad_id is not None:
                    break
            overtaken = counters.first
            if overtaken > first:  # evicted meanwhile: their slots may hold newer records
                continue
            if bad_id is not None:
                if self._is_outdated():
                    raise _OutdatedError
                self._bad_id = bad_id
                warnings.warn(
                    f"{self.folder}: the record of episode {self._bad_id} does not match its check value; it and "
                    f"the {counters.next - self._bad_id - 1} after it are left out",
                    stacklevel=2,
                )
                continue
            self._checked = end
            return self._snapshot_of(np.concatenate(runs), np.concatenate(slots))
        raise EpisodeEvictedError(f"{self.folder}: episodes are evicted faster than the table can be read")

    def _sound_records(self, ids: Ints, slot: int) -> tuple[npt.NDArray[Any], int | None]:
        """The records of ids whose slots follow one another, and the first id whose record is damaged.

        Records that were seen before are known to be sound. A deletion changes the last bytes of one at any moment, so
        what looks damaged is looked at again.
        """
        record_format, known = self.metadata.record, int(np.searchsorted(ids, self._checked))
        bad_id = None
        for _ in range(_LOOKS):
            records = self._columns[EPISODES].view(slot + len(ids))[slot:].copy()
            sound = record_format.are_sound(records[known:], ids[known:])
            if sound.all():
                return records, None
            bad_id = int(ids[known:][~sound][0])
            time.sleep(0.0005)
        return records, bad_id

    def _snapshot_of(self, extents: npt.NDArray[Any], slots: Ints) -> Snapshot:
        live = (extents["flags"] & DELETED) == 0
        if not live.all():
            extents, slots = extents[live], slots[live]
        ids, starts, lengths, flags = (np.ascontiguousarray(extents[name]) for name in _EXTENT.names or ())
        self._check_ranges(starts, lengths)
        rows = int((starts + lengths).max()) + self.metadata.has_state if len(ids) else 0
        return Snapshot(self, self.metadata, self._columns, self.counters, ids, slots, starts, lengths, flags, rows)

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
        table = self.folder / EPISODES
        if (lengths < 1).any() or (starts < 0).any() or lengths.max() >= 1 << 60 or starts.max() >= 1 << 60:
            raise CorruptBufferError(f"{table}: a live episode has a negative start or no transition")
        ends = starts + lengths + metadata.has_state
        order = np.argsort(starts, kind="stable") if metadata.circular else slice(None)
        if (starts[order][1:] < ends[order][:-1]).any():
            raise CorruptBufferError(f"{table}: the rows of two live episodes overlap")
        if not self.lazy:
            self._map_rows(int(ends.max()))

    def _map_rows(self, rows: int) -> None:
        """Map what belongs to so many rows; raises CorruptBufferError where a column has fewer."""
        rows_paths = {self.metadata.rows_path(name) for name in self.metadata.fields}
        for path, column in self._columns.items():
            if path in rows_paths:
                column.view(rows)
            elif path not in (EPISODES, CHECKSUMS):  # elements and strings, as many as there are
                column.follow()

    def elements_of(
        self,
        name: str,
        starts: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        deleted: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First element and number of elements of a ragged field, of each episode; none where a deleted one is damaged.

        Raises:
            CorruptBufferError: the spans contradict one another, or the file has no such elements.
        """
        if len(starts) == 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        column = self._columns[spans_path(name)]
        reached = np.where(deleted, 0, starts + rows)  # records of live ones were checked
        spans = column.view(column.rows_held(int(reached.max())))
        if len(spans) == 0:
            return np.zeros_like(starts), np.zeros_like(starts)
        there = ~deleted | ((starts >= 0) & (rows > 0) & (starts < len(spans)) & (rows <= len(spans) - starts))
        starts, rows = np.where(there, starts, 0), np.where(there, rows, 1)
        first, last = spans[starts, 0], spans[starts + rows - 1]
        counts = last.sum(axis=1) - first
        held = self._columns[values_path(name)].rows_held(int((first + counts).max()))
        sound = (first >= 0) & (last.min(axis=1) >= 0) & (last.max(axis=1) < 1 << 60) & (counts >= 0)
        sound &= there & ((first + counts <= held) | (counts == 0))
        if not (sound | deleted).all():
            raise CorruptBufferError(
                f"{self.folder / spans_path(name)}: the elements of an episode are not where it says"
            )
        return first, np.where(sound, counts, 0)

    def end_of_strings(self, places: npt.NDArray[np.int64]) -> int:
        """One past the last byte of the strings at these places."""
        return StringWriter.end_of(self._columns[STRINGS], places)

    def sync(self) -> None:
        """Have all files and their names on the disk before returning."""
        paths = [current_path(self.folder, self.metadata, path) for path in (*self.metadata.columns, COUNTERS)]
        with Directory(self.folder) as folder:
            folder.sync_files((*paths, METADATA))
            folder.sync_parents(paths)
        sync_entry(self.folder)

    def close(self) -> None:
        """Let the maps go; views handed out stay good."""
        if self._files is not None:
            self._files.release()
        self._columns, self._snapshot = {}, None
        del self.counters


def _extents(records: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Ids, rows and flags of records, without their meta values."""
    extents = np.empty(len(records), _EXTENT)
    for name in _EXTENT.names or ():
        extents[name] = records[name]
    return extents


def _reopen_snapshot(
    folder: Path, revision: tuple[str, int], lazy: bool, arrays: tuple[Any, ...], choice: Choice | None
) -> Snapshot:
    """A snapshot in another process: rows come as a path, never as data."""
    reader = FolderReader.__new__(FolderReader)
    reader._begin(folder, lazy=lazy)
    reader._load_files()
    if reader.metadata.uuid != revision[0]:
        raise ConfigMismatchError(f"{folder}: another buffer was created in its place; open it anew")
    if _settled(reader.metadata) != revision[1]:
        raise BufferChangedError(
            f"{folder}: the buffer was cleared or edited since; call refresh() and make a new loader"
        )
    snapshot = Snapshot(reader, reader.metadata, reader._columns, reader.counters, *arrays)
    return snapshot if choice is None else snapshot.limited_to(choice)


def has_buffer(folder: Path) -> bool:
    """Whether the folder holds the metadata of a buffer."""
    return os.path.isfile(os.path.join(folder, METADATA))

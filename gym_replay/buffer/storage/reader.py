"""The reading side of a folder: metadata, counters and columns as they stand, and snapshots of the live episodes."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.columns import Column
from gym_replay.buffer.storage.counters import COUNTERS, Counters
from gym_replay.buffer.storage.encoded import Encoded
from gym_replay.buffer.storage.layout import (
    METADATA,
    Choice,
    Metadata,
    current_path,
    spans_path,
    step_path,
    values_path,
)
from gym_replay.buffer.storage.mirrored import MirroredFolder, MirrorOpener
from gym_replay.buffer.storage.ragged import Ragged
from gym_replay.buffer.storage.records import (
    COMPLETE,
    EPISODES,
    HAS_FINAL,
    meta_column,
)
from gym_replay.buffer.storage.revision import ATTEMPTS, Extents, Opener, OutdatedError, Revision, settled_number
from gym_replay.buffer.storage.strings import STRINGS, StringWriter, read_string, read_strings
from gym_replay.errors import (
    BufferChangedError,
    ConfigMismatchError,
    CorruptBufferError,
    EpisodeEvictedError,
    StaleFieldError,
)
from gym_replay.files.directory import Directory, Folder, sync_entry
from gym_replay.schema.fields import NO_TEXT

_PENDING_ATTEMPTS = 30


@dataclass(frozen=True, eq=False)
class Snapshot(Extents):
    """The live episodes at one moment, the oldest first.

    It keeps what is mapped of the files of its moment: where the buffer is cleared or updated later, that goes on to
    show what was, and rows that are not mapped yet raise BufferChangedError.

    Attributes:
        ids, slots, starts, lengths, flags, rows: the episodes, as :class:`Extents` has them.
        choice: the part of the schema that ``metadata`` was limited to; None for all of it.
    """

    reader: FolderReader
    metadata: Metadata
    columns: Mapping[str, Column]
    counters: Counters
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

    def column(self, name: str) -> Any:
        """The rows of a field that is not ragged, ``(rows, *field.shape)``: a read-only view, or :class:`Encoded`."""
        field = self.metadata.fields[name]
        if field.codec is not None:
            return Encoded(self.stored(name), field)
        return self.columns[step_path(name)].view(self.rows)

    def stored(self, name: str) -> Ragged:
        """The rows of a field that has elements, as they are stored: of a field with a codec, encoded."""
        spans = self.columns[spans_path(name)]
        return Ragged(spans.view(self.rows), lambda end: self.columns[values_path(name)].view(end), spans.path)

    def part(self, name: str, rows: slice) -> Any:
        """Some rows of a field of any kind: views, an :class:`Encoded` or a :class:`Ragged`.

        Of a buffer that is not all on this disk, they are in memory of their own.
        """
        field = self.metadata.fields[name]
        if self.reader.mirrored is not None:
            return self._fetched(name, np.arange(rows.start, rows.stop))
        if field.codec is not None:
            return self.column(name).part(rows)
        return (self.stored(name) if field.ragged else self.column(name))[rows]

    def _fetched(self, name: str, rows: npt.NDArray[np.int64]) -> Any:
        field = self.metadata.fields[name]
        with self.reader.hold():
            if field.has_elements:
                stored = self.stored_rows(name, rows).copy()
                return stored if field.codec is None else Encoded(stored, field)
            column = self.columns[step_path(name)]
            column.need(rows, rows + 1)
            return column.mapped(self.rows)[rows]

    def stored_rows(self, name: str, rows: npt.NDArray[np.int64]) -> Ragged:
        """Some rows of a field that has elements, as :meth:`stored` gives all of them.

        Of a buffer that is not all on this disk, their elements are there while somebody holds what is asked for.
        """
        if self.reader.mirrored is None:
            some: Ragged = self.stored(name)[rows]
            return some
        column, values = self.columns[spans_path(name)], self.columns[values_path(name)]
        spans = self.spans_of(name, rows)
        if len(spans) and (spans.min() < 0 or spans.max() >= 1 << 60):
            raise CorruptBufferError(f"{column.path}: the elements of a row are not where it says")
        full = spans[spans[:, 1] > 0]
        values.need(full[:, 0], full.sum(axis=1))
        return Ragged(spans, values.mapped, column.path)

    def expect(self, names: Collection[str]) -> None:
        """Have the rows of these episodes fetched, where they are not all on this disk, and do not wait for them."""
        if self.reader.mirrored is None or len(self) == 0:
            return
        lasts = self.starts + self.lengths + self.metadata.has_state
        for name in names:
            self.columns[self.metadata.rows_path(name)].expect(self.starts, lasts)
        for name in self.metadata.element_fields:
            if name in names:
                first, last = self.spans_of(name, self.starts), self.spans_of(name, lasts - 1)
                self.columns[values_path(name)].expect(first[:, 0], last.sum(axis=1))

    def spans_of(self, name: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The spans of some rows of a field that has elements, int64 ``(rows, 2)``, copied."""
        column = self.columns[spans_path(name)]
        with self.reader.hold():
            column.need(rows, rows + 1)
            spans: npt.NDArray[np.int64] = column.mapped(self.rows)[rows]
            return spans

    @property
    def _live(self) -> Extents:
        return Extents(self.ids, self.slots, self.starts, self.lengths, self.flags, self.rows)

    def limited_to(self, choice: Choice) -> Snapshot:
        """The same episodes with a part of the schema."""
        return replace(self, metadata=choice.of(self.metadata), choice=choice)

    def only(self, part: npt.NDArray[np.int64] | slice) -> Snapshot:
        """A part of the episodes, in the order of their indices."""
        columns = {name: getattr(self, name)[part] for name in ("ids", "slots", "starts", "lengths", "flags")}
        return replace(self, **columns)

    def meta(self, name: str) -> npt.NDArray[Any]:
        """A meta field's values, ``(episodes, *field.shape)``, copied; of a string field Python strings.

        Of episodes that have left the ring, they may be anything.
        """
        values = self.stored_meta(name)
        return self._texts(values) if self.metadata.meta_fields[name].is_text else values

    def _texts(self, offsets: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The strings at these offsets, one per episode."""
        try:
            return read_strings(self.columns[STRINGS], offsets)
        except CorruptBufferError:
            gone = (self.ids < self.counters.first) & (offsets != NO_TEXT)
            if not gone.any():
                raise
        offsets[gone] = NO_TEXT  # their strings may have been overwritten
        return self._texts(offsets)

    def stored_meta(self, name: str) -> npt.NDArray[Any]:
        """A meta field's values as they are stored, of a string field the offsets of the strings."""
        if len(self.ids) == 0:
            info = self.metadata.meta_fields[name]
            return np.empty((0, *info.shape), info.dtype)
        table = self.columns[EPISODES].view(int(self.slots.max()) + 1)
        values: npt.NDArray[Any] = table[meta_column(name)][self.slots]
        return values

    def meta_of(self, index: int) -> dict[str, Any]:
        """The meta values of one episode, copied: arrays and NumPy scalars, and Python strings."""
        slot = int(self.slots[index])
        record = self.columns[EPISODES].view(slot + 1)[slot : slot + 1].copy()
        values = {}
        for name, info in self.metadata.meta_fields.items():
            value = record[meta_column(name)].copy()
            try:
                values[name] = read_string(self.columns[STRINGS], int(value[0])) if info.is_text else value[0]
            except CorruptBufferError:
                self.require_live(int(self.ids[index]))
                raise
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        identity = self.metadata.uuid, settled_number(self.metadata)
        return _reopen_snapshot, (self.reader.origin, self.reader.lazy, self._live, identity, self.choice)

    def is_live(self, oldest: int) -> bool:
        """Whether the episode with id ``oldest``, and so every newer one, still owns its rows."""
        return self.counters.first <= oldest

    def require_up_to_date(self, names: Iterable[str]) -> None:
        """Raise StaleFieldError where one of the fields has no values for one of these episodes yet."""
        for name in self.metadata.derived.keys() & names:
            if len(stale := self.ids[self.ids >= self.metadata.derived[name]]):
                call = f"{name}=..." if name.isidentifier() else f"**{{{name!r}: ...}}"
                raise StaleFieldError(
                    f"{self.reader.folder}: field {name!r} was computed when there were fewer episodes, and has no "
                    f"values for {len(stale)} of them (the first has the id {stale[0]}); bring it up to date with "
                    f"buffer.update({call}), with the values of all episodes, such as returns_to_go(buffer), or leave "
                    "out the field or these episodes"
                )

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


def require_buffer(buffer: object) -> None:
    """Raise TypeError where something else is given than a buffer, such as its path."""
    if not hasattr(buffer, "snapshots"):
        remedy = "env.buffer" if hasattr(buffer, "buffer") else "a buffer"
        if isinstance(buffer, (str, bytes, os.PathLike)):
            remedy = f"ReplayBuffer.from_folder({buffer!r:.200})"
        raise TypeError(f"expected a ReplayBuffer or a ConcatReplayBuffer, got {type(buffer).__name__}; pass {remedy}")


def snapshots_of(buffer: HasSnapshots) -> list[Snapshot]:
    """The live episodes of each folder of a buffer.

    Raises:
        TypeError: it is no buffer.
    """
    require_buffer(buffer)
    return buffer.snapshots()


class FolderReader:
    """A buffer's files, for reading. Locks nothing and blocks nobody.

    No file stays open, but for a copy.

    Args:
        folder: the buffer's, or its files in a mirror.
        for_copy: read the file of checksums too, and keep all files open until :meth:`close`, so that a copy is of one
            moment.
        lazy: map the rows of a field when they are asked for, and not all of them now. Then what they hold, and that
            they are there at all, is found out when they are asked for.
        directory: the folder where it is held open: then it is not looked up by its path.

    Attributes:
        origin: ``folder`` as it was given.
        folder: its path.

    Raises:
        BufferNotFoundError: there is no buffer in the folder.
        CorruptBufferError: a file is missing, damaged, or contradicts another.
        UnsupportedFormatError: a newer version of this package wrote it.
    """

    def __init__(
        self,
        folder: Path | MirroredFolder,
        *,
        for_copy: bool = False,
        lazy: bool = False,
        directory: Directory | None = None,
    ) -> None:
        self.origin = folder
        self.folder = folder.folder if isinstance(folder, MirroredFolder) else folder
        self.lazy = lazy or self.mirrored is not None
        self._source: Folder = self.folder if directory is None else directory
        self._for_copy = for_copy
        self._last: tuple[Revision, tuple[int, ...], Snapshot] | None = None
        self._words = b""  # the counters when the last snapshot was taken
        self._revision = self._open_revision()

    @property
    def mirrored(self) -> MirroredFolder | None:
        """The files in their mirror, where they are not all on this disk."""
        return self.origin if isinstance(self.origin, MirroredFolder) else None

    def hold(self) -> AbstractContextManager[None]:
        """Keep rows that are asked for with ``need`` on this disk until the end of the context, and no longer."""
        return nullcontext() if self.mirrored is None else self.mirrored.hold()

    def _open_revision(self) -> Revision:
        for attempt in range(ATTEMPTS):
            opener = Opener(self.folder, self._source) if self.mirrored is None else MirrorOpener(self.mirrored)
            try:
                if self._for_copy:
                    opener.keep(opener.metadata.columns)
                revision = Revision(opener, for_copy=self._for_copy, lazy=self.lazy)
            except (CorruptBufferError, BufferChangedError):
                # A writer that switches files at this moment explains a missing one: then the metadata changes.
                opener.release()
                pending = opener.metadata.pending and attempt < _PENDING_ATTEMPTS
                if attempt + 1 < ATTEMPTS and (pending or not opener.is_present()):
                    time.sleep(0.0001 * attempt)
                    continue
                raise
            if opener.is_present():
                return revision
            opener.release()
        raise self._too_fast()

    def _too_fast(self) -> CorruptBufferError:
        return CorruptBufferError(f"{self.folder}: the files change faster than they can be read")

    @property
    def metadata(self) -> Metadata:
        """What the folder says of its buffer."""
        return self._revision.metadata

    @property
    def counters(self) -> Counters:
        """The counters of the folder, which its writer changes at any moment."""
        return self._revision.counters

    @property
    def valid_end(self) -> int:
        """One past the newest episode whose record, and every record before it, is sound."""
        return self._revision.valid_end

    def look_again(self) -> None:
        """Open the files anew at the next :meth:`refresh`: they may have been switched, and nothing says so yet."""
        self._revision.number = -1

    @property
    def must_look_again(self) -> bool:
        """Whether what is known here may be out of date, without a sign of it in the folder."""
        return self._revision.number < 0

    def last_snapshot(self) -> Snapshot:
        """The snapshot as it was last taken."""
        last = self._last
        return last[2] if last is not None and last[0] is self._revision else self.refresh()

    def refresh(self) -> Snapshot:
        """The snapshot of this moment; opens the files anew where they were switched."""
        revision = self._revision
        if not revision.is_outdated and self._is_in_place(revision):
            with suppress(OutdatedError):
                return self._snapshot_of(revision)
        for _ in range(ATTEMPTS):
            revision = self._open_revision()
            if revision.metadata.uuid != self.metadata.uuid:
                raise ConfigMismatchError(f"{self.folder}: another buffer was created in its place; open it anew")
            self._revision = revision
            with suppress(OutdatedError):
                return self._snapshot_of(revision)
        raise self._too_fast()

    def _is_in_place(self, revision: Revision) -> bool:
        try:
            return os.stat(os.path.join(self.folder, COUNTERS)).st_ino == revision.counters.inode
        except FileNotFoundError:
            return False

    def _snapshot_of(self, revision: Revision) -> Snapshot:
        """The live episodes; the last snapshot again where nothing was committed, evicted or deleted since."""
        counters, last = revision.counters, self._last
        words = counters.words()  # before the rest: what changes meanwhile is seen the next time
        seen = (counters.first, counters.next, counters.deletions)
        if last is None or last[0] is not revision or last[1] != seen:
            last = revision, seen, self._with(revision.live_episodes(), revision)
        self._last, self._words = last, words
        return last[2]

    def newest(self, *, is_owned: bool) -> Snapshot:
        """What :meth:`refresh` gives; where nothing was committed since, in a part of the time.

        Args:
            is_owned: whether this process is the writer, and so the folder in its place.
        """
        last, revision = self._last, self._revision
        is_known = last is not None and last[0] is revision and not self.must_look_again
        if is_known and self._words == revision.counters.words() and (is_owned or self._is_in_place(revision)):
            return self.last_snapshot()
        return self.refresh()

    def same_snapshot(self, live: Extents, identity: tuple[str, int], choice: Choice | None) -> Snapshot:
        """A snapshot that was taken in another process.

        Args:
            live: its episodes.
            identity: uuid of its buffer and number of its revision.
            choice: the part of the schema that it was limited to.

        Raises:
            BufferChangedError: the buffer has another revision now.
            ConfigMismatchError: another buffer is in its place.
        """
        revision = self._revision
        if revision.metadata.uuid != identity[0]:
            raise ConfigMismatchError(f"{self.folder}: another buffer was created in its place; open it anew")
        if settled_number(revision.metadata) != identity[1]:
            raise BufferChangedError(
                f"{self.folder}: the buffer was cleared or edited since; call refresh() and make a new loader"
            )
        snapshot = self._with(live, revision)
        return snapshot if choice is None else snapshot.limited_to(choice)

    def _with(self, live: Extents, revision: Revision) -> Snapshot:
        return Snapshot(
            **vars(live), reader=self, metadata=revision.metadata, columns=revision.columns, counters=revision.counters
        )

    def elements_of(
        self,
        name: str,
        starts: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        deleted: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First element of each episode, and how many it has, of a field that has them; none of a damaged deleted one.

        Raises:
            CorruptBufferError: the spans contradict one another, or the file has no such elements.
        """
        if len(starts) == 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        column = self._revision.columns[spans_path(name)]
        reached = np.where(deleted, 0, starts + rows)  # records of live ones were checked
        spans = column.view(column.rows_held(int(reached.max())))
        if len(spans) == 0:
            return np.zeros_like(starts), np.zeros_like(starts)
        there = ~deleted | ((starts >= 0) & (rows > 0) & (starts < len(spans)) & (rows <= len(spans) - starts))
        starts, rows = np.where(there, starts, 0), np.where(there, rows, 1)
        first, last = spans[starts, 0], spans[starts + rows - 1]
        counts = last.sum(axis=1) - first
        held = self._revision.columns[values_path(name)].rows_held(int((first + counts).max()))
        sound = (first >= 0) & (last.min(axis=1) >= 0) & (last.max(axis=1) < 1 << 60) & (counts >= 0)
        sound &= there & ((first + counts <= held) | (counts == 0))
        if not (sound | deleted).all():
            raise CorruptBufferError(
                f"{self.folder / spans_path(name)}: the elements of an episode are not where it says"
            )
        return first, np.where(sound, counts, 0)

    def end_of_strings(self, offsets: npt.NDArray[np.int64]) -> int:
        """One past the last byte of the strings at these offsets."""
        return StringWriter.end_of(self._revision.columns[STRINGS], offsets)

    def sync(self) -> None:
        """Have all files and their names on the disk before returning."""
        paths = [current_path(self.folder, self.metadata, path) for path in (*self.metadata.columns, COUNTERS)]
        with Directory(self.folder) as folder:
            folder.sync_files((*paths, METADATA))
            folder.sync_parents(paths)
        sync_entry(self.folder)

    def close(self) -> None:
        """Release the files that are kept open, and the maps; views handed out stay good."""
        self._revision, self._last = self._revision.closed(), None


def _reopen_snapshot(
    folder: Path | MirroredFolder, lazy: bool, live: Extents, identity: tuple[str, int], choice: Choice | None
) -> Snapshot:
    """A snapshot in another process: rows come as a path, never as data."""
    return FolderReader(folder, lazy=lazy).same_snapshot(live, identity, choice)


def has_buffer(folder: Path) -> bool:
    """Whether the folder holds the metadata of a buffer."""
    return os.path.isfile(os.path.join(folder, METADATA))

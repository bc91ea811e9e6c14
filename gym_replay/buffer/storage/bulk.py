"""A new folder filled with whole episodes of other folders, faster than they can be committed one by one.

Nobody looks at the folder before it is complete, so the order of writing does not matter here, and its counters are
stored once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.checksums import field_checksums
from gym_replay.buffer.storage.columns import ColumnWriter
from gym_replay.buffer.storage.counters import COUNTERS, Counters
from gym_replay.buffer.storage.creation import create_files
from gym_replay.buffer.storage.layout import (
    STEPS,
    Metadata,
    current_path,
    spans_path,
    step_path,
    values_path,
)
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.buffer.storage.records import CHECKSUMS, DELETED, EPISODES, HAS_FINAL, RECORDS_AT_ONCE
from gym_replay.buffer.storage.strings import STRINGS, StringWriter, read_text
from gym_replay.buffer.storage.transfer import Advance, DamagedSpansError, Ints, RowTransfer, Sums
from gym_replay.errors import CorruptBufferError
from gym_replay.files.directory import Directory
from gym_replay.schema.fields import NO_TEXT


class FolderBuilder:
    """Fills an empty folder with episodes of snapshots. Made for one thread, used once.

    Args:
        folder: without a buffer, held open by the caller, who has its lock.
        metadata: of the new buffer, which has no limits. Each of its fields and meta fields is one of every source.
        advance: is told how many bytes of rows were carried.

    Raises:
        StorageError: the operating system refused to write.
    """

    def __init__(self, folder: Directory, metadata: Metadata, advance: Advance = lambda nbytes: None) -> None:
        assert not metadata.circular
        self.folder = folder
        self._open = ExitStack()
        self._columns: dict[str, ColumnWriter] = {}
        self._advance = advance
        self._rows = self.num_episodes = 0
        self._elements = dict.fromkeys(metadata.ragged_fields, 0)
        with self._open as opening:
            self.metadata = create_files(folder, metadata, sync=False)
            for path, (dtype, shape) in metadata.columns.items():
                self._columns[path] = ColumnWriter.open(folder, path, dtype, shape)
                opening.callback(self._columns[path].close)
            self._transfer = RowTransfer(advance)
            opening.callback(self._transfer.close)
            self._open = opening.pop_all()
        self._strings = StringWriter(self._columns[STRINGS], 0) if STRINGS in self._columns else None

    def add(self, source: Snapshot, places: Ints) -> None:
        """Copy episodes, given by their places in the snapshot, behind those that are there.

        Args:
            source: of a reader that has opened the checksums.

        Raises:
            CorruptBufferError: an episode does not match its checksum, or is damaged in another way; the message names
                it.
            EpisodeEvictedError: an episode left a circular buffer before it was copied.
            StorageError: the operating system refused to read or to write.
        """
        if len(places) == 0:
            return
        source.require_live(oldest := int(source.ids[places[0]]))
        summed = source.counters.summed  # before the sums are read: those below it are there
        try:
            sums = np.zeros(len(places), self._columns[CHECKSUMS].dtype)
            for name in self.metadata.fields:
                sums[name] = self._add_field(source, name, places, summed)
                source.require_live(oldest)  # as early as can be
            self._columns[CHECKSUMS].write(self.num_episodes, sums.tobytes())
            self._add_records(source, places)
        except CorruptBufferError:
            source.require_live(oldest)  # where it has left, what was read may be anything
            raise
        source.require_live(oldest)
        self._rows += int(self._taken(source, places).sum())
        self.num_episodes += len(places)

    def _taken(self, source: Snapshot, places: Ints) -> Ints:
        """How many rows each episode takes here."""
        return source.lengths[places] + self.metadata.has_state

    def _add_field(self, source: Snapshot, name: str, places: Ints, summed: int) -> Sums:
        """Copy a field; the checksum of each episode."""
        stored = _stored_sums(source, name, places, summed)
        starts, counts = source.starts[places], self._taken(source, places)
        whole = source.metadata.has_state == self.metadata.has_state
        if not whole:  # row T is left behind, so that what is summed on the way is not what the source has summed
            _compare(source, name, places, stored, lambda: _sums_of(source, name, places))
        if self.metadata.fields[name].ragged:
            try:
                sums = self._add_ragged(source, name, starts, counts)
            except DamagedSpansError as error:
                raise _damaged(source, int(places[error.number]), f"field {name!r}: {error}") from None
        else:
            path = step_path(name)
            sums = self._transfer.rows(source.columns[path], starts, counts, self._columns[path], self._rows)
        if whole:
            _compare(source, name, places, stored, lambda: sums)
        return sums

    def _add_ragged(self, source: Snapshot, name: str, starts: Ints, counts: Ints) -> Sums:
        spans, values, base = spans_path(name), values_path(name), self._elements[name]
        sums, begins, totals = self._transfer.spans(
            source.columns[spans], starts, counts, self._columns[spans], self._rows, base
        )
        own = totals > 0
        sums[own] = self._transfer.rows(
            source.columns[values], begins[own], totals[own], self._columns[values], base, sums[own]
        )
        self._elements[name] += int(totals.sum())
        return sums

    def _add_records(self, source: Snapshot, places: Ints) -> None:
        metadata, first = self.metadata, self.num_episodes
        lengths, taken = source.lengths[places], self._taken(source, places)
        starts = self._rows + np.cumsum(taken) - taken
        flags = source.flags[places] & np.uint8(255 - DELETED - (0 if metadata.has_state else HAS_FINAL))
        meta = {name: source.stored_meta(name)[places] for name in metadata.meta_fields}
        for name in metadata.text_fields:
            meta[name] = self._moved_texts(source, meta[name])
        ids = np.arange(first, first + len(places))
        for low in range(0, len(places), RECORDS_AT_ONCE):
            part = slice(low, low + RECORDS_AT_ONCE)
            values = {name: column[part] for name, column in meta.items()}
            records = metadata.record.encode(ids[part], starts[part], lengths[part], flags[part], values)
            self._columns[EPISODES].write(first + low, records.tobytes())

    def _moved_texts(self, source: Snapshot, places: Ints) -> Ints:
        """Write the strings at these places of the source; where they are here."""
        assert self._strings is not None
        texts, column = self._strings, source.columns[STRINGS]
        olds, inverse = np.unique(places, return_inverse=True)
        news = [
            NO_TEXT if old == NO_TEXT else int.from_bytes(texts.put(read_text(column, old)), "little", signed=True)
            for old in olds.tolist()
        ]
        return np.array(news, np.int64)[inverse.reshape(-1)]

    def finish(self) -> None:
        """Have the folder complete, and on the disk, before returning; the names of its files are there already.

        Raises:
            StorageError: not everything reached the disk.
        """
        ends = {values_path(name): end for name, end in self._elements.items()}
        if self._strings is not None:
            ends[STRINGS] = self._strings.end
        for path, column in self._columns.items():
            rows = self._rows if path.startswith(STEPS) else self.num_episodes
            column.reserve(ends.get(path, rows))
            column.trim(ends.get(path, rows))
            column.sync()
        counters = Counters(self.folder, COUNTERS, self.metadata.uuid, writable=True)
        for name in ("summed", "next"):
            counters.put(name, self.num_episodes)
        counters.sync()

    def close(self) -> None:
        """Close the files."""
        self._open.close()


def _stored_sums(source: Snapshot, name: str, places: Ints, summed: int) -> tuple[npt.NDArray[np.bool_], Sums]:
    """Which of the episodes have a checksum of a field, and the checksums of these."""
    known = source.ids[places] < summed
    slots = source.slots[places[known]]
    if len(slots) == 0:
        return known, np.empty(0, np.uint32)
    return known, source.columns[CHECKSUMS].view(int(slots.max()) + 1)[name][slots]


def _compare(
    source: Snapshot,
    name: str,
    places: Ints,
    stored: tuple[npt.NDArray[np.bool_], Sums],
    found: Callable[[], Sums],
) -> None:
    """Raise CorruptBufferError, which names an episode, where the rows of one are not what was summed."""
    known, sums = stored
    wrong = found()[known] != sums
    if not wrong.any():
        return
    more = f" (nor do those of {wrong.sum() - 1} more)" if wrong.sum() > 1 else ""
    what = f"the rows of field {name!r} do not match their checksum{more}"
    raise _damaged(source, int(places[known][wrong][0]), what)


def _damaged(source: Snapshot, place: int, what: str) -> CorruptBufferError:
    return CorruptBufferError(
        f"{source.reader.folder}: episode {place} (id {source.ids[place]}) is damaged: {what}. Nothing was copied; "
        "check_buffer(folder) names all that is damaged, and with repair=True deletes such episodes"
    )


def _sums_of(source: Snapshot, name: str, places: Ints) -> Sums:
    """The checksums of the whole rows of episodes, row T included."""
    metadata, folder = source.metadata, source.reader.folder
    all_columns = metadata.columns
    paths = (spans_path(name), values_path(name)) if metadata.fields[name].ragged else (step_path(name),)
    with ExitStack() as opening:
        columns = []
        for path in paths:
            actual = current_path(folder, metadata, path)
            columns.append(ColumnWriter.open(folder, actual, *all_columns[path], read_only=True))
            opening.callback(columns[-1].close)
        rows, elements = columns if len(columns) == 2 else (columns[0], None)
        return field_checksums(rows, elements, source.starts[places], source.lengths[places] + metadata.has_state)

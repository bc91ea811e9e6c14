"""Checking a folder against every rule of the format, and repairing what can be repaired."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.checksums import field_checksums
from gym_replay.buffer.storage.columns import Column, ColumnWriter
from gym_replay.buffer.storage.copies import batches, read_rows
from gym_replay.buffer.storage.counters import COUNTERS, CheckValueError, Counters, encode_counters
from gym_replay.buffer.storage.encoded import undecodable
from gym_replay.buffer.storage.layout import (
    METADATA,
    NEW,
    DamagedMetadataError,
    Metadata,
    current_path,
    finish_switch,
    read_metadata,
    values_path,
    write_metadata,
)
from gym_replay.buffer.storage.ragged import SPAN, Ragged, misplaced
from gym_replay.buffer.storage.records import (
    CHECKSUMS,
    COMPLETE,
    DELETED,
    EPISODES,
    HAS_FINAL,
    Ints,
    meta_column,
    record_runs,
    slots_of,
)
from gym_replay.buffer.storage.strings import STRINGS, STRINGS_DTYPE, read_string
from gym_replay.errors import BufferNotFoundError, CorruptBufferError, GymReplayError, MissingExtraError
from gym_replay.files.directory import NOT_THE_FILES_FAULT, Directory, open_beneath, storage_error
from gym_replay.files.folders import folder_of
from gym_replay.files.lock import WriterLock
from gym_replay.files.writing import replace_file
from gym_replay.notices import bar
from gym_replay.schema.fields import Field

_PASSES = 20
_BATCH = 1 << 26
"""Bytes of rows after which the bar moves."""
_FRAMES = 256
"""Encoded rows that are read at a time."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        rule: the number of the rule in ``docs/format.md`` that it breaks.
        file: the file, relative to the folder.
        message: what is wrong.
        episode: the id of the episode that it concerns, if it concerns one.
        field: the name of the field, likewise.
    """

    rule: int
    file: str
    message: str
    episode: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        return f"rule {self.rule}, {self.file}: {self.message}"


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check_buffer` found.

    Attributes:
        num_episodes: how many live episodes there are.
        num_checked: how many of them were compared with their checksums.
        faults: everything that is wrong.
        without_checksum: ids of live episodes that have no checksums yet; ``flush`` and ``close`` write them.
        notes: what is not wrong but worth knowing, such as an interrupted change that the next writer finishes.
        dropped: with ``repair=True``, what was given up.
    """

    folder: Path
    num_episodes: int = 0
    num_checked: int = 0
    faults: list[Fault] = field(default_factory=list)
    without_checksum: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    @property
    def verified(self) -> bool:
        """Whether nothing is wrong, and every live episode was compared with its checksums."""
        return self.ok and not self.without_checksum

    def __str__(self) -> str:
        verdict = "no faults" if self.ok else f"{len(self.faults)} faults"
        lines = [f"{self.folder}: {self.num_episodes} episodes, {self.num_checked} compared with checksums, {verdict}"]
        lines += [f"  {fault}" for fault in self.faults]
        if self.without_checksum:
            lines.append(f"  without checksums so far: {_ranges(self.without_checksum)}")
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  dropped: {text}" for text in self.dropped]
        return "\n".join(lines)


def check_buffer(folder: str | os.PathLike[str], *, repair: bool = False, progress: bool = True) -> CheckReport:
    """Compare a buffer with every rule of its format, and each episode's rows with their checksums.

    Meant for a buffer that nobody writes at the time. Reads all rows once.

    Args:
        folder: the buffer.
        repair: after the check keep what is sound: episodes before a damaged record stay and those from it on are
            dropped, episodes with damaged or missing rows are deleted. Takes the writer's lock. Without it nothing
            is changed.
        progress: show a bar.

    Returns:
        The report, of the state before the repair; what the repair gave up is in ``dropped``.

    Raises:
        BufferNotFoundError: there is no buffer in the folder.
        StorageError: there are no more file descriptors, or a file may not be read, so that nothing is known of it.
        BufferLockedError: with ``repair``, somebody is writing to the buffer.
        GymReplayError: with ``repair``, the metadata is damaged, and nothing can be repaired.

    Example:
        >>> report = check_buffer("data/cheetah")  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    check = _Check(folder_of(folder), progress=progress)
    dropped = _repair(check, progress=progress) if repair and check.faults else []
    return CheckReport(
        check.folder,
        check.num_episodes,
        check.num_checked,
        check.faults,
        check.without_checksum,
        check.notes,
        dropped,
    )


class _Check:
    """One pass over a folder. Each rule is looked at where what it builds on was found sound.

    Attributes:
        faults, notes, num_episodes, num_checked, without_checksum: as in the report.
        failure: what was raised where metadata or counters cannot be read, so that nothing more is known.
        bad_record: the first episode whose record is damaged; it and those after it are lost.
        newest_verified: the newest episode that matches its checksums.
    """

    def __init__(self, folder: Path, *, progress: bool) -> None:
        self.folder, self._progress = folder, progress
        self.faults: list[Fault] = []
        self.notes: list[str] = []
        self.without_checksum: list[int] = []
        self.num_episodes = self.num_checked = 0
        self.failure: GymReplayError | None = None
        self.bad_record: int | None = None
        self.newest_verified: int | None = None
        self._files: dict[str, ColumnWriter] = {}
        with ExitStack() as stack:
            if self._metadata_is_readable() and self._counters_are_readable():
                self._open_files(stack)
                if EPISODES in self._files:
                    self._check_records()

    def _fault(self, rule: int, file: str, message: str, episode: int | None = None, name: str | None = None) -> None:
        self.faults.append(Fault(rule, file, message, episode, name))

    @property
    def bad_episodes(self) -> list[int]:
        """Those that something is wrong with."""
        return sorted({fault.episode for fault in self.faults if fault.episode is not None})

    def _path(self, path: str) -> str:
        return current_path(self.folder, self.metadata, path)

    def _metadata_is_readable(self) -> bool:
        """Rules 8, 10 and 14."""
        try:
            self.metadata = read_metadata(self.folder)
        except BufferNotFoundError:
            raise
        except (GymReplayError, OSError) as error:
            return self._fail(METADATA, error)
        if self.metadata.pending or self.metadata.obsolete:
            self.notes.append("a change of files was interrupted; the next writer finishes it")
        return True

    def _counters_are_readable(self) -> bool:
        """Rules 10 and 14."""
        try:
            self.counters = Counters(self.folder, self._path(COUNTERS), self.metadata.uuid, writable=False)
            self.counters.check()
        except (GymReplayError, OSError) as error:
            return self._fail(COUNTERS, error)
        return True

    def _fail(self, file: str, error: Exception) -> bool:
        _raise_unless_of_file(error, self.folder / file)
        self.failure = error if isinstance(error, GymReplayError) else GymReplayError(str(error))
        self._fault(14 if isinstance(error, CheckValueError) else 10, file, str(error))
        return False

    def _open_files(self, stack: ExitStack) -> None:
        """Rules 1, 2 and 10: every file is what the metadata says, and NumPy itself maps it."""
        for path, (dtype, shape) in self.metadata.columns.items():
            found, actual = self.folder / path, self._path(path)
            try:
                file = ColumnWriter.open(self.folder, actual, dtype, shape, read_only=True)
                stack.callback(file.close)
            except (GymReplayError, OSError) as error:
                _raise_unless_of_file(error, found)
                parts = [part for part in (found, *found.parents) if part.is_relative_to(self.folder)]
                rule = 10 if any(part.is_symlink() for part in parts) else 2 if "object" in str(error) else 1
                self._fault(rule, path, str(error))
                continue
            self._files[path] = file
            try:
                os.close(open_beneath(self.folder, actual, os.O_RDONLY))
                np.load(self.folder / actual, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, OverflowError, EOFError, GymReplayError) as error:
                _raise_unless_of_file(error, found)
                if getattr(error, "errno", None) != errno.ENOMEM:  # for want of address space, not a fault of the file
                    self._fault(1, path, f"numpy.load cannot map it: {error}")

    def _check_records(self) -> None:
        """Rules 10 and 11: each record is that of its id, up to the first damaged one."""
        metadata, counters, table = self.metadata, self.counters, self._files[EPISODES]
        capacity, count, end = metadata.table_capacity, counters.next - counters.first, counters.next
        if capacity is not None and count > capacity:
            self.bad_record = end = counters.first + capacity
            self._fault(10, COUNTERS, f"{count} live episodes in a table of {capacity} slots", end)
        found, slots = [np.zeros(0, table.dtype)], [np.empty(0, np.int64)]
        for ids, slot in record_runs(counters.first, end, counters.base, capacity, metadata.record.nbytes):
            present = min(max(table.capacity - slot, 0), len(ids))
            records = table.read_array(slot, present)
            lengths, starts = records["length"], records["start"]
            is_sound = metadata.record.are_sound(records, ids[:present])
            is_possible = (lengths >= 1) & (starts >= 0) & (lengths < 1 << 60) & (starts < 1 << 60)
            sound = int(np.argmin(np.append(is_sound & is_possible, False)))
            found.append(records[:sound])
            slots.append(np.arange(slot, slot + sound))
            if sound < len(ids):
                what = "is missing" if sound == present else "has a negative start or no transition"
                if sound < present and not is_sound[sound]:
                    what = "does not match its check value"
                self.bad_record = int(ids[sound])
                self._fault(11, EPISODES, f"the record of episode {self.bad_record} {what}", self.bad_record)
                break
        records = np.concatenate(found)
        live = (records["flags"] & DELETED) == 0
        self._check_episodes(records[live], np.concatenate(slots)[live])

    def _check_episodes(self, records: npt.NDArray[Any], slots: Ints) -> None:
        """Rules 3 and 10: each episode has rows of its own, in the order of ids where that is promised."""
        metadata = self.metadata
        ids, starts, rows = records["id"], records["start"], records["length"] + metadata.has_state
        self.num_episodes = len(ids)
        for episode in ids[records["flags"] & np.uint8(255 - HAS_FINAL - COMPLETE - DELETED) != 0].tolist():
            self._fault(10, EPISODES, f"episode {episode} has unknown flags", episode)
        for one, other in _overlaps(ids, starts, starts + rows):
            self._fault(3, EPISODES, f"episodes {one} and {other} share rows", max(one, other))
        bad = self.bad_episodes
        for episode in [] if metadata.circular else ids[1:][np.diff(starts) < 0].tolist():
            if episode not in bad:
                self._fault(3, EPISODES, f"episode {episode} lies before an older one", episode)
        for name in metadata.fields:
            self._check_rows(name, ids, starts, rows)
        for name in metadata.text_fields:
            self._check_strings(name, ids, records[meta_column(name)])
        summed = ids < self.counters.summed
        self.without_checksum = ids[~summed].tolist()
        chosen = summed & ~np.isin(ids, self.bad_episodes)
        self._check_sums(ids[chosen], slots[chosen], starts[chosen], rows[chosen])

    def _check_rows(self, name: str, ids: Ints, starts: Ints, rows: Ints) -> None:
        """Rules 1 and 12: rows and elements are there, and no two episodes share an element."""
        path = self.metadata.rows_path(name)
        if (file := self._files.get(path)) is None:
            return
        there = starts + rows <= file.capacity
        for episode in ids[~there].tolist():
            self._fault(1, path, f"rows of episode {episode} are missing", episode, name)
        elements = self._files.get(values_path(name)) if self.metadata.fields[name].has_elements else None
        if elements is None:
            return
        ids, starts, rows = ids[there], starts[there], rows[there]
        begins, totals = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
        column = Column(self.folder, self._path(path), file.dtype, file.shape)
        for part in batches(rows * file.row_nbytes, _BATCH):
            spans = np.frombuffer(b"".join(read_rows(column, starts[part], rows[part])), SPAN).reshape(-1, 2)
            heads = np.cumsum(rows[part]) - rows[part]
            begins[part], totals[part] = spans[heads, 0], np.add.reduceat(spans[:, 1], heads)
            for index in part.start + misplaced(spans, heads):
                what = f"the elements of episode {ids[index]} do not lie one row after another"
                self._fault(12, path, what, int(ids[index]), name)
                totals[index] = 0
        for episode in ids[(totals > 0) & (begins + totals > elements.capacity)].tolist():
            self._fault(12, path, f"the elements of episode {episode} are missing", episode, name)
        if self.metadata.fields[name].codec is not None:
            self._check_encoded(name, ids, starts, rows)
        own = (totals > 0) & (begins + totals <= elements.capacity)
        for one, other in _overlaps(ids[own], begins[own], begins[own] + totals[own]):
            self._fault(12, path, f"episodes {one} and {other} share elements", max(one, other), name)

    def _check_encoded(self, name: str, ids: Ints, starts: Ints, rows: Ints) -> None:
        """Rule 15: each row of a field with a codec can be decoded; of episodes whose elements are where they say."""
        path, field = values_path(name), self.metadata.fields[name]
        bad = self.bad_episodes
        try:
            for episode, start, count in zip(ids.tolist(), starts.tolist(), rows.tolist(), strict=True):
                if episode not in bad:
                    self._check_frames(name, field, episode, start, count)
        except MissingExtraError as error:
            self.notes.append(f"whether the rows of {path} can be decoded was not looked at: {error}")

    def _check_frames(self, name: str, field: Field, episode: int, start: int, count: int) -> None:
        """Rule 15 for one episode, of which its first row that cannot be decoded is named."""
        spans_file, elements_file = (self._files[path] for path in self.metadata.paths_of(name))
        for at in range(0, count, _FRAMES):
            spans = spans_file.read_array(start + at, min(_FRAMES, count - at))
            begin, end = int(spans[0, 0]), int(spans[-1].sum())
            elements = elements_file.read_array(begin, end - begin) if end > begin else np.empty(0, np.uint8)
            relative = np.where(spans[:, 1:] > 0, spans - np.array([begin, 0]), 0)
            if found := undecodable(field, Ragged.of_spans(relative, elements)):
                row, reason = found[0]
                what = f"row {at + row} of episode {episode} in field {name!r} cannot be decoded: {reason}"
                self._fault(15, values_path(name), what, episode, name)
                return

    def _check_strings(self, name: str, ids: Ints, offsets: Ints) -> None:
        """Rule 13: the string of each record is there."""
        if STRINGS not in self._files:
            return
        column = Column(self.folder, self._path(STRINGS), STRINGS_DTYPE)
        for offset in np.unique(offsets).tolist():
            if fault := _fault_of_string(column, offset):
                for episode in ids[offsets == offset].tolist():
                    self._fault(13, STRINGS, f"the string {name!r} of episode {episode}: {fault}", episode, name)

    def _check_sums(self, ids: Ints, slots: Ints, starts: Ints, rows: Ints) -> None:
        """Rule 9: the rows of each episode match their checksums."""
        if (sums := self._files.get(CHECKSUMS)) is None:
            return
        if len(slots) and int(slots.max()) >= sums.capacity:
            self._fault(9, CHECKSUMS, "checksums that should be there are missing")
            return
        stored = sums.read_scattered(slots)
        fields = {
            name: [self._files.get(path) for path in self.metadata.paths_of(name)] for name in self.metadata.fields
        }
        whole = {name: [file for file in files if file] for name, files in fields.items() if all(files)}
        match = np.ones(len(ids), np.bool_)
        total = sum(files[0].row_nbytes for files in whole.values()) * int(rows.sum())
        with bar(total, "check", "B", progress=self._progress, delay=0, unit_scale=True) as shown:
            for at, name in enumerate(self.metadata.fields):
                if name not in whole:
                    continue
                file, *elements = whole[name]
                for part in batches(rows * max(file.row_nbytes, 1), _BATCH):
                    found = field_checksums(file, elements[0] if elements else None, starts[part], rows[part])
                    is_equal = found == stored[part, at]
                    match[part] &= is_equal
                    for episode in ids[part][~is_equal].tolist():
                        message = f"the rows of episode {episode} in field {name!r} do not match their checksum"
                        self._fault(9, self.metadata.rows_path(name), message, episode, name)
                    shown.update(int(rows[part].sum()) * file.row_nbytes)
        self.num_checked = len(ids)
        self.newest_verified = int(ids[match][-1]) if match.any() else None


def _raise_unless_of_file(error: Exception, path: Path) -> None:
    """Raise an error that says nothing about a file: without descriptors or permission, nothing can be checked."""
    if isinstance(error, OSError) and error.errno in NOT_THE_FILES_FAULT:
        raise storage_error(error, path, 0) from error


def _fault_of_string(column: Column, offset: int) -> str | None:
    try:
        read_string(column, offset)
    except CorruptBufferError as error:
        return str(error)
    return None


def _overlaps(ids: Ints, starts: Ints, ends: Ints) -> Iterable[tuple[int, int]]:
    """Episodes that begin before an earlier one has ended, each behind the one that reaches furthest."""
    order = np.argsort(starts, kind="stable")
    reached = np.maximum.accumulate(ends[order])
    furthest = np.maximum.accumulate(np.where(ends[order] == reached, np.arange(len(order)), 0))
    late = np.flatnonzero(starts[order][1:] < reached[:-1]) + 1
    return zip(ids[order[furthest[late - 1]]].tolist(), ids[order[late]].tolist(), strict=True)


def _ranges(ids: list[int]) -> str:
    array = np.array(ids)
    runs = np.split(array, np.flatnonzero(np.diff(array) != 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


# --- repair ---


def _repair(check: _Check, *, progress: bool) -> list[str]:
    """Make the folder sound again; returns what was given up, and what was believed instead of what.

    The metadata is believed where all files are what it says. Headers are made from it, counters from the records, and
    the episodes whose records or rows are damaged are given up.
    """
    if check.faults[0].file == METADATA and not isinstance(check.failure, DamagedMetadataError):
        assert check.failure is not None
        raise check.failure
    lock = WriterLock(check.folder)
    try:
        folder = lock.directory
        metadata, dropped = _repair_metadata(folder)
        metadata = finish_switch(folder, metadata)
        dropped += _repair_headers(folder, metadata)
        dropped += _repair_counters(folder, metadata, progress=progress)
        for _ in range(_PASSES):  # a fault may show only after another one is mended
            again = _Check(check.folder, progress=progress)
            if again.failure is not None:
                raise again.failure
            if not again.faults:
                break
            dropped += _give_up(folder, metadata, again)
    finally:
        lock.release()
    return dropped


def _repair_metadata(folder: Directory) -> tuple[Metadata, list[str]]:
    """The metadata; where only its check value is wrong, and every file is what it says, it is signed again.

    Raises:
        CorruptBufferError: it is damaged in another way, or a file contradicts it.
    """
    try:
        return read_metadata(folder), []
    except DamagedMetadataError as error:
        metadata = error.metadata
        for path, (dtype, shape) in metadata.columns.items():
            actual = current_path(folder, metadata, path)
            try:
                ColumnWriter.open(folder, actual, dtype, shape, read_only=True).close()
            except (GymReplayError, OSError) as contradiction:
                raise CorruptBufferError(
                    f"{folder / METADATA}: it does not match its check value, and a file contradicts it "
                    f"({contradiction}); nothing was changed. Put the right {METADATA} back"
                ) from error
        write_metadata(folder, metadata)
        return metadata, [f"the check value of {METADATA}, which was changed by hand; every file is what it says"]


def _repair_headers(folder: Directory, metadata: Metadata) -> list[str]:
    """Give every file a header that says what it holds, and an empty file where there is none.

    The metadata has a check value and a header has none, so where they contradict one another, the metadata counts.
    """
    dropped = []
    for path, (dtype, shape) in metadata.columns.items():
        try:
            column = ColumnWriter.open(folder, path, dtype, shape)
            column.set_rows(column.capacity)
        except CorruptBufferError as error:
            if folder.is_plain_file(path):
                dropped.append(f"the header of a file ({error})")
                column = ColumnWriter.with_new_header(folder, path, dtype, shape)
            elif not folder.exists(path):
                dropped.append(f"{path}, which is missing")
                column = ColumnWriter.create(folder, path, dtype, shape)
            else:
                raise  # a directory or a link: not ours to remove
        column.close()
    return dropped


def _repair_counters(folder: Directory, metadata: Metadata, *, progress: bool) -> list[str]:
    """Find the episodes again where the counters are damaged, and up to which one they have checksums."""
    try:
        Counters(folder, COUNTERS, metadata.uuid, writable=False).check()
        return []
    except CorruptBufferError as error:
        base, first, end = _ids_of_records(folder, metadata)
        sums = ColumnWriter.open(folder, CHECKSUMS, *metadata.columns[CHECKSUMS])
        most = end if metadata.circular else min(end, base + sums.capacity)
        sums.close()
        values = metadata.revision, base, first, end, max(most, first), 0
        replace_file(folder, COUNTERS, COUNTERS + NEW, encode_counters(metadata.uuid, values))
        # Checksums are written in the order of ids: where those of an episode match, all episodes before have theirs.
        newest = _Check(folder.path, progress=progress).newest_verified
        summed = first if newest is None else newest + 1
        Counters(folder, COUNTERS, metadata.uuid, writable=True).put("summed", summed)
        found = f"the records have the episodes {first}-{end - 1}" if end > first else "there are no records"
        return [f"the counters ({error}); {found}"]


def _ids_of_records(folder: Directory, metadata: Metadata) -> tuple[int, int, int]:
    """The id in slot 0, and the first and one past the last id whose records are sound, in a row and share no rows."""
    table = ColumnWriter.open(folder, EPISODES, metadata.record.dtype)
    records, capacity = table.read_array(0, table.capacity), metadata.table_capacity
    table.close()
    slots = np.flatnonzero(metadata.record.are_sound(records, records["id"]))
    if len(slots) == 0:
        return 0, 0, 0
    ids = records["id"][slots]
    base = int(ids[0] - slots[0])
    if capacity is None:  # the first damaged record ends what is believed, as it does for readers
        in_place = np.isin(base + np.arange(len(records) + 1), ids[ids - base == slots])
        return base, base, base + int(np.argmin(in_place))
    base %= capacity
    found = {int(records["id"][slot]): records[slot] for slot in slots.tolist()}
    first = end = int(ids.max()) + 1
    taken: list[tuple[int, int]] = []
    while base < first and end - first < capacity and (record := found.get(first - 1)) is not None:
        begin, stop = int(record["start"]), int(record["start"] + record["length"]) + metadata.has_state
        if any(begin < other_stop and other_begin < stop for other_begin, other_stop in taken):
            break
        taken.append((begin, stop))
        first -= 1
    return base, first, end


def _give_up(folder: Directory, metadata: Metadata, check: _Check) -> list[str]:
    """Cut off or delete what a check found damaged."""
    dropped = []
    counters = Counters(folder, COUNTERS, metadata.uuid, writable=True)
    if (cut := check.bad_record) is not None:
        dropped.append(f"episodes {cut}-{counters.next - 1}, from the first damaged record on")
        counters.cut(cut)
    if bad := [episode for episode in check.bad_episodes if episode < counters.next]:
        dropped.append(f"episodes {_ranges(bad)}, whose rows are damaged")
        slots = slots_of(np.array(bad, np.int64), counters.base, metadata.table_capacity)
        table = ColumnWriter.open(folder, EPISODES, metadata.record.dtype)
        records = table.read_scattered(slots)
        records["flags"] |= DELETED
        table.write_scattered(slots, metadata.record.signed(records))
        table.close()
        counters.put("deletions", counters.deletions + 1)
    if any(fault.episode is None and fault.rule == 9 for fault in check.faults):
        dropped.append("the checksums so far, some of which are missing; the next flush writes them anew")
        counters.put("summed", counters.base)
    return dropped

"""Checking a folder against every rule of the format, and repairing what can be repaired."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from gym_replay.buffer.storage.checksums import elements_between, field_checksums
from gym_replay.buffer.storage.columns import PIECE, Column, ColumnWriter
from gym_replay.buffer.storage.counters import COUNTERS, CheckValueError, Counters, encode_counters
from gym_replay.buffer.storage.layout import (
    METADATA,
    NEW,
    DamagedMetadataError,
    Metadata,
    current_path,
    finish_switch,
    read_metadata,
    spans_path,
    step_path,
    values_path,
    write_metadata,
)
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
from gym_replay.buffer.storage.strings import STRINGS, STRINGS_DTYPE, read_strings
from gym_replay.errors import BufferNotFoundError, CorruptBufferError, GymReplayError
from gym_replay.files.directory import NOT_THE_FILES_FAULT, Directory, open_beneath, storage_error
from gym_replay.files.folders import folder_of
from gym_replay.files.lock import WriterLock
from gym_replay.files.writing import replace_file

_PASSES = 20


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
        progress: whether to show a tqdm bar.

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
    path = folder_of(folder)
    check = _Check(path, progress=progress)
    check.run()
    if repair and not check.report.ok:
        check.report.dropped.extend(_repair(check, progress=progress))
    return check.report


class _Check:
    """One pass over a folder. Later stages run only on what earlier ones found sound."""

    def __init__(self, folder: Path, *, progress: bool) -> None:
        self.folder = folder
        self.report = CheckReport(folder)
        self.failure: GymReplayError | None = None
        self.bad_record: int | None = None
        self.bad_episodes: set[int] = set()
        self._progress = progress
        self._columns: dict[str, ColumnWriter] = {}

    def fault(self, rule: int, file: str, message: str, episode: int | None = None, name: str | None = None) -> None:
        self.report.faults.append(Fault(rule, file, message, episode, name))
        if episode is not None:
            self.bad_episodes.add(episode)

    def _update(self, **values: Any) -> None:
        self.report = replace(self.report, **values)

    def run(self) -> None:
        try:
            self.metadata = read_metadata(self.folder)
        except BufferNotFoundError:
            raise
        except (GymReplayError, OSError) as error:
            self._fail(METADATA, error)
            return
        if self.metadata.pending or self.metadata.obsolete:
            self.report.notes.append("a change of files was interrupted; the next writer finishes it")
        try:
            path = current_path(self.folder, self.metadata, COUNTERS)
            self.counters = Counters(self.folder, path, self.metadata.uuid, writable=False)
            self.counters.check()
        except (GymReplayError, OSError) as error:
            self._fail(COUNTERS, error)
            return
        try:
            self._open_columns()
            self._check_table()
        finally:
            for column in self._columns.values():
                column.close()

    def _fail(self, file: str, error: Exception) -> None:
        _raise_unless_of_file(error, self.folder / file)
        rule = 14 if isinstance(error, CheckValueError) else 10
        self.failure = error if isinstance(error, GymReplayError) else GymReplayError(str(error))
        self.fault(rule, file, str(error))

    def _open_columns(self) -> None:
        for path, (dtype, shape) in self.metadata.columns.items():
            actual = current_path(self.folder, self.metadata, path)
            try:
                column = ColumnWriter.open(self.folder, actual, dtype, shape, read_only=True)
            except (GymReplayError, OSError) as error:
                _raise_unless_of_file(error, self.folder / path)
                self.fault(self._rule_of(path, error), path, str(error))
                continue
            self._columns[path] = column
            self._check_standard(path, actual, column)

    def _rule_of(self, path: str, error: Exception) -> int:
        """Which rule a column that cannot be opened breaks."""
        place = self.folder / path
        if any(part.is_symlink() for part in (place, *place.parents) if part.is_relative_to(self.folder)):
            return 10
        return 2 if "object" in str(error) else 1

    def _check_standard(self, path: str, actual: str, column: ColumnWriter) -> None:
        """Whether NumPy itself maps the file, with no fewer rows than the header says."""
        try:
            with os.fdopen(open_beneath(self.folder, actual, os.O_RDONLY), "rb"):
                np.load(self.folder / actual, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, OverflowError, EOFError, GymReplayError) as error:
            _raise_unless_of_file(error, self.folder / path)
            if getattr(error, "errno", None) != errno.ENOMEM:  # for want of address space here, not a fault of the file
                self.fault(1, path, f"numpy.load cannot map it: {error}")

    def _check_table(self) -> None:
        metadata, counters, table = self.metadata, self.counters, self._columns.get(EPISODES)
        if table is None:
            return
        capacity, count = metadata.table_capacity, counters.next - counters.first
        if capacity is not None and count > capacity:
            self.bad_record = counters.first + capacity
            self.fault(10, COUNTERS, f"{count} live episodes in a table of {capacity} slots", self.bad_record)
        end = counters.next if self.bad_record is None else self.bad_record
        runs, slots = [np.zeros(0, table.dtype)], [np.empty(0, np.int64)]
        for ids, slot in record_runs(counters.first, end, counters.base, capacity, metadata.record.nbytes):
            present = min(max(table.capacity - slot, 0), len(ids))
            records = table.read_array(slot, present)
            wrong = ~metadata.record.are_sound(records, ids[:present])
            sound = int(np.argmax(wrong)) if wrong.any() else present
            runs.append(records[:sound])
            slots.append(np.arange(slot, slot + sound))
            if sound < present:
                self._bad_from(int(ids[sound]), "does not match its check value")
            elif present < len(ids):
                self._bad_from(int(ids[present]), "is missing")
            if sound < len(ids):
                break
        self._check_records(np.concatenate(runs), np.concatenate(slots))

    def _check_records(self, records: npt.NDArray[Any], slots: Ints) -> None:
        ids, starts, lengths, flags = (records[name] for name in ("id", "start", "length", "flags"))
        impossible = (lengths < 1) | (starts < 0) | (lengths >= 1 << 60) | (starts >= 1 << 60)
        for episode in ids[impossible].tolist():
            self._bad_from(episode, "has a negative start or no transition")
        unknown = flags & np.uint8(255 - HAS_FINAL - COMPLETE - DELETED)
        for episode in ids[(unknown != 0) & ((flags & DELETED) == 0)].tolist():
            self.fault(10, EPISODES, f"episode {episode} has unknown flags", episode)
        keep = ~impossible & (ids < (self.bad_record if self.bad_record is not None else 1 << 62))
        live = keep & ((flags & DELETED) == 0)
        self._check_rows(records[live], slots[live])

    def _bad_from(self, episode: int, what: str) -> None:
        self.fault(11, EPISODES, f"the record of episode {episode} {what}", episode)
        self.bad_record = episode if self.bad_record is None else min(self.bad_record, episode)

    def _check_rows(self, records: npt.NDArray[Any], slots: Ints) -> None:
        metadata = self.metadata
        ids, starts, rows = records["id"], records["start"], records["length"] + metadata.has_state
        self._update(num_episodes=len(ids))
        for one, other in _overlaps(starts, starts + rows):
            pair = f"episodes {ids[one]} and {ids[other]} share rows"
            self.fault(3, EPISODES, pair, int(max(ids[one], ids[other])))
        for episode in [] if metadata.circular else ids[1:][np.diff(starts) < 0].tolist():
            if episode not in self.bad_episodes:
                self.fault(3, EPISODES, f"episode {episode} lies before an older one", episode)
        for name in metadata.fields:
            path = metadata.rows_path(name)
            column = self._columns.get(path)
            if column is None:
                continue
            for episode in ids[starts + rows > column.capacity].tolist():
                self.fault(1, path, f"rows of episode {episode} are missing", episode, name)
            if metadata.fields[name].ragged:
                sound = starts + rows <= column.capacity
                self._check_spans(name, column, ids[sound], starts[sound], rows[sound])
        for name in metadata.text_fields:
            self._check_texts(name, ids, records[meta_column(name)])
        summed = ids < self.counters.summed
        self._update(without_checksum=ids[~summed].tolist())
        chosen = summed & ~np.isin(ids, list(self.bad_episodes))
        self._check_sums(ids[chosen], slots[chosen], starts[chosen], rows[chosen])

    def _check_spans(self, name: str, spans: ColumnWriter, ids: Ints, starts: Ints, rows: Ints) -> None:
        """Whether each episode's elements are there, one row after another, and no other episode's."""
        path, elements = spans_path(name), self._columns.get(values_path(name))
        if elements is None:
            return
        begins, ends = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
        for place, (episode, start, count) in enumerate(zip(ids.tolist(), starts.tolist(), rows.tolist(), strict=True)):
            fault = self._fault_of_spans(spans, elements, start, count)
            if fault is not None:
                self.fault(12, path, f"the elements of episode {episode} {fault}", episode, name)
                continue
            begin, total = elements_between(spans, start, count)
            begins[place], ends[place] = begin, begin + total
        own = ends > begins
        ids, begins, ends = ids[own], begins[own], ends[own]
        for one, other in _overlaps(begins, ends):
            pair = f"episodes {ids[one]} and {ids[other]} share elements"
            self.fault(12, path, pair, int(max(ids[one], ids[other])), name)

    def _fault_of_spans(self, spans: ColumnWriter, elements: ColumnWriter, start: int, rows: int) -> str | None:
        longest, begin, expected = PIECE // spans.row_nbytes, None, 0
        for row in range(0, rows, longest):
            part = spans.read_array(start + row, min(longest, rows - row))
            if part.min() < 0 or part.max() >= 1 << 60:
                return "have a negative place or number"
            if begin is None:
                begin = expected = int(part[0, 0])
            follow = np.concatenate(([expected], part[:-1].sum(axis=1)))
            if (part[:, 0] != follow).any():
                return "do not lie one row after another"
            expected = int(part[-1].sum())
        is_empty = expected == begin
        return None if is_empty or expected <= elements.capacity else "are missing"

    def _check_texts(self, name: str, ids: Ints, places: Ints) -> None:
        """Whether each record's string is there."""
        if STRINGS not in self._columns or len(ids) == 0:
            return
        column = Column(self.folder, current_path(self.folder, self.metadata, STRINGS), STRINGS_DTYPE)
        faults = {place: _fault_of_text(column, place) for place in np.unique(places).tolist()}
        for episode, place in zip(ids.tolist(), places.tolist(), strict=True):
            if fault := faults[place]:
                self.fault(13, STRINGS, f"the string {name!r} of episode {episode}: {fault}", episode, name)

    def _check_sums(self, ids: Ints, slots: Ints, starts: Ints, rows: Ints) -> None:
        fields = [name for name in self.metadata.fields if self._is_whole(name)]
        rows_paths = {name: self.metadata.rows_path(name) for name in fields}
        total = sum(self._columns[path].row_nbytes for path in rows_paths.values()) * int(rows.sum())
        sums = self._columns.get(CHECKSUMS)
        if sums is None:
            return
        if len(slots) and int(slots.max()) >= sums.capacity:
            self.fault(9, CHECKSUMS, "checksums that should be there are missing")
            return
        stored = sums.read_scattered(slots)
        with tqdm(total=total, unit="B", unit_scale=True, desc="check", disable=not self._progress) as bar:
            for name in fields:
                column = self._columns[rows_paths[name]]
                elements = self._columns[values_path(name)] if self.metadata.fields[name].ragged else None
                for part in _parts(rows * max(column.row_nbytes, 1)):
                    wrong = field_checksums(column, elements, starts[part], rows[part]) != stored[name][part]
                    for episode in ids[part][wrong].tolist():
                        message = f"the rows of episode {episode} in field {name!r} do not match their checksum"
                        self.fault(9, rows_paths[name], message, episode, name)
                    bar.update(int(rows[part].sum()) * column.row_nbytes)
        self._update(num_checked=len(ids))

    def _is_whole(self, name: str) -> bool:
        """Whether the field's files could be opened."""
        info = self.metadata.fields[name]
        paths = (spans_path(name), values_path(name)) if info.ragged else (step_path(name),)
        return all(path in self._columns for path in paths)


def _raise_unless_of_file(error: Exception, path: Path) -> None:
    """Raise an error that says nothing about a file: without descriptors or permission, nothing can be checked."""
    if isinstance(error, OSError) and error.errno in NOT_THE_FILES_FAULT:
        raise storage_error(error, path, 0) from error


def _fault_of_text(column: Column, place: int) -> str | None:
    try:
        read_strings(column, np.array([place]))
    except CorruptBufferError as error:
        return str(error)
    return None


def _overlaps(starts: Ints, ends: Ints) -> Iterable[tuple[int, int]]:
    """Places of intervals that begin before an earlier one has ended, each with the one that reaches furthest."""
    order = np.argsort(starts, kind="stable")
    reached = np.maximum.accumulate(ends[order])
    furthest = np.maximum.accumulate(np.where(ends[order] == reached, np.arange(len(order)), 0))
    late = np.flatnonzero(starts[order][1:] < reached[:-1]) + 1
    return zip(order[furthest[late - 1]].tolist(), order[late].tolist(), strict=True)


def _parts(nbytes: Ints) -> Iterable[slice]:
    """Stretches of episodes of some 64 MiB each, so that the bar moves."""
    ends = np.searchsorted(np.cumsum(nbytes), np.arange(1 << 26, int(nbytes.sum()) + (1 << 26), 1 << 26), side="right")
    edges = np.unique(np.concatenate(([0], ends, [len(nbytes)])))
    return [slice(low, high) for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]


def _ranges(ids: list[int]) -> str:
    array = np.array(ids)
    edges = np.flatnonzero(np.diff(array) != 1)
    firsts = array[np.concatenate(([0], edges + 1))].tolist()
    lasts = array[np.concatenate((edges, [len(array) - 1]))].tolist()
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True))


def _repair(check: _Check, *, progress: bool) -> list[str]:
    """Make the folder sound again; returns what was given up, and what was believed instead of what."""
    if check.report.faults[0].file == METADATA and not isinstance(check.failure, DamagedMetadataError):
        assert check.failure is not None
        raise check.failure
    lock = WriterLock(check.folder)
    folder = lock.directory
    try:
        metadata, dropped = _repair_metadata(folder)
        metadata = finish_switch(folder, metadata)
        dropped += _repair_headers(folder, metadata)
        dropped += _repair_counters(folder, metadata)
        for _ in range(_PASSES):  # a fault may show only after another one is mended
            again = _Check(check.folder, progress=progress)
            again.run()
            if again.failure is not None:
                raise again.failure
            if again.report.ok:
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


def _repair_counters(folder: Directory, metadata: Metadata) -> list[str]:
    """Find the episodes again where the counters are damaged."""
    try:
        Counters(folder, COUNTERS, metadata.uuid, writable=False).check()
    except CorruptBufferError as error:
        values = _counters_of_records(folder, metadata)
        replace_file(folder, COUNTERS, COUNTERS + NEW, encode_counters(metadata.uuid, values))
        _, _, first, end, *_ = values
        found = f"the records have the episodes {first}-{end - 1}" if end > first else "there are no records"
        return [f"the counters ({error}); {found}"]
    return []


def _counters_of_records(folder: Directory, metadata: Metadata) -> tuple[int, ...]:
    """Counters that make the newest episodes visible whose records are sound, follow one another and share no row."""
    table = ColumnWriter.open(folder, EPISODES, metadata.record.dtype)
    try:
        records = table.read_array(0, table.capacity)
    finally:
        table.close()
    sound = metadata.record.are_sound(records, records["id"])
    ids, slots = records["id"][sound], np.flatnonzero(sound)
    if len(ids) == 0:
        return metadata.revision, 0, 0, 0, 0, 0
    capacity = metadata.table_capacity
    base = int(ids[0] - slots[0]) if capacity is None else int(ids[0] - slots[0]) % capacity
    by_id = {int(records["id"][slot]): records[slot] for slot in slots.tolist()}
    in_place = {id_: record for id_, record in by_id.items() if id_ >= base}
    if capacity is None:  # the first damaged record ends what is believed, as it does for readers
        end = base
        while end in in_place:
            end += 1
        return metadata.revision, base, base, end, base, 0
    end = max(in_place) + 1
    taken: list[tuple[int, int]] = []
    first = end
    while (record := in_place.get(first - 1)) is not None and end - first < capacity:
        begin, stop = int(record["start"]), int(record["start"] + record["length"]) + metadata.has_state
        if any(begin < other_stop and other_begin < stop for other_begin, other_stop in taken):
            break
        taken.append((begin, stop))
        first -= 1
    return metadata.revision, base, first, end, first, 0


def _give_up(folder: Directory, metadata: Metadata, check: _Check) -> list[str]:
    """Let go of what a check found damaged."""
    dropped = []
    counters = Counters(folder, COUNTERS, metadata.uuid, writable=True)
    if (cut := check.bad_record) is not None:
        dropped.append(f"episodes {cut}-{counters.next - 1}, from the first damaged record on")
        counters.cut(cut)
    if bad := sorted(episode for episode in check.bad_episodes if episode < counters.next):
        dropped.append(f"episodes {_ranges(bad)}, whose rows are damaged")
        _delete(folder, metadata, counters, bad)
    if any(fault.episode is None and fault.rule == 9 for fault in check.report.faults):
        dropped.append("the checksums so far, some of which are missing; the next flush writes them anew")
        counters.put("summed", counters.base)
    return dropped


def _repair_headers(folder: Directory, metadata: Metadata) -> list[str]:
    """Give every file a header that says what it holds, and an empty file where there is none.

    The metadata has a check value and a header has none, so where they contradict one another, the metadata counts.
    """
    dropped = []
    for path, (dtype, shape) in metadata.columns.items():
        try:
            column = ColumnWriter.open(folder, path, dtype, shape)
        except CorruptBufferError as error:
            if folder.is_plain_file(path):
                dropped.append(f"the header of a file ({error})")
                column = ColumnWriter.with_new_header(folder, path, dtype, shape)
            elif not folder.exists(path):
                dropped.append(f"{path}, which is missing")
                column = ColumnWriter.create(folder, path, dtype, shape)
            else:
                raise  # a directory or a link: not ours to remove
        else:
            column.set_rows(column.capacity)
        column.close()
    return dropped


def _delete(folder: Directory, metadata: Metadata, counters: Counters, episodes: list[int]) -> None:
    slots = slots_of(np.array(episodes, np.int64), counters.base, metadata.table_capacity)
    table = ColumnWriter.open(folder, EPISODES, metadata.record.dtype)
    try:
        records = table.read_scattered(slots)
        records["flags"] |= DELETED
        table.write_scattered(slots, metadata.record.signed(records))
    finally:
        table.close()
    counters.put("deletions", counters.deletions + 1)

"""Changes to stored episodes: made on copies of whole columns, which then take the old ones' places together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.checksums import field_checksums
from gym_replay.buffer.storage.columns import PIECE, ColumnWriter
from gym_replay.buffer.storage.layout import (
    NEW,
    Metadata,
    spans_path,
    step_path,
    values_path,
)
from gym_replay.buffer.storage.ragged import SPAN, Ragged, spans_of
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.buffer.storage.records import CHECKSUMS, DELETED, EPISODES, meta_column
from gym_replay.buffer.storage.strings import STRINGS, STRINGS_DTYPE, StringWriter
from gym_replay.buffer.storage.writer import FolderWriter
from gym_replay.errors import FieldError, StorageError
from gym_replay.schema.fields import Field, encode_text, widened

Rows = npt.NDArray[Any] | Ragged
"""Rows of several episodes of one field, one episode after another: ``(sum of rows, *field.shape)``."""


def update(
    writer: FolderWriter,
    snapshot: Snapshot,
    episodes: npt.NDArray[np.int64],
    rows: Mapping[str, tuple[Rows, npt.NDArray[np.int64]]],
    meta: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Replace rows and meta values of episodes, all or nothing.

    Args:
        episodes: indices into the snapshot.
        rows: per field the new rows, and how many of them each episode gets, from its first row on.
        meta: per meta field the new values, one per episode.
    """
    taken = snapshot.lengths[episodes] + writer.metadata.has_state
    starts, slots = snapshot.starts[episodes], snapshot.slots[episodes]
    with writer.preparing(), _Copies(writer) as copies:
        writer.fill_checksums()
        for name, (values, counts) in rows.items():
            if isinstance(values, Ragged):
                _rewrite_ragged(copies, writer.metadata.fields[name], name, snapshot, (episodes, values, counts))
                continue
            column = copies.copy(step_path(name))
            _write_rows(column, starts, counts, values)
            copies.put_checksums(name, slots, field_checksums(column, None, starts, taken))
        if meta:
            _rewrite_records(copies, slots, meta)
        if any(writer.metadata.meta_fields[name].is_text for name in meta):
            # Whoever goes on to look at what was needs the old strings, whose place the next ones may take here.
            copies.copy(STRINGS)
    writer.switch(writer.metadata, copies.paths)


def compact_strings(writer: FolderWriter, snapshot: Snapshot) -> None:
    """Write the strings of the live episodes to a new file, so that those of episodes that have left take no room."""
    with writer.preparing(), _Copies(writer) as copies:
        writer.fill_checksums()
        strings = StringWriter(copies.create(STRINGS, STRINGS_DTYPE), 0)
        meta = {}
        for name in writer.metadata.text_fields:
            places = [strings.put(encode_text(name, text)) for text in snapshot.meta(name).tolist()]
            meta[name] = np.frombuffer(b"".join(places), np.int64)
        _rewrite_records(copies, snapshot.slots, meta)
    writer.switch(writer.metadata, copies.paths)


def delete(writer: FolderWriter, snapshot: Snapshot, episodes: npt.NDArray[np.int64]) -> None:
    """Hide episodes, all or none, given by their index in the snapshot. A single one is one small write."""
    if len(episodes) <= 1:
        for slot in snapshot.slots[episodes].tolist():
            writer.delete_one(slot)
        return
    with writer.preparing(), _Copies(writer) as copies:
        table, slots = copies.table(EPISODES), snapshot.slots[episodes]
        records = table.read_scattered(slots)
        records["flags"] |= DELETED
        table.write_scattered(slots, writer.metadata.record.signed(records))
    writer.switch(writer.metadata, copies.paths)


def _rewrite_records(copies: _Copies, slots: npt.NDArray[np.int64], meta: Mapping[str, npt.NDArray[Any]]) -> None:
    """Give the records in these slots new meta values."""
    table = copies.table(EPISODES)
    records = table.read_scattered(slots)
    for name, values in meta.items():
        records[meta_column(name)] = values
    table.write_scattered(slots, copies.metadata.record.signed(records))


def add_fields(writer: FolderWriter, snapshot: Snapshot, fields: Mapping[str, tuple[Field, Rows | None]]) -> None:
    """Add columns, or store columns in a wider dtype, complete for all live episodes before anybody sees them.

    Args:
        fields: what each field is, and the rows of all live episodes, row T included where the schema has one; None
            for the default. A field that is there already takes another dtype, and its rows are converted: those of
            all episodes, and what is written of an episode that is still open.

    Raises:
        FieldError: a state field for episodes that have no row T, something else lies where a file should be, or a
            recorded value would change.
    """
    known = writer.metadata.fields
    metadata = replace(writer.metadata, fields={**known, **{name: info for name, (info, _) in fields.items()}})
    for name, (info, _) in fields.items():
        if name in known:
            _check_wider(name, known[name], info)
        else:
            _check_new(writer, name, info)
    with writer.preparing(), _Copies(writer, metadata) as copies:
        writer.fill_checksums()
        for name, (info, values) in fields.items():
            if name in known:
                _widen_field(copies, info, name, snapshot)
            else:
                _create_field(copies, info, name, snapshot, values)
    writer.switch(metadata, copies.paths)


def _check_wider(name: str, field: Field, wider: Field) -> None:
    if wider != replace(field, dtype=wider.dtype) or field.ragged:
        raise FieldError(f"field {name!r}: it is {field}, and only another dtype can be taken; got {wider}")


def _check_new(writer: FolderWriter, name: str, info: Field) -> None:
    if info.state and not writer.metadata.has_state:
        raise FieldError(
            f"field {name!r}: the buffer has no state field, so its episodes have no row T; pass state=False"
        )
    paths = (spans_path(name), values_path(name)) if info.ragged else (step_path(name),)
    for path in paths:
        if writer.directory.exists(path):
            raise FieldError(f"field {name!r}: {path} holds something else; move it away, or choose another name")


def _widen_field(copies: _Copies, wider: Field, name: str, snapshot: Snapshot) -> None:
    """Write all rows of a column in another dtype, also those behind the last episode."""
    column = copies.create(step_path(name), wider.dtype, wider.shape)
    stored = copies.stored(step_path(name))
    step = max(PIECE // max(stored.row_nbytes, 1), 1)
    for first in range(0, stored.capacity, step):
        rows = stored.read_array(first, min(step, stored.capacity - first))
        if any(rows.tobytes()):  # an extended file holds zeros
            column.write(first, widened(name, rows, wider.dtype).tobytes())
    column.reserve(stored.capacity)
    taken = snapshot.lengths + copies.has_state
    copies.put_checksums(name, snapshot.slots, field_checksums(column, None, snapshot.starts, taken))


def _create_field(copies: _Copies, info: Field, name: str, snapshot: Snapshot, values: Rows | None) -> None:
    taken = snapshot.lengths + copies.has_state
    if info.ragged:
        none = Ragged.of_lengths(np.zeros(int(taken.sum()), np.int64), info.default_value())
        _write_ragged(copies, info, name, snapshot, values if isinstance(values, Ragged) else none)
        return
    column = copies.create(step_path(name), info.dtype, info.shape)
    if isinstance(values, np.ndarray):
        _write_rows(column, snapshot.starts, taken, values)
    else:
        default = info.default_value().tobytes()
        places = zip(snapshot.starts.tolist(), taken.tolist(), strict=True)
        for start, count in places if any(default) else ():  # an extended file holds zeros
            _write_repeated(column, start, count, default)
    column.reserve(copies.end_row)
    copies.put_checksums(name, snapshot.slots, field_checksums(column, None, snapshot.starts, taken))


def _write_repeated(column: ColumnWriter, start: int, count: int, row: bytes) -> None:
    step = max(PIECE // max(len(row), 1), 1)
    for at in range(0, count, step):
        column.write(start + at, row * min(step, count - at))


def _write_rows(
    column: ColumnWriter, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], values: npt.NDArray[Any]
) -> None:
    at = 0
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        column.write(start, values[at : at + count].tobytes())
        at += count


def _rewrite_ragged(
    copies: _Copies,
    info: Field,
    name: str,
    snapshot: Snapshot,
    changes: tuple[npt.NDArray[np.int64], Ragged, npt.NDArray[np.int64]],
) -> None:
    """Write a ragged field anew for all live episodes, some of them changed.

    Args:
        changes: indices into the snapshot, the rows of these episodes one after another, and how many each gets.
    """
    episodes, values, counts = changes
    stored = snapshot.ragged(name)
    taken = snapshot.lengths + snapshot.metadata.has_state
    new = dict(zip(episodes.tolist(), np.cumsum(counts) - counts, strict=True))
    given = dict(zip(episodes.tolist(), counts.tolist(), strict=True))
    parts = []
    for place, (start, rows) in enumerate(zip(snapshot.starts.tolist(), taken.tolist(), strict=True)):
        kept = given.get(place, 0)
        if kept:
            parts.append(values[new[place] : new[place] + kept])
        parts.append(stored[start + kept : start + rows])
    _write_ragged(copies, info, name, snapshot, Ragged.concatenate(parts))


def _write_ragged(copies: _Copies, info: Field, name: str, snapshot: Snapshot, rows: Ragged) -> None:
    """Write a ragged field's files anew: the rows of all live episodes, one episode after another."""
    taken = snapshot.lengths + copies.has_state
    spans = copies.create(spans_path(name), SPAN, (2,))
    elements = copies.create(values_path(name), info.dtype, info.shape)
    counts, whole = rows.compact()
    elements.write(0, whole.tobytes())
    _write_rows(spans, snapshot.starts, taken, spans_of(counts))
    spans.reserve(copies.end_row)
    copies.put_checksums(name, snapshot.slots, field_checksums(spans, elements, snapshot.starts, taken))


class _Copies:
    """The changed columns under their new names; removed again where preparing them fails.

    Args:
        writer: of the buffer.
        metadata: as it will be; None where it stays.
    """

    def __init__(self, writer: FolderWriter, metadata: Metadata | None = None) -> None:
        self._writer = writer
        self.metadata = writer.metadata if metadata is None else metadata
        self._columns: dict[str, ColumnWriter] = {}

    @property
    def has_state(self) -> bool:
        """Whether an episode of T transitions takes T+1 rows."""
        return self._writer.metadata.has_state

    @property
    def end_row(self) -> int:
        """How many rows each new column must have: deleted episodes keep theirs."""
        return self._writer.end_row

    @property
    def paths(self) -> list[str]:
        return list(self._columns)

    def table(self, path: str) -> ColumnWriter:
        """A copy of one of the two tables, under its new name, made at the first call."""
        return self._columns[path] if path in self._columns else self.copy(path)

    def put_checksums(self, name: str, slots: npt.NDArray[np.int64], sums: npt.NDArray[np.uint32]) -> None:
        """Put the checksums of a field, which may be new, into a copy of their table."""
        table = self._columns.get(CHECKSUMS) or self._copy_checksums()
        rows = np.zeros(len(slots), table.dtype) if len(slots) == 0 else self._rows_up_to(table, slots)
        rows[name] = sums
        table.write_scattered(slots, rows)

    def _rows_up_to(self, table: ColumnWriter, slots: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        table.reserve(int(slots.max()) + 1)
        return table.read_scattered(slots)

    def _copy_checksums(self) -> ColumnWriter:
        dtype, _ = self.metadata.columns[CHECKSUMS]
        if dtype == self._writer.metadata.columns[CHECKSUMS][0]:
            return self.copy(CHECKSUMS)
        source, table = self._writer.column(CHECKSUMS), self.create(CHECKSUMS, dtype)
        step = max(PIECE // dtype.itemsize, 1)
        for first in range(0, source.capacity, step):
            old = source.read_array(first, min(step, source.capacity - first))
            new = np.zeros(len(old), dtype)
            for name in old.dtype.names or ():
                new[name] = old[name]
            table.write(first, new.tobytes())
        return table

    def stored(self, path: str) -> ColumnWriter:
        """A column as it is, to be read."""
        return self._writer.column(path)

    def copy(self, path: str) -> ColumnWriter:
        """A copy of a column, under its new name."""
        source = self._writer.column(path)
        target = self.create(path, source.dtype, source.shape)
        source.copy_to(target)
        return target

    def create(self, path: str, dtype: np.dtype[Any], shape: tuple[int, ...] = ()) -> ColumnWriter:
        """An empty column under its new name."""
        self._columns[path] = ColumnWriter.create(self._writer.directory, path + NEW, dtype, shape)
        return self._columns[path]

    def __enter__(self) -> _Copies:
        return self

    def __exit__(self, kind: object, *details: object) -> None:
        for path, column in self._columns.items():
            column.close()
            if kind is not None:
                with suppress(StorageError):
                    self._writer.directory.unlink(path + NEW)

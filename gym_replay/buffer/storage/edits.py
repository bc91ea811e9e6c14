"""Changes to stored episodes: new files beside the old ones, which then take their places together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.checksums import field_checksums
from gym_replay.buffer.storage.columns import PIECE, ColumnWriter
from gym_replay.buffer.storage.encoded import as_stored
from gym_replay.buffer.storage.layout import NEW, Metadata, paths_of, spans_path, step_path, values_path
from gym_replay.buffer.storage.ragged import Ragged, spans_of
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.buffer.storage.records import CHECKSUM, CHECKSUMS, DELETED, EPISODES, Ints, meta_column, slots_of
from gym_replay.buffer.storage.reference_returns import ReferenceReturns
from gym_replay.buffer.storage.strings import STRINGS, StringWriter
from gym_replay.buffer.storage.writer import FolderWriter
from gym_replay.errors import FieldError, StorageError
from gym_replay.schema.fields import Field, encode_text, require_codecs, widened

Rows = npt.NDArray[Any] | Ragged
"""Rows of several episodes of one field, one episode after another: ``(sum of rows, *field.shape)``."""


def update(
    writer: FolderWriter,
    snapshot: Snapshot,
    episodes: Ints,
    rows: Mapping[str, tuple[Rows, Ints]],
    meta: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Replace rows and meta values of episodes, all or nothing.

    Args:
        episodes: indices into the snapshot.
        rows: per field the new rows, and how many of them each episode gets, from its first row on.
        meta: per meta field the new values, one per episode.
    """
    changed = snapshot.only(episodes)
    derived = dict(writer.metadata.derived)
    for name in derived.keys() & rows.keys():
        left = np.setdiff1d(snapshot.ids[snapshot.ids >= derived[name]], changed.ids)
        derived[name] = int(left[0]) if len(left) else writer.counters.next
    with _changing(writer, replace(writer.metadata, derived=derived)) as change:
        for name, (values, counts) in rows.items():
            if isinstance(values, Ragged) or writer.metadata.fields[name].has_elements:
                change.write_elements(name, snapshot, _with_rows(snapshot, name, episodes, values, counts))
                change.sum_up(name, snapshot)
            else:
                _write_rows(change.copy(step_path(name)), changed.starts, counts, values)
                change.sum_up(name, changed)
        if meta:
            change.put_into_records(changed.slots, {meta_column(name): values for name, values in meta.items()})
        if any(writer.metadata.meta_fields[name].is_text for name in meta):
            # Whoever goes on to look at what was needs the old strings, whose place the next ones may take here.
            change.copy(STRINGS)


def compact_strings(writer: FolderWriter, snapshot: Snapshot) -> None:
    """Write the strings of the live episodes to a new file, so that those of episodes that have left take no room."""
    with _changing(writer) as change:
        strings = StringWriter(change.create(STRINGS), 0)
        columns = {}
        for name in writer.metadata.text_fields:
            texts = [encode_text(name, text) for text in snapshot.meta(name).tolist()]
            columns[meta_column(name)] = strings.put_each(texts)
        change.put_into_records(snapshot.slots, columns)


def delete(writer: FolderWriter, snapshot: Snapshot, episodes: Ints) -> None:
    """Hide episodes, all or none, given by their index in the snapshot. A single one is one small write."""
    deleted = snapshot.only(episodes)
    if len(deleted) <= 1:
        for slot in deleted.slots.tolist():
            writer.delete_one(slot)
        return
    with _changing(writer) as change:
        change.put_into_records(deleted.slots, {"flags": deleted.flags | DELETED})


def add_fields(
    writer: FolderWriter,
    snapshot: Snapshot,
    fields: Mapping[str, tuple[Field, Rows | None]],
    *,
    derived: bool = False,
) -> None:
    """Add columns, or store columns in a wider dtype, complete for all live episodes before anybody sees them.

    Args:
        fields: what each field is, and the rows of all live episodes, row T included where the schema has one; None
            for the default. A field that is there already takes another dtype, and its rows are converted: those of
            all episodes, and what is written of an episode that is still open.
        derived: whether episodes that are stored later have no values in these fields.

    Raises:
        FieldError: a state field for episodes that have no row T, something else lies where a file should be, or a
            recorded value would change.
    """
    known = writer.metadata.fields
    metadata = replace(
        writer.metadata,
        fields={**known, **{name: info for name, (info, _) in fields.items()}},
        derived={**writer.metadata.derived, **dict.fromkeys(fields if derived else (), writer.counters.next)},
    )
    for name, (info, _) in fields.items():
        _check_field(writer, name, info)
        require_codecs({name: info})
    with _changing(writer, metadata) as change:
        for name, (info, values) in fields.items():
            if name in known:
                _widen_field(change, info, name)
            else:
                _create_field(change, info, name, snapshot, values)
            change.sum_up(name, snapshot)


def change_meta_fields(
    writer: FolderWriter,
    snapshot: Snapshot,
    meta_fields: Mapping[str, Field],
    columns: Mapping[str, str | npt.NDArray[Any] | list[bytes]],
) -> None:
    """Write all records anew with other meta fields.

    Args:
        meta_fields: as they will be.
        columns: by meta field, the one whose values it takes, or a value for each live episode; of a string field the
            bytes of each string. Those that are not named keep what they have.
    """
    metadata = replace(writer.metadata, meta_fields=dict(meta_fields))
    metadata.check_sizes()
    takes_new_strings = any(isinstance(values, list) for values in columns.values())
    obsolete = [STRINGS] if writer.metadata.text_fields and not metadata.text_fields else []
    with _changing(writer, metadata, obsolete) as change:
        stored = change.stored(EPISODES)
        records = stored.read_array(0, stored.capacity)
        made = np.zeros(len(records), metadata.record.dtype)
        for name in ("id", "start", "length", "flags"):
            made[name] = records[name]
        # One more string field has its strings written to a new file, to which those of the others move.
        strings = StringWriter(change.create(STRINGS), 0) if takes_new_strings else None
        for name, info in metadata.meta_fields.items():
            column, source = made[meta_column(name)], columns.get(name, name)
            if isinstance(source, str) and not (info.is_text and strings is not None):
                column[:] = records[meta_column(source)]
                continue
            column[:] = info.default_value()
            if strings is not None and info.is_text:
                texts = (
                    [encode_text(name, text) for text in snapshot.meta(source)] if isinstance(source, str) else source
                )
                source = strings.put_each(texts)
            column[snapshot.slots] = source
        counters = writer.counters
        used = slots_of(np.arange(counters.first, counters.next), counters.base, metadata.table_capacity)
        made[used] = metadata.record.signed(made[used])
        change.create(EPISODES).write(0, made.tobytes())


def rename_field(writer: FolderWriter, name: str, new: str) -> None:
    """Give a field another name, and its files another path; they are copied.

    Raises:
        FieldError: something else lies where a file should be.
    """
    before = writer.metadata
    fields = {new if each == name else each: info for each, info in before.fields.items()}
    derived = {new if each == name else each: end for each, end in before.derived.items()}
    metadata = replace(before, fields=fields, derived=derived, environment=_environment_without(before, name))
    _refuse_foreign(writer, new, fields[new])
    old_paths, new_paths = before.paths_of(name), metadata.paths_of(new)
    with _changing(writer, metadata, old_paths) as change:
        for old_path, new_path in zip(old_paths, new_paths, strict=True):
            change.stored(old_path).copy_to(change.create(new_path))


def drop_field(writer: FolderWriter, name: str) -> None:
    """Remove a field and its files."""
    before = writer.metadata
    fields = {each: info for each, info in before.fields.items() if each != name}
    derived = {each: end for each, end in before.derived.items() if each != name}
    metadata = replace(before, fields=fields, derived=derived, environment=_environment_without(before, name))
    with _changing(writer, metadata, before.paths_of(name)) as change:
        change.take_sums()


def set_reference_returns(writer: FolderWriter, reference: ReferenceReturns | None) -> None:
    """Store other reference returns; None forgets them."""
    with _changing(writer, replace(writer.metadata, reference_returns=reference)):
        pass


def _environment_without(metadata: Metadata, name: str) -> dict[str, Any] | None:
    """The recorded environment without the space that a field is a part of."""
    part = f"{name.partition('.')[0]}_space"
    environment = metadata.environment
    return environment if environment is None or part not in environment else {**environment, part: None}


def _check_field(writer: FolderWriter, name: str, info: Field) -> None:
    """Raise FieldError where a field cannot be added, or cannot become another one."""
    if (field := writer.metadata.fields.get(name)) is not None:
        if info != replace(field, dtype=info.dtype) or field.has_elements:
            raise FieldError(f"field {name!r}: it is {field}, and only another dtype can be taken; got {info}")
        return
    if info.state and not writer.metadata.has_state:
        raise FieldError(
            f"field {name!r}: the buffer has no state field, so its episodes have no row T; pass state=False"
        )
    _refuse_foreign(writer, name, info)


def _refuse_foreign(writer: FolderWriter, name: str, info: Field) -> None:
    for path in paths_of(name, info):
        if writer.directory.exists(path):
            raise FieldError(f"field {name!r}: {path} holds something else; move it away, or choose another name")


def _widen_field(change: _Change, wider: Field, name: str) -> None:
    """Write all rows of a column in another dtype, also those behind the last episode."""
    stored, column = change.stored(step_path(name)), change.create(step_path(name))
    step = max(PIECE // max(stored.row_nbytes, 1), 1)
    for first in range(0, stored.capacity, step):
        rows = stored.read_array(first, min(step, stored.capacity - first))
        if any(rows.tobytes()):  # an extended file holds zeros
            column.write(first, widened(name, rows, wider.dtype).tobytes())
    column.reserve(stored.capacity)


def _create_field(change: _Change, info: Field, name: str, snapshot: Snapshot, values: Rows | None) -> None:
    taken = snapshot.lengths + snapshot.metadata.has_state
    default = info.default_value()
    if info.has_elements:
        change.write_elements(name, snapshot, _rows_of_new(info, taken, values))
        return
    column = change.create(step_path(name))
    row, end = default.tobytes(), change.end_row
    if isinstance(values, np.ndarray):
        _write_rows(column, snapshot.starts, taken, values)
    elif any(row):  # an extended file holds zeros
        step = max(PIECE // len(row), 1)
        for first in range(0, end, step):  # all rows: what is written of the open episode, too, holds the default
            column.write(first, row * min(step, end - first))
    column.reserve(end)


def _rows_of_new(info: Field, taken: Ints, values: Rows | None) -> Iterator[Ragged]:
    """The rows of a new field that has elements, as they are stored: of each live episode, which takes so many."""
    none = np.empty((0, *info.stored.shape), info.stored.dtype)
    for end, count in zip(np.cumsum(taken).tolist(), taken.tolist(), strict=True):
        if values is None:
            yield Ragged.of_lengths(np.zeros(count, np.int64), none)
        else:
            yield _stored(info, values[end - count : end])


def _with_rows(snapshot: Snapshot, name: str, episodes: Ints, values: Rows, counts: Ints) -> Iterator[Ragged]:
    """The rows of a field that has elements, as they are stored, of each live episode, with new ones where it changes.

    An episode may come in several parts.
    """
    stored, new = snapshot.stored(name), np.zeros((2, len(snapshot)), np.int64)
    new[:, episodes] = np.cumsum(counts) - counts, counts
    ends = snapshot.starts + snapshot.lengths + snapshot.metadata.has_state
    for start, end, first, count in zip(snapshot.starts.tolist(), ends.tolist(), *new.tolist(), strict=True):
        if count:
            yield _stored(snapshot.metadata.fields[name], values[first : first + count])
        yield stored[start + count : end]


def _stored(info: Field, values: Rows) -> Ragged:
    """Rows as a field that has elements stores them."""
    return values if isinstance(values, Ragged) else as_stored(info, values)


def _write_rows(column: ColumnWriter, starts: Ints, counts: Ints, values: npt.NDArray[Any]) -> None:
    """Write rows that lie one episode after another in ``values``, each episode's from its start on."""
    at = 0
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        column.write(start, values[at : at + count].tobytes())
        at += count


@contextmanager
def _changing(
    writer: FolderWriter, metadata: Metadata | None = None, obsolete: Sequence[str] = ()
) -> Iterator[_Change]:
    """Prepare new files; at the end of the context all of them count, together with the metadata.

    Args:
        writer: of the buffer.
        metadata: as it will be; None where it stays.
        obsolete: files that go.
    """
    change = _Change(writer, writer.metadata if metadata is None else metadata)
    with writer.preparing():
        try:
            yield change
            change.write_sums()
        except BaseException:
            for path in change.columns:
                with suppress(StorageError):
                    writer.directory.unlink(path + NEW)
            raise
        finally:
            for column in change.columns.values():
                column.close()
    writer.switch(change.metadata, list(change.columns), obsolete)


class _Change:
    """The changed columns under their new names.

    Attributes:
        metadata: as it will be.
        columns: by path.
    """

    def __init__(self, writer: FolderWriter, metadata: Metadata) -> None:
        self._writer, self.metadata = writer, metadata
        self.columns: dict[str, ColumnWriter] = {}
        self.end_row = writer.end_row
        """How many rows each new column must have: deleted episodes keep theirs."""
        self._sums: npt.NDArray[np.uint32] | None = None

    def stored(self, path: str) -> ColumnWriter:
        """A column as it is, to be read."""
        return self._writer.column(path)

    def create(self, path: str) -> ColumnWriter:
        """An empty column under its new name."""
        self.columns[path] = ColumnWriter.create(self._writer.directory, path + NEW, *self.metadata.columns[path])
        return self.columns[path]

    def copy(self, path: str) -> ColumnWriter:
        """A copy of a column, under its new name."""
        column = self.create(path)
        self.stored(path).copy_to(column)
        return column

    def write_elements(self, name: str, snapshot: Snapshot, rows: Iterable[Ragged]) -> None:
        """Write the files of a field that has elements anew: the rows of all live episodes, one episode after another.

        Args:
            name: the field.
            snapshot: the episodes.
            rows: those of all episodes as they are stored, in parts of which one is in memory at a time.
        """
        column, end, counts = self.create(values_path(name)), 0, [np.empty(0, np.int64)]
        for part in rows:
            lengths, elements = part.compact()
            column.write(end, elements.tobytes())
            end += len(elements)
            counts.append(lengths)
        spans, taken = self.create(spans_path(name)), snapshot.lengths + snapshot.metadata.has_state
        _write_rows(spans, snapshot.starts, taken, spans_of(np.concatenate(counts)))
        spans.reserve(self.end_row)

    def put_into_records(self, slots: Ints, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Give the records in these slots new values in some of their columns."""
        table = self.copy(EPISODES)
        records = table.read_scattered(slots)
        for name, values in columns.items():
            records[name] = values
        table.write_scattered(slots, self.metadata.record.signed(records))

    def sum_up(self, name: str, episodes: Snapshot) -> None:
        """Compute the checksums of a changed field of these episodes."""
        rows, *elements = (self.columns[path] for path in self.metadata.paths_of(name))
        taken = episodes.lengths + episodes.metadata.has_state
        found = field_checksums(rows, elements[0] if elements else None, episodes.starts, taken)
        self.take_sums()[episodes.slots, list(self.metadata.fields).index(name)] = found

    def take_sums(self) -> npt.NDArray[np.uint32]:
        """The checksums of all slots, for the fields that there will be: those there are, and zeros of new fields."""
        if self._sums is not None:
            return self._sums
        self._writer.fill_checksums()
        stored = self.stored(CHECKSUMS).read_array(0, self.stored(CHECKSUMS).capacity)
        before, after = list(self._writer.metadata.fields), list(self.metadata.fields)
        self._sums = np.zeros((len(stored), len(after)), CHECKSUM)
        for name in set(before) & set(after):
            self._sums[:, after.index(name)] = stored[:, before.index(name)]
        return self._sums

    def write_sums(self) -> None:
        """Write the checksums where some have changed."""
        if self._sums is not None:
            self.create(CHECKSUMS).write(0, self._sums.tobytes())

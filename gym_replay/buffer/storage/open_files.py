"""The files of a folder that is written to, as they belong together at one moment, and the commit.

A commit writes the rows of whole episodes, then their records, then the counter that makes them visible. Whoever sees
the counter sees the rest. A process that is killed before the counter is stored has changed nothing that anybody looks
at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.block import Block, EarlyRows, Rows
from gym_replay.buffer.storage.columns import PIECE, ColumnWriter
from gym_replay.buffer.storage.counters import Counters
from gym_replay.buffer.storage.encoded import encode_rows
from gym_replay.buffer.storage.layout import STEPS, Metadata, values_path
from gym_replay.buffer.storage.ragged import SPAN, Ragged, spans_of
from gym_replay.buffer.storage.reader import FolderReader
from gym_replay.buffer.storage.records import CHECKSUMS, DELETED, EPISODES, meta_column, slots_of
from gym_replay.buffer.storage.room import Room
from gym_replay.buffer.storage.strings import STRINGS, StringWriter
from gym_replay.files.directory import Directory
from gym_replay.files.writing import Buffer
from gym_replay.schema.fields import Field

STRINGS_RUN = 1 << 20
"""Bytes of strings from which on those of a ring's episodes that have left are removed."""

Elements: TypeAlias = "tuple[npt.NDArray[np.int64], Buffer]"
"""Rows of a field that has elements: how many each has, and the elements of all."""


class OpenFiles:
    """The open files of one revision, replaced by another object as a whole when the files change.

    Args:
        directory: the folder.
        metadata, counters, reader: of the revision.
        power: whether rows, then records, then the counter are on the disk before the next of them is written.

    Attributes:
        columns: the writers of all array files, by path.
        steps: those of the rows of each field, or its spans.
        elements: those of the elements of each field that has them.
        plain: of each field without elements the name, the writer of its rows, and the bytes of its default.
        table, sums: of the records, and of the checksums.
        room: what is live, and where the next episodes go.
        row_nbytes: bytes of one row of all fields.
        base, capacity: id of the episode in slot 0 of the table, and its slots; None where it grows.
        next_id: of the next episode.
        strings: takes the strings of meta fields, where there are any.
        most_strings: bytes of strings from which on those of a ring's episodes that have left are to be removed.
    """

    def __init__(
        self, directory: Directory, metadata: Metadata, counters: Counters, reader: FolderReader, *, power: bool
    ) -> None:
        self.metadata, self.counters, self._power = metadata, counters, power
        self.columns = {
            path: ColumnWriter.open(directory, path, dtype, shape) for path, (dtype, shape) in metadata.columns.items()
        }
        for column in self.columns.values():
            column.ordered = power
        self.steps = {name: self.columns[metadata.rows_path(name)] for name in metadata.fields}
        self.elements = {name: self.columns[values_path(name)] for name in metadata.element_fields}
        self.table, self.sums = self.columns[EPISODES], self.columns[CHECKSUMS]
        self.base, self.capacity, self.next_id = counters.base, metadata.table_capacity, counters.next
        self.row_nbytes = sum(column.row_nbytes for column in self.steps.values())
        self.plain = [
            (name, column, metadata.fields[name].default_value().tobytes())
            for name, column in self.steps.items()
            if name not in self.elements and column.row_nbytes
        ]
        self._reserved = 0  # rows that all of them have
        self._is_simple = not (metadata.circular or power or self.elements)
        ids = np.arange(counters.first, counters.next, dtype=np.int64)
        records = self.table.read_scattered(slots_of(ids, self.base, self.capacity))
        extents = records["start"], records["length"] + metadata.has_state, (records["flags"] & DELETED) != 0
        elements = {name: reader.elements_of(name, *extents) for name in metadata.element_fields}
        self.room = Room(metadata, counters, self.table, records, elements)
        self.strings: StringWriter | None = None
        self.most_strings = 0
        if metadata.text_fields:
            end = reader.end_of_strings(np.concatenate([records[meta_column(name)] for name in metadata.text_fields]))
            self.strings, self.most_strings = StringWriter(self.columns[STRINGS], end), max(2 * end, STRINGS_RUN)

    # --- rows ---

    def _write(self, rows: Mapping[str, Rows], first: int, end: int) -> None:
        """Write the rows of fields without elements, from row ``first`` to ``end - 1``."""
        if end > self._reserved:
            for column in self.steps.values():
                column.reserve(end)
            self._reserved = min([column.capacity for column in self.steps.values()], default=end)
        for name, column, default in self.plain:
            data = rows.get(name)
            column.write_reserved(first, default * (end - first) if data is None else data)

    def _write_elements(self, found: Mapping[str, Elements], row: int, firsts: Mapping[str, int]) -> None:
        """Write rows of fields with elements, from a row on, and their elements from the first one of each field on."""
        for name, (counts, content) in found.items():
            self.elements[name].write(firsts.get(name, 0), content)
            self.steps[name].write(row, spans_of(counts, firsts.get(name, 0)).tobytes())

    def _elements_of(self, rows: Mapping[str, Rows], count: int) -> dict[str, Elements]:
        """Of each field that has elements, ``count`` rows as they are stored."""
        fields = self.metadata.fields
        return {name: _as_elements(fields[name], rows.get(name, [b""] * count)) for name in self.elements}

    def write_early(self, rows: Mapping[str, Rows], length: int, early: EarlyRows) -> EarlyRows:
        """Write rows of an episode before its commit, behind those that were written before; what there is then.

        Args:
            rows: by field; fields that are missing hold their default.
            length: how many there are of each field.
            early: what there is so far.
        """
        row, found = early.end, self._elements_of(rows, length)
        self._write(rows, row, row + length)
        self._write_elements(found, row, _added(early.elements, early.counts))
        counts = _added(early.counts, {name: int(counts.sum()) for name, (counts, _) in found.items()})
        return early._replace(length=early.length + length, counts=counts)

    def _move(self, early: EarlyRows, row: int, firsts: Mapping[str, int]) -> None:
        """Copy what was written early to another row, and other elements, where a ring has room for all of it."""
        for name, count in early.counts.items():
            if firsts[name] != (before := early.elements.get(name, 0)):
                self._copy(self.elements[name], before, firsts[name], count)
        for name, column in self.steps.items():
            moved = firsts.get(name, 0) - early.elements.get(name, 0)
            if moved or row != early.row:
                self._copy(column, early.row, row, early.length, moved)

    def _copy(self, column: ColumnWriter, source: int, target: int, count: int, moved: int = 0) -> None:
        """Copy rows of a column; spans whose elements have moved follow them."""
        step = max(PIECE // max(column.row_nbytes, 1), 1)
        for first in range(0, count, step):
            rows = column.read_array(source + first, min(step, count - first))
            column.write(target + first, (rows + [moved, 0] if moved else rows).tobytes())

    # --- the commit ---

    def commit(self, block: Block) -> int:
        """Make the episodes of a block visible, the first of them under :attr:`next_id`; the bytes of their rows.

        Raises:
            StorageError: the operating system refused. Only where it refused to sync the counter is the block visible.
        """
        _, lengths, flags, meta, _, _, _ = block
        metadata, counters, first_id, steps = self.metadata, self.counters, self.next_id, sum(lengths)
        has_state = metadata.has_state
        count = steps + len(lengths) if has_state else steps
        if self._is_simple and block.early is None:
            start, nbytes = self.room.rows.end, count * self.row_nbytes
            self._write(block.rows, start, start + count)
        else:
            start, nbytes = self._write_anywhere(block, count)
        records = metadata.record.encode(first_id, start, lengths, flags, meta, self.strings, has_state=has_state)
        self.write_slots(self.table, first_id, records)
        if self._power:
            _sync([*([self.columns[STRINGS]] if self.strings else []), self.table])
        counters.put("next", first_id + len(lengths))
        self.next_id = first_id + len(lengths)
        if self._power:
            counters.sync()
        self.room.take(start, count, len(lengths), steps)
        return nbytes

    def _write_anywhere(self, block: Block, count: int) -> tuple[int, int]:
        """Write the rows of a block into a ring, synced, or of fields with elements; the first row, and their bytes."""
        metadata, room, early = self.metadata, self.room, block.early
        left = count if early is None else count - early.length
        found = self._elements_of(block.rows, left)
        elements = {name: _of_each(counts, block, name, metadata.has_state) for name, (counts, _) in found.items()}
        start, firsts = room.find(block.lengths, elements, early) if metadata.circular else room.end
        if self._power and metadata.circular:  # before rows of episodes that have left are overwritten
            self.counters.sync()
        if early is not None:
            self._move(early, start, firsts)
        self._write(block.rows, start + count - left, start + count)
        self._write_elements(found, start + count - left, _added(firsts, early.counts if early else {}))
        if self._power:
            _sync([*self.steps.values(), *self.elements.values()])
        nbytes = count * self.row_nbytes
        for name, counts in elements.items():
            room.take_elements(name, firsts[name], counts)
            nbytes += sum(counts) * self.elements[name].row_nbytes
        return start, nbytes

    def write_slots(self, column: ColumnWriter, first_id: int, rows: bytes | bytearray) -> None:
        """Write rows of the table, or of the checksums, of episodes with consecutive ids."""
        slot = first_id - self.base
        if self.capacity is not None:
            slot %= self.capacity
            fitting = (self.capacity - slot) * column.row_nbytes
            column.write(0, rows[fitting:])
            rows = rows[:fitting]
        column.write(slot, rows)

    # --- the end ---

    def rows_used(self) -> dict[str, int]:
        """By path, how many rows have been committed to each file."""
        slots = self.counters.next - self.base
        slots = slots if self.capacity is None else min(slots, self.capacity)
        used = {path: self.room.rows.highest if path.startswith(STEPS) else slots for path in self.columns}
        used |= {values_path(name): ring.highest for name, ring in self.room.elements.items()}
        return used if self.strings is None else used | {STRINGS: self.strings.end}

    def close(self) -> None:
        """Close the files."""
        for column in self.columns.values():
            column.close()


def _sync(columns: Iterable[ColumnWriter]) -> None:
    for column in columns:
        column.sync()


def _as_elements(field: Field, rows: Rows) -> Elements:
    """Rows of a field that has elements as they are stored: how many elements each has, and all elements."""
    if field.codec is not None and len(rows) and not isinstance(rows, Ragged):
        rows = encode_rows(field, rows)
    if isinstance(rows, np.ndarray):
        rows = Ragged.of_rows(rows.tolist(), field.dtype, field.shape)
    if isinstance(rows, Ragged):
        counts, elements = rows.compact()
        return counts, elements.data
    return np.fromiter(map(len, rows), SPAN, len(rows)) // field.stored.nbytes, b"".join(rows)


def _of_each(counts: npt.NDArray[np.int64], block: Block, name: str, has_state: bool) -> list[int]:
    """How many elements each episode of a block has of a field, whose last rows have these."""
    if block.early is not None:
        return [block.early.counts.get(name, 0) + int(counts.sum())]
    ends = np.cumsum(np.add(block.lengths, has_state))
    each: list[int] = np.add.reduceat(counts, [0, *ends[:-1]]).tolist()
    return each


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """The sums of numbers, by name."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in (*one, *other)}

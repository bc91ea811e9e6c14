"""The files of a folder that is written to, as they belong together at one moment, and the commit.

A commit writes the rows of whole episodes, then their records, then the counter that makes them visible. Whoever sees
the counter sees the rest. A process that is killed before the counter is stored has changed nothing that anybody looks
at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gym_replay.buffer.storage.block import Block, EarlyRows, Piece
from gym_replay.buffer.storage.columns import PIECE, ColumnWriter
from gym_replay.buffer.storage.counters import Counters
from gym_replay.buffer.storage.layout import STEPS, Metadata, values_path
from gym_replay.buffer.storage.ragged import moved_spans
from gym_replay.buffer.storage.reader import FolderReader
from gym_replay.buffer.storage.records import CHECKSUMS, DELETED, EPISODES, MetaColumn, meta_column, slots_of
from gym_replay.buffer.storage.room import Room
from gym_replay.buffer.storage.strings import STRINGS, StringWriter
from gym_replay.files.directory import Directory

STRINGS_RUN = 1 << 20
"""Bytes of strings from which on those of a ring's episodes that have left are removed."""


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
        table, sums: of the records, and of the checksums.
        room: what is live, and where the next episodes go.
        row_nbytes: bytes of one row of all fields.
        base, capacity: id of the episode in slot 0 of the table, and its slots; None where it grows.
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
        self.base, self.capacity = counters.base, metadata.table_capacity
        self.row_nbytes = sum(column.row_nbytes for column in self.steps.values())
        self._sizeless = [column for column in self.steps.values() if column.row_nbytes == 0]
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

    def slot(self, episode_id: int) -> int:
        """The slot of an episode's record."""
        slot = episode_id - self.base
        return slot if self.capacity is None else slot % self.capacity

    def write(self, pieces: Iterable[Piece], row: int, elements: Mapping[str, int]) -> None:
        """Write pieces of episodes with this first row, and this first element of each field that has them."""
        for name, is_elements, first, data in pieces:
            if is_elements:
                self.elements[name].write(elements.get(name, 0) + first, data)
            else:
                self.steps[name].write(row + first, moved_spans(data, elements[name]) if name in elements else data)

    # --- rows of an open episode ---

    def write_early(self, pieces: Iterable[Piece], early: EarlyRows) -> None:
        """Write pieces of an episode before its commit."""
        for piece in pieces:
            self.write([piece], early.row, early.elements)
            name, is_elements, first, data = piece
            column = self.elements[name] if is_elements else self.steps[name]
            early.counts[name, is_elements] = first + len(data) // max(column.row_nbytes, 1)

    def _early_pieces(self, early: EarlyRows, row: int, elements: Mapping[str, int]) -> Iterator[Piece]:
        """What was written early and lies elsewhere than from this row and these elements on."""
        for (name, is_elements), count in early.counts.items():
            base = early.elements.get(name, 0)
            if base == elements.get(name, 0) and (is_elements or early.row == row):
                continue
            column, begin = (self.elements[name], base) if is_elements else (self.steps[name], early.row)
            step = max(PIECE // max(column.row_nbytes, 1), 1)
            for first in range(0, count, step):
                data = column.read(begin + first, min(step, count - first))
                yield name, is_elements, first, moved_spans(data, -base) if base and not is_elements else data

    # --- the commit ---

    def commit(self, block: Block, first_id: int) -> int:
        """Make the episodes of a block visible, the first of them with this id; the bytes of their rows.

        Raises:
            StorageError: the operating system refused. Only where it refused to sync the counter is the block visible.
        """
        metadata, counters, room, early = self.metadata, self.counters, self.room, block.early
        lengths = block.lengths
        start, bases = room.find(lengths, block.elements, early) if metadata.circular else room.end
        if self._power and metadata.circular:  # before rows of episodes that have left are overwritten
            counters.sync()
        if early is not None:
            self.write(self._early_pieces(early, start, bases), start, bases)
        self.write(block.pieces, start, bases)
        rows = sum(lengths) + len(lengths) * metadata.has_state
        for column in self._sizeless:
            column.reserve(start + rows)
        if self._power:
            _sync([*self.steps.values(), *self.elements.values()])
        self._write_records(block, first_id, start)
        if self._power:
            _sync([*([self.columns[STRINGS]] if self.strings else []), self.table])
        counters.put("next", first_id + len(lengths))
        if self._power:
            counters.sync()
        room.take(start, lengths)
        nbytes = rows * self.row_nbytes
        for name, counts in block.elements.items():
            room.take_elements(name, bases[name], counts)
            nbytes += sum(counts) * self.elements[name].row_nbytes
        return nbytes

    def write_slots(self, column: ColumnWriter, first_id: int, rows: bytes) -> None:
        """Write rows of the table, or of the checksums, of episodes with consecutive ids."""
        slot, fitting = self.slot(first_id), len(rows)
        if self.capacity is not None:
            fitting = min(fitting, (self.capacity - slot) * column.row_nbytes)  # the others begin at slot 0
        column.write(slot, rows[:fitting])
        if fitting < len(rows):
            column.write(0, rows[fitting:])

    def _write_records(self, block: Block, first_id: int, start: int) -> None:
        """Put the records of a block, whose rows begin at ``start``, into their slots."""
        metadata, record = self.metadata, self.metadata.record
        meta: dict[str, Any] = {**record.defaults, **block.meta}
        for name in metadata.text_fields:
            meta[name] = self._stored_strings(meta[name])
        content = record.encode(first_id, start, block.lengths, block.flags, meta, has_state=metadata.has_state)
        self.write_slots(self.table, first_id, content)

    def _stored_strings(self, texts: MetaColumn) -> Any:
        """What the records have of a string meta field; each string is written if it is new."""
        assert self.strings is not None
        if isinstance(texts, bytes):
            return self.strings.put(texts)
        offsets = {text: self.strings.put(text) for text in dict.fromkeys(texts)}
        return np.frombuffer(b"".join([offsets[text] for text in texts]), np.int64)

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

"""Writing the episode table: one record of an episode, over all of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.columns import ColumnWriter, write_each
from gym_replay.buffer.storage.episodes import RecordLayout, record_crc
from gym_replay.buffer.storage.layout import TABLE_DTYPES, Metadata, meta_path, table_path
from gym_replay.buffer.storage.strings import StringWriter

MetaColumn: TypeAlias = "npt.NDArray[Any] | Sequence[bytes] | bytes"
"""A meta field's values of several episodes, one along the first axis of each; strings one by one, or one for all."""

_AHEAD = 256
"""Slots that a value which comes again is written to at once."""

_LONGEST_AHEAD = 64
"""Bytes of such a value, at most, where many records are written together."""


class RecordWriter:
    """Writes records, the check value of each last.

    Much of a record is the same in one episode after another (no seed, the run, a flag). In a table that grows, such a
    value is written to the next slots as well, which nobody looks at before their records are complete, so that most
    records take half of the writes.

    Args:
        metadata: the schema.
        columns: the open files by path.
        strings: takes the values of string fields, where there are any.
    """

    def __init__(
        self, metadata: Metadata, columns: Mapping[str, ColumnWriter], strings: StringWriter | None = None
    ) -> None:
        self.strings = strings
        self._names = tuple(metadata.meta_fields)
        self._texts = [place for place, name in enumerate(self._names) if metadata.meta_fields[name].is_text]
        self.columns = [columns[meta_path(name)] for name in self._names]
        self.columns += [columns[table_path(name)] for name in TABLE_DTYPES]
        self._layout = RecordLayout([(info.dtype, info.shape) for info in metadata.meta_fields.values()])
        self._runs_ahead = metadata.table_capacity is None
        self._last: list[bytes] = [b""] * len(self.columns)
        self._until = [0] * len(self.columns)

    def write(self, slot: int, episode_id: int, start: int, length: int, flags: int, meta: Mapping[str, bytes]) -> None:
        """Put the record of an episode into a slot; ``meta`` has every meta field, of string fields the string."""
        values = [meta[name] for name in self._names]
        for place in self._texts:
            assert self.strings is not None
            values[place] = self.strings.put(values[place]).to_bytes(8, "little", signed=True)
        crc = record_crc(episode_id, start, length, flags, values)
        values += (
            start.to_bytes(8, "little"),
            length.to_bytes(8, "little"),
            flags.to_bytes(1, "little"),
            crc.to_bytes(4, "little"),
        )
        if not self._runs_ahead:
            write_each(self.columns, repeat(slot, len(values)), values)
            return
        last, until, columns, new = self._last, self._until, [], []
        self._until = [0] * len(values)  # until the writes are through, nothing is known to be there
        for place, value in enumerate(values):
            if value != last[place] or not value:
                last[place], until[place] = value, 0
            elif slot < until[place]:
                continue
            elif len(value) <= 8:
                until[place] = slot + _AHEAD
                value *= _AHEAD
            columns.append(self.columns[place])
            new.append(value)
        write_each(columns, repeat(slot, len(new)), new)
        self._until = until

    def write_all(
        self,
        first: int,
        turn: int,
        ids: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        flags: npt.NDArray[np.uint8],
        meta: Mapping[str, MetaColumn],
    ) -> None:
        """Put the records of several episodes, none of them deleted, into slots that follow one another.

        The first ``turn`` of them go to the slots from ``first`` on, the others to those from 0 on, as in a ring.
        """
        count = len(ids)
        values = [meta[name] for name in self._names]
        columns = [value if isinstance(value, np.ndarray) else self._places(value, count) for value in values]
        crcs = self._layout.crcs(ids, starts, lengths, flags, columns)
        data = [column.tobytes() for column in (*columns, starts, lengths, flags, crcs)]
        if turn < count:
            edges = [turn * column.row_nbytes for column in self.columns]
            rest = [each[edge:] for each, edge in zip(data, edges, strict=True)]
            write_each(self.columns, repeat(0, len(rest)), rest)
            data = [each[:edge] for each, edge in zip(data, edges, strict=True)]
        if not self._runs_ahead or count > _AHEAD // 2:
            self._until = [0] * len(data)
            write_each(self.columns, repeat(first, len(data)), data)
            return
        last, until, new_columns, new = self._last, self._until, [], []
        self._until = [0] * len(data)  # until the writes are through, nothing is known to be there
        for place, written in enumerate(data):
            value = written[: len(written) // count]
            if not 0 < len(value) <= _LONGEST_AHEAD or (count > 1 and written != value * count):
                last[place], until[place] = b"", 0
            elif value != last[place]:
                last[place], until[place] = value, 0
            elif first + count <= until[place]:
                continue
            else:
                written, until[place] = value * _AHEAD, first + _AHEAD
            new_columns.append(self.columns[place])
            new.append(written)
        write_each(new_columns, repeat(first, len(new)), new)
        self._until = until

    def _places(self, texts: Sequence[bytes] | bytes, count: int) -> npt.NDArray[np.int64]:
        """The place of each episode's string."""
        assert self.strings is not None
        put = self.strings.put
        if isinstance(texts, bytes):
            return np.full(count, put(texts), np.int64)
        return np.fromiter(map(put, texts), np.int64, count)

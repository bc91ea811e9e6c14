"""Writing the episode table: one record of an episode, over all of its files."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import repeat

from gym_replay.buffer.storage.columns import ColumnWriter, write_each
from gym_replay.buffer.storage.episodes import record_crc
from gym_replay.buffer.storage.layout import TABLE_DTYPES, Metadata, meta_path, table_path
from gym_replay.buffer.storage.strings import StringWriter

_AHEAD = 256
"""Slots that a value which comes again is written to at once."""


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

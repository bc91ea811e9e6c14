"""Writing the episode table: one record of an episode, over all of its files."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.columns import ColumnGroup, ColumnWriter
from gym_replay.buffer.storage.episodes import RecordLayout, pack_record
from gym_replay.buffer.storage.layout import TABLE_DTYPES, Metadata, meta_path, table_path
from gym_replay.buffer.storage.strings import StringWriter

MetaColumn: TypeAlias = "npt.NDArray[Any] | Sequence[bytes] | bytes"
"""A meta field's values of several episodes, one along the first axis of each; strings one by one. Or the
bytes of one value, or string, for all."""

_pack_crc = struct.Struct("<I").pack

_AHEAD = 256
"""Slots that a value which comes again is written to at once."""

_BLOCKS_AHEAD = 32
"""How many times the records that are written together, where that is more."""

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
        names = list(metadata.meta_fields)
        self._texts = [place for place, name in enumerate(names) if metadata.meta_fields[name].is_text]
        self._values_of: Callable[[Mapping[str, Any]], Iterable[Any]] = lambda meta: [meta[name] for name in names]
        if len(names) > 1:
            self._values_of = itemgetter(*names)
        self.columns = [columns[meta_path(name)] for name in names]
        self.columns += [columns[table_path(name)] for name in TABLE_DTYPES]
        self._layout = RecordLayout([(info.dtype, info.shape) for info in metadata.meta_fields.values()])
        self._runs_ahead = metadata.table_capacity is None
        self._last: list[bytes] = [b""] * len(self.columns)
        self._until = [0] * len(self.columns)
        # Below this slot only some values are new, where the others are what they were.
        self._steady_until = 0
        self._steady: Sequence[bytes] = ()
        self._steady_of: Callable[[Sequence[bytes]], Sequence[bytes]] = tuple
        self._new_of: Callable[[Sequence[bytes]], Sequence[bytes]] = tuple
        self._new_columns = self._all_columns = ColumnGroup(self.columns)
        # The same of many records that are written together: what they have in common, and the files of all else.
        self._common: list[bytes | None] = []
        self._common_until = 0
        self._own, self._own_places = self._all_columns, list(range(len(self.columns)))

    def write(self, slot: int, episode_id: int, start: int, length: int, flags: int, meta: Mapping[str, bytes]) -> None:
        """Put the record of an episode into a slot; ``meta`` has every meta field, of string fields the string."""
        values = [*self._values_of(meta)]
        if self.strings is not None:
            places = self.strings.places
            for text in self._texts:
                values[text] = places.get(values[text]) or self.strings.put(values[text])
        numbers = pack_record(episode_id, start, length, flags)
        values += numbers[8:16], numbers[16:24], numbers[24:], _pack_crc(crc32(numbers + b"".join(values)))
        if slot < self._steady_until and self._steady_of(values) == self._steady:
            self._new_columns.write(slot, slot + 1, self._new_of(values))
        elif self._runs_ahead:
            self._write_ahead(slot, values)
        else:
            self._all_columns.write(slot, slot + 1, values)

    def _write_ahead(self, slot: int, values: list[bytes]) -> None:
        last, until = self._last, self._until
        # Until the writes are through, nothing is known to be there.
        self._until, self._steady_until, self._common_until = [0] * len(values), 0, 0
        for place, value in enumerate(values):
            if value != last[place] or not value:
                last[place], until[place] = value, 0
            elif slot < until[place]:
                continue
            elif len(value) <= 8:
                until[place] = slot + _AHEAD
                value *= _AHEAD
            self._write_one(place, slot, value)
        self._until = until
        self._note_steady(slot, values)

    def _note_steady(self, slot: int, values: list[bytes]) -> None:
        steady = [place for place, end in enumerate(self._until) if end > slot + 1]
        others = [place for place, end in enumerate(self._until) if end <= slot + 1]
        if len(steady) > 1 and len(others) > 1:
            self._steady_of, self._new_of = itemgetter(*steady), itemgetter(*others)
            self._steady = self._steady_of(values)
            self._new_columns = ColumnGroup(self.columns[place] for place in others)
            self._steady_until = min(self._until[place] for place in steady)

    def write_all(
        self,
        first: int,
        turn: int,
        ids: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        flags: npt.NDArray[np.uint8] | bytes,
        meta: Mapping[str, MetaColumn],
    ) -> None:
        """Put the records of several episodes, none of them deleted, into slots that follow one another.

        The first ``turn`` of them go to the slots from ``first`` on, the others to those from 0 on, as in a ring.
        """
        count = len(ids)
        columns: list[Any] = [*self._values_of(meta)]
        for place in self._texts:
            columns[place] = self._places(columns[place])
        crcs = self._layout.crcs(ids, starts, lengths, flags, columns)
        columns += starts, lengths, flags, crcs
        if self._runs_ahead:
            self._write_all_ahead(first, count, columns)
            return
        self._until, self._steady_until = [0] * len(columns), 0
        data: list[bytes] = [column * count if type(column) is bytes else column.tobytes() for column in columns]
        if turn < count:
            edges = [turn * column.row_nbytes for column in self.columns]
            rest = [each[edge:] for each, edge in zip(data, edges, strict=True)]
            self._all_columns.write(0, count - turn, rest)
            data = [each[:edge] for each, edge in zip(data, edges, strict=True)]
        self._all_columns.write(first, first + turn, data)

    def _write_all_ahead(self, first: int, count: int, columns: Sequence[Any]) -> None:
        common = [column if type(column) is bytes and column else None for column in columns]
        if common != self._common or first + count > self._common_until:
            self._write_common(first, count, common)
        self._own.write(first, first + count, [columns[place] for place in self._own_places])

    def _write_common(self, first: int, count: int, common: list[bytes | None]) -> None:
        """Write what all of the next records have in common ahead, where it is not there yet."""
        last, until = self._last, self._until
        # Until the writes are through, nothing is known to be there.
        self._until, self._steady_until, self._common_until = [0] * len(common), 0, 0
        ahead = max(_AHEAD, _BLOCKS_AHEAD * count)
        for place, value in enumerate(common):
            if value is None:
                last[place], until[place] = b"", 0
                continue
            if value != last[place]:
                last[place], until[place] = value, 0
            if first + count > until[place]:
                times = ahead if len(value) <= _LONGEST_AHEAD else count
                self._write_one(place, first, value * times)
                until[place] = first + times
        if (own := [place for place, value in enumerate(common) if value is None]) != self._own_places:
            self._own, self._own_places = ColumnGroup(self.columns[place] for place in own), own
        self._common, self._until = common, until
        ends = [end for end, value in zip(until, common, strict=True) if value is not None]
        self._common_until = min(ends, default=0)

    def _write_one(self, place: int, slot: int, data: bytes) -> None:
        self.columns[place].reserve(slot + 1)  # values may have no bytes at all
        self.columns[place].write(slot, data)

    def _places(self, texts: Sequence[bytes] | bytes) -> npt.NDArray[np.int64] | bytes:
        """The place of each episode's string, or that of the one for all."""
        assert self.strings is not None
        put = self.strings.put
        return put(texts) if isinstance(texts, bytes) else np.frombuffer(b"".join(map(put, texts)), np.int64)

"""The record of an episode: one element of the structured array ``episodes.npy``.

A record is id, start, length, every meta value, and at its end the flags and a check value over all that comes before
it. Its length is a multiple of eight bytes, so that no page boundary divides flags and check value. The checksums of an
episode's rows are one row of another array, ``checksums.npy``, a uint32 for each field.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar
from zlib import crc32

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.strings import StringWriter
from gym_replay.errors import FieldError
from gym_replay.schema.fields import Field

EPISODES = "episodes.npy"
CHECKSUMS = "checksums.npy"
CHECKSUM = np.dtype("<u4")

HAS_FINAL = 1
"""Flag: row T holds the last observation."""
COMPLETE = 2
"""Flag: the episode was not cut by a reset or a close."""
DELETED = 4
"""Flag: hidden."""

RECORDS_AT_ONCE = 1 << 15
"""Records that are read in one piece, at most."""

Ints: TypeAlias = "npt.NDArray[np.int64]"
_Ids = TypeVar("_Ids", int, "npt.NDArray[np.int64]")
MetaColumn: TypeAlias = "npt.NDArray[Any] | Sequence[bytes] | bytes"
"""A meta field's values of several episodes, one along the first axis of each, of a string field its strings;
or the bytes of one value, or string, for all."""

_HEAD = ("id", "start", "length")
_TAIL = ("flags", "crc")
_PADDING = "reserved"
_TAIL_NBYTES = 5
_LONGEST_HEADER = 9_900
"""``numpy.load`` refuses an array whose header is longer than 10,000 characters."""

_pack_head = struct.Struct("<qqq").pack
_pack_flags = struct.Struct("<B").pack
_pack_tail = struct.Struct("<BI").pack
_pack_crc = struct.Struct("<I").pack


def meta_column(name: str) -> str:
    """The name of a meta field in the record: its own, unless the record has a column of that name."""
    return f"meta/{name}" if name in (*_HEAD, _PADDING, *_TAIL) else name


def record_dtype(meta_fields: Mapping[str, Field]) -> np.dtype[Any]:
    """The dtype of a record with these meta fields: packed, with zeros before the flags up to a multiple of 8.

    Raises:
        FieldError: there are so many meta fields that NumPy would refuse to load the array.
    """
    return _record_dtype(tuple((meta_column(name), info.dtype, info.shape) for name, info in meta_fields.items()))


@lru_cache(maxsize=64)  # of a thousand folders that are read as one, all have the same
def _record_dtype(meta: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]) -> np.dtype[Any]:
    columns: list[Any] = [*((name, "<i8") for name in _HEAD), *meta]
    if unused := -(np.dtype(columns).itemsize + _TAIL_NBYTES) % 8:
        columns.append((_PADDING, "u1", (unused,)))  # a column, since NumPy copies no bytes that lie between columns
    dtype = np.dtype([*columns, ("flags", "u1"), ("crc", "<u4")])
    length = len(repr(np.lib.format.dtype_to_descr(dtype)))
    if length > _LONGEST_HEADER:
        raise FieldError(
            f"{len(meta)} meta fields, with their names, take {length} characters in the header of a .npy file, of "
            f"which numpy.load takes {_LONGEST_HEADER}; use fewer or shorter names, or store several values as one"
        )
    return dtype


def salt_of(uuid: str) -> int:
    """What the check values of a buffer's records are combined with, so that another buffer's record is none."""
    return crc32(uuid.encode("utf-8", "surrogatepass"))


class RecordFormat:
    """Encodes and checks the records of one buffer.

    Args:
        meta_fields: the buffer's, in their order.
        uuid: the buffer's.

    Attributes:
        dtype: of one record.
        defaults: by meta field the bytes of its default, or string.
    """

    def __init__(self, meta_fields: Mapping[str, Field], uuid: str) -> None:
        self.dtype = record_dtype(meta_fields)
        self.nbytes = self.dtype.itemsize
        self._salt = salt_of(uuid)
        self.defaults = {
            name: b"" if info.is_text else info.default_value().tobytes() for name, info in meta_fields.items()
        }
        self._columns = [meta_column(name) for name in meta_fields]
        self._zeros = [bytes(info.nbytes) for info in meta_fields.values()]
        self._texts = [name for name, info in meta_fields.items() if info.is_text]
        self._padding = bytes(-(sum(info.nbytes for info in meta_fields.values()) + _TAIL_NBYTES) % 8)
        # All of a record but its check value, without copying it.
        parts = {"names": ["checked"], "formats": [f"V{self.nbytes - 4}"], "offsets": [0], "itemsize": self.nbytes}
        self._parts = np.dtype(parts)  # type: ignore[call-overload]
        self._model = self.signed(np.zeros(1, self.dtype)).tobytes()
        self._sum_of = 0, 0  # of so many sound records

    def encode(
        self,
        first_id: int,
        start: int,
        lengths: Sequence[int],
        flags: int | npt.NDArray[np.uint8],
        meta: Mapping[str, MetaColumn],
        strings: StringWriter | None,
        *,
        has_state: bool,
    ) -> bytes | bytearray:
        """Records of episodes whose ids, and whose rows, follow one another.

        Args:
            first_id, start: id and first row of the first episode.
            lengths: T of each.
            flags: of all episodes, or of each.
            meta: the meta fields; those that are missing hold their default. There may be others, which a recorder
                knows and the buffer does not keep.
            strings: takes the strings of meta fields, where there are any.
            has_state: whether an episode of T transitions takes T+1 rows.
        """
        values: dict[str, Any] = {**self.defaults, **meta}
        for name in self._texts:
            assert strings is not None
            texts = values[name]
            values[name] = strings.put(texts) if isinstance(texts, bytes) else strings.put_each(texts)
        each = list(map(values.__getitem__, self.defaults))
        flag = _pack_flags(flags if isinstance(flags, int) else flags[0])
        if len(lengths) == 1:
            content = b"".join((_pack_head(first_id, start, lengths[0]), *each, self._padding, flag))
            assert len(content) == self.nbytes - 4, "the meta values are not of the fields"
            return content + _pack_crc(crc32(content) ^ self._salt)
        same = [value if type(value) is bytes else zeros for value, zeros in zip(each, self._zeros, strict=True)]
        content = b"".join((_pack_head(0, 0, 0), *same, self._padding, flag, _pack_crc(0)))
        encoded = bytearray(content * len(lengths))
        records = np.frombuffer(encoded, self.dtype)
        records["id"] = np.arange(first_id, first_id + len(lengths))
        records["length"] = steps = np.array(lengths)
        rows = steps + has_state
        records["start"] = np.add.accumulate(rows) - rows + start
        if not isinstance(flags, int):
            records["flags"] = flags
        for column, value in zip(self._columns, each, strict=True):
            if type(value) is not bytes:
                records[column] = value
        self.signed(records)
        return encoded

    def signed(self, records: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The records, which were changed, with their check values; the array itself."""
        records["crc"] = self.crcs(records)
        return records

    def crcs(self, records: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
        """The check value that each record should have: zlib's CRC-32 of its bytes, combined with the uuid's."""
        content = np.ascontiguousarray(records).view(self._parts)["checked"].tolist()
        sums = np.fromiter(map(crc32, content), np.uint32, len(records))
        sums ^= np.uint32(self._salt)
        return sums

    def are_sound(self, records: npt.NDArray[Any], ids: Ints) -> npt.NDArray[np.bool_]:
        """Whether each record matches its check value and is that of the id which belongs into its slot."""
        named: npt.NDArray[np.bool_] = records["id"] == ids
        return named if self._match(records) else named & (self.crcs(records) == records["crc"])

    def _match(self, records: npt.NDArray[Any]) -> bool:
        """Whether all of them match their check values, as one sum shows it (``benchmarks.scale``, opening).

        Bytes followed by their own CRC-32 have the same CRC-32 whatever they are, and so have as many records one after
        another. Damage in one of them always changes the sum, damage in several as good as always, as with a check
        value of their own.
        """
        count = len(records)
        if self._sum_of[0] != count:
            self._sum_of = count, crc32(self._model * count)
        return crc32(np.ascontiguousarray(records).view(np.uint8).data) == self._sum_of[1]

    def tail_with(self, record: npt.NDArray[Any], flags: int) -> bytes:
        """The last bytes, flags and check value, that a record (``(1,)``) has with other flags."""
        changed = record.copy()
        changed["flags"] = flags
        return _pack_tail(flags, int(self.crcs(changed)[0]))

    @property
    def tail_offset(self) -> int:
        """Where the flags of a record begin."""
        return self.nbytes - _TAIL_NBYTES


def slots_of(ids: _Ids, base: int, capacity: int | None) -> _Ids:
    """The table slot of an id, or of each of several: ``(id - base) mod capacity``."""
    slots = ids - base
    return slots if capacity is None else slots % capacity


def record_runs(
    first: int, end: int, base: int, capacity: int | None, record_nbytes: int
) -> Iterator[tuple[Ints, int]]:
    """The ids from ``first`` to ``end - 1`` in runs whose records lie side by side, each with its first slot.

    Whoever reads a table run by run, and stops at the first damaged record, allocates no more than the sound records
    take, whatever the counters say.
    """
    longest = max(min(RECORDS_AT_ONCE, (1 << 24) // max(record_nbytes, 1)), 1)
    while first < end:
        slot = first - base if capacity is None else (first - base) % capacity
        until = min(end, first + longest)
        if capacity is not None:
            until = min(until, first + capacity - slot)
        yield np.arange(first, until, dtype=np.int64), slot
        first = until

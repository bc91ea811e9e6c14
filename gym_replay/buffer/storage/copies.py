"""Episodes of one folder as blocks for another one, read in large pieces, and compared with their checksums."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.block import Block, EarlyRows
from gym_replay.buffer.storage.checksums import field_checksums
from gym_replay.buffer.storage.columns import Column, ColumnWriter
from gym_replay.buffer.storage.encoded import Encoded, as_stored, undecodable
from gym_replay.buffer.storage.layout import Metadata, current_path, spans_path, step_path, values_path
from gym_replay.buffer.storage.ragged import SPAN, Ragged, misplaced, spans_of
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.buffer.storage.records import CHECKSUMS, DELETED, HAS_FINAL, RECORDS_AT_ONCE, Ints, MetaColumn
from gym_replay.buffer.storage.writer import FolderWriter
from gym_replay.errors import CorruptBufferError, StorageError
from gym_replay.files.threads import submit
from gym_replay.files.writing import read_at
from gym_replay.schema.fields import Field, encode_text

Sums: TypeAlias = npt.NDArray[np.uint32]
_Piece: TypeAlias = "tuple[str, int, bytes | memoryview]"

PIECE = 1 << 20
"""Bytes that are read at a time: what a processor's cache still holds when they are written."""

GAP = 1 << 14
"""Bytes between two episodes that are read along, since another call would take longer."""

BLOCK = 1 << 24
"""Bytes of rows that are committed at once."""

CONVERTED = 1 << 23
"""Bytes of decoded rows that are encoded at a time, by several threads."""


def copy_episodes(source: Snapshot, writer: FolderWriter) -> Iterator[int]:
    """Commit episodes to a new folder, which has some or all of their fields.

    Args:
        source: the episodes; of a reader that keeps its files open, checksums included.
        writer: of a buffer without limits, to which nobody else writes.

    Yields:
        How many episodes were copied now.

    Raises:
        CorruptBufferError: an episode does not match its checksum, or is damaged in another way; the message names it.
        EpisodeEvictedError: an episode left a circular buffer before it was copied.
        StaleFieldError: a derived field has no values for an episode yet.
        StorageError: the operating system refused to read or to write.
    """
    if len(source) == 0:
        return
    source.require_up_to_date(writer.metadata.fields)
    oldest, fields = int(source.ids[0]), writer.metadata.fields.values()
    width = sum(2 * SPAN.itemsize if info.has_elements else info.nbytes for info in fields)
    width += sum(info.nbytes for info in converted_fields(source.metadata, writer.metadata).values())
    parts = [*batches((source.lengths + writer.metadata.has_state) * width, BLOCK)]
    with ThreadPoolExecutor(1, "gym_replay copy") as thread:
        for part, following in zip(parts, [*parts[1:], slice(0)], strict=True):
            some = source.only(part)
            source.only(following).expect(writer.metadata.fields)
            summed = source.counters.summed  # before the sums are read: those below it are there
            try:
                source.require_live(oldest)
                with source.reader.hold():
                    some.expect(writer.metadata.fields)
                    pieces = CopiedPieces(some, writer.metadata, thread, EarlyRows(*writer.room.end))
                    with writer.preparing():
                        for path, row, data in pieces:
                            writer.column(path).write(row, data)
                    writer.commit(_block_of(some, writer.metadata, pieces))
                    _compare(some, writer.metadata, summed, pieces.sums)
            except CorruptBufferError:
                source.require_live(oldest)  # where it has left, what was read may be anything
                raise
            source.require_live(oldest)
            yield len(some)


def batches(nbytes: Ints, most: int) -> Iterator[slice]:
    """Stretches of episodes with these numbers of bytes: of ``most`` bytes in all, or a single one."""
    ends, first = np.cumsum(nbytes), 0
    while first < len(ends):
        fitting = int(np.searchsorted(ends, ends[first] - nbytes[first] + most, side="right"))
        last = min(max(fitting, first + 1), first + RECORDS_AT_ONCE)
        yield slice(first, last)
        first = last


class CopiedPieces:
    """The rows of episodes in pieces, which are written into another buffer's files before they are committed.

    A piece is the path of a file, a row (or element) of it, and bytes. While one is written, a thread goes on with the
    checksums of its episodes. Where the copy has another codec than the source, rows are decoded and encoded, and what
    was encoded is decoded again and compared.

    Attributes:
        converted: the fields that have another codec in the copy.
        early: where they lie in the copy once all were written.
        sums: by field, the checksum of each episode in the source once all were asked for.
    """

    def __init__(
        self, source: Snapshot, metadata: Metadata, thread: ThreadPoolExecutor, early: EarlyRows | None = None
    ) -> None:
        self._source, self._thread = source, thread
        self._taken = source.lengths + metadata.has_state
        self.converted = converted_fields(source.metadata, metadata)
        with_elements = [name for name in source.metadata.element_fields if name in metadata.fields]
        self._spans = {name: _elements_of(source, name, self._taken) for name in with_elements}
        self._counts = dict.fromkeys(metadata.element_fields, 0)
        self._counts |= {name: int(self._spans[name][2].sum()) for name in self._spans if name not in self.converted}
        self.early = (early or EarlyRows(0, {}))._replace(length=int(self._taken.sum()), counts=self._counts)
        self.sums = {name: np.zeros(len(source), np.uint32) for name in metadata.fields}

    def __iter__(self) -> Iterator[_Piece]:
        for name, sums in self.sums.items():
            pieces = self._stored(name, sums)
            if name in self.converted:
                deque(pieces, 0)  # for the sums, and to read with pread before a map is looked at
                pieces = self._converted(name, self.converted[name])
            yield from pieces

    def _stored(self, name: str, sums: Sums) -> Iterator[_Piece]:
        """The rows of a field as they lie in the source."""
        source, taken, row = self._source, self._taken, self.early.row
        if name in self._spans:
            spans, begins, totals = self._spans[name]
            sums[:] = _sums_of_spans(spans, taken)
            path, first = values_path(name), self.early.elements.get(name, 0)
            for at, data in self._rows(sums, source.columns[path], begins, totals):
                yield path, first + at, data
            yield spans_path(name), row, spans_of(spans[:, 1], first).data
        else:
            path = step_path(name)
            for at, data in self._rows(sums, source.columns[path], source.starts, taken):
                yield path, row + at, data

    def _converted(self, name: str, field: Field) -> Iterator[_Piece]:
        """The rows of a field as it is in the copy."""
        column, taken, first = self._source.column(name), self._taken, self.early.elements.get(name, 0)
        heads = np.cumsum(taken) - taken
        rows = np.repeat(self._source.starts - heads, taken) + np.arange(int(taken.sum()))
        step, end, lengths = max(1, CONVERTED // field.nbytes), 0, []
        for begin in range(0, len(rows), step):
            try:
                values = column[rows[begin : begin + step]]
            except CorruptBufferError as error:
                raise self._undecodable(name, rows, heads) or error from None
            if field.codec is None:
                yield step_path(name), self.early.row + begin, values.data
                continue
            counts, elements = _verified(name, field, values).compact()
            yield values_path(name), first + end, elements.data
            end += len(elements)
            lengths.append(counts)
        if field.codec is not None:
            self._counts[name] = end
            yield spans_path(name), self.early.row, spans_of(np.concatenate(lengths), first).data

    def _undecodable(self, name: str, rows: Ints, heads: Ints) -> CorruptBufferError | None:
        """What is to be said of the first row that cannot be decoded; None where they all can."""
        found = undecodable(self._source.metadata.fields[name], self._source.stored(name)[rows])
        if not found:
            return None
        index = int(np.searchsorted(heads, found[0][0], side="right")) - 1
        what = f"row {found[0][0] - int(heads[index])} of field {name!r} cannot be decoded: {found[0][1]}"
        return _damaged(self._source, index, what)

    def _rows(self, sums: Sums, column: Column, starts: Ints, counts: Ints) -> Iterator[tuple[int, bytes | memoryview]]:
        """Rows in pieces, each with the number of rows before it; their checksums go on from ``sums``."""
        at, some = 0, counts > 0
        edges = np.cumsum([0, *(counts * column.row_nbytes).tolist()])
        for data in read_rows(column, starts[some], counts[some]):
            summing = submit(self._thread, _sum_up, sums, edges, at, data)
            try:
                yield at // column.row_nbytes, data
            finally:
                summing.result()
            at += len(data)


def converted_fields(source: Metadata, copy: Metadata) -> dict[str, Field]:
    """The fields of a copy that have another codec than in the source."""
    return {name: info for name, info in copy.fields.items() if info.codec != source.fields[name].codec}


def _verified(name: str, field: Field, values: npt.NDArray[Any]) -> Ragged:
    """Rows encoded, which decode to what they were.

    Raises:
        StorageError: they do not.
    """
    stored = as_stored(field, values)
    if not field.is_lossy and Encoded(stored, field).tobytes() != values.tobytes():
        raise StorageError(errno.EIO, f"field {name!r}: the codec {field.codec} does not give back what it was given")
    return stored


def _sum_up(sums: Sums, edges: Ints, at: int, data: bytes | memoryview) -> None:
    """Go on with the checksums of episodes.

    Args:
        sums: of each episode, changed in place.
        edges: where the bytes of each episode begin, and where the last one's end.
        at: where ``data`` begins.
    """
    view, end = memoryview(data), at + len(data)
    first, last = np.searchsorted(edges, at, side="right") - 1, np.searchsorted(edges, end)
    bounds = np.clip(edges[first : last + 1], at, end) - at
    before = sums[first:last].tolist()
    sums[first:last] = [
        crc32(view[low:high], value) for (low, high), value in zip(pairwise(bounds.tolist()), before, strict=True)
    ]


def _block_of(source: Snapshot, metadata: Metadata, pieces: CopiedPieces) -> Block:
    """The episodes of a snapshot, whose pieces are written, as a block for a buffer with these metadata."""
    meta: dict[str, MetaColumn] = {}
    for name, info in metadata.meta_fields.items():
        values = source.meta(name)
        if info.is_text:
            encoded = {text: encode_text(name, text) for text in set(values)}
            meta[name] = [encoded[text] for text in values]
        else:
            meta[name] = np.ascontiguousarray(values, info.dtype)
    flags = source.flags & np.uint8(255 - DELETED - (0 if metadata.has_state else HAS_FINAL))
    sums = None if pieces.converted else pieces.sums  # which are those of the source
    return Block({}, source.lengths.tolist(), flags, meta, pieces.early, sums)


def _elements_of(source: Snapshot, name: str, taken: Ints) -> tuple[Ints, Ints, Ints]:
    """The spans of a field that has elements, moved to where the elements of these episodes lie one after another.

    And of each episode the first element in the source, and how many there are.
    """
    column = source.columns[spans_path(name)]
    spans = np.frombuffer(b"".join(read_rows(column, source.starts, taken)), SPAN).reshape(-1, 2)
    heads = np.cumsum(taken) - taken
    if len(bad := misplaced(spans, heads)):
        what = f"field {name!r}: {column.path}: elements are not one row after another"
        raise _damaged(source, int(bad[0]), what)
    return spans_of(spans[:, 1]), spans[heads, 0], np.add.reduceat(spans[:, 1], heads)


def _sums_of_spans(spans: Ints, taken: Ints) -> Sums:
    """The checksums of each episode's spans, counted from its first element."""
    edges = np.cumsum([0, *taken])
    relative = spans.copy()
    relative[:, 0] -= np.repeat(spans[edges[:-1], 0], taken)
    sums = np.zeros(len(taken), np.uint32)
    _sum_up(sums, edges * spans[0].nbytes, 0, relative.tobytes())
    return sums


def read_rows(column: Column, starts: Ints, counts: Ints) -> Iterator[bytes | memoryview]:
    """The rows ``starts[i] .. starts[i] + counts[i]`` for each i, one after another, in pieces.

    They are read with ``pread``: what the disk cannot deliver is an exception, which under a map it is not.

    Args:
        column: the file.
        starts, counts: int64, at least 1 row each.

    Raises:
        CorruptBufferError: the file has no such rows.
        StorageError: the operating system refused to read.
    """
    width = column.row_nbytes
    if len(starts) == 0 or width == 0:
        return
    ends = starts + counts
    apart = np.flatnonzero((starts[1:] < ends[:-1]) | (starts[1:] - ends[:-1] > GAP // width)) + 1
    longest = max(PIECE // width, 1)
    with column.opened(int(ends.max())) as (descriptor, offset):
        column.need(starts, ends)
        for low, high in pairwise([0, *apart.tolist(), len(starts)]):
            begin, end = int(starts[low]), int(ends[high - 1])
            kept = _kept(starts[low:high], ends[low:high])
            for row in range(begin, end, longest):
                rows = min(longest, end - row)
                try:
                    content = read_at(descriptor, rows * width, offset + row * width)
                except OSError as error:
                    reason = f"{error.strerror or error}: row {row} and those after it cannot be read"
                    raise StorageError(error.errno, reason, str(column.path)) from error
                if len(content) < rows * width:
                    raise CorruptBufferError(f"{column.path}: expected {rows} rows at row {row}, the file ends before")
                if kept is None:
                    yield content
                else:
                    mine = np.frombuffer(content, np.dtype((np.void, width)))[kept[row - begin : row - begin + rows]]
                    yield mine.view(np.uint8).data


def _kept(starts: Ints, ends: Ints) -> npt.NDArray[np.bool_] | None:
    """Which rows from the first start to the last end are an episode's; None for all."""
    gaps = starts[1:] - ends[:-1]
    if not gaps.any():
        return None
    runs = np.zeros(2 * len(starts) - 1, np.int64)
    runs[::2], runs[1::2] = ends - starts, gaps
    return np.repeat(np.arange(len(runs)) % 2 == 0, runs)


def _compare(source: Snapshot, metadata: Metadata, summed: int, sums: Mapping[str, Sums]) -> None:
    """Raise CorruptBufferError, which names an episode, where the rows of one are not what was summed.

    Args:
        source: the episodes.
        metadata: of the copy.
        summed: the episodes with lower ids have checksums.
        sums: what was computed of what was read, by field.
    """
    known = np.flatnonzero(source.ids < summed)
    if len(known) == 0:
        return
    slots = source.slots[known]
    stored = source.columns[CHECKSUMS].view(int(slots.max()) + 1)[slots]
    # Where row T is left behind, what was summed is not what was copied.
    is_whole = source.metadata.has_state == metadata.has_state
    for at, name in enumerate(source.metadata.fields):
        if (found := sums.get(name)) is None:
            continue
        wrong = known[stored[:, at] != (found if is_whole else _sums_of(source, name))[known]]
        if len(wrong):
            more = f" (nor do those of {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            what = f"the rows of field {name!r} do not match their checksum{more}"
            raise _damaged(source, int(wrong[0]), what)


def _sums_of(source: Snapshot, name: str) -> npt.NDArray[np.uint32]:
    """The checksums of all rows of the episodes, row T included."""
    metadata, folder = source.metadata, source.reader.folder
    columns = [
        ColumnWriter.open(folder, current_path(folder, metadata, path), *metadata.columns[path], read_only=True)
        for path in metadata.paths_of(name)
    ]
    rows, elements = columns if len(columns) == 2 else (columns[0], None)
    sums = field_checksums(rows, elements, source.starts, source.lengths + metadata.has_state)
    for column in columns:
        column.close()
    return sums


def _damaged(source: Snapshot, index: int, what: str) -> CorruptBufferError:
    episode_id = source.ids[index]
    index = int(np.searchsorted(source.reader.last_snapshot().ids, episode_id))
    return CorruptBufferError(
        f"{source.reader.folder}: episode {index} (id {episode_id}) is damaged: {what}. Nothing was copied; "
        "check_buffer(folder) names all that is damaged, and with repair=True deletes such episodes"
    )

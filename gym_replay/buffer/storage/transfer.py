"""Rows carried from one file to another in large pieces, and summed on the way."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.columns import Column, ColumnWriter
from gym_replay.buffer.storage.ragged import SPAN
from gym_replay.errors import CorruptBufferError, StorageError

Ints = npt.NDArray[np.int64]
Sums = npt.NDArray[np.uint32]

PIECE = 1 << 20
"""Bytes read, summed and written at a time: what a processor's cache still holds when it is written."""

GAP = 1 << 14
"""Bytes that are read along between two episodes, where another read would take longer."""

SPAN_NBYTES = 2 * SPAN.itemsize

_THREAD_BYTES = 1 << 14
"""Bytes of an episode from which on a thread sums while this one writes: below, it is mostly Python that is run."""

Advance = Callable[[int], object]
"""Is told how many bytes were carried."""


class DamagedSpansError(CorruptBufferError):
    """The elements of an episode are not where its spans should say.

    Attributes:
        number: which of the episodes it is.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class RowTransfer:
    """Carries the rows of episodes from files to files; while a piece is written, a thread computes its checksums.

    Args:
        advance: is told of each piece.
    """

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._pool = ThreadPoolExecutor(1, "gym_replay copy")
        self._buffer = memoryview(mmap.mmap(-1, PIECE))

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()

    def rows(
        self, source: Column, starts: Ints, counts: Ints, target: ColumnWriter, at: int, sums: Sums | None = None
    ) -> Sums:
        """Write the rows ``starts[i] .. starts[i] + counts[i]`` of ``source`` for each i, one after another.

        Episodes that lie close to one another are read in one piece.

        Args:
            source, target: columns of one dtype and shape.
            counts: at least 1 each.
            at: the first row in ``target``.
            sums: checksums to go on from, for each i.

        Returns:
            CRC-32 (zlib's) of the rows of each i, uint32.

        Raises:
            CorruptBufferError: the source has no such rows.
            StorageError: the operating system refused to read or to write.
        """
        sums = np.zeros(len(starts), np.uint32) if sums is None else sums.copy()
        width = target.row_nbytes
        if len(starts) == 0:
            return sums
        target.reserve(at + int(counts.sum()))
        if width == 0:
            return sums
        longest = max(PIECE // width, 1)
        with _reader(source, int((starts + counts).max()), width) as reader:
            for first, last in _groups(starts, counts, longest, GAP // width):
                begin, end = int(starts[first]), int(starts[last - 1] + counts[last - 1])
                if last - first == 1:
                    sums[first] = self._long_run(reader, begin, end - begin, target, at, int(sums[first]))
                else:
                    content = reader.read(self._buffer, begin, end - begin)
                    content = _without_gaps(content, starts[first:last] - begin, counts[first:last], width)
                    sizes = (counts[first:last] * width).tolist()
                    sums[first:last] = self._write_summed(content, sizes, sums[first:last].tolist(), target, at)
                at += int(counts[first:last].sum())
        return sums

    def _long_run(self, reader: _Reader, begin: int, rows: int, target: ColumnWriter, at: int, value: int) -> int:
        """Carry the rows of one episode, and go on with its checksum."""
        longest = max(PIECE // target.row_nbytes, 1)
        for row in range(0, rows, longest):
            content = reader.read(self._buffer, begin + row, min(longest, rows - row))
            (value,) = self._write_summed(content, [len(content)], [value], target, at + row)
        return value

    def _write_summed(
        self, content: memoryview, sizes: list[int], values: list[int], target: ColumnWriter, at: int
    ) -> list[int]:
        """Write the bytes of several episodes, of these sizes; their checksums, going on from ``values``."""

        def sum_up() -> list[int]:
            bounds = zip(pairwise(accumulate(sizes, initial=0)), values, strict=True)
            return [crc32(content[low:high], value) for (low, high), value in bounds]

        if len(content) < _THREAD_BYTES * len(sizes):
            target.write(at, content)
            summed = sum_up()
        else:
            job = self._pool.submit(sum_up)
            try:
                target.write(at, content)
            finally:
                summed = job.result()  # before the next piece takes the place of this one
        self._advance(len(content))
        return summed

    def spans(
        self,
        source: Column,
        starts: Ints,
        counts: Ints,
        target: ColumnWriter,
        at: int,
        base: int,
    ) -> tuple[Sums, Ints, Ints]:
        """Write the spans of a ragged field as :meth:`rows` does, moved to where the elements will be from ``base`` on.

        Returns:
            Of each i the checksum of its spans, counted from its first element, and the first element and the number
            of elements in the source.

        Raises:
            DamagedSpansError: the elements of an episode do not lie one row after another.
        """
        sums, begins, totals = np.zeros(len(starts), np.uint32), np.zeros_like(starts), np.zeros_like(starts)
        if len(starts) == 0:
            return sums, begins, totals
        with _reader(source, int((starts + counts).max()), SPAN_NBYTES) as reader:
            for first, last in _groups(starts, counts, PIECE // SPAN_NBYTES, GAP // SPAN_NBYTES):
                part = slice(first, last)
                spans = self._read_spans(reader, starts[part], counts[part])
                heads = np.cumsum(counts[part]) - counts[part]
                begins[part] = spans[heads, 0]
                spans[:, 0] -= np.repeat(begins[part], counts[part])
                if len(bad := _bad_spans(spans, heads, counts[part])):
                    message = f"{source.path}: elements are not one row after another"
                    raise DamagedSpansError(first + int(bad[0]), message)
                totals[part] = spans[heads + counts[part] - 1].sum(axis=1)
                relative = memoryview(spans.tobytes())
                edges = [*(heads * SPAN_NBYTES).tolist(), len(relative)]
                sums[part] = [crc32(relative[low:high]) for low, high in pairwise(edges)]
                moved = base + np.cumsum(totals[part]) - totals[part]
                spans[:, 0] += np.repeat(moved, counts[part])
                target.write(at, spans.tobytes())
                self._advance(len(relative))
                base, at = base + int(totals[part].sum()), at + len(spans)
        return sums, begins, totals

    def _read_spans(self, reader: _Reader, starts: Ints, counts: Ints) -> Ints:
        """The spans of episodes that lie close to one another, ``(rows, 2)``, in memory of their own."""
        begin, rows = int(starts[0]), int(starts[-1] + counts[-1] - starts[0])
        content = reader.read(self._buffer, begin, rows)
        whole = _without_gaps(content, starts - begin, counts, SPAN_NBYTES)
        spans: Ints = np.frombuffer(whole, SPAN).reshape(-1, 2).copy()
        return spans


def _bad_spans(spans: Ints, heads: Ints, counts: Ints) -> Ints:
    """Of which episodes the spans do not follow one another from 0 on."""
    sizes = spans[:, 1]
    before = np.cumsum(sizes) - sizes
    wrong = (spans[:, 0] != before - np.repeat(before[heads], counts)) | (sizes < 0) | (sizes >= 1 << 60)
    bad: Ints = np.unique(np.searchsorted(heads, np.flatnonzero(wrong), side="right") - 1)
    return bad


@contextmanager
def _reader(column: Column, rows: int, width: int) -> Iterator[_Reader]:
    """Reads a column of which ``rows`` rows are needed."""
    with column.opened(rows) as place:
        yield _Reader(column.path, width, *place)


class _Reader:
    """Reads rows with ``pread``: what the disk cannot deliver is then an exception, which under a map it is not."""

    def __init__(self, path: Path, width: int, descriptor: int, offset: int) -> None:
        self._path, self._width, self._descriptor, self._offset = path, width, descriptor, offset

    def read(self, buffer: memoryview, row: int, rows: int) -> memoryview:
        """The bytes of ``rows`` rows from ``row`` on, at the beginning of ``buffer`` where it is large enough."""
        size, done = rows * self._width, 0
        content = buffer[:size] if size <= len(buffer) else memoryview(bytearray(size))
        position = self._offset + row * self._width
        while done < size:
            try:
                count = _read_into(self._descriptor, content[done:], position + done)
            except OSError as error:
                reason = f"{error.strerror or error}: row {row} and those after it cannot be read"
                raise StorageError(error.errno or errno.EIO, reason, str(self._path)) from error
            if count == 0:
                raise CorruptBufferError(f"{self._path}: expected {rows} rows at row {row}, the file ends before")
            done += count
        return content


def _read_into(descriptor: int, content: memoryview, position: int) -> int:
    """Read bytes at a position into a buffer; how many there were."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [content], position)
    piece = os.pread(descriptor, len(content), position)  # pragma: no cover
    content[: len(piece)] = piece  # pragma: no cover
    return len(piece)  # pragma: no cover


def _groups(starts: Ints, counts: Ints, longest: int, gap: int) -> Iterator[tuple[int, int]]:
    """Episodes to be read in one piece, as ``(first, last + 1)``: at most ``longest`` rows, or a single one."""
    ends = starts + counts
    apart = (starts[1:] < ends[:-1]) | (starts[1:] - ends[:-1] > gap)
    stretches = np.append(np.flatnonzero(apart) + 1, len(starts))
    first = 0
    for stop in stretches.tolist():
        while first < stop:
            fitting = int(np.searchsorted(ends[first:stop], starts[first] + longest, side="right"))
            last = first + max(fitting, 1)
            yield first, last
            first = last


def _without_gaps(content: memoryview, offsets: Ints, counts: Ints, width: int) -> memoryview:
    """The rows at ``offsets``, one episode after another; what lies between them is left out."""
    ends = np.cumsum(counts)
    if ends[-1] * width == len(content):
        return content
    rows = np.frombuffer(content, np.dtype((np.void, width)))
    taken = np.repeat(offsets - (ends - counts), counts) + np.arange(ends[-1])
    return memoryview(rows.take(taken).view(np.uint8).data)

"""One column: a standard ``.npy`` file over all rows, read through a map and written with ``pwrite``."""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import math
import os
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.maps import Stretch
from gym_replay.errors import CorruptBufferError
from gym_replay.files.directory import (
    Directory,
    Folder,
    open_beneath,
    refusal,
    storage_error,
    sync_descriptor,
)
from gym_replay.files.garbage import Descriptor
from gym_replay.files.writing import Buffer, read_at, write_at

FIRST_CHUNK = 1 << 16
LARGEST_CHUNK = 1 << 28
PIECE = 1 << 23
"""Bytes handled at a time where a column is copied or summed."""

LONGEST_HEADER = 1 << 14
_MAGIC = b"\x93NUMPY\x01\x00"
_MAGIC_3 = b"\x93NUMPY\x03\x00"
_HEAD_NBYTES_3 = 12
_GROWTH = 21
"""Characters that the number of rows may take in a header."""


def encode_header(dtype: np.dtype[Any], shape: tuple[int, ...], rows: int) -> bytes:
    """The ``.npy`` header of ``rows`` rows. Its length does not depend on ``rows``: NumPy leaves room to grow."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, *shape)}
    stream = io.BytesIO()
    if str(header).isascii():
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue()
    # Version 3 of the format, for column names that are not ASCII; NumPy has no public function for it alone.
    text = f"{header!r}"
    text += " " * (_GROWTH - len(str(rows)))
    content = text.encode()
    content += b" " * (-(len(content) + _HEAD_NBYTES_3 + 1) % 64) + b"\n"
    return _MAGIC_3 + len(content).to_bytes(4, "little") + content


def _decode_header(head: bytes, path: Path | str) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    begin, encoding = (_HEAD_NBYTES_3, "utf-8") if head[:8] == _MAGIC_3 else (10, "latin-1")
    length = int.from_bytes(head[8:begin], "little") + begin
    if head[:8] not in (_MAGIC, _MAGIC_3) or len(head) < begin or length > len(head):
        raise CorruptBufferError(f"{path}: no .npy header of version 1.0 or 3.0")
    try:
        header = ast.literal_eval(head[begin:length].decode(encoding).strip())
        descr, order, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        raise CorruptBufferError(f"{path}: the .npy header cannot be read") from None
    sizes_are_sound = isinstance(shape, tuple) and all(type(size) is int and 0 <= size < 1 << 62 for size in shape)
    if not isinstance(descr, (str, list)) or order is not False or not sizes_are_sound or not shape:
        raise CorruptBufferError(f"{path}: expected a C-ordered array of plain numbers, got {header!r:.200}")
    try:
        dtype = np.lib.format.descr_to_dtype(descr)  # type: ignore[arg-type]
    except (TypeError, ValueError, SyntaxError, LookupError, AttributeError, RecursionError, MemoryError):
        raise CorruptBufferError(f"{path}: unknown dtype {descr!r:.50}") from None
    if dtype.hasobject:
        raise CorruptBufferError(f"{path}: expected plain numbers, got objects")
    return dtype, shape, length


@lru_cache(maxsize=1024)
def _parts_of_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[bytes, bytes, int]:
    """What comes before and after the number of rows in a header as we write it, and the header's length."""
    header = encode_header(dtype, shape, 0)
    before, key, after = header.partition(b"'shape': (0")
    return before + key[:-1], after.rstrip(), len(header)


def _rows_in_header(head: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> int | None:
    """The rows that a header as we write it speaks of; None where it is another one, to be read as anybody's."""
    before, after, length = _parts_of_header(dtype, shape)
    digits, _, rest = head[len(before) : length].partition(b",")
    sound = head.startswith(before) and digits.isdigit() and len(digits) < 19 and rest.endswith(b"\n")
    return int(digits) if sound and b"," + rest.rstrip(b" \n") == after else None


def _check_header(descriptor: int, path: Path | str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows that the file really holds, and the header's length."""
    head = os.pread(descriptor, LONGEST_HEADER, 0)
    rows, row_nbytes = _rows_in_header(head, dtype, shape), dtype.itemsize * math.prod(shape)
    if rows is None or row_nbytes == 0:
        rows, length = _check_foreign_header(head, path, dtype, shape)
    else:
        length = _parts_of_header(dtype, shape)[2]
    if row_nbytes:
        rows = min(rows, max(os.fstat(descriptor).st_size - length, 0) // row_nbytes)
    return rows, length


def _check_foreign_header(
    head: bytes, path: Path | str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> tuple[int, int]:
    """Rows that the header speaks of, and its length."""
    found, full_shape, length = _decode_header(head, path)
    if found != dtype or full_shape[1:] != shape:
        raise CorruptBufferError(
            f"{path}: expected {dtype.name} rows of shape {shape}, got {found} rows of shape {full_shape[1:]!r:.100}"
        )
    rows, row_nbytes = full_shape[0], dtype.itemsize * math.prod(shape)
    if row_nbytes == 0 and rows * math.prod(max(size, 1) for size in shape) >= 1 << 59:
        raise CorruptBufferError(f"{path}: {rows} rows of shape {shape} are more than any array can have")
    return rows, length


class Column:
    """The reading side of one column. No file is open but while rows are mapped, and none is before they are asked for.

    Args:
        folder: the buffer's folder.
        relative: the file's path below it.
        dtype, shape: of one row.
        opener: opens the file, each time that more of it is to be mapped; by default by its path.
    """

    def __init__(
        self,
        folder: Folder,
        relative: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...] = (),
        *,
        opener: Callable[[], int] | None = None,
    ) -> None:
        self._folder, self._relative = folder, relative
        self.dtype, self.shape = dtype, shape
        self.row_nbytes = dtype.itemsize * math.prod(shape)
        self._open = opener or partial(open_beneath, folder, relative, os.O_RDONLY)
        self._rows, self._offset = -1, 0  # none is mapped yet

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._folder / self._relative

    @contextlib.contextmanager
    def _file(self) -> Iterator[int]:
        """The descriptor of the file."""
        try:
            descriptor = self._open()
        except FileNotFoundError:
            raise CorruptBufferError(f"{self.path}: the file is missing") from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _map(self, needed: int) -> None:
        """Map all rows that the file has, or ``needed`` ones where the address space does not take them all."""
        # A map may reach past the committed rows; only committed ones, which are fully written, are ever touched.
        with self._file() as descriptor:
            rows, self._offset = _check_header(descriptor, self.path, self.dtype, self.shape)
            if rows <= self._rows:
                return
            for count in (rows, min(rows, needed)):
                if count == 0 or self.row_nbytes == 0:
                    self._array, self._rows = self._without_bytes(0), count
                    return
                nbytes = self._offset + count * self.row_nbytes
                try:
                    stretch = Stretch(nbytes, descriptor)
                except OSError as error:
                    if error.errno == errno.ENOMEM and count > needed:
                        continue
                    raise storage_error(error, self.path, nbytes) from error
                self._array, self._rows = stretch.array(self._offset, self.dtype, (count, *self.shape)), count
                return

    def view(self, rows: int) -> npt.NDArray[Any]:
        """Read-only view of the first ``rows`` rows, ``(rows, *shape)``. Views stay good whatever becomes of the file.

        Raises:
            CorruptBufferError: the file holds fewer rows.
        """
        if rows > self._rows:
            self._require(rows, self.rows_held(rows))
        return self._array[:rows] if self.row_nbytes else self._without_bytes(rows)

    def mapped(self, rows: int) -> npt.NDArray[Any]:
        """:meth:`view`, in which of a file that is not all on this disk only what was asked for with ``need`` is there.

        Raises:
            CorruptBufferError: the file holds fewer rows.
        """
        return self.view(rows)

    def need(self, firsts: npt.NDArray[np.int64], lasts: npt.NDArray[np.int64]) -> None:
        """Have the rows ``firsts[i]`` to ``lasts[i] - 1`` there, for each i, where the file is not all on this disk."""

    def expect(self, firsts: npt.NDArray[np.int64], lasts: npt.NDArray[np.int64]) -> None:
        """Have somebody fetch the rows ``firsts[i]`` to ``lasts[i] - 1``, for each i, and do not wait for them."""

    def rows_held(self, rows: int) -> int:
        """How many rows there are to view, up to ``rows`` at least where the file holds them."""
        if rows > self._rows or self._rows < 0:
            self._map(rows)
        return self._rows

    def follow(self) -> None:
        """Map what the file has by now."""
        self._map(0)

    @contextlib.contextmanager
    def opened(self, rows: int) -> Iterator[tuple[int, int]]:
        """The descriptor of the file, which has at least so many rows, and where they begin in it.

        Raises:
            CorruptBufferError: the file is missing, is no such column, or holds fewer rows.
        """
        with self._file() as descriptor:
            held, offset = _check_header(descriptor, self.path, self.dtype, self.shape)
            self._require(rows, held)
            yield descriptor, offset

    def _require(self, rows: int, held: int) -> None:
        if rows > held:
            raise CorruptBufferError(f"{self.path}: expected at least {rows} rows, got {held}")

    def _without_bytes(self, rows: int) -> npt.NDArray[Any]:
        try:
            empty = np.empty((rows, *self.shape), self.dtype)
        except ValueError as error:
            raise CorruptBufferError(f"{self.path}: {rows} rows of shape {self.shape}: {error}") from None
        empty.flags.writeable = False
        return empty


class ColumnWriter:
    """The writing side of one column. Made by :meth:`create` or :meth:`open`."""

    ordered = False
    """Whether the file's size is on the disk before its header speaks of more rows, and a header that speaks of fewer
    before the file is cut, so that NumPy can map the file after a power loss at any moment."""

    def __init__(
        self, path: Path, descriptor: int, dtype: np.dtype[Any], shape: tuple[int, ...], capacity: int, offset: int
    ) -> None:
        self.path, self.dtype, self.shape = path, dtype, shape
        self.capacity = capacity
        self.row_nbytes = dtype.itemsize * math.prod(shape)
        self._file, self._offset = Descriptor(descriptor), offset

    @classmethod
    def create(
        cls, folder: Directory, relative: str, dtype: np.dtype[Any], shape: tuple[int, ...] = ()
    ) -> ColumnWriter:
        """Create (or empty) the file with no rows."""
        path = folder / relative
        header = encode_header(dtype, shape, 0)
        try:
            folder.make_parents(relative)
            descriptor = folder.open(relative, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        except OSError as error:
            raise storage_error(error, path, len(header)) from error
        column = cls(path, descriptor, dtype, shape, 0, len(header))
        try:
            write_at(descriptor, header, 0, path)
        except BaseException:
            column.close()
            folder.unlink(relative)
            raise
        return column

    @classmethod
    def open(
        cls,
        folder: Folder,
        relative: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...] = (),
        *,
        read_only: bool = False,
    ) -> ColumnWriter:
        """Open an existing file. A header that speaks of more rows than a power loss has left is put right.

        Raises:
            CorruptBufferError: the file is missing or is no such column.
        """
        path = folder / relative
        try:
            descriptor = open_beneath(folder, relative, os.O_RDONLY if read_only else os.O_RDWR)
        except FileNotFoundError:
            raise CorruptBufferError(f"{path}: the file is missing") from None
        column = cls(path, descriptor, dtype, shape, 0, 0)
        try:
            column.capacity, column._offset = rows, offset = _check_header(descriptor, path, dtype, shape)
            if not read_only and (_rows_in_header(os.pread(descriptor, offset, 0), dtype, shape) or 0) > rows:
                column.set_rows(rows)
        except BaseException:
            column.close()
            raise
        return column

    @classmethod
    def with_new_header(
        cls, folder: Folder, relative: str, dtype: np.dtype[Any], shape: tuple[int, ...] = ()
    ) -> ColumnWriter:
        """Open an existing file whose header is damaged, and give it the header of the rows that it has room for."""
        offset = len(encode_header(dtype, shape, 0))
        descriptor = open_beneath(folder, relative, os.O_RDWR)
        column = cls(folder / relative, descriptor, dtype, shape, 0, offset)
        column.set_rows(max(os.fstat(descriptor).st_size - offset, 0) // max(column.row_nbytes, 1))
        return column

    def write(self, row: int, data: Buffer) -> None:
        """Write whole rows, beginning at ``row``; the file grows as needed.

        Raises:
            StorageError: the disk is full, or the operating system refused for another reason.
        """
        if size := memoryview(data).nbytes:
            self.reserve(row + size // self.row_nbytes)
            self.write_reserved(row, data)

    def write_reserved(self, row: int, data: Buffer) -> None:
        """Write whole rows where the file has rows already."""
        write_at(self._file.number, data, self._offset + row * self.row_nbytes, self.path)

    def write_scattered(self, rows: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> None:
        """Write ``values[i]`` to ``rows[i]``, each stretch of neighbouring rows in one piece."""
        if len(rows) == 0:
            return
        order = np.argsort(rows, kind="stable")
        rows, values = rows[order], np.ascontiguousarray(values[order], self.dtype)
        edges = np.concatenate(([0], np.flatnonzero(np.diff(rows) != 1) + 1, [len(rows)]))
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            self.write(int(rows[low]), values[low:high].tobytes())

    def write_part(self, row: int, offset: int, data: bytes) -> None:
        """Write a part of an existing row, from its byte ``offset`` on."""
        write_at(self._file.number, data, self._offset + row * self.row_nbytes + offset, self.path)

    def read(self, row: int, rows: int) -> bytes:
        """The bytes of ``rows`` rows, beginning at ``row``."""
        wanted = rows * self.row_nbytes
        data = read_at(self._file.number, wanted, self._offset + row * self.row_nbytes)
        if len(data) < wanted:
            raise CorruptBufferError(f"{self.path}: expected {rows} rows at row {row}, the file ends before")
        return data

    def read_array(self, row: int, rows: int) -> npt.NDArray[Any]:
        """The rows as an array ``(rows, *shape)`` of its own."""
        return np.frombuffer(self.read(row, rows), self.dtype).reshape(rows, *self.shape)

    def read_scattered(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The given rows, in their order, ``(len(rows), *shape)``; all between them are read in one piece."""
        if len(rows) == 0:
            return np.empty((0, *self.shape), self.dtype)
        low = int(rows.min())
        return self.read_array(low, int(rows.max()) + 1 - low)[rows - low]

    def copy_to(self, target: ColumnWriter) -> None:
        """Let another column, which is empty, hold the same rows."""
        if self.row_nbytes == 0:
            target.set_rows(self.capacity)
            return
        target._extend(self.capacity, final=True)
        step = max(PIECE // self.row_nbytes, 1)
        for row in range(0, self.capacity, step):
            target.write(row, self.read(row, min(step, self.capacity - row)))

    def reserve(self, rows: int) -> None:
        """Make the file ``rows`` rows long at least: extend it, then say so in the header."""
        if rows <= self.capacity:
            return
        if self.row_nbytes == 0:
            self.set_rows(rows)
            return
        step = min(max(self.capacity * self.row_nbytes, FIRST_CHUNK), LARGEST_CHUNK) // self.row_nbytes
        generous = max(rows, self.capacity + step)
        if not self._extend(generous):
            self._extend(rows, final=True)

    def _extend(self, rows: int, *, final: bool = False) -> bool:
        try:
            os.ftruncate(self._file.number, self._offset + rows * self.row_nbytes)
        except OSError as error:
            if final:
                raise storage_error(error, self.path, (rows - self.capacity) * self.row_nbytes) from error
            return False
        if self.ordered:
            self.sync()
        self.set_rows(rows)
        return True

    def trim(self, rows: int) -> None:
        """Give back the room past ``rows`` rows: say so in the header, then cut the file."""
        if rows >= self.capacity:
            return
        self.set_rows(rows)
        if self.ordered:
            self.sync()
        if self.row_nbytes:
            try:
                os.ftruncate(self._file.number, self._offset + rows * self.row_nbytes)
            except OSError as error:
                raise refusal(error, self.path, "the room behind its last row could not be given back") from error

    def set_rows(self, rows: int) -> None:
        """Say in the header how many rows there are."""
        header = encode_header(self.dtype, self.shape, rows)
        if len(header) != self._offset:
            raise CorruptBufferError(f"{self.path}: the header has {self._offset} bytes, expected {len(header)}")
        write_at(self._file.number, header, 0, self.path)
        self.capacity = rows

    def sync(self) -> None:
        """Have the file's bytes on the disk before returning."""
        sync_descriptor(self._file.number, self.path)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

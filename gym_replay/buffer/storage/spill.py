"""What keeps the rows of a long open episode until its commit: the buffer's own files, or nameless ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gym_replay.buffer.storage.block import Piece
from gym_replay.buffer.storage.columns import PIECE
from gym_replay.buffer.storage.open_files import OpenFiles
from gym_replay.buffer.storage.ragged import SPAN
from gym_replay.files.directory import Directory, storage_error
from gym_replay.files.garbage import close_now, close_with
from gym_replay.files.writing import read_at, write_at
from gym_replay.schema.fields import Field, widened


class TailSpill:
    """Writes to where the episode will lie: behind the last committed row, where no reader looks.

    Args:
        files: gives the files as they are open now.
        begin_change: raises where the buffer cannot be written to.
    """

    def __init__(self, files: Callable[[], OpenFiles], begin_change: Callable[[], None]) -> None:
        self._files, self._begin_change = files, begin_change

    def write(self, piece: Piece) -> None:
        self._begin_change()
        files = self._files()
        files.write([piece], *files.end)

    def read(self, name: str, rows: int) -> bytes:
        files = self._files()
        return files.steps[name].read(files.end[0], rows)

    def pieces(self) -> Iterator[Piece]:
        """Nothing: all that was written lies where the episode does."""
        return iter(())

    def add_fields(self, fields: Mapping[str, Field]) -> None:
        """Nothing to do: the writer has opened their files, and converted what was in them."""

    def check(self, fields: Mapping[str, Field]) -> None:
        """Nothing to do: whoever converts the files will see."""

    def close(self) -> None:
        """Nothing to do: what was written lies where the episode does, or behind the last one."""


class _Nameless:
    """A file without a name, gone with this object or its process."""

    def __init__(self, folder: Directory) -> None:
        try:
            self.descriptor = close_with(self, folder.open_nameless())
        except OSError as error:
            raise storage_error(error, folder, 0) from error


@dataclass(frozen=True)
class _SpilledRows:
    """Rows, or elements, in a file: of which dtype, the first of them, and how many."""

    file: _Nameless
    dtype: np.dtype[Any]
    first: int
    count: int


class FileSpill:
    """Writes to nameless files in the folder: a ring finds the place only once the length is known."""

    def __init__(self, folder: Directory, fields: Mapping[str, Field], begin_change: Callable[[], None]) -> None:
        self._folder, self._begin_change = folder, begin_change
        self._fields = dict(fields)
        self._files: dict[tuple[str, bool], list[_SpilledRows]] = {}  # more than one where the dtype became wider

    def _kind(self, name: str, *, is_elements: bool) -> tuple[np.dtype[Any], int]:
        """The dtype and the bytes of a row, or element."""
        info = self._fields[name]
        return (SPAN, 2 * SPAN.itemsize) if info.ragged and not is_elements else (info.dtype, info.nbytes)

    def write(self, piece: Piece) -> None:
        self._begin_change()
        name, is_elements, first, data = piece
        dtype, width = self._kind(name, is_elements=is_elements)
        if not width or not data:
            return
        rows = self._files.get((name, is_elements), [])
        if not rows or rows[-1].dtype != dtype:
            rows = [*rows, _SpilledRows(_Nameless(self._folder), dtype, first, 0)]
            self._files[name, is_elements] = rows
        last = rows[-1]
        write_at(last.file.descriptor, data, (first - last.first) * width, self._folder.path)
        count = first - last.first + len(data) // width
        self._files[name, is_elements] = [*rows[:-1], replace(last, count=count)]

    def read(self, name: str, rows: int) -> bytes:
        _, width = self._kind(name, is_elements=False)
        found = bytearray(rows * width)
        for _, _, first, data in self._pieces_of((name, False), self._files.get((name, False), [])):
            found[first * width : first * width + len(data)] = data
        return bytes(found[: rows * width])

    def add_fields(self, fields: Mapping[str, Field]) -> None:
        self._fields |= fields

    def check(self, fields: Mapping[str, Field]) -> None:
        for name, info in fields.items():
            for _, _, _, data in self._pieces_of((name, False), self._files.get((name, False), [])):
                widened(name, np.frombuffer(data, self._fields[name].dtype), info.dtype)

    def pieces(self) -> Iterator[Piece]:
        """What is kept, in pieces that fit into memory."""
        for key, rows in self._files.items():
            yield from self._pieces_of(key, rows)

    def _pieces_of(self, key: tuple[str, bool], rows: Sequence[_SpilledRows]) -> Iterator[Piece]:
        name, is_elements = key
        dtype, width = self._kind(name, is_elements=is_elements)
        step = max(PIECE // max(width, 1), 1)
        for part in rows:
            stored_width = width // dtype.itemsize * part.dtype.itemsize
            for first in range(0, part.count, step):
                nbytes = min(step, part.count - first) * stored_width
                data = read_at(part.file.descriptor, nbytes, first * stored_width)
                if part.dtype != dtype:
                    data = np.frombuffer(data, part.dtype).astype(dtype).tobytes()
                yield name, is_elements, part.first + first, data

    def close(self) -> None:
        files, self._files = self._files, {}
        for rows in files.values():
            for part in rows:
                close_now(part.file.descriptor)

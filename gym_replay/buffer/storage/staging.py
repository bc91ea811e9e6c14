"""The open episode: rows kept as bytes until the commit, and written early where it grows long."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.columns import PIECE, ColumnWriter, storage_error
from gym_replay.buffer.storage.fields import Field

Row = tuple[bytes, ...]
"""One value's bytes per field, in the schema's order."""

CHUNK_BYTES = 1 << 23
CHUNK_ROWS = 1 << 14
RING_CHUNK_BYTES = 1 << 26


class Spill(Protocol):
    """Where rows of the open episode go before its commit."""

    def write(self, name: str, row: int, data: bytes) -> None:
        """Keep rows of a field, beginning at a row of the episode."""

    def read(self, name: str, row: int, rows: int) -> bytes:
        """The bytes of rows kept before."""

    def close(self) -> None:
        """The episode has ended: what is kept only for the commit can go."""


class TailSpill:
    """Writes to where the episode will lie: behind the last committed row, where no reader looks."""

    def __init__(self, columns: dict[str, ColumnWriter], start: int, check_owner: Callable[[], None]) -> None:
        self._columns, self.start, self._check_owner = columns, start, check_owner

    def write(self, name: str, row: int, data: bytes) -> None:
        self._check_owner()
        self._columns[name].write(self.start + row, data)

    def read(self, name: str, row: int, rows: int) -> bytes:
        return self._columns[name].read(self.start + row, rows)

    def close(self) -> None:
        """Nothing to do: what was written lies where the episode does, or behind the last one."""


class FileSpill:
    """Writes to nameless temporary files in the folder: a ring finds the place only once the length is known."""

    def __init__(self, folder: Path, row_nbytes: dict[str, int], check_owner: Callable[[], None]) -> None:
        self._folder, self._row_nbytes, self._check_owner = folder, row_nbytes, check_owner
        self._files: dict[str, Any] = {}

    def write(self, name: str, row: int, data: bytes) -> None:
        self._check_owner()
        try:
            if name not in self._files:
                self._files[name] = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
            view, position = memoryview(data), row * self._row_nbytes[name]
            while view:
                count = os.pwrite(self._files[name].fileno(), view[:PIECE], position)
                view, position = view[count:], position + count
        except OSError as error:
            raise storage_error(error, self._folder, len(data)) from error

    def read(self, name: str, row: int, rows: int) -> bytes:
        width = self._row_nbytes[name]
        return os.pread(self._files[name].fileno(), rows * width, row * width) if width else b""

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def __del__(self) -> None:
        self.close()


class Stage:
    """The transitions of the open episode.

    A transition is one tuple, appended in one operation: an interrupt between two bytecodes leaves whole
    transitions only. State fields can be given with the step that they precede (``initial`` is None, the last one
    comes through ``final``) or, as an environment gives them, after it (``initial`` is row 0, and each appended
    row carries the state that the step led to).

    Args:
        fields: the schema, in its order.
        spill: where long episodes are written to before their commit.
        chunk_bytes: how much is kept in memory before it is written early.
        initial: the first state's bytes, one per field in the schema's order and empty for fields without state.
    """

    def __init__(
        self, fields: dict[str, Field], spill: Spill, *, chunk_bytes: int = CHUNK_BYTES, initial: Row | None = None
    ) -> None:
        self.fields = fields
        self.spill = spill
        self.initial = initial
        self.final: Row | None = None
        self.commit_id: int | None = None  # the id under which a commit was begun
        self._names = list(fields)
        self._chunk: tuple[int, list[Row]] = (0, [])
        row_nbytes = max(sum(info.nbytes for info in fields.values()), 1)
        self._chunk_rows = max(min(CHUNK_ROWS, chunk_bytes // row_nbytes), 2)
        self._has_state = any(info.state for info in fields.values())

    def __len__(self) -> int:
        start, rows = self._chunk
        return start + len(rows)

    @property
    def has_final(self) -> bool:
        """Whether the state after the last transition is known."""
        return self.initial is not None or self.final is not None

    @property
    def num_rows(self) -> int:
        """Rows that the episode takes: T+1 where the schema has a state field, else T."""
        return len(self) + self._has_state

    def append(self, row: Row) -> None:
        """Add one transition; where writing early is refused, it is not added."""
        if len(self._chunk[1]) > self._chunk_rows:
            self._write_chunk()
        self._chunk[1].append(row)

    def make_room(self) -> tuple[Callable[[Row], None], int]:
        """The fast way to add transitions: a function that adds one, and how often it may be called."""
        if len(self._chunk[1]) > self._chunk_rows:
            self._write_chunk()
        rows = self._chunk[1]
        return rows.append, self._chunk_rows + 1 - len(rows)

    def replace_last(self, name: str, value: bytes) -> bytes:
        """Change one value of the last transition, which is never written early; returns what it was."""
        rows = self._chunk[1]
        at = self._names.index(name)
        before = rows[-1]
        rows[-1] = (*before[:at], value, *before[at + 1 :])
        return before[at]

    def _write_chunk(self) -> None:
        start, rows = self._chunk
        for name, first, data in self._pieces(rows[:-1], start):
            self.spill.write(name, first, data)
        self._chunk = (start + len(rows) - 1, rows[-1:])

    def _pieces(self, rows: Sequence[Row], start: int) -> list[tuple[str, int, bytes]]:
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(self._names)
        pieces = []
        for at, (name, info) in enumerate(self.fields.items()):
            first = start
            data = b"".join(columns[at])
            if info.state and self.initial is not None:
                if start == 0:
                    data = self.initial[at] + data
                else:
                    first += 1
            pieces.append((name, first, data))
        return pieces

    def pieces(self) -> list[tuple[str, int, bytes]]:
        """What the commit still has to write: field, row of the episode, bytes; row T included."""
        start, rows = self._chunk
        pieces = self._pieces(rows, start)
        if not self._has_state:
            return pieces
        ended = []
        for at, (name, first, data) in enumerate(pieces):
            info = self.fields[name]
            if not info.state or not self.has_final:
                data += info.default_value().tobytes()
            elif self.initial is None and self.final is not None:
                data += self.final[at]
            ended.append((name, first, data))
        return ended

    def spilled_rows(self, name: str) -> int:
        """Rows of a field written early."""
        start = self._chunk[0]
        return start + 1 if start and self.initial is not None and self.fields[name].state else start

    def column(self, name: str) -> npt.NDArray[Any]:
        """A field's values at the T transitions, ``(T, *shape)``, copied; of a state field, those before each step."""
        info = self.fields[name]
        early = self.spilled_rows(name)
        at = self._names.index(name)
        parts = [self.spill.read(name, 0, early)] if early else []
        if info.state and self.initial is not None and not early:
            parts.append(self.initial[at])
        parts.extend(row[at] for row in self._chunk[1])
        count = len(self)
        if info.nbytes == 0:
            return np.empty((count, *info.shape), info.dtype)
        # A state given after its step has T+1 values here, of which the last follows the last transition.
        return np.frombuffer(b"".join(parts), info.dtype).reshape(-1, *info.shape)[:count]

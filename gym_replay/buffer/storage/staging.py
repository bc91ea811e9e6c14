"""The open episode: rows kept as bytes until the commit, and written early where it grows long."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.columns import PIECE, ColumnWriter, storage_error
from gym_replay.buffer.storage.fields import Field
from gym_replay.buffer.storage.ragged import SPAN

Row = tuple[bytes, ...]
"""One value's bytes per field, in the schema's order."""

CHUNK_BYTES = 1 << 23
CHUNK_ROWS = 1 << 14
RAGGED_CHUNK_ROWS = 1 << 8
RING_CHUNK_BYTES = 1 << 26


class Piece(NamedTuple):
    """Bytes of one file of an episode.

    Args:
        name: the field.
        is_elements: whether these are elements of a ragged field; otherwise rows, of a ragged field spans, whose first
            elements are counted from the episode's.
        first: the first row, or element, of the episode.
    """

    name: str
    is_elements: bool
    first: int
    data: bytes


class Spill(Protocol):
    """Where rows of the open episode go before its commit."""

    def write(self, piece: Piece) -> None:
        """Keep a piece."""

    def read(self, name: str, rows: int) -> bytes:
        """The bytes of the first rows of a field, kept before."""

    def close(self) -> None:
        """The episode has ended: what is kept only for the commit can go."""


class Place:
    """Where an episode lies: its first row, and its first element of each ragged field.

    Args:
        rows, elements: the writers of the files, by field.
        start: the first row.
        bases: the first element, by ragged field.
    """

    def __init__(
        self,
        rows: Mapping[str, ColumnWriter],
        elements: Mapping[str, ColumnWriter],
        start: int,
        bases: Mapping[str, int],
    ) -> None:
        self._rows, self._elements = rows, elements
        self.start, self.bases = start, bases

    def write(self, piece: Piece) -> None:
        """Put a piece where it belongs."""
        name, is_elements, first, data = piece
        if is_elements:
            self._elements[name].write(self.bases[name] + first, data)
        elif name in self.bases:
            self._rows[name].write(self.start + first, moved_spans(data, self.bases[name]))
        else:
            self._rows[name].write(self.start + first, data)

    def read(self, name: str, rows: int) -> bytes:
        """The first rows of a field that is not ragged."""
        return self._rows[name].read(self.start, rows)


def moved_spans(data: bytes, base: int) -> bytes:
    """Spans that count from an episode's first element, as spans that count from ``-base``."""
    spans = np.frombuffer(data, SPAN).reshape(-1, 2)
    return (spans + np.array([base, 0], SPAN)).tobytes()


class TailSpill:
    """Writes to where the episode will lie: behind the last committed row, where no reader looks."""

    def __init__(self, place: Place, check_owner: Callable[[], None]) -> None:
        self.place, self._check_owner = place, check_owner

    def write(self, piece: Piece) -> None:
        self._check_owner()
        self.place.write(piece)

    def read(self, name: str, rows: int) -> bytes:
        return self.place.read(name, rows)

    def close(self) -> None:
        """Nothing to do: what was written lies where the episode does, or behind the last one."""


class FileSpill:
    """Writes to nameless temporary files in the folder: a ring finds the place only once the length is known."""

    def __init__(self, folder: Path, fields: Mapping[str, Field], check_owner: Callable[[], None]) -> None:
        self._folder, self._check_owner = folder, check_owner
        self._fields = fields
        self._files: dict[tuple[str, bool], tuple[Any, int]] = {}

    def _width(self, name: str, *, is_elements: bool) -> int:
        info = self._fields[name]
        return 2 * SPAN.itemsize if info.ragged and not is_elements else info.nbytes

    def write(self, piece: Piece) -> None:
        self._check_owner()
        name, is_elements, first, data = piece
        width = self._width(name, is_elements=is_elements)
        if not width or not data:
            return
        try:
            if (name, is_elements) not in self._files:
                self._files[name, is_elements] = tempfile.TemporaryFile(dir=self._folder, buffering=0), 0  # noqa: SIM115
            file, _ = self._files[name, is_elements]
            view, position = memoryview(data), first * width
            while view:
                count = os.pwrite(file.fileno(), view[:PIECE], position)
                view, position = view[count:], position + count
        except OSError as error:
            raise storage_error(error, self._folder, len(data)) from error
        self._files[name, is_elements] = file, first + len(data) // width

    def read(self, name: str, rows: int) -> bytes:
        width = self._width(name, is_elements=False)
        return os.pread(self._files[name, False][0].fileno(), rows * width, 0) if width else b""

    def pieces(self) -> Iterator[Piece]:
        """What is kept, in pieces that fit into memory."""
        for (name, is_elements), (file, count) in self._files.items():
            width = self._width(name, is_elements=is_elements)
            step = max(CHUNK_BYTES // width, 1)
            for first in range(0, count, step):
                data = os.pread(file.fileno(), min(step, count - first) * width, first * width)
                yield Piece(name, is_elements, first, data)

    def close(self) -> None:
        for file, _ in self._files.values():
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
        self._spilled_elements = {name: 0 for name, info in fields.items() if info.ragged}
        row_nbytes = max(sum(info.nbytes for info in fields.values()), 1)
        longest = RAGGED_CHUNK_ROWS if self._spilled_elements else CHUNK_ROWS
        self._chunk_rows = max(min(longest, chunk_bytes // row_nbytes), 2)
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
        pieces = self._pieces(rows[:-1], start, is_last=False)
        for piece in pieces:
            self.spill.write(piece)
        for name, is_elements, first, data in pieces:
            if is_elements:
                self._spilled_elements[name] = first + len(data) // self.fields[name].nbytes
        self._chunk = (start + len(rows) - 1, rows[-1:])

    def pieces(self) -> list[Piece]:
        """What the commit still has to write; row T included."""
        start, rows = self._chunk
        return self._pieces(rows, start, is_last=True)

    def num_elements(self, pieces: Sequence[Piece]) -> dict[str, int]:
        """How many elements each ragged field has in the episode, whose last pieces are these."""
        return {
            name: first + len(data) // self.fields[name].nbytes
            for name, is_elements, first, data in pieces
            if is_elements
        }

    def _pieces(self, rows: Sequence[Row], start: int, *, is_last: bool) -> list[Piece]:
        columns: list[Sequence[bytes]] = list(zip(*rows, strict=True)) if rows else [()] * len(self._names)
        pieces = []
        for at, (name, info) in enumerate(self.fields.items()):
            first, values = start, columns[at]
            before = after = None
            if info.state and self.initial is not None:
                if start == 0:
                    before = self.initial[at]
                else:
                    first += 1
            if is_last and self._has_state:
                if not info.state or not self.has_final:
                    after = info.default_value().tobytes()
                elif self.initial is None and self.final is not None:
                    after = self.final[at]
            if info.ragged:
                whole = [*([] if before is None else [before]), *values, *([] if after is None else [after])]
                pieces += self._ragged_pieces(name, first, whole)
            else:
                pieces.append(Piece(name, False, first, b"".join((before or b"", b"".join(values), after or b""))))
        return pieces

    def _ragged_pieces(self, name: str, first: int, values: Sequence[bytes]) -> list[Piece]:
        counts = np.fromiter(map(len, values), SPAN, len(values)) // self.fields[name].nbytes
        spilled = self._spilled_elements[name]
        spans = np.stack((spilled + np.cumsum(counts) - counts, counts), axis=1)
        return [Piece(name, True, spilled, b"".join(values)), Piece(name, False, first, spans.tobytes())]

    def spilled_rows(self, name: str) -> int:
        """Rows of a field written early."""
        start = self._chunk[0]
        return start + 1 if start and self.initial is not None and self.fields[name].state else start

    def column(self, name: str) -> npt.NDArray[Any]:
        """The values of a field that is not ragged at the T transitions, ``(T, *shape)``, copied.

        Of a state field, those before each step.
        """
        info = self.fields[name]
        early = self.spilled_rows(name)
        at = self._names.index(name)
        parts = [self.spill.read(name, early)] if early else []
        if info.state and self.initial is not None and not early:
            parts.append(self.initial[at])
        parts.extend(row[at] for row in self._chunk[1])
        count = len(self)
        if info.nbytes == 0:
            return np.empty((count, *info.shape), info.dtype)
        # A state given after its step has T+1 values here, of which the last follows the last transition.
        return np.frombuffer(b"".join(parts), info.dtype).reshape(-1, *info.shape)[:count]

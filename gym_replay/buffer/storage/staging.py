"""The open episode: rows kept as bytes until the commit, and written early where it grows long."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.block import Block, Piece, Spill
from gym_replay.buffer.storage.columns import PIECE
from gym_replay.buffer.storage.ragged import SPAN, spans_of
from gym_replay.buffer.storage.records import COMPLETE, HAS_FINAL, MetaColumn
from gym_replay.buffer.storage.room import UNLIMITED
from gym_replay.errors import StorageError
from gym_replay.schema.fields import Field, widened

Packer: TypeAlias = Callable[[list[Any]], Any]
"""Makes a buffer of several rows of a field out of what was kept of each."""

CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 1 << 14
RAGGED_CHUNK_ROWS = 1 << 8
RING_CHUNK_BYTES = 1 << 26

FieldPlan: TypeAlias = tuple[str, int | None, Packer | None, bool, bool, bytes]
"""A field, its place among a transition's items, its packer, whether it is a state or ragged field, its default."""


class RowFormat:
    """How transitions are kept until their episode is committed: a few items each, in one flat list.

    Args:
        fields: the schema.
        names: the fields of which each transition holds an item; the others hold their default.
        packers: for fields whose items are not the bytes of a row.
        chunk_bytes: how much is kept in memory before it is written early.
    """

    def __init__(
        self,
        fields: Mapping[str, Field],
        names: Sequence[str] | None = None,
        packers: Mapping[str, Packer] | None = None,
        *,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.fields = fields
        self.names = tuple(fields if names is None else names)
        self.width = len(self.names)
        self.defaults = {name: info.default_value().tobytes() for name, info in fields.items()}
        self.ragged = [name for name, info in fields.items() if info.ragged]
        self.no_elements = dict.fromkeys(self.ragged, 0)
        self.has_state = any(info.state for info in fields.values())
        self._packers = dict(packers or {})
        self._chunk_bytes = chunk_bytes
        row_nbytes = max(sum(info.nbytes for info in fields.values()), 1)
        longest = RAGGED_CHUNK_ROWS if self.ragged else CHUNK_ROWS
        self.chunk_rows = max(min(longest, chunk_bytes // row_nbytes), 2)
        self.places = {name: place for place, name in enumerate(self.names)}
        self.plan: list[FieldPlan] = [
            (name, self.places.get(name), self._packers.get(name), info.state, info.ragged, self.defaults[name])
            for name, info in fields.items()
        ]

    def with_fields(self, fields: Mapping[str, Field], *, bring_items: bool = True) -> RowFormat:
        """The same with more fields, of which each transition holds an item behind the others, or the default.

        Fields that are there already take another dtype.
        """
        new = [name for name in fields if name not in self.fields] if bring_items else []
        names = (*self.names, *new)
        return RowFormat({**self.fields, **fields}, names, self._packers, chunk_bytes=self._chunk_bytes)


class Stage:
    """The transitions of the open episode.

    The items of a transition are added to the list in one operation: an interrupt between two bytecodes leaves whole
    transitions only. State fields can be given with the step that they precede (``initial`` is None, the last one
    comes through ``final``) or, as an environment gives them, after it (``initial`` is row 0, and each transition
    brings the state that the step led to).

    Args:
        row_format: what each transition brings.
        open_spill: opens what long episodes are written to before their commit.
        initial: the first state's bytes by field; one that is missing is the default.

    Attributes:
        final: the last state's bytes by field.
        last: the bytes that fields without items hold at the last transition, where it is not their default.
        longest: how many transitions there may be, for whoever adds them.
        watch: is given the pieces that were written early, when they were.
        commit_id: the id under which a commit was begun.
    """

    # What most episodes never change is not made for each of them.
    longest = UNLIMITED
    spill: Spill | None = None
    final: Mapping[str, bytes] | None = None
    last: Mapping[str, bytes] = MappingProxyType({})
    watch: Callable[[Sequence[Piece]], None] | None = None
    commit_id: int | None = None
    _unfilled: Mapping[str, int] = MappingProxyType({})  # rows written early without the default of a field added since

    def __init__(
        self, row_format: RowFormat, open_spill: Callable[[], Spill], *, initial: Mapping[str, bytes] | None = None
    ) -> None:
        self.format = row_format
        self._open_spill = open_spill
        self.initial = initial
        self._chunk: tuple[int, list[Any]] = (0, [])
        self._spilled_elements = row_format.no_elements

    def __len__(self) -> int:
        start, items = self._chunk
        return start + len(items) // self.format.width

    @property
    def has_final(self) -> bool:
        """Whether the state after the last transition is known."""
        return self.initial is not None or self.final is not None

    @property
    def num_rows(self) -> int:
        """Rows that the episode takes: T+1 where the schema has a state field, else T."""
        return len(self) + self.format.has_state

    def append(self, row: Sequence[Any]) -> None:
        """Add one transition; where writing early is refused, it is not added."""
        if len(self._chunk[1]) > self.format.chunk_rows * self.format.width:
            self._write_chunk()
        self._chunk[1].extend(row)

    @property
    def extend(self) -> Callable[[Sequence[Any]], None]:
        """Adds the items of a transition, whatever room there is."""
        return self._chunk[1].extend

    def make_room(self) -> tuple[Callable[[Sequence[Any]], None], int]:
        """The fast way to add transitions: a function that takes the items of one, and how often it may be called."""
        width = self.format.width
        if len(self._chunk[1]) > self.format.chunk_rows * width:
            self._write_chunk()
        items = self._chunk[1]
        return items.extend, self.format.chunk_rows + 1 - len(items) // width

    def close(self) -> None:
        """The episode has ended."""
        if self.spill is not None:
            self.spill.close()

    def check(self, fields: Mapping[str, Field]) -> None:
        """Raise FieldError where a value so far would change in the wider dtype of a field; others are new."""
        known = self.format.fields
        wider = {name: info for name, info in fields.items() if name in known and known[name] != info}
        for name in wider:
            self._converted(name, known[name], wider[name])
        if self.spill is not None:
            self.spill.check(wider)

    def _converted(self, name: str, field: Field, wider: Field) -> tuple[list[bytes], bytes | None]:
        """The items of a field that are in memory, and its first row where it is a state field, in a wider dtype."""
        items, initial = self.items(name) if name in self.format.places else [], (self.initial or {}).get(name)
        rows = items if initial is None else [*items, initial]
        found = np.zeros((len(rows), *field.shape), field.dtype)
        if found.size:
            found = np.frombuffer(b"".join(rows), field.dtype).reshape(found.shape)
        found = widened(name, found, wider.dtype)
        converted = [row.tobytes() for row in found]
        return (converted, None) if initial is None else (converted[:-1], converted[-1])

    def add_fields(self, row_format: RowFormat) -> None:
        """Go on in a format with more fields, whose values so far are their defaults, or with wider dtypes.

        Where there is no room for the defaults on the disk now, they are written with the next rows. What is in the
        buffer's files is converted already.
        """
        before, width, more_width = self.format, self.format.width, row_format.width
        start, items = self._chunk
        more = [row_format.defaults[name] for name in row_format.names[width:]]
        extended: list[Any] = []
        for at in range(0, len(items), width):
            extended += items[at : at + width]
            extended += more
        initial = self.initial
        for name, field in before.fields.items():
            if row_format.fields[name].dtype != field.dtype:
                converted, first = self._converted(name, field, row_format.fields[name])
                if name in before.places:
                    extended[before.places[name] :: more_width] = converted
                initial = initial if first is None else {**(initial or {}), name: first}
        changed = {name: info for name, info in row_format.fields.items() if before.fields.get(name) is not info}
        if self.spill is not None:
            self.spill.add_fields(changed)
        self._spilled_elements = {**row_format.no_elements, **self._spilled_elements}
        early = {
            name: start + (info.state and self.initial is not None)
            for name, info in changed.items()
            if start and not info.ragged and name not in before.fields
        }
        # In one call: an interrupt in between would leave items that the format does not fit.
        self.__dict__.update(
            format=row_format, _chunk=(start, extended), initial=initial, _unfilled={**self._unfilled, **early}
        )
        with suppress(StorageError):
            self._fill()

    def _fill(self) -> None:
        for name, rows in self._unfilled.items():
            assert self.spill is not None
            row = self.format.defaults[name]
            step = max(PIECE // max(len(row), 1), 1)
            for first in range(0, rows, step):
                self.spill.write((name, False, first, row * min(step, rows - first)))
            self._unfilled = {other: rows for other, rows in self._unfilled.items() if other != name}

    def _write_chunk(self) -> None:
        self._fill()
        start, items = self._chunk
        width = self.format.width
        pieces = self._pieces(items[:-width], start, is_last=False)  # a step that is cut changes the last transition
        if self.spill is None:
            self.spill = self._open_spill()
        for piece in pieces:
            self.spill.write(piece)
        chunk, spilled = (start + len(items) // width - 1, items[-width:]), self._num_elements(pieces)
        # In one call: after an interrupt in between, the elements written once more would leave a gap.
        self.__dict__.update(_chunk=chunk, _spilled_elements={**self._spilled_elements, **spilled})
        if self.watch is not None:
            self.watch(pieces)

    def pieces(self) -> list[Piece]:
        """What the commit still has to write; row T included.

        Raises:
            StorageError: there is no room for what should have been written before.
        """
        if self._unfilled:
            self._fill()
        start, items = self._chunk
        if start == 0 and self.initial is not None and self.format.has_state and not self.format.ragged:
            return self._whole(items, self.initial)
        return self._pieces(items, start, is_last=True)

    def _whole(self, items: list[Any], initial: Mapping[str, bytes]) -> list[Piece]:
        """The same as ``_pieces``, with less to do, of an episode that is all in memory and began with row 0."""
        width, last, pieces = self.format.width, self.last, []
        count = len(items) // width
        for name, place, packer, is_state, _, default in self.format.plan:
            if place is None:
                data = default * (count - 1) + last.get(name, default)
                data = initial.get(name, default) + data if is_state else data + default
            elif is_state:
                data = b"".join([initial.get(name, default), *items[place::width]])
            elif packer is not None:
                data = b"".join([packer(items[place::width]), default])
            else:
                data = b"".join([*items[place::width], default])
            pieces.append((name, False, 0, data))
        return pieces

    def block(self, pieces: Sequence[Piece], meta: Mapping[str, MetaColumn], *, complete: bool) -> Block:
        """The episode as a commit takes it; ``pieces`` are those of :meth:`pieces`."""
        flags = (HAS_FINAL if self.has_final else 0) | (COMPLETE if complete else 0)
        elements = {name: [count] for name, count in self._num_elements(pieces).items()} if self.format.ragged else {}
        return Block(pieces, [len(self)], flags, meta, elements, self._begin, self.spill)

    def _begin(self, first_id: int) -> None:
        self.commit_id = first_id

    def _num_elements(self, pieces: Sequence[Piece]) -> dict[str, int]:
        """How many elements each ragged field has in the episode, whose last pieces are these."""
        return {
            name: first + len(data) // self.format.fields[name].nbytes
            for name, is_elements, first, data in pieces
            if is_elements
        }

    def _pieces(
        self, items: list[Any], start: int, *, is_last: bool, plan: Sequence[FieldPlan] | None = None
    ) -> list[Piece]:
        row_format, initial, final, last = self.format, self.initial, self.final, self.last if is_last else {}
        width, ends_with_row_t = row_format.width, is_last and row_format.has_state
        count = len(items) // width
        pieces = []
        for name, place, packer, is_state, is_ragged, default in row_format.plan if plan is None else plan:
            first, values = start, [] if place is None else items[place::width]
            if packer is not None:
                values = [packer(values)]
            elif place is None:
                values = [default] * count if is_ragged else [default * (count - 1), last.get(name, default)]
            if is_state and initial is not None:
                if start == 0:
                    values.insert(0, initial.get(name, default))
                else:
                    first += 1
            elif ends_with_row_t:
                values.append(final.get(name, default) if is_state and final is not None else default)
            if is_ragged:
                pieces += self._ragged_pieces(name, first, values)
            else:
                pieces.append((name, False, first, b"".join(values)))
        return pieces

    def _ragged_pieces(self, name: str, first: int, values: Sequence[bytes]) -> list[Piece]:
        counts = np.fromiter(map(len, values), SPAN, len(values)) // self.format.fields[name].nbytes
        spilled = self._spilled_elements[name]
        spans = spans_of(counts, spilled).tobytes()
        return [(name, True, spilled, b"".join(values)), (name, False, first, spans)]

    def spilled_rows(self, name: str) -> int:
        """Rows of a field written early."""
        start = self._chunk[0]
        return start + 1 if start and self.initial is not None and self.format.fields[name].state else start

    def items(self, name: str) -> list[Any]:
        """The items of a field that are still in memory."""
        return self._chunk[1][self.format.places[name] :: self.format.width]

    def column(self, name: str) -> npt.NDArray[Any]:
        """The rows of a field that is not ragged, as they will be committed, copied: ``(T or T+1, *shape)``."""
        self._fill()
        info = self.format.fields[name]
        early = self.spilled_rows(name)
        data = self.spill.read(name, early) if early and self.spill is not None else b""
        start, items = self._chunk
        plan = [entry for entry in self.format.plan if entry[0] == name]
        data += self._pieces(items, start, is_last=True, plan=plan)[0][3]
        rows = self.num_rows if info.state and self.has_final else len(self)
        if info.nbytes == 0:
            return np.empty((rows, *info.shape), info.dtype)
        return np.frombuffer(data, info.dtype).reshape(-1, *info.shape)[:rows]

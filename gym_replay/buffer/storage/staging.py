"""The open episode: rows as bytes in memory until the commit, and written early where it grows long."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.block import Block, EarlyRows, Piece
from gym_replay.buffer.storage.encoded import encode_rows
from gym_replay.buffer.storage.ragged import SPAN, spans_of
from gym_replay.buffer.storage.records import COMPLETE, HAS_FINAL, MetaColumn
from gym_replay.buffer.storage.room import UNLIMITED
from gym_replay.schema.fields import Field

Packer: TypeAlias = Callable[[list[Any]], Any]
"""Makes the bytes of several rows of a field out of the items of each."""

CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 1 << 14
RAGGED_CHUNK_ROWS = 1 << 8
RING_CHUNK_BYTES = 1 << 26
"""How much of an episode stays in memory in a ring, where rows that were written early may have to be copied."""

WriteEarly: TypeAlias = "Callable[[Sequence[Piece], EarlyRows | None], EarlyRows]"
ReadEarly: TypeAlias = "Callable[[str, int, EarlyRows], bytes]"


_NONE: Mapping[str, Any] = MappingProxyType({})


class FieldPlan(NamedTuple):
    """How the rows of a field are made of items: where its item is in a transition (None where it has none), what packs
    several of them, whether it is a state field, or has elements, and the bytes of its default, as they are stored."""

    name: str
    item: int | None
    packer: Packer | None
    is_state: bool
    has_elements: bool
    default: bytes


class RowFormat:
    """How transitions wait until their episode is committed: a few items each, in one flat list.

    Args:
        fields: the schema.
        names: the fields of which each transition holds an item; the others hold their default.
        packers: for fields whose items are not the bytes of a row.
        chunk_bytes: how much stays in memory before it is written early.
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
        self.has_state = any(info.state for info in fields.values())
        self.has_elements = any(info.has_elements for info in fields.values())
        self.has_ragged = any(info.ragged for info in fields.values())
        self._packers = dict(packers or {})
        self._chunk_bytes = chunk_bytes
        row_nbytes = max(sum(info.nbytes for info in fields.values()), 1)
        longest = RAGGED_CHUNK_ROWS if self.has_ragged else CHUNK_ROWS
        self.chunk_rows = max(min(longest, chunk_bytes // row_nbytes), 2)
        indices = {name: index for index, name in enumerate(self.names)}
        self.plan = {
            name: FieldPlan(
                name,
                indices.get(name),
                self._packers.get(name),
                info.state,
                info.has_elements,
                info.stored.default_value().tobytes(),
            )
            for name, info in fields.items()
        }

    def with_fields(self, fields: Mapping[str, Field], *, bring_items: bool = True) -> RowFormat:
        """The same with more fields, of which each transition holds an item behind the others, or the default.

        Fields that are there already take another dtype.
        """
        new = [name for name in fields if name not in self.fields] if bring_items else []
        names = (*self.names, *new)
        return RowFormat({**self.fields, **fields}, names, self._packers, chunk_bytes=self._chunk_bytes)


class _InMemory(NamedTuple):
    """What is in memory of an episode, replaced as a whole.

    ``initial`` is row 0 of the state fields, and None once it is written; ``start`` the first transition, of which and
    of those behind it ``items`` are; ``elements`` how many elements of each field that has them come before.
    """

    format: RowFormat
    initial: Mapping[str, bytes] | None
    start: int
    items: list[Any]
    elements: Mapping[str, int]


class Staged(NamedTuple):
    """The transitions of a stage that are in memory, the items of each behind those of the one before.

    ``initial`` is row 0 of the state fields, and None once it went to the files; ``start`` and ``end`` say which
    transitions of the episode these are.
    """

    format: RowFormat
    initial: Mapping[str, bytes] | None
    start: int
    end: int
    items: list[Any]


class Stage:
    """The transitions of the open episode.

    A transition brings the state that its step led to; the state before the first one is row 0. Its items are added to
    the list in one operation: an interrupt between two bytecodes leaves whole transitions only.

    Args:
        row_format: what each transition brings.
        initial: the bytes of row 0 of the state fields; one that is missing is the default.
        write_early: writes rows of a long episode before its commit, behind those that were written before.
        read_early: reads the first rows of a field again.

    Attributes:
        has_final: whether the last transition brought a state.
        last: the bytes that fields without items hold at the last transition, where it is not their default.
        longest: how many transitions there may be, for whoever adds them.
        watch: is given the pieces that were written early, when they were.
        early: the rows that were written early.
    """

    # What most episodes never change is not made for each of them.
    has_final = True
    longest = UNLIMITED
    last: Mapping[str, bytes] = _NONE
    watch: Callable[[Sequence[Piece]], None] | None = None
    early: EarlyRows | None = None

    def __init__(
        self, row_format: RowFormat, initial: Mapping[str, bytes], write_early: WriteEarly, read_early: ReadEarly
    ) -> None:
        self._memory = _InMemory(row_format, initial, 0, [], _NONE)
        self._write_early, self._read_early = write_early, read_early

    @property
    def format(self) -> RowFormat:
        """What each transition brings."""
        return self._memory.format

    def __len__(self) -> int:
        memory = self._memory
        return memory.start + len(memory.items) // memory.format.width

    def begin(self, initial: Mapping[str, bytes]) -> None:
        """Have this row 0, before the first transition."""
        self._memory = self._memory._replace(initial=initial)

    @property
    def extend(self) -> Callable[[Sequence[Any]], None]:
        """Adds the items of a transition, whatever room there is."""
        return self._memory.items.extend

    def make_room(self) -> tuple[Callable[[Sequence[Any]], None], int]:
        """A function that takes the items of one transition, and how often it may be called.

        Raises:
            StorageError: rows had to be written early, and the operating system refused.
        """
        width, rows = self._memory.format.width, self._memory.format.chunk_rows
        if len(self._memory.items) >= rows * width:
            self.write_early()
        items = self._memory.items
        return items.extend, rows - len(items) // width

    def write_early(self) -> None:
        """Write all that is in memory, so that the buffer's fields may change; :attr:`extend` is another one then.

        Raises:
            StorageError: the operating system refused, and all is as before.
        """
        memory = self._memory
        pieces = self._pieces(memory, is_last=False)
        self.early = self._write_early(pieces, self.early)
        start, elements = memory.start + len(memory.items) // memory.format.width, self._num_elements(pieces)
        self._memory = _InMemory(memory.format, None, start, [], elements)
        if self.watch is not None:
            self.watch(pieces)

    def change_format(self, row_format: RowFormat) -> None:
        """Go on with other fields, after :meth:`write_early`; the buffer has converted or filled in what is written."""
        memory = self._memory
        assert not memory.items
        self._memory = memory._replace(format=row_format)

    # --- the commit ---

    def pieces(self) -> list[Piece]:
        """What the commit still has to write; row T included."""
        return self._pieces(self._memory, is_last=True)

    def block(self, pieces: Sequence[Piece], meta: Mapping[str, MetaColumn], *, complete: bool) -> Block:
        """The episode as a commit takes it; ``pieces`` are those of :meth:`pieces`."""
        flags = (HAS_FINAL if self.has_final and self.format.has_state else 0) | (COMPLETE if complete else 0)
        elements = {name: [count] for name, count in self._num_elements(pieces).items()}
        return Block(pieces, [len(self)], flags, meta, elements, self.early)

    def _num_elements(self, pieces: Sequence[Piece]) -> Mapping[str, int]:
        """How many elements each field that has them has in the episode, whose last pieces are these."""
        if not self.format.has_elements:
            return _NONE
        return {
            name: first + len(data) // self.format.fields[name].stored.nbytes
            for name, is_elements, first, data in pieces
            if is_elements
        }

    def _pieces(self, memory: _InMemory, *, is_last: bool, only: str | None = None) -> list[Piece]:
        """What is in memory, encoded where the field has a codec; of ``only`` one field as its plain bytes."""
        row_format, items, last = memory.format, memory.items, self.last if is_last else {}
        initial, width, adds_row_t = memory.initial, row_format.width, is_last and row_format.has_state
        count = len(items) // width
        plan = row_format.plan
        pieces: list[Piece] = []
        for name, item, packer, is_state, has_elements, default in plan.values() if only is None else [plan[only]]:
            first = memory.start
            if item is not None:
                values = items[item::width] if packer is None else [packer(items[item::width])]
            elif has_elements:
                values = [default] * count
            elif name not in last:
                values = [default * count]
            else:  # of the last transition, which may be written already
                values, first = [default * (count - 1), last[name]], first - (count == 0)
            if is_state and initial is not None:
                values.insert(0, initial.get(name, default))
            elif is_state:
                first += 1
            elif adds_row_t:
                values.append(default)
            if has_elements and only is None:
                info = row_format.fields[name]
                if info.codec is not None:
                    values = encode_rows(info, values)
                counts = np.fromiter(map(len, values), SPAN, len(values)) // info.stored.nbytes
                elements = memory.elements.get(name, 0)
                pieces.append((name, True, elements, b"".join(values)))
                pieces.append((name, False, first, spans_of(counts, elements).tobytes()))
            else:
                if has_elements:  # no bytes stand for the default
                    plain = row_format.fields[name].default_value().tobytes()
                    values = [value or plain for value in values]
                pieces.append((name, False, first, b"".join(values)))
        return pieces

    # --- reading ---

    def items(self, name: str) -> list[Any]:
        """The items of a field that are still in memory."""
        memory = self._memory
        return memory.items[memory.format.plan[name].item :: memory.format.width]

    def staged(self) -> Staged:
        """What is in memory at this moment; the list of items may go on to grow."""
        memory = self._memory
        end = memory.start + len(memory.items) // memory.format.width
        return Staged(memory.format, memory.initial, memory.start, end, memory.items)

    def column(self, name: str) -> npt.NDArray[Any]:
        """The rows of a field that is not ragged, as they will be committed, copied: ``(T or T+1, *shape)``."""
        info, ((_, _, first, data),) = self.format.fields[name], self._pieces(self._memory, is_last=True, only=name)
        rows = len(self) + (info.state and self.has_final)
        if info.nbytes == 0:
            return np.empty((rows, *info.shape), info.dtype)
        early = self._read_early(name, first, self.early) if self.early is not None else b""
        return np.frombuffer(early + data, info.dtype).reshape(-1, *info.shape)[:rows]

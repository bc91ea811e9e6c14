"""The open episode: rows as bytes in memory until the commit, and written early where it grows long."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.block import Block, EarlyRows, Rows
from gym_replay.buffer.storage.records import COMPLETE, HAS_FINAL, MetaColumn
from gym_replay.buffer.storage.room import UNLIMITED
from gym_replay.schema.fields import Field, widened

Packer: TypeAlias = Callable[[list[Any]], Any]
"""Makes the bytes of several rows of a field out of the items of each."""

CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 1 << 14
RAGGED_CHUNK_ROWS = 1 << 8
RING_CHUNK_BYTES = 1 << 26
"""How much of an episode stays in memory in a ring, where rows that were written early may have to be copied."""

WriteEarly: TypeAlias = "Callable[[Mapping[str, Rows], int, EarlyRows | None], EarlyRows]"
ReadEarly: TypeAlias = "Callable[[str, EarlyRows], bytes]"

_NONE: Mapping[str, Any] = MappingProxyType({})


class FieldPlan(NamedTuple):
    """How the rows of a field are made of the items of transitions.

    Attributes:
        name: the field.
        item: where its item is among those of a transition.
        packer: makes the bytes of several rows of their items; None where an item is the bytes of a row.
        is_state: whether the item is the row after the transition's own.
        has_elements: whether the rows stay apart.
        default: the bytes of a row that has the default.
    """

    name: str
    item: int
    packer: Packer | None
    is_state: bool
    has_elements: bool
    default: bytes


class RowFormat:
    """How transitions wait until their episode is committed: a few items each, in one flat list.

    Args:
        fields: the schema.
        names: the fields of which each transition holds an item; the others hold their default.
        packers: for fields whose items are numbers and not the bytes of a row; fields with a shape have bytes.
        chunk_bytes: how much stays in memory before it is written early.

    Attributes:
        defaults: the bytes that are stored of the default of each field.
        plan: of each field that has items.
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
        self.has_ragged = any(info.ragged for info in fields.values())
        self._packers = dict(packers or {})
        self._chunk_bytes = chunk_bytes
        row_nbytes = max(sum(info.nbytes for info in fields.values()), 1)
        longest = RAGGED_CHUNK_ROWS if self.has_ragged else CHUNK_ROWS
        self.chunk_rows = max(min(longest, chunk_bytes // row_nbytes), 2)
        self.defaults = {name: info.stored.default_value().tobytes() for name, info in fields.items()}
        items = [(item, name, fields[name]) for item, name in enumerate(self.names) if name in fields]
        self.plan = [
            FieldPlan(name, item, packer, info.state, info.has_elements, self.defaults[name])
            for item, name, info in items
            for packer in [None if info.shape else self._packers.get(name)]
        ]

    def with_fields(self, fields: Mapping[str, Field], *, bring_items: bool = True) -> RowFormat:
        """The same with more fields, of which each transition holds an item behind the others, or the default.

        Fields that are there already take another dtype.
        """
        new = [name for name in fields if name not in self.fields] if bring_items else []
        names = (*self.names, *new)
        return RowFormat({**self.fields, **fields}, names, self._packers, chunk_bytes=self._chunk_bytes)


class Staged(NamedTuple):
    """What is in memory of an episode, replaced as a whole.

    Attributes:
        format: what each transition brings.
        states: the row of the state fields that the first of the transitions starts from.
        items: of the transitions, the last one of the episode among them.
        early: the rows before them.
        last: once the episode has ended, the bytes that fields without items hold at its last transition.
    """

    format: RowFormat
    states: Mapping[str, bytes]
    items: list[Any]
    early: EarlyRows | None = None
    last: Mapping[str, bytes] | None = None

    @property
    def start(self) -> int:
        """How many transitions went to the files before them."""
        return 0 if self.early is None else self.early.length

    @property
    def end(self) -> int:
        """How many transitions the episode has; the list of items may go on to grow."""
        held = len(self.items) // self.format.width
        return held if self.early is None else self.early.length + held


class Stage:
    """The transitions of the open episode.

    A transition brings the state that its step led to; the state before the first one is row 0. Its items are added to
    the list in one operation: an interrupt between two bytecodes leaves whole transitions only.

    Args:
        row_format: what each transition brings.
        initial: the bytes of row 0 of the state fields; one that is missing is the default.
        write_early: writes rows of a long episode before its commit, behind those that were written before.
        read_early: reads such rows of a field again.

    Attributes:
        has_final: whether the last transition brought a state.
        cut: the bytes that fields without items hold at the last transition of an episode that is cut.
        longest: how many transitions there may be, for whoever adds them.
        staged: what is in memory.
        watch: is given the rows that were written early: by field, the first of them, and one past the last one.
    """

    # What most episodes never change is not made for each of them.
    has_final = True
    longest = UNLIMITED
    cut: Mapping[str, bytes] = _NONE
    watch: Callable[[Mapping[str, Rows], int, int], None] | None = None

    def __init__(
        self, row_format: RowFormat, initial: Mapping[str, bytes], write_early: WriteEarly, read_early: ReadEarly
    ) -> None:
        self.staged = Staged(row_format, initial, [])
        self._write_early, self._read_early = write_early, read_early

    @property
    def format(self) -> RowFormat:
        """What each transition brings."""
        return self.staged.format

    @property
    def has_ended(self) -> bool:
        """Whether there is the last transition."""
        return self.staged.last is not None

    def __len__(self) -> int:
        return self.staged.end

    def begin(self, initial: Mapping[str, bytes]) -> None:
        """Have this row 0, before the first transition."""
        self.staged = self.staged._replace(states=initial)

    @property
    def extend(self) -> Callable[[Sequence[Any]], None]:
        """Adds the items of a transition, whatever room there is."""
        return self.staged.items.extend

    def end(self, items: Sequence[Any], last: Mapping[str, bytes]) -> None:
        """Add the items of the last transition, and what fields without items hold there: all at once or nothing."""
        memory = self.staged
        self.staged = memory._replace(items=[*memory.items, *items], last=last)

    def make_room(self) -> tuple[Callable[[Sequence[Any]], None], int]:
        """A function that takes the items of one transition, and how often it may be called: 0 at the longest length.

        Raises:
            StorageError: rows had to be written early, and the operating system refused.
        """
        row_format, _, items, early, _ = self.staged
        held = len(items) // row_format.width
        if held >= row_format.chunk_rows:
            self.write_early()
            return self.make_room()
        longest = self.longest if early is None else self.longest - early.length
        return items.extend, min(row_format.chunk_rows, longest) - held

    def write_early(self) -> None:
        """Write all but the last transition, to which its episode's end may add; :attr:`extend` is another one then.

        Raises:
            StorageError: the operating system refused, and all is as before.
        """
        row_format, states, items, early, last = self.staged
        width = row_format.width
        written, left = items[:-width], items[-width:]
        if not written:
            return
        rows, before = self._rows(row_format, states, written), 0 if early is None else early.length
        early = self._write_early(rows, len(written) // width, early)
        states = {name: written[item - width] for name, item, _, is_state, _, _ in row_format.plan if is_state}
        self.staged = Staged(row_format, states, left, early, last)
        if self.watch is not None:
            self.watch(rows, before, early.length)

    def check(self, fields: Mapping[str, Field]) -> None:
        """Raise FieldError where a value in memory would change in the wider dtype of a field; others are new."""
        self._converted(self.staged.format.with_fields(fields))

    def change_format(self, row_format: RowFormat) -> None:
        """Go on with other fields; the buffer has converted or filled in what was written early."""
        self.staged = self._converted(row_format)

    def _converted(self, row_format: RowFormat) -> Staged:
        """What is in memory with other fields: new ones hold their default, and others another dtype."""
        before, states, items, early, last = self.staged

        def wider(name: str, item: bytes) -> bytes:
            old, new = before.fields.get(name), row_format.fields.get(name)
            if old is None or new is None or old.dtype == new.dtype:
                return item
            return widened(name, np.frombuffer(item, old.dtype), new.dtype).tobytes()

        new = [row_format.defaults[name] for name in row_format.names[before.width :]]
        changed = list[Any]()
        for at in range(0, len(items), before.width):
            old = zip(before.names, items[at : at + before.width], strict=True)
            changed += [*(wider(name, item) for name, item in old), *new]
        states = {name: wider(name, state) for name, state in states.items()}
        return Staged(row_format, states, changed, early, last)

    # --- the commit ---

    def block(self, meta: Mapping[str, MetaColumn], *, complete: bool) -> Block:
        """The episode as a commit takes it."""
        memory = self.staged
        flags = (HAS_FINAL if self.has_final and memory.format.has_state else 0) | (COMPLETE if complete else 0)
        return Block(self._last_rows(memory), [memory.end], flags, meta, memory.early)

    def _last_rows(self, memory: Staged) -> dict[str, Any]:
        """The rows in memory by field, as a block has them: row T, too, and what is known of the last transition."""
        row_format, states, items, _, last = memory
        rows, count = self._rows(row_format, states, items, is_last=True), len(items) // row_format.width
        for name, value in (self.cut if last is None else last).items():
            default = row_format.defaults[name]
            rows[name] = default * (count - 1) + value + default * row_format.has_state
        return rows

    def _rows(
        self, row_format: RowFormat, states: Mapping[str, bytes], items: list[Any], *, is_last: bool = False
    ) -> dict[str, Any]:
        """The rows of transitions by field, as a block has them; ``is_last`` adds row T."""
        width, rows = row_format.width, dict[str, Any]()
        adds_row_t = is_last and row_format.has_state
        for name, item, packer, is_state, has_elements, default in row_format.plan:
            values = items[item::width] if packer is None else [packer(items[item::width])]
            if is_state:
                values.insert(0, states.get(name, default))
                if not is_last:
                    values.pop()
            elif adds_row_t:
                values.append(default)
            rows[name] = values if has_elements else b"".join(values)
        return rows

    # --- reading ---

    def column(self, name: str, rows: Rows = None) -> npt.NDArray[Any]:
        """The rows of a field that is not ragged, as they will be committed: ``(T or T+1, *shape)``.

        ``rows`` are those in memory, where they were made already.
        """
        memory = self.staged
        info, early = memory.format.fields[name], memory.early
        count = memory.end + (info.state and self.has_final)
        if rows is None:
            rows = self._last_rows(memory).get(name, [b""] * count)
        if isinstance(rows, list):  # no bytes stand for the default
            default = info.default_value().tobytes()
            rows = b"".join([row or default for row in rows])
        if early is not None:
            rows = self._read_early(name, early) + rows
        if not rows:  # they have no bytes
            return np.empty((count, *info.shape), info.dtype)
        return np.frombuffer(rows, info.dtype).reshape(-1, *info.shape)[:count]

"""Episodes on their way into a buffer: one, several in lockstep, or one that is there whole."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.block import Block
from gym_replay.buffer.storage.encoded import Encoded
from gym_replay.buffer.storage.layout import Metadata
from gym_replay.buffer.storage.open_rows import OpenRows, StagedRows
from gym_replay.buffer.storage.ragged import Ragged
from gym_replay.buffer.storage.records import COMPLETE, HAS_FINAL, MetaColumn
from gym_replay.buffer.storage.staging import Stage
from gym_replay.buffer.storage.writer import FolderWriter
from gym_replay.errors import EpisodeStateError, FieldError
from gym_replay.files.garbage import finalize
from gym_replay.notices import did_you_mean
from gym_replay.schema.fields import Field, elements_of, encode_text, fit, make_encoder, to_array


class EpisodeSlot:
    """What is open in a buffer: one episode, several in lockstep, or those of a recorder.

    Attributes:
        holder: what is open; None where nothing is.
        abandoned: a context that is still entered, and whose episode was discarded by a release.
    """

    def __init__(self) -> None:
        self.holder: _Stored | Claim | None = None
        self.abandoned: _Stored | None = None

    def require_openable(self) -> None:
        """Raise EpisodeStateError where a value belongs to an episode that was discarded."""
        if self.abandoned is not None:
            raise EpisodeStateError("the episode was discarded by release(), and its context is not left yet")

    def require_free(self, what: str) -> None:
        """Raise EpisodeStateError where an episode is open; ``what`` is what cannot be done then."""
        if isinstance(self.holder, Claim):
            raise EpisodeStateError(
                f"{what} while a recorder has an episode open in this buffer; close the recorder first. A buffer "
                "has one recorder at a time: another one needs a folder of its own"
            )
        if self.holder is not None:
            remedy = "advance_episode()" if self.holder.is_implicit else "release() discards it"
            raise EpisodeStateError(f"{what} while an episode is open; end the episode first ({remedy})")


class WritableBuffer(Protocol):
    """A buffer, as episodes on their way into it see it."""

    slot: EpisodeSlot

    @property
    def metadata(self) -> Metadata:
        """The present schema."""

    def encoders(self) -> Encoders:
        """The encoders of the present schema."""

    def writing(self) -> FolderWriter:
        """The writer of the folder."""


class Encoders:
    """Values to bytes, and the bytes of the fields' defaults, for the fields and meta fields of one schema.

    Attributes:
        names: the fields, state fields behind all others.
        num_states: how many state fields there are.
    """

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.names = tuple(sorted(metadata.fields, key=lambda name: metadata.fields[name].state))
        self.num_states = sum(info.state for info in metadata.fields.values())
        self._fields = [
            (
                name,
                _refuse_derived(name) if name in metadata.derived else make_encoder(name, metadata.fields[name]),
                metadata.fields[name].stored.default_value().tobytes(),
            )
            for name in self.names
        ]
        self._meta = {name: make_encoder(name, info) for name, info in metadata.meta_fields.items()}

    def row(self, values: dict[str, Any]) -> list[bytes]:
        """The bytes of each field, in the order of ``names``: of a value, which is taken out, or of the default.

        Raises:
            FieldError: a name is unknown or a value does not fit.
        """
        row = [encode(values.pop(name)) if name in values else default for name, encode, default in self._fields]
        if values:
            name = next(iter(values))
            raise FieldError(f"unknown field {name!r}{did_you_mean(name, self.metadata.fields)}")
        return row

    def meta(self, values: Mapping[str, Any]) -> dict[str, bytes]:
        """Meta values as bytes.

        Raises:
            FieldError: a name is unknown or a value does not fit.
        """
        known = self.metadata.meta_fields
        return {name: self._meta[_checked(known, name)](value) for name, value in values.items()}

    def meta_columns(self, values: Mapping[str, Any], count: int) -> dict[str, MetaColumn]:
        """Meta values of several episodes: ``(count, *field.shape)`` each, or strings as bytes; one value is for all.

        Raises:
            FieldError: a name is unknown or its values do not fit.
        """
        columns: dict[str, MetaColumn] = {}
        for name, value in values.items():
            info = self.metadata.meta_fields[_checked(self.metadata.meta_fields, name)]
            if info.is_text:
                columns[name] = encode_texts(name, value, count)
                continue
            array = to_array(value, name)
            if array.shape in (info.shape, ()) and array.shape != (count, *info.shape):
                array = np.broadcast_to(array, (count, *array.shape))
            columns[name] = np.array(fit(name, array, info, lead=(count,)), order="C")
        return columns

    def column(self, name: str, value: Any, count: int) -> npt.NDArray[Any] | list[npt.NDArray[Any]]:
        """One row of a field for several episodes: ``(count, *field.shape)``, of a ragged field a list of arrays.

        Raises:
            FieldError: it does not fit.
        """
        info = self.metadata.fields[name]
        if name in self.metadata.derived:
            _refuse_derived(name)(value)
        if not info.ragged:
            return np.array(fit(name, to_array(value, name), info, lead=(count,)), copy=True)
        if not hasattr(value, "__len__") or len(value) != count:
            raise FieldError(f"field {name!r}: expected one array for each of {count} episodes, got {value!r:.60}")
        return [np.array(elements_of(name, item, info)) for item in value]


class _Stored:
    """What is stored step by step, as a context.

    It yields a dict for meta values, commits at the end, and discards where an exception leaves it.
    """

    _opened_by = ""
    is_implicit = False
    """Whether ``store`` opened it, outside of a context; ``advance_episode`` ends it."""

    is_complete = True
    """Whether it is not cut by the buffer's being closed."""

    def __init__(self, buffer: WritableBuffer) -> None:
        self._buffer = buffer
        self._writer: FolderWriter | None = None
        self._has_final = False
        self.final_meta: dict[str, Any] = {}

    def __enter__(self) -> dict[str, Any]:
        self._buffer.slot.require_free(self._opened_by)
        if self._writer is not None:
            raise EpisodeStateError(f"it was opened before; call {self._opened_by}() again")
        writer = self._buffer.writing()
        self._begin(writer)
        self._writer = writer
        self._buffer.slot.holder = self
        return self.final_meta

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            if kind is None:
                self._commit(self._running())
        finally:
            self.discard()
            self._buffer.slot.abandoned = None

    def end(self, *, complete: bool = True) -> None:
        """Commit what was stored, as at the end of the context; ``complete`` is False where it is cut."""
        self.is_complete = complete
        self.__exit__(None)

    def _running(self) -> FolderWriter:
        if self._writer is None or self._buffer.slot.holder is not self:
            raise EpisodeStateError("the episode is not open (any more)")
        self._writer.check_thread()
        return self._writer

    def store(self, values: dict[str, Any]) -> None:
        """Add one transition."""
        writer = self._running()
        if self._has_final:
            raise EpisodeStateError("a transition after store_final: the last observation ends the episode")
        self._add(writer, values)

    def store_final(self, values: dict[str, Any]) -> None:
        """Add the observation that the last transition led to."""
        self._running()
        if self._has_final:
            raise EpisodeStateError("the last observation is stored already")
        check_final(self._buffer.metadata.fields, values)
        self._add_final(values)
        self._has_final = True

    def open_rows(self) -> OpenRows | None:
        """The rows of what is open; None where there is no transition whose next state is known."""
        return None

    def discard(self) -> None:
        """Forget what was stored; without effect where it has ended."""
        if self._buffer.slot.holder is self:
            self._buffer.slot.holder = None
            self._buffer.slot.abandoned = self

    # What differs: one episode, or several.

    def _begin(self, writer: FolderWriter) -> None: ...

    def _add(self, writer: FolderWriter, values: dict[str, Any]) -> None: ...

    def _add_final(self, values: dict[str, Any]) -> None: ...

    def _commit(self, writer: FolderWriter) -> None: ...


class OpenEpisode(_Stored):
    """The episode that is being stored: what ``buffer.one_episode()`` returns."""

    _opened_by = "one_episode"

    def __init__(self, buffer: WritableBuffer, meta: Mapping[str, Any]) -> None:
        super().__init__(buffer)
        self._meta = buffer.encoders().meta(meta)
        self._room = 0
        self._last: list[bytes] | None = None  # the last transition, until the state is known that it led to
        self._final: list[bytes] | None = None

    def _begin(self, writer: FolderWriter) -> None:
        self._encoders = encoders = self._buffer.encoders()
        self._stage = writer.stage(names=encoders.names)
        self._rows = StagedRows(self._stage, partial(decoded_meta, encoders.metadata, self._meta))
        self._num_others = len(encoders.names) - encoders.num_states

    def _add(self, writer: FolderWriter, values: dict[str, Any]) -> None:
        if self._room <= 0:
            self._make_room()
        row = self._encoders.row(values)
        self._end_last(row[self._num_others :])
        self._last = row[: self._num_others]
        self._room -= 1

    def _make_room(self) -> None:
        stage = self._stage
        stored = len(stage) + (self._last is not None)
        if stored >= stage.longest:
            self._running().require_longer(stage, stored + 1)
        self._extend, room = stage.make_room()
        self._room = min(room, stage.longest - stored)

    def _end_last(self, states: list[bytes]) -> None:
        """Have the last transition lead to a state, which is row 0 where there is none."""
        if self._last is not None:
            self._extend(self._last + states)
        else:
            self._stage.begin(dict(zip(self._encoders.names[self._num_others :], states, strict=True)))

    def _add_final(self, values: dict[str, Any]) -> None:
        self._final = self._encoders.row(values)[self._num_others :]

    def open_rows(self) -> OpenRows | None:
        return self._rows.follow()

    def _commit(self, writer: FolderWriter) -> None:
        encoders, stage = self._encoders, self._stage
        if self._last is None:
            return
        stage.has_final = self._has_final
        self._end_last(self._final or encoders.row({})[self._num_others :])
        meta = {**self._meta, **encoders.meta(self.final_meta)}
        writer.commit(stage.block(meta, complete=self.is_complete))


class OpenBlock(_Stored):
    """Several episodes of equal length in lockstep: what ``buffer.batched_episode()`` returns."""

    _opened_by = "batched_episode"

    def __init__(self, buffer: WritableBuffer, batch_size: int, meta: Mapping[str, Any]) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise FieldError(f"batch_size: expected a positive integer, got {batch_size!r}")
        super().__init__(buffer)
        self.size = int(batch_size)
        self._meta = buffer.encoders().meta_columns(meta, self.size)
        self._steps: list[dict[str, Any]] = []

    def _begin(self, writer: FolderWriter) -> None:
        writer.room.require(self.size, 1)

    def _encoded(self, values: dict[str, Any]) -> dict[str, Any]:
        encoders = self._buffer.encoders()
        return {name: encoders.column(name, value, self.size) for name, value in values.items()}

    def _add(self, writer: FolderWriter, values: dict[str, Any]) -> None:
        fields = self._buffer.metadata.fields
        if unknown := [name for name in values if name not in fields]:
            raise FieldError(f"unknown field {unknown[0]!r}{did_you_mean(unknown[0], fields)}")
        step = self._encoded(values)
        writer.room.require(self.size, len(self._steps) + 1)
        self._steps.append(step)

    def _add_final(self, values: dict[str, Any]) -> None:
        self._final = self._encoded(values)

    def _commit(self, writer: FolderWriter) -> None:
        encoders, length = self._buffer.encoders(), len(self._steps)
        if not length:
            return
        steps = [*self._steps, *([self._final] if self._has_final else [])]
        given: dict[str, list[tuple[int | slice, Any]]] = {
            name: [(t, step[name]) for t, step in enumerate(steps) if name in step] for name in encoders.metadata.fields
        }
        meta = {**self._meta, **encoders.meta_columns(self.final_meta, self.size)}
        flags = (COMPLETE if self.is_complete else 0) | (HAS_FINAL if self._has_final else 0)
        _commit_rows(writer, given, [length] * self.size, flags, meta)


class Claim:
    """The right of a recorder to commit episodes to a buffer: what ``buffer.claim()`` returns.

    While a claim is open the buffer takes no other episodes, and while one is not, it costs the buffer nothing.

    Args:
        buffer: the buffer.
        owner: the recorder.
        end: a method that commits what is open, and closes the claim; called where ``owner`` is garbage or the
            interpreter exits, before the buffer lets its folder go. It knows nothing of ``owner``.
        forget: a method that forgets what is open; called where the buffer is released.
        rows: a method that gives the rows of what is open.
    """

    def __init__(
        self,
        buffer: WritableBuffer,
        owner: object,
        end: Callable[[], None],
        forget: Callable[[], None],
        rows: Callable[[], OpenRows | None],
    ) -> None:
        self._buffer, self._owner = buffer, weakref.ref(owner)
        self._end, self._forget = weakref.WeakMethod(end), weakref.WeakMethod(forget)  # of who holds this claim
        self._rows = weakref.WeakMethod(rows)
        self._writer: FolderWriter | None = None
        self._ends_before: FolderWriter | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._written: Mapping[str, Field | None] = {}
        self._compared: Metadata | None = None

    is_implicit = False
    """A recorder's episodes are its own to end."""

    def end(self, *, complete: bool = True) -> None:
        """Nothing: see :attr:`is_implicit`."""

    @property
    def is_open(self) -> bool:
        """Whether the buffer is kept for this claim's episodes."""
        return self._writer is not None

    def open_rows(self) -> OpenRows | None:
        """The rows of what is open; None where there is no transition."""
        rows = self._rows()
        return None if rows is None else rows()

    def require_fields(self, fields: Mapping[str, Field | None]) -> None:
        """Refuse to open from now on where a field that the recorder writes was renamed, dropped or replaced.

        Args:
            fields: by name, the declaration that the recorder knows; None where it may become another one.
        """
        self._written, self._compared = dict(fields), None

    def _compare_fields(self) -> None:
        if (metadata := self._buffer.metadata) is self._compared:
            return
        for name, info in self._written.items():
            if name not in metadata.fields:
                raise FieldError(
                    f"field {name!r} was renamed or dropped, and this recorder writes it; make a new recorder"
                )
            if info is not None and metadata.fields[name] != info:
                raise FieldError(
                    f"field {name!r} was replaced by one of another declaration, and this recorder writes it; make a "
                    "new recorder"
                )
        self._compared = metadata

    def open(self) -> None:
        """Keep the buffer for this claim's episodes; another process or object is refused from then on.

        Raises:
            FieldError: a field that the recorder writes was renamed or dropped.
            EpisodeStateError: an episode of somebody else is open.
            BufferLockedError: another writer, or another thread, writes to the folder.
        """
        buffer = self._buffer
        if buffer.slot.holder is not self:
            buffer.slot.require_free("recording an episode")
        writer = buffer.writing()
        self._compare_fields()
        buffer.slot.holder = self
        self._writer = writer
        if self._ends_before is not writer and (owner := self._owner()) is not None:
            if self._finalizer is not None:
                self._finalizer.detach()
            # Made after the finalizer of the writer, so that at the interpreter's exit it runs before that.
            self._ends_before = writer
            self._finalizer = weakref.finalize(owner, finalize, _end_for, self._owner, writer, self._end())

    def close(self) -> None:
        """Let the buffer take other episodes."""
        if self._buffer.slot.holder is self:
            self._buffer.slot.holder = None
        self._writer = None

    def discard(self) -> None:
        """Forget what is open: the buffer is released."""
        self.close()
        if (forget := self._forget()) is not None:
            forget()

    def _opened(self) -> FolderWriter:
        if self._writer is None:
            self.open()
        assert self._writer is not None
        return self._writer

    def stage(
        self, initial: Mapping[str, bytes], names: Sequence[str], packers: Mapping[str, Callable[[list[Any]], Any]]
    ) -> Stage:
        """A new open episode, whose transitions are added as bytes.

        Args:
            initial: row 0 of the state fields.
            names: the fields of which each transition brings an item.
            packers: for fields whose items are numbers and no bytes of a row: makes a buffer of the rows of many items.

        Raises:
            BufferFullError: there is no room for one more episode.
        """
        return self._opened().stage(initial, names, packers)

    def require_room(self, lengths: npt.NDArray[np.int64]) -> None:
        """Raise where open episodes of these lengths do not fit into the buffer.

        Raises:
            EpisodeTooLongError, BufferFullError: they do not fit.
        """
        writer = self._opened()
        if writer.metadata.circular:
            writer.room.require(1, int(lengths.max()))
        else:
            writer.room.require(len(lengths), int(lengths.max()), steps=int(lengths.sum()))

    def check_owner(self) -> None:
        """Raise BufferLockedError in a forked child, which has the files of the process that it comes from."""
        self._opened().check_owner()

    def largest_block(self) -> tuple[int, int]:
        """How many episodes, and transitions, to commit at once: in a ring, so few that not many others are evicted."""
        return self._opened().room.largest_block()

    def require_longer(self, stage: Stage) -> None:
        """Raise where the open episode may have no transition more.

        Raises:
            EpisodeTooLongError, BufferFullError: which limit there is.
        """
        self._opened().require_longer(stage, len(stage) + 1)

    @property
    def next_id(self) -> int:
        """The id of the next episode that is committed."""
        return self._opened().next_id

    def commit(self, block: Block) -> None:
        """Make whole episodes visible.

        Raises:
            StorageError: the operating system refused. The same block can be committed again, unless
                :meth:`is_committed` says that it is visible.
        """
        self._opened().commit(block)

    def is_committed(self, first_id: int | None) -> bool:
        """Whether a commit that was begun under this id came through, whatever exception came then."""
        return first_id is not None and first_id < self._opened().counters.next


def _end_for(owner: weakref.ref[object], writer: FolderWriter, end: Callable[[], None]) -> None:
    """End the episodes of a recorder that is garbage, in any thread, or is there when the interpreter exits."""
    if writer.is_inherited:
        return  # the process that this one was forked from has them open
    if writer.is_for_another_thread:
        if owner() is None:  # otherwise it may be stepping: all that it has committed is there
            writer.turns.do_as_guest(end)
    elif not writer.turns.puts_off(end):
        end()


def _commit_rows(
    writer: FolderWriter,
    given: Mapping[str, list[tuple[int | slice, Any]]],
    lengths: list[int],
    flags: int,
    meta: Mapping[str, MetaColumn],
) -> None:
    """Commit episodes of equal length.

    Args:
        given: by field, the values of some rows, ``(episodes, *field.shape)`` of one or ``(episodes, rows,
            *field.shape)`` of a slice of them, of ragged fields as lists of arrays; other rows hold the default. Of a
            single episode the first rows may be :class:`Encoded`.
        lengths: T of each episode.
        flags: of all of them.
        meta: the values of meta fields; others hold their default.
    """
    metadata, size = writer.metadata, len(lengths)
    count = lengths[0] + metadata.has_state
    rows: dict[str, Any] = {}
    for name, parts in given.items():
        info = metadata.fields[name]
        default = info.default_value()
        if info.ragged:
            episodes: list[list[Any]] = [[default] * count for _ in range(size)]
            for where, values in parts:
                for episode, value in zip(episodes, values, strict=True):
                    episode[where] = value
            rows[name] = Ragged.of_rows([row for episode in episodes for row in episode], info.dtype, info.shape)
        elif parts and isinstance(parts[0][1], Encoded):
            lengths_of_rows, elements = parts[0][1].stored.compact()
            rows[name] = Ragged.of_lengths(np.pad(lengths_of_rows, (0, count - len(lengths_of_rows))), elements)
        else:
            column = np.empty((size, count, *info.shape), info.dtype)
            column[:] = default
            for where, values in parts:
                column[:, where] = values
            rows[name] = column.reshape(size * count, *info.shape)
    writer.commit(Block(rows, lengths, flags, meta))


def store_whole(writer: FolderWriter, encoders: Encoders, values: Mapping[str, Any], *, complete: bool = True) -> None:
    """Commit an episode given as whole arrays; ``complete`` is False for one that was cut."""
    metadata = encoders.metadata
    fields = metadata.fields
    if unknown := [name for name in values if name not in fields and name not in metadata.meta_fields]:
        near = did_you_mean(unknown[0], [*fields, *metadata.meta_fields])
        raise FieldError(f"unknown field {unknown[0]!r}{near}")
    for name in metadata.derived.keys() & values.keys():
        _refuse_derived(name)(values[name])
    arrays: dict[str, Any] = {
        name: _rows_of(name, values[name], info) for name, info in fields.items() if name in values
    }
    length, has_final = _length_of(fields, arrays)
    given: dict[str, list[tuple[int | slice, Any]]] = {}
    for name, array in arrays.items():
        info, count = fields[name], len(array)
        if isinstance(array, Encoded):
            rows: Any = array
        else:
            rows = [list(array)] if info.ragged else fit(name, array, info, lead=(count,))[None]
        given[name] = [(slice(0, count), rows)]
    values_of_meta = {name: value for name, value in values.items() if name in metadata.meta_fields}
    meta = encoders.meta(values_of_meta)
    flags = (HAS_FINAL if has_final else 0) | (COMPLETE if complete else 0)
    _commit_rows(writer, given, [length], flags, meta)


def _rows_of(name: str, value: Any, info: Field) -> Any:
    """The rows of a field; those that are encoded as the field has them stay so, also where its codec is lossy."""
    if info.ragged:
        return ragged_rows(name, value, info)
    if isinstance(value, Encoded) and value.field.stored_alike(info):
        return value
    return to_array(value, name)


def ragged_rows(name: str, value: Any, info: Field) -> Ragged:
    """The rows of a ragged field, given as a list of arrays.

    Raises:
        FieldError: they are none.
    """
    if isinstance(value, Ragged):
        value = list(value)
    if not isinstance(value, (list, tuple)) and not (isinstance(value, np.ndarray) and value.ndim):
        raise FieldError(f"field {name!r}: expected a list of one array per step, got {value!r:.60}")
    return Ragged.of_rows([elements_of(name, row, info) for row in value], info.dtype, info.shape)


def encode_texts(name: str, value: Any, count: int) -> list[bytes]:
    """The bytes of a string meta field for several episodes: one string for all of them, or one for each.

    Raises:
        FieldError: there is another number of them, or they are no strings.
    """
    texts = [value] * count if isinstance(value, str) else list(value) if hasattr(value, "__iter__") else [value]
    encoded = [encode_text(name, str(text) if isinstance(text, np.str_) else text) for text in texts]
    if len(encoded) != count:
        raise FieldError(f"meta field {name!r}: expected {count} strings, got {len(encoded)}")
    return encoded


def _length_of(fields: Mapping[str, Field], arrays: Mapping[str, Any]) -> tuple[int, bool]:
    """T of an episode given as arrays, and whether its last observation is among them."""
    if scalars := [name for name, array in arrays.items() if not fields[name].ragged and array.ndim == 0]:
        raise FieldError(f"field {scalars[0]!r}: expected one value per step, got a single value")
    plain = {name: len(array) for name, array in arrays.items() if not fields[name].state}
    states = {name: len(array) for name, array in arrays.items() if fields[name].state}
    if not arrays:
        raise FieldError("expected at least one field with a time axis, got none")
    lengths = {**plain, **states}
    length = next(iter(plain.values()), None)
    if length is None:
        length = min(states.values()) - (len(set(states.values())) == 1)
        if length < 1:
            raise FieldError(
                "only state fields are given, so their last row is taken as the last observation; expected at least 2 "
                "rows"
            )
    if length < 1:
        raise FieldError("an episode has at least one transition, got none")
    all_states = [name for name, info in fields.items() if info.state]
    has_final = bool(states) and all(count == length + 1 for count in states.values())
    if any(count != length for count in plain.values()) or not (
        has_final or all(count == length for count in states.values())
    ):
        raise FieldError(
            f"the fields differ in length: {lengths}; expected T rows each, and for state fields {all_states} T, or "
            "T+1 for all of them"
        )
    if has_final and len(states) < len(all_states):
        missing = [name for name in all_states if name not in states]
        raise FieldError(f"field {missing[0]!r}: expected T+1 rows as for the other state fields, got none")
    return length, has_final


def check_final(fields: Mapping[str, Field], values: Mapping[str, Any]) -> None:
    """Raise FieldError unless exactly the state fields are given."""
    states = [name for name, info in fields.items() if info.state]
    if wrong := [name for name in values if name not in states]:
        raise FieldError(f"field {wrong[0]!r} is no state field; store_final takes {states}")
    if missing := [name for name in states if name not in values]:
        raise FieldError(f"field {missing[0]!r} is missing; store_final takes all state fields: {states}")
    if not states:
        raise FieldError("store_final: the buffer has no state field; declare one with Field(..., state=True)")


def _refuse_derived(name: str) -> Callable[[Any], bytes]:
    """An encoder of a field that takes no values with its episodes."""

    def refuse(value: Any) -> bytes:
        raise FieldError(
            f"field {name!r} is derived: its values are computed from stored episodes, with buffer.update, and are not "
            "stored with new ones; a field that takes them is added with add_field(..., derived=False)"
        )

    return refuse


def decoded_meta(metadata: Metadata, values: Mapping[str, bytes]) -> dict[str, npt.NDArray[Any]]:
    """The meta fields of one episode, given as bytes, as arrays ``(1, *field.shape)``; strings as objects."""
    found: dict[str, npt.NDArray[Any]] = {}
    for name, value in values.items():
        info = metadata.meta_fields[name]
        if info.is_text:
            found[name] = np.array([value.decode("utf-8", "surrogatepass")], object)
        else:
            found[name] = np.frombuffer(value, info.dtype).reshape(1, *info.shape)
    return found


def _checked(known: Mapping[str, Field], name: str) -> str:
    if name not in known:
        raise FieldError(f"unknown meta field {name!r}{did_you_mean(name, known)}")
    return name

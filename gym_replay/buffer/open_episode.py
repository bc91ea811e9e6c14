"""Episodes on their way into a buffer: one, several in lockstep, or one that is there whole."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.block import Block
from gym_replay.buffer.storage.layout import Metadata
from gym_replay.buffer.storage.ragged import Ragged
from gym_replay.buffer.storage.records import COMPLETE, HAS_FINAL, MetaColumn
from gym_replay.buffer.storage.staging import Stage
from gym_replay.buffer.storage.writer import FolderWriter
from gym_replay.errors import BufferFullError, EpisodeStateError, EpisodeTooLongError, FieldError
from gym_replay.files.garbage import finalize
from gym_replay.schema.fields import Field, elements_of, encode_text, fit, make_encoder, to_array


class EpisodeSlot:
    """The place for what is open in a buffer: one episode, several in lockstep, or those of a recorder.

    Attributes:
        holder: what is open; None where nothing is.
    """

    def __init__(self) -> None:
        self.holder: OpenEpisode | OpenBlock | Claim | None = None

    def require_free(self, what: str) -> None:
        """Raise EpisodeStateError where an episode is open; ``what`` is what cannot be done then."""
        if isinstance(self.holder, Claim):
            raise EpisodeStateError(
                f"{what} while a recorder has an episode open in this buffer; close the recorder first. A buffer "
                "has one recorder at a time: another one needs a folder of its own"
            )
        if self.holder is not None:
            raise EpisodeStateError(
                f"{what} while an episode is open; end the episode first, or discard it with release()"
            )


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
    """Values to bytes, and the bytes of defaults, for the fields and meta fields of one schema."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.fields = {name: make_encoder(name, info) for name, info in metadata.fields.items()}
        self.defaults = {name: info.default_value().tobytes() for name, info in metadata.fields.items()}
        self._meta = {name: make_encoder(name, info) for name, info in metadata.meta_fields.items()}
        self.meta_defaults = {
            name: b"" if info.is_text else info.default_value().tobytes() for name, info in metadata.meta_fields.items()
        }

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
            columns[name] = np.array(fit(name, array, info, lead=(count,)))
        return columns

    def column(self, name: str, value: Any, count: int) -> npt.NDArray[Any] | list[npt.NDArray[Any]]:
        """One row of a field for several episodes: ``(count, *field.shape)``, of a ragged field a list of arrays.

        Raises:
            FieldError: it does not fit.
        """
        info = self.metadata.fields[name]
        if not info.ragged:
            return np.array(fit(name, to_array(value, name), info, lead=(count,)), copy=True)
        if not hasattr(value, "__len__") or len(value) != count:
            raise FieldError(f"field {name!r}: expected one array for each of {count} episodes, got {value!r:.60}")
        return [np.array(elements_of(name, item, info)) for item in value]


class OpenEpisode:
    """The episode that is being stored: what ``buffer.one_episode()`` returns.

    As a context manager it yields ``final_meta``, commits at the end, and discards where an exception leaves it.
    """

    def __init__(self, buffer: WritableBuffer, meta: Mapping[str, Any]) -> None:
        self._buffer = buffer
        self._meta = buffer.encoders().meta(meta)
        self.final_meta: dict[str, Any] = {}
        self._stage: Stage | None = None

    def __enter__(self) -> dict[str, Any]:
        buffer = self._buffer
        buffer.slot.require_free("one_episode")
        if self._stage is not None:
            raise EpisodeStateError("this episode was opened before; call one_episode() again")
        self._writer = buffer.writing()
        self._stage = self._writer.stage()
        self._encoders = buffer.encoders()
        buffer.slot.holder = self
        return self.final_meta

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self.discard()

    def _running(self) -> Stage:
        if self._stage is None or self._buffer.slot.holder is not self:
            raise EpisodeStateError("the episode is not open (any more)")
        self._writer.check_thread()
        return self._stage

    def store(self, values: dict[str, Any]) -> None:
        """Add one transition."""
        stage = self._running()
        if stage.final is not None:
            raise EpisodeStateError("store after store_final: the last observation ends the episode")
        if len(stage) >= stage.longest:
            raise_too_long(self._buffer.metadata, stage.longest)
        encoders, defaults = self._encoders.fields, self._encoders.defaults
        row = tuple([encoders[name](values.pop(name)) if name in values else defaults[name] for name in encoders])
        if values:
            raise FieldError(f"unknown field {next(iter(values))!r}; there are {list(encoders)}")
        stage.append(row)

    def store_final(self, values: dict[str, Any]) -> None:
        """Add the observation that the last transition led to."""
        stage = self._running()
        if stage.has_final:
            raise EpisodeStateError("the last observation is stored already")
        check_final(self._buffer.metadata.fields, values)
        encoders = self._encoders.fields
        stage.final = {name: encoders[name](value) for name, value in values.items()}

    def _commit(self) -> None:
        stage = self._running()
        if len(stage):
            encoders = self._encoders
            meta = {**encoders.meta_defaults, **self._meta, **encoders.meta(self.final_meta)}
            self._writer.commit(stage.block(stage.pieces(), meta, complete=True))

    def discard(self) -> None:
        """Forget the episode; without effect where it has ended."""
        if self._buffer.slot.holder is self:
            self._buffer.slot.holder = None
            if self._stage is not None:
                self._stage.close()


def raise_too_long(metadata: Metadata, length: int) -> NoReturn:
    """Say which limit a transition more than ``length`` would exceed."""
    if metadata.max_timesteps is not None and length >= metadata.max_timesteps:
        raise EpisodeTooLongError(
            f"one step past max_timesteps={metadata.max_timesteps}; end the episode, or create the buffer with a "
            "larger max_timesteps (or none)"
        )
    if metadata.circular:
        raise EpisodeTooLongError(f"one step past max_steps={metadata.max_steps}, which is all that the ring holds")
    raise BufferFullError(
        f"one step past max_steps={metadata.max_steps}; create the buffer with circular=True or a larger max_steps"
    )


class OpenBlock:
    """Several episodes of equal length in lockstep: what ``buffer.batched_episode()`` returns."""

    def __init__(self, buffer: WritableBuffer, batch_size: int, meta: Mapping[str, Any]) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise FieldError(f"batch_size: expected a positive integer, got {batch_size!r}")
        self._buffer = buffer
        self._size = int(batch_size)
        self._meta = buffer.encoders().meta_columns(meta, self._size)
        self.final_meta: dict[str, Any] = {}
        self._writer: FolderWriter | None = None
        self._steps: list[dict[str, Any]] = []
        self._final: dict[str, Any] | None = None

    def __enter__(self) -> dict[str, Any]:
        self._buffer.slot.require_free("batched_episode")
        if self._writer is not None:
            raise EpisodeStateError("these episodes were opened before; call batched_episode() again")
        self._writer = self._buffer.writing()
        self._writer.check_owner()
        self._writer.room.require(self._size, 1)
        self._buffer.slot.holder = self
        return self.final_meta

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            if kind is None and self._steps:
                self._commit()
        finally:
            self.discard()

    def _running(self) -> FolderWriter:
        if self._writer is None or self._buffer.slot.holder is not self:
            raise EpisodeStateError("the episodes are not open (any more)")
        self._writer.check_thread()
        return self._writer

    def store(self, values: dict[str, Any]) -> None:
        """Add one transition to each episode."""
        fields = self._buffer.metadata.fields
        writer = self._running()
        if self._final is not None:
            raise EpisodeStateError("store_batch after store_final: the last observations end the episodes")
        if unknown := [name for name in values if name not in fields]:
            raise FieldError(f"unknown field {unknown[0]!r}; there are {list(fields)}")
        encoders = self._buffer.encoders()
        step = {name: encoders.column(name, value, self._size) for name, value in values.items()}
        writer.room.require(self._size, len(self._steps) + 1)
        self._steps.append(step)

    def store_final(self, values: dict[str, Any]) -> None:
        """Add the observation that each episode's last transition led to."""
        self._running()
        if self._final is not None:
            raise EpisodeStateError("the last observations are stored already")
        check_final(self._buffer.metadata.fields, values)
        encoders = self._buffer.encoders()
        self._final = {name: encoders.column(name, value, self._size) for name, value in values.items()}

    def _commit(self) -> None:
        writer, metadata, size, length = self._running(), self._buffer.metadata, self._size, len(self._steps)
        rows: dict[str, Any] = {}
        for name, info in metadata.fields.items():
            steps = [step.get(name) for step in self._steps]
            if metadata.has_state:
                steps.append(self._final[name] if self._final is not None and info.state else None)
            rows[name] = _ragged_block(steps, size, info) if info.ragged else _block(steps, size, info)
        encoders = self._buffer.encoders()
        meta = {**encoders.meta_defaults, **self._meta, **encoders.meta_columns(self.final_meta, size)}
        flags = COMPLETE | (HAS_FINAL if self._final is not None else 0)
        writer.commit(Block.of_rows(rows, [length] * size, flags, meta))

    def discard(self) -> None:
        """Forget the episodes; without effect where they have ended."""
        if self._buffer.slot.holder is self:
            self._buffer.slot.holder = None


class Claim:
    """The right of a recorder to commit episodes to a buffer: what ``buffer.claim()`` returns.

    While a claim is open the buffer takes no other episodes, and while one is not, it costs the buffer nothing.

    Args:
        buffer: the buffer.
        owner: the recorder.
        end: a method that commits what is open, and closes the claim; called where ``owner`` is garbage or the
            interpreter exits, before the buffer lets its folder go. It knows nothing of ``owner``.
        forget: a method that forgets what is open; called where the buffer is released.

    Attributes:
        writer: that of the buffer, while the claim is open.
    """

    def __init__(
        self, buffer: WritableBuffer, owner: object, end: Callable[[], None], forget: Callable[[], None]
    ) -> None:
        self._buffer, self._owner = buffer, weakref.ref(owner)
        self._end, self._forget = weakref.WeakMethod(end), weakref.WeakMethod(forget)  # of who holds this claim
        self.writer: FolderWriter | None = None
        self._ends_before: FolderWriter | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None

    def open(self) -> FolderWriter:
        """Keep the buffer for this claim's episodes; another process or object is refused from then on.

        Raises:
            EpisodeStateError: an episode of somebody else is open.
            BufferLockedError: another writer, or another thread, writes to the folder.
        """
        buffer = self._buffer
        if buffer.slot.holder is not self:
            buffer.slot.require_free("recording an episode")
        writer = buffer.writing()
        buffer.slot.holder = self
        self.writer = writer
        if self._ends_before is not writer and (owner := self._owner()) is not None:
            if self._finalizer is not None:
                self._finalizer.detach()
            # Made after the finalizer of the writer, so that at the interpreter's exit it runs before that.
            self._ends_before, self._finalizer = writer, weakref.finalize(owner, finalize, self._end())
        return writer

    def close(self) -> None:
        """Let the buffer take other episodes."""
        if self._buffer.slot.holder is self:
            self._buffer.slot.holder = None
        self.writer = None

    def discard(self) -> None:
        """Forget what is open: the buffer is released."""
        self.close()
        if (forget := self._forget()) is not None:
            forget()

    def _opened(self) -> FolderWriter:
        return self.writer or self.open()

    def stage(
        self, initial: Mapping[str, bytes], names: Sequence[str], packers: Mapping[str, Callable[[list[Any]], Any]]
    ) -> Stage:
        """A new open episode, whose transitions are added as bytes.

        Args:
            initial: row 0 of the state fields.
            names: the fields of which each transition brings an item.
            packers: for fields whose items are no bytes of a row: makes a buffer of the rows of many items.

        Raises:
            BufferFullError: there is no room for one more episode.
        """
        return self.open().stage(initial, names, packers)

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

    def raise_too_long(self, stage: Stage) -> NoReturn:
        """Say which limit one more transition would exceed."""
        raise_too_long(self._buffer.metadata, stage.longest)

    @property
    def next_id(self) -> int:
        """The id of the next episode that is committed."""
        return self._opened().counters.next

    def commit(self, block: Block) -> None:
        """Make whole episodes visible.

        Raises:
            StorageError: the operating system refused. The same block can be committed again, unless
                :meth:`is_committed` says that it is visible.
        """
        writer = self.writer
        if writer is None or writer.metadata.circular:
            writer = self.open()  # a ring makes room for strings when it is opened
        writer.commit(block)

    def is_committed(self, first_id: int | None) -> bool:
        """Whether a commit that was begun under this id came through, whatever exception came then."""
        return first_id is not None and first_id < self._opened().counters.next


def _block(steps: list[npt.NDArray[Any] | None], size: int, info: Field) -> npt.NDArray[Any]:
    """The rows of all episodes, one episode after another, from one array over the episodes for each row."""
    block = np.empty((size, len(steps), *info.shape), info.dtype)
    block[:] = info.default_value()
    for t, step in enumerate(steps):
        if step is not None:
            block[:, t] = step
    return block.reshape(size * len(steps), *info.shape)


def _ragged_block(steps: list[list[npt.NDArray[Any]] | None], size: int, info: Field) -> Ragged:
    default = info.default_value()
    return Ragged.of_rows(
        [default if step is None else step[k] for k in range(size) for step in steps], info.dtype, info.shape
    )


def store_whole(writer: FolderWriter, encoders: Encoders, values: Mapping[str, Any], *, complete: bool = True) -> None:
    """Commit an episode given as whole arrays; ``complete`` is False for one that was cut."""
    metadata = encoders.metadata
    fields = metadata.fields
    if unknown := [name for name in values if name not in fields and name not in metadata.meta_fields]:
        raise FieldError(f"unknown field {unknown[0]!r}; there are {[*fields, *metadata.meta_fields]}")
    arrays: dict[str, Any] = {
        name: ragged_rows(name, values[name], info) if info.ragged else to_array(values[name], name)
        for name, info in fields.items()
        if name in values
    }
    length, has_final = _length_of(fields, arrays)
    rows: dict[str, Any] = {}
    for name, info in fields.items():
        taken, count = length + metadata.has_state, length + (info.state and has_final)
        if info.ragged:
            given_rows = list(arrays.get(name, ()))
            rows[name] = Ragged.of_rows(
                given_rows + [info.default_value()] * (taken - len(given_rows)), info.dtype, info.shape
            )
            continue
        column = np.empty((taken, *info.shape), info.dtype)
        column[:] = info.default_value()
        if name in arrays:
            column[:count] = fit(name, arrays[name], info, lead=(count,))
        rows[name] = column
    given = {name: value for name, value in values.items() if name in metadata.meta_fields}
    meta = {**encoders.meta_defaults, **encoders.meta(given)}
    flags = (HAS_FINAL if has_final else 0) | (COMPLETE if complete else 0)
    writer.commit(Block.of_rows(rows, [length], flags, meta))


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
        raise_if_empty = "only state fields are given, so their last row is taken as the last observation"
        if length < 1:
            raise FieldError(f"{raise_if_empty}; expected at least 2 rows")
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


def _checked(known: Mapping[str, Field], name: str) -> str:
    if name not in known:
        raise FieldError(f"unknown meta field {name!r}; there are {list(known)}")
    return name

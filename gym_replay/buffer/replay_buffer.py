"""ReplayBuffer: episodes stored in a folder, and read from it."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from gym_replay.buffer import open_episode
from gym_replay.buffer.reading import Readable
from gym_replay.buffer.storage import edits
from gym_replay.buffer.storage.creation import check_config, check_target, create_files
from gym_replay.buffer.storage.layout import METADATA, Metadata
from gym_replay.buffer.storage.ragged import Ragged
from gym_replay.buffer.storage.reader import FolderReader, Snapshot, has_buffer
from gym_replay.buffer.storage.writer import FolderWriter
from gym_replay.errors import (
    BufferClosedError,
    BufferLockedError,
    BufferNotFoundError,
    ConfigMismatchError,
    CorruptBufferError,
    EpisodeStateError,
    FieldError,
    GymReplayError,
    MakeEnvError,
    ReadOnlyError,
)
from gym_replay.files.descriptors import require_descriptors
from gym_replay.files.directory import refusal
from gym_replay.files.folders import folder_of
from gym_replay.files.garbage import finalize
from gym_replay.files.lock import WriterLock
from gym_replay.schema.fields import (
    Field,
    FieldLike,
    fit,
    parse_field,
    parse_fields,
    require_codecs,
    stack_episodes,
    to_array,
)
from gym_replay.schema.names import check_distinct, check_field_name

if TYPE_CHECKING:
    import gymnasium as gym

_T = TypeVar("_T")
_DURABILITIES = ("process", "power")


class ReplayBuffer(Readable):
    """Episodes in a folder of plain ``.npy`` files, one file per field.

    An existing folder is appended to unless ``overwrite=True``. Arguments left at None mean what is stored.

    One thread writes: the first one that does, until it calls :meth:`release` or :meth:`close`, or ends. Every method
    that writes raises BufferLockedError in another thread meanwhile. Any thread may read.

    A buffer writes into the folder that it opened. Where that was deleted, moved away or replaced meanwhile, or its
    ``writer.lock`` was, the next write raises BufferNotFoundError, ConfigMismatchError or BufferLockedError, and
    changes nothing.

    Args:
        folder: where the buffer is, or will be.
        max_episodes: most live episodes; None for no limit.
        max_timesteps: longest episode, in transitions.
        fields: name to :class:`Field`, or to a short form: ``"float"``, ``("float", shape)``,
            ``("float", shape, default)``. Needed for a new buffer.
        meta_fields: the same for values that an episode has once.
        circular: evict the oldest episodes instead of being full. Needs ``max_episodes`` or ``max_steps``.
        overwrite: replace the buffer that is there. A folder that holds anything else is refused.
        read_only: create and write nothing.
        max_steps: most transitions of all live episodes.
        durability: ``"process"`` (a commit survives the end of the process, however it comes) or ``"power"`` (it is
            synced to the disk before the commit returns).

    Raises:
        ConfigMismatchError: the buffer was created with a different config.
        BufferLockedError: a new buffer, or the one to overwrite, is being written by somebody else.
        NotABufferError: the folder is not empty and holds something else.
        BufferNotFoundError: there is none, and ``read_only`` or missing ``fields`` forbid to create one.

    Example:
        >>> import tempfile
        >>> buffer = ReplayBuffer(tempfile.mkdtemp(), fields={"state": ("float", 3), "reward": "float"})
        >>> with buffer.one_episode():
        ...     for _ in range(5):
        ...         buffer.store(state=[0.0, 1.0, 2.0], reward=1.0)
        >>> len(buffer), buffer.num_steps, buffer.episode(0)["state"].shape
        (1, 5, (5, 3))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        max_episodes: int | None = None,
        max_timesteps: int | None = None,
        fields: Mapping[str, FieldLike] | None = None,
        meta_fields: Mapping[str, FieldLike] | None = None,
        *,
        circular: bool | None = None,
        overwrite: bool = False,
        read_only: bool = False,
        max_steps: int | None = None,
        durability: str = "process",
    ) -> None:
        config = {
            "fields": None if fields is None else parse_fields(fields),
            "meta_fields": None if meta_fields is None else parse_fields(meta_fields, "meta field"),
            "circular": circular,
            "max_episodes": _limit(max_episodes),
            "max_timesteps": _limit(max_timesteps),
            "max_steps": _limit(max_steps),
        }
        self._open(folder, config, overwrite=overwrite, read_only=read_only, durability=durability)

    def _open(
        self,
        folder: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        overwrite: bool,
        read_only: bool,
        durability: str,
    ) -> None:
        if durability not in _DURABILITIES:
            raise FieldError(f"durability={durability!r}: expected one of {_DURABILITIES}")
        if overwrite and read_only:
            raise FieldError("overwrite=True and read_only=True exclude one another")
        self._begin(folder_of(folder), read_only=read_only, durability=durability)
        try:
            if overwrite or not has_buffer(self._folder):
                if read_only:
                    raise BufferNotFoundError(errno.ENOENT, "no buffer here to open read-only", str(self._folder))
                self._create(config, overwrite=overwrite)
            self._reader = FolderReader(self._folder)
            self._reader.last_snapshot()  # so that what is damaged is an error now
            check_match(self._reader.metadata, config, self._folder)
        except BaseException:
            self.close()
            raise

    def _begin(self, folder: Path, *, read_only: bool, durability: str) -> None:
        """What there is before the first file is opened."""
        self._folder = folder
        self._read_only = read_only
        self._durability = durability
        self._writer: FolderWriter | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self.slot = open_episode.EpisodeSlot()
        self._closed = False
        self._encoders: open_episode.Encoders | None = None

    def _create(self, config: Mapping[str, Any], *, overwrite: bool) -> None:
        given = {name: value for name, value in config.items() if value is not None}
        metadata = Metadata(**{"fields": {}, "meta_fields": {}, **given})
        if not metadata.fields and not overwrite:
            raise BufferNotFoundError(
                errno.ENOENT, "no buffer here; check the path, or pass fields=... to create one", str(self._folder)
            )
        check_config(metadata)
        check_target(self._folder, overwrite=overwrite)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refusal(error, self._folder, "the folder could not be made") from error
        lock = WriterLock(self._folder)
        try:
            if overwrite or not lock.directory.exists(METADATA):  # unless another process was first
                create_files(lock.directory, metadata, sync=self._durability == "power")
            self._own(FolderWriter(self._folder, durability=self._durability, lock=lock))
        except BaseException:
            lock.release()
            raise

    def _own(self, writer: FolderWriter) -> FolderWriter:
        self._writer = writer
        self._finalizer = weakref.finalize(self, finalize, _let_go, writer, weakref.ref(self))  # also at exit
        return writer

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], read_only: bool = False) -> ReplayBuffer:
        """Open an existing buffer with its stored config.

        Raises:
            BufferNotFoundError: there is no buffer in the folder.
        """
        path = folder_of(folder)
        if not has_buffer(path):
            raise BufferNotFoundError(errno.ENOENT, "no buffer here; check the path", str(path))
        return cls(path, read_only=read_only)

    # --- what there is ---

    @property
    def folder(self) -> Path:
        """The absolute path of the folder."""
        return self._folder

    @property
    def read_only(self) -> bool:
        """Whether this object refuses to write."""
        return self._read_only

    @property
    def metadata(self) -> Metadata:
        if self._reader.must_look_again and not self._closed:
            self._reader.refresh()
        return self._reader.metadata

    @property
    def circular(self) -> bool:
        """Whether the oldest episodes are evicted instead of the buffer being full."""
        return self.metadata.circular

    @property
    def max_episodes(self) -> int | None:
        """Most live episodes."""
        return self.metadata.max_episodes

    @property
    def max_timesteps(self) -> int | None:
        """Longest episode, in transitions."""
        return self.metadata.max_timesteps

    @property
    def max_steps(self) -> int | None:
        """Most transitions of all live episodes."""
        return self.metadata.max_steps

    def snapshots(self) -> list[Snapshot]:
        self._require_open()
        return [self._reader.refresh() if self._writer is not None else self._reader.last_snapshot()]

    @property
    def num_episodes(self) -> int:
        if self._writer is not None and not self._closed and self._writer.is_settled:
            return self._writer.room.num_episodes
        return super().num_episodes

    @property
    def num_steps(self) -> int:
        if self._writer is not None and not self._closed and self._writer.is_settled:
            return self._writer.room.num_steps
        return super().num_steps

    def refresh(self) -> None:
        """See what another process committed, evicted or changed since."""
        self._require_open()
        self._reader.refresh()

    # --- the environment that was recorded ---

    def _environment(self, part: str) -> Any:
        environment = self.metadata.environment or {}
        if part == "env_spec" and environment and environment.get(part) is None:
            raise MakeEnvError(
                f"{self._folder}: there is no env_spec: the recorded environment was not made by gymnasium.make, or "
                "buffers of different environments were merged; make the environment as it was made for recording, and "
                "pass it where one is asked for"
            )
        if environment.get(part) is None:
            raise FieldError(f"{self._folder}: no {part} is stored; the buffer was not made by RecordToBuffer")
        return environment[part]

    def _decoded(self, part: str, decode: Callable[[Any], _T]) -> _T:
        value = self._environment(part)
        try:
            return decode(value)
        except CorruptBufferError as error:
            raise CorruptBufferError(f"{self._folder / METADATA}: 'environment': {error}") from None

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The recorded environment's observation space."""
        from gym_replay.spaces import space_from_json

        return self._decoded("observation_space", space_from_json)

    @property
    def action_space(self) -> gym.Space[Any]:
        """The recorded environment's action space."""
        from gym_replay.spaces import space_from_json

        return self._decoded("action_space", space_from_json)

    @property
    def env_spec(self) -> Any:
        """The recorded environment's ``EnvSpec``, without what could not be kept."""
        from gym_replay.buffer.env_spec import spec_from_json

        return self._decoded("env_spec", spec_from_json)

    def make_env(self, *, trust: bool = False, **kwargs: Any) -> gym.Env[Any, Any]:
        """Make the recorded environment anew from the id under which it is registered here.

        Args:
            trust: whether all recorded arguments are handed on. Otherwise only harmless ones are, such as words and
                small numbers (``docs/semantics.md`` has the list), and any other one is an error.
            kwargs: replace or add to the recorded keyword arguments, for example ``render_mode``.

        Raises:
            MakeEnvError: the environment is not registered here, or a recorded argument is not harmless.
        """
        from gym_replay.buffer.env_spec import make_env

        return self._decoded("env_spec", lambda spec: make_env(spec, trust=trust, **kwargs))

    # --- writing ---

    def _require_open(self) -> None:
        if self._closed:
            raise BufferClosedError(f"{self._folder}: the buffer was closed; open it anew")

    def writing(self) -> FolderWriter:
        """The writer of the folder; it is opened, and the lock taken, at the first call.

        Raises:
            BufferClosedError, ReadOnlyError: nothing is written through this object.
            BufferLockedError: another writer, or another thread, writes to the folder.
            MissingExtraError: a field has a codec of a package that is not installed.
        """
        writer = self._writer
        if writer is None:
            self._require_open()
            if self._read_only:
                raise ReadOnlyError(
                    errno.EROFS, "the buffer was opened with read_only=True; open it without", str(self._folder)
                )
            require_codecs(self.metadata.fields)
            writer = FolderWriter(self._folder, durability=self._durability, uuid=self.metadata.uuid)
            self._own(writer)
        writer.check_owner()
        if writer.metadata.circular and writer.has_idle_strings:
            edits.compact_strings(writer, self._refresh("nothing was changed"))
        if writer.metadata.revision != self._reader.metadata.revision:
            self._refresh("nothing was changed")
        return writer

    def _editing(self) -> tuple[FolderWriter, Snapshot]:
        """The writer, and the episodes that it is about to change."""
        writer = self.writing()
        writer.begin_change()
        return writer, self._refresh("nothing was changed")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """A change of what is stored: afterwards, also where it failed, this object shows what the folder holds."""
        self._reader.look_again()  # whatever comes now
        try:
            yield
            self._refresh("the change was made, but cannot be read now")
        except BaseException:
            with suppress(Exception):  # the exception is the one that came
                self._reader.refresh()
            raise

    def _refresh(self, otherwise: str) -> Snapshot:
        """What there is now; where the operating system refuses to tell, an error of ours adds what that means."""
        try:
            return self._reader.refresh()
        except OSError as error:
            if isinstance(error, GymReplayError):
                raise
            raise refusal(error, self._folder, otherwise) from error

    def claim(self, owner: object, end: Callable[[], None], forget: Callable[[], None]) -> open_episode.Claim:
        """For recorders: the right to commit episodes that are open somewhere else.

        Args:
            owner: the recorder.
            end: commits what is open; called where ``owner`` is garbage, or the interpreter exits.
            forget: a method that forgets what is open; called by :meth:`release`.
        """
        return open_episode.Claim(self, owner, end, forget)

    def put_file(self, name: str, content: bytes) -> None:
        """Put a file beside the buffer's into its folder, whole or not at all.

        Args:
            name: of the file; one that no buffer has.
            content: of the file.
        """
        self.writing().put_file(name, content)

    def encoders(self) -> open_episode.Encoders:
        """The encoders of the present schema."""
        encoders, metadata = self._encoders, self._reader.metadata
        if encoders is None or encoders.metadata is not metadata:
            encoders = self._encoders = open_episode.Encoders(metadata)
        return encoders

    def one_episode(self, /, **meta: Any) -> open_episode.OpenEpisode:
        """A context in which :meth:`store` adds the transitions of one episode, committed at its end.

        Args:
            meta: values of meta fields known from the start.

        Returns:
            A context manager that yields a dict for the values of meta fields known only at the end. An exception
            inside discards the episode and is raised on. An episode without a transition is not committed.

        Raises:
            BufferFullError: there is no room for one more episode.
            EpisodeStateError: an episode is open already.
        """
        self.slot.require_free("one_episode")
        return open_episode.OpenEpisode(self, meta)

    def store(self, /, **fields: Any) -> None:
        """Store one transition of the open episode; a field left out takes its default.

        Raises:
            FieldError: a field is unknown, or a value does not fit; nothing of the transition is stored.
            EpisodeTooLongError: the episode has ``max_timesteps`` transitions already.
            EpisodeStateError: no episode is open, or its last observation is stored already.
        """
        self._single("store").store(fields)

    def store_final(self, /, **state_fields: Any) -> None:
        """Store the observation that the last transition led to, row T of the state fields.

        Inside :meth:`batched_episode` each value has a leading axis over the episodes.

        Raises:
            FieldError: a field is no state field, is missing, or its value does not fit.
            EpisodeStateError: no episode is open.
        """
        if isinstance(self.slot.holder, open_episode.OpenBlock):
            self.slot.holder.store_final(state_fields)
        else:
            self._single("store_final").store_final(state_fields)

    def _single(self, what: str) -> open_episode.OpenEpisode:
        episode = self.slot.holder
        if isinstance(episode, open_episode.OpenEpisode):
            return episode
        self._require_open()
        remedy = "store_batch" if episode is not None else "`with buffer.one_episode():`"
        raise EpisodeStateError(f"{what} outside of an episode; use {remedy}")

    def batched_episode(self, /, batch_size: int, **meta: Any) -> open_episode.OpenBlock:
        """A context in which :meth:`store_batch` adds one transition to each of several episodes.

        All are committed at its end, at once.

        Args:
            batch_size: how many episodes.
            meta: values of meta fields with a leading axis of ``batch_size``, or one value for all.

        Returns:
            A context manager that yields a dict for meta fields known only at the end, as :meth:`one_episode` does.
        """
        self.slot.require_free("batched_episode")
        return open_episode.OpenBlock(self, batch_size, meta)

    def store_batch(self, /, **fields: Any) -> None:
        """Store one transition of each open episode: every value is ``(batch_size, *field.shape)``.

        Raises:
            FieldError: a field is unknown, or a value does not fit; nothing is stored.
            EpisodeStateError: no :meth:`batched_episode` is open.
        """
        block = self.slot.holder
        if not isinstance(block, open_episode.OpenBlock):
            self._require_open()
            raise EpisodeStateError("store_batch outside of `with buffer.batched_episode(batch_size):`")
        block.store(fields)

    def store_episode(self, /, **arrays: Any) -> None:
        """Store and commit a whole episode.

        Args:
            arrays: per field ``(T, *field.shape)``, for state fields T or T+1 rows (all of them T+1, or none); meta
                fields by name. A field left out takes its default.

        Raises:
            FieldError: a field is unknown, a value does not fit, or the lengths differ; nothing is stored.
            EpisodeTooLongError, BufferFullError: it does not fit into the buffer.
        """
        self.put_episode(arrays)

    def put_episode(self, arrays: Mapping[str, Any], *, complete: bool = True) -> None:
        """:meth:`store_episode` for an episode from somewhere else, which may have been cut there."""
        self.slot.require_free("store_episode")
        writer = self.writing()
        open_episode.store_whole(writer, self.encoders(), arrays, complete=complete)

    def update(self, /, episodes: int | slice | Sequence[int] | npt.NDArray[Any] | None = None, **arrays: Any) -> None:
        """Replace stored values, all or nothing.

        Each call rewrites the named columns, so one call for many episodes is much cheaper than many calls.

        Args:
            episodes: an index, a slice, indices or a mask of live episodes; None for all.
            arrays: for a field one array ``(episodes, time, *field.shape)`` with at least as many rows as the longest
                of them (padding is left out), or a list of one ``(T, *field.shape)`` per episode; state fields have
                T+1 rows, or T to leave the last observation as it is. For a meta field ``(episodes, *field.shape)``.
                For a single index, without the first axis.
        """
        if not arrays:
            raise FieldError("update: expected fields to replace, got none")
        writer, snapshot = self._editing()
        indices, single = _indices_of(episodes, len(snapshot))
        rows: dict[str, tuple[Any, npt.NDArray[np.int64]]] = {}
        meta: dict[str, npt.NDArray[Any]] = {}
        for name, value in arrays.items():
            if name in self.metadata.meta_fields:
                info = self.metadata.meta_fields[name]
                meta[name] = self._meta_values(name, info, value, len(indices), single=single)
            else:
                info = self._known(name)
                if info.has_elements:
                    kind = "ragged field" if info.ragged else "field with a codec,"
                    self.slot.require_free(f"update of the {kind} {name!r}")
                if info.ragged:
                    value = [value] if single else value
                elif single:
                    value = to_array(value, name)[None]
                rows[name] = _rows_of(name, info, value, snapshot, indices)
        with self._changing():
            edits.update(writer, snapshot, indices, rows, meta)

    def _meta_values(self, name: str, info: Field, value: Any, count: int, *, single: bool) -> npt.NDArray[Any]:
        """New values of a meta field, as its column holds them: ``(count, *field.shape)``."""
        if info.is_text:
            texts = open_episode.encode_texts(name, [value] if single else value, count)
            return np.array([self.writing().put_text(text) for text in texts], info.dtype)
        array = to_array(value, name)
        return fit(name, array[None] if single else array, info, lead=(count,))

    def _known(self, name: str) -> Field:
        if name not in self.metadata.fields:
            known = [*self.metadata.fields, *self.metadata.meta_fields]
            raise FieldError(f"unknown field {name!r}; there are {known}; add_field adds one")
        return self.metadata.fields[name]

    def add_field(self, name: str, info: FieldLike, values: Any = None) -> None:
        """Add a field to all episodes; nobody sees it before it is complete.

        Args:
            name, info: as in ``fields``.
            values: as for :meth:`update`, over all live episodes; None for the field's default.
        """
        self.slot.require_free("add_field")
        check_field_name(name)
        if name in self.metadata.fields or name in self.metadata.meta_fields:
            raise FieldError(f"field {name!r} exists already; update(...) replaces its values")
        check_distinct([*self.metadata.fields, name])
        field = parse_field(info)
        writer, snapshot = self._editing()
        rows = None
        if values is not None:
            rows = _complete_rows(name, field, values, snapshot, has_state=self.metadata.has_state)
        with self._changing():
            edits.add_fields(writer, snapshot, {name: (field, rows)})

    def widen_schema(self, fields: Mapping[str, Field], *, while_open: bool = False) -> None:
        """Add fields that hold their defaults, and store others in a wider dtype: all at once, or nothing.

        Args:
            fields: what each is then; of one that is there already, only the dtype may be another one.
            while_open: for who has an episode open, and sees to its rows.

        Raises:
            FieldError: a name cannot be a field, or a recorded value would change.
            EpisodeStateError: an episode is open.
        """
        if not while_open:
            self.slot.require_free("widen_schema")
        if not fields:
            return
        check_distinct({**self.metadata.fields, **fields})
        writer, snapshot = self._editing()
        # All files are opened once more, by the writer and by a reader, while those of before are still open.
        require_descriptors(self._folder, 2 * len(self.metadata.columns) + 4 * len(fields))
        with self._changing():
            edits.add_fields(writer, snapshot, {name: (info, None) for name, info in fields.items()})

    def delete(self, episodes: int | slice | Sequence[int] | npt.NDArray[Any]) -> None:
        """Hide episodes for good: all of them or, where the process is killed meanwhile, none.

        Their disk space stays in use, and their ids are never used again.

        Args:
            episodes: an index, a slice, indices or a mask of live episodes.
        """
        if episodes is None:
            raise FieldError("delete: expected episodes, got None; clear() removes them all")
        writer, snapshot = self._editing()
        indices, _ = _indices_of(episodes, len(snapshot))
        with self._changing():
            edits.delete(writer, snapshot, indices)

    def clear(self) -> None:
        """Remove all episodes and give their disk space back. Ids go on where they were."""
        self.slot.require_free("clear")
        writer = self.writing()
        with self._changing():
            writer.clear()

    def redefine(self, fields: Mapping[str, Field], meta_fields: Mapping[str, Field]) -> None:
        """Give the buffer other fields; it has no episodes.

        Raises:
            EpisodeStateError: it has episodes, or one is open.
        """
        self.slot.require_free("redefine")
        if self.num_episodes:
            raise EpisodeStateError(f"{self._folder} has episodes, whose fields stay as they are")
        writer = self.writing()
        metadata = replace(writer.metadata, fields=dict(fields), meta_fields=dict(meta_fields))
        check_config(metadata)
        with self._changing():
            writer.clear(metadata)

    def flush(self) -> None:
        """Have all that is committed on the disk before returning, with the checksums of what was written here."""
        self._require_open()
        if self._writer is not None:
            self._writer.flush()
        else:
            self._reader.sync()

    def acquire(self) -> None:
        """Take the lock now rather than at the first write; :meth:`release` lets it go.

        Raises:
            BufferLockedError: somebody else writes to the buffer.
            ReadOnlyError: the buffer was opened with ``read_only=True``.
        """
        self.writing()

    def release(self) -> None:
        """Stop writing: an open episode is discarded, checksums are completed, and the lock is let go.

        Reading goes on, and the next write takes the lock again.
        """
        writer = self._writer
        if writer is None:
            return
        writer.check_thread()
        if self.slot.holder is not None:
            self.slot.holder.discard()
        try:
            writer.close()
        finally:
            if writer.is_closed:
                self._writer = None
                if self._finalizer is not None:
                    self._finalizer.detach()
            with suppress(Exception):  # reading says what there is to say
                self._reader.refresh()

    def close(self) -> None:
        """Release the lock and the files. Closing twice is fine; views handed out stay good.

        Where an interrupt came while it was closed, closing it again does the rest.

        Raises:
            BufferNotFoundError: the folder, and all that was in it, was deleted meanwhile.
            BufferLockedError: another thread writes to the buffer.
            StorageError: the operating system refused to write the last checksums, which the next writer will do.
        """
        if self._closed:
            return
        try:
            self.release()
        finally:
            if self._writer is None:
                self._closed = True
                if hasattr(self, "_reader"):
                    self._reader.close()

    def __enter__(self) -> ReplayBuffer:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return ReplayBuffer.from_folder, (self._folder, True)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.num_episodes} episodes, {self.num_steps} steps"
        return f"ReplayBuffer({str(self._folder)!r}, {state})"


def _let_go(writer: FolderWriter, buffer: weakref.ref[ReplayBuffer]) -> None:
    """Close the writer of a buffer that is garbage, or is there when the interpreter exits."""
    if buffer() is not None and writer.is_for_another_thread:
        return  # which may be writing: all that it has committed is there
    with suppress(BufferNotFoundError, ConfigMismatchError, BufferLockedError):  # nobody is there to be told
        writer.close()


def _limit(value: Any) -> Any:
    return int(value) if isinstance(value, np.integer) else value


def open_buffer(
    folder: str | os.PathLike[str], config: Mapping[str, Any], *, overwrite: bool, durability: str = "process"
) -> ReplayBuffer:
    """Open or create a buffer with a config that people do not write by hand: the recorder's meta fields and the
    environment. ``config`` holds attributes of :class:`Metadata`; None means what is stored."""
    buffer = ReplayBuffer.__new__(ReplayBuffer)
    buffer._open(folder, config, overwrite=overwrite, read_only=False, durability=durability)
    return buffer


def open_lazily(folder: Path) -> ReplayBuffer:
    """Open one of many buffers, read-only: the rows of its fields are mapped when they are read."""
    buffer = ReplayBuffer.__new__(ReplayBuffer)
    buffer._begin(folder, read_only=True, durability="process")
    buffer._reader = FolderReader(folder, lazy=True)
    buffer._reader.last_snapshot()  # so that what is damaged is an error now
    return buffer


def check_match(metadata: Metadata, config: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigMismatchError where a config, of which None means what is stored, differs from the stored one."""
    differences = []
    for name, passed in config.items():
        stored = getattr(metadata, name)
        if passed is None or passed == stored:
            continue
        if isinstance(passed, dict) and isinstance(stored, dict):
            differences += [
                f"{name}[{key!r}]: stored {stored.get(key)!r}, passed {passed.get(key)!r}"
                for key in {**stored, **passed}
                if stored.get(key) != passed.get(key)
            ]
        else:
            differences.append(f"{name}: stored {stored!r}, passed {passed!r}")
    if differences:
        raise ConfigMismatchError(
            f"{folder} was created with a different config: {'; '.join(differences)}. Pass what is stored (or None), "
            "choose another folder, or overwrite=True to replace the buffer"
        )


def _indices_of(episodes: Any, count: int) -> tuple[npt.NDArray[np.int64], bool]:
    """Indices of live episodes as an array, and whether a single one was meant."""
    if episodes is None:
        return np.arange(count, dtype=np.int64), False
    if isinstance(episodes, slice):
        return np.arange(count, dtype=np.int64)[episodes], False
    array = np.asarray(episodes)
    if array.dtype.kind in "iu":
        array = array.astype(np.int64)
    if array.size == 0:
        return np.empty(0, np.int64), False
    if array.dtype == np.bool_ and array.shape == (count,):
        return np.flatnonzero(array), False
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise FieldError(f"episodes: expected an index, indices, a slice or a mask over {count} episodes")
    if ((array < -count) | (array >= count)).any():
        raise IndexError(f"episodes {episodes}: there are {count}")
    indices = np.atleast_1d(array % count).astype(np.int64)
    if len(np.unique(indices)) != len(indices):
        raise FieldError("episodes: an episode is named twice")
    return indices, array.ndim == 0


def _rows_of(
    name: str, field: Field, value: Any, snapshot: Snapshot, indices: npt.NDArray[np.int64]
) -> tuple[Any, npt.NDArray[np.int64]]:
    """The rows that a value given for some episodes stands for, and how many each episode gets."""
    lengths = snapshot.lengths[indices]
    with_final = lengths + snapshot.has_final[indices]
    if field.ragged:
        return _ragged_rows_of(name, field, value, lengths, with_final)
    if field.state:
        try:
            return stack_episodes(name, value, field, with_final.tolist()), with_final
        except FieldError:
            if (with_final == lengths).all():
                raise
    return stack_episodes(name, value, field, lengths.tolist()), lengths


def _ragged_rows_of(
    name: str, field: Field, value: Any, lengths: npt.NDArray[np.int64], with_final: npt.NDArray[np.int64]
) -> tuple[Ragged, npt.NDArray[np.int64]]:
    if not hasattr(value, "__len__") or len(value) != len(lengths):
        raise FieldError(f"field {name!r}: expected a list of rows for each of {len(lengths)} episodes")
    parts = [open_episode.ragged_rows(name, rows, field) for rows in value]
    counts = np.array([len(part) for part in parts], np.int64)
    if not (field.state and (counts == with_final).all()) and (counts != lengths).any():
        expected = f"{lengths.tolist()}{' or one more each' if field.state else ''}"
        raise FieldError(f"field {name!r}: expected {expected} rows, got {counts.tolist()}")
    return Ragged.concatenate(parts or [Ragged.of_rows([], field.dtype, field.shape)]), counts


def _complete_rows(name: str, field: Field, values: Any, snapshot: Snapshot, *, has_state: bool) -> Any:
    """All rows of a new field, the default in row T where no value is given for it."""
    indices = np.arange(len(snapshot), dtype=np.int64)
    given, counts = _rows_of(name, field, values, snapshot, indices)
    taken = snapshot.lengths + has_state
    if isinstance(given, Ragged):
        edges, empty = np.cumsum([0, *counts]), Ragged.of_rows([field.default_value()], field.dtype, field.shape)
        parts = []
        for low, high, rows_taken in zip(edges[:-1].tolist(), edges[1:].tolist(), taken.tolist(), strict=True):
            parts += [given[low:high], *([empty] * (rows_taken - (high - low)))]
        return Ragged.concatenate(parts) if parts else given
    rows = np.empty((int(taken.sum()), *field.shape), field.dtype)
    rows[:] = field.default_value()
    firsts = np.cumsum(taken) - taken
    sources = np.cumsum(counts) - counts
    for first, source, count in zip(firsts.tolist(), sources.tolist(), counts.tolist(), strict=True):
        rows[first : first + count] = given[source : source + count]
    return rows

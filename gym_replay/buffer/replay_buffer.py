"""ReplayBuffer: episodes stored in a folder, and read from it."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gym_replay.buffer import open_episode
from gym_replay.buffer.changes import Changeable
from gym_replay.buffer.finding import what_is_there
from gym_replay.buffer.stepwise import Stepwise
from gym_replay.buffer.storage import edits
from gym_replay.buffer.storage.creation import check_config, check_target, create_files
from gym_replay.buffer.storage.layout import METADATA, Metadata
from gym_replay.buffer.storage.mirrored import MirroredFolder, mirrored_folders
from gym_replay.buffer.storage.open_rows import OpenRows
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
from gym_replay.files.directory import refusal
from gym_replay.files.folders import folder_of
from gym_replay.files.garbage import finalize
from gym_replay.files.lock import WriterLock
from gym_replay.notices import tell_once
from gym_replay.remote.objects.mirror import CACHE_BYTES
from gym_replay.schema.fields import (
    FieldLike,
    parse_fields,
    require_codecs,
)

if TYPE_CHECKING:
    import gymnasium as gym

_T = TypeVar("_T")
_DURABILITIES = ("process", "power")


class ReplayBuffer(Stepwise, Changeable):
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
        if fields is not None and not read_only:
            self.tell_of_episodes()

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
                    reason = f"no buffer here to open read-only; {what_is_there(self._folder)}"
                    raise BufferNotFoundError(errno.ENOENT, reason, str(self._folder))
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
        self._edited: tuple[int, ...] | None = None  # what a change that is prepared was prepared for
        self._forget_samplers()

    def _create(self, config: Mapping[str, Any], *, overwrite: bool) -> None:
        given = {name: value for name, value in config.items() if value is not None}
        metadata = Metadata(**{"fields": {}, "meta_fields": {}, **given})
        if not metadata.fields and not overwrite:
            raise BufferNotFoundError(
                errno.ENOENT,
                f"no buffer here; {what_is_there(self._folder)}, or pass fields=... to create one",
                str(self._folder),
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
            raise BufferNotFoundError(errno.ENOENT, f"no buffer here; {what_is_there(path)}", str(path))
        return cls(path, read_only=read_only)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        revision: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
        storage_options: Mapping[str, Any] | None = None,
    ) -> ReplayBuffer:
        """Read a buffer that was pushed to an address, without pulling it.

        The table of episodes is read now. Rows are fetched when they are read, by range requests, many at a time, and
        compared with their checksums. ``shuffle="block"`` of the loaders asks for rows before they are needed. What was
        fetched is kept on this disk up to a limit, by each process for itself, and removed when the process ends.

        What a batch or an episode needs is copied. Code that takes all rows of a field at once, as exporters do, has
        all of them fetched, and they stay until the buffer is garbage.

        Args:
            url: the address that ``push`` was given, such as ``s3://bucket/name``.
            revision: the id of a revision, or how that begins; None for the newest. Whatever is pushed later, this
                object reads the one that it opened.
            cache: the folder for what was fetched; by default ``gym_replay`` in the user's folder of caches.
            cache_bytes: how many bytes each process may keep there.
            storage_options: what fsspec's file system is made with, such as credentials.

        Returns:
            A buffer that is read-only.

        Raises:
            BufferNotFoundError: there is no data set at the address, or no such revision.
            CorruptBufferError: what is there is damaged.
            FieldError: the data set has several buffers; :meth:`ConcatReplayBuffer.from_url` reads them as one.
            MissingExtraError: the package of the protocol is not installed.
            StorageError: the store refused.

        Example:
            >>> buffer = ReplayBuffer.from_url("s3://lab/cartpole")  # doctest: +SKIP
            >>> loader = n_step_loader(buffer, batch_size=256, shuffle="block")  # doctest: +SKIP
        """
        folders = mirrored_folders(url, revision, cache, cache_bytes, storage_options)
        if len(folders) > 1:
            raise FieldError(f"{url}: there are {len(folders)} buffers; ConcatReplayBuffer.from_url reads them as one")
        return open_lazily(folders[0])

    # --- what there is ---

    @property
    def folder(self) -> Path:
        """The absolute path of the folder."""
        return self._folder

    @property
    def is_mirrored(self) -> bool:
        """Whether only what is read of it is on this disk."""
        return hasattr(self, "_reader") and self._reader.mirrored is not None

    @property
    def place(self) -> str:
        """Where it is: the path of the folder, or the address that it is read from."""
        mirrored = self._reader.mirrored if hasattr(self, "_reader") else None
        return str(self._folder) if mirrored is None else mirrored.address

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

    def newest(self) -> list[Snapshot]:
        self._require_open()
        writer = self._writer
        return [self._reader.newest(is_owned=writer is not None and writer.is_settled)]

    def open_rows(self) -> OpenRows | None:
        holder, writer = self.slot.holder, self._writer
        # A forked child has a copy of what its parent had open then.
        return None if holder is None or writer is None or not writer.is_settled else holder.open_rows()

    @property
    def num_episodes(self) -> int:
        writer = self._writer  # which another thread may release meanwhile
        if writer is not None and not self._closed and writer.is_settled:
            return writer.room.num_episodes
        return super().num_episodes

    @property
    def num_steps(self) -> int:
        writer = self._writer  # which another thread may release meanwhile
        if writer is not None and not self._closed and writer.is_settled:
            return writer.room.num_steps
        return super().num_steps

    def tell_of_episodes(self) -> None:
        """Where there are episodes already, say once that others will be appended to them."""
        if count := self.num_episodes:
            tell_once(
                str(self._folder),
                f"{self._folder} has {count} episodes already, to which new ones are appended; overwrite=True replaces "
                "them",
            )

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
                why = "what is at an address is only read; pull(url, folder) gets a folder that can be written to"
                if not self.is_mirrored:
                    why = "the buffer was opened with read_only=True; open it without"
                raise ReadOnlyError(errno.EROFS, why, self.place)
            require_codecs(self.metadata.fields)
            writer = FolderWriter(self._folder, durability=self._durability, uuid=self.metadata.uuid)
            self._own(writer)
        writer.check_owner()
        if writer.metadata.circular and writer.has_idle_strings:
            with writer.turns.one(self._folder):
                edits.compact_strings(writer, self._refresh("nothing was changed"))
        if writer.metadata.revision != self._reader.metadata.revision:
            self._refresh("nothing was changed")
        return writer

    def editing(self) -> tuple[FolderWriter, Snapshot]:
        """The writer, and the episodes that it is about to change."""
        writer = self.writing()
        with writer.turns.one(self._folder):
            writer.begin_change()
            self._edited = writer.written()
            return writer, self._refresh("nothing was changed")

    @contextmanager
    def changing(self) -> Iterator[None]:
        """A change of what is stored: afterwards, also where it failed, this object shows what the folder holds."""
        writer = self.writing()
        with writer.turns.one(self._folder):
            edited, self._edited = self._edited, None
            if edited not in (None, writer.written()):
                raise BufferLockedError(
                    errno.EAGAIN,
                    "a signal handler has written to the buffer in the middle of this change; nothing was changed, so "
                    "call it again",
                    str(self._folder),
                )
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

    def claim(
        self,
        owner: object,
        end: Callable[[], None],
        forget: Callable[[], None],
        rows: Callable[[], OpenRows | None],
    ) -> open_episode.Claim:
        """For recorders: the right to commit episodes that are open somewhere else.

        Args:
            owner: the recorder.
            end: commits what is open; called where ``owner`` is garbage, or the interpreter exits.
            forget: a method that forgets what is open; called by :meth:`release`.
            rows: a method that gives the rows of what is open.
        """
        return open_episode.Claim(self, owner, end, forget, rows)

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

        Outside of :meth:`one_episode` the first call opens an episode, which :meth:`advance_episode` ends.

        Raises:
            FieldError: a field is unknown, or a value does not fit; nothing of the transition is stored.
            EpisodeTooLongError: the episode has ``max_timesteps`` transitions already.
            EpisodeStateError: several episodes are open, or the last observation is stored already.
        """
        self._single("store", opens=True).store(fields)

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

    def _single(self, what: str, *, opens: bool = False) -> open_episode.OpenEpisode:
        episode = self.slot.holder
        if isinstance(episode, open_episode.OpenEpisode):
            return episode
        self._require_open()
        if opens and episode is None:
            return self.opened(open_episode.OpenEpisode(self, {}))
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

        Outside of :meth:`batched_episode` the first call opens as many episodes as the values are for, which
        :meth:`advance_episode` ends.

        Raises:
            FieldError: a field is unknown, or a value does not fit; nothing is stored.
            BufferFullError: there is no room for so many episodes.
            EpisodeStateError: a single episode is open.
        """
        block = self.slot.holder
        if block is None:
            self._require_open()
            block = self.open_block_for(fields)
        if not isinstance(block, open_episode.OpenBlock):
            raise EpisodeStateError("store_batch while a single episode is open; use store, or end the episode first")
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

    def flush(self) -> None:
        """Have all that is committed on the disk before returning, with the checksums of what was written here."""
        self._require_open()
        writer = self._writer
        if writer is not None:
            writer.flush()
        else:
            self._reader.sync()

    def acquire(self) -> None:
        """Take the lock now rather than at the first write; :meth:`release` lets it go.

        Raises:
            BufferLockedError: somebody else writes to the buffer.
            ReadOnlyError: the buffer was opened with ``read_only=True``.
        """
        self.writing()

    def puts_off(self, end: Callable[[], Any]) -> bool:
        """Where a signal handler has interrupted a write, have something done at its end; return whether it is."""
        writer = self._writer
        return writer is not None and writer.turns.puts_off(end)

    def release(self) -> None:
        """Stop writing: an open episode is discarded, checksums are completed, and the lock is let go.

        An episode that ``store`` opened, outside of a context, is committed as one that was cut.

        Reading goes on, and the next write takes the lock again. In a signal handler that has interrupted a write, it
        is put off to the end of the write.
        """
        writer = self._writer
        if writer is None:
            return
        writer.check_thread()
        if self.puts_off(self.release):
            return
        if (holder := self.slot.holder) is not None:
            if holder.is_implicit:
                holder.end(complete=False)
            holder.discard()
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

        Where an interrupt came while it was closed, closing it again does the rest. In a signal handler that has
        interrupted a write, closing is put off to the end of the write.

        Raises:
            BufferNotFoundError: the folder, and all that was in it, was deleted meanwhile.
            BufferLockedError: another thread writes to the buffer.
            StorageError: the operating system refused to write the last checksums, which the next writer will do.
        """
        if self._closed or self.puts_off(self.close):
            return
        try:
            self.release()
        finally:
            if self._writer is None:
                self._closed = True
                self._forget_samplers()
                if hasattr(self, "_reader"):
                    self._reader.close()

    def __enter__(self) -> ReplayBuffer:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reader.mirrored is not None:
            return open_lazily, (self._reader.mirrored,)
        return ReplayBuffer.from_folder, (self._folder, True)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.num_episodes} episodes, {self.num_steps} steps"
        return f"ReplayBuffer({self.place!r}, {state})"


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


def open_lazily(folder: Path | MirroredFolder) -> ReplayBuffer:
    """Open one of many buffers, read-only: the rows of its fields are mapped when they are read."""
    buffer = ReplayBuffer.__new__(ReplayBuffer)
    path = folder.folder if isinstance(folder, MirroredFolder) else folder
    buffer._begin(path, read_only=True, durability="process")
    buffer._reader = FolderReader(folder, lazy=True)
    buffer._reader.last_snapshot()  # so that what is damaged is an error now
    return buffer


def _said(where: str, entry: Any) -> str:
    return f"not {where}" if entry is None else f"{where} {entry!r}"


def check_match(metadata: Metadata, config: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigMismatchError where a config, of which None means what is stored, differs from the stored one."""
    differences = []
    for name, passed in config.items():
        stored = getattr(metadata, name)
        if passed is None or passed == stored:
            continue
        if isinstance(passed, dict) and isinstance(stored, dict):
            differences += [
                f"{name}[{key!r}]: {_said('stored', stored.get(key))}, {_said('passed', passed.get(key))}"
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

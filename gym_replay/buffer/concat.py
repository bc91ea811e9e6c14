"""Many buffers, read as one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.agreement import Wanted, agree
from gym_replay.buffer.episode import Episode
from gym_replay.buffer.finding import find_buffers, require_distinct
from gym_replay.buffer.reading import Readable
from gym_replay.buffer.replay_buffer import ReplayBuffer, open_lazily
from gym_replay.buffer.storage.layout import Choice, Metadata
from gym_replay.buffer.storage.maps import require_mappable
from gym_replay.buffer.storage.mirrored import mirrored_folders
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.buffer.storage.reference_returns import ReferenceReturns
from gym_replay.errors import BufferClosedError, EmptyBufferError, FieldError, ReadOnlyError
from gym_replay.remote.objects.mirror import CACHE_BYTES

if TYPE_CHECKING:
    import gymnasium as gym

Source: TypeAlias = "str | os.PathLike[str] | ReplayBuffer | ConcatReplayBuffer"


def open_source(source: str | os.PathLike[str]) -> ReplayBuffer | ConcatReplayBuffer:
    """What there is at a path, for reading: one buffer, or several as one.

    Raises:
        BufferNotFoundError: there is none.
    """
    folders = find_buffers(source)
    if len(folders) == 1:
        return ReplayBuffer.from_folder(folders[0], read_only=True)
    return ConcatReplayBuffer(folders)


@contextmanager
def opened(source: str | os.PathLike[str] | Readable) -> Iterator[Readable]:
    """The reading side of a source; what is at a path is opened read-only, and closed at the end.

    Raises:
        BufferNotFoundError: there is none.
    """
    if isinstance(source, Readable):
        yield source
    else:
        with open_source(source) as buffer:
            yield buffer


class ConcatReplayBuffer(Readable):
    """The reading side of :class:`ReplayBuffer` over many of them, one after another.

    **Which buffers.** A string with ``*``, ``?`` or ``[`` is a pattern of folders, in natural order (``w-2`` before
    ``w-10``). A folder is a buffer itself, or one with buffers in ``shards/``, or one whose folders are all buffers. A
    list may have all of these, and buffers, in the order in which they are to come. Folders are opened read-only;
    buffers that are given are used as they are, and stay open after :meth:`close`.

    **Schemas** must be the same: names, dtypes, shapes, ``state`` and ``ragged`` of all fields and meta fields. What
    only writers use (defaults, limits) may differ. Meta fields that the recorder keeps by itself and that not all
    buffers have are left out. ``fields`` and ``meta_fields`` choose what they have in common.

    **How many.** No file stays open. Opening reads the episodes (five numbers each), and the rows of a field are mapped
    when they are read. Where a buffer is cleared or edited by its writer, rows of before that are not mapped are gone:
    then reading raises :class:`~gym_replay.BufferChangedError`, until :meth:`refresh`. No batch ever mixes what was
    with what is. A loader maps each field that it reads, two maps a folder; the limit of the system
    (``vm.max_map_count``) is mostly at some thousands of folders, and :func:`~gym_replay.merge` makes one of them.

    Args:
        buffers: a folder, a pattern, or a list of folders, patterns and buffers.
        fields, meta_fields: names that all buffers have, to read only these; ``"common"`` for all that they have in
            common; None where there must be no others.

    Raises:
        BufferNotFoundError: there is nothing there, or a folder that is no buffer.
        ConfigMismatchError: the schemas differ (the message lists how), or a folder comes twice.
        EmptyBufferError: the list is empty.
        FieldError: no buffer has such a field.
        StorageError: there are more folders than the system can map.

    Example:
        >>> both = ConcatReplayBuffer(["data/monday", "data/tuesday"])  # doctest: +SKIP
        >>> shards = ConcatReplayBuffer("data/cartpole")  # of data/cartpole/shards/...  # doctest: +SKIP
        >>> mixed = ConcatReplayBuffer("data/*/", fields=("observation", "action"))  # doctest: +SKIP
        >>> loader = mixed.dataloader(batch_size=256, timestep_level=True, shuffle=True)  # doctest: +SKIP
    """

    def __init__(
        self,
        buffers: Source | Iterable[Source],
        *,
        fields: Wanted = None,
        meta_fields: Wanted = None,
    ) -> None:
        if isinstance(buffers, (str, os.PathLike, ReplayBuffer, ConcatReplayBuffer)):
            buffers = [buffers]
        self._sources = [part for item in buffers for part in _flattened(item)]
        if not self._sources:
            raise EmptyBufferError("expected at least one folder or buffer, got none")
        self._start(fields, meta_fields)
        found: list[Path | ReplayBuffer] = []
        for source in self._sources:
            found += [source] if isinstance(source, ReplayBuffer) else find_buffers(source)
        self._open(found)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        fields: Wanted = None,
        meta_fields: Wanted = None,
        revision: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
        storage_options: Mapping[str, Any] | None = None,
    ) -> ConcatReplayBuffer:
        """Read all buffers that were pushed to an address as one, without pulling them.

        Args:
            fields, meta_fields: as for :class:`ConcatReplayBuffer`.
            url, revision, cache, cache_bytes, storage_options: as for :meth:`ReplayBuffer.from_url`.

        Raises:
            GymReplayError: as for both of them.

        Example:
            >>> buffer = ConcatReplayBuffer.from_url("s3://lab/shards")  # doctest: +SKIP
        """
        folders = mirrored_folders(url, revision, cache, cache_bytes, storage_options)
        return cls([open_lazily(folder) for folder in folders], fields=fields, meta_fields=meta_fields)

    def _start(self, fields: Wanted, meta_fields: Wanted) -> None:
        self._wanted = _as_given(fields), _as_given(meta_fields)
        self._closed = False
        self._choice: Choice | None = None
        self.buffers: list[ReplayBuffer] = []
        self._opened: list[ReplayBuffer] = []
        self._forget()
        self._forget_samplers()

    def _open(self, found: Sequence[Path | ReplayBuffer]) -> None:
        """Open what was found and add it, all of it or nothing."""
        folders = [item.folder if isinstance(item, ReplayBuffer) else item for item in found]
        require_distinct([*self.folders, *folders])
        require_mappable(len(folders) + len(self.buffers), 0)
        opened: list[ReplayBuffer] = []
        try:
            added = []
            for item in found:
                if not isinstance(item, ReplayBuffer):
                    opened.append(open_lazily(item))
                added.append(item if isinstance(item, ReplayBuffer) else opened[-1])
            buffers = [*self.buffers, *added]
            choice = agree([(buffer.folder, buffer.metadata) for buffer in buffers], *self._wanted)
        except BaseException:
            for buffer in opened:
                buffer.close()
            raise
        self.buffers, self._opened, self._choice = buffers, [*self._opened, *opened], choice
        self._forget()

    def _forget(self) -> None:
        """Forget the snapshots that are kept because nothing but :meth:`refresh` renews them."""
        self._kept: list[Snapshot] | None = None
        self._limited: dict[int, tuple[Snapshot, Snapshot]] = {}
        self._offsets: npt.NDArray[np.int64] | None = None

    def _require_open(self) -> None:
        if self._closed:
            raise BufferClosedError("the concatenation was closed; make it anew")

    # --- what there is ---

    @property
    def folders(self) -> list[Path]:
        """The absolute paths of all buffers, in their order."""
        return [buffer.folder for buffer in self.buffers]

    @property
    def read_only(self) -> bool:
        """True: a concatenation writes nothing."""
        return True

    @property
    def max_episodes(self) -> int | None:
        """How many live episodes all buffers may have together; None where one has no limit."""
        limits = [buffer.max_episodes for buffer in self.buffers]
        return None if None in limits else sum(filter(None, limits))

    @property
    def max_timesteps(self) -> int | None:
        """The longest episode of any buffer, in transitions; None where one has no limit."""
        limits = [buffer.max_timesteps for buffer in self.buffers]
        return None if None in limits else max(filter(None, limits))

    @property
    def metadata(self) -> Metadata:
        metadata = self.buffers[0].metadata
        return metadata if self._choice is None else self._choice.of(metadata)

    def snapshots(self) -> list[Snapshot]:
        self._require_open()
        if len(self._opened) == len(self.buffers):
            if self._kept is None:
                self._kept = [self._snapshot(index) for index in range(len(self.buffers))]
            return self._kept.copy()
        return [self._snapshot(index) for index in range(len(self.buffers))]

    def newest(self) -> list[Snapshot]:
        self._require_open()
        for buffer in self.buffers:
            buffer.newest()
        parts = [self._snapshot(index) for index in range(len(self.buffers))]
        if self._kept is not None and [*map(id, self._kept)] != [*map(id, parts)]:
            self._kept = self._offsets = None
        return parts

    def sample(self, n: int, *, include_open: bool = False, **options: Any) -> Any:
        """A batch of random transitions of all buffers; see :meth:`ReplayBuffer.sample`.

        ``include_open`` is for one buffer: what a recorder has open is not in a concatenation.
        """
        if include_open:
            raise FieldError("include_open=True samples one buffer; sample the one that is recorded into by itself")
        return super().sample(n, **options)

    def _snapshot(self, index: int) -> Snapshot:
        (part,) = self.buffers[index].snapshots()
        if self._choice is None:
            return part
        whole, limited = self._limited.get(index, (None, part))
        if whole is not part:
            limited = part.limited_to(self._choice)
            self._limited[index] = part, limited
        return limited

    def episode(self, index: int) -> Episode:
        parts = self.snapshots()
        offsets = self._offsets
        if offsets is None or self._kept is None:
            offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
            self._offsets = offsets
        total = int(offsets[-1])
        if not -total <= index < total:
            raise IndexError(f"episode {index}: there are {total} episodes")
        part = int(np.searchsorted(offsets, index % total, side="right")) - 1
        return Episode(parts[part], int(index % total - offsets[part]))

    # --- the environment that was recorded ---

    def _agreed(self, part: str) -> ReplayBuffer:
        """A buffer whose environment is that of all of them."""
        self._require_open()
        first = self.buffers[0]
        stored = (first.metadata.environment or {}).get(part)
        for other in self.buffers[1:]:
            environment = other.metadata.environment
            if environment is not first.metadata.environment and (environment or {}).get(part) != stored:
                raise FieldError(
                    f"{first.folder} and {other.folder} have different values of {part}; each of .buffers has its own"
                )
        return first

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The observation space, where it is the same in all buffers.

        Raises:
            FieldError: it is not, or there is none.
        """
        return self._agreed("observation_space").observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """The action space, where it is the same in all buffers.

        Raises:
            FieldError: it is not, or there is none.
        """
        return self._agreed("action_space").action_space

    @property
    def env_spec(self) -> Any:
        """The environment's ``EnvSpec``, where it is the same in all buffers.

        Raises:
            FieldError: it is not, or there is none.
        """
        return self._agreed("env_spec").env_spec

    @property
    def reference_returns(self) -> ReferenceReturns | None:
        self._require_open()
        found = {buffer.reference_returns for buffer in self.buffers}
        return found.pop() if len(found) == 1 else None

    def make_env(self, **kwargs: Any) -> gym.Env[Any, Any]:
        """Make the recorded environment anew, where it is the same in all buffers; see :meth:`ReplayBuffer.make_env`.

        Raises:
            FieldError: it is not, or there is none.
        """
        return self._agreed("env_spec").make_env(**kwargs)

    # --- in the course of time ---

    def refresh(self) -> None:
        """See what other processes committed since, and buffers that have appeared.

        Patterns, and folders of buffers, are looked at again. New buffers come after those that are there, so that an
        index of a buffer, as in ``buffer_weights``, stays what it is. Loaders serve the buffers that there were when
        they were made, also with ``refresh="epoch"``.

        Raises:
            ConfigMismatchError: a new buffer has another schema; nothing is adopted.
            BufferNotFoundError: a buffer is gone.
        """
        self._require_open()
        self._forget()
        for buffer in self.buffers:
            buffer.refresh()
        known = set(map(os.path.realpath, self.folders))
        paths = [
            path for source in self._sources if not isinstance(source, ReplayBuffer) for path in find_buffers(source)
        ]
        self._open([path for path in paths if os.path.realpath(path) not in known])

    def _refuse(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refuse to write.

        Raises:
            ReadOnlyError: always.
        """
        raise ReadOnlyError(
            errno.EROFS,
            "a concatenation reads; store into, or change, one of its buffers: ReplayBuffer.from_folder(folder)",
            str(self.folders[0]),
        )

    store = store_final = store_batch = store_episode = one_episode = batched_episode = _refuse
    update = delete = clear = add_field = add_meta_field = rename_field = drop_field = _refuse
    set_reference_returns = _refuse

    def close(self) -> None:
        """Close the buffers that were opened here. Closing twice is fine; views handed out stay good."""
        self._closed = True
        self._forget()
        self._forget_samplers()
        for buffer in self._opened:
            buffer.close()

    def __enter__(self) -> ConcatReplayBuffer:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        sources = [_as_sent(part) if isinstance(part, ReplayBuffer) else part for part in self._sources]
        return _reopened, (sources, [_as_sent(buffer) for buffer in self.buffers], *self._wanted)

    def __repr__(self) -> str:
        if self._closed:
            return f"ConcatReplayBuffer({len(self.buffers)} buffers, closed)"
        return f"ConcatReplayBuffer({len(self.buffers)} buffers, {self.num_episodes} episodes, {self.num_steps} steps)"


def _flattened(item: Any) -> list[str | Path | ReplayBuffer]:
    """What one item of the list stands for; of a concatenation, its buffers."""
    if isinstance(item, ConcatReplayBuffer):
        return list(item.buffers)
    if isinstance(item, (str, ReplayBuffer)):
        return [item]
    if isinstance(item, os.PathLike):
        return [Path(item)]
    raise TypeError(f"expected a folder, a pattern or a ReplayBuffer, got {item!r:.100}")


def _as_given(wanted: Wanted) -> Wanted:
    return wanted if wanted is None or isinstance(wanted, str) else tuple(wanted)


def _as_sent(buffer: ReplayBuffer) -> Path | ReplayBuffer:
    """What another process opens: the folder, where all of it is on this disk."""
    return buffer if buffer.is_mirrored else buffer.folder


def _reopened(
    sources: list[str | Path | ReplayBuffer], folders: list[Path | ReplayBuffer], fields: Wanted, meta_fields: Wanted
) -> ConcatReplayBuffer:
    """The concatenation of these folders, in another process."""
    buffer = ConcatReplayBuffer.__new__(ConcatReplayBuffer)
    buffer._sources = [*sources]
    buffer._start(fields, meta_fields)
    buffer._open(folders)
    return buffer

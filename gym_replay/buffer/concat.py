"""Many buffers, read as one."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.agreement import Wanted, agree
from gym_replay.buffer.episode import Episode
from gym_replay.buffer.finding import find_buffers, real_paths, require_distinct
from gym_replay.buffer.reading import Readable
from gym_replay.buffer.replay_buffer import ReplayBuffer, open_pooled
from gym_replay.buffer.storage.choice import Choice
from gym_replay.buffer.storage.layout import Metadata, read_metadata
from gym_replay.buffer.storage.pool import MapPool, Maps, default_bound, shared_pool
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import BufferClosedError, EmptyBufferError, FieldError

if TYPE_CHECKING:
    import gymnasium as gym

Source: TypeAlias = "str | os.PathLike[str] | ReplayBuffer | ConcatReplayBuffer"

_SHARE = 4
"""Files stay open, and mapped, where they are up to one part in so many of what the process may have."""


def open_source(source: str | os.PathLike[str]) -> ReplayBuffer | ConcatReplayBuffer:
    """What there is at a path, for reading: one buffer, or several as one.

    Raises:
        BufferNotFoundError: there is none.
    """
    folders = find_buffers(source)
    if len(folders) == 1:
        return ReplayBuffer.from_folder(folders[0], read_only=True)
    return ConcatReplayBuffer(folders)


class ConcatReplayBuffer(Readable):
    """The reading side of :class:`ReplayBuffer` over many of them, one after another.

    **Which buffers.** A string with ``*``, ``?`` or ``[`` is a pattern of folders, in natural order (``w-2`` before
    ``w-10``). A folder is a buffer itself, or one with buffers in ``shards/``, or one whose folders are all buffers. A
    list may have all of these, and buffers, in the order in which they are to come. Folders are opened read-only;
    buffers that are given are used as they are, and stay open after :meth:`close`.

    **Schemas** must be the same: names, dtypes, shapes, ``state`` and ``ragged`` of all fields and meta fields. What
    only writers use (defaults, limits) may differ. Meta fields that the recorder keeps by itself and that not all
    buffers have are left out. ``fields`` and ``meta_fields`` choose what they have in common.

    **How many.** Few buffers are opened as :class:`ReplayBuffer` does it, and every snapshot keeps its files. Where
    their files are more than a quarter of what the process may have open (``ulimit -n``) or of ``max_maps``, they are
    opened lazily: opening reads the episodes into memory (five numbers each) and closes all files. A column is mapped
    when it is read, no file stays open, and the maps that were not used for the longest time are let go of. Where a
    buffer is cleared or edited by its writer, rows of before that are not mapped are gone: then reading raises
    :class:`~gym_replay.BufferChangedError`, until :meth:`refresh`. No batch ever mixes what was with what is.

    **Shuffling.** ``shuffle=True`` is over all samples as long as the columns that a loader reads can be mapped at a
    time (two maps a file: with the default, 16,000 files). Of more, buffers are cut into groups that can: each epoch
    goes from group to group, in random order, and shuffles within the group. Each sample still comes exactly once an
    epoch over all ranks, and the order is still a function of seed, epoch, rank and world size, and of ``max_maps``.
    A warning says so, and ``loader.num_groups`` has their number. Everything else works on any number of buffers;
    draws with replacement or by priority, beyond that bound, map files for almost every sample.

    Args:
        buffers: a folder, a pattern, or a list of folders, patterns and buffers.
        fields, meta_fields: names that all buffers have, to read only these; ``"common"`` for all that they have in
            common; None where there must be no others.
        max_maps: how many maps its columns may take in each process; None for 32,000 (or half of the kernel's limit
            ``vm.max_map_count``, where that is less), which all concatenations in a process share. Maps in use, as by
            an ``episode["observation"]`` that was kept, come on top.

    Raises:
        BufferNotFoundError: there is nothing there, or a folder that is no buffer.
        ConfigMismatchError: the schemas differ (the message lists how), or a folder comes twice.
        EmptyBufferError: the list is empty.
        FieldError: no buffer has such a field.

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
        max_maps: int | None = None,
    ) -> None:
        if isinstance(buffers, (str, os.PathLike, ReplayBuffer, ConcatReplayBuffer)):
            buffers = [buffers]
        if max_maps is not None and (isinstance(max_maps, bool) or not isinstance(max_maps, int) or max_maps < 1):
            raise FieldError(f"max_maps={max_maps!r}: expected a number of maps from 1 on")
        self._sources = [part for item in buffers for part in _flattened(item)]
        if not self._sources:
            raise EmptyBufferError("expected at least one folder or buffer, got none")
        self._start(fields, meta_fields, max_maps)
        found: list[Path | ReplayBuffer] = []
        for source in self._sources:
            found += [source] if isinstance(source, ReplayBuffer) else find_buffers(source)
        self._open(found)

    def _start(self, fields: Wanted, meta_fields: Wanted, max_maps: int | None) -> None:
        self._wanted = _as_given(fields), _as_given(meta_fields)
        self._max_maps = max_maps
        self._maps: Maps | None = None
        self._closed = False
        self._choice: Choice | None = None
        self.buffers: list[ReplayBuffer] = []
        self._opened: list[ReplayBuffer] = []
        self._forget()

    def _open(self, found: Sequence[Path | ReplayBuffer]) -> None:
        """Open what was found and add it, all of it or nothing."""
        folders = [item.folder if isinstance(item, ReplayBuffer) else item for item in found]
        require_distinct([*self.folders, *folders])
        paths = [item for item in found if not isinstance(item, ReplayBuffer)]
        if paths and self._maps is None and self._are_many(len(self._opened) + len(paths), read_metadata(paths[0])):
            self._maps = Maps(shared_pool() if self._max_maps is None else MapPool(self._max_maps))
        opened: list[ReplayBuffer] = []
        try:
            added = []
            for item in found:
                if not isinstance(item, ReplayBuffer):
                    opened.append(self._open_one(item))
                added.append(item if isinstance(item, ReplayBuffer) else opened[-1])
            buffers = [*self.buffers, *added]
            choice = agree([(buffer.folder, buffer.metadata) for buffer in buffers], *self._wanted)
        except BaseException:
            for buffer in opened:
                buffer.close()
            raise
        self.buffers, self._opened, self._choice = buffers, [*self._opened, *opened], choice
        self._forget()

    def _are_many(self, folders: int, metadata: Metadata) -> bool:
        """Whether so many buffers like this one are too many to keep their files open."""
        files = folders * (len(metadata.columns()) + 1)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        bounds = [default_bound() if self._max_maps is None else self._max_maps]
        bounds += [most] if most != resource.RLIM_INFINITY else []
        return files > min(bounds) // _SHARE

    def _open_one(self, folder: Path) -> ReplayBuffer:
        if self._maps is None:
            return ReplayBuffer.from_folder(folder, read_only=True)
        return open_pooled(folder, self._maps)

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
    def metadata(self) -> Metadata:
        metadata = self.buffers[0].metadata
        return metadata if self._choice is None else self._choice.of(metadata)

    def snapshots(self) -> list[Snapshot]:
        self._require_open()
        if self._maps is not None and len(self._opened) == len(self.buffers):
            if self._kept is None:
                self._kept = [self._snapshot(place) for place in range(len(self.buffers))]
            return self._kept.copy()
        return [self._snapshot(place) for place in range(len(self.buffers))]

    def _snapshot(self, place: int) -> Snapshot:
        (part,) = self.buffers[place].snapshots()
        if self._choice is None:
            return part
        whole, limited = self._limited.get(place, (None, part))
        if whole is not part:
            limited = part.limited_to(self._choice)
            self._limited[place] = part, limited
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
        known = set(real_paths(self.folders))
        paths = [
            path for source in self._sources if not isinstance(source, ReplayBuffer) for path in find_buffers(source)
        ]
        new = [path for path, real in zip(paths, real_paths(paths), strict=True) if real not in known]
        self._open(new)

    def close(self) -> None:
        """Close the buffers that were opened here. Closing twice is fine; views handed out stay good."""
        self._closed = True
        self._forget()
        for buffer in self._opened:
            buffer.close()
        if self._maps is not None:
            self._maps.discard()

    def __enter__(self) -> ConcatReplayBuffer:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        sources = [part.folder if isinstance(part, ReplayBuffer) else part for part in self._sources]
        return _reopened, (sources, self.folders, *self._wanted, self._max_maps)

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


def _reopened(
    sources: list[str | Path], folders: list[Path], fields: Wanted, meta_fields: Wanted, max_maps: int | None
) -> ConcatReplayBuffer:
    """The concatenation of these folders, in another process."""
    buffer = ConcatReplayBuffer.__new__(ConcatReplayBuffer)
    buffer._sources = [*sources]
    buffer._start(fields, meta_fields, max_maps)
    buffer._open(folders)
    return buffer

"""Whole episodes copied into new folders: several sources into one, chosen episodes, or one source into several."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.agreement import Wanted, merged_schema
from gym_replay.buffer.concat import opened
from gym_replay.buffer.finding import find_buffers
from gym_replay.buffer.loading.selection import Condition, Episodes, EpisodeValues, selected, split
from gym_replay.buffer.reading import Readable
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.buffer.storage.copies import copy_episodes
from gym_replay.buffer.storage.creation import check_replaceable, create_files
from gym_replay.buffer.storage.layout import Metadata
from gym_replay.buffer.storage.mirrored import MirroredFolder
from gym_replay.buffer.storage.reader import FolderReader, Snapshot, has_buffer
from gym_replay.buffer.storage.writer import FolderWriter
from gym_replay.errors import (
    ConfigMismatchError,
    CorruptBufferError,
    EmptyBufferError,
    EpisodeEvictedError,
    FieldError,
)
from gym_replay.files.folders import folder_of
from gym_replay.files.lock import WriterLock
from gym_replay.files.new_folder import new_folders
from gym_replay.notices import bar, names_nearest_keyword
from gym_replay.schema.codec_choice import Codecs, with_codecs
from gym_replay.schema.fields import require_codecs

Ints = npt.NDArray[np.int64]
Folder: TypeAlias = str | os.PathLike[str]
Copied: TypeAlias = Folder | Readable
"""What is copied from: a folder, or a ReplayBuffer or ConcatReplayBuffer."""

Fractions: TypeAlias = Mapping[str, float] | Mapping[Path, float] | Mapping[Folder, float]
"""How much each folder gets."""


@names_nearest_keyword
def merge(
    sources: Sequence[Copied],
    folder: Folder,
    *,
    fields: Wanted = None,
    meta_fields: Wanted = None,
    overwrite: bool = False,
    progress: bool = True,
) -> ReplayBuffer:
    """Copy the episodes of several sources into one new folder, those of the first source first.

    All of an episode is copied, the recorder's own meta fields too. Its id is new: ids count from 0 on. Where an
    episode came from is not noted beside it, except that recorded ones keep ``episode_run``, the run that made them.
    The new buffer has no limits and is not circular. What was deleted or evicted is not copied, so its room is not
    taken either. A source that is being recorded gives the episodes that are committed when its turn comes.

    The rows are read once, and compared with their checksums on the way. The folder appears under its name when it is
    complete and synced; until then it lies beside it as ``.<name>.gym-replay-new``, which the next copy to the same
    place removes where a killed process left it.

    Args:
        sources: folders of buffers, folders with buffers below them, patterns, or ReplayBuffers and
            ConcatReplayBuffers.
        folder: the new buffer; nothing may be there, or an empty folder.
        fields, meta_fields: names to copy where the sources do not have the same ones, or ``"common"`` for those that
            all have; None takes all, which then must be the same but for their defaults, of which the first source's
            are taken. With ``fields``, the environment's spaces are kept where all their fields are copied.
        overwrite: replace the buffer that is there, once the new one is complete. It may be a source.
        progress: show a bar where it takes longer than a second.

    Returns:
        The new buffer.

    Raises:
        ConfigMismatchError: the sources have different fields, meta fields or environments; the message lists them.
        CorruptBufferError: an episode does not match its checksums, or is damaged in another way. The message names it.
        EpisodeEvictedError: an episode left a circular buffer before it was copied.
        NotABufferError: there is something at the target.
        BufferLockedError: somebody writes to the buffer that is to be replaced, or copies to the same place.
        StorageError: the disk is full, or the operating system refused for another reason.
        In each of these cases nothing is left at the target but what was there.

    Example:
        >>> import tempfile
        >>> fields = {"action": "int"}
        >>> one, other = (ReplayBuffer(tempfile.mkdtemp(), fields=fields) for _ in range(2))
        >>> one.store_episode(action=[1, 2])
        >>> other.store_episode(action=[3])
        >>> merged = merge([one, other], tempfile.mkdtemp() + "/merged")
        >>> [episode["action"].tolist() for episode in merged]
        [[1, 2], [3]]
    """
    if isinstance(sources, (str, os.PathLike, Readable)) or not len(sources):
        raise FieldError(f"merge: expected a sequence of sources, got {sources!r:.80}")
    parts = [part for source in sources for part in _parts_of(source)]
    metadata = merged_schema([(part.folder, part.metadata) for part in parts], fields, meta_fields)
    return _copy(metadata, {folder_of(folder): parts}, overwrite, progress)[0]


@names_nearest_keyword
def select(
    source: Copied,
    folder: Folder,
    *,
    episodes: Episodes | None = None,
    filter_meta: Mapping[str, Condition] | None = None,
    where: str | None = None,
    fields: Wanted = None,
    codecs: Codecs | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> ReplayBuffer:
    """Copy chosen episodes into a new folder, in the source's order; see :func:`merge` for how.

    Without conditions all live episodes are copied, and the copy takes no disk space for deleted and evicted ones. With
    ``overwrite=True`` the folder may be the source's own, where nobody writes to it.

    Args:
        source: a folder, a ReplayBuffer or a ConcatReplayBuffer.
        folder: the new buffer.
        episodes: which episodes, as for the loaders: an index, indices or a slice, a mask, or a function of the meta
            fields that returns one.
        filter_meta: conditions on meta fields, as for the loaders.
        where: a condition such as ``"episode_return > 300 and not truncated"``, on meta fields and on
            ``index``, ``id``, ``length``, ``complete``, ``has_final``, ``terminated`` and ``truncated`` (of the last
            step) and ``episode_return``; docs/command-line.md has the language.
        fields: names of the fields to copy; None for all.
        codecs: other codecs for fields of the copy, by field name or group, as :class:`RecordToBuffer` takes them;
            ``"raw"`` stores the rows as they are. What was encoded without loss is decoded again, and compared row by
            row. Other fields keep theirs, and their encoded rows are copied as they are.
        overwrite, progress: as for :func:`merge`.

    Returns:
        The new buffer.

    Raises:
        EmptyBufferError: no episode is chosen.
        FieldError: a condition is wrong, and for ``where`` the message shows where; or a field does not take its codec.
        MissingExtraError: the package that has a codec is not installed.
        IndexError: there is no such episode.
        GymReplayError: as for :func:`merge`.

    Example:
        >>> good = select("data/all", "data/good", where="episode_return > 300 and not truncated")  # doctest: +SKIP
        >>> select("data/raw", "data/small", codecs={"observation": "zstd"})  # doctest: +SKIP
        >>> select("data/good", "data/good", overwrite=True)  # gives the room of deleted ones back  # doctest: +SKIP
    """
    with opened(source) as buffer:
        snapshots = buffer.snapshots()
        values = EpisodeValues(snapshots)
        mask = selected(values, episodes, filter_meta) & selected(values, where)
        if not mask.any():
            conditions = {"episodes": episodes, "filter_meta": filter_meta, "where": where}
            given = ", ".join(f"{name}={value!r:.80}" for name, value in conditions.items() if value is not None)
            raise EmptyBufferError(f"select: no episode meets {given}" if given else "select: there are no episodes")
        parts = _parts_at(snapshots, np.flatnonzero(mask))
        metadata = merged_schema([(part.reader.folder, part.metadata) for part in snapshots], fields)
        encoded = with_codecs(metadata.fields, codecs or {})
        require_codecs({name: info for name, info in encoded.items() if info != metadata.fields[name]})
        metadata = replace(metadata, fields=encoded)
        del snapshots
        return _copy(metadata, {folder_of(folder): parts}, overwrite, progress)[0]


@names_nearest_keyword
def split_into(
    source: Copied,
    fractions: Fractions,
    *,
    seed: int = 0,
    episodes: Episodes | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> list[ReplayBuffer]:
    """Copy each episode into one of several new folders, at random; see :func:`merge` for how.

    Which one it is depends on its id, the seed and the fractions only, as :func:`split` says. The folders appear when
    all of them are complete.

    Args:
        source: a folder, a ReplayBuffer or a ConcatReplayBuffer.
        fractions: how much each folder gets; they add up to 1.
        seed: any integer from 0 on.
        episodes: which episodes are copied, as for :func:`split`; None for all.
        overwrite, progress: as for :func:`merge`.

    Returns:
        The new buffers, in the order of the fractions. One may be empty where there are few episodes.

    Raises:
        FieldError: the fractions do not add up to 1, or a folder is named twice.
        GymReplayError: as for :func:`merge`.

    Example:
        >>> train, held_out = split_into("data/all", {"data/train": 0.9, "data/held-out": 0.1})  # doctest: +SKIP
    """
    folders = [folder_of(folder) for folder in fractions]
    if len(set(folders)) < len(folders):
        raise FieldError(f"split_into: a folder is named twice in {[str(folder) for folder in folders]}")
    with opened(source) as buffer:
        snapshots = buffer.snapshots()
        subsets = split(buffer, list(fractions.values()), seed, episodes=episodes)
        targets = {folder: _parts_at(snapshots, indices) for folder, indices in zip(folders, subsets, strict=True)}
        metadata = merged_schema([(part.reader.folder, part.metadata) for part in snapshots])
        del snapshots
        return _copy(metadata, targets, overwrite, progress)


# --- what is copied ---


@dataclass(frozen=True)
class _Part:
    """Episodes of one folder that are to be copied; its files are opened only when its turn comes."""

    origin: Path | MirroredFolder
    metadata: Metadata
    ids: Ints

    @property
    def folder(self) -> Path:
        return self.origin.folder if isinstance(self.origin, MirroredFolder) else self.origin

    @classmethod
    def of(cls, snapshot: Snapshot, indices: Ints | slice = slice(None)) -> _Part:
        return cls(snapshot.reader.origin, snapshot.metadata, snapshot.ids[indices])

    @contextmanager
    def open(self) -> Iterator[Snapshot]:
        """The episodes in the folder as it is now.

        Raises:
            CorruptBufferError: a record is damaged, so that it and those after it are not known.
            ConfigMismatchError: another buffer was created in its place.
            EpisodeEvictedError: one of the episodes has left since it was chosen.
        """
        reader = FolderReader(self.origin, for_copy=True)
        with closing(reader):
            snapshot = reader.last_snapshot()
            if reader.metadata.uuid != self.metadata.uuid:
                raise ConfigMismatchError(f"{self.folder}: another buffer was created in its place; open it anew")
            if reader.valid_end < reader.counters.next:
                raise CorruptBufferError(
                    f"{self.folder}: the record of the episode with id {reader.valid_end} is damaged, so that it and "
                    "those after it are not known; nothing was copied. check_buffer(folder, repair=True) keeps those "
                    "before it"
                )
            found = np.isin(self.ids, snapshot.ids)
            if not found.all():
                raise EpisodeEvictedError(
                    f"{self.folder}: the episode with id {self.ids[~found][0]} was evicted or deleted before it was "
                    "copied; choose newer ones with episodes=..., or copy while nothing is recorded"
                )
            yield snapshot.only(np.searchsorted(snapshot.ids, self.ids))


def _parts_of(source: Copied) -> list[_Part]:
    """All episodes of a source."""
    if isinstance(source, Readable):
        return [_Part.of(snapshot) for snapshot in source.snapshots()]
    parts = []
    for folder in find_buffers(source):  # one after another: of very many, not all can be open
        with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
            parts += _parts_of(buffer)
    return parts


def _parts_at(snapshots: Sequence[Snapshot], indices: Ints) -> list[_Part]:
    """Episodes by their ascending index over all snapshots."""
    edges = np.cumsum([0, *map(len, snapshots)])
    bounds = np.searchsorted(indices, edges)
    parts = zip(snapshots, edges, bounds, bounds[1:], strict=False)
    return [_Part.of(one, indices[low:high] - edge) for one, edge, low, high in parts if low < high]


# --- the copying ---


def _copy(
    metadata: Metadata, targets: Mapping[Path, Sequence[_Part]], overwrite: bool, progress: bool
) -> list[ReplayBuffer]:
    """Build each target beside its place, and let all of them appear when the last one is complete."""
    total = sum(len(part.ids) for parts in targets.values() for part in parts)
    with ExitStack() as stack:
        for folder in targets:
            check_replaceable(folder, overwrite=overwrite)
        made = stack.enter_context(new_folders(*targets))
        olds = [WriterLock(folder) if has_buffer(folder) else None for folder in targets]
        for lock in olds:
            stack.callback(lock.release if lock is not None else int)
        shown = stack.enter_context(bar(total, "copy", " episodes", progress=progress))
        for new, parts in zip(made, targets.values(), strict=True):
            _fill(new.folder, metadata, parts, shown)
        for new, old in zip(made, olds, strict=True):
            check_replaceable(new.target, overwrite=old is not None)
            new.publish(old)
    return [ReplayBuffer.from_folder(folder) for folder in targets]


def _fill(folder: Path, metadata: Metadata, parts: Sequence[_Part], shown: Any) -> None:
    """Make a buffer of the episodes of all parts in an empty folder."""
    lock = WriterLock(folder)
    count = sum(len(part.ids) for part in parts)
    derived = {name: count for part in parts for name in part.metadata.derived if name in metadata.fields}
    try:
        metadata = replace(metadata, uuid=uuid.uuid4().hex, derived=derived)
        create_files(lock.directory, metadata, sync=False)
        writer = FolderWriter(folder, durability="process", lock=lock)
        for part in parts:
            with part.open() as source:
                for count in copy_episodes(source, writer):
                    shown.update(count)
        writer.close()
    finally:
        lock.release()

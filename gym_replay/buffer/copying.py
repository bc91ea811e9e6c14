"""Whole episodes copied into new folders: several sources into one, chosen episodes, or one source into several."""

from __future__ import annotations

import errno
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.concat import open_source
from gym_replay.buffer.finding import find_buffers
from gym_replay.buffer.loading.facts import EpisodeFacts
from gym_replay.buffer.loading.selection import Condition, Episodes, MetaValues, episode_mask, meta_mask
from gym_replay.buffer.loading.splits import split
from gym_replay.buffer.merged_schema import merged_schema
from gym_replay.buffer.reading import Readable
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.buffer.storage.aside import FolderAside
from gym_replay.buffer.storage.bulk import FolderBuilder
from gym_replay.buffer.storage.layout import Metadata
from gym_replay.buffer.storage.reader import FolderReader, Snapshot
from gym_replay.errors import (
    ConfigMismatchError,
    CorruptBufferError,
    EmptyBufferError,
    EpisodeEvictedError,
    FieldError,
    GymReplayError,
    StorageError,
)
from gym_replay.files.directory import Directory
from gym_replay.files.folders import folder_of

Ints = npt.NDArray[np.int64]
Folder: TypeAlias = str | os.PathLike[str]
Copied: TypeAlias = Folder | Readable
"""What is copied from: a folder, or a ReplayBuffer or ConcatReplayBuffer."""

Fractions: TypeAlias = Mapping[str, float] | Mapping[Path, float] | Mapping[Folder, float]
"""How much each folder gets."""


def merge(
    sources: Sequence[Copied],
    folder: Folder,
    *,
    fields: Sequence[str] | None = None,
    meta_fields: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> ReplayBuffer:
    """Copy the episodes of several sources into one new folder, those of the first source first.

    All of an episode is copied, the recorder's own meta fields too. Its id is new: ids count from 0 on. Where an
    episode came from is not noted beside it, except that recorded ones keep ``episode_run``, the run that made them.
    The new buffer has no limits and is not circular. What was deleted or evicted is not copied, so its room is not
    taken either. A source that is being recorded gives the episodes that are committed when its turn comes.

    The rows are read once, and compared with their checksums on the way. The folder appears under its name when it is
    complete and synced; until then it lies beside it as ``.<name>.gym-replay-copy``, which the next copy to the same
    place removes where a killed process left it.

    Args:
        sources: folders of buffers, folders with buffers below them, patterns, or ReplayBuffers and
            ConcatReplayBuffers.
        folder: the new buffer; nothing may be there, or an empty folder.
        fields, meta_fields: names to copy where the sources do not have the same ones; None takes all, which then must
            be the same. With ``fields``, the environment's spaces are kept where all their fields are copied.
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


def select(
    source: Copied,
    folder: Folder,
    *,
    episodes: Episodes | None = None,
    filter_meta: Mapping[str, Condition] | None = None,
    where: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> ReplayBuffer:
    """Copy chosen episodes into a new folder, in the source's order; see :func:`merge` for how.

    Without conditions all episodes are copied, which leaves behind what deleted and evicted ones take. With
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
        overwrite, progress: as for :func:`merge`.

    Returns:
        The new buffer.

    Raises:
        EmptyBufferError: no episode is chosen.
        FieldError: a condition is wrong; for ``where`` the message shows where.
        IndexError: there is no such episode.
        GymReplayError: as for :func:`merge`.

    Example:
        >>> good = select("data/all", "data/good", where="episode_return > 300 and not truncated")  # doctest: +SKIP
        >>> select("data/good", "data/good", overwrite=True)  # gives the room of deleted ones back  # doctest: +SKIP
    """
    with _opened(source) as buffer:
        snapshots = buffer.snapshots()
        mask = _chosen(snapshots, episodes, filter_meta, where)
        if not mask.any():
            conditions = {"episodes": episodes, "filter_meta": filter_meta, "where": where}
            given = ", ".join(f"{name}={value!r:.80}" for name, value in conditions.items() if value is not None)
            raise EmptyBufferError(f"select: no episode meets {given}" if given else "select: there are no episodes")
        parts = list(_parts_at(snapshots, np.flatnonzero(mask)))
        metadata = merged_schema([(part.reader.folder, part.metadata) for part in snapshots])
        del snapshots
        return _copy(metadata, {folder_of(folder): parts}, overwrite, progress)[0]


def split_into(
    source: Copied,
    fractions: Fractions,
    *,
    seed: int = 0,
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
    with _opened(source) as buffer:
        snapshots = buffer.snapshots()
        subsets = split(buffer, list(fractions.values()), seed)
        targets = {folder: list(_parts_at(snapshots, places)) for folder, places in zip(folders, subsets, strict=True)}
        metadata = merged_schema([(part.reader.folder, part.metadata) for part in snapshots])
        del snapshots
        return _copy(metadata, targets, overwrite, progress)


# --- what is copied ---


@dataclass(frozen=True)
class _Part:
    """Episodes of one folder that are to be copied; its files are opened only when their turn comes."""

    folder: Path
    metadata: Metadata
    ids: Ints
    rows: int

    @classmethod
    def of(cls, snapshot: Snapshot, places: Ints) -> _Part:
        rows = int(snapshot.lengths[places].sum()) + len(places) * snapshot.metadata.has_state
        return cls(snapshot.reader.folder, snapshot.metadata, snapshot.ids[places], rows)

    def open(self) -> tuple[FolderReader, Snapshot]:
        """The folder as it is now, with its checksums.

        Raises:
            CorruptBufferError: a record is damaged, so that it and those after it are not known.
            ConfigMismatchError: another buffer was created in its place.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the reader warns about is an error here
            reader = FolderReader(self.folder, for_copy=True)
        try:
            if reader.metadata.uuid != self.metadata.uuid:
                raise ConfigMismatchError(f"{self.folder}: another buffer was created in its place; open it anew")
            snapshot = reader.last_snapshot()
            if reader.valid_end < reader.counters.next:
                raise CorruptBufferError(
                    f"{self.folder}: the record of the episode with id {reader.valid_end} is damaged, so that it and "
                    "those after it are not known; nothing was copied. check_buffer(folder, repair=True) keeps those "
                    "before it"
                )
        except BaseException:
            reader.close()
            raise
        return reader, snapshot

    def places(self, snapshot: Snapshot) -> Ints:
        """Where the episodes are in a snapshot.

        Raises:
            EpisodeEvictedError: one of them has left since it was chosen.
        """
        places = np.searchsorted(snapshot.ids, self.ids)
        found = places < len(snapshot)
        found[found] = snapshot.ids[places[found]] == self.ids[found]
        if not found.all():
            raise EpisodeEvictedError(
                f"{self.folder}: the episode with id {self.ids[~found][0]} was evicted or deleted before it was "
                "copied; choose newer ones with episodes=..., or copy while nothing is recorded"
            )
        return places.astype(np.int64)


@contextmanager
def _opened(source: Copied) -> Iterator[Readable]:
    """The reading side of a source; a folder is opened read-only, and closed at the end."""
    if isinstance(source, Readable):
        yield source
    else:
        with open_source(source) as buffer:
            yield buffer


def _parts_of(source: Copied) -> list[_Part]:
    """All episodes of a source."""
    if not isinstance(source, Readable):
        # One after another: of very many, not all can be open.
        return [part for folder in find_buffers(source) for part in _parts_of_folder(folder)]
    return [_Part.of(part, np.arange(len(part))) for part in source.snapshots()]


def _parts_of_folder(folder: Path) -> list[_Part]:
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        return [_Part.of(part, np.arange(len(part))) for part in buffer.snapshots()]


def _parts_at(snapshots: Sequence[Snapshot], places: Ints) -> Iterator[_Part]:
    """Episodes by their ascending index over all snapshots."""
    edges = np.concatenate(([0], np.cumsum([len(part) for part in snapshots])))
    bounds = np.searchsorted(places, edges).tolist()
    for number, part in enumerate(snapshots):
        if bounds[number] < bounds[number + 1]:
            yield _Part.of(part, places[bounds[number] : bounds[number + 1]] - edges[number])


def _chosen(
    snapshots: Sequence[Snapshot],
    episodes: Episodes | None,
    filter_meta: Mapping[str, Condition] | None,
    where: str | None,
) -> npt.NDArray[np.bool_]:
    """Which episodes meet all conditions."""
    facts = EpisodeFacts(snapshots)
    fields = snapshots[0].metadata.meta_fields
    meta = MetaValues(fields, facts.__getitem__)
    mask = np.ones(facts.count, np.bool_)
    if isinstance(episodes, str):
        mask &= facts.where(episodes)
    elif episodes is not None:
        mask &= episode_mask(episodes, facts.count, meta)
    if filter_meta:
        mask &= meta_mask(filter_meta, facts.count, meta)
    if where is not None:
        mask &= facts.where(where)
    return mask


# --- the copying ---


def _copy(
    metadata: Metadata, targets: Mapping[Path, Sequence[_Part]], overwrite: bool, progress: bool
) -> list[ReplayBuffer]:
    """Build each target beside its place, and let all of them appear when the last one is complete."""
    from tqdm import tqdm

    total = sum(part.rows for parts in targets.values() for part in parts) * _fixed_nbytes(metadata)
    made: list[FolderAside] = []
    bar = tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="copy", delay=1, disable=not progress)
    try:
        for folder, parts in targets.items():
            made.append(FolderAside(folder, overwrite=overwrite))
            _build(made[-1].directory, metadata, parts, bar)
        for aside in made:
            aside.publish()
    except OSError as error:
        if isinstance(error, GymReplayError) and not isinstance(error, StorageError):
            raise
        raise _failure(error, [aside.target for aside in made if aside.is_published]) from error
    finally:
        for aside in made:
            aside.discard()
        bar.close()
    return [ReplayBuffer.from_folder(aside.target) for aside in made]


def _failure(error: OSError, published: Sequence[Path]) -> StorageError:
    """An error of ours, without the advice that is given to those who record, which says what was made."""
    reason = (error.strerror or str(error)).partition(" (")[0]
    remedy = "; free some space and start it again" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    left = f"complete are {', '.join(map(str, published))}" if published else "nothing is left of the copy"
    return StorageError(error.errno, f"{reason}; {left}{remedy}", error.filename)


def _build(folder: Directory, metadata: Metadata, parts: Sequence[_Part], bar: Any) -> None:
    """Fill a folder, complete and synced."""
    own = replace(metadata, uuid=Metadata(fields={}, meta_fields={}).uuid)
    builder = FolderBuilder(folder, own, bar.update)
    try:
        for part in parts:
            reader, snapshot = part.open()
            try:
                builder.add(snapshot, part.places(snapshot))
            finally:
                reader.close()
        builder.finish()
    finally:
        builder.close()


def _fixed_nbytes(metadata: Metadata) -> int:
    """Bytes of a row, apart from elements of ragged fields, whose number is not known beforehand."""
    return sum(16 if info.ragged else info.dtype.itemsize * math.prod(info.shape) for info in metadata.fields.values())

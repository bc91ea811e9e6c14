"""Buffers that are still written: new snapshots of them, and names of samples that hold in each of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from gym_replay.buffer.loading.order import Draw, LiveEpisodes, PriorityDraw, uniforms
from gym_replay.buffer.loading.plans import Anchors
from gym_replay.buffer.loading.source import Source
from gym_replay.buffer.storage.reader import FolderReader, Snapshot
from gym_replay.cached import cached_property
from gym_replay.schema.arrays import Bools, Floats, Ints

Bounds: TypeAlias = tuple[tuple[int, int], ...]
"""Of each buffer, the first id in a snapshot and the one past the last."""

_REPLACED = 31


class Folders:
    """The folders of some snapshots, of which newer ones are taken, in whichever process this is.

    Args:
        parts: the snapshots.
    """

    def __init__(self, parts: Sequence[Snapshot]) -> None:
        self._origins = [(part.reader.folder, part.reader.lazy, part.choice) for part in parts]
        self._readers: list[FolderReader] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": None}  # another process opens the files itself

    def newest(self) -> list[Snapshot]:
        """The snapshot of each folder; the same object as before where nothing has changed."""
        if self._readers is None:
            self._readers = [FolderReader(folder, lazy=lazy) for folder, lazy, _ in self._origins]
        return [reader.refresh() for reader in self._readers]

    def within(self, parts: Sequence[Snapshot], bounds: Bounds) -> list[Snapshot]:
        """The episodes of :meth:`newest` with ids inside the bounds, and the part of the schema that was chosen."""
        cut = [_within(part, *limits) for part, limits in zip(parts, bounds, strict=True)]
        chosen = zip(cut, self._origins, strict=True)
        return [part if choice is None else part.limited_to(choice) for part, (_, _, choice) in chosen]


class Numbering:
    """The samples of one snapshot by their numbers, and by the names that every process knows them by.

    A name is a buffer, an episode's id, which never changes, and which of the episode's samples it is. So whoever has a
    newer snapshot finds the same samples.

    Args:
        source, anchors: the episodes of the snapshot and their samples.
        bounds: of the snapshot.
        version: a number that changes with the snapshot.
    """

    def __init__(self, source: Source, anchors: Anchors, bounds: Bounds, version: int) -> None:
        self._anchors, self.bounds, self.version = anchors, bounds, version
        self._parts, self.ids = source.owners, source.ids

    def __len__(self) -> int:
        return len(self._anchors)

    @cached_property
    def offsets(self) -> Ints:
        """Each episode's first sample, and the number of samples; int64 ``(episodes + 1,)``."""
        return self._anchors.first_samples()

    @cached_property
    def _starts_of_parts(self) -> Ints:
        return np.searchsorted(self._parts, np.arange(len(self.bounds) + 1))

    def named(self, draw: Draw) -> Draw:
        """The draw, its samples by their names."""
        episodes = np.searchsorted(self.offsets, draw.samples, side="right") - 1
        return self.named_by(draw, episodes, draw.samples - self.offsets[episodes])

    def named_by(self, draw: Draw, episodes: Ints, inside: Ints) -> Draw:
        """The draw, its samples by their names.

        Args:
            draw: the draw.
            episodes: int64 ``(batch,)``: the index of each sample's episode, -1 for one that has gone.
            inside: int64 ``(batch,)``: which of its episode's samples each is.
        """
        ids = np.where(episodes < 0, -1, self.ids[episodes])
        live = LiveEpisodes(self._parts[episodes], ids, self.version, self.bounds)
        return replace(draw, samples=inside, live=live)

    def numbered(self, draw: Draw, live: LiveEpisodes) -> Draw:
        """The draw, its samples by their numbers; random ones of the same buffer for those that are not here."""
        samples, missing = self._find(live, draw.samples)
        if missing.any():
            chances = uniforms(draw.positions[missing], draw.seed, draw.epoch, (_REPLACED,))
            samples[missing] = self._others(live.parts[missing], chances)
            if isinstance(draw, PriorityDraw):
                draw = replace(draw, names=np.where(missing, -1, draw.names))
        return replace(draw, samples=samples, live=None)

    def _find(self, live: LiveEpisodes, inside: Ints) -> tuple[Ints, Bools]:
        """The numbers of samples, and which there are not."""
        samples, missing = np.zeros(len(inside), np.int64), np.ones(len(inside), np.bool_)
        for part in np.unique(live.parts).tolist():
            low, high = self._starts_of_parts[part : part + 2].tolist()
            if low == high:
                continue
            mine = np.flatnonzero(live.parts == part)
            episodes = low + np.minimum(np.searchsorted(self.ids[low:high], live.ids[mine]), high - low - 1)
            samples[mine] = self.offsets[episodes] + inside[mine]
            missing[mine] = (self.ids[episodes] != live.ids[mine]) | (samples[mine] >= self.offsets[episodes + 1])
        return samples, missing

    def _others(self, parts: Ints, chances: Floats) -> Ints:
        """Samples of these parts, or of all where a part has none, one for each number in [0, 1)."""
        low, high = (self.offsets[self._starts_of_parts[parts + k]] for k in (0, 1))
        empty = low == high
        low, high = np.where(empty, 0, low), np.where(empty, self.offsets[-1], high)
        samples: Ints = low + (chances * (high - low)).astype(np.int64)
        return samples


def bounds_of(parts: Sequence[Snapshot]) -> Bounds:
    """The bounds of snapshots."""
    return tuple((int(part.ids[0]), int(part.ids[-1]) + 1) if len(part) else (0, 0) for part in parts)


def intersection(several: Sequence[Bounds]) -> Bounds:
    """What is inside all of these bounds."""
    return tuple((max(first for first, _ in of), min(end for _, end in of)) for of in zip(*several, strict=True))


def _within(part: Snapshot, first: int, end: int) -> Snapshot:
    """The snapshot without the episodes before id ``first`` and from id ``end`` on."""
    low, high = np.searchsorted(part.ids, (first, end)).tolist()
    if (low, high) == (0, len(part)):
        return part
    return part.only(slice(low, max(low, high)))

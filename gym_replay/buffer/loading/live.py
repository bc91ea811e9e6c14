"""A dataset over buffers that are still written: it takes new snapshots, in workers too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from gym_replay.buffer.loading.collate import Batch
from gym_replay.buffer.loading.datasets import ReplayDataset
from gym_replay.buffer.loading.order import Draw, Floats, Ints, LiveEpisodes, PriorityDraw, uniforms
from gym_replay.buffer.loading.ordering import Ranks
from gym_replay.buffer.loading.statistics import Resolved
from gym_replay.buffer.storage.reader import FolderReader, Snapshot
from gym_replay.errors import EmptyBufferError, EpisodeEvictedError

Bounds: TypeAlias = tuple[tuple[int, int], ...]
Bools: TypeAlias = npt.NDArray[np.bool_]
_ATTEMPTS = 20
_REPLACED = 31


class View:
    """A dataset over one snapshot, and by what its samples are known to other processes.

    Attributes:
        dataset: over the snapshot.
        bounds: of each buffer, the first id in it and the one past the last.
        version: a number that changes with the snapshot.
        offsets: int64 ``(episodes + 1,)``: each episode's first sample, and the number of samples.
        parts, ids: int64 ``(episodes,)``: buffer and id of each episode.
    """

    def __init__(self, dataset: ReplayDataset, bounds: Bounds, version: int) -> None:
        self.dataset, self.bounds, self.version = dataset, bounds, version
        self.offsets = dataset.anchors.first_samples()
        self.parts, self.ids = dataset.source.owners, dataset.source.ids
        self._starts_of_parts = np.searchsorted(self.parts, np.arange(len(bounds) + 1))

    def find(self, parts: Ints, ids: Ints, inside: Ints) -> tuple[Ints, Bools]:
        """Return the numbers of samples, and which there are not."""
        samples, missing = np.zeros(len(ids), np.int64), np.ones(len(ids), np.bool_)
        for part in np.unique(parts).tolist():
            low, high = self._starts_of_parts[part : part + 2].tolist()
            if low == high:
                continue
            mine = np.flatnonzero(parts == part)
            episodes = low + np.minimum(np.searchsorted(self.ids[low:high], ids[mine]), high - low - 1)
            samples[mine] = self.offsets[episodes] + inside[mine]
            missing[mine] = (self.ids[episodes] != ids[mine]) | (samples[mine] >= self.offsets[episodes + 1])
        return samples, missing

    def others(self, parts: Ints, chances: Floats) -> Ints:
        """Return samples of these parts, or of all where a part has none, one for each number in [0, 1)."""
        low, high = (self.offsets[self._starts_of_parts[parts + k]] for k in (0, 1))
        empty = low == high
        low, high = np.where(empty, 0, low), np.where(empty, self.offsets[-1], high)
        samples: Ints = low + (chances * (high - low)).astype(np.int64)
        return samples


class LiveDataset(Dataset[Batch]):
    """The dataset of the newest snapshot that was asked for.

    The main process takes snapshots and draws samples. A draw names episodes by their ids, which never change. So a
    worker, whose snapshot may be newer, finds the same samples, and takes a new snapshot when a draw says that there
    is one. A sample whose episode has gone in between is replaced by a random one of the same buffer.

    Args:
        dataset: over the snapshot of now.
        remake: makes the same dataset over other snapshots; must pickle where workers are spawned.
    """

    def __init__(self, dataset: ReplayDataset, remake: Callable[..., ReplayDataset]) -> None:
        self._remake = remake
        # What is read from, and what is shown of each.
        self._origins = [(part.reader.folder, part.reader.lazy, part.choice) for part in dataset.source.parts]
        self._readers: list[FolderReader] | None = None
        self._seen: list[Snapshot] = []
        self.view = View(dataset, tuple(_bounds_of(part) for part in dataset.source.parts), 0)
        """What samples are drawn from."""
        self._served = self.view
        """What batches are made from: in a worker, or where episodes left too fast, another view than the above."""

    @property
    def normalized(self) -> Resolved | None:
        """The statistics that fields are normalized with, or None."""
        return self.view.dataset.normalized

    def normalize_with(self, statistics: Resolved) -> None:
        """Normalize with these statistics from now on."""
        self._remake = partial(self._remake, normalize=statistics)
        for view in (self.view, self._served):
            view.dataset.normalize_with(statistics)

    def __len__(self) -> int:
        return len(self.view.dataset)

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens the files itself, and draws nothing.
        return self.__dict__ | {"_readers": None, "_seen": [], "view": self._served}

    def renew(self, ranks: Ranks | None = None, *, within: Bounds | None = None) -> bool:
        """Take a new snapshot; return whether anything is different.

        Args:
            ranks: processes that must get the same episodes: those that all of them see.
            within: episodes outside of these bounds are left out.

        Raises:
            EmptyBufferError: there is no sample any more.
            EpisodeEvictedError: the ranks cannot agree, because episodes leave too fast.
        """
        for _ in range(_ATTEMPTS):
            parts, bounds = self._look(within)
            if ranks is not None and ranks.connected:
                bounds = _intersection(ranks.gather(bounds))
            changed = bounds != self.view.bounds or [*map(id, parts)] != [*map(id, self._seen)]
            if changed:
                self.view = self._served = self._view_of(parts, bounds, self.view.version + 1)
                self._seen = parts
            # Deletions between two ranks' looks do not show in the bounds.
            if ranks is None or len(set(ranks.gather((bounds, len(self))))) == 1:
                return changed
        raise EpisodeEvictedError("the episodes change faster than the ranks can agree on them")

    def _look(self, within: Bounds | None) -> tuple[list[Snapshot], Bounds]:
        if self._readers is None:
            self._readers = [FolderReader(folder, lazy=lazy) for folder, lazy, _ in self._origins]
        parts = [reader.refresh() for reader in self._readers]
        bounds = tuple(_bounds_of(part) for part in parts)
        return parts, bounds if within is None else _intersection([bounds, within])

    def _view_of(self, parts: Sequence[Snapshot], bounds: Bounds, version: int) -> View:
        cut = [_within(part, *limits) for part, limits in zip(parts, bounds, strict=True)]
        choices = [choice for _, _, choice in self._origins]
        shown = [part if choice is None else part.limited_to(choice) for part, choice in zip(cut, choices, strict=True)]
        return View(self._remake(shown), bounds, version)

    def named(self, draw: Draw) -> Draw:
        """Return a draw of samples of the newest snapshot, for whichever process makes the batch."""
        episodes = np.searchsorted(self.view.offsets, draw.samples, side="right") - 1
        return self.named_by(draw, episodes, draw.samples - self.view.offsets[episodes])

    def named_by(self, draw: Draw, episodes: Ints, inside: Ints) -> Draw:
        """Return a draw of which the episodes (indices into the snapshot, -1 for one that has gone) are known.

        Args:
            draw: the draw.
            episodes: int64 ``(batch,)``: of each sample.
            inside: int64 ``(batch,)``: which of its episode's samples each is.
        """
        view = self.view
        ids = np.where(episodes < 0, -1, view.ids[episodes])
        live = LiveEpisodes(view.parts[episodes], ids, view.version, view.bounds)
        return replace(draw, samples=inside, live=live)

    def __getitem__(self, index: Any) -> Batch:
        if not isinstance(index, Draw) or index.live is None:
            return self._served.dataset[index]
        if index.live.version != self._served.version:
            try:
                self._served = self._view_of(*self._look(index.live.bounds), index.live.version)
            except EmptyBufferError:  # none of those that it was drawn from is left
                self._served = self._view_of(*self._look(None), index.live.version)
        for _ in range(_ATTEMPTS):
            with suppress(EpisodeEvictedError):
                return self._served.dataset[self._numbered(index, index.live)]
            self._served = self._view_of(*self._look(None), index.live.version)
        raise EpisodeEvictedError("episodes are evicted from the circular buffer faster than a batch can be copied")

    def _numbered(self, draw: Draw, live: LiveEpisodes) -> Draw:
        """The draw with sample numbers of the view that is served."""
        samples, missing = self._served.find(live.parts, live.ids, draw.samples)
        if missing.any():
            chances = uniforms(draw.positions[missing], draw.seed, draw.epoch, (_REPLACED,))
            samples[missing] = self._served.others(live.parts[missing], chances)
            if isinstance(draw, PriorityDraw):
                draw = replace(draw, names=np.where(missing, -1, draw.names))
        return replace(draw, samples=samples, live=None)


def _bounds_of(part: Snapshot) -> tuple[int, int]:
    return (int(part.ids[0]), int(part.ids[-1]) + 1) if len(part) else (0, 0)


def _intersection(several: Sequence[Bounds]) -> Bounds:
    return tuple((max(first for first, _ in of), min(end for _, end in of)) for of in zip(*several, strict=True))


def _within(part: Snapshot, first: int, end: int) -> Snapshot:
    """The snapshot without the episodes before id ``first`` and from id ``end`` on."""
    low, high = np.searchsorted(part.ids, (first, end)).tolist()
    if (low, high) == (0, len(part)):
        return part
    return part.only(slice(low, max(low, high)))

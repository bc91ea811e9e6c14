"""What a loader reads from: the snapshots of one buffer, or of several in a row, as one set of episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.facts import EpisodeFacts
from gym_replay.buffer.loading.gather import Padded, Rows
from gym_replay.buffer.loading.plans import Anchors, Ints
from gym_replay.buffer.loading.selection import Condition, Episodes, MetaValues, episode_mask, meta_mask
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import EmptyBufferError, EpisodeEvictedError
from gym_replay.schema.fields import Field

_MANY_PARTS = 16
"""Up to so many circular parts are all looked at for each batch; of more, those that the batch is from."""


class Source:
    """The selected episodes of one or more snapshots of one schema.

    Rows are numbered over all parts, as ``rows`` does it.

    Attributes:
        rows: the rows of all fields.
        starts, lengths: int64 ``(episodes,)``: first row over all parts, and T.
        has_final: bool ``(episodes,)``: whether row T holds the last observation.
        index: int64 ``(episodes,)``: each episode's index in the buffer, or in the concatenation.
    """

    def __init__(
        self,
        parts: Sequence[Snapshot],
        *,
        filter_meta: Mapping[str, Condition] | None = None,
        episodes: Episodes | None = None,
    ) -> None:
        self.parts = list(parts)
        metadata = self.parts[0].metadata
        self.fields: dict[str, Field] = metadata.fields
        self.meta_fields: dict[str, Field] = metadata.meta_fields
        self.user_meta = [name for name in metadata.meta_fields if name not in metadata.recorder_meta]
        limits = [part.metadata.max_timesteps for part in self.parts]
        self.max_timesteps = None if None in limits else max(filter(None, limits))
        self.rows = Rows(self.parts)
        sizes = [len(part) for part in self.parts]
        if sum(sizes) == 0:
            raise EmptyBufferError("the buffer is empty: record at least one episode before loading")
        self._part = np.repeat(np.arange(len(sizes)), sizes)
        self.index = np.arange(sum(sizes), dtype=np.int64)
        self.ids = np.concatenate([part.ids for part in self.parts])
        self.starts = np.concatenate([part.starts for part in self.parts]) + self.rows.firsts[self._part]
        self.lengths = np.concatenate([part.lengths for part in self.parts])
        self.has_final = np.concatenate([part.has_final for part in self.parts])
        self._meta: dict[str, npt.NDArray[Any]] = {}
        if isinstance(episodes, str):
            self._keep(EpisodeFacts(self.parts).where(episodes), f"no episode meets episodes={episodes!r}")
        elif episodes is not None:
            self._keep(episode_mask(episodes, len(self.index), self._meta_values), "episodes=... selects no episode")
        if filter_meta:
            mask = meta_mask(filter_meta, len(self.index), self._meta_values)
            self._keep(mask, f"no episode matches filter_meta={dict(filter_meta)!r}")
        present, firsts = np.unique(self._part, return_index=True)
        self.rows.use(present)
        # Episodes leave circular buffers only. Where there are many, only those of a batch are looked at.
        self._oldest = {
            part: int(self.ids[first])
            for part, first in zip(present.tolist(), firsts.tolist(), strict=True)
            if self.parts[part].metadata.circular
        }

    def _keep(self, mask: npt.NDArray[np.bool_], message: str) -> None:
        """Only these episodes, in the order in which they are: replacing evicted ones relies on it."""
        if not mask.any():
            raise EmptyBufferError(message)
        for attribute in ("_part", "index", "ids", "starts", "lengths", "has_final"):
            setattr(self, attribute, getattr(self, attribute)[mask])
        self._meta = {}

    @property
    def _meta_values(self) -> MetaValues:
        return MetaValues(self.meta_fields, self.meta)

    @property
    def environment(self) -> Mapping[str, Any] | None:
        """The recorded environment; None where there is none, or not the same spaces in all parts."""
        first, *others = (part.metadata.environment or {} for part in self.parts)
        spaces = ("observation_space", "action_space")
        if any(other is not first and any(other.get(s) != first.get(s) for s in spaces) for other in others):
            return None
        return first

    @property
    def owners(self) -> Ints:
        """Which part each episode is in, int64 ``(episodes,)``, ascending."""
        return self._part

    def stretches(self, episodes: Ints, steps: tuple[int, int], gap: int = 1) -> list[tuple[int, int]]:
        """Where consecutive samples are on the disk.

        Args:
            episodes: the first and the last episode (places in the selection), int64 ``(2,)``.
            steps: from which row of the first one, and to before which row of the last one.
            gap: rows between two of them, at most, that are read along.

        Returns:
            Stretches of rows of one part each: the first row, and the one past the last.
        """
        chosen = slice(int(episodes[0]), int(episodes[1]) + 1)
        starts = self.starts[chosen].copy()
        ends = starts + self.lengths[chosen] + self.has_final[chosen]
        ends[-1] = min(int(ends[-1]), int(starts[-1]) + steps[1])
        starts[0] += steps[0]
        # Episodes mostly lie back to back; a row between two is an o_T that is missing.
        owners = self._part[chosen]
        apart = (starts[1:] < ends[:-1]) | (starts[1:] > ends[:-1] + gap) | (owners[1:] != owners[:-1])
        breaks = np.flatnonzero(apart) + 1
        return list(zip(starts[[0, *breaks]].tolist(), ends[[*(breaks - 1), -1]].tolist(), strict=True))

    def meta(self, name: str) -> npt.NDArray[Any]:
        """A meta field's values, ``(episodes, *field.shape)``."""
        if name not in self._meta:
            firsts = np.cumsum([0, *map(len, self.parts)])
            present, begins = np.unique(self._part, return_index=True)
            places = np.split(self.index - firsts[self._part], begins[1:])
            self._meta[name] = np.concatenate(
                [self.parts[part].meta(name)[inside] for part, inside in zip(present.tolist(), places, strict=True)]
            )
        return self._meta[name]

    def take(self, name: str, rows: Ints) -> npt.NDArray[Any]:
        """A field's values at rows of any shape: ``(*rows.shape, *field.shape)``, in memory of their own."""
        return self.rows.take(name, rows)

    def take_runs(self, name: str, firsts: Ints, length: int) -> npt.NDArray[Any]:
        """``length`` consecutive rows from each of ``firsts``: ``(len(firsts), length, *field.shape)``."""
        return self.rows.take_runs(name, firsts, length)

    def take_ragged(self, name: str, rows: Ints, present: npt.NDArray[np.bool_] | None = None) -> Padded:
        """The elements of a ragged field at rows of any shape, padded, and how many there are."""
        return self.rows.take_ragged(name, rows, present)

    def take_slices(self, name: str, starts: Ints, counts: Ints, width: int) -> npt.NDArray[Any]:
        """``counts[i]`` rows from ``starts[i]`` for each i, padded with zeros: ``(len(starts), width, *shape)``."""
        return self.rows.take_slices(name, starts, counts, width)

    def replace_evicted(self, samples: Ints, anchors: Anchors) -> Ints:
        """The samples, those whose episodes have left a circular buffer replaced by live ones of the same buffer.

        Raises:
            EpisodeEvictedError: no selected episode of the buffer is left.
        """
        asked = samples
        for number in self._looked_at(lambda: self._part[anchors.locate(asked)[0]]):
            part = self.parts[number]
            if part.is_live(self._oldest[number]):
                continue
            low, high = np.searchsorted(self._part, (number, number + 1)).tolist()
            live = low + int(np.searchsorted(self.ids[low:high], part.counters.first))
            first, alive, end = (anchors.first_sample(episode) for episode in (low, live, high))
            gone = (samples >= first) & (samples < alive)
            if gone.any():
                if alive == end:
                    raise EpisodeEvictedError(
                        f"all episodes selected from {part.reader.folder} were evicted since; make a new loader"
                    )
                samples = samples.copy()
                samples[gone] = alive + (samples[gone] - first) % (end - alive)
        return samples

    def _looked_at(self, owners: Callable[[], Ints]) -> list[int]:
        """The circular parts, or where there are many, those among ``owners()``."""
        if len(self._oldest) <= _MANY_PARTS:
            return list(self._oldest)
        return [part for part in np.unique(owners()).tolist() if part in self._oldest]

    def are_live(self, episodes: Ints) -> bool:
        """Whether all these episodes (places in the selection) still own their rows."""
        looked_at = self._looked_at(lambda: self._part[episodes])
        if all(self.parts[part].is_live(self._oldest[part]) for part in looked_at):
            return True
        owner, ids = self._part[episodes], self.ids[episodes]
        present = set(np.unique(owner).tolist())
        return all(self.parts[part].is_live(int(ids[owner == part].min())) for part in looked_at if part in present)

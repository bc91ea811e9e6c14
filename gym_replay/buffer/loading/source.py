"""What a loader reads from: the snapshots of one buffer, or of several in a row, as one table of episodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gym_replay.buffer.loading.gather import Rows
from gym_replay.buffer.loading.plans import Anchors
from gym_replay.buffer.loading.selection import Condition, Episodes, EpisodeValues, selected
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.cached import cached_property
from gym_replay.errors import EmptyBufferError, EpisodeEvictedError
from gym_replay.schema.arrays import Array, Ints
from gym_replay.schema.fields import Field


class Source:
    """The selected episodes of one or more snapshots of one schema: a table, and columns to gather from.

    Rows are numbered over all parts, as ``rows`` does it.

    Args:
        parts: the snapshots.
        episodes: which episodes, see :func:`~gym_replay.buffer.loading.selection.selected`.
        filter_meta: conditions on meta fields that choose among them.

    Attributes:
        rows: the rows of all fields.
        owners: int64 ``(episodes,)``, ascending: which part each episode is in.
        index: int64 ``(episodes,)``: each episode's index in the buffer, or in the concatenation.
        ids: int64 ``(episodes,)``: its id in its buffer.
        starts, lengths: int64 ``(episodes,)``: first row over all parts, and T.
        has_final: bool ``(episodes,)``: whether row T holds the last observation.

    Raises:
        EmptyBufferError: there is no episode, or none is selected.
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
        self._values = EpisodeValues(self.parts)
        self._meta: dict[str, Array] = {}
        if self._values.count == 0:
            raise EmptyBufferError("the buffer is empty: record at least one episode before loading")
        # In the order in which they are: replacing evicted ones relies on it.
        self.index = np.flatnonzero(selected(self._values, episodes, filter_meta))
        if not len(self.index):
            conditions = {"episodes": episodes, "filter_meta": filter_meta}
            given = ", ".join(f"{name}={value!r:.80}" for name, value in conditions.items() if value is not None)
            raise EmptyBufferError(f"no episode meets {given}")
        self._are_all = len(self.index) == self._values.count
        chosen = slice(None) if self._are_all else self.index  # of ten million episodes, each copy takes its time
        self.owners = np.repeat(np.arange(len(self.parts)), [len(part) for part in self.parts])[chosen]
        self.ids, self.lengths, self.has_final, starts = (
            _joined([getattr(part, name) for part in self.parts])[chosen]
            for name in ("ids", "lengths", "has_final", "starts")
        )
        self.starts = starts + self.rows.firsts[self.owners]
        present = np.flatnonzero(np.bincount(self.owners))
        firsts = np.searchsorted(self.owners, present)
        self.rows.use(present)
        # Episodes leave circular buffers only.
        self._oldest = {
            part: int(self.ids[first])
            for part, first in zip(present.tolist(), firsts.tolist(), strict=True)
            if self.parts[part].metadata.circular
        }

    @cached_property
    def last_rows(self) -> Ints:
        """The last row of each episode, counted from its first, that holds something recorded: T or T-1."""
        last: Ints = self.lengths - 1 + self.has_final
        return last

    @property
    def environment(self) -> Mapping[str, Any] | None:
        """The recorded environment; None where there is none, or not the same spaces in all parts."""
        first, *others = (part.metadata.environment or {} for part in self.parts)
        spaces = ("observation_space", "action_space")
        if any(other is not first and any(other.get(s) != first.get(s) for s in spaces) for other in others):
            return None
        return first

    def require_up_to_date(self, names: Iterable[str]) -> None:
        """Raise StaleFieldError where one of the fields has no values for one of the selected episodes yet."""
        for number, part in enumerate(self.parts):
            if part.metadata.derived.keys() & names:
                mine = np.isin(part.ids, self.ids[self.owners == number])
                part.only(np.flatnonzero(mine)).require_up_to_date(names)

    def meta(self, name: str) -> Array:
        """A meta field's values, ``(episodes, *field.shape)``."""
        if name not in self._meta:
            self._meta[name] = self._values[name] if self._are_all else self._values.of(name, self.index)
        return self._meta[name]

    def stretches(self, episodes: Ints, steps: tuple[int, int], gap: int = 1) -> list[tuple[int, int]]:
        """Where consecutive samples are on the disk.

        Args:
            episodes: the first and the last episode of the selection, int64 ``(2,)``.
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
        owners = self.owners[chosen]
        apart = (starts[1:] < ends[:-1]) | (starts[1:] > ends[:-1] + gap) | (owners[1:] != owners[:-1])
        breaks = np.flatnonzero(apart) + 1
        return list(zip(starts[[0, *breaks]].tolist(), ends[[*(breaks - 1), -1]].tolist(), strict=True))

    def replace_evicted(self, samples: Ints, anchors: Anchors) -> Ints:
        """The samples, those whose episodes have left a circular buffer replaced by live ones of the same buffer.

        Raises:
            EpisodeEvictedError: no selected episode of the buffer is left.
        """
        for number, oldest in self._oldest.items():
            part = self.parts[number]
            if part.is_live(oldest):
                continue
            low, high = np.searchsorted(self.owners, (number, number + 1)).tolist()
            live = low + int(np.searchsorted(self.ids[low:high], part.counters.first))
            first, alive, end = anchors.first_samples([low, live, high]).tolist()
            gone = (samples >= first) & (samples < alive)
            if gone.any():
                if alive == end:
                    raise EpisodeEvictedError(
                        f"all episodes selected from {part.reader.folder} were evicted since; make a new loader"
                    )
                samples = np.where(gone, alive + (samples - first) % (end - alive), samples)
        return samples

    def are_live(self, episodes: Ints) -> bool:
        """Whether all these episodes of the selection still own their rows."""
        lost = [part for part, oldest in self._oldest.items() if not self.parts[part].is_live(oldest)]
        if not lost:
            return True
        owners, ids = self.owners[episodes], self.ids[episodes]
        return all(self.parts[part].is_live(int(ids[owners == part].min())) for part in lost if (owners == part).any())


def _joined(columns: Sequence[Any]) -> Any:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)

"""What a loader reads from: the snapshots of one buffer, or of several in a row, as one set of episodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.gather import Padded, Rows
from gym_replay.buffer.loading.plans import Anchors, Ints
from gym_replay.buffer.storage.fields import Field, to_array
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import EmptyBufferError, EpisodeEvictedError, FieldError

Condition: TypeAlias = Any | Collection[Any] | Callable[[npt.NDArray[Any]], npt.NDArray[np.bool_]]
"""A value to equal, a set, list or tuple of values to be among, or a function of the values that gives a mask."""

Episodes: TypeAlias = (
    int
    | slice
    | Collection[int]
    | npt.NDArray[np.int64]
    | npt.NDArray[np.bool_]
    | Callable[[Mapping[str, npt.NDArray[Any]]], npt.NDArray[np.bool_]]
)
"""Which episodes: indices, a mask over all of them, or a function of all meta values that gives a mask."""


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
        self.max_timesteps = metadata.max_timesteps
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
        if episodes is not None:
            self._keep(_episode_mask(episodes, len(self.index), self), "episodes=... selects no episode")
        if filter_meta:
            self._select(filter_meta)
        present, firsts = np.unique(self._part, return_index=True)
        self._oldest = [
            (self.parts[part], int(self.ids[first])) for part, first in zip(present, firsts.tolist(), strict=True)
        ]

    def _select(self, filter_meta: Mapping[str, Condition]) -> None:
        mask = np.ones(len(self.index), np.bool_)
        for name, condition in filter_meta.items():
            if name not in self.meta_fields:
                raise FieldError(f"filter_meta: unknown meta field {name!r}; there are {list(self.meta_fields)}")
            mask &= matches(self.meta(name), condition, name)
        self._keep(mask, f"no episode matches filter_meta={dict(filter_meta)!r}")

    def _keep(self, mask: npt.NDArray[np.bool_], message: str) -> None:
        """Only these episodes, in the order in which they are: replacing evicted ones relies on it."""
        if not mask.any():
            raise EmptyBufferError(message)
        for attribute in ("_part", "index", "ids", "starts", "lengths", "has_final"):
            setattr(self, attribute, getattr(self, attribute)[mask])
        self._meta = {}

    @property
    def owners(self) -> Ints:
        """Which part each episode is in, int64 ``(episodes,)``, ascending."""
        return self._part

    def stretches(self, episodes: Ints, steps: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Where consecutive samples are on the disk.

        Args:
            episodes: the first and the last episode (places in the selection), int64 ``(2,)``.
            steps: from which row of the first one, and to before which row of the last one.

        Returns:
            Stretches of rows: the part, the first row, and the one past the last.
        """
        chosen = slice(int(episodes[0]), int(episodes[1]) + 1)
        starts = self.starts[chosen].copy()
        ends = starts + self.lengths[chosen] + self.has_final[chosen]
        ends[-1] = min(int(ends[-1]), int(starts[-1]) + steps[1])
        starts[0] += steps[0]
        # Episodes mostly lie back to back; up to a row between two (an o_T that is missing) is read along.
        owners = self._part[chosen]
        apart = (starts[1:] < ends[:-1]) | (starts[1:] > ends[:-1] + 1) | (owners[1:] != owners[:-1])
        breaks = np.flatnonzero(apart) + 1
        begins, numbers = starts[[0, *breaks]].tolist(), owners[[0, *breaks]].tolist()
        return list(zip(numbers, begins, ends[[*(breaks - 1), -1]].tolist(), strict=True))

    def meta(self, name: str) -> npt.NDArray[Any]:
        """A meta field's values, ``(episodes, *field.shape)``."""
        if name not in self._meta:
            self._meta[name] = np.concatenate([part.meta(name) for part in self.parts])[self.index]
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
        for part, oldest in self._oldest:
            if part.is_live(oldest):
                continue
            low, high = np.searchsorted(self._part, np.array((0, 1)) + self._number_of(part)).tolist()
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

    def _number_of(self, part: Snapshot) -> int:
        return next(number for number, other in enumerate(self.parts) if other is part)

    def are_live(self, episodes: Ints) -> bool:
        """Whether all these episodes (places in the selection) still own their rows."""
        if all(part.is_live(oldest) for part, oldest in self._oldest):
            return True
        owner, ids = self._part[episodes], self.ids[episodes]
        return all(self.parts[part].is_live(int(ids[owner == part].min())) for part in np.unique(owner).tolist())


class _MetaValues(Mapping[str, npt.NDArray[Any]]):
    """The meta values of all episodes by name, each read when it is asked for."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self._source.meta_fields:
            raise FieldError(f"episodes: unknown meta field {name!r}; there are {list(self)}")
        return self._source.meta(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.meta_fields)

    def __len__(self) -> int:
        return len(self._source.meta_fields)


def _episode_mask(episodes: Any, count: int, source: Source) -> npt.NDArray[np.bool_]:
    """Which of ``count`` episodes are selected.

    Raises:
        FieldError: it is no selection, or names an episode twice.
        IndexError: there is no such episode.
    """
    mask = np.zeros(count, np.bool_)
    if isinstance(episodes, slice):
        mask[episodes] = True
        return mask
    if callable(episodes):
        given = np.asarray(episodes(_MetaValues(source)))
        if given.dtype != np.bool_ or given.shape != (count,):
            raise FieldError(
                f"episodes: expected the function to give a boolean mask of shape ({count},), got {given.dtype} of "
                f"shape {given.shape}"
            )
        return given
    if isinstance(episodes, (set, frozenset)):
        episodes = sorted(episodes)
    array = np.atleast_1d(np.asarray(episodes))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "biu"):
        raise FieldError("episodes: expected an index, indices, a slice, a mask, or a function of the meta fields")
    if array.dtype == np.bool_:
        if len(array) != count:
            raise FieldError(f"episodes: expected a mask over {count} episodes, got one over {len(array)}")
        return array
    if array.size and (int(array.min()) < -count or int(array.max()) >= count):
        raise IndexError(f"episodes {episodes}: there are {count}")
    mask[array.astype(np.int64)] = True
    if mask.sum() != array.size:
        raise FieldError("episodes: an episode is named twice")
    return mask


def matches(values: npt.NDArray[Any], condition: Condition, name: str) -> npt.NDArray[np.bool_]:
    """Which of ``values``, one per row of the first axis, meet a condition.

    Raises:
        FieldError: a function gave no mask, or the condition does not fit the values.
    """
    if callable(condition):
        mask = np.asarray(condition(values))
        if mask.dtype != np.bool_ or mask.shape != values.shape[:1]:
            raise FieldError(
                f"the condition on {name!r}: expected a boolean mask of shape {values.shape[:1]}, got {mask.dtype} of "
                f"shape {mask.shape}"
            )
        return mask
    is_set = isinstance(condition, (set, frozenset))
    if is_set and values.ndim > 1:
        raise FieldError(
            f"the condition on {name!r}: a set goes with single values, not with shape {values.shape[1:]}; give a "
            "function that returns a mask"
        )
    if is_set or (isinstance(condition, (list, tuple, range)) and values.ndim == 1):
        if values.dtype == object:
            return np.fromiter((value in condition for value in values), np.bool_, len(values))
        if len(condition) == 0:
            return np.zeros(len(values), np.bool_)
        return np.isin(values, _as_compared(to_array(list(condition), name), values))
    if values.dtype == object:
        return np.fromiter((value == condition for value in values), np.bool_, len(values))
    wanted = _as_compared(to_array(condition, name), values)
    if wanted.shape != values.shape[1:] and wanted.size != 1:
        raise FieldError(f"the condition on {name!r}: expected shape {values.shape[1:]}, got {wanted.shape}")
    equal: npt.NDArray[np.bool_] = (values == wanted).reshape(len(values), -1).all(axis=1)
    return equal


def _as_compared(wanted: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What values are compared with: in a float field's own precision, so that the 0.1 that was stored is 0.1."""
    return wanted.astype(values.dtype) if values.dtype.kind == "f" else wanted

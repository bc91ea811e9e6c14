"""Which episodes are meant: by index, mask, function, condition, and by the values that each episode has."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.where import Where
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import FieldError
from gym_replay.schema.fields import to_array

Mask = npt.NDArray[np.bool_]

Condition: TypeAlias = Any | Collection[Any] | Callable[[npt.NDArray[Any]], Mask]
"""A value to equal, a set, list or tuple of values to be among, or a function of the values that gives a mask."""

Episodes: TypeAlias = (
    int
    | str
    | slice
    | Collection[int]
    | npt.NDArray[np.int64]
    | Mask
    | Callable[[Mapping[str, npt.NDArray[Any]]], Mask]
)
"""Which episodes: indices, a mask over all of them, a condition such as ``"length > 100"``, or a function of their
values by name that gives a mask."""

_ROWS_AT_ONCE = 1 << 20


class EpisodeValues(Mapping[str, npt.NDArray[Any]]):
    """Values of all episodes of some snapshots of one schema by name, ``(episodes, *shape)``, read when asked for.

    The meta fields are there under their names, and where no meta field has the name:

    * ``index`` (as in ``buffer.episode(index)``), ``id`` (within its buffer) and ``length`` (T), int64;
    * ``complete`` (not cut by a reset or a close) and ``has_final`` (the last observation is there), bool;
    * ``terminated`` and ``truncated``: of the last step, where there is such a field of single booleans;
    * ``episode_return``: the sum of the rewards, where ``reward`` is a field of single numbers.

    Args:
        parts: the snapshots.

    Attributes:
        meta_fields: the declarations of the meta fields.

    Example:
        >>> values = EpisodeValues(buffer.snapshots())  # doctest: +SKIP
        >>> values["length"]  # doctest: +SKIP
        array([12, 9, 31])
    """

    def __init__(self, parts: Sequence[Snapshot]) -> None:
        self._parts = parts
        self._known: dict[str, npt.NDArray[Any]] = {}
        fields, self.meta_fields = parts[0].metadata.fields, parts[0].metadata.meta_fields
        single = {name: info.dtype.kind for name, info in fields.items() if not info.ragged and info.shape == ()}
        names = ["index", "id", "length", "complete", "has_final"]
        names += [name for name in ("terminated", "truncated") if single.get(name) == "b"]
        names += ["episode_return"] if "reward" in single else []
        self._names = list(dict.fromkeys((*names, *self.meta_fields)))

    @property
    def count(self) -> int:
        """How many episodes there are."""
        return sum(len(part) for part in self._parts)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self._names:
            raise FieldError(f"episodes: there are no values {name!r}; there are {self._names}")
        if name not in self._known:
            self._known[name] = np.concatenate([self._read(name, part) for part in self._parts])
            if name == "index" and name not in self.meta_fields:
                self._known[name] = np.arange(self.count)
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _read(self, name: str, part: Snapshot) -> npt.NDArray[Any]:
        if name in self.meta_fields:
            return part.meta(name)
        if name == "episode_return":
            return _returns(part)
        if name in ("terminated", "truncated"):
            last: npt.NDArray[Any] = part.column(name)[part.starts + part.lengths - 1]
            return last
        if name == "length":
            return part.lengths
        return part.ids if name in ("id", "index") else getattr(part, name)


def _returns(part: Snapshot) -> npt.NDArray[np.float64]:
    """The sum of each episode's rewards, one after another in float64, as a recorder adds them up."""
    sums = np.zeros(len(part))
    rewards, edges = part.column("reward"), np.concatenate(([0], np.cumsum(part.lengths)))
    first = 0
    while first < len(part):
        last = max(int(np.searchsorted(edges, edges[first] + _ROWS_AT_ONCE, side="right")) - 1, first + 1)
        lengths = part.lengths[first:last]
        inside = np.repeat(part.starts[first:last] - (edges[first:last] - edges[first]), lengths)
        rows = inside + np.arange(len(inside))
        sums[first:last] = np.bincount(np.repeat(np.arange(last - first), lengths), rewards[rows], last - first)
        first = last
    return sums


def selected(
    values: EpisodeValues, episodes: Episodes | None = None, filter_meta: Mapping[str, Condition] | None = None
) -> Mask:
    """Which episodes meet all conditions, bool ``(episodes,)``.

    Args:
        values: of all episodes.
        episodes: which of them; None for all.
        filter_meta: conditions on meta fields.

    Raises:
        FieldError: it is no selection, names an episode twice, or a condition does not fit its meta field.
        IndexError: there is no such episode.
    """
    mask = np.ones(values.count, np.bool_) if episodes is None else _meant(episodes, values)
    for name, condition in (filter_meta or {}).items():
        if name not in values.meta_fields:
            raise FieldError(f"filter_meta: unknown meta field {name!r}; there are {list(values.meta_fields)}")
        mask = mask & matches(values[name], condition, name)
    return mask


def _meant(episodes: Any, values: EpisodeValues) -> Mask:
    count = values.count
    mask = np.zeros(count, np.bool_)
    if isinstance(episodes, str):
        return Where(episodes).mask(values, count)
    if isinstance(episodes, slice):
        mask[episodes] = True
        return mask
    if callable(episodes):
        return _checked_mask("episodes: expected the function to give", episodes(values), count)
    array = np.atleast_1d(np.asarray(sorted(episodes) if isinstance(episodes, (set, frozenset)) else episodes))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "biu"):
        raise FieldError("episodes: expected an index, indices, a slice, a mask, or a function of the episodes' values")
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


def _checked_mask(expected: str, given: Any, count: int) -> Mask:
    mask = np.asarray(given)
    if mask.dtype != np.bool_ or mask.shape != (count,):
        raise FieldError(f"{expected} a boolean mask of shape ({count},), got {mask.dtype} of shape {mask.shape}")
    return mask


def matches(values: npt.NDArray[Any], condition: Condition, name: str) -> npt.NDArray[np.bool_]:
    """Which of ``values``, one per row of the first axis, meet a condition.

    Raises:
        FieldError: a function gave no mask, or the condition does not fit the values.
    """
    if callable(condition):
        return _checked_mask(f"the condition on {name!r}: expected", condition(values), len(values))
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

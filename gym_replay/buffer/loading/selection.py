"""Which episodes are meant: by index, mask, function, expression, or conditions on their meta fields."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError
from gym_replay.schema.fields import to_array

Condition: TypeAlias = Any | Collection[Any] | Callable[[npt.NDArray[Any]], npt.NDArray[np.bool_]]
"""A value to equal, a set, list or tuple of values to be among, or a function of the values that gives a mask."""

Episodes: TypeAlias = (
    int
    | str
    | slice
    | Collection[int]
    | npt.NDArray[np.int64]
    | npt.NDArray[np.bool_]
    | Callable[[Mapping[str, npt.NDArray[Any]]], npt.NDArray[np.bool_]]
)
"""Which episodes: indices, a mask over all of them, a condition such as ``"length > 100"``, or a function of all meta
values that gives a mask."""


class MetaValues(Mapping[str, npt.NDArray[Any]]):
    """The meta values of all episodes by name, each read when it is asked for.

    Args:
        names: the meta fields.
        read: gives the values of one, ``(episodes, *field.shape)``.
    """

    def __init__(self, names: Collection[str], read: Callable[[str], npt.NDArray[Any]]) -> None:
        self._names, self._read = names, read

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self._names:
            raise FieldError(f"episodes: unknown meta field {name!r}; there are {list(self)}")
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def episode_mask(episodes: Any, count: int, meta: MetaValues) -> npt.NDArray[np.bool_]:
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
        given = np.asarray(episodes(meta))
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


def meta_mask(filter_meta: Mapping[str, Condition], count: int, meta: MetaValues) -> npt.NDArray[np.bool_]:
    """Which of ``count`` episodes meet all conditions on meta fields.

    Raises:
        FieldError: there is no such meta field, or a condition does not fit it.
    """
    mask = np.ones(count, np.bool_)
    for name, condition in filter_meta.items():
        if name not in list(meta):
            raise FieldError(f"filter_meta: unknown meta field {name!r}; there are {list(meta)}")
        mask &= matches(meta[name], condition, name)
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

"""The infos of a vector environment, taken apart into one for each sub-environment."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

FINAL = ("final_obs", "final_info")
"""Entries that tell of the episode that has ended, where the sub-environment was reset in the same step."""


def split_infos(infos: Any, count: int, numbers: Sequence[int], *, has_finals: bool = True) -> list[dict[Any, Any]]:
    """The info of each of the sub-environments with these numbers, as it would have given it by itself.

    An entry is that of the sub-environments in its mask ``_<key>``; where there is none, of all of them. What has no
    axis over the sub-environments is the same for each.

    Args:
        infos: a dict of arrays and dicts as Gymnasium gives it, or one dict for each sub-environment.
        count: how many sub-environments there are.
        numbers: those that are asked for.
        has_finals: whether the entries :data:`FINAL` are no infos of the sub-environments' own: in same-step mode.
    """
    left_out = set(FINAL) if has_finals else set()
    if isinstance(infos, (list, tuple)) and len(infos) == count:
        return [_without(infos[number], left_out) for number in numbers]
    if not isinstance(infos, Mapping):
        return [{} for _ in numbers]
    return _split(infos, count, numbers, {key for key in left_out if key in infos})


def split_final_infos(infos: Any, count: int, numbers: Sequence[int]) -> list[dict[Any, Any]]:
    """The same of what came with the last observations of the episodes that have ended."""
    if isinstance(infos, (list, tuple)) and len(infos) == count:
        given = [infos[number] for number in numbers]
        finals = [info.get("final_info") if isinstance(info, Mapping) else None for info in given]
        return [dict(final) if isinstance(final, Mapping) else {} for final in finals]
    final = infos.get("final_info") if isinstance(infos, Mapping) else None
    if isinstance(final, Mapping):
        return _split(final, count, numbers, set())
    if isinstance(final, (list, tuple, np.ndarray)) and len(final) == count:  # one dict for each
        return [dict(final[number]) if isinstance(final[number], Mapping) else {} for number in numbers]
    return [{} for _ in numbers]


def lacks_final_infos(infos: Any, count: int, numbers: Sequence[int], others: Collection[str] = ()) -> bool:
    """Whether there are infos, besides these other entries, and none of last rows of episodes that have ended."""
    if isinstance(infos, Mapping):
        given: list[Any] = [infos]
    else:
        is_list = isinstance(infos, (list, tuple)) and len(infos) == count
        given = [infos[number] for number in numbers] if is_list else []
    if all(isinstance(info, Mapping) and "final_info" in info for info in given):
        return False
    return any(set(info).difference(others) for info in split_infos(infos, count, numbers))


def _without(info: Any, left_out: set[str]) -> dict[Any, Any]:
    if not isinstance(info, Mapping):
        return {}
    return {key: value for key, value in info.items() if key not in left_out}


def _split(infos: Mapping[Any, Any], count: int, numbers: Sequence[int], left_out: set[str]) -> list[dict[Any, Any]]:
    found: list[dict[Any, Any]] = [{} for _ in numbers]
    named = {f"_{key}" for key in infos}
    for key, value in infos.items():
        if key in left_out or key in named:
            continue
        mask = infos.get(f"_{key}")
        there = None if mask is None else np.asarray(mask, bool)
        if isinstance(value, Mapping):
            values: Any = _split(value, count, numbers, set())
        elif getattr(value, "ndim", 0) and len(value) == count:
            array = value if isinstance(value, np.ndarray) else np.asarray(value)
            values = [array[number] for number in numbers]
        else:
            values = [value] * len(numbers)
        for info, number, item in zip(found, numbers, values, strict=True):
            if there is None or there.shape != (count,) or there[number]:
                info[key] = item
    return found


def final_observations(infos: Any, count: int, numbers: Sequence[int]) -> tuple[Any, list[bool]]:
    """The last observations of the episodes that have ended, and of which of them there is one.

    Returns:
        A list with one value of a single sub-environment for each of ``numbers``, or, where they came as dense arrays
        over all sub-environments, a batched value; and for each whether it is there.
    """
    if isinstance(infos, (list, tuple)) and len(infos) == count:
        given = [infos[number].get("final_obs") if isinstance(infos[number], Mapping) else None for number in numbers]
        return given, [value is not None for value in given]
    found = infos.get("final_obs") if isinstance(infos, Mapping) else None
    if found is None:
        return [None] * len(numbers), [False] * len(numbers)
    mask = infos.get("_final_obs")
    there = [mask is None or bool(mask[number]) for number in numbers]
    if isinstance(found, np.ndarray) and found.dtype == object and found.shape == (count,):
        given = [found[number] for number in numbers]
        return given, [is_there and value is not None for is_there, value in zip(there, given, strict=True)]
    return found, there

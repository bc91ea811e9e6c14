"""Episodes that lie far out, each with the reasons why."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.episode import Episode
from gym_replay.errors import EpisodeEvictedError, GymReplayError, StaleFieldError
from gym_replay.schema.pictures import is_image
from gym_replay.spaces import space_from_json, space_tree
from gym_replay.viewing.curves import panel_names
from gym_replay.viewing.episodes import EpisodeTable
from gym_replay.viewing.text import number
from gym_replay.wrappers.bounds import bounds_of

_FAR = 5.0
"""Robust standard deviations from the median."""

_RARE = 0.05
"""The share of episodes in which a field is constant, at most, where that is worth a word."""

_SHORTEST = 8
"""Steps of an episode in which a field may be called constant."""

_MOST_ELEMENTS = 4096
_SEED = 0


@dataclass(frozen=True)
class Outlier:
    """An episode that lies far out.

    Attributes:
        index: of the episode.
        reasons: what is unusual about it, a sentence each.
    """

    index: int
    reasons: list[str]


@dataclass(frozen=True)
class OutlierReport:
    """What was found.

    Attributes:
        found: the outliers, those with most reasons first.
        looked_at: of how many episodes all rows were looked at; return and length are compared of all.
        count: how many episodes there are.
    """

    found: list[Outlier]
    looked_at: int
    count: int


def find_outliers(table: EpisodeTable, *, seconds: float = 4.0) -> OutlierReport:
    """Find episodes that are far from the others: in return, length, or jumps of actions; with NaN or infinite values,
    values out of the bounds of their space, or fields that do not change where they do in nearly all others.

    Far is five robust standard deviations, which are 1.4826 times the median distance from the median.

    Args:
        table: the episodes.
        seconds: how long rows are looked at, in a random order of the episodes; 0 for all of them.

    Returns:
        The outliers, and of how many episodes the rows were looked at.
    """
    reasons: dict[int, list[str]] = defaultdict(list)
    for column in table.distributed:
        numbers = table.numbers(column.name)
        for index, text in _far(np.arange(len(numbers)), numbers, column.title):
            reasons[index].append(text)
    order = np.random.default_rng(_SEED).permutation(len(table))
    looks = _Looks(_bounds(table))
    until = time.monotonic() + seconds if seconds else math.inf
    looked_at = 0
    for index in order.tolist():
        if time.monotonic() > until:
            break
        try:
            looks.look(index, table.episode(index))
        except EpisodeEvictedError:
            continue
        except (GymReplayError, IndexError) as error:
            reasons[index].append(f"it cannot be read: {error}")
        looked_at += 1
    for index, text in looks.reasons():
        reasons[index].append(text)
    found = [
        Outlier(index, texts) for index, texts in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return OutlierReport(found, looked_at, len(table))


def _far(indices: npt.NDArray[np.int64], numbers: npt.NDArray[np.float64], what: str) -> Iterator[tuple[int, str]]:
    """Whose numbers are far from the median, and how far."""
    finite = np.isfinite(numbers)
    for at in np.flatnonzero(~finite).tolist():
        yield int(indices[at]), f"{what} is {number(numbers[at])}"
    if finite.sum() < _SHORTEST:
        return
    median = float(np.median(numbers[finite]))
    distance = np.abs(numbers - median)
    spread = 1.4826 * float(np.median(distance[finite]))
    if spread == 0:  # more than half of them are the same
        spread = float(distance[finite].std())
    if spread > 0:
        for at in np.flatnonzero(finite & (distance > _FAR * spread)).tolist():
            side = "above" if numbers[at] > median else "below"
            far = number(distance[at] / spread, 2)
            yield (
                int(indices[at]),
                f"{what} {number(numbers[at])} is {far} deviations {side} the median {number(median)}",
            )


Bounds = Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]


def _bounds(table: EpisodeTable) -> Bounds:
    """The least and largest values of the fields of spaces, as far as the recorded spaces tell."""
    found: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
    environment = table.buffer.metadata.environment or {}
    for root in ("observation", "action"):
        try:
            leaves = space_tree(space_from_json(environment[f"{root}_space"]), root).leaves
        except (GymReplayError, KeyError, TypeError):
            continue
        found |= {leaf.name: bounds for leaf in leaves if (bounds := bounds_of(leaf)) is not None}
    return found


class _Looks:
    """What was seen of the rows of episodes, one after another.

    Args:
        bounds: of values, by field.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._found: list[tuple[int, str]] = []
        self._jumps: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._constant: dict[str, list[int]] = defaultdict(list)
        self._long: dict[str, int] = defaultdict(int)

    def look(self, index: int, episode: Episode) -> None:
        """Look at the rows of an episode."""
        fields = episode.snapshot.metadata.fields
        drawn = set(panel_names(episode))
        for name, info in fields.items():
            with suppress(StaleFieldError):  # nobody has computed it of this episode yet
                if is_image(info) and info.dtype == np.uint8:
                    self._look_at_frames(index, name, episode[name])
                elif name in drawn and math.prod(info.shape) <= _MOST_ELEMENTS:
                    self._look_at_values(index, name, np.asarray(episode[name]))
        episode.snapshot.require_live(episode.id)

    def _look_at_frames(self, index: int, name: str, rows: Any) -> None:
        if len(rows) >= _SHORTEST:
            self._long[name] += 1
            first = np.asarray(rows[0])
            if all(np.array_equal(first, rows[at]) for at in {len(rows) // 3, len(rows) // 2, len(rows) - 1}):
                self._constant[name].append(index)

    def _look_at_values(self, index: int, name: str, rows: npt.NDArray[Any]) -> None:
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            nans, infinite = int(np.isnan(rows).sum()), int(np.isinf(rows).sum())
            parts = [f"{nans} NaN"] * bool(nans) + [f"{infinite} infinite"] * bool(infinite)
            self._found.append((index, f"{name}: {' and '.join(parts)} of {rows.size} values"))
        if name in self._bounds:
            low, high = self._bounds[name]
            outside = int(((rows < low) | (rows > high)).sum())
            if outside:
                self._found.append((index, f"{name}: {outside} of {rows.size} values are out of bounds"))
        if len(rows) >= _SHORTEST:
            self._long[name] += 1
            if (rows == rows[0]).all():
                self._constant[name].append(index)
            is_action = name == "action" or name.startswith("action.")
            if is_action and rows.dtype.kind == "f":
                jumps = np.abs(np.diff(rows.reshape(len(rows), -1).astype(np.float64), axis=0))
                if np.isfinite(jumps).any():
                    self._jumps[name].append((index, float(np.nanmean(jumps))))

    def reasons(self) -> Iterator[tuple[int, str]]:
        """Why episodes lie far out, as far as rows tell."""
        yield from self._found
        for name, jumps in self._jumps.items():
            where, sizes = (np.array(each) for each in zip(*jumps, strict=True))
            yield from _far(where, sizes, f"{name}: the mean jump between steps")
        for name, indices in self._constant.items():
            if len(indices) <= _RARE * self._long[name]:
                for index in indices:
                    yield index, f"{name} never changes"

"""Statistics of features, as ``meta/stats.json`` and the table of episodes have them.

For each feature: ``min``, ``max``, ``mean``, ``std`` (of the population), quantiles and ``count``, the number of frames
that they are of. Values of images are in [0, 1], per channel, over a part of the frames and pixels
(``lerobot/datasets/compute_stats.py``). What is not finite is left out: one NaN would make a policy's every input NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gym_replay.schema.arrays import Array, Floats

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

_SAMPLED = 1 << 15
"""Rows that quantiles are of: at least so many where there are, and at most twice as many."""

_LARGEST_SIDE, _PIXELS = 300, 150


class Moments:
    """The statistics of one feature, gathered piece by piece.

    Args:
        shape: of one value; ``(channels,)`` of images.

    Attributes:
        frames: how many frames there were.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.frames = 0
        self._rows, self._every = 0, 1
        self._count = np.zeros(shape)
        self._mean, self._squares = np.zeros(shape), np.zeros(shape)
        self._least, self._most = np.full(shape, np.inf), np.full(shape, -np.inf)
        self._sample: list[Floats] = []

    @np.errstate(over="ignore", invalid="ignore")  # of squares of values near the largest ones
    def add(self, values: Array, frames: int) -> None:
        """Take in values ``(rows, *shape)``, which are of so many frames."""
        rows = values.astype(np.float64)
        finite = np.isfinite(rows)
        count = finite.sum(axis=0)
        self._least = np.minimum(self._least, np.where(finite, rows, np.inf).min(axis=0, initial=np.inf))
        self._most = np.maximum(self._most, np.where(finite, rows, -np.inf).max(axis=0, initial=-np.inf))
        known = np.where(finite, rows, 0.0)
        mean = known.sum(axis=0) / np.maximum(count, 1)
        squares = (np.where(finite, rows - mean, 0.0) ** 2).sum(axis=0)
        total = np.maximum(self._count + count, 1)
        difference = mean - self._mean
        self._squares += squares + difference**2 * self._count * count / total
        self._mean += difference * count / total
        self._count += count
        self._sample.append(rows[-self._rows % self._every :: self._every])
        self._rows += len(rows)
        self.frames += frames
        while self._rows // self._every > 2 * _SAMPLED:
            self._sample = [np.concatenate(self._sample)[::2]]
            self._every *= 2

    @np.errstate(over="ignore", invalid="ignore")
    def values(self) -> dict[str, Floats]:
        """The statistics by name, each of the feature's shape and finite; zeros where no value was finite."""
        known = self._count > 0
        found = {
            "min": np.where(known, self._least, 0.0),
            "max": np.where(known, self._most, 0.0),
            "mean": self._mean,
            "std": np.sqrt(self._squares / np.maximum(self._count, 1)),
        }
        sample = np.concatenate(self._sample)
        sample = np.where(np.isfinite(sample), sample, self._mean)
        quantiles = np.quantile(sample, list(QUANTILES.values()), axis=0)
        found |= dict(zip(QUANTILES, quantiles, strict=True))
        return {name: np.nan_to_num(each) for name, each in found.items()}


class Statistics:
    """The statistics of all features, of an episode at a time and of all together.

    Args:
        shapes: by key of each feature that has some; ``(channels,)`` of images.
        images: the keys of images.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], images: set[str]) -> None:
        self._shapes, self._images = dict(shapes), images
        self._all = {key: Moments(shape) for key, shape in self._shapes.items()}
        self._episode: dict[str, Moments] = {}

    def begin(self) -> None:
        """Begin with the next episode."""
        self._episode = {key: Moments(shape) for key, shape in self._shapes.items()}

    def add(self, key: str, values: Array) -> None:
        """Take in rows of a feature: ``(frames, *shape)``, of images ``(frames, height, width, channels)``."""
        frames = len(values)
        if key in self._images:
            height, width = values.shape[1:3]
            thin = max(1, min(height, width) // _PIXELS) if max(height, width) >= _LARGEST_SIDE else 1
            values = values[:, ::thin, ::thin].reshape(-1, values.shape[-1]) / 255.0
        for moments in (self._episode[key], self._all[key]):
            moments.add(values, frames)

    def of_episode(self) -> dict[str, dict[str, Any]]:
        """The statistics of the present episode, nested lists by feature and name."""
        return {key: self._listed(key, moments) for key, moments in self._episode.items()}

    def of_all(self) -> dict[str, dict[str, Any]]:
        """The statistics of all episodes, likewise."""
        return {key: self._listed(key, moments) for key, moments in self._all.items()}

    def _listed(self, key: str, moments: Moments) -> dict[str, Any]:
        shape = (*self._shapes[key], 1, 1) if key in self._images else self._shapes[key] or (1,)
        listed: dict[str, Any] = {name: one.reshape(shape).tolist() for name, one in moments.values().items()}
        return {**listed, "count": [moments.frames]}

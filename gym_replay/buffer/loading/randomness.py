"""Random numbers that belong to a sample: a pure function of seed, epoch, episode and step.

Which batch a sample is in, and which process gathers it, makes no difference.
"""

from __future__ import annotations

import numpy as np

from gym_replay.buffer.loading.order import GOLDEN, finished
from gym_replay.buffer.loading.plans import Floats, Ints

_ONE = np.uint64(1)


def draw(seed: int, epoch: int, count: int, episodes: Ints, steps: Ints, positions: Ints | None = None) -> Floats:
    """``count`` numbers from [0, 1) for each sample, float64 ``(count, samples)``.

    Seed, epoch, episode and step are added to a state one after another, each of which is then mixed by the output
    function of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014, with Stafford's
    variant 13). The numbers of a sample are that generator's outputs from there on, so the first ones are the same
    whatever ``count`` is.

    Args:
        seed: any integer; those that are equal modulo 2**64 are the same.
        epoch: from 0 on.
        count: how many.
        episodes, steps: int64 ``(samples,)``: which sample.
        positions: int64 ``(samples,)``: where in the epoch it comes, if it is to have other numbers each time.

    Example:
        >>> draw(0, 0, 2, np.array([3, 3, 4]), np.array([0, 1, 0])).round(3)
        array([[0.551, 0.919, 0.687],
               [0.672, 0.701, 0.874]])
    """
    state = np.zeros(1, np.uint64)
    for number in (seed, epoch):
        state = finished(state + GOLDEN + np.array(number % 2**64, np.uint64))
    mixed = finished(episodes.astype(np.uint64) + state)
    mixed = finished(mixed + (steps.astype(np.uint64) + _ONE) * GOLDEN)
    if positions is not None:
        mixed = finished(mixed + (positions.astype(np.uint64) + _ONE) * GOLDEN)
    outputs = finished(mixed + np.arange(1, count + 1, dtype=np.uint64)[:, None] * GOLDEN)
    uniform: Floats = (outputs >> np.uint64(11)) * 2.0**-53
    return uniform

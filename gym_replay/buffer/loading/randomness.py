"""Random numbers that belong to a sample: a pure function of seed, epoch, episode and step.

Which batch a sample is in, and which process gathers it, makes no difference.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.plans import Floats, Ints

Words: TypeAlias = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ONE = np.uint64(1)
_SHIFTS = (30, 27)
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def draw(seed: int, epoch: int, count: int, episodes: Ints, steps: Ints) -> Floats:
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

    Example:
        >>> draw(0, 0, 2, np.array([3, 3, 4]), np.array([0, 1, 0])).round(3)
        array([[0.551, 0.919, 0.687],
               [0.672, 0.701, 0.874]])
    """
    state = 0
    for number in (seed, epoch):
        state = _mix_integer(state + _GOLDEN + number)
    mixed = _mix(episodes.astype(np.uint64) + np.array(state, np.uint64))
    mixed = _mix(mixed + (steps.astype(np.uint64) + _ONE) * np.array(_GOLDEN, np.uint64))
    outputs = _mix(mixed + np.arange(1, count + 1, dtype=np.uint64)[:, None] * np.array(_GOLDEN, np.uint64))
    uniform: Floats = (outputs >> np.uint64(11)) * 2.0**-53
    return uniform


def _mix_integer(state: int) -> int:
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=True):
        state &= _MASK
        state = (state ^ (state >> shift)) * multiplier
    state &= _MASK
    return state ^ (state >> 31)


def _mix(state: Words) -> Words:
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=True):
        state = (state ^ (state >> np.uint64(shift))) * np.array(multiplier, np.uint64)
    mixed: Words = state ^ (state >> np.uint64(31))
    return mixed

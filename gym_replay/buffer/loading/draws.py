"""Random numbers that belong to a sample: a pure function of seed, epoch, episode, step, and what they are for.

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
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def draw(seed: int, epoch: int, stream: int, episodes: Ints, steps: Ints) -> Floats:
    """One number from [0, 1) for each sample, float64 of the shape of ``episodes``.

    Each of seed, epoch, stream, episode and step is added to a state that is then mixed by the output function of
    SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014, with Stafford's variant 13).

    Args:
        seed: any integer; those that are equal modulo 2**64 are the same.
        epoch: from 0 on.
        stream: what the number is for: numbers of different streams are independent.
        episodes, steps: which sample.

    Example:
        >>> draw(0, 0, 0, np.array([3, 3, 4]), np.array([0, 1, 0])).round(3)
        array([0.122, 0.544, 0.491])
    """
    state = 0
    for number in (seed, epoch, stream):
        state = _mix_integer(state + _GOLDEN + number)
    mixed = _mix(episodes.astype(np.uint64) + np.array(_GOLDEN ^ state, np.uint64))
    mixed = _mix(mixed + steps.astype(np.uint64) * np.array(_GOLDEN, np.uint64))
    uniform: Floats = (mixed >> np.uint64(11)) * 2.0**-53
    return uniform


def _mix_integer(state: int) -> int:
    return int(_mix(np.array([state & _MASK], np.uint64))[0])


def _mix(state: Words) -> Words:
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        state = (state ^ (state >> np.uint64(shift))) * np.array(multiplier, np.uint64)
    mixed: Words = state ^ (state >> np.uint64(31))
    return mixed

"""What episode k of a collection is decided by: a seed for the environment and one for the policy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Seeds(NamedTuple):
    """The seeds of one episode.

    Attributes:
        env: below 2**31, what every environment takes.
        policy: below 2**63.
    """

    env: int
    policy: int


def seeds_of(seed: int, number: int) -> Seeds:
    """The seeds of episode ``number`` of the collection with a ``seed``.

    They are words of ``numpy.random.SeedSequence(seed).spawn(number + 1)[number]``, so the episodes are independent of
    one another and of those of every other seed. Environment seeds are draws from 2**31 numbers, two of which are equal
    now and then in a large collection, as draws are; the policy's differ even then.

    Example:
        >>> seeds_of(0, 3) == seeds_of(0, 3), seeds_of(0, 3) == seeds_of(0, 4)
        (True, False)
    """
    words = np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(2, np.uint64)
    return Seeds(int(words[0]) >> 33, int(words[1]) >> 1)

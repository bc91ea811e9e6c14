"""Dividing the episodes of a buffer, for training and validation: by episode, and the same after more are recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.draws import Ints
from gym_replay.buffer.loading.order import mixed
from gym_replay.buffer.storage.reader import HasSnapshots
from gym_replay.errors import FieldError

_BITS = 32


@overload
def split(buffer: HasSnapshots, fractions: Mapping[str, float], seed: int = 0) -> dict[str, Ints]: ...
@overload
def split(buffer: HasSnapshots, fractions: Sequence[float], seed: int = 0) -> tuple[Ints, ...]: ...
def split(
    buffer: HasSnapshots, fractions: Mapping[str, float] | Sequence[float], seed: int = 0
) -> dict[str, Ints] | tuple[Ints, ...]:
    """Divide the episodes into subsets, at random.

    No episode is in two subsets, and each is in one, so that no step of a validation episode is ever trained on.

    Where an episode goes depends on the seed, the fractions, and its id (in a concatenation also on the place of its
    buffer), and on nothing else. So an episode stays in its subset when others are appended, evicted or deleted, and
    when buffers are added at the end of a concatenation. For this, sizes are not rounded to the nearest: of n episodes
    with consecutive ids, a subset with fraction f has f * n of them up to a few (at most ``2 + log2(n)``, mostly less
    than 1). With fewer than about ``2 / f`` episodes it may have none.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        fractions: how much each subset gets, by name or in order; they add up to 1.
        seed: any integer from 0 on; other seeds give other divisions.

    Returns:
        For names a dict, else a tuple: the indices of the episodes of each subset, int64, ascending. An index is the
        episode's place among those live now, as in ``buffer.episode(index)``.

    Raises:
        FieldError: the fractions are negative, not finite, or do not add up to 1, or the seed is negative.

    Example:
        >>> train, valid = split(buffer, (0.9, 0.1), seed=0)  # doctest: +SKIP
        >>> subsets = split(buffer, {"train": 0.8, "valid": 0.1, "test": 0.1})  # doctest: +SKIP
    """
    values = list(fractions.values()) if isinstance(fractions, Mapping) else list(fractions)
    try:
        shares = np.array(values, np.float64)
    except (TypeError, ValueError):
        raise FieldError(f"fractions={fractions!r}: expected numbers") from None
    if shares.ndim != 1 or not len(shares) or not np.isfinite(shares).all() or (shares < 0).any():
        raise FieldError(f"fractions={fractions!r}: expected at least one finite number from 0 on")
    if abs(shares.sum() - 1) > 1e-6:
        raise FieldError(f"fractions={fractions!r}: expected a sum of 1, got {shares.sum():g}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise FieldError(f"seed={seed!r}: expected an integer from 0 on")
    chances = [
        chances_of(part.ids, number, int(seed)) for number, part in enumerate(buffer.snapshots())
    ]  # in the buffer's order of episodes
    edges = np.cumsum(shares)[:-1]
    subset = np.searchsorted(edges, np.concatenate(chances), side="right") if chances else np.empty(0, np.int64)
    # A fraction of zero at the end is not reached by rounding of the sum before it.
    last = int(np.flatnonzero(shares)[-1])
    subset = np.minimum(subset, last)
    indices = tuple(np.flatnonzero(subset == number).astype(np.int64) for number in range(len(shares)))
    return dict(zip(fractions, indices, strict=True)) if isinstance(fractions, Mapping) else indices


def chances_of(ids: Ints, part: int, seed: int) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for each episode: random, and spread evenly over consecutive ids.

    It is the base-2 radical inverse (J. van der Corput, 1935) of the id with A. B. Owen's nested uniform scrambling
    ("Randomly Permuted (t,m,s)-Nets and (t,s)-Sequences", 1995). For parts after the first it is rotated by the
    like number of the part, so that the first episodes of many small buffers are spread as well.
    """
    keys = np.random.SeedSequence(seed, spawn_key=(0x73706C74,)).generate_state(2, np.uint64)
    chances = _scrambled(ids.astype(np.uint64), keys[0])
    if part:
        chances += _scrambled(np.array([part], np.uint64), keys[1])[0]
    return chances % 1.0


def _scrambled(numbers: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.float64]:
    """Return the scrambled radical inverses of ``numbers``, which have 32 bits (higher ones choose the scrambling)."""
    chances = np.zeros(len(numbers))
    one = np.uint64(1)
    seeds = mixed((numbers >> np.uint64(_BITS)) + key)
    # Of a digit, whether it is flipped depends on all before it: these are the low bits of the number.
    prefix = np.zeros(len(numbers), np.uint64)
    for level in range(_BITS):
        digit = (numbers >> np.uint64(level)) & one
        flips = mixed(prefix + np.uint64(level << _BITS) + seeds) & one
        chances += (digit ^ flips) * 2.0 ** -(level + 1)
        prefix |= digit << np.uint64(level)
    return chances

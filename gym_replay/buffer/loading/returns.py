"""Discounted sums of rewards, of whole buffers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.plans import Ints
from gym_replay.buffer.storage.reader import HasSnapshots
from gym_replay.errors import FieldError
from gym_replay.notices import did_you_mean

_STEPS_AT_ONCE = 1 << 20


def check_discount(discount: Any) -> float:
    """The discount as a float.

    Raises:
        FieldError: it is no number from 0 to 1.
    """
    if isinstance(discount, bool) or not isinstance(discount, (int, float, np.integer, np.floating)):
        raise FieldError(f"discount={discount!r}: expected a number from 0 to 1")
    if not 0 <= discount <= 1:
        raise FieldError(f"discount={discount!r}: expected a number from 0 to 1")
    return float(discount)


def returns_to_go(
    buffer: HasSnapshots, discount: float = 1.0, *, reward_field: str = "reward"
) -> list[npt.NDArray[Any]]:
    """The discounted sum of rewards from each step to its episode's end.

    Element t of an episode's array is ``sum(discount**k * reward[t + k])``, over the T - t rewards that are left. What
    may have followed a truncated episode is not in it.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        discount: from 0 to 1.
        reward_field: the field that is summed up; of numbers, of any shape.

    Returns:
        One float64 array ``(T, *field.shape)`` per live episode, the oldest first: what ``add_field`` takes.

    Raises:
        FieldError: there is no such field, or the discount is no such number.
        EpisodeEvictedError: episodes left a circular buffer while they were read.

    Example:
        >>> import tempfile
        >>> from gym_replay import ReplayBuffer
        >>> buffer = ReplayBuffer(tempfile.mkdtemp(), fields={"reward": "float64"})
        >>> buffer.store_episode(reward=[1.0, 0.0, 4.0])
        >>> buffer.add_field("return_to_go", "float64", returns_to_go(buffer, 0.5))
        >>> buffer.episode(0)["return_to_go"]
        array([2., 2., 4.])
    """
    discount = check_discount(discount)
    parts = buffer.snapshots()
    fields = parts[0].metadata.fields
    field = fields.get(reward_field)
    if field is None or field.ragged:
        fitting = [name for name, info in fields.items() if not info.ragged]
        raise FieldError(f"reward_field={reward_field!r}: no such field{did_you_mean(reward_field, fitting)}")
    returns: list[npt.NDArray[Any]] = []
    for part in parts:
        part.require_up_to_date([reward_field])
        column = part.column(reward_field)
        edges = np.cumsum(part.lengths)
        low = 0
        while low < len(part):
            high = max(low + 1, int(np.searchsorted(edges, edges[low] + _STEPS_AT_ONCE)))
            lengths = part.lengths[low:high]
            rows = np.concatenate([column[at : at + n] for at, n in zip(part.starts[low:high], lengths, strict=True)])
            part.require_live(int(part.ids[low]))
            summed = discounted_sums(rows.astype(np.float64), lengths, discount)
            returns += np.split(summed, np.cumsum(lengths)[:-1])
            low = high
    return returns


def discounted_sums(rewards: npt.NDArray[np.float64], lengths: Ints, discount: float) -> npt.NDArray[np.float64]:
    """:func:`returns_to_go` of episodes that lie one after another in ``rewards``, ``(steps, *shape)``.

    After the pass with distance d each step has the sum over the next 2d steps, so a number of passes that is the
    logarithm of the longest episode is enough.
    """
    sums: npt.NDArray[np.float64] = rewards.copy()
    if discount == 0:
        return sums
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(rewards))
    distance = 1
    while distance < lengths.max(initial=0):
        steps = np.flatnonzero(left > distance)
        sums[steps] += discount**distance * sums[steps + distance]
        distance *= 2
    return sums

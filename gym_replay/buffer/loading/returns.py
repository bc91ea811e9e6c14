"""Discounted sums of rewards, of whole buffers."""

from __future__ import annotations

import numpy as np

from gym_replay.buffer.loading.selection import in_pieces
from gym_replay.buffer.storage.reader import HasSnapshots
from gym_replay.errors import FieldError
from gym_replay.notices import did_you_mean
from gym_replay.schema.arguments import checked_number
from gym_replay.schema.arrays import Array, Floats, Ints


def returns_to_go(buffer: HasSnapshots, discount: float = 1.0, *, reward_field: str = "reward") -> list[Array]:
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
    discount = checked_number("discount", discount, 1)
    parts = buffer.snapshots()
    fields = parts[0].metadata.fields
    field = fields.get(reward_field)
    if field is None or field.ragged:
        fitting = [name for name, info in fields.items() if not info.ragged]
        raise FieldError(f"reward_field={reward_field!r}: no such field{did_you_mean(reward_field, fitting)}")
    returns: list[Array] = []
    for part in parts:
        part.require_up_to_date([reward_field])
        for lengths, rewards in in_pieces(part, reward_field):
            summed = discounted_sums(rewards.astype(np.float64), lengths, discount)
            returns += np.split(summed, np.cumsum(lengths)[:-1])
        if len(part):
            part.require_live(int(part.ids[0]))
    return returns


def discounted_sums(rewards: Floats, lengths: Ints, discount: float) -> Floats:
    """:func:`returns_to_go` of episodes that lie one after another in ``rewards``, ``(steps, *shape)``.

    After the pass with distance d each step has the sum over the next 2d steps, so a number of passes that is the
    logarithm of the longest episode is enough.
    """
    sums: Floats = rewards.copy()
    if discount == 0:
        return sums
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(rewards))
    distance = 1
    while distance < lengths.max(initial=0):
        steps = np.flatnonzero(left > distance)
        sums[steps] += discount**distance * sums[steps + distance]
        distance *= 2
    return sums

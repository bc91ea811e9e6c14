"""Flat arrays of transitions, as D4RL and OGBench have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gym_replay.interop.transitions import NamesLike, Transitions, only_one
from gym_replay.schema.arrays import Array

if TYPE_CHECKING:
    from gym_replay.buffer.loading.selection import Episodes
    from gym_replay.buffer.reading import Readable


def to_d4rl(
    buffer: Readable,
    *,
    next_observations: bool = True,
    dtype: npt.DTypeLike | None = np.float32,
    names: NamesLike | None = None,
    episodes: Episodes | None = None,
) -> dict[str, Array]:
    """All transitions as D4RL's dict of arrays, in memory.

    ``terminals`` and ``timeouts`` are the stored ``terminated`` and ``truncated``; an episode ends where one of them is
    True. Truncation is never a terminal. (D4RL's ``env.get_dataset`` and ``sequence_dataset``, ``d4rl/__init__.py``.)
    Rewards of a field of shape (1,) are ``(transitions,)``, and so are integer actions where no space was recorded.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        next_observations: add ``next_observations``; transitions whose next observation is not stored are left out
            then, with a warning.
        dtype: what floats become; None leaves them as stored.
        names: what the parts of a transition are called in this buffer, where that is not what the recorder calls
            them: ``{"observation": "state", "terminated": "done", "truncated": None}``.
        episodes: as in :meth:`ReplayBuffer.dataloader`.

    Returns:
        ``observations`` and ``next_observations`` ``(transitions, *observation.shape)`` (of a nested space
        ``observations/<part>`` for each part), ``actions``, ``rewards``, ``terminals`` and ``timeouts`` (bool).

    Raises:
        FieldError: a part is missing, or is ragged.
        EmptyBufferError: there is no transition.

    Example:
        >>> import tempfile
        >>> from gym_replay import Field, ReplayBuffer
        >>> fields = {"observation": Field("float64", (3,), state=True), "action": "float", "reward": "float64"}
        >>> buffer = ReplayBuffer(tempfile.mkdtemp(), fields=fields)
        >>> buffer.store_episode(observation=np.ones((5, 3)), action=np.zeros(4), reward=np.ones(4))
        >>> data = to_d4rl(buffer, names={"terminated": None, "truncated": None})
        >>> data["next_observations"].shape, data["rewards"].dtype
        ((4, 3), dtype('float32'))
    """
    transitions = Transitions(buffer, names=names, episodes=episodes, need_next=next_observations)
    arrays = _Arrays(len(transitions), dtype)
    for block in transitions.blocks():
        parts = {"observations": block.observations, "next_observations": block.next_observations}
        for prefix, leaves in {**parts, "actions": block.actions}.items():
            for part, values in leaves.items():
                arrays.put(f"{prefix}/{part.replace('.', '/')}" if part else prefix, block.index, values)
        arrays.put("rewards", block.index, block.reward)
        arrays.put("terminals", block.index, block.terminated)
        arrays.put("timeouts", block.index, block.truncated)
    return arrays.made


def to_ogbench(
    buffer: Readable,
    *,
    compact: bool = False,
    dtype: npt.DTypeLike | None = np.float32,
    names: NamesLike | None = None,
    episodes: Episodes | None = None,
) -> dict[str, Array]:
    """All transitions as OGBench's dict of arrays, in memory.

    ``terminals`` is 1 at the last transition of each trajectory, however it ended; ``masks`` is 0 where it terminated,
    so that nothing is bootstrapped there. (``ogbench/utils.py``, ``load_dataset``.)

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        compact: as ``compact_dataset=True`` there: no ``next_observations``, but the last observation of each
            trajectory as one more row, of which ``valids`` is 0 and ``terminals`` 1.
        dtype: what floats become; None leaves them as stored.
        names, episodes: as for :func:`to_d4rl`.

    Returns:
        ``observations``, ``actions``, ``rewards``, ``masks`` and ``terminals`` (float32), and ``next_observations`` or
        ``valids`` (float32): each ``(transitions, *shape)``, compact ones with one more row for each trajectory.

    Raises:
        FieldError: a part is missing, is ragged, or there are several observations.
        EmptyBufferError: there is no transition.

    Example:
        >>> import tempfile
        >>> from gym_replay import Field, ReplayBuffer
        >>> fields = {"observation": Field("float64", (3,), state=True), "action": "float", "reward": "float64"}
        >>> buffer = ReplayBuffer(tempfile.mkdtemp(), fields=fields)
        >>> buffer.store_episode(observation=np.ones((5, 3)), action=np.zeros(4), reward=np.ones(4))
        >>> data = to_ogbench(buffer, compact=True, names={"terminated": None, "truncated": None})
        >>> data["terminals"], data["valids"]
        (array([0., 0., 0., 1., 1.], dtype=float32), array([1., 1., 1., 1., 0.], dtype=float32))
    """
    transitions = Transitions(buffer, names=names, episodes=episodes)
    only_one(transitions.roles.observations, "observation", "OGBench")
    only_one(transitions.roles.actions, "action", "OGBench")
    # A trajectory ends with its last transition that is there: one without a next observation is left out.
    last = transitions.is_last
    rows = np.arange(len(transitions)) + (np.cumsum(last) - last if compact else 0)
    arrays = _Arrays(int(rows[-1]) + 1 + compact, dtype)
    for block in transitions.blocks():
        index, ends = rows[block.index], last[block.index]
        ((observations, following, actions),) = zip(
            block.observations.values(), block.next_observations.values(), block.actions.values(), strict=True
        )
        arrays.put("observations", index, observations)
        arrays.put("actions", index, actions)
        arrays.put("rewards", index, block.reward)
        arrays.put("masks", index, ~block.terminated, np.float32)
        arrays.put("terminals", index, ends, np.float32)
        if compact:
            arrays.put("valids", index, np.ones(len(index)), np.float32)
            arrays.put("observations", index[ends] + 1, following[ends])
        else:
            arrays.put("next_observations", index, following)
    if compact:
        arrays.made["terminals"][rows[last] + 1] = 1
    return arrays.made


class _Arrays:
    """Arrays that are made when their first rows come; floats become ``dtype``, where there is one."""

    def __init__(self, count: int, dtype: npt.DTypeLike | None) -> None:
        self._count, self._dtype = count, dtype
        self.made: dict[str, Array] = {}

    def put(self, key: str, index: Any, values: Array, dtype: npt.DTypeLike | None = None) -> None:
        """Set rows of an array, which is of another dtype than usual if one is given."""
        if key not in self.made:
            usual = values.dtype if self._dtype is None or values.dtype.kind != "f" else self._dtype
            self.made[key] = np.zeros((self._count, *values.shape[1:]), usual if dtype is None else dtype)
        self.made[key][index] = values

"""Buffers to be exported, and what makes two of them the same."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from gym_replay import Ragged, RecordToBuffer

FORMATS = ("hdf5", "arrow", "parquet")


class Playing(gym.Env):
    """Observes the given values, one after another; the last one terminates."""

    def __init__(self, observation_space, observations, action_space=None):
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(5) if action_space is None else action_space
        self._observations = observations
        self._t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._t = 0
        return self._observations[0], {}

    def step(self, action):
        self._t += 1
        is_last = self._t == len(self._observations) - 1
        return self._observations[self._t], self._t / 3, is_last, False, {}


def record(folder, env, episodes, **arguments):
    """A buffer of episodes; each is a list of actions, with the seed of its reset before them."""
    recorder = RecordToBuffer(env, folder, **arguments)
    for seed, *actions in episodes:
        recorder.reset(seed=seed)
        for action in actions:
            if any(recorder.step(action)[2:4]):
                break
    recorder.close()
    return recorder.buffer


def rows(values):
    """A field's rows as what can be compared."""
    if isinstance(values, Ragged):
        return [(row.dtype.str, row.shape, row.tobytes()) for row in values]
    return values.dtype.str, values.shape, values.tobytes()


def contents(episode):
    """All of an episode apart from its id."""
    meta = {name: value if isinstance(value, str) else rows(np.asarray(value)) for name, value in episode.meta.items()}
    has_final = episode.has_final or not episode.snapshot.metadata.has_state  # it says nothing without state fields
    return len(episode), has_final, episode.complete, meta, {name: rows(episode[name]) for name in episode}


def assert_same_buffer(left, right):
    """Two buffers have the same schema, and the same episodes bit for bit."""
    for name in ("fields", "meta_fields", "recorder_meta"):
        one, other = getattr(left.metadata, name), getattr(right.metadata, name)
        assert one == other
        assert list(one) == list(other)
    environments = [
        {k: v for k, v in (buffer.metadata.environment or {}).items() if k != "minari"} for buffer in (left, right)
    ]
    assert environments[0] == environments[1]
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for mine, theirs in zip(contents(one), contents(other), strict=True):
            assert mine == theirs


def same(left, right):
    """Whether two values of Minari's are equal bit for bit, lists of arrays taken as arrays."""
    if isinstance(left, dict):
        return isinstance(right, dict) and set(left) == set(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, tuple):
        return isinstance(right, tuple) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, (str, type(None))):
        return left == right
    left, right = np.asarray(left), np.asarray(right)
    if left.dtype.kind in "OU":
        return left.shape == right.shape and all(map(same, left.tolist(), right.tolist()))
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def stacked(space, values):
    """Values of a space, one for each step, as Minari has them."""
    if isinstance(space, spaces.Dict):
        return {key: stacked(child, [value[key] for value in values]) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stacked(child, [value[i] for value in values]) for i, child in enumerate(space.spaces))
    if isinstance(space, spaces.Text):
        return list(values)
    return np.stack(values).astype(space.dtype.newbyteorder("="))

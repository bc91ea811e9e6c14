"""n single recorders and one vector recorder, given the same seeds, resets and actions."""

from dataclasses import dataclass, field
from itertools import zip_longest

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import iterate

from gym_replay import Ragged, RecordToBuffer, check_buffer
from gym_replay.wrappers import vector

POINT = spaces.Box(-1.0, 1.0, (2,), np.float64)
SPACES = {
    "box": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "image": spaces.Box(0, 255, (5, 4, 3), np.uint8),
    "large image": spaces.Box(0, 255, (16, 16, 3), np.uint8),
    "discrete": spaces.Discrete(7, start=-2),
    "multi": spaces.Tuple((spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3))),
    "dict": spaces.Dict(
        {"b.a": spaces.Dict({"rgb": spaces.Box(0, 255, (2, 2, 3), np.uint8), "at": POINT}), "level": spaces.Discrete(4)}
    ),
    "tuple": spaces.Tuple((POINT, spaces.Dict({"x": spaces.Box(-1, 1, (), np.float32)}), spaces.Discrete(2))),
    "text": spaces.Text(6),
    "text in dict": spaces.Dict({"said": spaces.Text(5), "at": POINT}),
}
"""Spaces that all of Gymnasium's vector environments can batch."""

UNSHARED = {
    "sequence": spaces.Sequence(POINT),
    "graph": spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(3)),
    "one of": spaces.OneOf((spaces.Discrete(3), POINT)),
}
"""Spaces that cannot be put into shared memory."""

OWN = ("env_index", "episode_start", "episode_duration", "episode_run", "episode_rng")
"""Meta fields that a vector recorder has of its own, or that tell about time."""


class Varied(gym.Env):
    """Its observations, rewards, infos and the lengths of its episodes come from its generator and its actions.

    Args:
        observation_space, action_space: any.
        longest: of its episodes; some have one step.
        reuses: whether it writes each observation into the arrays of the one before.
        infos: whether it gives any.
    """

    def __init__(self, observation_space, action_space, longest=5, reuses=False, infos=False):
        self.observation_space, self.action_space = observation_space, action_space
        self.longest, self.reuses, self.infos = longest, reuses, infos
        self.last = None

    def _observe(self):
        self.observation_space.seed(int(self.np_random.integers(1 << 30)))
        value = self.observation_space.sample()
        if self.reuses:
            value = self.last = overwritten(self.last, value)
        return value

    def _info(self):
        if not self.infos:
            return {}
        info = {"t": self.t, "more": {"half": self.t / 2, "flag": self.t % 2 == 0}}
        if self.t % 3 == 1:
            info["seldom"] = np.arange(2, dtype=np.float32) + self.t
        return info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.length = 0, int(self.np_random.integers(1, self.longest + 1))
        return self._observe(), self._info()

    def step(self, action):
        self.t += 1
        reward = float(self.np_random.normal()) + len(repr(action))
        ends = self.t >= self.length
        terminated = ends and bool(self.np_random.random() < 0.6)
        return self._observe(), reward, terminated, ends and not terminated, self._info()


def overwritten(old, new):
    """The new value in the arrays of the old one."""
    if isinstance(new, np.ndarray) and isinstance(old, np.ndarray) and old.shape == new.shape:
        old[...] = new
        return old
    if isinstance(new, dict):
        return {key: overwritten(None if old is None else old[key], value) for key, value in new.items()}
    if type(new) is tuple:
        known = () if old is None else old  # a sequence may be longer than the one before
        return tuple(overwritten(one, value) for one, value in zip_longest(known[: len(new)], new))
    return new


@dataclass
class Play:
    """What is done with both sides.

    Args:
        moves: ``None`` for a step, an array for a reset with that mask, or the seed of a full reset in a tuple.
    """

    make: object
    num_envs: int
    mode: AutoresetMode
    moves: list
    asynchronous: bool = False
    options: dict = field(default_factory=dict)
    recorder: dict = field(default_factory=dict)


def play_both(play, folder):
    """Play; returns the vector recorder, and the single ones."""
    makers = [lambda i=i: play.make(i) for i in range(play.num_envs)]
    kind = AsyncVectorEnv if play.asynchronous else SyncVectorEnv
    envs = kind(makers, autoreset_mode=play.mode, **play.options)
    recorded = vector.RecordToBuffer(envs, folder / "vector", **play.recorder)
    singles = [RecordToBuffer(make(), folder / str(i), **play.recorder) for i, make in enumerate(makers)]
    recorded.action_space.seed(0)
    waiting = np.zeros(play.num_envs, bool)

    def reset(mask, seed=None):
        options = None if mask.all() and seed is not None else {"reset_mask": mask, "more": 1}
        recorded.reset(seed=seed, options=options)
        assert options is None or options.keys() == {"reset_mask", "more"}
        for i in np.flatnonzero(mask):
            own = None if seed is None else seed + int(i) if isinstance(seed, int) else seed[i]
            singles[i].reset(seed=own, options=None if options is None else {"more": 1})
        waiting[mask] = False

    reset(np.ones(play.num_envs, bool), 7)
    for move in play.moves:
        if isinstance(move, tuple):
            reset(np.ones(play.num_envs, bool), *move)
            continue
        if move is not None:
            if move.any():
                reset(move)
            continue
        actions = recorded.action_space.sample()
        _, _, terminated, truncated, _ = recorded.step(actions)
        for i, action in enumerate(iterate(recorded.action_space, actions)):
            if waiting[i] or (any(singles[i].step(action)[2:4]) and play.mode is AutoresetMode.SAME_STEP):
                singles[i].reset()
        done = terminated | truncated
        if play.mode is AutoresetMode.NEXT_STEP:
            waiting = done
        elif play.mode is AutoresetMode.DISABLED and done.any():
            reset(done)
    recorded.close()
    for single in singles:
        single.close()
    return recorded, singles


def bytes_of(values):
    if isinstance(values, Ragged):
        return values.lengths.tobytes() + values.values().tobytes()
    return values.tobytes()


def assert_same(recorded, singles, *, generators=False):
    """Both sides have the same episodes, bit for bit."""
    own = (*OWN[:-1], *(() if generators else OWN[-1:]))
    report = check_buffer(recorded.buffer.folder, progress=False)
    assert report.ok, str(report)
    assert not report.without_checksum
    of_env = [[] for _ in singles]
    for episode in recorded.buffer:
        of_env[int(episode.meta["env_index"])].append(episode)
    assert sum(map(len, of_env)) == sum(len(single.buffer) for single in singles)
    for found, single in zip(of_env, singles, strict=True):
        assert [len(episode) for episode in found] == [len(episode) for episode in single.buffer]
        for episode, expected in zip(found, single.buffer, strict=True):
            assert set(expected) <= set(episode)
            for name in expected:
                assert bytes_of(episode[name]) == bytes_of(expected[name]), name
            assert (episode.has_final, episode.complete) == (expected.has_final, expected.complete)
            for name, value in expected.meta.items():
                if name not in own:
                    assert np.asarray(episode.meta[name]).tobytes() == np.asarray(value).tobytes(), name

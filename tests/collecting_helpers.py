"""What the tests of collect() share: environments, policies, and a way to compare what was collected."""

import os
import time
from contextlib import suppress

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from gym_replay import BufferLockedError, Ragged, ReplayBuffer

META_OF_PLAYING = ("env_index", "episode_start", "episode_duration", "episode_run")
"""Meta fields that say who played an episode and when, not what it is."""


class Wander(gym.Env):
    """Images from its generator; an episode's length is drawn at its reset, from 1 to ``longest``.

    The reward depends on the action, and every action is in all later observations.

    Args:
        longest: most steps of an episode.
        pause: seconds that a step takes.
        fail_at: steps of an instance after which a step raises.
    """

    action_space = spaces.MultiDiscrete([3, 4])

    def __init__(self, longest=9, pause=0.0, fail_at=None, render_mode=None):
        self.observation_space = spaces.Box(0, 255, (4, 3, 3), np.uint8)
        self.longest, self.fail_at = longest, fail_at
        self.pause = float(os.environ.get("PAUSE", pause))  # a process that is to be ended is made a slow one
        self.steps = 0

    def _look(self):
        image = self.np_random.integers(256, size=(4, 3, 3), dtype=np.uint8)
        image[0, 0, 0] = self.mark
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.mark = (options or {}).get("mark", 0)
        self.left = int(self.np_random.integers(1, self.longest + 1))
        return self._look(), {"left": self.left}

    def step(self, action):
        self.steps += 1
        if self.fail_at is not None and self.steps >= self.fail_at:
            raise RuntimeError("the floor gave way")
        if self.pause:
            time.sleep(self.pause)
        self.mark = (self.mark + int(action[0]) * 4 + int(action[1])) % 256
        self.left -= 1
        return self._look(), float(action[0]) - 0.1, self.left == 0, False, {"left": self.left}


class Uneven(gym.Env):
    """Episodes of one step, but for those few of ``long`` steps."""

    observation_space = spaces.Box(0, 1e6, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, long=60, share=0.2):
        self.long, self.share = long, share

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.long if self.np_random.random() < self.share else 1
        return np.array([self.left], np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.array([self.left], np.float32), 1.0, self.left == 0, False, {}


class Hesitant(gym.Env):
    """Its info holds an integer at first, and a fraction later: in episodes of more than three steps only."""

    observation_space = spaces.Box(0, 99, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.end = 0, int(self.np_random.integers(1, 7))
        return np.zeros(1, np.float32), {"p": 1, "t": np.uint8(0)}

    def step(self, action):
        self.t += 1
        info = {"p": 1 if self.t < 4 else 1 / self.t, "t": np.uint8(self.t)}
        return np.full(1, self.t, np.float32), 1.0, self.t >= self.end, False, info


class Drawing:
    """A policy with a generator for each episode."""

    def reset(self, mask, seeds):
        if not hasattr(self, "generators"):
            self.generators = [None] * len(mask)
        assert mask.dtype == bool
        assert len(mask) == len(seeds) == len(self.generators)
        for place in np.flatnonzero(mask):
            self.generators[place] = np.random.default_rng(seeds[place])

    def __call__(self, observation):
        if observation.ndim == 3:
            return self.one(self.generators[0])
        return np.stack([self.one(generator) for generator in self.generators])

    @staticmethod
    def one(generator):
        return generator.integers([3, 4])


class Remembering:
    """A policy whose actions depend on how often it acted in the episode."""

    def reset(self, mask, seeds):
        self.acted = np.where(mask, 0, getattr(self, "acted", np.zeros(len(mask), int)))

    def __call__(self, observation):
        self.acted = self.acted + 1
        actions = np.stack([self.acted % 3, self.acted % 4], axis=1)
        return actions[0] if observation.ndim == 3 else actions


def brightest(observation):
    """A function of one image, or of a batch of them."""
    flat = observation.reshape(*observation.shape[:-3], -1).astype(int)
    return np.stack([flat.sum(-1) % 3, flat.max(-1) % 4], axis=-1)


def lean(observation):
    """A controller for CartPole."""
    return (observation[..., 2] + 0.5 * observation[..., 3] > 0).astype(np.int64)


def walk(observation):
    """Some action for each state of FrozenLake."""
    return (np.asarray(observation) * 7 + 1) % 4


def facts_of(buffer):
    """By number, the bytes of all that is recorded of an episode, apart from who played it and when."""
    found = {}
    for episode in buffer:
        number = int(episode.meta["collect_index"])
        assert number not in found
        rows = {name: bytes_of(episode[name]) for name in sorted(buffer.fieldnames)}
        meta = {
            name: value.tobytes() if hasattr(value, "tobytes") else value
            for name, value in sorted(episode.meta.items())
            if name not in META_OF_PLAYING
        }
        found[number] = len(episode), rows, meta
    return found


def assert_infos(buffer):
    for episode in buffer:
        steps = range(len(episode) + 1)
        assert episode["info.t"].tolist() == list(steps)
        assert episode["info.p"].tolist() == [1 if t < 4 else 1 / t for t in steps]


def bytes_of(rows):
    return [row.tobytes() for row in rows] if isinstance(rows, Ragged) else rows.tobytes()


def seeds_of(seed, index):
    """The seeds of an episode for the environment and the policy, as docs/collecting.md has them."""
    words = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(2, np.uint64)
    return int(words[0] >> np.uint64(33)), int(words[1] >> np.uint64(1))


def shards_of(folder):
    """The folders of workers that hold a buffer."""
    return sorted(path.parent for path in (folder / "shards").glob("worker-*/metadata.json"))


def assert_unlocked(folder, seconds=300):
    """A worker that was killed while it began may take a moment to be gone."""
    until = time.monotonic() + seconds
    with ReplayBuffer.from_folder(folder) as buffer:
        while time.monotonic() < until:
            with suppress(BufferLockedError):
                buffer.acquire()
                return
            time.sleep(0.05)
        buffer.acquire()


def pid_of_writer(folder):
    """The process that wrote to a buffer last."""
    return int((folder / "writer.lock").read_text())


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

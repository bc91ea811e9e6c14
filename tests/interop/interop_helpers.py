"""What the tests of other formats share: small recorded buffers of several kinds."""

import os
import resource
from contextlib import contextmanager

import gymnasium as gym
import numpy as np

from gym_replay import Field, RecordToBuffer, ReplayBuffer


class Sights(gym.Env):
    """A Dict observation with an image; ends after ``n`` steps, every second episode by truncation."""

    observation_space = gym.spaces.Dict(
        {
            "camera": gym.spaces.Dict({"top": gym.spaces.Box(0, 255, (32, 40, 3), np.uint8)}),
            "state": gym.spaces.Box(-100, 100, (4,), np.float32),
        }
    )
    action_space = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))

    def __init__(self, n=6):
        self.n, self.episode, self.t = n, -1, 0

    def _observe(self):
        image = np.full((32, 40, 3), (self.episode * 10 + self.t) % 256, np.uint8)
        image[:2, 0] = (1, 2, 3)
        return {"camera": {"top": image}, "state": np.full(4, self.episode * 10 + self.t, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action):
        self.t += 1
        ended = self.t == self.n + self.episode % 3
        return self._observe(), float(self.t), ended and self.episode % 2 == 0, ended and self.episode % 2 == 1, {}


def record(folder, env, episodes, **options):
    env = RecordToBuffer(env, folder, **options)
    env.action_space.seed(0)
    for seed in range(episodes):
        env.reset(seed=seed)
        while not any(env.step(env.action_space.sample())[2:4]):
            pass
    env.close()
    return ReplayBuffer.from_folder(folder, read_only=True)


def cartpole(folder, episodes=8):
    return record(folder, gym.make("CartPole-v1", max_episode_steps=30), episodes)


def pendulum(folder, episodes=2):
    return record(folder, gym.make("Pendulum-v1", max_episode_steps=40), episodes)


def sights(folder, episodes=4, **options):
    return record(folder, Sights(), episodes, **options)


def by_hand(folder, lengths, finals, **options):
    """Episode k of T steps: observations 100 k + t, with o_T where ``finals`` says so."""
    fields = {
        "observation": Field("float64", (2,), state=True),
        "action": "int",
        "reward": "float64",
        "terminated": "bool",
        "truncated": "bool",
    }
    buffer = ReplayBuffer(folder, fields=fields, **options)
    for number, (length, final) in enumerate(zip(lengths, finals, strict=True)):
        steps = 100.0 * number + np.arange(length + final)
        last = np.arange(length) == length - 1
        buffer.store_episode(
            observation=np.stack((steps, -steps), axis=1),
            action=np.arange(length) % 3,
            reward=1 + np.arange(length) / 4,
            terminated=last & (number % 2 == 0),
            truncated=last & (number % 2 == 1),
        )
    return buffer


def transitions(buffer):
    """All transitions with a next observation, one at a time: the slow and obvious way."""
    for number, episode in enumerate(buffer):
        for t in range(len(episode)):
            if t + 1 < len(episode["observation"]):
                row = {name: episode[name][t] for name in ("observation", "action", "reward")}
                flags = {name: bool(episode[name][t]) for name in ("terminated", "truncated")}
                ends = t + 2 == len(episode["observation"])
                yield {**row, **flags, "next": episode["observation"][t + 1], "episode": number, "t": t, "ends": ends}


@contextmanager
def limited_memory(more):
    """A block in which so many bytes more than now can be mapped, on Linux."""
    if not os.path.exists("/proc/self/statm"):
        yield
        return
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

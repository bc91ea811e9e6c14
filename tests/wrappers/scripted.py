"""An environment that says what it is told to say, a wrapper that keeps what was said, and a disk that refuses."""

import errno
import os
from contextlib import contextmanager

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from gym_replay import ReplayBuffer, StorageError

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A folder whose files are in memory, for tests that make many buffers and ask nothing of the disk."""


class Scripted(gym.Env):
    """Observation t is ``(t, t)``, the reward of the step to it t, and step ``length`` terminates.

    Args:
        length: of each episode.
        **answers: ``observation``, ``reward``, ``terminated``, ``truncated`` and ``info`` where they are other ones: a
            function of the environment and t, or a dict by t. Of an answer that is an exception, another one is raised.
    """

    observation_space = spaces.Box(-1000, 1000, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, length=4, **answers):
        self.length, self.answers = length, answers
        self.t = self.number = -1

    def _answer(self, name, otherwise):
        given = self.answers.get(name, {})
        value = given(self, self.t) if callable(given) else given.get(self.t, otherwise)
        if isinstance(value, BaseException):
            raise type(value)(*value.args)  # a new one: what was raised holds on to all that it passed
        return value

    def _observation(self):
        return self._answer("observation", np.full(2, self.t, np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.number = 0, self.number + 1
        return self._observation(), self._answer("info", {})

    def step(self, action):
        self.t += 1
        return (
            self._observation(),
            self._answer("reward", float(self.t)),
            self._answer("terminated", self.t >= self.length),
            self._answer("truncated", False),
            self._answer("info", {}),
        )


class Releasing:
    """An ``on_episode`` that at its first episode has the buffer released, and another one take the folder.

    Attributes:
        recorder: whose buffer it is.
        other: the one that took the folder.
    """

    def __init__(self):
        self.recorder = self.other = None

    def __call__(self, episode):
        if self.other is None:
            self.recorder.buffer.release()
            self.other = ReplayBuffer(self.recorder.buffer.folder)
            self.other.acquire()


def frozen(value):
    """A copy that nothing can change any more, tensors as arrays."""
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    return np.array(value)


class Witness(gym.Wrapper):
    """Keeps what passes: of each episode the observations, and action, reward, terminated and truncated by step."""

    def __init__(self, env):
        super().__init__(env)
        self.episodes = []

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        self.episodes.append(([frozen(observation)], []))
        return observation, info

    def step(self, action):
        action_then = frozen(action)
        observation, reward, *flags, info = self.env.step(action)
        observations, steps = self.episodes[-1]
        observations.append(frozen(observation))
        steps.append((action_then, float(reward), *map(bool, flags)))
        return observation, reward, *flags, info


def play(env, episodes=1, *, limit=100, convert=lambda action: action):
    """Whole episodes of sampled actions."""
    for number in range(episodes):
        env.reset(seed=number)
        for _ in range(limit):
            if any(env.step(convert(env.action_space.sample()))[2:4]):
                break


def assert_witnessed(buffer, witnessed, *, cut=()):
    """The buffer holds what the witness saw; the episodes whose numbers are in ``cut`` were cut."""
    assert len(buffer) == len(witnessed)
    for number, (episode, (observations, steps)) in enumerate(zip(buffer, witnessed, strict=True)):
        assert len(episode) == len(steps)
        names = [name for name in buffer.fieldnames if name.startswith("observation")]
        for name in names:
            expected = observations if name == "observation" else [item[name.split(".")[1]] for item in observations]
            np.testing.assert_array_equal(episode[name], expected)
        actions, rewards, terminated, truncated = zip(*steps, strict=True)
        np.testing.assert_array_equal(episode["action"], actions)
        np.testing.assert_array_equal(episode["reward"], rewards)
        assert episode["terminated"].tolist() == list(terminated)
        assert episode["truncated"].tolist() == [*truncated[:-1], truncated[-1] or number in cut]
        assert episode.complete == episode.meta["episode_complete"] == (number not in cut)
        assert episode.meta["episode_return"] == np.cumsum(rewards)[-1]


@contextmanager
def full_disk(monkeypatch, *, times=1 << 30, what="write"):
    """A disk that refuses some times.

    Args:
        what: any bytes (``"write"``), the files of a new field (``"create"``), their taking their places
            (``"switch"``), or rows of a new field that are written before their episode ends (``"early"``).
    """
    from internals import OpenFiles, edits, writer  # with it comes torch: scripts that play do without

    refusals = []
    refused = StorageError(errno.ENOSPC, "no space left", "a file")

    def refusing(real, error=refused, concerns=lambda *arguments: True):
        def call(*arguments, **options):
            if len(refusals) < times and concerns(*arguments):
                refusals.append(arguments)
                raise error
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        if what == "write":
            patch.setattr(os, "pwrite", refusing(os.pwrite, OSError(errno.ENOSPC, "no space left")))
        elif what == "create":
            patch.setattr(edits, "_create_field", refusing(edits._create_field))
        elif what == "switch":
            patch.setattr(writer, "switch_files", refusing(writer.switch_files))
        else:
            has_infos = lambda files, rows, *_: any(name.startswith("info") for name in rows)  # noqa: E731
            patch.setattr(OpenFiles, "write_early", refusing(OpenFiles.write_early, concerns=has_infos))
        yield refusals

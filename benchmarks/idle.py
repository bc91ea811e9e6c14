"""What recording is measured against: an environment and a wrapper that do nothing, and one that only writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym


class Idle(gym.Env[Any, Any]):
    """Episodes of a fixed length; observations are prepared, so that a step costs next to nothing."""

    def __init__(self, observation_space: gym.spaces.Box, action_space: gym.Space[Any], length: int) -> None:
        self.observation_space, self.action_space, self._length = observation_space, action_space, length
        observation_space.seed(0)
        self._observations = [observation_space.sample() for _ in range(16)]
        self._rewards = [0.5 * k for k in range(16)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._t = 0
        return self._observations[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        t = self._t = self._t + 1
        k = t & 15
        return self._observations[k], self._rewards[k], False, t == self._length, {}


class Passing(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that does nothing: what any wrapper costs."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(**options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self.env.step(action)


class OneWrite(gym.Wrapper[Any, Any, Any, Any]):
    """Writes each observation with one ``pwrite`` to a file that has its full size from the start, and nothing else."""

    def __init__(self, env: gym.Env[Any, Any], path: Path, nbytes: int) -> None:
        super().__init__(env)
        self._descriptor, self._position = os.open(path, os.O_RDWR | os.O_CREAT), 0
        os.truncate(self._descriptor, nbytes)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self._position += os.pwrite(self._descriptor, result[0], self._position)
        return result

    def close(self) -> None:
        os.close(self._descriptor)

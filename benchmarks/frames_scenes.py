"""What environments show, as arrays of frames, for ``benchmarks.frames``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """Frames of one kind.

    Args:
        title: what they show.
        frames: all of them, of episodes of one length: ``(episodes, T + 1, *shape)``.
        env: makes the environment that showed them; None where there is none whose observations they are.
    """

    title: str
    frames: Frames
    env: Callable[[], gym.Env[Any, Any]] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one frame."""
        return self.frames.shape[2:]

    @property
    def flat(self) -> Frames:
        """The frames of all episodes, one after another."""
        return self.frames.reshape(-1, *self.shape)

    @property
    def frame_nbytes(self) -> int:
        return self.frames[0, 0].nbytes


class Shown(gym.Env[Any, Any]):
    """An environment that shows frames from memory, so that a step costs next to nothing."""

    def __init__(self, frames: Frames) -> None:
        self._frames, self._episode = frames, -1
        self.observation_space = gym.spaces.Box(0, 255, frames.shape[2:], np.uint8)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._episode, self._t = (self._episode + 1) % len(self._frames), 0
        return self._frames[self._episode, 0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        t = self._t = self._t + 1
        return self._frames[self._episode, t], 0.0, False, t == self._frames.shape[1] - 1, {}


def atari(game: str) -> gym.Env[Any, Any]:
    """A game in colours, 210x160."""
    gym.register_envs(import_module("ale_py"))
    return gym.make(f"ALE/{game}-v5")


def atari_grey() -> gym.Env[Any, Any]:
    """MsPacman as most agents see it, 84x84 in grey."""
    gym.register_envs(import_module("ale_py"))
    return gym.wrappers.AtariPreprocessing(gym.make("ALE/MsPacman-v5", frameskip=1))


def half_cheetah() -> gym.Env[Any, Any]:
    """HalfCheetah, rendered at 480x640."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    return gym.make("HalfCheetah-v5", render_mode="rgb_array", width=640, height=480)


def car_racing() -> gym.Env[Any, Any]:
    return gym.make("CarRacing-v3")


def played(env: gym.Env[Any, Any], *, renders: bool = False) -> Iterator[npt.NDArray[Any]]:
    """The frames of a random policy, episode after episode, without those of resets."""
    env.action_space.seed(0)
    seed: int | None = 0
    while True:
        env.reset(seed=seed)
        seed, ended = None, False
        while not ended:
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            ended = terminated or truncated
            yield np.asarray(env.render() if renders else observation)


def camera(height: int = 240, width: int = 320) -> Iterator[npt.NDArray[Any]]:
    """A smooth scene that moves, as a sensor sees it: noise of some four levels a pixel, more where it is bright."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:height, : 2 * width].astype(np.float32)
    waves = generator.uniform(0.01, 0.1, (6, 3, 2))
    scene = sum(np.sin(x[..., None] * a + y[..., None] * b) for a, b in waves.transpose(0, 2, 1).astype(np.float32))
    scene = 128 + 100 * scene / np.abs(scene).max()
    at = 0
    while True:
        view = scene[:, at : at + width]
        noise = generator.standard_normal(view.shape, np.float32) * np.sqrt(view) * 0.35
        yield np.clip(view + noise, 0, 255).astype(np.uint8)
        at = (at + 1) % width


GAMES: Mapping[str, tuple[str, Callable[[], gym.Env[Any, Any]]]] = {
    "breakout": ("Breakout, 210x160x3", lambda: atari("Breakout")),
    "mspacman": ("MsPacman, 210x160x3", lambda: atari("MsPacman")),
    "mspacman84": ("MsPacman, AtariPreprocessing, 84x84", atari_grey),
    "carracing": ("CarRacing, 96x96x3", car_racing),
}
"""Environments whose observations are frames."""
NAMES = (*GAMES, "halfcheetah", "camera")
"""Of all scenes."""


RENDERED_SLOWLY = {"halfcheetah": 40, "carracing": 200}
"""How many frames of a scene are made by its environment; the others are these, moved sideways by some pixels."""


def scene(name: str, length: int, nbytes: int) -> Scene:
    """Episodes of so many frames, as many as there are in ``nbytes``.

    Raises:
        ImportError, OSError, gymnasium.error.Error: the environment's packages are missing, or cannot render here.
    """
    env = None
    if name in GAMES:
        title, env = GAMES[name]
        shown = played(env())
    elif name == "halfcheetah":
        title, shown = "HalfCheetah, rendered, 480x640x3", played(half_cheetah(), renders=True)
    else:
        title, shown = "A noisy camera, 240x320x3", camera()
    first = next(shown)
    length = min(length, RENDERED_SLOWLY.get(name, length))
    episodes = max(nbytes // first.nbytes // length, 1)
    frames = np.empty((episodes, length, *first.shape), np.uint8)
    flat = frames.reshape(-1, *first.shape)
    made = min(len(flat), RENDERED_SLOWLY.get(name, len(flat)))
    for k in range(made):
        flat[k] = next(shown)
    for k in range(made, len(flat)):
        flat[k] = np.roll(flat[k % made], k // made, axis=1)
    return Scene(title, frames, env)

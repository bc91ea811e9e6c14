"""Public packages that record steps, each behind a wrapper, for ``benchmarks.record``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from benchmarks.minari_datasets import rows_of
from benchmarks.peers import CPPRB, Use, cpprb_buffer, flat, memmap_buffer, memmap_fields, sb3_buffer, torchrl_buffer

Episode = dict[str, Any]
"""``observation``, ``action``, ``reward`` and ``terminated`` of the T transitions, one row each."""


class Room(NamedTuple):
    """What a buffer is to hold: transitions, episodes at most, and T of the longest episode."""

    steps: int
    episodes: int
    longest: int


class Peer(gym.Wrapper[Any, Any, Any, Any]):
    """Hands each transition to a buffer, as its documentation does in the loop around an environment."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**options)
        self._observation = result[0]
        self.begin()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        observation, reward, terminated, truncated, _ = result
        self.add(self._observation, action, observation, reward, terminated, truncated)
        self._observation = observation
        if terminated or truncated:
            self.end()
        return result

    def begin(self) -> None:
        """An episode begins."""

    def add(self, before: Any, action: Any, after: Any, reward: Any, terminated: bool, truncated: bool) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """The environment has ended the episode."""

    def first_episode(self, length: int) -> Episode:
        """The first episode, of T = ``length`` transitions, as it is stored."""
        raise NotImplementedError


class WholeEpisodes(Peer):
    """Keeps references to the steps of an episode, and hands it over at its end, one array per field."""

    def begin(self) -> None:
        self._steps: list[tuple[Any, ...]] = []
        self._observations = [self._observation]

    def add(self, before: Any, action: Any, after: Any, reward: Any, terminated: bool, truncated: bool) -> None:
        self._steps.append((action, reward, terminated, truncated))
        self._observations.append(after)

    def end(self) -> None:
        columns = [np.asarray(column) for column in zip(*self._steps, strict=True)]
        self.store(np.stack(self._observations), *columns)

    def store(self, observations: Any, action: Any, reward: Any, terminated: Any, truncated: Any) -> None:
        """Store T transitions, of which there are T+1 observations."""
        raise NotImplementedError


class MemmapReplayBuffer(Peer):
    def __init__(self, env: gym.Env[Any, Any], folder: Path, room: Room) -> None:
        super().__init__(env)
        action = env.action_space.shape if isinstance(env.action_space, gym.spaces.Box) else None
        fields = memmap_fields(env.observation_space.shape, action)
        self._buffer = memmap_buffer(folder, room.episodes, room.longest, fields)

    def begin(self) -> None:
        self._episode = self._buffer.one_episode()
        self._episode.__enter__()

    def add(self, before: Any, action: Any, after: Any, reward: Any, terminated: bool, truncated: bool) -> None:
        self._buffer.store(observation=before, action=action, reward=reward, terminated=terminated, truncated=truncated)

    def end(self) -> None:
        self._episode.__exit__(None, None, None)

    def first_episode(self, length: int) -> Episode:
        return {name: values[0, :length] for name, values in self._buffer.data.items()}


class MemmapEpisodes(WholeEpisodes, MemmapReplayBuffer):
    """``store_episode`` instead of ``store``."""

    def store(self, observations: Any, action: Any, reward: Any, terminated: Any, truncated: Any) -> None:
        self._buffer.store_episode(
            observation=observations[:-1],
            action=action,
            reward=reward.astype(np.float32),
            terminated=terminated,
            truncated=truncated,
        )


class TorchRL(WholeEpisodes):
    def __init__(self, env: gym.Env[Any, Any], folder: Path, room: Room) -> None:
        super().__init__(env)
        self._buffer = torchrl_buffer(room.steps + room.longest, folder / "storage")
        self._make, self._from_numpy = import_module("tensordict").TensorDict, import_module("torch").from_numpy
        self._create_files()

    def _create_files(self) -> None:
        """The storage makes its files when it gets its first data: give it some, and let it forget them."""
        self._observation = self.observation_space.sample()
        self.begin()
        self.add(None, self.action_space.sample(), self._observation, 0.0, False, False)
        self.end()
        self._buffer.empty()

    def store(self, observations: Any, action: Any, reward: Any, terminated: Any, truncated: Any) -> None:
        of = self._from_numpy
        shown = of(observations)
        after = {
            "observation": shown[1:],
            "reward": of(reward),
            "terminated": of(terminated),
            "truncated": of(truncated),
        }
        episode = {"observation": shown[:-1], "action": of(action), "next": after}
        self._buffer.extend(self._make(episode, batch_size=[len(action)]))

    def first_episode(self, length: int) -> Episode:
        return flat(self._buffer[:length])


class Cpprb(Peer):
    def __init__(self, env: gym.Env[Any, Any], folder: Path, room: Room) -> None:
        super().__init__(env)
        action = {"shape": env.action_space.shape or 1, "dtype": env.action_space.dtype}
        self._buffer = cpprb_buffer(room.steps, env.observation_space.shape, action, flags=["done"])

    def add(self, before: Any, action: Any, after: Any, reward: Any, terminated: bool, truncated: bool) -> None:
        self._buffer.add(obs=before, act=action, next_obs=after, rew=reward, done=terminated)

    def end(self) -> None:
        self._buffer.on_episode_end()

    def first_episode(self, length: int) -> Episode:
        stored = self._buffer.get_all_transitions()
        return {ours: stored[name][:length] for name, ours in CPPRB.items() if name in stored}


class CpprbEpisodes(WholeEpisodes, Cpprb):
    """One ``add`` of all transitions instead of one per step."""

    def store(self, observations: Any, action: Any, reward: Any, terminated: Any, truncated: Any) -> None:
        self._buffer.add(obs=observations[:-1], act=action, next_obs=observations[1:], rew=reward, done=terminated)
        self._buffer.on_episode_end()


class StableBaselines3(Peer):
    def __init__(self, env: gym.Env[Any, Any], folder: Path, room: Room) -> None:
        super().__init__(env)
        self._buffer = sb3_buffer(room.steps, env.observation_space, env.action_space)

    def add(self, before: Any, action: Any, after: Any, reward: Any, terminated: bool, truncated: bool) -> None:
        info = {"TimeLimit.truncated": truncated and not terminated}
        self._buffer.add(before, after, action, reward, terminated or truncated, [info])

    def first_episode(self, length: int) -> Episode:
        stored = self._buffer
        terminated = stored.dones * (1 - stored.timeouts)
        named = {"observation": stored.observations, "action": stored.actions, "reward": stored.rewards}
        return {name: values[:length, 0] for name, values in {**named, "terminated": terminated}.items()}


Make = Callable[[gym.Env[Any, Any], Path, Room], Any]
"""From the environment, a folder and what there is to be room for to the environment that records."""


def make_minari(env: gym.Env[Any, Any], folder: Path, room: Room) -> Any:
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    warnings.filterwarnings("ignore", module="minari")
    return import_module("minari").DataCollector(env, jpeg_encoding=False)


def minari_episode(env: Any, length: int) -> Episode:
    """The first episode that a Minari DataCollector holds."""
    stored = rows_of(env.create_dataset("check/check-v0")[0])
    return {**stored, "observation": stored["observation"][:length]}


TWICE = "in memory; stores each observation twice"
REFERENCES = "references until the episode ends, so an environment that writes into its last observation would spoil it"
PEERS: dict[str, Use[Make]] = {
    "Minari": Use(
        "Minari",
        "DataCollector, HDF5, jpeg_encoding=False; writes a group at each episode's end. Arrow takes as long for long "
        "episodes and longer for short ones",
        make_minari,
    ),
    "memmap-replay-buffer": Use(
        "memmap-replay-buffer",
        "one_episode and store, flush_every_store_step=0; msync at each episode, which waits for the disk",
        MemmapReplayBuffer,
    ),
    "memmap-replay-buffer, whole": Use(
        "memmap-replay-buffer",
        f"store_episode, flush_every_store_step=0; msync of its counters at each episode; {REFERENCES}",
        MemmapEpisodes,
    ),
    "torchrl": Use(
        "torchrl",
        f"ReplayBuffer of LazyMemmapStorage, one extend per episode, the next observation a second time; {REFERENCES}",
        TorchRL,
    ),
    "cpprb": Use("cpprb", f"ReplayBuffer.add at each step, {TWICE}", Cpprb),
    "cpprb, whole": Use("cpprb", f"one ReplayBuffer.add per episode, {TWICE}; {REFERENCES}", CpprbEpisodes),
    "Stable-Baselines3": Use(
        "Stable-Baselines3", f"ReplayBuffer.add at each step, its only way, {TWICE}", StableBaselines3
    ),
}

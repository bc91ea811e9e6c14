"""Public packages that record vector environments, each behind a wrapper, for ``benchmarks.record_vector``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.peers import Use, cpprb_buffer, memmap_buffer, memmap_fields, sb3_buffer, torchrl_buffer

Envs = gym.vector.VectorEnv[Any, Any, Any]
Make = Callable[[Envs, Path, int], Envs]
"""From the environment, a folder and the number of steps to the environment that records."""


class Peer(gym.vector.VectorWrapper[Any, Any, Any, Any, Any]):
    """Hands the transitions of each step to a buffer; the steps that only reset are left out.

    Attributes:
        stores_resets: whether it stores those steps all the same.
    """

    stores_resets = False

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**options)
        self._before, self._resets = result[0], np.zeros(self.num_envs, bool)
        return result

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        result = self.env.step(actions)
        observations, rewards, terminated, truncated, _ = result
        columns = self._before, actions, observations, rewards, terminated, truncated
        if self._resets.any():
            kept = ~self._resets
            columns = tuple([column[kept] for column in columns])
        self.add(*columns)
        self._before, self._resets = observations, terminated | truncated
        return result

    def add(self, before: Any, actions: Any, after: Any, rewards: Any, terminated: Any, truncated: Any) -> None:
        raise NotImplementedError

    def stored(self) -> Any:
        """The observation of each transition that is stored, ``(transitions, 4)``, in any order."""
        raise NotImplementedError


class TorchRL(Peer):
    def __init__(self, env: Envs, folder: Path, steps: int) -> None:
        super().__init__(env)
        self._buffer = torchrl_buffer((steps + 1) * env.num_envs, folder / "storage")
        self._make, self._from = import_module("tensordict").TensorDict, import_module("torch").from_numpy
        before = np.zeros((1, 4), np.float32)
        self.add(before, np.zeros(1, np.int64), before, np.zeros(1, np.float32), np.zeros(1, bool), np.zeros(1, bool))
        self._buffer.empty()

    def add(self, before: Any, actions: Any, after: Any, rewards: Any, terminated: Any, truncated: Any) -> None:
        of, count = self._from, len(before)
        end = {
            "reward": of(rewards),
            "terminated": of(terminated),
            "truncated": of(truncated),
            "observation": of(after),
        }
        self._buffer.extend(
            self._make({"observation": of(before), "action": of(actions), "next": end}, batch_size=[count])
        )

    def stored(self) -> Any:
        return self._buffer[:]["observation"].numpy()


class MemmapReplayBuffer(Peer):
    """``store_batch``: all sub-environments in lockstep, in one stretch, without episodes of their own."""

    stores_resets = True

    def __init__(self, env: Envs, folder: Path, steps: int) -> None:
        super().__init__(env)
        self._buffer = memmap_buffer(folder, env.num_envs, steps + 1, memmap_fields((4,), None))
        self._episodes = self._buffer.batched_episode(batch_size=env.num_envs)
        self._episodes.__enter__()
        self._steps = 0

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        result = self.env.step(actions)
        observations, rewards, terminated, truncated, _ = result
        self._buffer.store_batch(
            observation=self._before, action=actions, reward=rewards, terminated=terminated, truncated=truncated
        )
        self._steps += 1
        self._before = observations
        return result

    def stored(self) -> Any:
        self._episodes.__exit__(None, None, None)
        return self._buffer.data["observation"][:, : self._steps].reshape(-1, 4)


class Cpprb(Peer):
    """All transitions of a step in one ``add``."""

    def __init__(self, env: Envs, folder: Path, steps: int) -> None:
        super().__init__(env)
        self._buffer = cpprb_buffer((steps + 1) * env.num_envs, 4, {"dtype": np.int64})

    def add(self, before: Any, actions: Any, after: Any, rewards: Any, terminated: Any, truncated: Any) -> None:
        self._buffer.add(obs=before, act=actions, next_obs=after, rew=rewards, done=terminated, cut=truncated)

    def stored(self) -> Any:
        return self._buffer.get_all_transitions()["obs"]


class StableBaselines3(Peer):
    """Row by row of all sub-environments."""

    stores_resets = True

    def __init__(self, env: Envs, folder: Path, steps: int) -> None:
        super().__init__(env)
        spaces = env.single_observation_space, env.single_action_space
        options = {"n_envs": env.num_envs, "handle_timeout_termination": False}
        self._buffer = sb3_buffer((steps + 1) * env.num_envs, *spaces, **options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        result = self.env.step(actions)
        observations, rewards, terminated, _, _ = result
        self._buffer.add(self._before, observations, actions, rewards, terminated, [])
        self._before = observations
        return result

    def stored(self) -> Any:
        return self._buffer.observations[: self._buffer.size()].reshape(-1, 4)


TWICE = "in memory; the next observation a second time"
PEERS: dict[str, Use[Make]] = {
    "torchrl": Use(
        "torchrl", "ReplayBuffer of LazyMemmapStorage, one extend per step; the next observation a second time", TorchRL
    ),
    "memmap-replay-buffer": Use(
        "memmap-replay-buffer",
        "batched_episode and store_batch, all sub-environments in lockstep in one stretch, flush_every_store_step=0",
        MemmapReplayBuffer,
    ),
    "cpprb": Use("cpprb", f"one ReplayBuffer.add per step, {TWICE}", Cpprb),
    "Stable-Baselines3": Use(
        "Stable-Baselines3",
        f"ReplayBuffer(n_envs=...), one add per step with the flag terminated alone, {TWICE}",
        StableBaselines3,
    ),
}

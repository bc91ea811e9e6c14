"""Public packages that a training loop samples from, for ``benchmarks.load``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Batch = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """Episodes of one length: ``(episodes, T + 1, 17)`` observations, ``(episodes, T, ...)`` of the rest."""

    observation: Array
    action: Array
    reward: Array
    terminated: Array
    truncated: Array

    @staticmethod
    def random(episodes: int, length: int) -> Data:
        """Noise, but for the first number of an observation, which counts the rows from 0 and so names them."""
        generator = np.random.default_rng(0)
        observation = generator.standard_normal((episodes, length + 1, 17), np.float32)
        observation[..., 0] = np.arange(episodes * (length + 1)).reshape(episodes, length + 1)
        steps = (episodes, length)
        truncated = np.zeros(steps, np.bool_)
        truncated[:, -1] = True
        return Data(
            observation,
            generator.standard_normal((*steps, 6), np.float32),
            generator.standard_normal(steps),
            generator.random(steps) < 0.001,
            truncated,
        )

    def transitions(self) -> dict[str, Array]:
        """Each field of all transitions in a row, with ``next_observation``."""
        return {
            "observation": self.observation[:, :-1].reshape(-1, 17),
            "next_observation": self.observation[:, 1:].reshape(-1, 17),
            "action": self.action.reshape(-1, 6),
            "reward": self.reward.reshape(-1).astype(np.float32),
            "terminated": self.terminated.reshape(-1),
            "truncated": self.truncated.reshape(-1),
        }


def check(name: str, data: Data, batch: Batch, size: tuple[int, ...], fields: list[str]) -> None:
    """Raise AssertionError unless the batch is of this size and holds what was stored in the rows that it names."""
    rows = np.asarray(batch["observation"])[..., 0].astype(np.int64)
    assert rows.shape == size, f"{name}: expected {size} samples, got {rows.shape}"
    episode, step = np.divmod(rows, data.observation.shape[1])
    assert len(np.unique(rows)) > rows.size // 2, f"{name}: the same rows again and again"
    for field in fields:
        if field == "next_observation":
            expected = data.observation[episode, step + 1]
        else:
            expected = getattr(data, field)[episode, step]
        found = np.asarray(batch[field]).reshape(expected.shape)
        np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32), f"{name}: {field}")


def memmap_replay_buffer(data: Data, folder: Path) -> Any:
    """The buffer with all episodes stored."""
    episodes, length = data.action.shape[:2]
    buffer = import_module("memmap_replay_buffer").ReplayBuffer(
        folder,
        max_episodes=episodes,
        max_timesteps=length,
        fields={
            "observation": ("float", 17),
            "action": ("float", 6),
            "reward": "float",
            "terminated": "bool",
            "truncated": "bool",
        },
        flush_every_store_step=0,
    )
    for k in range(episodes):
        buffer.store_episode(
            observation=data.observation[k, :-1],
            action=data.action[k],
            reward=data.reward[k].astype(np.float32),
            terminated=data.terminated[k],
            truncated=data.truncated[k],
        )
    return buffer


def memmap_transitions(data: Data, folder: Path) -> Iterator[Batch]:
    loader = memmap_replay_buffer(data, folder).dataloader(
        256, n_steps=1, shuffle=True, next_fields=("observation",), drop_last=True
    )
    while True:
        yield from loader


def memmap_trajectories(data: Data, folder: Path) -> Iterator[Batch]:
    loader = memmap_replay_buffer(data, folder).dataloader(8, shuffle=True, drop_last=True)
    while True:
        yield from loader


def _torchrl(data: Data, folder: Path, sampler: Any, batch_size: int) -> Any:
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    rl, tensors = import_module("torchrl.data"), import_module("tensordict")
    rows = {name: torch.from_numpy(array.copy()) for name, array in data.transitions().items()}
    count = len(rows["action"])
    after = {"observation": rows.pop("next_observation")}
    after |= {name: rows.pop(name)[:, None] for name in ("reward", "terminated", "truncated")}
    episode = torch.arange(len(data.action)).repeat_interleave(data.action.shape[1])
    storage = rl.LazyMemmapStorage(count, scratch_dir=str(folder))
    buffer = rl.TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=batch_size)
    buffer.extend(tensors.TensorDict({**rows, "episode": episode, "next": after}, batch_size=[count]))
    return buffer


def _flat(sampled: Any) -> Batch:
    named = {name: sampled["next", name] for name in ("reward", "terminated", "truncated")}
    return {
        "observation": sampled["observation"],
        "next_observation": sampled["next", "observation"],
        "action": sampled["action"],
        **named,
    }


def torchrl_transitions(data: Data, folder: Path) -> Iterator[Batch]:
    samplers = import_module("torchrl.data.replay_buffers.samplers")
    buffer = _torchrl(data, folder, samplers.SamplerWithoutReplacement(), 256)
    while True:
        yield _flat(buffer.sample())


def torchrl_windows(data: Data, folder: Path) -> Iterator[Batch]:
    samplers = import_module("torchrl.data.replay_buffers.samplers")
    sampler = samplers.SliceSampler(slice_len=16, traj_key="episode", cache_values=True)
    buffer = _torchrl(data, folder, sampler, 64 * 16)
    while True:
        yield _flat(buffer.sample().reshape(64, 16))


def cpprb_transitions(data: Data, folder: Path) -> Iterator[Batch]:
    rows = data.transitions()
    state = {"shape": 17}
    schema = {"obs": state, "next_obs": state, "act": {"shape": 6}, "rew": {}}
    schema |= {"done": {"dtype": np.bool_}, "cut": {"dtype": np.bool_}}
    buffer = import_module("cpprb").ReplayBuffer(len(rows["action"]), schema)
    names = dict(zip(("obs", "next_obs", "act", "rew", "done", "cut"), rows, strict=True))
    buffer.add(**{theirs: rows[ours] for theirs, ours in names.items()})
    while True:
        sampled = buffer.sample(256)
        yield {ours: torch.from_numpy(sampled[theirs]) for theirs, ours in names.items()}


def sb3_transitions(data: Data, folder: Path) -> Iterator[Batch]:
    spaces = import_module("gymnasium").spaces
    rows = data.transitions()
    count = len(rows["action"])
    buffer = import_module("stable_baselines3.common.buffers").ReplayBuffer(
        count, spaces.Box(-9, 9, (17,)), spaces.Box(-9, 9, (6,)), device="cpu"
    )
    # What a million calls of add would do.
    buffer.observations[:, 0], buffer.next_observations[:, 0] = rows["observation"], rows["next_observation"]
    buffer.actions[:, 0], buffer.rewards[:, 0] = rows["action"], rows["reward"]
    buffer.dones[:, 0] = rows["terminated"]
    buffer.full = True
    while True:
        sampled = buffer.sample(256)
        yield {
            "observation": sampled.observations,
            "next_observation": sampled.next_observations,
            "action": sampled.actions,
            "reward": sampled.rewards,
            "terminated": sampled.dones,
        }


Batches = Callable[[Data, Path], Iterator[Batch]]


@dataclass(frozen=True)
class PeerPackage:
    """A package to compare with, and how it is used for each kind of sample."""

    distribution: str
    use: str
    transitions: Batches | None = None
    windows: Batches | None = None
    trajectories: Batches | None = None


PEERS = {
    "memmap-replay-buffer": PeerPackage(
        "memmap-replay-buffer",
        "dataloader(n_steps=1, shuffle=True) and dataloader(shuffle=True)",
        transitions=memmap_transitions,
        trajectories=memmap_trajectories,
    ),
    "torchrl": PeerPackage(
        "torchrl",
        "TensorDictReplayBuffer of LazyMemmapStorage; SamplerWithoutReplacement, SliceSampler(cache_values=True)",
        transitions=torchrl_transitions,
        windows=torchrl_windows,
    ),
    "cpprb": PeerPackage(
        "cpprb", "ReplayBuffer.sample in memory, with replacement, then torch.from_numpy", transitions=cpprb_transitions
    ),
    "Stable-Baselines3": PeerPackage(
        "stable-baselines3",
        "ReplayBuffer.sample in memory, with replacement; one flag, done",
        transitions=sb3_transitions,
    ),
}

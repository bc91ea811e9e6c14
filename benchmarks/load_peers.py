"""Public packages that a training loop samples from, for ``benchmarks.load``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.load_frames import memmap_windows as random_windows
from benchmarks.minari_datasets import write_minari
from benchmarks.peers import Use, torchrl_data
from benchmarks.timing import forever

Array = npt.NDArray[Any]
Batch = dict[str, Any]
WINDOW = ("observation", "action", "reward")
ALL = (*WINDOW, "terminated", "truncated")
MINARI_ARROW_EPISODES = 200
"""Minari takes some 20 ms to write an episode in this format."""


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


def check(name: str, data: Data, batch: Batch, size: tuple[int, ...], fields: Sequence[str]) -> None:
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


class Stored:
    """The data in the formats of the peers, each made when it is first asked for."""

    def __init__(self, data: Data, folder: Path) -> None:
        self.data, self._folder = data, folder

    @cached_property
    def memmap(self) -> Any:
        """A buffer of memmap-replay-buffer with all episodes."""
        data = self.data
        episodes, length = data.action.shape[:2]
        fields = {"observation": ("float", 17), "action": ("float", 6), "reward": "float"}
        buffer = import_module("memmap_replay_buffer").ReplayBuffer(
            self._folder / "memmap",
            max_episodes=episodes,
            max_timesteps=length,
            fields={**fields, "terminated": "bool", "truncated": "bool"},
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

    @cached_property
    def torchrl(self) -> Any:
        """A LazyMemmapStorage with all transitions."""
        rows = {name: torch.from_numpy(array.copy()) for name, array in self.data.transitions().items()}
        after = {"observation": rows.pop("next_observation")}
        after |= {name: rows.pop(name)[:, None] for name in ("reward", "terminated", "truncated")}
        return self._torchrl({**rows, "next": after}, "torchrl")

    def torchrl_rows(self, names: Sequence[str]) -> Any:
        """A LazyMemmapStorage with these fields alone, and the episode that a row is of."""
        columns = self.data.transitions()
        rows = {name: torch.from_numpy(columns[name].copy()) for name in names}
        rows["episode"] = torch.arange(len(self.data.action)).repeat_interleave(self.data.action.shape[1])
        return self._torchrl(rows, f"torchrl-{len(names)}")

    def _torchrl(self, rows: dict[str, Any], name: str) -> Any:
        count = len(rows["action"])
        data, make = torchrl_data(), import_module("tensordict").TensorDict
        storage = data.LazyMemmapStorage(count, scratch_dir=str(self._folder / name))
        data.ReplayBuffer(storage=storage, batch_size=1).extend(make(rows, batch_size=[count]))
        return storage

    def minari(self, data_format: str, episodes: int | None = None) -> Any:
        """A Minari dataset with the first episodes."""
        columns = {name: getattr(self.data, name)[:episodes] for name in ALL}
        chosen = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return write_minari(self._folder / f"minari-{data_format}", chosen, data_format)


Batches = Callable[[Stored], Iterator[Batch]]


def memmap_transitions(stored: Stored) -> Iterator[Batch]:
    loader = stored.memmap.dataloader(256, n_steps=1, shuffle=True, next_fields=("observation",), drop_last=True)
    return forever(loader)


def memmap_windows(stored: Stored) -> Iterator[Batch]:
    return forever(random_windows(stored.memmap, 64, 16, WINDOW))


def memmap_trajectories(stored: Stored) -> Iterator[Batch]:
    return forever(stored.memmap.dataloader(8, shuffle=True, drop_last=True))


def _torchrl(storage: Any, sampler: Any, batch_size: int) -> Callable[[], Any]:
    return torchrl_data().ReplayBuffer(storage=storage, sampler=sampler, batch_size=batch_size).sample


def _samplers() -> Any:
    return import_module("torchrl.data.replay_buffers.samplers")


def _flat(sampled: Any) -> Batch:
    named = {name: sampled["next", name] for name in ("reward", "terminated", "truncated")}
    return {
        "observation": sampled["observation"],
        "next_observation": sampled["next", "observation"],
        "action": sampled["action"],
        **named,
    }


def torchrl_transitions(stored: Stored) -> Iterator[Batch]:
    sample = _torchrl(stored.torchrl, _samplers().SamplerWithoutReplacement(), 256)
    while True:
        yield _flat(sample())


def _slices(stored: Stored, names: Sequence[str], count: int, length: int) -> Iterator[Batch]:
    sampler = _samplers().SliceSampler(slice_len=length, traj_key="episode", cache_values=True, truncated_key=None)
    sample = _torchrl(stored.torchrl_rows(names), sampler, count * length)
    while True:
        sampled = sample().reshape(count, length)
        yield {name: sampled[name] for name in names}


def torchrl_windows(stored: Stored) -> Iterator[Batch]:
    return _slices(stored, WINDOW, 64, 16)


def torchrl_trajectories(stored: Stored) -> Iterator[Batch]:
    return _slices(stored, ALL, 8, stored.data.action.shape[1])


def cpprb_transitions(stored: Stored) -> Iterator[Batch]:
    rows = stored.data.transitions()
    state = {"shape": 17}
    schema = {"obs": state, "next_obs": state, "act": {"shape": 6}, "rew": {}}
    schema |= {"done": {"dtype": np.bool_}, "cut": {"dtype": np.bool_}}
    buffer = import_module("cpprb").ReplayBuffer(len(rows["action"]), schema)
    names = dict(zip(("obs", "next_obs", "act", "rew", "done", "cut"), rows, strict=True))
    buffer.add(**{theirs: rows[ours] for theirs, ours in names.items()})
    while True:
        sampled = buffer.sample(256)
        yield {ours: torch.from_numpy(sampled[theirs]) for theirs, ours in names.items()}


def sb3_transitions(stored: Stored) -> Iterator[Batch]:
    spaces = import_module("gymnasium").spaces
    rows = stored.data.transitions()
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


def minari_trajectories(data_format: str, episodes: int | None) -> Batches:
    """Padded to the longest of the batch, as a collate function of Minari's tutorials does it."""

    def batches(stored: Stored) -> Iterator[Batch]:
        dataset = stored.minari(data_format, episodes)
        names = {"observation": "observations", "action": "actions", "reward": "rewards"}
        names |= {"terminated": "terminations", "truncated": "truncations"}
        pad = torch.nn.utils.rnn.pad_sequence
        while True:
            sampled = dataset.sample_episodes(8)
            batch = {}
            for ours, theirs in names.items():
                values = [torch.from_numpy(np.require(getattr(one, theirs), requirements="W")) for one in sampled]
                batch[ours] = pad(values, batch_first=True)
            batch["observation"] = batch["observation"][:, :-1]  # the data has o_T as well
            yield batch

    return batches


IN_MEMORY = "in memory, with replacement"
NO_PREFETCH = "no prefetch=, which takes longer here"
TRANSITIONS: dict[str, Use[Batches]] = {
    "memmap-replay-buffer": Use(
        "memmap-replay-buffer", "dataloader(n_steps=1, shuffle=True, next_fields=...), no workers", memmap_transitions
    ),
    "torchrl": Use(
        "torchrl",
        f"ReplayBuffer of LazyMemmapStorage, SamplerWithoutReplacement; {NO_PREFETCH}, and TensorDictReplayBuffer too",
        torchrl_transitions,
    ),
    "cpprb": Use("cpprb", f"ReplayBuffer.sample {IN_MEMORY}, then torch.from_numpy", cpprb_transitions),
    "Stable-Baselines3": Use("Stable-Baselines3", f"ReplayBuffer.sample {IN_MEMORY}; one flag, done", sb3_transitions),
}
WINDOWS: dict[str, Use[Batches]] = {
    "memmap-replay-buffer": Use(
        "memmap-replay-buffer",
        "dataloader(dataset=ReplayDatasetTimeWindow(...)), drawn with replacement, no workers",
        memmap_windows,
    ),
    "torchrl": Use(
        "torchrl",
        f"ReplayBuffer of LazyMemmapStorage, SliceSampler(cache_values=True, truncated_key=None); {NO_PREFETCH}",
        torchrl_windows,
    ),
}
TRAJECTORIES: dict[str, Use[Batches]] = {
    "memmap-replay-buffer": Use("memmap-replay-buffer", "dataloader(shuffle=True), no workers", memmap_trajectories),
    "torchrl": Use(
        "torchrl",
        "ReplayBuffer of LazyMemmapStorage, SliceSampler as for windows, slices of a whole episode",
        torchrl_trajectories,
    ),
    "Minari": Use("Minari", "HDF5, sample_episodes, then torch's pad_sequence", minari_trajectories("hdf5", None)),
    "Minari, Arrow": Use(
        "Minari, Arrow",
        f"the same; {MINARI_ARROW_EPISODES} episodes, because writing them takes long",
        minari_trajectories("arrow", MINARI_ARROW_EPISODES),
    ),
}

"""Public packages that a training loop samples from, for ``benchmarks.load``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.episodes import Episodes, columns_of, extended, write_memmap
from benchmarks.load_frames import memmap_windows as random_windows
from benchmarks.minari_datasets import rows_of, write_minari
from benchmarks.peers import CPPRB, Use, cpprb_buffer, flat, sb3_batch, sb3_buffer, torchrl_data, torchrl_slices
from benchmarks.timing import forever

Array = npt.NDArray[Any]
Batch = dict[str, Any]
WINDOW = ("observation", "action", "reward")
ALL = (*WINDOW, "terminated", "truncated")
MINARI_ARROW_EPISODES = 200
"""Minari takes some 20 ms to write an episode in this format."""


class Stored:
    """Episodes in the formats of the peers, each made when it is first asked for."""

    def __init__(self, episodes: Episodes, folder: Path) -> None:
        self.episodes, self._folder = episodes, folder

    def transitions(self) -> dict[str, Array]:
        """Each field of all transitions in a row, with ``next_observation``; rewards as most packages keep them."""
        return self.episodes.transitions(reward=np.float32)

    @cached_property
    def memmap(self) -> Any:
        """A buffer of memmap-replay-buffer with all episodes."""
        return write_memmap(self.episodes, self._folder / "memmap", self.episodes.length)

    @cached_property
    def torchrl(self) -> Any:
        """A LazyMemmapStorage with all transitions."""
        return extended(self._folder / "torchrl", columns_of(self.transitions())).storage

    def torchrl_rows(self, names: Sequence[str]) -> Any:
        """A LazyMemmapStorage with these fields alone, and the episode that a row is of."""
        columns, episodes = self.transitions(), self.episodes
        rows = {name: torch.from_numpy(columns[name]) for name in names}
        rows["episode"] = torch.arange(len(episodes.lengths)).repeat_interleave(episodes.length)
        return extended(self._folder / f"torchrl-{len(names)}", rows).storage

    def minari(self, data_format: str, episodes: int | None = None) -> Any:
        """A Minari dataset with the first episodes."""
        chosen = list(islice(self.episodes, episodes))
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


def torchrl_transitions(stored: Stored) -> Iterator[Batch]:
    sampler = import_module("torchrl.data.replay_buffers.samplers").SamplerWithoutReplacement()
    sample = _torchrl(stored.torchrl, sampler, 256)
    while True:
        yield flat(sample())


def _slices(stored: Stored, names: Sequence[str], count: int, length: int) -> Iterator[Batch]:
    sample = _torchrl(stored.torchrl_rows(names), torchrl_slices(length), count * length)
    while True:
        sampled = sample().reshape(count, length)
        yield {name: sampled[name] for name in names}


def torchrl_windows(stored: Stored) -> Iterator[Batch]:
    return _slices(stored, WINDOW, 64, 16)


def torchrl_trajectories(stored: Stored) -> Iterator[Batch]:
    return _slices(stored, ALL, 8, stored.episodes.length)


def cpprb_transitions(stored: Stored) -> Iterator[Batch]:
    rows = stored.transitions()
    buffer = cpprb_buffer(len(rows["action"]), 17, {"shape": 6})
    buffer.add(**{theirs: rows[ours] for theirs, ours in CPPRB.items()})
    while True:
        sampled = buffer.sample(256)
        yield {ours: torch.from_numpy(sampled[theirs]) for theirs, ours in CPPRB.items()}


def sb3_transitions(stored: Stored) -> Iterator[Batch]:
    box = import_module("gymnasium").spaces.Box
    rows = stored.transitions()
    buffer = sb3_buffer(len(rows["action"]), box(-9, 9, (17,)), box(-9, 9, (6,)))
    # What a million calls of add would do.
    buffer.observations[:, 0], buffer.next_observations[:, 0] = rows["observation"], rows["next_observation"]
    buffer.actions[:, 0], buffer.rewards[:, 0] = rows["action"], rows["reward"]
    buffer.dones[:, 0] = rows["terminated"]
    buffer.full = True
    while True:
        yield sb3_batch(buffer.sample(256))


def minari_trajectories(data_format: str, episodes: int | None) -> Batches:
    """Padded to the longest of the batch, as a collate function of Minari's tutorials does it."""

    def batches(stored: Stored) -> Iterator[Batch]:
        dataset = stored.minari(data_format, episodes)
        pad = torch.nn.utils.rnn.pad_sequence
        while True:
            sampled = [rows_of(one) for one in dataset.sample_episodes(8)]
            batch = {}
            for name in ALL:
                values = [torch.from_numpy(np.require(one[name], requirements="W")) for one in sampled]
                batch[name] = pad(values, batch_first=True)
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

"""Where a TD3+BC may get its batches from, for ``benchmarks.learning``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.load_peers import Stored, torchrl_transitions
from benchmarks.minari_datasets import rows_of
from benchmarks.peers import Use
from benchmarks.timing import forever

Batch = dict[str, Any]
DISCOUNT = 0.99
SIZE = 256
EPISODES = 8
"""Of a batch of Minari's, of which a batch of transitions is drawn."""


def one_step(batch: Batch) -> Batch:
    """A batch of transitions as the learner takes it."""
    terminated = batch.pop("terminated").reshape(-1)
    reward = batch.pop("reward").reshape(-1)
    return {**batch, "n_step_return": reward, "n_step_discount": DISCOUNT * ~terminated.bool()}


def in_memory(stored: Stored) -> Iterator[Batch]:
    """Float32 tensors of all transitions, drawn with replacement, as CORL's ``ReplayBuffer.sample`` draws them."""
    rows = stored.transitions()
    names = ("observation", "action", "reward", "next_observation", "terminated")
    tensors = {name: torch.from_numpy(np.array(rows[name], np.float32)) for name in names}
    count = len(tensors["action"])
    while True:
        drawn = np.random.randint(0, count, size=SIZE)  # noqa: NPY002
        batch: dict[str, Tensor] = {name: tensor[drawn] for name, tensor in tensors.items()}
        reward, terminated = batch.pop("reward"), batch.pop("terminated")
        yield {**batch, "n_step_return": reward, "n_step_discount": DISCOUNT * (1 - terminated)}


def torchrl(stored: Stored) -> Iterator[Batch]:
    return map(one_step, torchrl_transitions(stored))


def minari(stored: Stored) -> Iterator[Batch]:
    """Whole episodes from torch's DataLoader, padded, of which one batch of transitions is drawn."""
    pad = torch.nn.utils.rnn.pad_sequence

    def collate(episodes: list[Any]) -> Batch:
        rows = [rows_of(one) for one in episodes]
        names = ("observation", "action", "reward", "terminated")
        padded = {name: pad([torch.as_tensor(np.array(one[name])) for one in rows], batch_first=True) for name in names}
        return {**padded, "lengths": torch.tensor([len(one["reward"]) for one in rows])}

    loader = torch.utils.data.DataLoader(stored.minari("hdf5"), batch_size=EPISODES, shuffle=True, collate_fn=collate)
    for batch in forever(loader):
        lengths = batch.pop("lengths")
        episode = torch.randint(len(lengths), (SIZE,))
        step = (torch.rand(SIZE) * lengths[episode]).long()
        drawn = {name: values[episode, step] for name, values in batch.items()}
        following = batch["observation"][episode, step + 1]
        yield one_step({**drawn, "reward": drawn["reward"].float(), "next_observation": following})


def d3rlpy(stored: Stored) -> Iterator[Batch]:
    package = import_module("d3rlpy")
    episodes = [
        package.dataset.Episode(
            one["observation"], one["action"][last], one["reward"].astype(np.float32)[last, None], False
        )
        for one in stored.episodes
        for last in [np.minimum(np.arange(len(one["action"]) + 1), len(one["action"]) - 1)]  # its last row twice
    ]
    buffer = package.dataset.ReplayBuffer(
        package.dataset.InfiniteBuffer(), episodes=episodes, action_space=package.ActionSpace.CONTINUOUS
    )
    while True:
        sampled = buffer.sample_transition_batch(SIZE)
        yield one_step(
            {
                "observation": torch.from_numpy(sampled.observations),
                "action": torch.from_numpy(sampled.actions),
                "reward": torch.from_numpy(sampled.rewards),
                "next_observation": torch.from_numpy(sampled.next_observations),
                "terminated": torch.from_numpy(sampled.terminals),
            }
        )


PEERS: dict[str, Use[Callable[[Stored], Iterator[Batch]]]] = {
    "torchrl": Use("torchrl", "ReplayBuffer of LazyMemmapStorage, SamplerWithoutReplacement; no prefetch=", torchrl),
    "Minari": Use(
        "Minari",
        f"HDF5, torch's DataLoader of {EPISODES} episodes padded by a collate function, as its tutorial on behavioural "
        f"cloning has it; {SIZE} transitions are drawn of them for each step",
        minari,
    ),
    "d3rlpy": Use("d3rlpy", "ReplayBuffer.sample_transition_batch, then torch.from_numpy; no terminals", d3rlpy),
}

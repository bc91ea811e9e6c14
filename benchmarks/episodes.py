"""Episodes written in the format of each package, for ``benchmarks.open`` and ``benchmarks.disk``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.minari_datasets import write_minari
from benchmarks.peers import AFTER, memmap_buffer, memmap_fields, nested, tensordict, torchrl_buffer
from benchmarks.timing import forever
from gym_replay import Field, ReplayBuffer, window_loader

Array = npt.NDArray[Any]
SCHEMAS: dict[str, dict[str, Any]] = {
    "obs 17, act 6": {
        "observation": Field("float32", (17,), state=True),
        "action": Field("float32", (6,)),
        "reward": "float64",
        "terminated": "bool",
        "truncated": "bool",
    },
    "CartPole": {
        "observation": Field("float32", (4,), state=True),
        "action": "int64",
        "reward": "float64",
        "terminated": "bool",
        "truncated": "bool",
    },
}
META = {"episode_seed": "int64", "episode_return": "float64", "episode_complete": "bool"}


@dataclass(frozen=True)
class Episodes:
    """Episodes one after the other, with T+1 observations and T rows of the rest.

    Args:
        schema: a key of :data:`SCHEMAS`.
        lengths: T of each episode.
        columns: by field, all rows of all episodes.
    """

    schema: str
    lengths: Array
    columns: dict[str, Array]

    @staticmethod
    def random(schema: str, lengths: Array) -> Episodes:
        """Noise, which cannot be compressed, but for the flags and CartPole's reward, which is 1.

        The first number of an observation counts the rows of observations from 0, and so names them.
        """
        generator = np.random.default_rng(0)
        steps, points = int(lengths.sum()), int(lengths.sum()) + len(lengths)
        truncated = np.zeros(steps, np.bool_)
        truncated[lengths.cumsum() - 1] = True
        wide = schema != "CartPole"
        columns = {
            "observation": generator.standard_normal((points, 17 if wide else 4), np.float32),
            "action": generator.standard_normal((steps, 6), np.float32) if wide else generator.integers(0, 2, steps),
            "reward": generator.standard_normal(steps) if wide else np.ones(steps),
            "terminated": generator.random(steps) < 0.001,
            "truncated": truncated,
        }
        columns["observation"][:, 0] = np.arange(points)
        return Episodes(schema, lengths, columns)

    @cached_property
    def starts(self) -> Array:
        """The first transition of each episode; its first observation is as many further on as the episode's number."""
        return np.concatenate(([0], self.lengths.cumsum()[:-1]))

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in self.columns.values())

    def episode(self, number: int) -> dict[str, Array]:
        begin, length = int(self.starts[number]), int(self.lengths[number])
        rows = {name: column[begin : begin + length] for name, column in self.columns.items()}
        return {**rows, "observation": self.columns["observation"][begin + number : begin + number + length + 1]}

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (self.episode(number) for number in range(len(self.lengths)))

    @property
    def length(self) -> int:
        """T, where all episodes have the same."""
        return int(self.lengths[0])

    def transitions(self, reward: Any = np.float64) -> dict[str, Array]:
        """Rows of single transitions, with ``next_observation``; rewards in a dtype."""
        points = np.arange(len(self.columns["reward"])) + np.repeat(np.arange(len(self.lengths)), self.lengths)
        shown = self.columns["observation"]
        found = {**self.columns, "observation": shown[points], "next_observation": shown[points + 1]}
        return {**found, "reward": found["reward"].astype(reward, copy=False)}

    def check_batch(self, name: str, batch: Mapping[str, Any], size: tuple[int, ...], fields: Sequence[str]) -> None:
        """Raise AssertionError unless a batch is of this size and holds what was stored in the rows that it names."""
        points = np.asarray(batch["observation"])[..., 0].astype(np.int64)
        assert points.shape == size, f"{name}: expected {size} samples, got {points.shape}"
        assert len(np.unique(points)) > points.size // 2, f"{name}: the same rows again and again"
        first = self.starts + np.arange(len(self.lengths))
        rows = points - (np.searchsorted(first, points, "right") - 1)
        for field in fields:
            if field == "next_observation":
                expected = self.columns["observation"][points + 1]
            else:
                expected = self.columns[field][points if field == "observation" else rows]
            found = np.asarray(batch[field]).reshape(expected.shape)
            np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32), f"{name}: {field}")

    def check(self, name: str, number: int, found: dict[str, Any]) -> None:
        """Raise AssertionError unless this is an episode; the last observation may be missing."""
        for field, expected in self.episode(number).items():
            values = np.asarray(found[field])
            length = len(expected) - (field == "observation" and len(values) < len(expected))
            wanted = expected[:length].astype(values.dtype)
            np.testing.assert_array_equal(values.reshape(wanted.shape), wanted, f"{name}: {field}")


def write_ours(episodes: Episodes, folder: Path) -> None:
    with ReplayBuffer(folder, fields=SCHEMAS[episodes.schema], meta_fields=META) as buffer:
        for number, episode in enumerate(episodes):
            total = float(episode["reward"].sum())
            buffer.store_episode(**episode, episode_seed=number, episode_return=total, episode_complete=True)


def windows(buffer: ReplayBuffer, batch_size: int, **options: Any) -> Iterator[Any]:
    """Batches of whole windows, in random order, one epoch after another."""
    return forever(window_loader(buffer, batch_size, boundary="drop", shuffle=True, drop_last=True, seed=0, **options))


def write_numpy(episodes: Episodes, folder: Path) -> None:
    """A file for each field, and one for the lengths."""
    folder.mkdir()
    for name, column in {**episodes.columns, "length": episodes.lengths}.items():
        np.save(folder / f"{name}.npy", column)


def make_memmap(episodes: Episodes, folder: Path, max_timesteps: int) -> Any:
    """An empty buffer of memmap-replay-buffer with exactly the room that is needed, of its own dtypes."""
    observation, action = (episodes.columns[name].shape[1:] for name in ("observation", "action"))
    return memmap_buffer(folder, len(episodes.lengths), max_timesteps, memmap_fields(observation, action or None))


def write_memmap(episodes: Episodes, folder: Path, max_timesteps: int) -> Any:
    """Without last observations, for which it has no place; the buffer."""
    buffer = make_memmap(episodes, folder, max_timesteps)
    kinds = {name: array.dtype for name, array in buffer.data.items()}
    for episode in episodes:
        rows = {**episode, "observation": episode["observation"][:-1]}
        buffer.store_episode(**{name: values.astype(kinds[name], copy=False) for name, values in rows.items()})
    buffer.flush()
    return buffer


def write_torchrl(episodes: Episodes, folder: Path) -> None:
    """A LazyMemmapStorage of all transitions, with the dump that goes with it."""
    extended(folder / "storage", columns_of(episodes.transitions()), batch_size=256).dumps(folder)


def columns_of(rows: Mapping[str, Array]) -> dict[str, Any]:
    """Transitions as torchrl has them: what is one number a step is ``(count, 1)``."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in rows.items()}
    return nested({name: tensor[:, None] if name in AFTER else tensor for name, tensor in tensors.items()})


def extended(folder: Path, rows: Mapping[str, Any], **options: Any) -> Any:
    """torchrl's buffer of exactly these rows."""
    count = len(rows["action"])
    buffer = torchrl_buffer(count, folder, **options)
    buffer.extend(tensordict(rows, count))
    return buffer


def open_torchrl(folder: Path, count: int) -> Any:
    """Its buffer of transitions, as its documentation opens a storage where it lies."""
    buffer = torchrl_buffer(count, folder / "storage", batch_size=256)
    buffer.loads(folder)
    return buffer


def write_minari_hdf5(episodes: Episodes, folder: Path) -> None:
    write_minari(folder, list(episodes), "hdf5")


def write_minari_arrow(episodes: Episodes, folder: Path) -> None:
    write_minari(folder, list(episodes), "arrow")

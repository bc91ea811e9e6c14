"""What it costs to open a dataset: ``python -m benchmarks.open``.

From the path of a dataset to its first episode, and to the first shuffled batch of 256 transitions, for several numbers
of episodes of 25 steps. The clock starts when everything is imported, and after each contender has done the same
before; each run opens the dataset anew, and the files are in the page cache. What comes back is compared with what was
stored, outside of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.episodes import (
    Episodes,
    make_memmap,
    open_torchrl,
    write_minari_arrow,
    write_minari_hdf5,
    write_numpy,
    write_ours,
    write_torchrl,
)
from benchmarks.minari_datasets import open_minari, rows_of
from benchmarks.peers import Use, flat
from benchmarks.report import OURS
from benchmarks.suite import Suite, command, option
from gym_replay import ReplayBuffer

LENGTH, BATCH = 25, 256
SCHEMA = "obs 17, act 6"
FIELDS = ("observation", "action", "reward", "terminated", "truncated")
FLOOR = "numpy.load"
Opened = tuple[Any, dict[str, Any]]
"""What is to stay open until the clock has stopped, and the arrays."""


@dataclass(frozen=True)
class Size:
    episodes: tuple[int, ...] = option((100, 10_000, 100_000), "numbers of episodes")
    repeats: int = option(9, "runs of each contender")


SMOKE = Size(episodes=(20,), repeats=2)


class Dataset(NamedTuple):
    """A package's way to write episodes and to open them.

    Args:
        write: episodes to a folder.
        first: from the folder to its first episode.
        batch: from the folder and the number of episodes to the first batch; None where there are no batches.
        most: so many episodes at most, because writing them takes long.
    """

    write: Callable[[Episodes, Path], None]
    first: Callable[[Path, int], Opened]
    batch: Callable[[Path, int], Opened] | None
    most: int = 10**9


def ours_first(folder: Path, count: int) -> Opened:
    buffer = ReplayBuffer.from_folder(folder, read_only=True)
    episode = buffer.episode(0)
    return buffer, {name: episode[name].copy() for name in FIELDS}


def ours_batch(folder: Path, count: int) -> Opened:
    buffer = ReplayBuffer.from_folder(folder, read_only=True)
    return buffer, next(iter(buffer.dataloader(BATCH, n_steps=1, shuffle=True)))


def numpy_first(folder: Path, count: int) -> Opened:
    length = int(np.load(folder / "length.npy", mmap_mode="r")[0])
    columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in FIELDS}
    return columns, {name: np.array(column[: length + (name == FIELDS[0])]) for name, column in columns.items()}


def numpy_batch(folder: Path, count: int) -> Opened:
    columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in FIELDS}
    rows = np.random.default_rng().integers(0, len(columns["reward"]), BATCH)
    points = rows + rows // LENGTH
    observation = columns.pop("observation")
    batch = {name: column.take(rows, axis=0) for name, column in columns.items()}
    shown = {"observation": observation.take(points, axis=0), "next_observation": observation.take(points + 1, axis=0)}
    return columns, {**batch, **shown}


def write_memmap_whole(episodes: Episodes, folder: Path) -> None:
    """Through its arrays: what 100 000 calls of store_episode would leave behind."""
    buffer = make_memmap(episodes, folder, LENGTH)
    count = len(episodes.lengths)
    rows = episodes.transitions()
    for name, array in buffer.data.items():
        array[:] = rows[name].reshape(count, LENGTH, *array.shape[2:])
    buffer.episode_lens[:] = LENGTH
    buffer.num_episodes = count
    buffer.flush()


def _memmap(folder: Path) -> Any:
    return import_module("memmap_replay_buffer").ReplayBuffer.from_folder(folder, read_only=True)


def memmap_first(folder: Path, count: int) -> Opened:
    buffer = _memmap(folder)
    length = int(buffer.episode_lens[0])
    return buffer, {name: np.array(buffer.data[name][0, :length]) for name in FIELDS}


def memmap_batch(folder: Path, count: int) -> Opened:
    buffer = _memmap(folder)
    return buffer, next(iter(buffer.dataloader(BATCH, n_steps=1, shuffle=True, next_fields=("observation",))))


def minari_first(folder: Path, count: int) -> Opened:
    dataset = open_minari(folder)
    return dataset, rows_of(dataset[0])


def torchrl_first(folder: Path, count: int) -> Opened:
    buffer = open_torchrl(folder, count * LENGTH)
    return buffer, flat(buffer[:LENGTH])


def torchrl_batch(folder: Path, count: int) -> Opened:
    buffer = open_torchrl(folder, count * LENGTH)
    return buffer, flat(buffer.sample())


PEERS: dict[str, Use[Dataset]] = {
    "memmap-replay-buffer": Use(
        "memmap-replay-buffer",
        f"from_folder(read_only=True), max_timesteps={LENGTH}; dataloader(n_steps=1, shuffle=True)",
        Dataset(write_memmap_whole, memmap_first, memmap_batch),
    ),
    "torchrl": Use(
        "torchrl",
        "ReplayBuffer.loads where its LazyMemmapStorage lies; an episode is a slice whose length is known; sample with "
        "replacement",
        Dataset(write_torchrl, torchrl_first, torchrl_batch),
    ),
    "Minari": Use(
        "Minari",
        "HDF5, load_dataset and dataset[0]; up to 10 000 episodes, because writing them takes long",
        Dataset(write_minari_hdf5, minari_first, None, most=10_000),
    ),
    "Minari, Arrow": Use(
        "Minari, Arrow",
        "Arrow, load_dataset and dataset[0]; up to 100 episodes, because writing them takes long",
        Dataset(write_minari_arrow, minari_first, None, most=100),
    ),
}
NOTES = [
    "the floor maps one file for each field and copies the rows; it knows where they are",
    "cpprb and Stable-Baselines3: left out, they keep their data in memory",
]


def timed(load: Callable[[Path, int], Opened], folder: Path, count: int) -> float:
    """Milliseconds."""
    begin = time.perf_counter()
    opened = load(folder, count)
    taken = 1e3 * (time.perf_counter() - begin)
    del opened
    return taken


def measure(suite: Suite, size: Size) -> None:
    """Two tables for each number of episodes."""
    peers, notes = suite.peers(PEERS)
    datasets = {
        FLOOR: Dataset(write_numpy, numpy_first, numpy_batch),
        OURS: Dataset(write_ours, ours_first, ours_batch),
        **peers,
    }
    for count in size.episodes:
        compare(suite, datasets, [*NOTES, *notes], count, size.repeats)


def compare(suite: Suite, datasets: dict[str, Dataset], notes: list[str], count: int, repeats: int) -> None:
    """The tables of one number of episodes."""
    episodes = Episodes.random(SCHEMA, np.full(count, LENGTH))
    first: dict[str, Callable[[], float]] = {}
    batch: dict[str, Callable[[], float]] = {}
    for number, (name, dataset) in enumerate(datasets.items()):
        if count > dataset.most:
            continue
        folder = suite.folder / f"{count}-{number}"
        dataset.write(episodes, folder)
        episodes.check(name, 0, dataset.first(folder, count)[1])
        first[name] = partial(timed, dataset.first, folder, count)
        if dataset.batch is not None:
            episodes.check_batch(name, dataset.batch(folder, count)[1], (BATCH,), (*FIELDS, "next_observation"))
            batch[name] = partial(timed, dataset.batch, folder, count)
    title = f"Opening {count} episodes of {LENGTH} steps"
    suite.compare(f"{title}, and the first episode", "ms", first, repeats, notes=notes)
    suite.compare(f"{title}, and the first shuffled batch of {BATCH} transitions", "ms", batch, repeats, notes=notes)


if __name__ == "__main__":
    command("open", __doc__, measure, Size(), SMOKE)

"""What episodes take on the disk: ``python -m benchmarks.disk``.

Episodes of 10 to 40 steps where up to 500 are possible, with two sets of fields, after the files were closed. The
payload, which everything is compared with, is the arrays themselves: T+1 observations and T rows of the rest of each
episode. Sizes of files are as the files count them; blocks are those of the file system, folders included. Three
episodes of each are read back and compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.episodes import (
    SCHEMAS,
    Episodes,
    open_torchrl,
    write_memmap,
    write_minari_arrow,
    write_minari_hdf5,
    write_numpy,
    write_ours,
    write_torchrl,
)
from benchmarks.minari_datasets import open_minari, rows_of
from benchmarks.peers import Use, flat
from benchmarks.report import OURS, Table, Target
from benchmarks.suite import Suite, command, option
from gym_replay import ReplayBuffer

PAYLOAD = "payload"
TARGETS = {"obs 17, act 6": 1.05, "CartPole": 1.10}
LONGEST = 500


@dataclass(frozen=True)
class Size:
    episodes: int = option(1000, "episodes of 10 to 40 steps")


SMOKE = Size(episodes=20)


class Format(NamedTuple):
    """How episodes are written to a folder, and how one of them is read again."""

    write: Callable[[Episodes, Path], None]
    read: Callable[[Episodes, Path, int], dict[str, Any]]


def read_ours(episodes: Episodes, folder: Path, number: int) -> dict[str, Any]:
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        episode = buffer.episode(number)
        return {name: episode[name].copy() for name in episodes.columns}


def read_numpy(episodes: Episodes, folder: Path, number: int) -> dict[str, Any]:
    columns = {name: np.load(folder / f"{name}.npy") for name in episodes.columns}
    return Episodes(episodes.schema, np.load(folder / "length.npy"), columns).episode(number)


def read_memmap(episodes: Episodes, folder: Path, number: int) -> dict[str, Any]:
    buffer = import_module("memmap_replay_buffer").ReplayBuffer.from_folder(folder, read_only=True)
    length = int(buffer.episode_lens[number])
    return {name: np.array(column[number, :length]) for name, column in buffer.data.items()}


def read_minari(episodes: Episodes, folder: Path, number: int) -> dict[str, Any]:
    return rows_of(open_minari(folder)[number])


def read_torchrl(episodes: Episodes, folder: Path, number: int) -> dict[str, Any]:
    begin, length = int(episodes.starts[number]), int(episodes.lengths[number])
    return flat(open_torchrl(folder, len(episodes.columns["reward"]))[begin : begin + length])


PEERS: dict[str, Use[Format]] = {
    "memmap-replay-buffer": Use(
        "memmap-replay-buffer",
        f"max_timesteps={LONGEST}, as many max_episodes as there are; float32 and int32; no last observations",
        Format(partial(write_memmap, max_timesteps=LONGEST), read_memmap),
    ),
    "torchrl": Use(
        "torchrl",
        "LazyMemmapStorage of exactly the transitions, each with its next observation",
        Format(write_torchrl, read_torchrl),
    ),
    "Minari": Use("Minari", "HDF5", Format(write_minari_hdf5, read_minari)),
    "Minari, Arrow": Use("Minari, Arrow", "Arrow", Format(write_minari_arrow, read_minari)),
}
NOTES = [
    "NumPy is a .npy file for each field, and one for the lengths",
    "gym_replay has seed, return and completeness of each episode too, and its checksums",
    "cpprb and Stable-Baselines3: left out, they keep their data in memory",
]


def taken(format_: Format, name: str, episodes: Episodes, folder: Path) -> tuple[int, int]:
    """Bytes of the files, and of the blocks, of the episodes in a format."""
    format_.write(episodes, folder)
    for number in (0, len(episodes.lengths) // 2, len(episodes.lengths) - 1):
        episodes.check(name, number, format_.read(episodes, folder, number))
    everything = list(folder.rglob("*"))
    files = [path for path in everything if path.is_file()]
    return sum(path.stat().st_size for path in files), sum(path.stat().st_blocks * 512 for path in everything)


def measure(suite: Suite, size: Size) -> None:
    """A table for each schema."""
    peers, notes = suite.peers(PEERS)
    formats = {"NumPy": Format(write_numpy, read_numpy), OURS: Format(write_ours, read_ours), **peers}
    lengths = np.random.default_rng(0).integers(10, 41, size.episodes)
    for schema in SCHEMAS:
        episodes = Episodes.random(schema, lengths)
        measured, blocks = {PAYLOAD: [episodes.nbytes / 1e6]}, {}
        for number, (name, format_) in enumerate(formats.items()):
            files, allocated = taken(format_, name, episodes, suite.folder / f"{schema}-{number}")
            measured[name] = [files / 1e6]
            blocks[name] = [allocated / episodes.nbytes]
        suite.add(
            Table(
                f"On the disk: {schema}, {size.episodes} episodes of 10 to 40 steps",
                "MB of files",
                PAYLOAD,
                measured,
                targets=[Target(OURS, TARGETS[schema], of=PAYLOAD)],
                notes=[*NOTES, *notes],
                extras={"blocks, x of payload": blocks},
            )
        )


if __name__ == "__main__":
    command("disk", __doc__, measure, Size(), SMOKE)

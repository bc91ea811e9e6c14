"""100 million steps in a million episodes, really written, next to one million: ``python -m benchmarks.load --large``.

It takes 2.4 GB of disk, and minutes to write.
"""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.floors import bare, column
from benchmarks.growing import open_afresh
from benchmarks.report import OURS, Table, Target
from benchmarks.suite import Suite
from benchmarks.timing import forever, per_item, take_turns
from gym_replay import Field, ReplayBuffer

SIZES = {"1 M steps": 10_000, "100 M steps": 1_000_000}
FIELDS = {"observation": Field("float32", (4,), state=True), "action": "uint8", "reward": "float32"}


def large(suite: Suite, batches: int, repeats: int) -> None:
    """How batches, the first batch and the memory grow with the number of steps."""
    turns = {}
    for title, episodes in SIZES.items():
        folder = suite.folder / title.replace(" ", "")
        _write(folder, episodes)
        print(f"{title}: written", file=sys.stderr)
        opened = ReplayBuffer.from_folder(folder, read_only=True)
        loader = opened.dataloader(256, n_steps=1, shuffle=True, drop_last=True)
        for batch in itertools.islice(loader, 3):
            shown, after = (batch[entry][:, :2].long() for entry in ("observation", "next_observation"))
            row, following = shown[:, 0] * 4096 + shown[:, 1], after[:, 0] * 4096 + after[:, 1]
            assert torch.equal(following, row + 1)
            assert torch.equal(batch["reward"], batch["observation"][:, 2])
        for name, iterator in (
            (title, forever(loader)),
            (f"numpy.take, {title}", bare(_columns(folder), _rows(episodes))),
        ):
            turns[name] = lambda iterator=iterator: per_item(iterator, batches)
    one, many = SIZES
    measured = take_turns(turns, repeats)
    targets = [Target(many, 1.5, of=one)]
    title = "1 M episodes of 100 steps (observation 4, action, reward), n-step batches of 256, shuffled"
    suite.add(Table(title, "us per batch", one, measured, targets))
    gc.collect()
    openings = [open_afresh(suite.folder / "100Msteps", 1000) for _ in range(repeats)]
    seconds, megabytes = [one.first / 1000 for one in openings], [one.held_later for one in openings]
    targets = [Target(OURS, 1.0)]
    suite.add(
        Table(
            "100 M steps: from opening to the first batch",
            "s",
            OURS,
            {OURS: seconds},
            targets,
        )
    )
    targets = [Target(OURS, 200.0)]
    suite.add(
        Table(
            "100 M steps: own memory after 1000 batches",
            "MiB",
            OURS,
            {OURS: megabytes},
            targets,
        )
    )


def _columns(folder: Path) -> dict[str, tuple[npt.NDArray[Any], int]]:
    """What a batch is made of."""
    columns = {name: (column(folder, name), 0) for name in FIELDS}
    return columns | {"next_observation": (columns["observation"][0], 1)}


def _rows(episodes: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of transitions, 256 at a time, chosen before."""
    steps = np.random.default_rng(0).integers(0, 100 * episodes, (4096, 256))
    return itertools.cycle(list(steps + steps // 100))  # after each episode comes its last observation


def _write(folder: Path, episodes: int) -> None:
    """A buffer of so many episodes, in the page cache."""
    with ReplayBuffer(folder, fields=FIELDS) as buffer:
        for begin in range(0, episodes, 1000):
            _store_many(buffer, begin)
    for path in folder.rglob("*.npy"):
        with path.open("rb") as stream:
            while stream.read(1 << 24):
                pass


def _store_many(buffer: ReplayBuffer, begin: int) -> None:
    rows = (np.arange(begin, begin + 1000)[:, None] * 101 + np.arange(101)).astype(np.int64)
    observation = np.stack((rows // 4096, rows % 4096, rows % 1000, rows % 7), axis=-1).astype(np.float32)
    with buffer.batched_episode(1000):
        for t in range(100):
            buffer.store_batch(observation=observation[:, t], action=rows[:, t] % 7, reward=observation[:, t, 2])
        buffer.store_final(observation=observation[:, 100])

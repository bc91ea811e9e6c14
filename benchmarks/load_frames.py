"""Stacks of four frames and the next one, from frames that are stored once, for ``benchmarks.load``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.episodes import windows
from benchmarks.peers import Use, memmap_buffer, tensordict, torchrl_buffer, torchrl_slices
from benchmarks.report import OURS, Target
from benchmarks.suite import Suite
from benchmarks.timing import batches_in_turns, forever
from gym_replay import Field, ReplayBuffer

LENGTH, STACK, BATCH = 500, 5, 256
"""Frames of an episode but one; four frames and the next one; samples of a batch."""


@dataclass(frozen=True)
class Frames:
    """Episodes of ``(episodes, 501, 84, 84)`` bytes; the first two of a frame are its number."""

    shown: npt.NDArray[np.uint8]
    folder: Path

    @staticmethod
    def random(episodes: int, folder: Path) -> Frames:
        shown = np.random.default_rng(3).integers(0, 256, (episodes, LENGTH + 1, 84, 84), np.uint8)
        numbers = np.arange(episodes * (LENGTH + 1), dtype="<u2").reshape(episodes, LENGTH + 1)
        shown[:, :, 0, :2] = numbers[..., None].view(np.uint8)
        return Frames(shown, folder)

    def check(self, name: str, frames: Any) -> None:
        """Raise AssertionError unless these ``(256, 5, 84, 84)`` are stacks of what was stored."""
        found = np.ascontiguousarray(frames)
        assert found.shape == (BATCH, STACK, 84, 84), f"{name}: {found.shape}"
        numbers = np.ascontiguousarray(found[:, :, 0, :2]).view("<u2")[..., 0].astype(np.int64)
        assert (np.diff(numbers, axis=1) == 1).all(), f"{name}: not one frame after the other"
        assert len(np.unique(numbers[:, 0])) > BATCH // 4, f"{name}: the same stacks again and again"
        np.testing.assert_array_equal(found, self.shown.reshape(-1, 84, 84)[numbers], name)


def ours(frames: Frames) -> Iterator[torch.Tensor]:
    folder = frames.folder / "buffer"
    with ReplayBuffer(folder, fields={"observation": Field("uint8", (84, 84), state=True), "action": "int"}) as buffer:
        for shown in frames.shown:
            buffer.store_episode(observation=shown, action=np.zeros(LENGTH, np.int64))
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        for batch in windows(buffer, BATCH, offsets={"observation": range(-3, 2)}, fields=()):
            yield batch["observation"]


def torchrl(frames: Frames) -> Iterator[Any]:
    rows = frames.shown.reshape(-1, 84, 84)
    episode = torch.arange(len(frames.shown)).repeat_interleave(LENGTH + 1)
    buffer = torchrl_buffer(len(rows), frames.folder / "torchrl", BATCH * STACK, torchrl_slices(STACK))
    buffer.extend(tensordict({"observation": torch.from_numpy(rows), "episode": episode}, len(rows)))
    while True:
        yield buffer.sample()["observation"].reshape(BATCH, STACK, 84, 84)


def memmap_replay_buffer(frames: Frames) -> Iterator[Any]:
    fields = {"observation": ("uint8", (84, 84))}
    buffer = memmap_buffer(frames.folder / "memmap", len(frames.shown), LENGTH + 1, fields)
    for shown in frames.shown:
        buffer.store_episode(observation=shown)
    for batch in forever(memmap_windows(buffer, BATCH, STACK, ("observation",))):
        yield batch["observation"]


def memmap_windows(buffer: Any, batch_size: int, length: int, fields: tuple[str, ...]) -> Any:
    """A loader of random windows; one sample of its dataset is one window of an episode."""
    windows = import_module("memmap_replay_buffer").ReplayDatasetTimeWindow(buffer, length, fields=fields)
    drawn = torch.utils.data.RandomSampler(windows, replacement=True, num_samples=100_000)
    return buffer.dataloader(batch_size, dataset=windows, sampler=drawn, drop_last=True)


PEERS: dict[str, Use[Callable[[Frames], Iterator[Any]]]] = {
    "torchrl": Use(
        "torchrl",
        "ReplayBuffer of LazyMemmapStorage, SliceSampler(cache_values=True, truncated_key=None)",
        torchrl,
    ),
    "memmap-replay-buffer": Use(
        "memmap-replay-buffer",
        "dataloader(dataset=ReplayDatasetTimeWindow(...)), drawn with replacement, no workers",
        memmap_replay_buffer,
    ),
}


def frames(suite: Suite, episodes: int, batches: int, repeats: int) -> None:
    """The table."""
    data = Frames.random(episodes, suite.folder / "frames")
    peers, notes = suite.peers(PEERS)
    loaders = {OURS: ours(data), **{name: make(data) for name, make in peers.items()}}
    for name, iterator in loaders.items():
        data.check(name, next(iterator))
    path = data.folder / "buffer" / "steps" / "observation.npy"
    array = np.load(path, mmap_mode="r").view(np.ndarray)
    tensor = torch.from_numpy(np.load(path, mmap_mode="c").view(np.ndarray))
    generator = np.random.default_rng(4)
    lot = []
    for _ in range(200):
        first = generator.integers(0, episodes, BATCH) * (LENGTH + 1) + generator.integers(0, LENGTH - 4, BATCH)
        lot.append(first[:, None] + np.arange(STACK))
    select, take = "torch.index_select", "numpy.take"
    contenders: dict[str, Iterator[Any]] = {
        select: (torch.index_select(tensor, 0, torch.from_numpy(rows.reshape(-1))) for rows in itertools.cycle(lot)),
        take: (array.take(rows, axis=0) for rows in itertools.cycle(lot)),
        **loaders,
    }
    suite.compare(
        "84x84 uint8 frames, stacks of 4 and the next one, 256 a batch; shuffled",
        "us per batch",
        batches_in_turns(contenders, batches),
        repeats,
        targets=[Target(OURS, 1.25, of=floor) for floor in (select, take)],
        notes=notes,
    )

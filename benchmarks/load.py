"""What it costs to load, next to public peers and bare copies: ``python -m benchmarks.load``.

In each table the contenders take turns, and each goes on where it stopped the turn before. All read the same data from
the page cache, after every one of them was asked for a batch that was compared with what was stored. Batches are torch
tensors of the loader that users call; a floor copies the same rows, chosen before the clock starts, with one NumPy or
torch call per field, and nothing else. No loader has worker processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.episodes import SCHEMAS, Episodes
from benchmarks.episodes import windows as shuffled_windows
from benchmarks.load_frames import frames
from benchmarks.load_peers import ALL, TRAJECTORIES, TRANSITIONS, WINDOWS, Batch, Stored
from benchmarks.report import OURS, Target
from benchmarks.suite import Suite, command, option
from benchmarks.timing import batches_in_turns, forever
from gym_replay import ConcatReplayBuffer, ReplayBuffer

SCHEMA = "obs 17, act 6"
FIELDS = SCHEMAS[SCHEMA]
TRANSITION = ["observation", "next_observation", "action", "reward", "terminated"]


@dataclass(frozen=True)
class Size:
    episodes: int = option(1000, "episodes")
    length: int = option(1000, "steps of an episode")
    frames: int = option(60, "episodes of 500 frames")
    batches: int = option(1000, "batches of a run, at most")
    repeats: int = option(9, "runs of each contender")
    only: str = option("", "only tables whose name begins so: transitions, windows, trajectories, frames")


SMOKE = Size(episodes=80, length=40, frames=2, batches=20, repeats=2)


@dataclass(frozen=True)
class Setting:
    """What the tables are made of: the suite, its size, the data, and a buffer with it."""

    suite: Suite
    size: Size
    data: Episodes
    buffer: ReplayBuffer
    stored: Stored
    stack: ExitStack


def column(folder: Path, name: str) -> npt.NDArray[Any]:
    """A field's rows as a plain array over the file."""
    return np.load(folder / "steps" / f"{name}.npy", mmap_mode="r").view(np.ndarray)


def bare(columns: Mapping[str, tuple[npt.NDArray[Any], int]], rows: Iterator[Any]) -> Iterator[list[Any]]:
    """The columns at the rows, each shifted as its entry says, by ``numpy.take``."""
    pairs = list(columns.values())
    for some in rows:
        yield [array.take(some + shift if shift else some, axis=0) for array, shift in pairs]


def store(episodes: Episodes, folder: Path, begin: int = 0, end: int | None = None) -> ReplayBuffer:
    """A buffer with the episodes ``begin .. end``, open for reading."""
    with ReplayBuffer(folder, fields=FIELDS) as buffer:
        for episode in itertools.islice(episodes, begin, end):
            buffer.store_episode(**episode)
    return ReplayBuffer.from_folder(folder, read_only=True)


def compare(
    suite: Suite,
    title: str,
    contenders: Mapping[str, Iterator[Any]],
    batches: int,
    repeats: int,
    *,
    targets: list[Target],
    notes: list[str],
) -> None:
    """A table of iterators over batches."""
    suite.compare(title, "us per batch", batches_in_turns(contenders, batches), repeats, targets=targets, notes=notes)


def peers_for(
    setting: Setting, uses: Any, size: tuple[int, ...], fields: Sequence[str]
) -> tuple[dict[str, Iterator[Batch]], list[str]]:
    """The batches of each peer that is installed and gives back what it was given."""
    found, notes = setting.suite.peers(uses)
    batches = {name: make(setting.stored) for name, make in found.items()}
    for name, iterator in batches.items():
        setting.data.check_batch(name, next(iterator), size, fields)
    return batches, notes


def shuffled(data: Episodes, count: int, length: int = 1) -> Iterator[npt.NDArray[np.int64]]:
    """Batches of rows, ``(count,)`` or ``(count, length)``, which stay in their episodes."""
    episodes, steps = len(data.lengths), data.length
    generator = np.random.default_rng(1)
    lot = []
    for _ in range(2000):
        first = generator.integers(0, episodes, count) * (steps + 1) + generator.integers(0, steps - length + 1, count)
        lot.append(first if length == 1 else first[:, None] + np.arange(length))
    return itertools.cycle(lot)


def transitions(setting: Setting) -> None:
    """N-step batches, of one buffer and of a concatenation."""
    data, buffer, size = setting.data, setting.buffer, setting.size
    folder = Path(buffer.folder)
    eighths = np.linspace(0, len(data.lengths), 9).astype(int).tolist()
    parts = [store(data, setting.suite.folder / f"part{k}", *eighths[k : k + 2]) for k in range(8)]
    for part in parts:
        setting.stack.enter_context(part)
    ours = forever(buffer.dataloader(256, n_steps=1, shuffle=True, drop_last=True))
    joined = forever(ConcatReplayBuffer(parts).dataloader(256, n_steps=1, shuffle=True, drop_last=True))
    for name, batches in ((OURS, ours), ("concatenation", joined)):
        data.check_batch(name, next(batches), (256,), [*TRANSITION, "truncated"])
    peers, notes = peers_for(setting, TRANSITIONS, (256,), TRANSITION)
    columns = {name: (column(folder, name), 0) for name in FIELDS}
    columns["next_observation"] = columns["observation"][0], 1
    floor, eight = "numpy.take", f"{OURS}, 8 buffers as one"
    limits = {"memmap-replay-buffer": 100.0, "torchrl": 3.0, "cpprb": 1.5}
    compare(
        setting.suite,
        "N-step batches of 256: observation 17, action 6, reward, flags, next observation; shuffled",
        {floor: bare(columns, shuffled(data, 256)), OURS: ours, eight: joined, **peers},
        size.batches,
        size.repeats,
        targets=[
            Target(OURS, 2.0, of=floor),
            Target(eight, 1.5, of=OURS),
            *(Target(name, limit, of=OURS, at_least=True) for name, limit in limits.items()),
        ],
        notes=[*notes, NO_TRANSITIONS],
    )


def windows(setting: Setting) -> None:
    """64 windows of 16 steps."""
    data, buffer, size = setting.data, setting.buffer, setting.size
    names = ["observation", "action", "reward"]
    ours = shuffled_windows(buffer, 64, length=16, fields=names)
    data.check_batch(OURS, next(ours), (64, 16), names)
    columns = {name: (column(Path(buffer.folder), name), 0) for name in names}
    peers, notes = peers_for(setting, WINDOWS, (64, 16), names)
    floor = "numpy.take"
    compare(
        setting.suite,
        "Windows of 16 steps, 64 a batch: observation, action, reward; shuffled",
        {floor: bare(columns, shuffled(data, 64, 16)), OURS: ours, **peers},
        size.batches,
        size.repeats,
        targets=[Target(OURS, 2.0, of=floor), Target("torchrl", 6.0, of=OURS, at_least=True)],
        notes=notes,
    )


def copied(data: Episodes, folder: Path, names: Sequence[str]) -> Iterator[list[Any]]:
    """Batches of eight episodes, each copied field by field."""
    length = data.length
    columns = [column(folder, name) for name in names]
    generator = np.random.default_rng(2)
    lot = generator.integers(0, len(data.lengths), (500, 8)) * (length + 1)
    for starts in itertools.cycle(lot.tolist()):
        batch = []
        for array in columns:
            out = np.empty((8, length, *array.shape[1:]), array.dtype)
            for place, start in enumerate(starts):
                np.copyto(out[place], array[start : start + length])
            batch.append(out)
        yield batch


def trajectories(setting: Setting) -> None:
    """Whole episodes."""
    data, buffer, size = setting.data, setting.buffer, setting.size
    length = data.length
    ours = forever(buffer.dataloader(8, shuffle=True, drop_last=True))
    data.check_batch(OURS, next(ours), (8, length), ALL)
    peers, notes = peers_for(setting, TRAJECTORIES, (8, length), ALL)
    floor = "memcpy"
    compare(
        setting.suite,
        f"Trajectories of {length} steps, 8 a batch: all fields",
        {floor: copied(data, Path(buffer.folder), ALL), OURS: ours, **peers},
        size.batches // 4,
        size.repeats,
        targets=[Target(OURS, 1.5, of=floor), Target("memmap-replay-buffer", 3.0, of=OURS, at_least=True)],
        notes=notes,
    )


def measure(suite: Suite, size: Size) -> None:
    """All tables."""
    data = Episodes.random(SCHEMA, np.full(size.episodes, size.length))
    with ExitStack() as stack:
        buffer = stack.enter_context(store(data, suite.folder / "buffer"))
        setting = Setting(suite, size, data, buffer, Stored(data, suite.folder), stack)
        tables: dict[str, Callable[[], None]] = {
            "transitions": lambda: transitions(setting),
            "windows": lambda: windows(setting),
            "trajectories": lambda: trajectories(setting),
            "frames": lambda: frames(suite, size.frames, size.batches // 20, size.repeats),
        }
        for name, table in tables.items():
            if name.startswith(size.only):
                table()


NO_TRANSITIONS = "Minari: left out, it serves whole episodes"


if __name__ == "__main__":
    command("load", __doc__, measure, Size(), SMOKE)

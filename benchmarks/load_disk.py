"""Loading data four times larger than the memory allowed: ``python -m benchmarks.load_disk``.

Each contender is a process of its own in a control group with a memory limit, which counts the page cache too, and
begins with none of the data in it. The floor reads the files one after the other from their beginning, in large pieces.
``shuffle="block"`` loads a whole epoch, each row once; ``shuffle=True``, the random order, as many batches as there is
time for. Rates are bytes of the delivered rows by the time from opening the buffer on; torch and the loaders were
imported before.

Two kinds of rows: frames of 84x84 bytes, and rows of 102 bytes, of which gathering alone may take longer than the disk
does to read them.
"""

from __future__ import annotations

import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.memory_limit import MemoryLimit, in_turns
from benchmarks.report import Table, Target
from benchmarks.suite import Suite, command, option
from gym_replay import Field, ReplayBuffer
from gym_replay.buffer.loading import loaders  # noqa: F401 - with torch, which is no part of what is measured

KINDS: dict[str, dict[str, Any]] = {
    "frames": {"observation": Field("uint8", (84, 84)), "action": "int", "reward": "float64"},
    "vectors": {
        "observation": Field("float32", (17,)),
        "action": Field("float32", (6,)),
        "reward": "float64",
        "terminated": "bool",
        "truncated": "bool",
    },
}
TITLES = {"frames": "frames of 84x84 bytes, action, reward", "vectors": "observation 17, action 6, reward, flags"}
CONTENDERS = ("read in order", "shuffle='block'", "shuffle=True")
MEASURED = ("MB/s", "user s", "system s", "peak, MB")
LENGTH = 1000
PIECE = 8 << 20
TIMES = 4


@dataclass(frozen=True)
class Size:
    gigabytes: float = option(4.0, "of rows of each kind")
    repeats: int = option(5, "rounds")
    seconds: float = option(20.0, "a run takes at most")
    workers: int = option(0, "of the loaders")
    only: str = option("", f"only one kind of rows: {', '.join(KINDS)}")


SMOKE = Size(gigabytes=0.05, repeats=1, seconds=1.0)


def episode_of(kind: str) -> dict[str, npt.NDArray[Any]]:
    """What is in every episode, but for the reward, which counts the transitions of all of them."""
    generator = np.random.default_rng(0)
    drawn = {}
    for name, info in KINDS[kind].items():
        field = info if isinstance(info, Field) else Field(info)
        numbers = generator.integers(0, 256 if field.dtype == np.uint8 else 2, (LENGTH, *field.shape))
        drawn[name] = numbers.astype(field.dtype)
    return drawn


def store(folder: Path, kind: str, nbytes: int) -> None:
    """Write episodes of so many bytes in all."""
    episode = episode_of(kind)
    with ReplayBuffer(folder, fields=KINDS[kind]) as buffer:
        for number in range(max(1, nbytes // sum(array.nbytes for array in episode.values()))):
            episode["reward"] = np.arange(number * LENGTH, (number + 1) * LENGTH, dtype=np.float64)
            buffer.store_episode(**episode)


def columns(folder: Path) -> list[Path]:
    """The files of the rows."""
    return sorted((folder / "steps").rglob("*.npy"))


def read_in_order(folder: Path) -> tuple[int, float]:
    """Bytes and seconds of reading each file from its beginning to its end."""
    piece = bytearray(PIECE)
    begin, total = time.perf_counter(), 0
    for path in columns(folder):
        with path.open("rb", buffering=0) as stream:
            while count := stream.readinto(piece):
                total += count
    return total, time.perf_counter() - begin


def load(folder: Path, shuffle: bool | str, seconds: float, options: dict[str, Any]) -> tuple[int, float]:
    """Bytes and seconds of one epoch, or of as much of it as there is time for."""
    expected = episode_of(folder.name)
    begin = time.perf_counter()
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        loader = buffer.dataloader(256, timestep_level=True, shuffle=shuffle, seed=1, dtype="stored", **options)
        loaded = 0
        for number, batch in enumerate(loader):
            if number < 4:
                check(expected, batch)
            loaded += len(batch["reward"])
            if number % 16 == 0 and time.perf_counter() - begin > seconds:
                break
        else:
            assert loaded == buffer.num_steps
        taken = time.perf_counter() - begin
        return loaded * sum(values[0].nbytes for values in batch.values()), taken


def check(expected: dict[str, npt.NDArray[Any]], batch: dict[str, Any]) -> None:
    """Raise AssertionError unless the rows are what was stored: the reward says which they are."""
    numbers = batch["reward"].numpy().astype(np.int64)
    assert len(np.unique(numbers)) == len(numbers)
    for name, values in batch.items():
        wanted = numbers.astype(np.float64) if name == "reward" else expected[name][numbers % LENGTH]
        np.testing.assert_array_equal(values.numpy(), wanted)


def run(folder: str, contender: str, seconds: float, workers: int) -> dict[str, float]:
    """What one contender does, in a process of its own."""
    if contender == CONTENDERS[0]:
        nbytes, taken = read_in_order(Path(folder))
    else:
        shuffle = "block" if "block" in contender else True
        nbytes, taken = load(Path(folder), shuffle, seconds, {"num_workers": workers})
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"MB/s": nbytes / taken / 1e6, "user s": usage.ru_utime, "system s": usage.ru_stime}


def measure(suite: Suite, size: Size) -> None:
    """A table for each kind of rows."""
    for kind in (kind for kind in KINDS if kind.startswith(size.only)):
        folder = suite.folder / kind
        store(folder, kind, int(1e9 * size.gigabytes))
        limit = sum(path.stat().st_size for path in columns(folder)) // TIMES

        def call(limited: MemoryLimit, name: str, folder: Path = folder) -> dict[str, float]:
            found = limited.call("benchmarks.load_disk", "run", folder, name, size.seconds, size.workers)
            return {**found, "peak, MB": (limited.peak or 0) / 1e6}

        found = in_turns(folder, limit, CONTENDERS, size.repeats, call)
        rates, *extras = ({name: [one[what] for one in rounds] for name, rounds in found.items()} for what in MEASURED)
        suite.add(
            Table(
                f"{TITLES[kind]}; {size.gigabytes:g} GB, {limit / 1e6:.0f} MB of memory allowed, cold page cache",
                MEASURED[0],
                CONTENDERS[0],
                rates,
                targets=[Target(CONTENDERS[1], 0.7, of=CONTENDERS[0], at_least=True)],
                extras=dict(zip(MEASURED[1:], extras, strict=True)),
            )
        )
        shutil.rmtree(folder)


if __name__ == "__main__":
    command("load_disk", __doc__, measure, Size(), SMOKE)

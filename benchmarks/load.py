"""What it costs to load, next to public peers and bare copies: ``python -m benchmarks.load``.

In each table the contenders take turns, and each goes on where it stopped the turn before. All read the same data from
the page cache, after every one of them was asked for a batch that was compared with what was stored. Batches are torch
tensors of the loader that users call; a floor copies the same rows, chosen before the clock starts, with one NumPy or
torch call per field, and nothing else. A peer that is not installed is left out with a line that says so.

``--large`` adds 100 million steps in a million episodes, which take 2.4 GB of disk and minutes to write.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.load_peers import PEERS, Batch, Data, check
from benchmarks.timing import spread, take_turns
from gym_replay import ConcatReplayBuffer, Field, ReplayBuffer, window_loader

FIELDS = {
    "observation": Field("float32", (17,), state=True),
    "action": Field("float32", (6,)),
    "reward": "float64",
    "terminated": "bool",
    "truncated": "bool",
}
OURS = "gym_replay"
TRANSITION = ["observation", "next_observation", "action", "reward", "terminated"]


def store(data: Data, folder: Path, begin: int = 0, end: int | None = None) -> ReplayBuffer:
    """A buffer with the episodes ``begin .. end``, open for reading."""
    with ReplayBuffer(folder, fields=FIELDS) as buffer:
        for k in range(len(data.action))[begin:end]:
            buffer.store_episode(**{name: getattr(data, name)[k] for name in FIELDS})
    return ReplayBuffer.from_folder(folder, read_only=True)


def forever(loader: Any) -> Iterator[Batch]:
    while True:
        yield from loader


def column(folder: Path, name: str) -> npt.NDArray[Any]:
    """A field's rows as a plain array over the file."""
    return np.load(folder / "steps" / f"{name}.npy", mmap_mode="r").view(np.ndarray)


def run(batches: Iterator[Any], count: int) -> float:
    """Microseconds per batch."""
    begin = time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    return 1e6 * (time.perf_counter() - begin) / count


class Suite:
    """The tables, what they were measured from, and where files are written."""

    def __init__(self, folder: Path, repeats: int, batches: int) -> None:
        self.folder, self.repeats, self.batches = folder, repeats, batches
        self.measured: dict[str, dict[str, list[float]]] = {}
        self.notes: list[str] = []

    def peers(self, kind: str, data: Data, size: tuple[int, ...], fields: list[str]) -> dict[str, Iterator[Batch]]:
        """The batches of each peer that is installed and gives back what it was given."""
        found = {}
        for name, peer in PEERS.items():
            make = getattr(peer, kind)
            if make is None:
                continue
            try:
                batches = make(data, self.folder / f"{kind}-{name}")
                check(name, data, next(batches), size, fields)
                note = f"{name} {version(peer.distribution)}: {peer.use}"
            except ImportError as error:
                note = f"{name}: left out, not installed ({error})"
            else:
                found[name] = batches
            if note not in self.notes:
                self.notes.append(note)
        return found

    def compare(self, title: str, contenders: Mapping[str, Iterator[Any]], *, batches: int, target: str) -> None:
        """Print one table; the first contender is what the others are compared with."""
        # A peer that takes a hundred times as long gets fewer batches.
        counts = {}
        for name, iterator in contenders.items():
            once = run(iterator, 4)
            counts[name] = max(4, min(batches, int(3e5 / once)))
        measured = take_turns(
            {name: partial(run, iterator, counts[name]) for name, iterator in contenders.items()}, self.repeats
        )
        self.measured[title] = measured
        baseline = measured[next(iter(contenders))]
        print(f"\n{title}\n{'':<24} {'x of the first':<24} {'x of ' + OURS:<24} us per batch")
        for name, values in measured.items():
            ratio = spread([mine / base for mine, base in zip(values, baseline, strict=True)])
            other = spread([mine / base for mine, base in zip(values, measured[OURS], strict=True)])
            print(f"{name:<24} {ratio:<24} {other:<24} {statistics.median(values):.1f}")
        print(f"target: {target}", flush=True)


def bare(columns: Mapping[str, tuple[npt.NDArray[Any], int]], rows: Iterator[Any]) -> Iterator[list[Any]]:
    """The columns at the rows, each shifted as its entry says, by ``numpy.take``."""
    pairs = list(columns.values())
    for some in rows:
        yield [array.take(some + shift if shift else some, axis=0) for array, shift in pairs]


def shuffled(data: Data, count: int, length: int = 1) -> Iterator[npt.NDArray[np.int64]]:
    """Batches of rows, ``(count,)`` or ``(count, length)``, which stay in their episodes."""
    episodes, steps = data.action.shape[:2]
    generator = np.random.default_rng(1)
    lot = []
    for _ in range(2000):
        first = generator.integers(0, episodes, count) * (steps + 1) + generator.integers(0, steps - length + 1, count)
        lot.append(first if length == 1 else first[:, None] + np.arange(length))
    return itertools.cycle(lot)


def transitions(suite: Suite, data: Data, buffer: ReplayBuffer, stack: ExitStack) -> None:
    """N-step batches, of one buffer and of a concatenation."""
    folder = Path(buffer.folder)
    eighths = np.linspace(0, len(data.action), 9).astype(int).tolist()
    parts = [store(data, suite.folder / f"part{k}", *eighths[k : k + 2]) for k in range(8)]
    for part in parts:
        stack.enter_context(part)
    ours = forever(buffer.dataloader(256, n_steps=1, shuffle=True, drop_last=True))
    joined = forever(ConcatReplayBuffer(parts).dataloader(256, n_steps=1, shuffle=True, drop_last=True))
    for name, batches in ((OURS, ours), ("concatenation", joined)):
        check(name, data, next(batches), (256,), [*TRANSITION, "truncated"])
    peers = suite.peers("transitions", data, (256,), TRANSITION)
    columns = {name: (column(folder, name), 0) for name in FIELDS}
    columns["next_observation"] = columns["observation"][0], 1
    suite.compare(
        "N-step batches of 256: observation 17, action 6, reward, flags, next observation; shuffled",
        {
            "numpy.take": bare(columns, shuffled(data, 256)),
            OURS: ours,
            f"{OURS}, 8 buffers as one": joined,
            **peers,
        },
        batches=suite.batches,
        target="2 times numpy.take; 100, 3, 1.5 and 2 times less than the peers; 8 buffers as one 1.5 times one",
    )


def windows(suite: Suite, data: Data, buffer: ReplayBuffer) -> None:
    """64 windows of 16 steps."""
    names = ["observation", "action", "reward"]
    ours = forever(window_loader(buffer, 64, length=16, fields=names, boundary="drop", shuffle=True, drop_last=True))
    check(OURS, data, next(ours), (64, 16), names)
    columns = {name: (column(Path(buffer.folder), name), 0) for name in names}
    suite.compare(
        "Windows of 16 steps, 64 a batch: observation, action, reward; shuffled",
        {
            "numpy.take": bare(columns, shuffled(data, 64, 16)),
            OURS: ours,
            **suite.peers("windows", data, (64, 16), names),
        },
        batches=suite.batches,
        target="2 times numpy.take; 6 times less than torchrl",
    )


def trajectories(suite: Suite, data: Data, buffer: ReplayBuffer) -> None:
    """Whole episodes."""
    length = data.action.shape[1]
    columns = [column(Path(buffer.folder), name) for name in FIELDS]
    generator = np.random.default_rng(2)

    def copied() -> Iterator[list[Any]]:
        lot = generator.integers(0, len(data.action), (500, 8)) * (length + 1)
        for starts in itertools.cycle(lot.tolist()):
            batch = []
            for array in columns:
                out = np.empty((8, length, *array.shape[1:]), array.dtype)
                for place, start in enumerate(starts):
                    np.copyto(out[place], array[start : start + length])
                batch.append(out)
            yield batch

    ours = forever(buffer.dataloader(8, shuffle=True, drop_last=True))
    check(OURS, data, next(ours), (8, length), ["observation", "action", "reward", "terminated", "truncated"])
    fields = ["observation", "action", "reward", "terminated"]
    suite.compare(
        f"Trajectories of {length} steps, 8 a batch: all fields",
        {"memcpy": copied(), OURS: ours, **suite.peers("trajectories", data, (8, length), fields)},
        batches=suite.batches // 4,
        target="1.5 times memcpy; 3 times less than memmap-replay-buffer",
    )


def frames(suite: Suite) -> None:
    """Stacks of four frames and the next one, from frames that are stored once."""
    episodes, length = 60, 500
    folder = suite.folder / "frames"
    generator = np.random.default_rng(3)
    with ReplayBuffer(folder, fields={"observation": Field("uint8", (84, 84), state=True), "action": "int"}) as buffer:
        for _ in range(episodes):
            shown = generator.integers(0, 256, (length + 1, 84, 84), np.uint8)
            buffer.store_episode(observation=shown, action=np.zeros(length, np.int64))
    array = column(folder, "observation")
    tensor = torch.from_numpy(np.load(folder / "steps" / "observation.npy", mmap_mode="c").view(np.ndarray))
    lot = [
        (generator.integers(0, episodes, 256) * (length + 1) + generator.integers(0, length - 4, 256))[:, None]
        + np.arange(5)
        for _ in range(200)
    ]
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        load = partial(
            window_loader,
            buffer,
            256,
            offsets={"observation": range(-3, 2)},
            fields=(),
            boundary="drop",
            shuffle=True,
            drop_last=True,
            seed=0,
        )
        located, ours = next(iter(load(return_indices=True))), forever(load())
        episode, step = located["_indices"].numpy().T
        rows = (episode * (length + 1) + step)[:, None] + np.arange(-3, 2)
        for batch in (located, next(ours)):  # one seed, and so one order
            np.testing.assert_array_equal(batch["observation"], array[rows])
        suite.compare(
            "84x84 uint8 frames, stacks of 4 and the next one, 256 a batch; shuffled",
            {
                "torch.index_select": (
                    torch.index_select(tensor, 0, torch.from_numpy(rows.reshape(-1))) for rows in itertools.cycle(lot)
                ),
                "numpy.take": bare({"observation": (array, 0)}, itertools.cycle(lot)),
                OURS: ours,
            },
            batches=suite.batches // 20,
            target="1.25 times the faster of the first two",
        )


OPEN = """
import resource, sys, time
import torch
import gym_replay.buffer.loading.loaders
from gym_replay import ReplayBuffer

def own():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1024

before, begin = own(), time.perf_counter()
buffer = ReplayBuffer.from_folder(sys.argv[1], read_only=True)
batches = iter(buffer.dataloader(256, n_steps=1, shuffle=True))
next(batches)
first = time.perf_counter() - begin
for _ in range(1000):
    next(batches)
print(first, own() - before)
"""


def large(suite: Suite) -> None:
    """100 million steps, really written, next to one million of the same rows."""
    sizes = {"1 M steps": 10_000, "100 M steps": 1_000_000}
    fields = {"observation": Field("float32", (4,), state=True), "action": "uint8", "reward": "float32"}
    loaders = {}
    for title, episodes in sizes.items():
        folder = suite.folder / title.replace(" ", "")
        with ReplayBuffer(folder, fields=fields) as buffer:
            for begin in range(0, episodes, 1000):
                _store_many(buffer, begin)
        print(f"{title}: written", file=sys.stderr)
        for path in folder.rglob("*.npy"):  # into the page cache
            with path.open("rb") as stream:
                while stream.read(1 << 24):
                    pass
        opened = ReplayBuffer.from_folder(folder, read_only=True)
        loader = opened.dataloader(256, n_steps=1, shuffle=True, drop_last=True)
        for batch in itertools.islice(loader, 3):
            shown, after = (batch[entry][:, :2].long() for entry in ("observation", "next_observation"))
            row, following = shown[:, 0] * 4096 + shown[:, 1], after[:, 0] * 4096 + after[:, 1]
            assert torch.equal(following, row + 1)
            assert torch.equal(batch["reward"], batch["observation"][:, 2])
        loaders[title] = forever(loader)
    run_in_turns = take_turns({t: partial(run, loader, suite.batches) for t, loader in loaders.items()}, suite.repeats)
    self_made = run_in_turns["100 M steps"], run_in_turns["1 M steps"]
    ratio = spread([big / small for big, small in zip(*self_made, strict=True)])
    print("\n100 M steps in 1 M episodes (observation 4, action, reward), n-step batches of 256, shuffled")
    print(f"batch time: {ratio} times that of 1 M steps (target 1.5)")
    gc.collect()
    seconds, megabytes = zip(*(_open_once(suite.folder / "100Msteps") for _ in range(suite.repeats)), strict=True)
    print(f"first batch: {spread(seconds)} s after opening (target 1)")
    print(f"own memory: {spread(megabytes)} MiB after 1000 batches (target 200)", flush=True)
    suite.measured["100 M steps"] = {**run_in_turns, "first batch, s": list(seconds), "MiB": list(megabytes)}


def _store_many(buffer: ReplayBuffer, begin: int) -> None:
    rows = (np.arange(begin, begin + 1000)[:, None] * 101 + np.arange(101)).astype(np.int64)
    observation = np.stack((rows // 4096, rows % 4096, rows % 1000, rows % 7), axis=-1).astype(np.float32)
    with buffer.batched_episode(1000):
        for t in range(100):
            buffer.store_batch(observation=observation[:, t], action=rows[:, t] % 7, reward=observation[:, t, 2])
        buffer.store_final(observation=observation[:, 100])


def _open_once(folder: Path) -> tuple[float, float]:
    done = subprocess.run([sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=1000, help="episodes of 1000 steps (default 1000)")
    parser.add_argument("--batches", type=int, default=1000, help="batches of a run at most (default 1000)")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each contender (default 9)")
    parser.add_argument("--large", action="store_true", help="also 100 million steps")
    parser.add_argument("--only", default="", help="only tables whose name begins so")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="a file for all single measurements")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name, ExitStack() as stack:
        suite = Suite(Path(name), options.repeats, options.batches)
        print(f"Python {platform.python_version()}, NumPy {np.__version__}, torch {torch.__version__}, ", end="")
        print(f"{torch.get_num_threads()} threads; {options.episodes} episodes of 1000 steps, {options.repeats} rounds")
        print("median (lowest .. highest); ratios are between runs of one round")
        data = Data.random(options.episodes, 1000)
        buffer = stack.enter_context(store(data, suite.folder / "buffer"))
        tables: dict[str, Callable[[], None]] = {
            "transitions": lambda: transitions(suite, data, buffer, stack),
            "windows": lambda: windows(suite, data, buffer),
            "trajectories": lambda: trajectories(suite, data, buffer),
            "frames": lambda: frames(suite),
        }
        if options.large:
            tables["large"] = lambda: large(suite)
        for title, table in tables.items():
            if title.startswith(options.only):
                table()
    print("\n" + "\n".join(suite.notes))
    if options.json:
        options.json.write_text(json.dumps({"peers": suite.notes, "us_per_batch": suite.measured}, indent=1))


if __name__ == "__main__":
    main()

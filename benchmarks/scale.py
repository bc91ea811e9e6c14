"""Very many steps on one machine: ``python -m benchmarks.scale [--episodes 10000000] [--shards 1]``.

The folders are valid, by docs/format.md: metadata, counters and a record for each episode. The files of the steps have
their full size and no bytes (holes), so that 10^9 steps lie on a small disk. Another process then opens them, and says
how long it took, how long the first shuffled batch took, of all episodes and of a hundredth, and its memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
import time
from binascii import crc_hqx
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from gym_replay import ConcatReplayBuffer, Field, ReplayBuffer, n_step_loader

MEAN_LENGTH, BATCH = 100, 256
FIELDS: dict[str, Any] = {
    "observation": Field("float32", (17,), state=True),
    "action": Field("float32", (6,)),
    "reward": "float",
    "terminated": "bool",
    "truncated": "bool",
}
META = {"episode_seed": "int64", "episode_return": "float"}
AT_ONCE = 1 << 16
TINY = 1000


def make(folder: Path, count: int, seed: int) -> int:
    """A buffer of so many episodes, whose mean length is 100; returns its steps."""
    ReplayBuffer(folder, fields=FIELDS, meta_fields=META).close()
    uuid = json.loads((folder / "metadata.json").read_bytes())["uuid"]
    pairs = np.random.default_rng(seed).integers(1, 2 * MEAN_LENGTH, count // 2)
    lengths = np.concatenate([pairs, 2 * MEAN_LENGTH - pairs, np.full(count % 2, MEAN_LENGTH)])
    starts = np.cumsum(lengths + 1) - lengths - 1
    for path in (folder / "steps").rglob("*.npy"):
        grown(path, int(lengths.sum()) + count)
    table = grown(folder / "episodes.npy", count)
    for begin in range(0, count, AT_ONCE):
        part = table[begin : begin + AT_ONCE]
        ids = np.arange(begin, begin + len(part))
        part["id"], part["start"], part["length"] = ids, starts[ids], lengths[ids]
        part["episode_return"], part["flags"] = lengths[ids], 1 | 2
        content, size = part.tobytes(), part.dtype.itemsize
        sums = [crc32(content[at : at + size - 4]) for at in range(0, len(content), size)]
        part["crc"] = np.array(sums, np.uint32) ^ np.uint32(crc32(uuid.encode()))
    table.flush()
    words = np.load(folder / "commit.npy", mmap_mode="r+")
    words[3] = crc_hqx(count.to_bytes(6, "little"), crc32(f"{uuid}/next".encode()) & 0xFFFF) << 48 | count
    words.flush()
    return int(lengths.sum())


def grown(path: Path, rows: int) -> Any:
    """The file of no rows with so many, none of which is written: a map of it."""
    empty = np.load(path)
    return np.lib.format.open_memmap(path, "w+", empty.dtype, (rows, *empty.shape[1:]))


def memory() -> str:
    """What this process has in memory of its own, and the most that it had with what is mapped of files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, most = (int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "VmHWM"))
    return f"{own:.0f} MiB of memory of its own, {most:.0f} at most with what is mapped"


def timed(work: Callable[[], Any]) -> tuple[Any, str]:
    """What it returns, and the seconds that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, f"{time.perf_counter() - wall:.2f} s (processor {time.process_time() - cpu:.2f} s)"


def read(folder: Path, episodes: int) -> None:
    """Open, and take the first batches."""
    before = memory()
    buffer, opened = timed(lambda: ConcatReplayBuffer(folder))
    assert buffer.num_episodes == episodes
    print(f"before: {before}")
    print(f"opened {episodes} episodes, {buffer.num_steps} steps: {opened}; {memory()}")
    first_batch("all of them", buffer, None)
    first_batch("every hundredth", buffer, range(0, episodes, 100))


def first_batch(name: str, buffer: ConcatReplayBuffer, episodes: range | None) -> None:
    """Make a loader of some episodes, and take its first batch."""
    loader, made = timed(lambda: n_step_loader(buffer, BATCH, shuffle=True, seed=0, episodes=episodes))
    batch, taken = timed(lambda: next(iter(loader)))
    assert batch["observation"].shape == (BATCH, 17)
    print(f"{name}: loader {made}, first shuffled batch of {BATCH} {taken}; {memory()}")


def read_after(folder: Path, episodes: int, tiny: Path) -> None:
    """The same, once everything is imported."""
    with contextlib.redirect_stdout(None):
        read(tiny, TINY)
    read(folder, episodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10**7, help=f"of {MEAN_LENGTH} steps in the mean")
    parser.add_argument("--shards", type=int, default=1, help="folders that are read as one")
    parser.add_argument("--folder", type=Path, help="where the folders lie meanwhile (default: temporary)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as made:
        room, tiny = Path(made) / "all", Path(made) / "tiny"
        make(tiny / "0", TINY, 0)
        began = time.perf_counter()
        steps = sum(make(room / f"{shard:04d}", args.episodes // args.shards, shard) for shard in range(args.shards))
        on_disk = sum(os.stat(path).st_blocks * 512 for path in room.rglob("*.npy"))
        print(f"{steps} steps in {args.shards} folders, {on_disk / 1e6:.0f} MB on the disk, ", end="")
        print(f"made in {time.perf_counter() - began:.0f} s")
        reader = multiprocessing.get_context("spawn").Process(target=read_after, args=(room, args.episodes, tiny))
        reader.start()
        reader.join()
        raise SystemExit(reader.exitcode)


if __name__ == "__main__":
    main()

"""Very many small buffers as one: ``python -m benchmarks.shards [--shards 2000]``.

A shard is a recorded CartPole buffer; the others are copies of its files with a uuid of their own. What is measured:
seconds, memory and open files of opening all of them, and milliseconds of the batches of several loaders, beside those
of one buffer that holds the same episodes as often. Files are in the page cache.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gym_replay import ConcatReplayBuffer, ReplayBuffer, collect, select


def copies_of(folder: Path, room: Path, count: int) -> None:
    """So many buffers with the same episodes."""
    for number in range(count):
        shard = room / f"worker-{number:05d}"
        if not shard.exists():
            select(folder, shard, progress=False).close()


def held(room: Path) -> str:
    """Memory, maps and open files of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    maps = sum(str(room) in line for line in Path("/proc/self/maps").read_text().splitlines())
    files = sum(str(room) in os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return f"{int(fields['VmRSS'].split()[0]) / 1024:.0f} MiB resident, {maps} maps of files, {files} open files"


def batches(buffer: Any, batch_size: int = 256, **options: Any) -> tuple[float, float]:
    """Seconds to make a loader, and milliseconds of the median batch."""
    gc.collect()
    began = time.perf_counter()
    loader = buffer.dataloader(batch_size, seed=0, drop_last=True, **options)
    made = time.perf_counter() - began
    times = []
    iterator: Iterator[Any] = iter(loader)
    for _ in range(2000):
        began = time.perf_counter()
        if next(iterator, None) is None:
            break
        times.append(time.perf_counter() - began)
    return made, 1e3 * sorted(times)[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=1000, help="of a shard")
    parser.add_argument("--folder", type=Path, help="where to make the shards, or where they are from before")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "one").exists():
            collect("CartPole-v1", folder / "one", steps=arguments.steps, progress=False).close()
        room = folder / "many" / "shards"
        began = time.perf_counter()
        copies_of(folder / "one", room, arguments.shards)
        print(f"{arguments.shards} shards made in {time.perf_counter() - began:.0f} s")
        batches(ReplayBuffer.from_folder(folder / "one", read_only=True), n_steps=1, shuffle=True)  # torch is imported
        print("before:", held(room))
        for _ in range(2):
            began = time.perf_counter()
            with ConcatReplayBuffer(folder / "many") as buffer:
                print(f"opened in {time.perf_counter() - began:.2f} s: {buffer!r}; {held(room)}")
        began = time.perf_counter()
        buffer = ConcatReplayBuffer(folder / "many")
        next(iter(buffer.dataloader(256, n_steps=1, shuffle=True)))
        print(f"opened, and a first batch: {time.perf_counter() - began:.2f} s")
        began = time.perf_counter()
        buffer.refresh()
        print(f"refresh, where nothing has changed: {time.perf_counter() - began:.2f} s")
        kinds: dict[str, dict[str, Any]] = {
            "n-step, all fields": {"n_steps": 1, "shuffle": True},
            "n-step, two fields": {"n_steps": 1, "shuffle": True, "current_fields": ("observation", "action")},
            "timesteps, observation alone": {"timestep_level": True, "shuffle": True, "fields": ("observation",)},
            "timesteps, in order": {"timestep_level": True},
            "trajectories, shuffled": {"batch_size": 8, "shuffle": True},
            "n-step, with replacement": {"n_steps": 1, "replacement": True},
        }
        alone = ReplayBuffer.from_folder(folder / "one", read_only=True)
        for name, options in kinds.items():
            made, milliseconds = batches(buffer, **options)
            _, floor = batches(alone, **options)
            print(f"{name}: loader in {made:.2f} s, {milliseconds:.3f} ms a batch", end="")
            print(f" ({milliseconds / floor:.2f} of one shard alone); {held(room)}")


if __name__ == "__main__":
    main()

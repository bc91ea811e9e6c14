"""Reading frames by codec from an address, over a link that is slow to answer: ``python -m benchmarks.remote``.

The store is in memory, behind a link of a bandwidth and a latency. What is measured is how long the link needs for the
bytes that were read, how long the first batch took, for which all of the first pool must have come, and how long the
whole epoch, in which each pool comes while the one before it is visited.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
from fsspec.implementations.memory import MemoryFileSystem

from gym_replay import Field, ReplayBuffer, n_step_loader, push

URL = "link://data/frames"
STEPS = 500


class Link(MemoryFileSystem):  # type: ignore[misc]
    """``link://``: answers come one after another through a link, each ``latency`` seconds late."""

    protocol = "link"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    lock = threading.Lock()
    bandwidth, latency, free = 1e8, 0.02, 0.0
    requests, nbytes = 0, 0

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:
        return super()._strip_protocol(path.replace("link://", "memory://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """A range of a file, when it has come."""
        content: bytes = super().cat_file(path, start=start, end=end, **options)
        with Link.lock:
            Link.free = max(Link.free, time.perf_counter()) + len(content) / Link.bandwidth
            comes = Link.free + Link.latency
            Link.requests += 1
            Link.nbytes += len(content)
        time.sleep(max(0.0, comes - time.perf_counter()))
        return content


def record(folder: Path, episodes: int) -> ReplayBuffer:
    """Episodes of frames, half of each of which is noise and the other half a picture."""
    fields = {"observation": Field("uint8", (84, 84), state=True, codec="zstd"), "action": "int64", "reward": "float"}
    buffer = ReplayBuffer(folder, fields=fields)
    rng = np.random.default_rng(0)
    for _ in range(episodes):
        frames = np.zeros((STEPS + 1, 84, 84), np.uint8)
        frames[:, :, :40] = rng.integers(0, 256, (STEPS + 1, 84, 40), dtype=np.uint8)
        buffer.store_episode(observation=frames, action=range(STEPS), reward=np.zeros(STEPS))
    return buffer


def epoch(loader: Iterable[Any]) -> tuple[float, float, float]:
    """Seconds until the first batch, of the whole epoch, and of the processor."""
    start, cpu = time.perf_counter(), time.process_time()
    first = 0.0
    for _ in loader:
        first = first or time.perf_counter() - start
    return first, time.perf_counter() - start, time.process_time() - cpu


def main() -> None:
    """Read an epoch over the link, and the same one from the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=40, help=f"of {STEPS} steps")
    parser.add_argument("--bandwidth", type=float, default=1e8, help="bytes a second")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds a request")
    parser.add_argument("--pools", type=int, default=8, help="of an epoch")
    args = parser.parse_args()
    fsspec.register_implementation("link", Link, clobber=True)
    Link.bandwidth, Link.latency = args.bandwidth, args.latency
    with tempfile.TemporaryDirectory() as made, record(Path(made) / "here", args.episodes) as buffer:
        push(buffer, URL, progress=False)
        there = ReplayBuffer.from_url(URL, cache=Path(made) / "cache")
        pool = max(1, args.episodes * STEPS // args.pools)
        options: dict[str, Any] = {"n_steps": 1, "shuffle": "block", "seed": 0, "pool_size": pool}
        options["block_size"] = max(1, pool // 16)
        Link.requests = Link.nbytes = 0
        first, whole, cpu = epoch(n_step_loader(there, 256, **options))
        _, here, cpu_here = epoch(n_step_loader(buffer, 256, **options))
        needed, read = Link.nbytes / Link.bandwidth, Link.nbytes / 1e6
        print(f"{read:.0f} MB in {Link.requests} requests, for which the link needs {needed:.2f} s")
        print(f"first batch after {first:.2f} s, epoch {whole:.2f} s, {read / whole:.0f} MB/s (processor {cpu:.2f} s)")
        print(f"the same epoch from the folder: {here:.2f} s (processor {cpu_here:.2f} s)")
        del there


if __name__ == "__main__":
    main()

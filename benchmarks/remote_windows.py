"""Windows of frames from an S3 server, and from the disk, next to peers: ``python -m benchmarks.remote_windows``.

The server is moto's on this machine, each answer late by a latency. gym_replay begins each epoch with an empty cache,
shuffled by blocks; peers read windows at random. A peer that cannot be imported is left out with a line. Windows are
compared with the frames before anything is timed; a lossy video's within a tolerance.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import Package
from benchmarks.remote_peers import CONTENDERS, S3, SHAPE, WINDOW, Place

SERVER = Path(__file__).parents[1] / "tests" / "interop" / "s3_server.py"


@contextmanager
def server(latency: float) -> Iterator[dict[str, Any]]:
    """Options of a file system whose server is on this machine; none where moto is not there."""
    if Package("moto", "moto[server] s3fs", S3).missing():
        yield {}
        return
    with subprocess.Popen([sys.executable, str(SERVER), str(latency)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        options = {"key": "test", "secret": "test", "endpoint_url": url}
        import_module("s3fs").S3FileSystem(**options).mkdir("frames")
        yield options
        process.kill()


def check(name: str, frames: Any, batch: tuple[Any, Any], tolerance: float) -> None:
    """Raise AssertionError unless a batch holds the frames that it says, or frames near to them."""
    which, found = (np.asarray(part) for part in batch)
    expected = np.stack([frames[episode, first : first + WINDOW] for episode, first in which.tolist()])
    far = np.abs(found.astype(np.int16) - expected).mean()
    assert found.shape == expected.shape, name
    assert far <= tolerance, f"{name}: {far} from what was stored"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=40, help="of 100 frames")
    parser.add_argument("--seconds", type=float, default=10, help="that each is read for")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds of each answer of the server")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rng = np.random.default_rng(0)
    smooth = torch.from_numpy(rng.random((args.episodes * 10, 3, 12, 12), np.float32))
    large = torch.nn.functional.interpolate(smooth, size=SHAPE[:2], mode="bicubic").clamp(0, 1).permute(0, 2, 3, 1)
    levels = (16 * large.repeat_interleave(10, 0)).byte().clamp(max=15) * 16
    frames = levels.numpy().reshape(args.episodes, 100, *SHAPE)
    frames[:, :, :8, :8] = np.arange(100, dtype=np.uint8)[:, None, None, None] * 2  # no two are the same
    with tempfile.TemporaryDirectory() as made, server(args.latency) as options:
        place = Place(frames, Path(made), "frames", options)
        for name, (make, remote, modules, tolerance) in CONTENDERS.items():
            if reason := Package(name, " ".join(modules), modules).missing():
                print(f"{name}: {reason}")
                continue
            windows, nbytes = make(place, remote)
            for _ in range(2):
                check(name, frames, next(windows), tolerance)
            count, began, cpu = 0, time.perf_counter(), time.process_time()
            while not count or time.perf_counter() - began < args.seconds:
                count += len(next(windows)[0])
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
            rate = f"{count / wall:.0f} windows/s, {1e3 * cpu / count:.2f} ms of the processor each"
            print(f"{name}: {rate}, {nbytes / 1e6:.1f} MB of {frames.nbytes / 1e6:.0f} MB raw", flush=True)


if __name__ == "__main__":
    main()

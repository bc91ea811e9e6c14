"""Frames whose raw data is four times larger than memory, in random order: ``python -m benchmarks.frames_memory``.

Each contender is a process of its own in a control group with a memory limit, which counts the page cache too, and
begins with none of the data in it. It loads stacks of four frames and the next one with ``shuffle=True``, as many
batches as there is time for; the first ones are compared with what was stored. Raw frames come from the disk then, and
encoded ones lie in memory, where they come to in the first third of a run, which is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frames import OURS, RAW, SAMPLES, Loaded, check, our_batches, ours
from benchmarks.frames_scenes import GAMES, Scene, scene
from benchmarks.load_disk import TIMES
from benchmarks.memory_limit import evict, memory_limit
from benchmarks.report import Report, Table, Target
from benchmarks.suite import Suite, show

FRAMES = "frames.npy"
BATCH = 32
CODECS: dict[str, Any] = {RAW: None, OURS: "zstd", f"{OURS}, lz4": "lz4"}


def child(folder: Path, seconds: float) -> float:
    """Frames a second of a buffer, whose frames are those in a file beside it, over and over."""
    frames = np.load(folder.parent / FRAMES, mmap_mode="r")
    shown = Scene("", frames)
    sample = SAMPLES[0]._replace(batch_size=BATCH)
    batches = our_batches(shown, folder, sample)
    for _ in range(2):
        batch = next(batches)
        check(folder.name, shown, Loaded(batch.frames, batch.rows % len(shown.flat)), lossy=False)
    for_seconds(batches, seconds / 2)  # what fits into memory comes there
    return for_seconds(batches, seconds)


def for_seconds(batches: Iterator[Loaded], seconds: float) -> float:
    """Frames a second of as many batches as there is time for."""
    begin, frames = time.perf_counter(), 0
    while (taken := time.perf_counter() - begin) < seconds:
        batch = next(batches)
        frames += batch.frames.shape[0] * batch.frames.shape[1]
    return frames / taken


def measure(suite: Suite, name: str, megabytes: int, seconds: float, repeats: int) -> None:
    """The table."""
    shown = scene(name, 100, 100_000_000)
    times = max(1, megabytes * 1_000_000 // shown.frames.nbytes)
    np.save(suite.folder / FRAMES, shown.frames)
    whole = {title: ours(shown, suite.folder / title, codec, times) for title, codec in CODECS.items()}
    limit = shown.frames.nbytes * times // TIMES
    measured: dict[str, list[float]] = {title: [] for title in CODECS}
    for _ in range(repeats):
        for title in CODECS:
            evict(path for path in suite.folder.rglob("*") if path.is_file())
            with memory_limit(limit) as limited:
                command = [sys.executable, "-m", "benchmarks.frames_memory", "--child", str(suite.folder / title)]
                measured[title].append(float(json.loads(limited.run([*command, "--seconds", str(seconds)]))))
    sizes = f"{shown.frames.nbytes * times / 1e9:.1f} GB raw, {limit / 1e6:.0f} MB of memory"
    suite.add(
        Table(
            f"{shown.title}: {sizes}, {SAMPLES[0].title}, {BATCH} a batch, shuffled",
            "frames/s",
            RAW,
            measured,
            targets=[Target(OURS, 10.0, of=RAW, at_least=True)],
            extras={"MB of frames": {title: [nbytes / 1e6] for title, nbytes in whole.items()}},
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", choices=GAMES, default="mspacman", help="which frames (default mspacman)")
    parser.add_argument("--megabytes", type=int, default=2000, help="of raw frames (default 2000)")
    parser.add_argument("--seconds", type=float, default=5.0, help="a run takes (default 5)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--folder", type=Path, help="where to write, on the disk in question (default: temporary)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments.seconds)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        suite = Suite("frames_memory", Path(folder), Report(show))
        measure(suite, arguments.scene, arguments.megabytes, arguments.seconds, arguments.repeats)


if __name__ == "__main__":
    main()

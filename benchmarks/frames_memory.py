"""Frames whose raw data is four times larger than memory, in random order: ``python -m benchmarks.frames_memory``.

Each contender is a process of its own in a control group with a memory limit, which counts the page cache too, and
begins with none of the data in it. It loads stacks of four frames and the next one with ``shuffle=True``, as many
batches as there is time for; the first ones are compared with what was stored. Raw frames come from the disk then, and
encoded ones lie in memory, where they come to in the first third of a run, which is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frames import OURS, RAW, SAMPLES, Loaded, check, our_batches, ours
from benchmarks.frames_scenes import GAMES, Scene, scene
from benchmarks.load_disk import TIMES
from benchmarks.memory_limit import MemoryLimit, in_turns
from benchmarks.report import Table, Target
from benchmarks.suite import Suite, command, option

FRAMES = "frames.npy"
BATCH = 32


@dataclass(frozen=True)
class Size:
    scene: str = option("mspacman", f"which frames: {', '.join(GAMES)}")
    megabytes: int = option(2000, "of raw frames")
    seconds: float = option(5.0, "a run takes")
    repeats: int = option(3, "rounds")


SMOKE = Size(megabytes=100, seconds=0.5, repeats=1)
CODECS: dict[str, Any] = {RAW: None, OURS: "zstd", f"{OURS}, lz4": "lz4"}


def run(path: str, seconds: float) -> float:
    """Frames a second of a buffer, whose frames are those in a file beside it, over and over."""
    folder = Path(path)
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


def measure(suite: Suite, size: Size) -> None:
    """The table."""
    shown = scene(size.scene, 100, 100_000_000)
    times = max(1, size.megabytes * 1_000_000 // shown.frames.nbytes)
    np.save(suite.folder / FRAMES, shown.frames)
    whole = {title: ours(shown, suite.folder / title, codec, times) for title, codec in CODECS.items()}
    limit = shown.frames.nbytes * times // TIMES

    def call(limited: MemoryLimit, title: str) -> float:
        return float(limited.call("benchmarks.frames_memory", "run", suite.folder / title, size.seconds))

    sizes = f"{shown.frames.nbytes * times / 1e9:.1f} GB raw, {limit / 1e6:.0f} MB of memory"
    suite.add(
        Table(
            f"{shown.title}: {sizes}, {SAMPLES[0].title}, {BATCH} a batch, shuffled",
            "frames/s",
            RAW,
            in_turns(suite.folder, limit, list(CODECS), size.repeats, call),
            targets=[Target(OURS, 10.0, of=RAW, at_least=True)],
            extras={"MB of frames": {title: [nbytes / 1e6] for title, nbytes in whole.items()}},
        )
    )


if __name__ == "__main__":
    command("frames_memory", __doc__, measure, Size(), SMOKE)

"""What the measurements of growth share: how episodes are played, memory, and fresh processes that open a buffer."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from benchmarks.timing import per_item

Ints = npt.NDArray[np.int64]


class Episodes(NamedTuple):
    """Microseconds of the parts of some episodes: per reset, per step but the last ones, and per last step."""

    reset: float
    step: float
    last: float
    worst: float
    """The longest last step."""


def play(env: gym.Env[Any, Any], length: int, count: int) -> Episodes:
    """Play ``count`` episodes of ``length`` steps, two at least."""
    action, clock = np.int64(1), time.perf_counter
    resets = steps = lasts = worst = 0.0
    for _ in range(count):
        begin = clock()
        env.reset()
        after_reset = clock()
        for _ in range(length - 1):
            env.step(action)
        before_last = clock()
        env.step(action)
        last = clock() - before_last
        resets += after_reset - begin
        steps += before_last - after_reset
        lasts += last
        worst = max(worst, last)
    return Episodes(1e6 * resets / count, 1e6 * steps / count / (length - 1), 1e6 * lasts / count, 1e6 * worst)


def anonymous() -> float:
    """MiB of memory beyond mapped files that this process holds; nan where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else float("nan")


_OPEN = """
import sys, time
import numpy, torch
import gym_replay.buffer.loading.loaders
from gym_replay import ReplayBuffer
from benchmarks.growing import anonymous

before, begin = anonymous(), time.perf_counter()
buffer = ReplayBuffer.from_folder(sys.argv[1], read_only=True)
opened, held = time.perf_counter() - begin, anonymous()
batches = iter(buffer.dataloader(256, n_steps=1, shuffle=True))
next(batches)
first = time.perf_counter() - begin
for _, _ in zip(range(int(sys.argv[2])), batches):
    pass
print(1e3 * opened, 1e3 * first, held - before, anonymous() - before)
"""


class Opening(NamedTuple):
    """Of a fresh process, after its imports: milliseconds until a buffer was open, and until it had its first batch;
    MiB held after opening, and after many batches."""

    opened: float
    first: float
    held: float
    held_later: float


def open_afresh(folder: Path, batches: int) -> Opening:
    """Open a buffer in a process of its own."""
    command = [sys.executable, "-c", _OPEN, str(folder), str(batches)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Opening(*map(float, done.stdout.split()))


def batches_for(batches: Iterator[Any], seconds: float, most: int) -> int:
    """How many batches take about so long; 2 at least."""
    return max(2, min(most, int(1e6 * seconds / max(per_item(batches, 2), 1e-3))))

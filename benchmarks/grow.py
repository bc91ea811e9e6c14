"""What it costs that a buffer has become large: ``python benchmarks/grow.py``.

Two tables. How the cost of a commit and the memory of the process grow with the number of episodes, in a buffer
without limits: once with ``RecordToBuffer`` around an environment that does nothing, which is what people run, and
where the commit is the step that ends the episode; once with ``store_episode``, where it includes the checks of whole
arrays. And what the files take on the disk after ``close``, compared with the bytes of what was recorded.

Memory is ``RssAnon`` of ``/proc/self/status``: what the process holds beyond mapped files. Each table row is the mean
since the row before.
"""

from __future__ import annotations

import argparse
import gc
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from gym_replay import Field, RecordToBuffer, ReplayBuffer


class Idle(gym.Env):
    """Episodes of a fixed length; nothing happens."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int) -> None:
        self._length = length
        self._observation = np.zeros(4, np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        self._t = 0
        return self._observation, {}

    def step(self, action: Any) -> tuple:
        self._t += 1
        return self._observation, 1.0, self._t == self._length, False, {}


def anonymous() -> float:
    """MiB of memory beyond mapped files; nan where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else float("nan")


def play(env: gym.Env, length: int) -> Callable[[], tuple[float, float]]:
    """One episode; returns the seconds of the steps before the last, and of the last one."""
    action = np.int64(1)

    def episode() -> tuple[float, float]:
        begin = time.perf_counter()
        env.reset()
        for _ in range(length - 1):
            env.step(action)
        before_last = time.perf_counter()
        env.step(action)
        return before_last - begin, time.perf_counter() - before_last

    return episode


def store(buffer: ReplayBuffer, length: int) -> Callable[[], tuple[float, float]]:
    arrays = {
        "observation": np.zeros((length + 1, 4), np.float32),
        "action": np.zeros(length, np.int64),
        "reward": np.zeros(length),
        "terminated": np.zeros(length, bool),
        "truncated": np.zeros(length, bool),
    }

    def episode() -> tuple[float, float]:
        begin = time.perf_counter()
        buffer.store_episode(**arrays)
        return 0.0, time.perf_counter() - begin

    return episode


def grow(kind: str, folder: Path, length: int, points: list[int]) -> list[str]:
    """One line for each number of episodes."""
    if kind == "RecordToBuffer":
        owner: Any = RecordToBuffer(Idle(length), folder)
        episode = play(owner, length)
    else:
        fields = {"observation": Field("float32", (4,), state=True), "action": "int64", "reward": "float64"}
        owner = ReplayBuffer(folder, fields={**fields, "terminated": "bool", "truncated": "bool"})
        episode = store(owner, length)
    lines, done = [], 0
    begin_memory = 0.0
    for point in points:
        steps = ends = worst = 0.0
        begin = time.perf_counter()
        for _ in range(point - done):
            before, last = episode()
            steps += before
            ends += last
            worst = max(worst, last)
        wall = time.perf_counter() - begin
        gc.collect()
        memory = anonymous()
        begin_memory = begin_memory or memory
        count = point - done
        per_step = f"{1e6 * steps / count / (length - 1):>8.2f}" if steps else f"{'':>8}"
        lines.append(
            f"{kind:<16} {point:>9,} {point * length / 1e6:>8.2f} M {1e6 * ends / count:>10.1f} {1e3 * worst:>9.1f}"
            f" {per_step} {wall:>8.1f} {memory:>9.1f} {memory - begin_memory:>+9.1f}"
        )
        done = point
    begin = time.perf_counter()
    owner.close()
    closing = time.perf_counter() - begin
    begin = time.perf_counter()
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        assert len(buffer) == done
        opening = time.perf_counter() - begin
    begin = time.perf_counter()
    with ReplayBuffer.from_folder(folder) as buffer:
        buffer.store_episode(
            **{name: np.zeros(1, info.dtype) for name, info in buffer.metadata.fields.items() if not info.state}
        )
        first = time.perf_counter() - begin
    lines.append(
        f"{'':<16} close {closing:.3f} s, open read-only {opening:.3f} s, open and first commit {first:.3f} s, "
        f"at {done:,} episodes"
    )
    return lines


def bare(length: int, episodes: int = 2000) -> float:
    """Microseconds of a step of the environment alone."""
    episode = play(Idle(length), length)
    return 1e6 * sum(episode()[0] for _ in range(episodes)) / episodes / (length - 1)


SCHEMAS: dict[str, dict[str, Any]] = {
    "obs 17, act 6": {
        "observation": Field("float32", (17,), state=True),
        "action": Field("float32", (6,)),
        "reward": "float64",
        "terminated": "bool",
        "truncated": "bool",
    },
    "CartPole": {
        "observation": Field("float32", (4,), state=True),
        "action": "int64",
        "reward": "float64",
        "terminated": "bool",
        "truncated": "bool",
    },
}
META = {"episode_seed": "int64", "episode_return": "float64", "episode_complete": "bool"}


def disk(name: str, folder: Path, episodes: int, seed: int) -> str:
    """One line: what episodes of 10 to 40 steps take on the disk."""
    fields = {key: info if isinstance(info, Field) else Field(info) for key, info in SCHEMAS[name].items()}
    generator = random.Random(seed)
    payload = transitions = 0
    with ReplayBuffer(folder, max_timesteps=500, fields=fields, meta_fields=META) as buffer:
        for _ in range(episodes):
            length = generator.randrange(10, 41)
            arrays = {key: np.ones((length + info.state, *info.shape), info.dtype) for key, info in fields.items()}
            buffer.store_episode(**arrays)
            payload += sum(array.nbytes for array in arrays.values())
            transitions += length * sum(info.nbytes for info in fields.values())
    files = [path for path in folder.rglob("*") if path.is_file()]
    apparent = sum(path.stat().st_size for path in files)
    blocks = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
    return (
        f"{name:<14} {episodes:>9,} {payload / 1e6:>12.3f} {apparent / 1e6:>12.3f} {blocks / 1e6:>12.3f}"
        f" {apparent / payload:>9.3f} {blocks / payload:>9.3f} {apparent / transitions:>12.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 200_000])
    parser.add_argument("--length", type=int, default=50, help="steps of an episode (default 50)")
    parser.add_argument("--short-episodes", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: a temporary folder)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    parent = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        print(f"episodes of {options.length} steps; a step of the bare environment {bare(options.length):.2f} us")
        print(
            f"{'how':<16} {'episodes':>9} {'steps':>10} {'commit us':>10} {'worst ms':>9} {'step us':>8} {'wall s':>8}"
            f" {'RssAnon':>9} {'MiB more':>9}"
        )
        for kind in ("RecordToBuffer", "store_episode"):
            print("\n".join(grow(kind, parent / kind, options.length, options.episodes)), flush=True)
            shutil.rmtree(parent / kind)
        print(
            "\nepisodes of 10 to 40 steps on the disk after close, in MB; the payload includes row T of observations, "
            "the last\ncolumn compares with T rows of every field"
        )
        print(
            f"{'fields':<14} {'episodes':>9} {'payload':>12} {'files':>12} {'blocks':>12} {'files/p.':>9}"
            f" {'blocks/p.':>9} {'files/T rows':>12}"
        )
        for name in SCHEMAS:
            for count in options.short_episodes:
                print(disk(name, parent / f"{name}{count}", count, options.seed), flush=True)
    finally:
        shutil.rmtree(parent)


if __name__ == "__main__":
    main()

"""What it costs to record a vector environment: ``python -m benchmarks.record_vector``.

The loop that everybody writes, with random actions, around Gymnasium's own vectorised CartPole, of which about one
sub-environment in 22 ends its episode in each step. Every run begins with a new, empty buffer. Making it and closing it
is not timed, all steps and commits are; what closing takes, the checksums of short episodes for the most part, is a
column of its own.

Gymnasium's RecordEpisodeStatistics, which keeps one sum and one count, is the floor. The peers are fed each step's
batch of transitions, as their documentation does it; neither of them keeps episodes apart, and the next observation is
stored a second time where that is how the peer does it. Before the clock starts, the recorder's episodes are compared
with what the environment returned, and the transitions of each peer are counted.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.timing import spread, take_turns
from gym_replay.wrappers.vector import RecordToBuffer

Envs = gym.vector.VectorEnv[Any, Any, Any]
Make = Callable[[Envs, Path, int], Envs]
"""From the environment, a folder and the number of steps to the environment that records."""

TARGETS = {8: 1.6, 1024: 2.2, 4096: 2.5}
BARE, OURS = "bare loop", "RecordToBuffer"


def make_envs(num_envs: int) -> Envs:
    return gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point")


class Peer(gym.vector.VectorWrapper[Any, Any, Any, Any, Any]):
    """Hands the transitions of each step to a buffer; the steps that only reset are left out."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**options)
        self._before, self._resets, self.given = result[0], np.zeros(self.num_envs, bool), 0
        return result

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        result = self.env.step(actions)
        observations, rewards, terminated, truncated, _ = result
        columns = self._before, actions, observations, rewards, terminated, truncated
        if self._resets.any():
            kept = ~self._resets
            columns = tuple([column[kept] for column in columns])
        self.given += len(columns[0])
        self.add(*columns)
        self._before, self._resets = observations, terminated | truncated
        return result

    def add(self, before: Any, actions: Any, after: Any, rewards: Any, terminated: Any, truncated: Any) -> None:
        raise NotImplementedError

    def stored(self) -> int:
        """How many transitions there are."""
        raise NotImplementedError


class TorchRL(Peer):
    def __init__(self, env: Envs, folder: Path, steps: int) -> None:
        super().__init__(env)
        data = import_module("torchrl.data")
        logging.getLogger("torchrl").setLevel(logging.WARNING)
        size = (steps + 1) * env.num_envs
        storage = data.LazyMemmapStorage(size, scratch_dir=str(folder / "storage"))
        self._buffer = data.ReplayBuffer(storage=storage, batch_size=1)
        self._make, self._from = import_module("tensordict").TensorDict, import_module("torch").from_numpy
        before = np.zeros((1, 4), np.float32)
        self.add(before, np.zeros(1, np.int64), before, np.zeros(1, np.float32), np.zeros(1, bool), np.zeros(1, bool))
        self._buffer.empty()

    def add(self, before: Any, actions: Any, after: Any, rewards: Any, terminated: Any, truncated: Any) -> None:
        of, count = self._from, len(before)
        end = {
            "reward": of(rewards),
            "terminated": of(terminated),
            "truncated": of(truncated),
            "observation": of(after),
        }
        self._buffer.extend(
            self._make({"observation": of(before), "action": of(actions), "next": end}, batch_size=[count])
        )

    def stored(self) -> int:
        return len(self._buffer)


class MemmapReplayBuffer(Peer):
    """``store_batch``: all sub-environments in lockstep, in one stretch, without episodes of their own."""

    def __init__(self, env: Envs, folder: Path, steps: int) -> None:
        super().__init__(env)
        fields = {
            "observation": ("float", (4,)),
            "action": "int",
            "reward": "float",
            "terminated": "bool",
            "truncated": "bool",
        }
        self._buffer = import_module("memmap_replay_buffer").ReplayBuffer(
            folder, max_episodes=env.num_envs, max_timesteps=steps + 1, fields=fields, flush_every_store_step=0
        )
        self._episodes = self._buffer.batched_episode(batch_size=env.num_envs)
        self._episodes.__enter__()
        self._steps = 0

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        result = self.env.step(actions)
        observations, rewards, terminated, truncated, _ = result
        self._buffer.store_batch(
            observation=self._before, action=actions, reward=rewards, terminated=terminated, truncated=truncated
        )
        self._steps += 1
        self.given += len(rewards)
        self._before = observations
        return result

    def stored(self) -> int:
        self._episodes.__exit__(None, None, None)
        data = self._buffer.data["observation"]
        return int((np.abs(data[:, : self._steps]).sum(axis=-1) > 0).sum())


def make_bare(envs: Envs, folder: Path, steps: int) -> Envs:
    return envs


def make_statistics(envs: Envs, folder: Path, steps: int) -> Envs:
    return gym.wrappers.vector.RecordEpisodeStatistics(envs)


def make_recorder(envs: Envs, folder: Path, steps: int) -> Envs:
    return RecordToBuffer(envs, folder / "buffer")


PEERS: dict[str, Make] = {"torchrl, extend": TorchRL, "memmap-replay-buffer": MemmapReplayBuffer}
CONTENDERS: dict[str, Make] = {BARE: make_bare, "EpisodeStatistics": make_statistics, OURS: make_recorder, **PEERS}


def play(envs: Envs, steps: int) -> float:
    """Microseconds per step."""
    sample = envs.action_space.sample
    began = time.perf_counter()
    for _ in range(steps):
        envs.step(sample())
    return (time.perf_counter() - began) * 1e6 / steps


def run(make: Make, num_envs: int, steps: int, root: Path, closing: list[float]) -> float:
    folder = Path(tempfile.mkdtemp(dir=root))
    envs = make(make_envs(num_envs), folder, steps)
    envs.action_space.seed(0)
    envs.reset(seed=0)
    value = play(envs, steps)
    began = time.perf_counter()
    envs.close()
    closing.append((time.perf_counter() - began) * 1e6 / steps)
    shutil.rmtree(folder)
    return value


def check(make: Make, root: Path) -> str | None:
    """Why a contender is left out, if it is; what it stores is counted."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        envs = make(make_envs(3), folder, 60)
    except ImportError as error:
        return f"not installed ({error})"
    envs.reset(seed=0)
    play(envs, 50)
    if isinstance(envs, Peer):
        stored = envs.stored()
        assert stored == envs.given, f"{make} stored {stored} of {envs.given}"
    envs.close()
    return None


def check_recorder(root: Path) -> None:
    """What is recorded is what the environment returned, step by step."""
    plain, envs = make_envs(5), make_recorder(make_envs(5), Path(tempfile.mkdtemp(dir=root)), 100)
    rows: list[list[Any]] = [[] for _ in range(5)]
    before, resets = plain.reset(seed=0)[0], np.zeros(5, bool)
    envs.reset(seed=0)
    expected = []
    for _ in range(100):
        actions = plain.action_space.sample()
        envs.step(actions)
        after, rewards, terminated, truncated, _ = plain.step(actions)
        for i in np.flatnonzero(~resets):
            rows[i].append((before[i], actions[i], rewards[i], terminated[i]))
            if terminated[i] or truncated[i]:
                expected.append((i, rows[i], after[i]))
                rows[i] = []
        before, resets = after, terminated | truncated
    assert len(envs.buffer) == len(expected) > 10
    for episode, (i, steps, last) in zip(envs.buffer, expected, strict=True):
        observations, actions, rewards, terminated = zip(*steps, strict=True)
        assert episode.meta["env_index"] == i
        for name, values in (("action", actions), ("reward", rewards), ("terminated", terminated)):
            np.testing.assert_array_equal(episode[name], values)
        np.testing.assert_array_equal(episode["observation"], [*observations, last])
    envs.close()


def compare(num_envs: int, steps: int, repeats: int, root: Path, contenders: dict[str, Make]) -> dict[str, list[float]]:
    """Print one table; everything is compared with the bare loop of the same round."""
    closing: dict[str, list[float]] = {name: [] for name in contenders}
    turns = {name: partial(run, make, num_envs, steps, root, closing[name]) for name, make in contenders.items()}
    measured = take_turns(turns, repeats)
    print(f"\n{num_envs} sub-environments, {steps} steps a run")
    print(f"{'':<22} {'x of ' + BARE:<24} {'us per step':<26} {'ns added a transition':>21}  us of closing, per step")
    for name, values in measured.items():
        rounds = list(zip(values, measured[BARE], strict=True))
        ratio = spread([mine / bare for mine, bare in rounds])
        added = statistics.median([mine - bare for mine, bare in rounds]) * 1000 / num_envs
        closed = statistics.median(closing[name])
        print(f"{name:<22} {ratio:<24} {spread(values):<26} {added:>21.0f}  {closed:.1f}")
    print(f"target: {TARGETS.get(num_envs, '-')} times the bare loop", flush=True)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, nargs="+", default=list(TARGETS), help="numbers of sub-environments")
    parser.add_argument("--transitions", type=int, default=1_000_000, help="of a run, at most (default 1000000)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each contender (default 7)")
    parser.add_argument("--only-ours", action="store_true", help="leave the peers out")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="a file for all single measurements")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        print(f"Python {platform.python_version()}, NumPy {np.__version__}, Gymnasium {gym.__version__}")
        print(f"{options.repeats} rounds, median (lowest .. highest); ratios are between runs of one round")
        check_recorder(root)
        contenders = {name: make for name, make in CONTENDERS.items() if name not in PEERS}
        notes = []
        for name, make in ({} if options.only_ours else PEERS).items():
            if (why := check(make, root)) is None:
                contenders[name] = make
            else:
                notes.append(f"{name}: left out, {why}")
        measured = {}
        for num_envs in options.envs:
            steps = max(min(options.transitions // num_envs, 5000), 50)
            measured[num_envs] = compare(num_envs, steps, options.repeats, root, contenders)
        print("\n".join(notes))
    if options.json:
        options.json.write_text(json.dumps({"us_per_step": measured}, indent=1))


if __name__ == "__main__":
    main()

"""What it costs to record, next to public peers: ``python -m benchmarks.record``.

Three tables; in each, the contenders take turns. Every run begins with a new, empty buffer. Making it and closing it is
not timed; all steps, resets and commits are. Before the clock starts, each contender records a short episode and is
asked for it back.

Each peer is fed from a wrapper, so that all contenders run in the same loop. A peer that is not installed is left out
with a line that says so. All files lie in a temporary folder, which is deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import islice, repeat, starmap
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.record_peers import PEERS, Episode, Make, Peer, PeerPackage, minari_episode
from benchmarks.timing import spread, take_turns
from gym_replay import RecordToBuffer, ReplayBuffer

SHARE = 10
"""Peers, and everybody where frames are recorded, take this many times fewer steps per run."""


class Idle(gym.Env[Any, Any]):
    """Episodes of a fixed length; observations are prepared, so that a step costs next to nothing."""

    def __init__(self, observation_space: gym.spaces.Box, action_space: gym.spaces.Box, length: int) -> None:
        self.observation_space, self.action_space, self._length = observation_space, action_space, length
        observation_space.seed(0)
        self._observations = [observation_space.sample() for _ in range(16)]
        self._rewards = [0.5 * k for k in range(16)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._t = 0
        return self._observations[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        t = self._t = self._t + 1
        k = t & 15
        return self._observations[k], self._rewards[k], False, t == self._length, {}


class Passing(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that does nothing: what any wrapper costs."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(**options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self.env.step(action)


class RawWrites(gym.Wrapper[Any, Any, Any, Any]):
    """Writes each observation to a file that has its full size from the start, and nothing else."""

    def __init__(self, env: gym.Env[Any, Any], folder: Path, steps: int, longest: int) -> None:
        super().__init__(env)
        self._position = 0
        self._descriptor = os.open(folder / "observations", os.O_RDWR | os.O_CREAT)
        os.truncate(self._descriptor, 2 * steps * env.observation_space.sample().nbytes)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self._position += os.pwrite(self._descriptor, result[0], self._position)
        return result

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True)
class Task:
    """A loop to run.

    Args:
        env: makes the environment.
        act: the actions of a run in an environment, one per step, in what the loop iterates over.
        steps: of a run.
        longest: T of the longest episode.
    """

    env: Callable[[], gym.Env[Any, Any]]
    act: Callable[[gym.Env[Any, Any]], Iterable[Any]]
    steps: int
    longest: int

    @staticmethod
    def idle(observation: gym.spaces.Box, action: gym.spaces.Box, steps: int, longest: int = 1000) -> Task:
        """Episodes of ``longest`` steps in an environment that does nothing; whole episodes only."""
        action.seed(0)
        actions = [action.sample() for _ in range(-(-steps // longest) * longest)]
        return Task(lambda: Idle(observation, action, longest), lambda _: actions, len(actions), longest)

    @staticmethod
    def cartpole(steps: int) -> Task:
        """CartPole under a random policy, which samples in the loop as policies do."""

        def sampled(env: gym.Env[Any, Any]) -> Iterable[Any]:
            env.action_space.seed(0)
            return starmap(env.action_space.sample, repeat(()))

        return Task(lambda: gym.make("CartPole-v1"), sampled, steps, 500)

    def part(self, share: int) -> Task:
        """The same with ``share`` times fewer steps."""
        return replace(self, steps=-(-self.steps // share // self.longest) * self.longest)


def play(env: gym.Env[Any, Any], actions: Iterable[Any], steps: int) -> float:
    """Run the loop that everybody writes; microseconds per step."""
    begin = time.perf_counter()
    env.reset(seed=0)
    for action in islice(actions, steps):
        _observation, _reward, terminated, truncated, _info = env.step(action)
        if terminated or truncated:
            env.reset()
    return 1e6 * (time.perf_counter() - begin) / steps


def run(make: Make, task: Task, parent: Path) -> float:
    """One run with a new buffer; microseconds per step."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        env = make(task.env(), folder, task.steps, task.longest)
        try:
            return play(env, task.act(env), task.steps)
        finally:
            env.close()
    finally:
        shutil.rmtree(folder)


def make_bare(env: gym.Env[Any, Any], folder: Path, steps: int, longest: int) -> Any:
    return env


def make_passing(env: gym.Env[Any, Any], folder: Path, steps: int, longest: int) -> Any:
    return Passing(env)


def make_recorder(env: gym.Env[Any, Any], folder: Path, steps: int, longest: int) -> Any:
    return RecordToBuffer(env, folder / "buffer")


def stored_by(env: Any, length: int) -> Episode:
    """The first of the episodes that were recorded."""
    if isinstance(env, Peer):
        return env.first_episode(length)
    if isinstance(env, RecordToBuffer):
        with ReplayBuffer.from_folder(env.buffer.folder, read_only=True) as buffer:
            episode = buffer.episode(0)
            named = {name: episode[name] for name in ("action", "reward", "terminated")}
            return {"observation": episode["observation"][:length], **named}
    return minari_episode(env, length)


def check(make: Make, task: Task, parent: Path) -> None:
    """Raise AssertionError unless the first episode is stored as it was played."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    env = make(task.env(), folder, task.steps, task.longest)
    played: Episode = {name: [] for name in ("observation", "action", "reward", "terminated")}
    observation, _ = env.reset(seed=0)
    for action in islice(task.act(env), task.steps):
        after, reward, terminated, truncated, _ = env.step(action)
        for name, value in zip(played, (observation, action, reward, terminated), strict=True):
            played[name].append(np.array(value))
        observation = after
        if terminated or truncated:
            break
    length = len(played["action"])
    stored = stored_by(env, length)
    for name, values in played.items():
        expected = np.stack(values)
        found = np.asarray(stored[name]).reshape(expected.shape)
        np.testing.assert_array_equal(found, expected, err_msg=f"{type(env).__name__}: {name}")
    env.close()


class Suite:
    """The tables, what they were measured from, and where files are written."""

    def __init__(self, folder: Path, repeats: int) -> None:
        self.folder, self.repeats = folder, repeats
        self.measured: dict[str, dict[str, list[float]]] = {}
        self.peers: dict[str, Make] = {}
        self.notes: list[str] = []

    def find_peers(self, short: Sequence[Task]) -> None:
        """Keep the peers that are installed and give back what they were given."""
        self.notes = [self._find_peer(name, peer, short) for name, peer in PEERS.items()]

    def _find_peer(self, name: str, peer: PeerPackage, short: Sequence[Task]) -> str:
        try:
            for task in short:
                check(peer.make, task, self.folder)
        except ImportError as error:
            return f"{name}: left out, not installed ({error})"
        self.peers[name] = peer.make
        return f"{name} {version(peer.distribution)}: {peer.use}"

    def compare(self, title: str, task: Task, contenders: dict[str, Make], *, target: str) -> None:
        """Print one table; the first contender is what the others are compared with."""
        tasks = {name: task.part(SHARE) if name in self.peers else task for name in contenders}
        measured = take_turns(
            {name: partial(run, make, tasks[name], self.folder) for name, make in contenders.items()}, self.repeats
        )
        self.measured[title] = measured
        baseline = next(iter(contenders))
        rounds = {name: list(zip(values, measured[baseline], strict=True)) for name, values in measured.items()}
        added = {name: [mine - base for mine, base in pairs] for name, pairs in rounds.items()}
        ours = statistics.median(added["RecordToBuffer"])
        print(f"\n{title}\n{'':<20} {'x of ' + baseline:<26} {'added us':<26} {'x added':>7}  us per step")
        for name, values in measured.items():
            ratio, more = spread([mine / base for mine, base in rounds[name]]), spread(added[name])
            factor = f"{statistics.median(added[name]) / ours:.1f}" if name in self.peers else ""
            print(f"{name:<20} {ratio:<26} {more:<26} {factor:>7}  {statistics.median(values):.3f}")
        print(f"target: {target}", flush=True)


def measure(suite: Suite, steps: int) -> None:
    """All tables."""
    state, motor = gym.spaces.Box(-np.inf, np.inf, (17,)), gym.spaces.Box(-1, 1, (6,))
    frame = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    short = Task.idle(state, motor, 36, longest=12), Task.cartpole(500)
    for task in (*short, Task.idle(frame, motor, 36, longest=12)):
        check(make_recorder, task, suite.folder)
    suite.find_peers(short)
    suite.compare(
        "Nothing but recording: Box(17) and Box(6) float32, episodes of 1000 steps",
        Task.idle(state, motor, steps),
        {"pass-through wrapper": make_passing, "RecordToBuffer": make_recorder, **suite.peers},
        target="0.5 us added, and 30 times less than Minari adds",
    )
    suite.compare(
        "CartPole-v1, random policy, the whole loop",
        Task.cartpole(steps),
        {"bare loop": make_bare, "RecordToBuffer": make_recorder, **suite.peers},
        target="1.3 times the bare loop",
    )
    suite.compare(
        "Frames: Box(84, 84, 4) uint8, episodes of 1000 steps",
        Task.idle(frame, motor, steps // SHARE),
        {"one pwrite a step": RawWrites, "RecordToBuffer": make_recorder},
        target="1.3 times the loop with one os.pwrite of the observation a step",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50_000, help="steps of a run (default 50000)")
    parser.add_argument("--repeats", type=int, default=9, help="runs of each contender (default 9)")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="a file for all single measurements")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        suite = Suite(Path(folder), options.repeats)
        print(f"Python {platform.python_version()}, NumPy {np.__version__}, Gymnasium {gym.__version__}")
        print(f"{options.steps} steps a run ({SHARE} times fewer for peers and for frames), {options.repeats} rounds,")
        print("median (lowest .. highest); ratios and differences are between runs of one round;")
        print("'x added': how many times what RecordToBuffer adds to a step")
        measure(suite, options.steps)
    print("\n" + "\n".join(suite.notes))
    if options.json:
        options.json.write_text(json.dumps({"peers": suite.notes, "us_per_step": suite.measured}, indent=1))


if __name__ == "__main__":
    main()

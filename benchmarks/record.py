"""What it costs to record, next to public peers: ``python -m benchmarks.record``.

In each table the contenders take turns. Every run begins with a new, empty buffer. Making it and closing it is not
timed; all steps, resets and commits are. Before the clock starts, each contender records a short episode and is asked
for it back.

Each peer is fed from a wrapper, so that all contenders run in the same loop. Where its documentation has a faster way
than one call per step, which is to collect an episode and hand it over whole, that way is a contender too. All files
lie in a temporary folder, which is deleted.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, repeat, starmap
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.idle import Idle, OneWrite, Passing
from benchmarks.record_peers import PEERS, Episode, Make, Peer, Room, minari_episode
from benchmarks.record_store import by_hand
from benchmarks.report import OURS, Table, Target
from benchmarks.suite import Suite, command, option
from benchmarks.timing import take_turns
from gym_replay import RecordToBuffer, ReplayBuffer

SHARE = 10
"""Peers, and everybody where frames are recorded, take this many times fewer steps per run."""


@dataclass(frozen=True)
class Size:
    steps: int = option(50_000, f"steps of a run; {SHARE} times fewer for peers and for frames")
    length: int = option(1000, "steps of an episode where the environment does nothing")
    repeats: int = option(9, "runs of each contender")


SMOKE = Size(steps=4000, length=200, repeats=2)


@dataclass(frozen=True)
class Task:
    """A loop to run.

    Args:
        env: makes the environment.
        act: the actions of a run in an environment, one per step, in what the loop iterates over.
        steps: of a run.
        longest: T of the longest episode.
        shortest: T of the shortest one.
    """

    env: Callable[[], gym.Env[Any, Any]]
    act: Callable[[gym.Env[Any, Any]], Iterable[Any]]
    steps: int
    longest: int
    shortest: int

    @property
    def room(self) -> Room:
        return Room(self.steps, self.steps // self.shortest + 2, self.longest)

    @staticmethod
    def idle(observation: gym.spaces.Box, action: gym.spaces.Box, steps: int, longest: int) -> Task:
        """Episodes of ``longest`` steps in an environment that does nothing; whole episodes only."""
        action.seed(0)
        actions = [action.sample() for _ in range(-(-steps // longest) * longest)]
        return Task(lambda: Idle(observation, action, longest), lambda _: actions, len(actions), longest, longest)

    @staticmethod
    def cartpole(steps: int) -> Task:
        """CartPole under a random policy."""
        return Task(lambda: gym.make("CartPole-v1"), sampled, steps, 500, 8)

    def part(self, share: int) -> Task:
        """The same with ``share`` times fewer steps."""
        return replace(self, steps=-(-self.steps // share // self.longest) * self.longest)


def sampled(env: gym.Env[Any, Any]) -> Iterable[Any]:
    """The actions of a random policy, which samples in the loop as policies do."""
    env.action_space.seed(0)
    return starmap(env.action_space.sample, repeat(()))


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
        env = make(task.env(), folder, task.room)
        try:
            return play(env, task.act(env), task.steps)
        finally:
            env.close()
    finally:
        shutil.rmtree(folder)


def make_bare(env: gym.Env[Any, Any], folder: Path, room: Room) -> Any:
    return env


def make_passing(env: gym.Env[Any, Any], folder: Path, room: Room) -> Any:
    return Passing(env)


def make_raw(env: gym.Env[Any, Any], folder: Path, room: Room) -> Any:
    return OneWrite(env, folder / "observations", 2 * room.steps * env.observation_space.sample().nbytes)


def make_recorder(env: gym.Env[Any, Any], folder: Path, room: Room) -> Any:
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
    env = make(task.env(), folder, task.room)
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


def run_each(contenders: dict[str, Make], task: Task, suite: Suite, own: set[str]) -> dict[str, Callable[[], float]]:
    """What runs each contender once; those that are not our ``own`` take fewer steps."""
    short = task.part(SHARE)
    return {name: partial(run, make, task if name in own else short, suite.folder) for name, make in contenders.items()}


def idle(suite: Suite, task: Task, peers: dict[str, Make], notes: list[str], repeats: int) -> None:
    """What recording alone adds to a step: the loop less one with a wrapper that does nothing, of the same round."""
    passing = "pass-through wrapper"
    contenders = {passing: make_passing, OURS: make_recorder, **peers}
    loops = take_turns(run_each(contenders, task, suite, {passing, OURS}), repeats)
    floor = loops.pop(passing)
    suite.add(
        Table(
            f"Recording alone: Box(17) and Box(6) float32, episodes of {task.longest} steps",
            "us added to a step",
            OURS,
            {name: [loop - bare for loop, bare in zip(values, floor, strict=True)] for name, values in loops.items()},
            targets=[Target(OURS, 0.5), Target("Minari", 30, of=OURS, at_least=True)],
            notes=[f"the loop with a wrapper that does nothing takes {statistics.median(floor):.3f} us a step", *notes],
            extras={"whole loop, us": loops},
        )
    )


def measure(suite: Suite, size: Size) -> None:
    """All tables."""
    state, motor = gym.spaces.Box(-np.inf, np.inf, (17,)), gym.spaces.Box(-1, 1, (6,))
    frame = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    short = Task.idle(state, motor, 36, longest=12), Task.cartpole(500)
    for task in (*short, Task.idle(frame, motor, 36, longest=12)):
        check(make_recorder, task, suite.folder)
    peers, notes = suite.peers(PEERS)
    for make in peers.values():
        for task in short:
            check(make, task, suite.folder)
    idle(suite, Task.idle(state, motor, size.steps, size.length), peers, notes, size.repeats)
    bare = "bare loop"
    suite.compare(
        "CartPole-v1, random policy, the whole loop",
        "us per step",
        run_each({bare: make_bare, OURS: make_recorder, **peers}, Task.cartpole(size.steps), suite, {bare, OURS}),
        size.repeats,
        targets=[Target(OURS, 1.3, of=bare)],
        notes=notes,
    )
    by_hand(suite, size.steps, size.length, size.repeats)
    raw = "one pwrite a step"
    suite.compare(
        f"Frames: Box(84, 84, 4) uint8, episodes of {size.length} steps",
        "us per step",
        run_each(
            {raw: make_raw, OURS: make_recorder},
            Task.idle(frame, motor, size.steps // SHARE, size.length),
            suite,
            {raw, OURS},
        ),
        size.repeats,
        targets=[Target(OURS, 1.3, of=raw)],
        notes=["the floor writes the observation alone, by one os.pwrite, to a file that has its full size"],
    )


if __name__ == "__main__":
    command("record", __doc__, measure, Size(), SMOKE)

"""What it costs to record a vector environment: ``python -m benchmarks.record_vector``.

The loop that everybody writes, with random actions, around Gymnasium's own vectorised CartPole, of which about one
sub-environment in 22 ends its episode in each step. Every run begins with a new, empty buffer. Making it and closing it
is not timed, all steps and commits are; what closing takes, the checksums of short episodes for the most part, is a
column of its own.

Gymnasium's RecordEpisodeStatistics, which keeps one sum and one count, is a floor. The peers are fed each step's batch
of transitions, as their documentation does it; none of them keeps episodes apart, and the next observation is stored a
second time where that is how the peer does it. Before the clock starts, the recorder's episodes are compared with what
the environment returned, and the observations that each peer stores too.

Then environments that people train on, whose steps take longer, eight of each: EnvPool's, ale-py's own, and MuJoCo's in
processes. They are recorded by ours alone.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.record_vector_peers import PEERS, Envs, Make, Peer
from benchmarks.report import OURS, Table, Target
from benchmarks.suite import Suite, command, option
from benchmarks.timing import take_turns
from benchmarks.vector_environments import NUM_ENVS, TRAINED, actions_of
from gym_replay.wrappers.vector import RecordToBuffer

BARE = "bare loop"
TARGETS = {8: 1.6, 1024: 2.2, 4096: 2.5}
TRAINED_TARGET = 1.1
NOT_MINARI = "Minari: left out, it does not record vector environments"


@dataclass(frozen=True)
class Size:
    envs: tuple[int, ...] = option(tuple(TARGETS), "numbers of sub-environments")
    transitions: int = option(1_000_000, "of a run, at most")
    steps: int = option(5000, "of a run, at most")
    repeats: int = option(7, "runs of each contender")
    trained: tuple[str, ...] = option(tuple(TRAINED), "environments whose steps take longer")
    trained_steps: int = option(1000, "of a run in one of those")


SMOKE = Size(envs=(8,), steps=100, repeats=2, trained=())


def make_envs(num_envs: int) -> Envs:
    return gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point")


def make_bare(envs: Envs, folder: Path, steps: int) -> Envs:
    return envs


def make_statistics(envs: Envs, folder: Path, steps: int) -> Envs:
    return gym.wrappers.vector.RecordEpisodeStatistics(envs)


def make_recorder(envs: Envs, folder: Path, steps: int) -> Envs:
    return RecordToBuffer(envs, folder / "buffer")


def play(envs: Envs, steps: int) -> float:
    """Microseconds per step."""
    sample = actions_of(envs).sample
    began = time.perf_counter()
    for _ in range(steps):
        envs.step(sample())
    return (time.perf_counter() - began) * 1e6 / steps


def run(make: Make, make_envs: Callable[[], Envs], steps: int, root: Path, closing: list[float]) -> float:
    folder = Path(tempfile.mkdtemp(dir=root))
    envs = make(make_envs(), folder, steps)
    envs.action_space.seed(0)
    envs.reset(seed=0)
    value = play(envs, steps)
    began = time.perf_counter()
    envs.close()
    closing.append((time.perf_counter() - began) * 1e6 / steps)
    shutil.rmtree(folder)
    return value


def check(make: Make, root: Path) -> None:
    """Raise AssertionError unless a peer stores the observation of each transition, as a plain environment shows it."""
    plain, envs = make_envs(3), make(make_envs(3), Path(tempfile.mkdtemp(dir=root)), 60)
    assert isinstance(envs, Peer)
    envs.reset(seed=0)
    before, resets = plain.reset(seed=0)[0], np.zeros(3, bool)
    expected = []
    for _ in range(50):
        actions = plain.action_space.sample()
        envs.step(actions)
        expected.append(before if envs.stores_resets else before[~resets])
        before, _, terminated, truncated, _ = plain.step(actions)
        resets = terminated | truncated
    stored, shown = np.asarray(envs.stored()), np.concatenate(expected)
    assert stored.shape == shown.shape, f"{make} stored {stored.shape} of {shown.shape}"
    np.testing.assert_array_equal(stored[np.lexsort(stored.T)], shown[np.lexsort(shown.T)], err_msg=str(make))
    envs.close()


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


def compare(
    suite: Suite,
    name: str,
    make: Callable[[], Envs],
    num_envs: int,
    steps: int,
    repeats: int,
    contenders: Mapping[str, Make],
    target: float | None,
    notes: list[str],
) -> None:
    """One table; the bare loop and ours are in each."""
    contenders = {BARE: make_bare, OURS: make_recorder, **contenders}
    closing: dict[str, list[float]] = {name: [] for name in contenders}
    turns = {
        name: partial(run, record, make, steps, suite.folder, closing[name]) for name, record in contenders.items()
    }
    measured = take_turns(turns, repeats)
    bare = statistics.median(measured[BARE])
    suite.add(
        Table(
            f"{name}, {num_envs} sub-environments, {steps} steps, the whole loop",
            "us per step",
            BARE,
            measured,
            targets=[] if target is None else [Target(OURS, target, of=BARE)],
            notes=notes,
            extras={
                "ns added a transition": {
                    name: [1000 * (value - bare) / num_envs for value in values] for name, values in measured.items()
                },
                "us of closing a step": {
                    name: values[1:] for name, values in closing.items()
                },  # the first does not count
            },
        )
    )


def measure(suite: Suite, size: Size) -> None:
    """A table for each number of sub-environments, and one for each environment that people train on."""
    check_recorder(suite.folder)
    peers, notes = suite.peers(PEERS)
    for make in peers.values():
        check(make, suite.folder)
    others = {"EpisodeStatistics": make_statistics, **peers}
    for num_envs in size.envs:
        steps = max(min(size.transitions // num_envs, size.steps), 50)
        make_all, target = partial(make_envs, num_envs), TARGETS.get(num_envs)
        name = "CartPole-v1 vectorised"
        compare(suite, name, make_all, num_envs, steps, size.repeats, others, target, [*notes, NOT_MINARI])
    for name in size.trained:
        if (why := TRAINED[name].package.missing()) is not None:
            suite.leave_out(f"{name}: {why}")
            continue
        compare(suite, name, TRAINED[name].make, NUM_ENVS, size.trained_steps, size.repeats, {}, TRAINED_TARGET, [])


if __name__ == "__main__":
    command("record_vector", __doc__, measure, Size(), SMOKE)

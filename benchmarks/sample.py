"""Random batches while recording goes on, next to public peers: ``python -m benchmarks.sample``.

Each contender plays the same environment, whose step costs nothing, stores every transition, and draws a batch of 256
after each one, as an online agent does. Its buffer holds the last 100,000 transitions in episodes of 1000 steps, and is
full before the clock starts. Batches are torch tensors of observation, action, reward, flags and next observation, and
of each contender one was compared with what the environment had said.

The first table is of the draws alone, the second of a step, its storing and the draw. What a commit costs the next draw
is in both. Peers keep everything in memory; here, and with torchrl's second contender, it is in files.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.peers import CPPRB, Use, cpprb_buffer, flat, nested, sb3_batch, sb3_buffer, tensordict, torchrl_buffer
from benchmarks.report import OURS, Target
from benchmarks.suite import Suite, command, option
from gym_replay import PrioritizedSampler, RecordToBuffer

Array = npt.NDArray[Any]
Batch = dict[str, Any]
OBSERVATIONS, ACTIONS, BATCH = 17, 6, 256


@dataclass(frozen=True)
class Size:
    steps: int = option(100_000, "transitions that a buffer holds")
    length: int = option(1000, "steps of an episode")
    draws: int = option(1000, "steps and draws of a run")
    repeats: int = option(9, "runs of each contender")


SMOKE = Size(steps=2000, length=100, draws=20, repeats=2)


class Counted(gym.Env[Array, Array]):
    """An environment whose observation has the number of the row in it, by which it is known in a batch.

    Row n is an observation; the transition from it has the action and the reward -n.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32)
    action_space = gym.spaces.Box(-np.inf, np.inf, (ACTIONS,), np.float32)

    def __init__(self, length: int) -> None:
        self._length = length
        self.row = -1
        self._t = 0

    def _observation(self) -> Array:
        self.row += 1
        return np.full(OBSERVATIONS, self.row, np.float32)

    def action(self) -> Array:
        """What the policy would say to the last observation."""
        return np.full(ACTIONS, -self.row, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        self._t = 0
        return self._observation(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self._t += 1
        reward = -float(self.row)
        return self._observation(), reward, False, self._t >= self._length, {}


def check(name: str, batch: Batch, env: Counted, steps: int) -> None:
    """Raise AssertionError unless the batch is of transitions that the environment has made lately."""
    rows = np.asarray(batch["observation"])
    assert rows.shape == (BATCH, OBSERVATIONS), f"{name}: {rows.shape}"
    number = rows[:, 0]
    assert len(np.unique(number)) > BATCH // 2, f"{name}: the same rows again and again"
    assert (number <= env.row).all(), f"{name}: rows that were never made"
    assert (number > env.row - 1.2 * steps).all(), f"{name}: rows that are too old"
    covered = np.asarray(batch.get("n_step_lens", 1))
    for entry, expected in (("next_observation", number + covered), ("action", -number), ("reward", -number)):
        found = np.asarray(batch[entry]).reshape(BATCH, -1)
        np.testing.assert_array_equal(found, np.repeat(expected[:, None], found.shape[1], 1), f"{name}: {entry}")


class Player:
    """Steps an environment, has each transition stored, and draws.

    Args:
        env: what is stepped; of a recorder, it stores by itself.
        counted: the environment itself.
        store: is given observation, action, reward, truncated and next observation.
        draw: returns a batch.
    """

    def __init__(
        self,
        env: gym.Env[Array, Array],
        counted: Counted,
        draw: Callable[[], Batch],
        store: Callable[[Array, Array, float, bool, Array], None] | None = None,
    ) -> None:
        self._env, self.counted, self.draw, self._store = env, counted, draw, store
        self._observation, _ = env.reset(seed=0)

    def step(self) -> None:
        """One step, stored."""
        action = self.counted.action()
        after, reward, _, truncated, _ = self._env.step(action)
        if self._store is not None:
            self._store(self._observation, action, float(reward), truncated, after)
        if truncated:
            after, _ = self._env.reset()
        self._observation = after

    def run(self, draws: int, *, alone: bool) -> float:
        """Microseconds for each draw, or for each step and draw, while so many steps are played."""
        clock, drawing, step, draw = time.perf_counter, 0.0, self.step, self.draw
        begin = clock()
        for _ in range(draws):
            step()
            before = clock()
            draw()
            drawing += clock() - before
        return 1e6 * (drawing if alone else clock() - begin) / draws


def ours(folder: Path, size: Size, stack: ExitStack, **options: Any) -> Player:
    """A recorder into a ring, and its buffer's ``sample``."""
    env = Counted(size.length)
    recorder = RecordToBuffer(env, folder, circular=True, max_steps=size.steps)
    stack.callback(recorder.close)
    return Player(recorder, env, partial(recorder.buffer.sample, BATCH, **options))


def cpprb(folder: Path, size: Size) -> Player:
    env = Counted(size.length)
    buffer = cpprb_buffer(size.steps, OBSERVATIONS, {"shape": ACTIONS})

    def draw() -> Batch:
        return {CPPRB[name]: torch.from_numpy(values) for name, values in buffer.sample(BATCH).items()}

    def store(observation: Array, action: Array, reward: float, truncated: bool, after: Array) -> None:
        buffer.add(obs=observation, next_obs=after, act=action, rew=reward, done=False, cut=truncated)
        if truncated:
            buffer.on_episode_end()

    return Player(env, env, draw, store)


def sb3(folder: Path, size: Size) -> Player:
    env = Counted(size.length)
    buffer = sb3_buffer(size.steps, env.observation_space, env.action_space)

    def draw() -> Batch:
        return sb3_batch(buffer.sample(BATCH))

    def store(observation: Array, action: Array, reward: float, truncated: bool, after: Array) -> None:
        infos = [{"TimeLimit.truncated": truncated}]
        buffer.add(observation, after, action, np.array([reward]), np.array([truncated]), infos)

    return Player(env, env, draw, store)


def torchrl(folder: Path, size: Size, *, on_disk: bool) -> Player:
    env = Counted(size.length)
    buffer = torchrl_buffer(size.steps, folder if on_disk else None, BATCH)

    def draw() -> Batch:
        return flat(buffer.sample())

    def store(observation: Array, action: Array, reward: float, truncated: bool, after: Array) -> None:
        arrays = {"observation": observation, "action": action, "next_observation": after}
        flags = {"terminated": torch.tensor([False]), "truncated": torch.tensor([truncated])}
        rows = {name: torch.from_numpy(array) for name, array in arrays.items()}
        buffer.add(tensordict(nested({**rows, "reward": torch.tensor([reward]), **flags})))

    return Player(env, env, draw, store)


def tianshou(folder: Path, size: Size) -> Player:
    env = Counted(size.length)
    data = import_module("tianshou.data")
    buffer = data.ReplayBuffer(size.steps)
    names = {"obs": "observation", "obs_next": "next_observation", "act": "action", "rew": "reward"}
    names |= {"terminated": "terminated", "truncated": "truncated"}

    def draw() -> Batch:
        found, _ = buffer.sample(BATCH)
        return {ours: torch.from_numpy(found[theirs]) for theirs, ours in names.items()}

    def store(observation: Array, action: Array, reward: float, truncated: bool, after: Array) -> None:
        row = {"obs": observation, "obs_next": after, "act": action, "rew": reward}
        buffer.add(data.Batch(**row, terminated=False, truncated=truncated, info={}))

    return Player(env, env, draw, store)


IN_MEMORY = "in memory, with replacement"
PEERS: dict[str, Use[Callable[[Path, Size], Player]]] = {
    "cpprb": Use("cpprb", f"ReplayBuffer.add and sample {IN_MEMORY}, then torch.from_numpy", cpprb),
    "Stable-Baselines3": Use("Stable-Baselines3", f"ReplayBuffer.add and sample {IN_MEMORY}; one flag, done", sb3),
    "torchrl": Use("torchrl", "ReplayBuffer of LazyTensorStorage: add and sample", partial(torchrl, on_disk=False)),
    "torchrl, memmap": Use("torchrl", "the same of LazyMemmapStorage", partial(torchrl, on_disk=True)),
    "tianshou": Use("tianshou", f"ReplayBuffer.add and sample {IN_MEMORY}, then torch.from_numpy", tianshou),
}


def measure(suite: Suite, size: Size) -> None:
    """Both tables."""
    found, notes = suite.peers(PEERS)
    with ExitStack() as stack:
        kinds: dict[str, dict[str, Any]] = {
            OURS: {},
            f"{OURS}, open episodes too": {"include_open": True},
            f"{OURS}, by priority": {"sampler": PrioritizedSampler()},
            f"{OURS}, n_steps=3": {"n_steps": 3, "discount": 0.99},
        }
        players = {
            name: ours(suite.folder / str(number), size, stack, **options)
            for number, (name, options) in enumerate(kinds.items())
        }
        players |= {name: make(suite.folder / name, size) for name, make in found.items()}
        for name, player in players.items():
            for _ in range(size.steps + 3 * size.length // 2):
                player.step()
            check(name, player.draw(), player.counted, size.steps)
        limits = {"cpprb": 1.0, "Stable-Baselines3": 1.0, "torchrl": 1.0, "tianshou": 1.0}
        for alone in (True, False):
            suite.compare(
                f"Batches of {BATCH} while it is recorded: "
                + ("a draw" if alone else "a step, its storing, and a draw"),
                "us",
                {name: partial(player.run, size.draws, alone=alone) for name, player in players.items()},
                size.repeats,
                targets=[Target(name, limit, of=OURS, at_least=True) for name, limit in limits.items()],
                notes=notes,
            )


if __name__ == "__main__":
    command("sample", __doc__, measure, Size(), SMOKE)

"""Transitions stored by hand, one call each, for ``benchmarks.record``."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap

from benchmarks.peers import Use, memmap_buffer, torchrl_buffer
from benchmarks.report import OURS, Target
from benchmarks.suite import Suite
from gym_replay import ReplayBuffer

Row = dict[str, Any]
SHAPES = {"state": (17,), "action": (6,), "reward": ()}
FIELDS = {"state": ("float", (17,)), "action": ("float", (6,)), "reward": "float"}
FLOOR = "NumPy memory maps"


class Store(NamedTuple):
    """A buffer under test.

    Args:
        store: takes one transition by keywords.
        episode: begins an episode, a context.
        stored: by field, the first rows, as many as asked for.
    """

    store: Callable[..., Any]
    episode: Callable[[], AbstractContextManager[Any]]
    stored: Callable[[int], dict[str, Any]]


Make = Callable[[Path, int, int], Store]
"""From a folder, the number of steps and the length of an episode."""


def ours(folder: Path, steps: int, length: int) -> Store:
    buffer = ReplayBuffer(folder / "buffer", fields=FIELDS)
    return Store(buffer.store, buffer.one_episode, lambda count: {name: buffer.episode(0)[name] for name in FIELDS})


def plain(folder: Path, steps: int, length: int) -> Store:
    columns = {
        name: open_memmap(folder / f"{name}.npy", "w+", np.float32, (steps, *shape)) for name, shape in SHAPES.items()
    }
    states, actions, rewards = (column.view(np.ndarray) for column in columns.values())
    place = iter(range(steps))

    def store(*, state: Any, action: Any, reward: Any) -> None:
        row = next(place)
        states[row] = state
        actions[row] = action
        rewards[row] = reward

    return Store(store, nullcontext, lambda count: {name: column[:count] for name, column in columns.items()})


def memmap_replay_buffer(folder: Path, steps: int, length: int) -> Store:
    buffer = memmap_buffer(folder, steps // length, length, FIELDS)
    return Store(buffer.store, buffer.one_episode, lambda count: {name: buffer.data[name][0] for name in FIELDS})


def cpprb(folder: Path, steps: int, length: int) -> Store:
    buffer = import_module("cpprb").ReplayBuffer(steps, {name: {"shape": shape or 1} for name, shape in SHAPES.items()})

    def stored(count: int) -> dict[str, Any]:
        return {name: values[:count] for name, values in buffer.get_all_transitions().items()}

    return Store(buffer.add, nullcontext, stored)


def torchrl(folder: Path, steps: int, length: int) -> Store:
    make, buffer = import_module("tensordict").TensorDict, torchrl_buffer(steps, folder / "storage")
    of = torch.from_numpy

    def store(*, state: Any, action: Any, reward: Any) -> None:
        buffer.add(make({"state": of(state), "action": of(action), "reward": torch.tensor(reward)}, batch_size=[]))

    store(**{name: values[0] for name, values in rows(1).items()})  # the files are made with the first transition
    buffer.empty()
    return Store(store, nullcontext, lambda count: {name: buffer[:count][name].numpy() for name in FIELDS})


PEERS: dict[str, Use[Make]] = {
    "memmap-replay-buffer": Use(
        "memmap-replay-buffer", "one_episode and store, flush_every_store_step=0", memmap_replay_buffer
    ),
    "torchrl": Use("torchrl", "ReplayBuffer.add of a TensorDict, LazyMemmapStorage", torchrl),
    "cpprb": Use("cpprb", "ReplayBuffer.add, in memory", cpprb),
}


def rows(length: int) -> dict[str, Any]:
    """An episode: an array for each field, but a list of Python numbers for the reward."""
    generator = np.random.default_rng(0)
    drawn = {name: generator.standard_normal((length, *shape), np.float32) for name, shape in SHAPES.items()}
    return {**drawn, "reward": drawn["reward"].tolist()}


def run(make: Make, steps: int, length: int, parent: Path) -> float:
    """Microseconds per call, commits included; what is stored is compared with what was given."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    given = rows(length)
    transitions = list(zip(*given.values(), strict=True))
    store, episode, stored = make(folder, steps, length)
    begin = time.perf_counter()
    for _ in range(steps // length):
        with episode():
            for state, action, reward in transitions:
                store(state=state, action=action, reward=reward)
    taken = time.perf_counter() - begin
    found = stored(length)
    for name, values in given.items():
        expected = np.asarray(values, np.float32)
        np.testing.assert_array_equal(np.asarray(found[name]).reshape(expected.shape), expected, err_msg=name)
    shutil.rmtree(folder)
    return 1e6 * taken / (steps // length * length)


def by_hand(suite: Suite, steps: int, length: int, repeats: int) -> None:
    """The table of ``buffer.store(state=..., action=..., reward=...)``."""
    peers, notes = suite.peers(PEERS)
    fewer = max(length, steps // 10)
    contenders = {FLOOR: plain, OURS: ours, **peers}
    suite.compare(
        f"store(state=..., action=..., reward=...): 17, 6 and 1 float32, episodes of {length} steps",
        "us per call",
        {name: partial(run, make, fewer, length, suite.folder) for name, make in contenders.items()},
        repeats,
        targets=[Target(OURS, 3.0)],
        notes=[
            "the floor assigns rows of arrays that have their full size from the start, and commits nothing",
            *notes,
        ],
    )

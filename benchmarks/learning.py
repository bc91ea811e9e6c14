"""What the data path costs a learner: TD3+BC fed in several ways: ``python -m benchmarks.learning``.

The same TD3+BC, of ``examples/offline_rl/td3_bc.py``, makes gradient steps on the same data, with one thread of torch.
What differs is where a batch comes from. Beside the steps of a second stands the share of a step that waits for data.
All read from the page cache, after each was asked for a batch that was compared with what was stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from benchmarks.episodes import Episodes
from benchmarks.learning_frames import PixelTD3BC, frame_batches
from benchmarks.learning_peers import DISCOUNT, PEERS, Batch, in_memory
from benchmarks.load import SCHEMA, store
from benchmarks.load_peers import Stored
from benchmarks.report import OURS, Target
from benchmarks.suite import Suite, command, option
from benchmarks.timing import forever
from examples.offline_rl.td3_bc import TD3BC
from gym_replay import FieldStatistics, ReplayBuffer, n_step_loader, statistics

MEMORY = "tensors in memory"
WAITING = "% of a step waits"


@dataclass(frozen=True)
class Size:
    episodes: int = option(500, "episodes of states")
    length: int = option(1000, "steps of an episode")
    steps: int = option(200, "gradient steps of a run, on states")
    frames: int = option(20_000, "frames of 84x84")
    frame_steps: int = option(5, "gradient steps of a run, on frames")
    repeats: int = option(7, "runs of each contender")
    threads: int = option(1, "threads of torch")


SMOKE = Size(episodes=20, length=40, steps=4, frames=300, frame_steps=1, repeats=2)


class Feed(NamedTuple):
    """A learner and what it is fed with."""

    update: Callable[[Batch], None]
    batches: Iterator[Batch]


def ours(buffer: ReplayBuffer, found: Mapping[str, FieldStatistics] | None) -> Iterator[Batch]:
    """As ``examples/offline_rl/td3_bc.py`` loads: one-step batches, normalized with the statistics if there are any."""
    return forever(n_step_loader(buffer, 256, discount=DISCOUNT, normalize=found, shuffle=True, drop_last=True, seed=0))


def learn(feed: Feed, steps: int, waited: list[float]) -> float:
    """Gradient steps a second; the share of the time that waits for data, in percent, is noted."""
    waiting, begin = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(feed.batches)
        waiting += time.perf_counter() - asked
        feed.update(batch)
    taken = time.perf_counter() - begin
    waited.append(100 * waiting / taken)
    return steps / taken


def compare(
    suite: Suite, title: str, feeds: Mapping[str, Feed], steps: int, repeats: int, *, targets: Any, notes: Any
) -> None:
    """A table of learners that take turns."""
    waited: dict[str, list[float]] = {name: [] for name in feeds}  # of the round that does not count too
    turns = {name: partial(learn, feed, steps, waited[name]) for name, feed in feeds.items()}
    extras = {WAITING: waited}
    suite.compare(title, "steps/s", turns, repeats, targets=targets, notes=notes, extras=extras)


def states(suite: Suite, size: Size, stack: ExitStack) -> None:
    """Batches of 256 transitions of states."""
    data = Episodes.random(SCHEMA, np.full(size.episodes, size.length))
    buffer = stack.enter_context(store(data, suite.folder / "buffer"))
    found = statistics(buffer, ["observation"], progress=False)
    stored = Stored(data, suite.folder)
    sources = {MEMORY: in_memory(stored), OURS: ours(buffer, found)}
    peers, notes = suite.peers(PEERS)
    sources |= {name: make(stored) for name, make in peers.items()}
    for name, batches in {**sources, OURS: ours(buffer, None)}.items():
        check_states(name, data, next(batches))
    space = gym.spaces.Box(-1, 1, (6,))
    feeds = {name: Feed(TD3BC(found["observation"], space).update, batches) for name, batches in sources.items()}
    compare(
        suite,
        f"TD3+BC on {size.episodes * size.length:,} transitions: observation 17, action 6, batches of 256",
        feeds,
        size.steps,
        size.repeats,
        targets=[Target(OURS, 0.95, of=MEMORY, at_least=True)],
        notes=[*notes, f"{MEMORY}: five tensors, indexed with random numbers, as CORL has it; normalized before"],
    )


def check_states(name: str, data: Episodes, batch: Batch) -> None:
    """Raise AssertionError unless the batch holds what was stored."""
    ended = np.asarray(batch["n_step_discount"]) == 0
    found = {**batch, "reward": batch["n_step_return"], "terminated": ended}
    flags = [] if name == "d3rlpy" else ["terminated"]  # there only an episode's last transition terminates
    data.check_batch(name, found, (256,), ["next_observation", "action", "reward", *flags])


def frames(suite: Suite, size: Size, stack: ExitStack) -> None:
    """Batches of 64 stacks of frames, raw, encoded and in memory."""
    sources, notes = frame_batches(suite, size.frames, stack, smoke=size.frames < 1000)
    feeds = {name: Feed(PixelTD3BC().update, batches) for name, batches in sources.items()}
    title = f"TD3+BC on {size.frames:,} frames of 84x84: stacks of 4, batches of 64"
    compare(suite, title, feeds, size.frame_steps, size.repeats, targets=[], notes=notes)


def measure(suite: Suite, size: Size) -> None:
    """Both tables."""
    before = torch.get_num_threads()
    torch.set_num_threads(size.threads)
    try:
        with ExitStack() as stack:
            states(suite, size, stack)
            frames(suite, size, stack)
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    command("learning", __doc__, measure, Size(), SMOKE)

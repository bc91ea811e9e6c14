"""What it costs that a buffer has become large: many steps, and many episodes.

One recorder writes the whole buffer and is stopped at each size. There, a few more stretches of episodes are timed,
and fresh processes open what has been committed so far. In the end loaders over the first part of the buffer take
turns, one for each size, and so does ``numpy.take`` of the same fields at random rows of the same part.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from benchmarks.curves import Panel, Study
from benchmarks.floors import bare, column
from benchmarks.growing import anonymous, open_afresh, play
from benchmarks.idle import Idle
from benchmarks.timing import forever, per_item, take_turns
from gym_replay import RecordToBuffer, ReplayBuffer

BATCH = 256
BARE, OURS, TAKE = "environment alone", "RecordToBuffer", "numpy.take"
_LEAST = 0.01
"""MiB that are drawn where a process holds no more than before: a logarithmic axis has no zero."""


class HowOften(NamedTuple):
    """Repetitions of each.

    Attributes:
        runs: of what is timed in this process.
        openings: in fresh processes.
        batches: of a run, and those after which the memory of a reader is looked at.
    """

    runs: int
    openings: int
    batches: int


def steps(folder: Path, sizes: Sequence[int], how_often: HowOften) -> Study:
    """Rows of 4-byte observations, in episodes of 1000 steps."""
    study = _study("A buffer of more and more steps (episodes of 1000, observations of 4 bytes)", "steps in the buffer")
    width = min(1000, min(sizes) // 10)
    return _grow(study, folder, 1, width, [size // width for size in sizes], how_often, per=width)


def episodes(folder: Path, sizes: Sequence[int], how_often: HowOften) -> Study:
    """Episodes of 10 steps."""
    title = "A buffer of more and more episodes (of 10 steps, observations of 16 bytes)"
    return _grow(_study(title, "episodes in the buffer"), folder, 4, 10, sizes, how_often, per=1)


def _study(title: str, x: str) -> Study:
    panels = {
        "record": Panel("recording", x, "us per call"),
        "load": Panel(f"loading, n-step batches of {BATCH}, shuffled", x, "us per batch"),
        "open": Panel("opening, in a fresh process", x, "ms"),
        "memory": Panel("memory of its own, beyond what a process had before", x, "MiB"),
    }
    return Study(title, panels)


def _grow(
    study: Study,
    folder: Path,
    width: int,
    length: int,
    sizes: Sequence[int],
    how_often: HowOften,
    *,
    per: int,
) -> Study:
    """Record episodes of ``length`` steps; a size is a number of episodes, drawn as ``per`` times that."""
    space = gym.spaces.Box(-np.inf, np.inf, (width,))
    panels, buffer = study.panels, folder / "buffer"
    gc.collect()
    before = anonymous()
    env = RecordToBuffer(Idle(space, gym.spaces.Discrete(2), length), buffer)
    done = 0
    for size in sizes:
        worst = play(env, length, size - done).worst
        done = size
        stretch = max(2, min(size // 10, 200_000 // length, 2000))
        for _ in range(how_often.runs):
            played = play(env, length, stretch)
            done += stretch
            panels["record"].add(f"step, {OURS}", per * size, [played.step])
            panels["record"].add(f"last step, {OURS}", per * size, [played.last])
            panels["record"].add(f"reset, {OURS}", per * size, [played.reset])
            panels["record"].add(f"step, {BARE}", per * size, [play(env.env, length, stretch).step])
            worst = max(worst, played.worst)
        panels["record"].add("longest last step", per * size, [worst])
        gc.collect()
        panels["memory"].add("the recorder", per * size, [max(anonymous() - before, _LEAST)])
        for _ in range(how_often.openings):
            opened = open_afresh(buffer, how_often.batches)
            panels["open"].add("opened", per * size, [opened.opened])
            panels["open"].add("first batch", per * size, [opened.first])
            panels["memory"].add("a reader, opened", per * size, [max(opened.held, _LEAST)])
            panels["memory"].add(
                f"a reader, {how_often.batches} batches later", per * size, [max(opened.held_later, _LEAST)]
            )
    env.close()
    _load(panels["load"], buffer, length, sizes, how_often, per=per)
    study.notes.append(f"{_LEAST} MiB: no more than before")
    files = [path for path in buffer.rglob("*") if path.is_file()]
    nbytes = sum(path.stat().st_size for path in files)
    study.notes.append(f"{done} episodes of {length} steps, {nbytes / 1e9:.2f} GB")
    return study


def _load(panel: Panel, folder: Path, length: int, sizes: Sequence[int], how_often: HowOften, *, per: int) -> None:
    for path in (folder / "steps").rglob("*.npy"):  # into the page cache
        with path.open("rb") as stream:
            while stream.read(1 << 24):
                pass
    columns = {name: (column(folder, name), 0) for name in _fields(folder)}
    columns["next_observation"] = columns["observation"][0], 1
    generator = np.random.default_rng(0)
    contenders: dict[str, Any] = {}
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        for size in sizes:
            loader = buffer.dataloader(BATCH, n_steps=1, shuffle=True, drop_last=True, episodes=np.arange(size))
            _check(buffer, columns["observation"][0], length, size)
            rows = [
                generator.integers(0, size, BATCH) * (length + 1) + generator.integers(0, length, BATCH)
                for _ in range(max(how_often.batches, 2))
            ]
            contenders[f"gym_replay {size}"] = forever(loader)
            contenders[f"{TAKE} {size}"] = bare(columns, itertools.cycle(rows))
        turns = {name: partial(per_item, each, how_often.batches) for name, each in contenders.items()}
        measured = take_turns(turns, how_often.runs)
    for size in sizes:
        for name in ("gym_replay", TAKE):
            panel.add(name, per * size, measured[f"{name} {size}"])


def _check(buffer: ReplayBuffer, observations: npt.NDArray[Any], length: int, size: int) -> None:
    """Raise AssertionError unless batches hold what is in the file."""
    chosen = np.arange(size)
    batch = next(iter(buffer.dataloader(BATCH, n_steps=1, shuffle=True, episodes=chosen, return_indices=True)))
    episode, step = batch["_indices"].numpy().T
    for name, later in (("observation", 0), ("next_observation", 1)):
        np.testing.assert_array_equal(batch[name], observations[episode * (length + 1) + step + later])


def _fields(folder: Path) -> list[str]:
    return [path.stem for path in (folder / "steps").glob("*.npy")]

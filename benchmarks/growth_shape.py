"""What it costs that rows are large, batches are large, and workers are several."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from benchmarks.curves import Panel, Study
from benchmarks.floors import bare, column
from benchmarks.growing import batches_for, play
from benchmarks.idle import Idle, OneWrite
from benchmarks.timing import forever, per_item, take_turns
from gym_replay import Field, RecordToBuffer, ReplayBuffer, window_loader

BATCH = 256
OURS, TAKE = "gym_replay", "numpy.take"
MOTOR: dict[str, Any] = {
    "observation": Field("float32", (17,), state=True),
    "action": Field("float32", (6,)),
    "reward": "float64",
    "terminated": "bool",
    "truncated": "bool",
}


def rows(folder: Path, sizes: Sequence[int], nbytes: int, repeats: int, seconds: float) -> Study:
    """Observations of so many bytes; ``nbytes`` are recorded in a run, and lie in the buffer that is loaded from."""
    x = "bytes of an observation"
    record = Panel("recording, the whole loop", x, "us per step")
    load = Panel(f"loading, batches of {BATCH} observations, shuffled", x, "us per observation")
    for size in sizes:
        _record_rows(record, folder, size, max(300, min(20_000, nbytes // size // 4)), repeats)
        _load_rows(load, folder, size, max(4 * BATCH, min(200_000, nbytes // size)), repeats, seconds)
    return Study("Larger and larger rows", {"record": record, "load": load})


def _record_rows(panel: Panel, folder: Path, size: int, count: int, repeats: int) -> None:
    length = 100
    space = gym.spaces.Box(0, 255, (size,), np.uint8)
    makers: dict[str, Callable[[gym.Env[Any, Any], Path], gym.Env[Any, Any]]] = {
        "environment alone": lambda env, path: env,
        "one pwrite a step": lambda env, path: OneWrite(env, path / "file", 2 * count * size),
        "RecordToBuffer": lambda env, path: RecordToBuffer(env, path / "buffer"),
    }

    def run(name: str) -> float:
        path = Path(tempfile.mkdtemp(dir=folder))
        env = makers[name](Idle(space, gym.spaces.Discrete(2), length), path)
        begin = time.perf_counter()
        play(env, length, count // length)
        taken = 1e6 * (time.perf_counter() - begin) / (count // length * length)
        env.close()
        shutil.rmtree(path)
        return taken

    for name, values in take_turns({name: partial(run, name) for name in makers}, repeats).items():
        panel.add(name, size, values)


def _load_rows(panel: Panel, folder: Path, size: int, count: int, repeats: int, seconds: float) -> None:
    path = folder / "rows"
    length = min(count, 1000)
    generator = np.random.default_rng(0)
    with ReplayBuffer(path, fields={"observation": Field("uint8", (size,))}) as buffer:
        for _ in range(count // length):
            buffer.store_episode(observation=generator.integers(0, 256, (length, size), np.uint8))
        count = buffer.num_steps
    with ReplayBuffer.from_folder(path, read_only=True) as buffer:
        lot = [generator.integers(0, count, BATCH) for _ in range(500)]
        loader = buffer.dataloader(BATCH, timestep_level=True, shuffle=True, drop_last=True)
        contenders = {
            OURS: forever(loader),
            TAKE: bare({"observation": (column(path, "observation"), 0)}, itertools.cycle(lot)),
        }
        turns = {name: partial(per_item, each, batches_for(each, seconds, 2000)) for name, each in contenders.items()}
        for name, values in take_turns(turns, repeats).items():
            panel.add(name, size, [value / BATCH for value in values])
    shutil.rmtree(path)


def batches(folder: Path, sizes: Sequence[int], episodes: int, repeats: int, seconds: float) -> Study:
    """N-step batches of so many transitions."""
    x, length = "transitions in a batch", 1000
    whole, each = Panel("a batch", x, "us per batch"), Panel("a transition of it", x, "us per transition")
    path = store_motor(folder / "batches", episodes, length)
    columns = {name: (column(path, name), 0) for name in MOTOR}
    columns["next_observation"] = columns["observation"][0], 1
    generator = np.random.default_rng(1)
    with ReplayBuffer.from_folder(path, read_only=True) as buffer:
        for size in sizes:
            if size > buffer.num_steps:
                raise ValueError(f"a batch of {size} needs as many steps; there are {buffer.num_steps}")
            lot = [
                generator.integers(0, episodes, size) * (length + 1) + generator.integers(0, length, size)
                for _ in range(max(2, min(1000, 2_000_000 // size)))
            ]
            loader = buffer.dataloader(size, n_steps=1, shuffle=True, drop_last=True)
            contenders: dict[str, Iterator[Any]] = {OURS: forever(loader), TAKE: bare(columns, itertools.cycle(lot))}
            turns = {name: partial(per_item, one, batches_for(one, seconds, 5000)) for name, one in contenders.items()}
            for name, values in take_turns(turns, repeats).items():
                whole.add(name, size, values)
                each.add(name, size, [value / size for value in values])
    shutil.rmtree(path)
    title = "Larger and larger batches (n-step: observation 17, action 6, reward, flags, next observation)"
    return Study(title, {"batch": whole, "transition": each})


def store_motor(path: Path, episodes: int, length: int) -> Path:
    """Episodes of random vectors; returns the folder."""
    generator = np.random.default_rng(0)
    with ReplayBuffer(path, fields=MOTOR) as buffer:
        for _ in range(episodes):
            buffer.store_episode(
                observation=generator.standard_normal((length + 1, 17), np.float32),
                action=generator.standard_normal((length, 6), np.float32),
                reward=generator.standard_normal(length),
                terminated=np.zeros(length, bool),
                truncated=np.arange(length) == length - 1,
            )
    return path


class Busy:
    """A transform that takes a processor for so many seconds, as augmentation does."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        end = time.perf_counter() + self._seconds
        while time.perf_counter() < end:
            pass
        return batch


def workers(
    folder: Path, numbers: Sequence[int], episodes: tuple[int, int], count: int, repeats: int, seconds: float
) -> Study:
    """So many worker processes, for frames and for vectors.

    Args:
        folder: where to write.
        numbers: of workers.
        episodes: how many of frames (of 500 steps), and of vectors (of 1000).
        count: batches of a run.
        repeats: runs of each.
        seconds: of a training step that takes place elsewhere, on an accelerator, during which this process sleeps;
            and of a transform, which takes a processor.
    """
    x, length = "worker processes", f"{1e3 * seconds:g} ms"
    uses: dict[str, tuple[float, Busy | None]] = {
        "nothing but loading": (0.0, None),
        f"{length} of training elsewhere": (seconds, None),
        f"a transform of {length}": (0.0, Busy(seconds)),
    }
    panels = {
        "frames": Panel("frames: 64 stacks of 4 and the next one, 84x84", x, "us per batch", is_log=False),
        "vectors": Panel(f"vectors: n-step batches of {BATCH}", x, "us per batch", is_log=False),
    }
    paths = {"frames": _store_frames(folder / "frames", episodes[0]), "vectors": folder / "vectors"}
    store_motor(paths["vectors"], episodes[1], 1000)
    for kind, path in paths.items():
        with ReplayBuffer.from_folder(path, read_only=True) as buffer:
            for name, (pause, transform) in uses.items():
                runs = {}
                for number in numbers:
                    loaded = forever(_loader(kind, buffer, number, transform))
                    next(loaded)
                    runs[str(number)] = partial(_train, loaded, count, pause)
                for key, values in take_turns(runs, repeats).items():
                    panels[kind].add(name, int(key), values)
                del runs, loaded  # ends the workers
        shutil.rmtree(path)
    return Study("Worker processes", panels)


def _loader(kind: str, buffer: ReplayBuffer, workers: int, transform: Busy | None) -> Any:
    options: dict[str, Any] = {"shuffle": True, "drop_last": True, "num_workers": workers, "transform": transform}
    options["persistent_workers"] = workers > 0
    if kind == "vectors":
        return buffer.dataloader(BATCH, n_steps=1, **options)
    offsets = {"observation": range(-3, 2)}
    return window_loader(buffer, 64, offsets=offsets, fields=(), boundary="drop", **options)


def _store_frames(path: Path, episodes: int) -> Path:
    generator = np.random.default_rng(3)
    with ReplayBuffer(path, fields={"observation": Field("uint8", (84, 84), state=True), "action": "int"}) as buffer:
        for _ in range(episodes):
            shown = generator.integers(0, 256, (501, 84, 84), np.uint8)
            buffer.store_episode(observation=shown, action=np.zeros(500, np.int64))
    return path


def _train(batches: Iterator[Any], count: int, pause: float) -> float:
    """Microseconds per batch, training included."""
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
        if pause:
            time.sleep(pause)
    return 1e6 * (time.perf_counter() - begin) / count

"""Frames that are stored encoded, next to raw ones and to public peers: ``python -m benchmarks.frames``.

What environments really show: two Atari games in colours, one of them as agents see it, CarRacing, renders of
HalfCheetah, and a synthetic camera whose sensor is noisy. A scene whose packages are missing, or that cannot be
rendered here, is left out with a line.

Everything is in the page cache or in memory, and every contender's first batch is compared with what was stored
before anything is timed: bit for bit, but for the lossy ones. A frame that is in a batch several times counts as often
as it is delivered. Peers are given the row numbers of a batch; we draw our own, in random order.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch

from benchmarks.episodes import windows
from benchmarks.frames_peers import LOSSLESS, LOSSY, Kept, size_of
from benchmarks.frames_scenes import NAMES, Scene, Shown, scene
from benchmarks.peers import PACKAGES
from benchmarks.record import play, sampled
from benchmarks.report import OURS, Table, Target
from benchmarks.suite import Suite, command, option
from benchmarks.timing import take_turns
from gym_replay import Field, RecordToBuffer, ReplayBuffer

RAW, LZ4, JPEG = f"{OURS}, raw", f"{OURS}, lz4", f"{OURS}, JPEG"
CODECS: dict[str, Any] = {
    RAW: None,
    OURS: "zstd",
    LZ4: "lz4",
    JPEG: {"id": "imagecodecs_jpeg", "level": 90},
}
"""Ours by codec; what has none of the names is zstd."""
BATCH_NBYTES = 150_000_000
WITHOUT_SHARING = 8
"""A contender that decodes a frame anew for each sample gets batches of so many times fewer samples, to save time."""
MOST_DIFFERENT = 30
"""Levels by which a lossy frame may differ, as a root of the mean square: colours of games lose most, by 4:2:0."""


@dataclass(frozen=True)
class Size:
    scenes: tuple[str, ...] = option(NAMES, f"which scenes, some of {', '.join(NAMES)}")
    megabytes: int = option(200, "raw frames of a scene; a tenth of it where they are of 84x84 or 96x96")
    length: int = option(100, "frames of an episode")
    seconds: float = option(0.2, "how long a turn of a contender lasts, at least one batch")
    steps: int = option(400, "steps of a recording")
    repeats: int = option(3, "turns of each contender")
    quick: bool = option(False, "a tenth of the frames, and one turn")


SMOKE = Size(scenes=("camera",), megabytes=6, length=20, seconds=0.01, steps=12, repeats=2)


class Sample(NamedTuple):
    """What a sample of a batch is: frames at these offsets around a step."""

    title: str
    offsets: range
    batch_size: int

    def of(self, shown: Scene) -> Sample:
        """With fewer samples a batch, where there are few, or the frames are large."""
        episodes, length = shown.frames.shape[:2]
        size = min(self.batch_size, episodes * (length - len(self.offsets)))
        while size > 1 and size * len(self.offsets) * shown.frame_nbytes > BATCH_NBYTES:
            size //= 2
        return self._replace(batch_size=size)


SAMPLES = (Sample("stacks of 4 and the next one", range(-3, 2), 256), Sample("windows of 16", range(16), 64))


class Loaded(NamedTuple):
    """A batch: frames ``(samples, length, *shape)``, and which rows of the scene they are."""

    frames: Any
    rows: Any


def ours(shown: Scene, folder: Path, codec: Any, times: int = 1) -> int:
    """A buffer with all frames, so many times; the bytes of its files of frames."""
    field = Field("uint8", shown.shape, state=True, codec=codec)
    with ReplayBuffer(folder, fields={"observation": field, "action": "uint8"}) as buffer:
        for frames in (frames for _ in range(times) for frames in shown.frames):
            buffer.store_episode(observation=frames, action=np.zeros(len(frames) - 1, np.uint8))
    return size_of((folder / "steps").rglob("observation*"))


def our_batches(shown: Scene, folder: Path, sample: Sample) -> Iterator[Loaded]:
    """Batches of the loader, in random order."""
    length = shown.frames.shape[1]
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        options: dict[str, Any] = {"offsets": {"observation": sample.offsets}, "fields": (), "return_indices": True}
        for batch in windows(buffer, sample.batch_size, **options):
            first = batch["_indices"][:, 0] * length + batch["_indices"][:, 1]
            yield Loaded(batch["observation"], first[:, None] + torch.tensor(sample.offsets))


def their_batches(shown: Scene, kept: Kept, sample: Sample) -> Iterator[Loaded]:
    """Batches of a peer, of random rows."""
    generator = np.random.default_rng(1)
    episodes, length = shown.frames.shape[:2]
    while True:
        episode = generator.integers(0, episodes, sample.batch_size)
        first = episode * length + generator.integers(0, length - len(sample.offsets) + 1, sample.batch_size)
        rows = first[:, None] + np.arange(len(sample.offsets))
        yield Loaded(kept.read(rows), rows)


def check(name: str, shown: Scene, loaded: Loaded, *, lossy: bool) -> None:
    """Raise AssertionError unless the frames are those of the rows."""
    expected, found = shown.flat[np.asarray(loaded.rows)], np.asarray(loaded.frames)
    assert found.shape == expected.shape, f"{name}: {found.shape}, expected {expected.shape}"
    if not lossy:
        np.testing.assert_array_equal(found, expected, name)
    else:
        some = slice(None, None, 8)
        error = np.sqrt(np.square(found[some].astype(np.float32) - expected[some]).mean())
        assert 0 < error < MOST_DIFFERENT, f"{name}: differs by {error} levels"


def rate(batches: Iterator[Loaded], count: int) -> float:
    """Frames a second of the next batches."""
    begin, frames = time.perf_counter(), 0
    for _ in range(count):
        loaded = next(batches)
        frames += loaded.frames.shape[0] * loaded.frames.shape[1]
    return frames / (time.perf_counter() - begin)


def load(suite: Suite, shown: Scene, folder: Path, codecs: dict[str, Any], size: Size) -> None:
    """Bytes, and frames a second, of each kind of sample."""
    peers, notes = suite.peers({**LOSSLESS, **LOSSY})
    kept = {name: keep(shown.flat, folder / name, shown.frames.shape[1]) for name, keep in peers.items()}
    nbytes = {name: ours(shown, folder / name, codec) for name, codec in codecs.items()}
    nbytes |= {name: one.nbytes for name, one in kept.items()}
    smaller = {name: [shown.frames.nbytes / count] for name, count in nbytes.items()}
    for sample in (sample.of(shown) for sample in SAMPLES):
        batches = {name: our_batches(shown, folder / name, sample) for name in codecs}
        for name, one in kept.items():
            shares = name in ("Lance", "torchrl")
            fewer = max(sample.batch_size // (1 if shares else WITHOUT_SHARING), 1)
            batches[name] = their_batches(shown, one, sample._replace(batch_size=fewer))
        turns: dict[str, Callable[[], float]] = {}
        for name, one in batches.items():
            begin = time.perf_counter()
            check(name, shown, next(one), lossy=name == JPEG or name in LOSSY)
            taken = time.perf_counter() - begin
            turns[name] = partial(rate, one, max(1, int(size.seconds / taken)))
        targets = [Target(OURS, 0.25, of=RAW, at_least=True)]
        targets += [Target(OURS, 1.0, of=name, at_least=True) for name in kept if name in LOSSLESS]
        suite.compare(
            f"{shown.title}: {sample.title}, {sample.batch_size} a batch, shuffled",
            "frames/s",
            turns,
            size.repeats,
            targets=targets,
            notes=notes,
            extras={"times smaller": smaller},
        )
        for one in batches.values():
            one.close()  # type: ignore[attr-defined]


def recorded(env: gym.Env[Any, Any], parent: Path, steps: int, codec: Any, *, record: bool) -> float:
    """Microseconds a step of a loop with a random policy."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    if record:
        env = RecordToBuffer(env, folder / "buffer", codecs=None if codec is None else {"observation": codec})
    try:
        begin = time.perf_counter()
        play(env, sampled(env), steps)
        env.reset()  # commits what is open
        return 1e6 * (time.perf_counter() - begin) / steps
    finally:
        if record:
            env.close()
        shutil.rmtree(folder)


def record(suite: Suite, shown: Scene, codecs: dict[str, Any], size: Size) -> None:
    """What recording the frames takes: what it adds to a step that takes no time, and of the game's whole loop."""
    bare = "not recorded"
    steps = min(size.steps, shown.frames.shape[0] * shown.frames.shape[1])

    def turns(env: gym.Env[Any, Any]) -> dict[str, Callable[[], float]]:
        return {
            name: partial(recorded, env, suite.folder, steps, codecs.get(name), record=name != bare)
            for name in (bare, *codecs)
        }

    loops = take_turns(turns(Shown(shown.frames)), size.repeats)
    floor = loops.pop(bare)
    added = {
        name: [max(mine - base, 1e-3) for mine, base in zip(loop, floor, strict=True)] for name, loop in loops.items()
    }
    suite.add(Table(f"{shown.title}: recording alone", "us added to a step", RAW, added))
    if shown.env is None:
        return
    title, targets = f"{shown.title}: random policy, the whole loop", [Target(OURS, 1.3, of=RAW)]
    suite.compare(title, "us per step", turns(shown.env()), size.repeats, targets=targets)


def measure(suite: Suite, size: Size) -> None:
    """All tables, scene by scene."""
    codecs = dict(CODECS)
    if (why := PACKAGES["imagecodecs"].missing()) is not None:
        suite.leave_out(f"{JPEG}: {why}")
        del codecs[JPEG]
    for name in size.scenes:
        megabytes = size.megabytes / (10 if name in ("mspacman84", "carracing") else 1) / (10 if size.quick else 1)
        try:
            shown = scene(name, size.length, int(1e6 * megabytes))
        except (ImportError, OSError, gym.error.Error, AttributeError) as error:  # the last is what PyOpenGL raises
            suite.leave_out(f"{name}: left out ({type(error).__name__}: {error})")
            continue
        with tempfile.TemporaryDirectory(dir=suite.folder) as folder:
            load(suite, shown, Path(folder), codecs, size)
        record(suite, shown, codecs, size)


if __name__ == "__main__":
    command("frames", __doc__, measure, Size(), SMOKE)

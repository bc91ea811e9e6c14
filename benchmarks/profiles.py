"""Where the time of recording and loading goes: ``python -m benchmarks.profiles``.

Tables of named parts, in microseconds and per cent, with their sum beside the whole, which is measured without any
clock inside; what the parts leave over is a line of its own. A profiler would cost more than what is looked at. A
recorded step takes less than half a microsecond, so that each of its parts is run alone, on the same data and the same
recorder. Everything else is measured with readings of the clock around the calls (``benchmarks/parts.py``), whose own
cost is measured and taken off.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import gym_replay.buffer.storage.checksums as checksums_module
import gym_replay.wrappers.record_to_buffer as recorder_module
import gym_replay.wrappers.single_session as single_module
import gym_replay.wrappers.vector.record_to_buffer as vector_module
import gym_replay.wrappers.vector.session as session_module
from benchmarks.curves import circumstances
from benchmarks.floors import bare, column
from benchmarks.growth_shape import MOTOR, store_motor
from benchmarks.idle import Idle, Passing
from benchmarks.parts import WITH_CLOCKS, Breakdown, Clocks
from benchmarks.timing import forever, per_item, take_turns
from gym_replay import RecordToBuffer, ReplayBuffer
from gym_replay.buffer.loading.collate import Arrays
from gym_replay.buffer.storage.checksums import Checksums
from gym_replay.buffer.storage.open_files import OpenFiles
from gym_replay.buffer.storage.room import Room
from gym_replay.buffer.storage.staging import Stage
from gym_replay.wrappers.vector import RecordToBuffer as RecordVectors
from gym_replay.wrappers.vector.episode_meta import EpisodeMeta

ALONE = "each part alone, on the same data"
CLOCKS = "readings of the clock around the calls"


@dataclass(frozen=True)
class Sizes:
    """How much is run: ``scale`` times fewer of everything."""

    scale: int = 1
    repeats: int = 7

    def of(self, count: int) -> int:
        return max(count // self.scale, 2)


def motor(length: int) -> tuple[gym.Env[Any, Any], Any]:
    """17 and 6 float32, and an action."""
    action = gym.spaces.Box(-1, 1, (6,))
    return Idle(gym.spaces.Box(-np.inf, np.inf, (17,)), action, length), action.sample()


def pole(length: int) -> tuple[gym.Env[Any, Any], Any]:
    """4 float32 and a discrete action, as CartPole has them."""
    return Idle(gym.spaces.Box(-5, 5, (4,)), gym.spaces.Discrete(2), length), np.int64(1)


# --- a step ---


def _steps(env: gym.Env[Any, Any], action: Any, episodes: int, length: int) -> float:
    """Microseconds per step of whole episodes."""
    begin = time.perf_counter()
    for _ in range(episodes):
        env.reset()
        for _ in range(length):
            env.step(action)
    return 1e6 * (time.perf_counter() - begin) / episodes / length


def step(folder: Path, sizes: Sizes) -> Breakdown:
    """What a recorded step costs beyond the environment's own, in episodes of 1000 steps."""
    length, episodes = 1000, sizes.of(30)
    env, action = motor(length)
    recorder, passing = RecordToBuffer(env, folder / "buffer"), Passing(motor(length)[0])
    plain = motor(length)[0]
    contenders = {"plain": plain, "passing": passing, "recorder": recorder}
    turns = {name: partial(_steps, each, action, episodes, length) for name, each in contenders.items()}
    measured = take_turns(turns, sizes.repeats)
    rounds = list(zip(measured["recorder"], measured["plain"], strict=True))
    parts = {"a wrapper's call": _median([b - a for a, b in zip(measured["plain"], measured["passing"], strict=True)])}
    parts |= _parts_of_step(recorder, action, sizes)
    whole_episodes = _ends(recorder, action, length, episodes)
    parts["reset, first and last step beyond others: open and commit, of 1000"] = whole_episodes / length
    recorder.close()
    return Breakdown(
        "A recorded step: observation 17, action 6, episodes of 1000; what it adds to the environment's own",
        ALONE,
        [mine - base for mine, base in rounds],
        {name: (taken, 1.0) for name, taken in parts.items()},
        {"the environment's own step": _median(measured["plain"])},
    )


_STATEMENTS = {
    "room for it: asked, taken": """
room = self._room
if room <= 0: pass
self._room = -1
self._room = room - 1
""",
    "action: dtype and shape compared": """
if (
    type(action) is _ndarray
    and action.dtype is self._action_dtype
    and ((action.ndim == 1 and len(action) == self._action_length) or action.shape == self._action_shape)
): pass
""",
    "what the environment returned: taken apart": """
try:
    observation, reward, terminated, truncated, _ = result
except (TypeError, ValueError): pass
""",
    "observation, reward, ends: compared": """
if (
    type(observation) is _ndarray
    and observation.dtype is self._plain_dtype
    and (
        (observation.ndim == 1 and len(observation) == self._plain_length)
        or observation.shape == self._plain_shape
    )
    and (type(reward) is float or type(reward) is _float64)
): pass
if terminated is False and truncated is False: pass
""",
}
_KEPT = "self._extend((observation.tobytes(), action.tobytes(), reward))"


def _parts_of_step(recorder: RecordToBuffer, action: Any, sizes: Sizes) -> dict[str, float]:
    """Microseconds of the statements of ``RecordToBuffer.step``, run alone with an episode under way."""
    recorder.reset()
    result = recorder.step(action)
    observation, reward, terminated, truncated, _ = result
    names: dict[str, Any] = {
        "self": recorder,
        "action": action,
        "result": result,
        "observation": observation,
        "reward": reward,
        "terminated": terminated,
        "truncated": truncated,
        "_ndarray": np.ndarray,
        "_float64": np.float64,
    }
    room, extend = recorder._room, recorder._extend
    count, repeats = sizes.of(20_000), 3 * sizes.repeats
    # In a function, as the statements are: there, names are found at once.
    given = "".join(f"{name} = _{name}\n" for name in names if name != "self")
    given = "self = _self\n" + given

    def alone(statement: str) -> float:
        timer = timeit.Timer(statement, given, globals={f"_{name}": value for name, value in names.items()})
        return 1e6 * _median(timer.repeat(repeats, count)) / count

    nothing = alone("pass")
    parts = {name: max(alone(statement.strip()) - nothing, 1e-4) for name, statement in _STATEMENTS.items()}
    kept: list[Any] = []
    recorder._extend = kept.extend
    timer = timeit.Timer(_KEPT, given, globals={f"_{name}": value for name, value in names.items()})
    taken = []
    for _ in range(repeats):
        taken.append(timer.timeit(1000))
        begin = time.perf_counter()
        kept.clear()
        taken[-1] += time.perf_counter() - begin
    parts["bytes copied, and kept until the commit"] = 1e6 * _median(taken) / 1000 - nothing
    recorder._room, recorder._extend = room, extend
    return parts


def _ends(env: gym.Env[Any, Any], action: Any, length: int, episodes: int) -> float:
    """Microseconds that an episode takes beyond steps that neither begin nor end it."""
    taken = [_episode(env, action, length) for _ in range(episodes)]
    return _median([reset + first + last - 2 * between for reset, first, last, between in taken])


def _episode(env: gym.Env[Any, Any], action: Any, length: int) -> tuple[float, float, float, float]:
    """Play an episode; microseconds of the reset, the first step, the last one, and one in between."""
    clock = time.perf_counter
    begin = clock()
    env.reset()
    reset = clock()
    env.step(action)
    first = clock()
    for _ in range(length - 2):
        env.step(action)
    between = clock()
    env.step(action)
    last = clock()
    times = reset - begin, first - reset, last - between, (between - first) / (length - 2)
    return 1e6 * times[0], 1e6 * times[1], 1e6 * times[2], 1e6 * times[3]


# --- an episode ---


def long_episode(folder: Path, sizes: Sizes) -> Breakdown:
    """Of 1000 steps: 102 KB, whose checksums are computed at once."""
    title = "An episode of 1000 steps (102 KB): reset, first and last step beyond other steps"
    return _commit(folder, *motor(1000), 1000, sizes.of(200), sizes, title)


def short_episode(folder: Path, sizes: Sizes) -> Breakdown:
    """Of 20 steps, whose checksums are computed in runs of a megabyte."""
    title = "An episode of 20 steps (0.7 KB): reset, first and last step beyond other steps"
    return _commit(folder, *pole(20), 20, sizes.of(6000), sizes, title)


def _commit(
    folder: Path, env: gym.Env[Any, Any], action: Any, length: int, episodes: int, sizes: Sizes, title: str
) -> Breakdown:
    recorder = RecordToBuffer(env, folder / "buffer")

    def run() -> float:
        taken = [_episode(recorder, action, length) for _ in range(episodes)]
        alone = [_episode(env, action, length) for _ in range(episodes)]
        mean = [
            statistics.fmean(reset + first + last - 2 * one for reset, first, last, one in each)
            for each in (taken, alone)
        ]
        return mean[0] - mean[1]

    run()
    whole, parts, clocked = _clocks_of_commit(recorder).measure(run, episodes, sizes.repeats)
    calls = Clocks()
    calls.on(os, "pwrite", "pwrite")
    _, found, _ = calls.measure(run, episodes, 1)
    recorder.close()
    taken, times = found["pwrite"]
    return Breakdown(title, CLOCKS, whole, parts, {f"of it in pwrite, {times:.3g} calls": taken, WITH_CLOCKS: clocked})


def _clocks_of_commit(recorder: RecordToBuffer) -> Clocks:
    clocks, session = Clocks(), recorder._session
    writer: Any = recorder.buffer._writer
    clocks.on(recorder_module, "meta_of_reset", "meta fields of the reset: time, generator, run")
    clocks.on(recorder, "_open_at", "row 0 copied")
    clocks.on(recorder, "_make_room", "room for the first steps; bytes of the episode before given back")
    clocks.on(session, "begin", "episode opened: lock and file checked, a stage")
    clocks.on(Stage, "pieces", "bytes of each field joined")
    clocks.on(single_module, "_return_of", "rewards summed")
    clocks.on(single_module, "meta_of_end", "meta fields of the end")
    clocks.on(OpenFiles, "write", "rows written")
    clocks.on(checksums_module, "crc32", "checksums of the rows")
    clocks.on(Checksums, "_put", "checksums written")
    clocks.on(OpenFiles, "_write_records", "record of the table written, with its check value")
    clocks.on(writer.counters, "put", "counters stored: the commit, checksums")
    clocks.on(Room, "take", "counted")
    clocks.on(Checksums, "fill", "checksums of a run of short episodes")
    clocks.on(session.bounds, "add", "noted, for comparing with the space's bounds")
    clocks.on(writer, "commit", "calls between these: the writer")
    clocks.on(recorder, "_end_episodes", "calls between these: the recorder")
    return clocks


# --- a batch ---


def batch(folder: Path, sizes: Sizes) -> Breakdown:
    """An n-step batch of 256."""
    length, episodes, size = 1000, sizes.of(1000), 256
    path = store_motor(folder / "buffer", episodes, length)
    count = sizes.of(2000)
    columns = {name: (column(path, name), 0) for name in MOTOR}
    columns["next_observation"] = columns["observation"][0], 1
    generator = np.random.default_rng(1)
    lot = [
        generator.integers(0, episodes, size) * (length + 1) + generator.integers(0, length, size) for _ in range(count)
    ]
    with ReplayBuffer.from_folder(path, read_only=True) as buffer:
        loader = buffer.dataloader(size, n_steps=1, shuffle=True, drop_last=True, seed=0)
        take = bare(columns, itertools.cycle(lot))
        plain = [per_item(take, count) for _ in range(sizes.repeats)]
        # An iteration of its own each time: one that goes on would go on with the clocks of its beginning.
        clocks = _clocks_of_batch(loader)
        whole, parts, clocked = clocks.measure(lambda: per_item(forever(loader), count), count, sizes.repeats)
    title = "A loaded batch: 256 n-step transitions of observation 17, action 6, reward, flags, next observation"
    beside = {"numpy.take of the same fields, at rows chosen before": _median(plain), WITH_CLOCKS: clocked}
    return Breakdown(title, CLOCKS, whole, parts, beside)


def _clocks_of_batch(loader: Any) -> Clocks:
    clocks, dataset = Clocks(), loader.dataset.samples
    taken = {name: f"numpy.take of {name}" for name in MOTOR}
    taken["observation"] += ", of these and of the next"
    clocks.on_items(type(loader.sampler.order), "draws", "which samples: the order, 65,536 at once")
    clocks.on(dataset.source, "replace_evicted", "none has left a circular buffer: asked before")
    clocks.on(dataset.anchors, "find", "episode of each sample")
    clocks.on(dataset, "_gather", "their rows, and how many steps follow")
    clocks.on(dataset.source.rows, "take", taken)
    clocks.on(dataset.source, "are_live", "none has left a circular buffer: asked afterwards")
    clocks.on(dataset, "_delivery", "tensors")
    clocks.on(Arrays, "part", "each batch copied out of what was gathered for several")
    clocks.on_items(dataset, "drawn_in_order", "calls between these")
    return clocks


# --- a vector step ---


def vector_step(folder: Path, sizes: Sizes) -> Breakdown:
    """CartPole with 1024 sub-environments, one in 22 of which ends its episode in each step."""
    count, num_envs = sizes.of(1000), 1024 if sizes.scale == 1 else 64
    recorder, plain = RecordVectors(_poles(num_envs), folder / "buffer"), _poles(num_envs)
    plain.action_space.seed(0)
    actions = [plain.action_space.sample() for _ in range(100)]
    for envs in (recorder, plain):
        envs.reset(seed=0)
        _steps_of(envs, actions, 100)
    alone = [_steps_of(plain, actions, count) for _ in range(sizes.repeats)]
    clocks = _clocks_of_vectors(recorder)
    whole, parts, clocked = clocks.measure(lambda: _steps_of(recorder, actions, count), count, sizes.repeats)
    recorder.close()
    plain.close()
    title = f"A vector step: CartPole, {num_envs} sub-environments, the environments' own step included"
    beside = {"the loop without a recorder": _median(alone), WITH_CLOCKS: clocked}
    return Breakdown(title, CLOCKS, whole, parts, beside)


def _poles(count: int) -> gym.vector.VectorEnv[Any, Any, Any]:
    return gym.make_vec("CartPole-v1", num_envs=count, vectorization_mode="vector_entry_point")


def _steps_of(envs: gym.vector.VectorEnv[Any, Any, Any], actions: Sequence[Any], count: int) -> float:
    """Microseconds per step."""
    begin = time.perf_counter()
    for action in itertools.islice(itertools.cycle(actions), count):
        envs.step(action)
    return 1e6 * (time.perf_counter() - begin) / count


def _clocks_of_vectors(recorder: Any) -> Clocks:
    clocks, session = Clocks(), recorder._session
    session.prepare()
    writer: Any = recorder.buffer._writer
    clocks.on(recorder.env, "step", "the environments' own step")
    clocks.on(session, "prepare", "room for it")
    clocks.on(session.staging, "put", "observations, actions, rewards and flags into the staging")
    clocks.on(vector_module, "transition_kinds", "which episodes ended, and begin")
    clocks.on(session, "advance", "returns summed, what runs and waits noted")
    clocks.on(session_module, "extract_ended", "ends, flags and last rows of the episodes that ended")
    clocks.on(session.staging, "extract", "their rows out of the staging")
    clocks.on(EpisodeMeta, "columns", "their meta fields: times, returns, generators")
    clocks.on(EpisodeMeta, "begin", "meta fields of the episodes that begin")
    clocks.on(OpenFiles, "write", "rows written")
    clocks.on(OpenFiles, "_write_records", "records written, with their check values")
    clocks.on(writer, "commit", "calls between these: the writer")
    clocks.on(session.bounds, "add_block", "noted, for comparing with the spaces' bounds")
    clocks.on(recorder, "_store", "calls between these: the recorder")
    return clocks


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


PROFILES: dict[str, Callable[[Path, Sizes], Breakdown]] = {
    "step": step,
    "long_episode": long_episode,
    "short_episode": short_episode,
    "batch": batch,
    "vector_step": vector_step,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(PROFILES)} (default: all)")
    parser.add_argument("--out", type=Path, help="a folder for profiles.json")
    parser.add_argument("--small", action="store_true", help="little of everything, in seconds")
    parser.add_argument("--folder", type=Path, help="where to write buffers (default: the system's temporary folder)")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in PROFILES]:
        parser.error(f"unknown: {unknown[0]}; there are {', '.join(PROFILES)}")
    sizes = Sizes(scale=100, repeats=2) if options.small else Sizes()
    found = {}
    for name in options.names or PROFILES:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            breakdown = PROFILES[name](Path(folder), sizes)
        print(f"\n{breakdown.title}; {breakdown.how}\n\n{breakdown.table()}", flush=True)
        found[name] = asdict(breakdown)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"measured": circumstances(), "profiles": found}, indent=1)
        (options.out / "profiles.json").write_text(text)


if __name__ == "__main__":
    main()

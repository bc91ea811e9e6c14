"""Pulled plugs: each way of writing is recorded, and what a disk may hold after any of its effects is opened again.

Ways of writing are generators that stop after each step. What the buffer holds there is what must be found from then
on: a plug that is pulled within a step leaves what was before it or what is after it.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from format_helpers import current_path, paths_of
from tqdm.auto import tqdm

from gym_replay import Field, RecordToBuffer, ReplayBuffer, check_buffer, merge, select, split_into

from .forgetful import Disk, Done, Recording, choices
from .scenarios import (
    FIELDS,
    RAGGED_FIELDS,
    RAGGED_META,
    WithInfos,
    extra_of,
    length_of,
    open_quietly,
    ragged_episode,
    ragged_of,
    rows_of,
    step_by_step,
    store,
    texts_of,
)
from .victims import NESTED_ID, Nested, Original, original

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where folders lie that need not wait for a disk; None for where temporary folders lie."""

PLACE = "nested/deeper/buffer"
META = {"number": "int"}
POWER = {"durability": "power"}


@dataclass(frozen=True)
class State:
    """What a buffer holds: its fields, and its episodes by id."""

    fields: tuple[str, ...] = ()
    episodes: dict[int, Original] = field(default_factory=dict)

    @staticmethod
    def of(folder: Path) -> State | None:
        """What a reader finds; None where there is no buffer."""
        if not (folder / "metadata.json").is_file():
            return None
        with open_quietly(folder, read_only=True) as buffer:
            names = (*buffer.metadata.fields, *buffer.metadata.meta_fields)
            return State(names, {episode.id: original(episode) for episode in buffer})


Steps = Iterator[None]


@dataclass(frozen=True)
class Way:
    """A way of writing.

    Attributes:
        run: writes to the folder, and stops after each step.
        prepare: makes what is on the disk before; of the folder, not even its parents are there otherwise.
        several: whether a step may change one episode after another, as where old ones leave a ring.
        promised: the step after which something is promised.
        repaired: whether no more is promised than that a repair keeps what was there after that step.
        again: what must work where the folder turns out to hold no buffer.
    """

    run: Callable[[Path], Steps]
    prepare: Callable[[Path], None] = lambda folder: None
    several: bool = False
    promised: int = 0
    repaired: bool = False
    again: Callable[[Path], object] = lambda folder: _create(folder).close()


# --- the ways ---


def _create(folder: Path, **options: Any) -> ReplayBuffer:
    return ReplayBuffer(folder, fields=FIELDS, meta_fields=META, **POWER, **options)


def _new(folder: Path) -> Steps:
    """A new folder, opened a few times."""
    for first in (0, 2, 4):
        with _create(folder) as buffer:
            yield
            for number in (first, first + 1):
                store(buffer, number)
                yield
        yield


def _reopened(folder: Path) -> Steps:
    """A folder that was written without waiting for the disk, and copied, before."""
    shutil.copytree(_source(folder), folder)
    with ReplayBuffer(folder, **POWER) as buffer:
        buffer.acquire()
        yield
        buffer.store_episode(**ragged_episode(4, 2))
        yield
        buffer.delete([0, 2])
        yield
    yield


def _flushed(folder: Path) -> Steps:
    """A folder that is flushed, and then written without waiting for the disk."""
    with ReplayBuffer(folder, fields=FIELDS, meta_fields=META) as buffer:
        for number in range(4):
            store(buffer, number)
        buffer.flush()
        yield
        store(buffer, 4)
        buffer.add_field("label", ("float64", (), 0.5))
        for number in (5, 6):
            buffer.store_episode(**rows_of(number, 200), label=np.ones(200), number=number)


def _flushed_later(folder: Path) -> Steps:
    shutil.copytree(_source(folder), folder)
    with open_quietly(folder, read_only=True) as buffer:
        buffer.flush()
        yield


def _growing(folder: Path) -> Steps:
    """Files that grow with nearly each episode; the last ones are written before their commit."""
    with _create(folder) as buffer:
        yield
        for number, length in enumerate((300, 10, 900, 40)):
            store(buffer, number, length)
            yield
        for number in (4, 5):
            rows = rows_of(number, 700)
            with buffer.one_episode(number=number):
                for t in range(700):
                    buffer.store(**{name: values[t] for name, values in rows.items()})
                buffer.store_final(observation=rows["observation"][-1], image=rows["image"][-1])
            yield
        buffer.flush()
        yield
    yield


def _ring(folder: Path, **options: Any) -> Steps:
    """Episodes that leave, and their rows and strings that are overwritten."""
    with ReplayBuffer(
        folder, fields=RAGGED_FIELDS, meta_fields=RAGGED_META, circular=True, **POWER, **options
    ) as buffer:
        yield
        for number in range(14):
            length = 1 + number % 5
            (step_by_step if number % 3 == 0 else _store_whole)(buffer, ragged_episode(number, length), length)
            yield
    yield


def _store_whole(buffer: ReplayBuffer, episode: dict[str, Any], length: int) -> None:
    buffer.store_episode(**episode)


def _changes(folder: Path) -> Steps:
    """Everything that changes what is stored."""
    with ReplayBuffer(folder, fields=RAGGED_FIELDS, meta_fields=RAGGED_META, **POWER) as buffer:
        yield
        for number in range(4):
            buffer.store_episode(**ragged_episode(number, length_of(number)))
            yield
        lengths = list(enumerate(buffer.episode_lens))
        buffer.update(reward=[rows_of(k, length)["reward"] + 1 for k, length in lengths])
        yield
        buffer.update([0, 2], note=[texts_of(k, 1)["note"] for k in (0, 2)], version=[1, 1])
        yield
        buffer.update([1, 3], words=[ragged_of(k, length, 1)["words"] for k, length in lengths if k in (1, 3)])
        yield
        buffer.add_field(
            "deep.er.extra", Field("int64", ragged=True), [extra_of(k, n, 0) for k, n in lengths], derived=False
        )
        yield
        buffer.add_field("label", ("float64", (), 0.5))
        yield
        buffer.delete([0, 3])
        yield
        buffer.delete(1)
        yield
        buffer.store_episode(**ragged_episode(4, 3), **{"deep.er.extra": extra_of(4, 3, 0), "label": np.ones(3)})
        yield
        buffer.flush()
        yield
        buffer.clear()
        yield
        buffer.store_episode(**ragged_episode(5, 3), **{"deep.er.extra": extra_of(5, 3, 0), "label": np.ones(3)})
        yield
    yield


def _cleared(folder: Path) -> Steps:
    """Cleared again and again."""
    with _create(folder) as buffer:
        yield
        for number in range(6):
            store(buffer, number)
            yield
            if number % 2:
                buffer.clear()
                yield
    yield


def _overwritten(folder: Path) -> Steps:
    """Another buffer in the place of the one that is there, some of whose files and folders go."""
    fields = {"a.b.c": "int", "reward": Field("float32", (2,))}
    with ReplayBuffer(folder, fields=fields, overwrite=True, **POWER) as buffer:
        yield
        buffer.store_episode(**{"a.b.c": [1, 2], "reward": np.ones((2, 2))})
        yield
    yield
    with _create(folder, overwrite=True) as buffer:
        yield
        store(buffer, 0)
        yield
    yield


def _recorded(folder: Path) -> Steps:
    """A recorder whose infos come one by one, so that it adds fields."""
    warnings.simplefilter("ignore")  # of the text that is left out
    env = RecordToBuffer(WithInfos(0), folder, record_info=True, **POWER)
    yield
    for number in range(4):
        env.reset()
        for t in range(length_of(number)):
            env.step((1000 * number + t) * 3)
        yield
    env.close()
    yield


def _nested(folder: Path) -> Steps:
    """A recorder of nested spaces, whose files lie in folders of their own."""
    warnings.simplefilter("ignore")  # Gymnasium finds the action space unusual
    if NESTED_ID not in gym.registry:
        gym.register(NESTED_ID, entry_point=Nested)
    env = RecordToBuffer(gym.make(NESTED_ID), folder, **POWER)
    yield
    env.action_space.seed(0)
    for seed in range(2):
        env.reset(seed=seed)
        while not any(env.step(env.action_space.sample())[2:4]):
            pass
        yield
    env.close()
    yield


def _source(folder: Path) -> Path:
    """Where the buffer lies that is copied from."""
    return folder.parents[1] / "source"


def _stored(folder: Path, count: int = 4) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ReplayBuffer(folder, fields=RAGGED_FIELDS, meta_fields=RAGGED_META) as buffer:
        for number in range(count):
            buffer.store_episode(**ragged_episode(number, length_of(number)))


def _only_source(folder: Path) -> None:
    _stored(_source(folder))


def _merge(folder: Path, *, overwrite: bool = False) -> ReplayBuffer:
    return merge([_source(folder)] * 2, folder, overwrite=overwrite, progress=False)


def _merged(folder: Path) -> Steps:
    _merge(folder).close()
    yield


def _replaced(folder: Path) -> Steps:
    """Copies that take the place of others, of their own source too."""
    for where in ("number % 2 == 0", "number == 2"):
        select(folder, folder, where=where, overwrite=True, progress=False).close()
        yield
    _merge(folder, overwrite=True).close()
    yield


def _split(folder: Path) -> Steps:
    fractions = {folder: 0.5, folder.parent / "other": 0.5}
    for buffer in split_into(_source(folder), fractions, progress=False):
        buffer.close()
    yield


WAYS: dict[str, Way] = {
    "new folder": Way(_new),
    "reopened": Way(_reopened, prepare=_only_source, promised=1),
    "flush": Way(_flushed, promised=1, repaired=True),
    "flush of a reader": Way(_flushed_later, prepare=_only_source, promised=1),
    "growth": Way(_growing),
    "ring": Way(lambda folder: _ring(folder, max_steps=25), several=True),
    "ring of episodes": Way(lambda folder: _ring(folder, max_episodes=4), several=True),
    "changes": Way(_changes),
    "clear": Way(_cleared),
    "overwrite": Way(_overwritten, prepare=_stored),
    "recorder": Way(_recorded, several=True),
    "nested": Way(_nested),
    "merge": Way(_merged, prepare=_only_source, again=_merge),
    "replace": Way(_replaced, prepare=lambda folder: (_stored(folder), _stored(_source(folder)))[0], again=_merge),
    "split": Way(_split, prepare=lambda folder: _stored(_source(folder), 12), again=_merge),
}


# --- the plug ---


def record(way: Way, root: Path) -> tuple[Recording, list[State | None]]:
    """What a way of writing does to the disk, and what the buffer holds after each of its steps.

    Raises:
        AssertionError: something was done to the folder that the recording did not see.
    """
    root.mkdir()
    folder = root / PLACE
    way.prepare(folder)
    states = [State.of(folder)]
    recording = Recording(root)
    with recording.running(), warnings.catch_warnings():
        for number, _ in enumerate(way.run(folder), 1):
            recording.done(number)
            states.append(State.of(folder))
    shown = root.parent / "shown"
    disk = Disk(recording.root)
    for effect in recording.effects:
        disk.apply(effect)
    disk.show(shown)
    assert _files(shown) == _files(root), "the recording missed a change of a file"
    shutil.rmtree(shown)
    return recording, states


def _files(root: Path) -> dict[str, bytes]:
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if path.name != "writer.lock"}


def fault_of(folder: Path, before: State | None, after: State | None, way: Way) -> str | None:
    """What is wrong with what is left, if anything is."""
    try:
        verify(folder, before, after, way)
    except Exception as error:
        return f"{type(error).__name__} in {traceback.extract_tb(error.__traceback__)[-1].name}: {error}"
    return None


def verify(folder: Path, before: State | None, after: State | None, way: Way) -> None:
    """Look at what is left of a buffer that was written to as the plug was pulled, and go on with it."""
    if way.repaired:
        check_buffer(folder, repair=True, progress=False)
    found = State.of(folder)
    _compare(found, before, after, way)
    if found is None:
        way.again(folder)
        found = State.of(folder)
        assert found is not None
    _check_files(folder)
    with open_quietly(folder) as buffer:
        _one_more(buffer)
    again = State.of(folder)
    assert again is not None
    assert again.fields == found.fields
    new = set(again.episodes) - set(found.episodes)
    assert len(new) == 1, f"recording goes on with {sorted(new)} after {sorted(found.episodes)}"
    kept = {number: each for number, each in again.episodes.items() if number not in new}
    assert kept.items() <= found.episodes.items(), "recording has changed other episodes"
    _check_files(folder)
    leftovers = [path.name for path in folder.rglob("*.new")]
    assert not leftovers, leftovers


def _compare(found: State | None, before: State | None, after: State | None, way: Way) -> None:
    if found in (before, after):
        return
    assert found is not None, "the buffer is gone"
    if way.repaired:
        assert before is not None
        lost = [number for number, each in before.episodes.items() if not _same(each, found.episodes.get(number))]
        assert not lost, f"episodes {lost} are lost or damaged"
        return
    assert way.several, f"neither what was before nor what is after: {_told(found)}, {_told(before)}, {_told(after)}"
    both = [state or State() for state in (before, after)]
    for number, episode in found.episodes.items():
        assert any(_same(episode, state.episodes.get(number)) for state in both), f"episode {number} is damaged"
    for number, episode in both[0].episodes.items():
        stays = _same(episode, both[1].episodes.get(number))
        assert number in found.episodes or not stays, f"episode {number} is lost"


def _same(one: Original, other: Original | None) -> bool:
    """Whether two episodes are equal, as far as they have the same fields."""
    return other is not None and all(
        mine[name] == others[name]
        for mine, others in ((one.fields, other.fields), (one.meta, other.meta))
        for name in set(mine) & set(others)
    )


def _told(state: State | None) -> str:
    return "nothing" if state is None else f"{len(state.fields)} fields of episodes {sorted(state.episodes)}"


def _check_files(folder: Path) -> None:
    """Every file can be mapped by NumPy, and the checker finds nothing."""
    for path in paths_of(folder):
        np.load(folder / current_path(folder, path), mmap_mode="r", allow_pickle=False)
    report = check_buffer(folder, progress=False)
    assert report.ok, str(report)


def _one_more(buffer: ReplayBuffer) -> None:
    """Store an episode of whatever fields there are."""
    fields = buffer.metadata.fields
    rows = {name: np.ones((2 + info.state, *info.shape), info.dtype) for name, info in fields.items()}
    ragged = {name: list(values[:, None]) for name, values in rows.items() if fields[name].ragged}
    buffer.store_episode(**rows | ragged)


def trials(name: str, folder: Path, seed: int, count: int | None = None) -> Iterator[str | None]:
    """Record a way of writing in ``folder`` and pull plugs; what was wrong with each, or None.

    Args:
        count: how many plugs, every third of them at the end of a step; None pulls each of the extremes, and three
            others, after every effect.
    """
    generator = random.Random(f"{seed} {name}")
    way = WAYS[name]
    recording, states = record(way, folder / "recorded")
    disk, done = Disk(recording.root), 0
    every = range(len(recording.effects) + 1)
    ends = [at + 1 for at, effect in enumerate(recording.effects) if isinstance(effect, Done)]
    some = Counter(generator.choice(ends if number % 3 == 0 else every) for number in range(count or 0))
    for at, effect in enumerate((None, *recording.effects)):
        if effect is not None:
            disk.apply(effect)
        if isinstance(effect, Done):
            done = effect.number
        if done < way.promised:
            continue
        kinds = list(itertools.islice(choices(generator), 10))
        for kind, choice in kinds if count is None else generator.choices(kinds, k=some[at]):
            disk.pull_the_plug(folder / "left", choice)
            fault = fault_of(folder / "left" / PLACE, states[done], states[min(done + 1, len(states) - 1)], way)
            yield fault and f"{name}, after {at} effects, kept {kind}: {fault}"
            shutil.rmtree(folder / "left")


def table(rounds: int, seed: int) -> tuple[list[str], list[str]]:
    """Pull ``rounds`` plugs in each way of writing: a line for each, and what was wrong."""
    lines, wrong = [f"{'plug pulled while':<31} {'tried':>6} {'survived':>9} {'lost':>5}"], []
    for name in tqdm(WAYS, desc="pulled plugs", file=sys.stderr):
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            found = list(trials(name, Path(folder), seed, rounds))
        lost = [each for each in found if each is not None]
        lines.append(f"{name:<31} {len(found):>6} {len(found) - len(lost):>9} {len(lost):>5}")
        wrong += lost
    return lines, wrong

"""What a process does to a buffer until it is killed, and what must be true of the folder afterwards.

All data follow from the episode's id, so any episode that is found can be compared with what it must be.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from format_helpers import read_counters
from internals import small_sizes

from gym_replay import Field, RecordToBuffer, ReplayBuffer, check_buffer

FIELDS = {
    "observation": Field("float32", (3,), state=True),
    "image": Field("uint8", (16, 16), state=True),
    "action": "int",
    "reward": "float64",
}
RAGGED_FIELDS = {
    **FIELDS,
    "words": Field("uint8", state=True, ragged=True),
    "points": Field("float32", (2,), ragged=True),
}
RAGGED_META = {"number": "int", "version": "int", "task": "str", "note": "str"}
Report = Callable[[int], None]


def length_of(number: int) -> int:
    return 1 + (number * 7919) % 23


def rows_of(number: int, length: int) -> dict[str, np.ndarray]:
    base = 1000.0 * number + np.arange(length + 1)
    return {
        "observation": (base[:, None] * [1, 2, 3]).astype(np.float32),
        "image": (base[:, None, None] + np.zeros((16, 16))).astype(np.int64).astype(np.uint8),
        "action": base[:-1].astype(np.int64) * 3,
        "reward": base[:-1] / 7,
    }


def ragged_of(number: int, length: int, version: int = 0) -> dict[str, list[np.ndarray]]:
    """The ragged fields' rows; many are empty, and now and then all of an episode are."""
    base = number + np.arange(length + 1)
    sizes = (base * 7 + version) % 9 * (number % 6 != 5)
    words = [(base[t] + version + np.arange(size)).astype(np.uint8) for t, size in enumerate(sizes.tolist())]
    points = [
        (base[t] / 7 + version + np.arange(2 * size).reshape(size, 2)).astype(np.float32)
        for t, size in enumerate(((base[:-1] * 5 + version) % 4).tolist())
    ]
    return {"words": words, "points": points}


def texts_of(number: int, version: int = 0) -> dict[str, str]:
    """String meta fields: one of few strings, and one that is another's seldom, empty or long now and then."""
    note = "" if number % 4 == 0 else f"episode {number} \u2603, version {version}. " * (number % 7 * 40 + 1)
    return {"task": f"task {number % 3}", "note": note}


def same_rows(found: Any, expected: list[np.ndarray]) -> bool:
    """Whether a ragged field's rows are the expected ones."""
    return (
        found.lengths.tolist() == list(map(len, expected))
        and found.values().tobytes() == b"".join(row.tobytes() for row in expected)
        and (not expected or (found[0].shape, found[0].tobytes()) == (expected[0].shape, expected[0].tobytes()))
    )


class Deterministic(gym.Env):
    """Episode k, counted from ``first``, returns the rows of number k."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Discrete(1 << 40)

    def __init__(self, first: int) -> None:
        self.number = first - 1

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        self.number += 1
        self.t = 0
        self.length = length_of(self.number)
        self.rows = rows_of(self.number, self.length)
        return self.rows["observation"][0], {}

    def step(self, action: int) -> tuple:
        reward = self.rows["reward"][self.t]
        self.t += 1
        return self.rows["observation"][self.t], reward, self.t == self.length, False, {}


def store(buffer: ReplayBuffer, number: int, length: int | None = None) -> None:
    buffer.store_episode(**rows_of(number, length or length_of(number)), number=number)


def assert_episode(episode, names: tuple[str, ...] = tuple(FIELDS), length: int | None = None) -> None:
    length = length or length_of(episode.id)
    assert len(episode) == length, f"episode {episode.id} has {len(episode)} steps of {length}"
    expected = rows_of(episode.id, length)
    for name in names:
        assert episode[name].tobytes() == expected[name].tobytes(), f"episode {episode.id}, {name}"


def assert_ragged(episode, version: int) -> None:
    """Of an episode whose ragged fields and strings are of a version."""
    for name, rows in ragged_of(episode.id, len(episode), version).items():
        assert same_rows(episode[name], rows), f"episode {episode.id}, {name} of version {version}"
    meta = episode.meta
    for name, text in texts_of(episode.id, version).items():
        assert meta[name] == text, f"episode {episode.id}, {name}: {meta[name][:50]!r} of version {version}"


def open_quietly(folder: Path, **options) -> ReplayBuffer:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ReplayBuffer.from_folder(folder, **options)


@dataclass(frozen=True)
class Scenario:
    """A way of using a buffer: prepare it, go on until killed while reporting progress, and the facts after it."""

    prepare: Callable[[Path], None]
    run: Callable[[Path, Report], None]
    verify: Callable[[Path, int], None]


def _create(**options) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        with ReplayBuffer(folder, fields=FIELDS, meta_fields={"number": "int"}, **options) as buffer:
            for number in range(3):
                store(buffer, number)

    return prepare


def _count(start: int) -> Iterator[int]:
    number = start
    while True:
        yield number
        number += 1


def _record(folder: Path, report: Report, environment: type[Deterministic] = Deterministic, **options: Any) -> None:
    done = ReplayBuffer.from_folder(folder, read_only=True) if (folder / "metadata.json").exists() else None
    first = done.episode(-1).id + 1 if done is not None and len(done) else 0
    env = RecordToBuffer(environment(first), folder, **options)
    for number in _count(first):
        env.reset()
        for t in range(length_of(number)):
            env.step((1000 * number + t) * 3)
        report(number + 1)
        if number - first == 12:
            env.close()


def _verify_recorded(folder: Path, reported: int, *, ring: int | None = None) -> None:
    if reported == 0 and not (folder / "metadata.json").exists():
        return
    with open_quietly(folder, read_only=True) as buffer:
        ids = [episode.id for episode in buffer]
        assert ids == list(range(ids[0], ids[-1] + 1)) if ids else True
        if ring is None:
            assert ids[:1] in ([], [0])
        elif reported >= ring:
            assert len(ids) >= ring - 1  # the oldest goes before the newest comes
        assert (ids[-1] + 1 if ids else 0) >= reported, f"{ids[-1:]} of {reported} reported"
        for episode in buffer:
            assert_episode(episode, ("observation", "action", "reward"))


def _append(folder: Path, report: Report) -> None:
    while True:
        with ReplayBuffer.from_folder(folder) as buffer:
            for _ in range(4):
                number = buffer.episode(-1).id + 1
                store(buffer, number)
                report(number + 1)


def _verify_plain(folder: Path, reported: int) -> None:
    with open_quietly(folder, read_only=True) as buffer:
        assert [episode.id for episode in buffer] == list(range(len(buffer)))
        assert len(buffer) >= reported
        for episode in buffer:
            assert_episode(episode)
            assert episode.meta["number"] == episode.id


def _grow(folder: Path, report: Report) -> None:
    with ReplayBuffer.from_folder(folder) as buffer:
        for number in _count(len(buffer)):
            store(buffer, number, 400 + number)
            report(number + 1)


def _verify_grown(folder: Path, reported: int) -> None:
    with open_quietly(folder, read_only=True) as buffer:
        assert len(buffer) >= reported
        for number, episode in enumerate(buffer):
            assert_episode(episode, length=length_of(number) if number < 3 else 400 + number)


def _step_by_step(folder: Path, report: Report) -> None:
    """Episodes long enough to be written before their commit."""

    small_sizes(chunk_rows=8)
    with ReplayBuffer.from_folder(folder) as buffer:
        for number in _count(len(buffer)):
            rows = rows_of(number, length_of(number))
            with buffer.one_episode(number=number):
                for t in range(length_of(number)):
                    buffer.store(**{name: values[t] for name, values in rows.items()})
                buffer.store_final(observation=rows["observation"][-1], image=rows["image"][-1])
            report(number + 1)


def _ring(folder: Path, report: Report) -> None:
    with ReplayBuffer.from_folder(folder) as buffer:
        for number in _count(buffer.episode(-1).id + 1):
            store(buffer, number)
            report(number + 1)


def _verify_ring(folder: Path, reported: int) -> None:
    with open_quietly(folder, read_only=True) as buffer:
        ids = [episode.id for episode in buffer]
        assert ids == list(range(ids[0], ids[-1] + 1))
        assert ids[-1] + 1 >= reported
        assert buffer.num_steps <= buffer.max_steps
        for episode in buffer:
            assert_episode(episode)


def _prepare_update(folder: Path) -> None:
    fields = {**FIELDS, "label": "float64"}
    meta = {"number": "int", "version": "int"}
    with ReplayBuffer(folder, fields=fields, meta_fields=meta) as buffer:
        for number in range(6):
            length = length_of(number)
            buffer.store_episode(**rows_of(number, length), label=np.zeros(length), number=number, version=0)


def _update(folder: Path, report: Report) -> None:
    with ReplayBuffer.from_folder(folder) as buffer:
        for version in _count(int(buffer.episode(0).meta["version"]) + 1):
            labels = [np.full(length, float(version)) for length in buffer.episode_lens]
            rewards = [rows_of(k, length)["reward"] + version for k, length in enumerate(buffer.episode_lens)]
            buffer.update(label=labels, reward=rewards, version=np.full(len(buffer), version))
            report(version)


def _verify_update(folder: Path, reported: int) -> None:
    with open_quietly(folder, read_only=True) as buffer:
        assert len(buffer) == 6
        version = int(buffer.episode(0).meta["version"])
        assert version >= reported
        for episode in buffer:
            assert_episode(episode, ("observation", "image", "action"))
            assert episode.meta["version"] == version
            assert set(episode["label"].tolist()) == {float(version)}
            expected = rows_of(episode.id, len(episode))["reward"] + version
            assert episode["reward"].tobytes() == expected.tobytes()


def _add_fields(folder: Path, report: Report) -> None:
    with ReplayBuffer.from_folder(folder) as buffer:
        for number in _count(len(buffer.fieldnames) - len(FIELDS)):
            if number == 25:
                buffer.clear()
                for episode in range(3):
                    store(buffer, episode)
            values = [rows_of(e.id, len(e))["reward"] * number for e in buffer]
            buffer.add_field(f"extra{number}", "float64", values, derived=False)
            report(number + 1)
            if number == 24:
                return


def _verify_added(folder: Path, reported: int) -> None:
    with open_quietly(folder, read_only=True) as buffer:
        added = [name for name in buffer.fieldnames if name.startswith("extra")]
        assert added == [f"extra{number}" for number in range(len(added))]
        assert len(added) >= reported
        for episode in buffer:
            assert_episode(episode)
            for number, name in enumerate(added):
                expected = rows_of(episode.id, len(episode))["reward"] * number
                assert episode[name].tobytes() == expected.tobytes()


def _clear(folder: Path, report: Report) -> None:
    with ReplayBuffer.from_folder(folder) as buffer:
        number = buffer.episode(-1).id + 1 if len(buffer) else _next_id(folder)
        while True:
            for _ in range(3):
                store(buffer, number)
                number += 1
                report(number)
            buffer.clear()


def _next_id(folder: Path) -> int:
    pending = json.loads((folder / "metadata.json").read_text())["pending"]
    new = folder / "commit.npy.new"
    return read_counters(folder, "commit.npy.new" if "commit.npy" in pending and new.exists() else "commit.npy")["next"]


def _verify_cleared(folder: Path, reported: int) -> None:
    with open_quietly(folder, read_only=True) as buffer:
        ids = [episode.id for episode in buffer]
        assert len(ids) <= 6
        assert _next_id(folder) >= reported
        assert ids == list(range(_next_id(folder) - len(ids), _next_id(folder)))
        for episode in buffer:
            assert_episode(episode)


def _overwrite(folder: Path, report: Report) -> None:
    for version in _count(1):
        fields = {**FIELDS, f"version{version}": "int"}
        with ReplayBuffer(folder, fields=fields, meta_fields={"number": "int"}, overwrite=True) as buffer:
            store(buffer, 0)


def _verify_overwritten(folder: Path, reported: int) -> None:
    with open_quietly(folder, read_only=True) as buffer:
        assert len(buffer) <= 3
        for episode in buffer:
            assert_episode(episode)


def _delete_groups(folder: Path, report: Report) -> None:
    """Four more episodes, whose ids begin at a multiple of four, and the oldest four deleted in one call."""
    with ReplayBuffer(folder) as buffer:
        while True:
            for number in range(_next_id(folder), _next_id(folder) // 4 * 4 + 4):
                store(buffer, number)
                report(number + 1)
            if len(buffer) > 8:
                buffer.delete([0, 1, 2, 3])


def _verify_groups(folder: Path, reported: int) -> None:
    with open_quietly(folder, read_only=True) as buffer:
        ids = [episode.id for episode in buffer]
        assert ids == list(range(ids[0], _next_id(folder)))
        assert ids[0] % 4 == 0, f"a deletion of four was done by half: {ids}"
        assert ids[-1] + 1 >= reported
        for episode in buffer:
            assert_episode(episode)


# --- ragged fields and strings ---


def ragged_episode(number: int, length: int, version: int = 0) -> dict[str, Any]:
    """All that ``store_episode`` takes."""
    rows = {**rows_of(number, length), **ragged_of(number, length, version)}
    return {**rows, **texts_of(number, version), "number": number, "version": version}


def extra_of(number: int, length: int, place: int) -> list[np.ndarray]:
    """Rows of the ragged field that was added as the ``place``-th."""
    return [np.arange(t % 3, dtype=np.int64) + number * 10 + place for t in range(length)]


def step_by_step(buffer: ReplayBuffer, episode: dict[str, Any], length: int) -> None:
    """Store what ``store_episode`` takes, a step at a time."""
    fields = buffer.metadata.fields
    with buffer.one_episode(**{name: value for name, value in episode.items() if name not in fields}):
        for t in range(length):
            buffer.store(**{name: values[t] for name, values in episode.items() if name in fields})
        buffer.store_final(**{name: episode[name][length] for name, info in fields.items() if info.state})


def _create_ragged(**options) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        with ReplayBuffer(folder, fields=RAGGED_FIELDS, meta_fields=RAGGED_META, **options) as buffer:
            for number in range(3):
                buffer.store_episode(**ragged_episode(number, length_of(number)))

    return prepare


def _added_to(buffer: ReplayBuffer) -> list[str]:
    return [name for name in buffer.fieldnames if name.startswith("extra")]


def _ragged(folder: Path, report: Report) -> None:
    """Commits of every kind, early writes, updates of rows and strings, new fields, and closing."""

    small_sizes(chunk_rows=8, ragged_chunk_rows=8)
    while True:
        with ReplayBuffer.from_folder(folder) as buffer:
            first = buffer.episode(-1).id + 1
            for number in range(first, first + 6):
                length, version = length_of(number), number % 5
                episode = ragged_episode(number, length, version)
                episode |= {name: extra_of(number, length, k) for k, name in enumerate(_added_to(buffer))}
                if number % 3:
                    step_by_step(buffer, episode, length)
                else:
                    buffer.store_episode(**episode)
                report(number + 1)
            _update_ragged(buffer, first)
            if (added := len(_added_to(buffer))) < 5:
                values = [extra_of(episode.id, len(episode), added) for episode in buffer]
                buffer.add_field(f"extra{added}", Field("int64", ragged=True), values, derived=False)


def _update_ragged(buffer: ReplayBuffer, seed: int) -> None:
    """Another version of every third episode."""
    chosen = [place for place in range(len(buffer)) if (place + seed) % 3 == 0]
    episodes = [buffer.episode(place) for place in chosen]
    versions = [int(episode.meta["version"]) + 1 for episode in episodes]
    numbers = [(episode.id, len(episode), version) for episode, version in zip(episodes, versions, strict=True)]
    rows = [ragged_of(*number) for number in numbers]
    texts = [texts_of(number, version) for number, _, version in numbers]
    buffer.update(
        chosen,
        words=[each["words"] for each in rows],
        points=[each["points"] for each in rows],
        note=[each["note"] for each in texts],
        version=versions,
    )


def _verify_ragged(folder: Path, reported: int) -> None:
    with open_quietly(folder, read_only=True) as buffer:
        ids = [episode.id for episode in buffer]
        assert ids == list(range(ids[0], ids[-1] + 1))
        assert ids[-1] + 1 >= reported, f"{ids[-1:]} of {reported} reported"
        assert buffer.circular or ids[0] == 0
        for episode in buffer:
            assert_episode(episode)
            assert episode.meta["number"] == episode.id
            assert_ragged(episode, int(episode.meta["version"]))
            for k, name in enumerate(_added_to(buffer)):
                assert same_rows(episode[name], extra_of(episode.id, len(episode), k)), f"{episode.id}, {name}"


# --- infos ---


class WithInfos(Deterministic):
    """Infos whose entries come one by one: entry k from episode ``2 * k`` on, and there from step ``k % 5`` on."""

    entries = 12

    def _info(self) -> dict[str, Any]:
        return {"late": {f"k{k}": value for k, value in infos_of(self.number, self.t).items()}, "text": "left out"}

    def reset(self, **options: Any) -> tuple:
        observation, _ = super().reset(**options)
        return observation, self._info()

    def step(self, action: int) -> tuple:
        *result, _ = super().step(action)
        return (*result, self._info())


def infos_of(number: int, t: int) -> dict[int, Any]:
    """Entries of row t: numbers, and arrays for every third."""
    known = [k for k in range(min(number // 2 + 1, WithInfos.entries)) if t >= k % 5]
    return {k: np.arange(3) + 100.5 * number + t if k % 3 == 2 else 1000 * number + 10 * t + k for k in known}


def assert_infos(episode, *, whole: bool = True) -> None:
    """Of an episode of :class:`WithInfos`; unless ``whole``, entries may be missing from any row."""
    fields = [name for name in episode if name.startswith("info.late.")]
    if not fields and not whole:
        return
    expected = [infos_of(episode.id, t) for t in range(len(episode) + 1)]
    names = {f"info.late.k{k}" for row in expected for k in row}
    assert names <= set(fields) or not whole, f"episode {episode.id} lacks {names - set(fields)}"
    for name in fields:
        k = int(name.rpartition("k")[2])
        known = [k in row for row in expected]
        present = episode[name.replace("info", "info_present", 1)].tolist()
        assert present == known or not (whole or any(p and not q for p, q in zip(present, known, strict=True))), (
            f"episode {episode.id}, where {name} is present"
        )
        zero = np.zeros_like(episode[name][0])
        values = [row[k] if there else zero for row, there in zip(expected, present, strict=True)]
        assert (episode[name] == np.array(values)).all(), f"episode {episode.id}, {name}"


def _record_infos(folder: Path, report: Report, **options: Any) -> None:

    small_sizes(chunk_rows=4)
    warnings.simplefilter("ignore")  # of the text that is left out
    _record(folder, report, WithInfos, record_info=True, **options)


def _verify_infos(folder: Path, reported: int, *, ring: int | None = None) -> None:
    _verify_recorded(folder, reported, ring=ring)
    if not (folder / "metadata.json").exists():
        return
    with open_quietly(folder, read_only=True) as buffer:
        for episode in buffer:
            assert_infos(episode)


# --- vector environments ---

VECTOR_ENVS = 4


def _record_vector(folder: Path, report: Report, **options: Any) -> None:
    """Sub-environment i plays the episodes with numbers i, i + 4, i + 8, ...; all that were committed are reported."""
    from gym_replay.wrappers.vector import RecordToBuffer as RecordVector

    class Every(Deterministic):
        """Every fourth episode."""

        def reset(self, **given: Any) -> tuple:
            self.number += VECTOR_ENVS - 1
            return super().reset(**given)

    mode = gym.vector.AutoresetMode.SAME_STEP
    while True:
        makers = [lambda i=i: Every(i - VECTOR_ENVS + 1) for i in range(VECTOR_ENVS)]
        envs = RecordVector(gym.vector.SyncVectorEnv(makers, autoreset_mode=mode), folder, **options)
        envs.reset()
        committed = _next_id(folder)
        for _ in range(150):
            inner = envs.unwrapped.envs
            envs.step(np.array([(1000 * env.number + env.t) * 3 for env in inner]))
            committed += sum(env.t == 0 for env in inner)
            report(committed)
        envs.close()


def _verify_vector(folder: Path, reported: int, *, ring: int | None = None) -> None:
    if not (folder / "metadata.json").exists():
        assert reported == 0
        return
    with open_quietly(folder, read_only=True) as buffer:
        ids = [episode.id for episode in buffer]
        assert not ids or ids == list(range(ids[0], ids[-1] + 1))
        assert (ids[-1] + 1 if ids else 0) >= reported, f"{ids[-1:]} of {reported} reported"
        assert ring is not None or not ids or ids[0] == 0
        for episode in buffer:
            number = int(episode["action"][0]) // 3000
            assert number % VECTOR_ENVS == episode.meta["env_index"]
            assert len(episode) == length_of(number) if episode.complete else len(episode) <= length_of(number)
            for name, values in rows_of(number, length_of(number)).items():
                if name in episode:
                    rows = len(episode) + (name == "observation")
                    assert episode[name].tobytes() == values[:rows].tobytes(), f"episode {episode.id}, {name}"


def _nothing(folder: Path) -> None:
    """The scenario creates its own buffer."""


SCENARIOS: dict[str, Scenario] = {
    "recorder": Scenario(_nothing, _record, _verify_recorded),
    "recorder, ring": Scenario(
        _nothing,
        lambda folder, report: _record(folder, report, circular=True, max_episodes=5),
        lambda folder, reported: _verify_recorded(folder, reported, ring=5),
    ),
    "vector recorder": Scenario(_nothing, _record_vector, _verify_vector),
    "vector recorder, ring": Scenario(
        _nothing,
        lambda folder, report: _record_vector(folder, report, circular=True, max_episodes=20),
        lambda folder, reported: _verify_vector(folder, reported, ring=20),
    ),
    "append": Scenario(_create(), _append, _verify_plain),
    "growth": Scenario(_create(), _grow, _verify_grown),
    "early writes": Scenario(_create(), _step_by_step, _verify_plain),
    "ring": Scenario(_create(circular=True, max_steps=90), _ring, _verify_ring),
    "power": Scenario(
        _create(),
        lambda folder, report: _append_durably(folder, report),
        _verify_plain,
    ),
    "update": Scenario(_prepare_update, _update, _verify_update),
    "add_field": Scenario(_create(), _add_fields, _verify_added),
    "delete": Scenario(_create(), _delete_groups, _verify_groups),
    "clear": Scenario(_create(), _clear, _verify_cleared),
    "overwrite": Scenario(_create(), _overwrite, _verify_overwritten),
    "ragged": Scenario(_create_ragged(), _ragged, _verify_ragged),
    "ragged ring": Scenario(_create_ragged(circular=True, max_steps=90), _ragged, _verify_ragged),
    "infos": Scenario(_nothing, _record_infos, _verify_infos),
    "infos, ring": Scenario(
        _nothing,
        lambda folder, report: _record_infos(folder, report, circular=True, max_episodes=5),
        lambda folder, reported: _verify_infos(folder, reported, ring=5),
    ),
}


def _append_durably(folder: Path, report: Report) -> None:
    with ReplayBuffer(folder, durability="power") as buffer:
        for number in _count(len(buffer)):
            store(buffer, number)
            report(number + 1)


def verify_after(scenario: Scenario, folder: Path, reported: int) -> None:
    """Everything that must be true of a folder whose writer was killed."""
    scenario.verify(folder, reported)
    if not (folder / "metadata.json").exists():
        return
    report = check_buffer(folder, progress=False)
    assert report.ok, str(report)
    for path in folder.rglob("*.npy"):
        np.load(path, mmap_mode="r", allow_pickle=False)
    with open_quietly(folder) as buffer:  # recording goes on
        before = len(buffer)
        limit = buffer.max_episodes
        number = _next_id(folder)
        known = {name: rows for name, rows in rows_of(number, 2).items() if name in buffer.fieldnames}
        if "words" in buffer.fieldnames:
            known = {**ragged_episode(number, 2)}
        states = {
            name: np.ones((3, *info.shape), info.dtype) for name, info in buffer.metadata.fields.items() if info.state
        }
        buffer.store_episode(**{**states, **known})
        assert len(buffer) == before + 1 if limit is None and buffer.max_steps is None else len(buffer) >= 1
        assert buffer.episode(-1).id == number
        assert buffer.episode(-1)["observation"].tobytes() == known["observation"].tobytes()
        if "words" in known:
            assert_ragged(buffer.episode(-1), 0)
    report = check_buffer(folder, progress=False)
    assert report.ok, str(report)
    assert not report.without_checksum
    leftovers = list(folder.rglob("*.new"))
    assert not leftovers, leftovers

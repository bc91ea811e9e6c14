"""Ragged fields and string meta fields, against a model made of lists, and against the format."""

from __future__ import annotations

import json
import tempfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from internals import small_sizes

from gym_replay import ConcatReplayBuffer, CorruptBufferError, Field, FieldError, ReplayBuffer, check_buffer

FIELDS = {
    "words": Field("uint8", state=True, ragged=True),
    "points": Field("float32", (2,), ragged=True),
    "x": Field("int64"),
}
META = {"task": "str", "score": "float"}
TASKS = ["", "pick up the red ball", "naïve ☃", "\udcff", "a" * 300]


def random_elements(rng: np.random.Generator, info: Field, most: int = 5) -> np.ndarray:
    count = int(rng.integers(0, most))
    return rng.integers(0, 200, (count, *info.shape)).astype(info.dtype)


def random_episode(rng: np.random.Generator, length: int, *, final: bool = True) -> dict[str, Any]:
    return {
        "words": [random_elements(rng, FIELDS["words"]) for _ in range(length + final)],
        "points": [random_elements(rng, FIELDS["points"]) for _ in range(length)],
        "x": rng.integers(0, 1000, length),
        "task": TASKS[int(rng.integers(len(TASKS)))],
        "score": float(rng.integers(100)),
    }


def assert_rows(found: Any, expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert (row.dtype, row.shape, row.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


def assert_holds(buffer: ReplayBuffer, episodes: list[dict[str, Any]]) -> None:
    assert len(buffer) == len(episodes)
    for episode, expected in zip(buffer, episodes, strict=True):
        for found in (episode, episode.copy()):
            assert found["x"].tolist() == list(expected["x"])
            for name in expected:
                if name in META:
                    assert found.meta[name] == expected[name]
                elif name != "x":
                    assert_rows(found[name], expected[name])


class RaggedMachine(RuleBasedStateMachine):
    """Everything that a writer can do with ragged fields, in chunks of a few rows."""

    limits: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        small_sizes(patch, ragged_chunk_rows=2, growth=24, checksum_run=200)

    @initialize()
    def create(self) -> None:
        self.buffer = ReplayBuffer(self.folder, fields=FIELDS, meta_fields=META, **self.limits)
        self.reader = ReplayBuffer.from_folder(self.folder, read_only=True)
        self.episodes: list[dict[str, Any]] = []
        self.added: list[str] = []

    def teardown(self) -> None:
        with self.stack:
            if hasattr(self, "buffer"):
                self.buffer.close()
                report = check_buffer(self.folder, progress=False)
                assert report.verified, str(report)
                self.reader.close()

    def _add(self, episode: dict[str, Any]) -> None:
        for name in self.added:
            episode = {**episode, name: [np.empty(0, np.int64)] * len(episode["x"])}
        self.episodes.append(episode)
        if self.limits:
            del self.episodes[: -self.limits["max_episodes"]]

    @rule(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 7), final=st.booleans())
    def store_episode(self, seed: int, length: int, final: bool) -> None:
        episode = random_episode(np.random.default_rng(seed), length, final=final)
        self.buffer.store_episode(**episode)
        self._add(episode)

    @rule(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 9))
    def store_steps(self, seed: int, length: int) -> None:
        episode = random_episode(np.random.default_rng(seed), length)
        with self.buffer.one_episode(task=episode["task"]) as late:
            for t in range(length):
                self.buffer.store(words=episode["words"][t], points=episode["points"][t], x=episode["x"][t])
            self.buffer.store_final(words=episode["words"][length])
            late["score"] = episode["score"]
        self._add(episode)

    @rule(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 3), length=st.integers(1, 3))
    def store_batches(self, seed: int, size: int, length: int) -> None:
        rng = np.random.default_rng(seed)
        episodes = [random_episode(rng, length) for _ in range(size)]
        with self.buffer.batched_episode(size, task=[one["task"] for one in episodes]) as late:
            for t in range(length):
                self.buffer.store_batch(**{name: [one[name][t] for one in episodes] for name in FIELDS})
            self.buffer.store_final(words=[one["words"][length] for one in episodes])
            late["score"] = [one["score"] for one in episodes]
        for one in episodes:
            self._add(one)

    @precondition(lambda self: self.episodes)
    @rule(seed=st.integers(0, 2**32 - 1))
    def update(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        place = int(rng.integers(len(self.episodes)))
        length = len(self.episodes[place]["x"])
        fresh = random_episode(rng, length, final=len(self.episodes[place]["words"]) > length)
        self.buffer.update(place, words=fresh["words"], task=fresh["task"])
        self.episodes[place] = {**self.episodes[place], "words": fresh["words"], "task": fresh["task"]}

    @precondition(lambda self: len(self.added) < 2)
    @rule(seed=st.integers(0, 2**32 - 1), given_values=st.booleans())
    def add_field(self, seed: int, given_values: bool) -> None:
        rng, name, info = np.random.default_rng(seed), f"new{len(self.added)}", Field("int64", ragged=True)
        values = [[random_elements(rng, info) for _ in one["x"]] for one in self.episodes]
        if not given_values:
            values = [[np.empty(0, np.int64) for _ in one["x"]] for one in self.episodes]
        self.buffer.add_field(name, info, values if given_values and values else None, derived=False)
        self.added.append(name)
        self.episodes = [{**one, name: rows} for one, rows in zip(self.episodes, values, strict=True)]

    @precondition(lambda self: self.episodes and not self.limits)
    @rule(place=st.integers(0, 100))
    def delete(self, place: int) -> None:
        self.buffer.delete(place % len(self.episodes))
        del self.episodes[place % len(self.episodes)]

    @rule()
    def reopen(self) -> None:
        self.buffer.close()
        self.buffer = ReplayBuffer.from_folder(self.folder)

    @rule()
    def clear(self) -> None:
        self.buffer.clear()
        self.episodes = []

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "buffer"):
            assert_holds(self.buffer, self.episodes)
            self.reader.refresh()
            assert_holds(self.reader, self.episodes)


class RaggedRingMachine(RaggedMachine):
    limits = {"circular": True, "max_episodes": 4}  # noqa: RUF012


for machine in (RaggedMachine, RaggedRingMachine):
    machine.TestCase.settings = settings(max_examples=20, stateful_step_count=15)
TestRagged = RaggedMachine.TestCase
TestRaggedRing = RaggedRingMachine.TestCase


@pytest.fixture
def episodes() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [random_episode(rng, length) for length in (3, 1, 6, 2)]


@pytest.fixture
def filled(tmp_path, episodes):
    with ReplayBuffer(tmp_path / "buffer", fields=FIELDS, meta_fields=META) as buffer:
        for episode in episodes:
            buffer.store_episode(**episode)
    with ReplayBuffer.from_folder(tmp_path / "buffer", read_only=True) as buffer:
        yield buffer


def padded(rows: list[np.ndarray], width: int) -> np.ndarray:
    """The obvious way to pad."""
    out = np.zeros((len(rows), width, *rows[0].shape[1:]), rows[0].dtype)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return out


def test_the_files_are_what_the_format_says(filled, episodes):
    folder = filled.folder
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["features"] == ["ragged", "strings"]
    assert [entry.get("ragged", False) for entry in metadata["fields"]] == [True, True, False]
    spans, values = np.load(folder / "steps/words.spans.npy"), np.load(folder / "steps/words.values.npy")
    table = np.load(folder / "episodes.npy")
    starts, places = table["start"], table["task"]
    strings = np.load(folder / "strings.npy").tobytes()
    for slot, episode in enumerate(episodes):
        rows = spans[starts[slot] : starts[slot] + len(episode["x"]) + 1]
        for (begin, count), expected in zip(rows.tolist(), episode["words"], strict=True):
            assert values[begin : begin + count].tolist() == expected.tolist()
        assert (rows[1:, 0] == rows[:-1].sum(axis=1)).all()
        content = (rows - [rows[0, 0], 0]).tobytes() + np.concatenate(episode["words"]).tobytes()
        assert np.load(folder / "checksums.npy")[
            slot, [entry["name"] for entry in metadata["fields"]].index("words")
        ] == zlib.crc32(content)
        place = int(places[slot])
        size, crc = np.frombuffer(strings[place : place + 8], "<u4").tolist() if place >= 0 else (0, 0)
        text = strings[place + 8 : place + 8 + size]
        assert crc == zlib.crc32(text)
        assert text.decode("utf-8", "surrogatepass") == episode["task"]


def test_timesteps_come_padded_with_their_lengths(filled, episodes):
    rows = [row for episode in episodes for row in episode["words"][:-1]]
    batch = next(iter(filled.dataloader(len(rows), timestep_level=True)))
    assert batch["words_lens"].tolist() == list(map(len, rows))
    assert batch["words"].numpy().tolist() == padded(rows, max(map(len, rows))).tolist()
    points = [row for episode in episodes for row in episode["points"]]
    assert batch["points"].shape == (len(rows), max(map(len, points)), 2)
    assert batch["task"] == [episode["task"] for episode in episodes for _ in episode["x"]]


def test_next_and_sequences_of_n_steps(filled, episodes):
    dataset = filled.dataset(n_steps=2, sequence_fields=["words"])
    batch = dataset[np.arange(len(dataset))]
    at = 0
    for episode in episodes:
        for t in range(len(episode["x"])):
            end = min(t + 2, len(episode["x"]))
            following = episode["words"][end]
            assert batch["next_words_lens"][at] == len(following)
            assert batch["next_words"][at, : len(following)].tolist() == following.tolist()
            inside = [episode["words"][k] for k in range(t, end)]
            assert batch["seq_words_lens"][at].tolist() == [*map(len, inside), *[0] * (2 - len(inside))]
            for place, row in enumerate(inside):
                assert batch["seq_words"][at, place, : len(row)].tolist() == row.tolist()
                assert not batch["seq_words"][at, place, len(row) :].any()
            at += 1


def test_trajectories_and_all_data(filled, episodes):
    longest = max(len(episode["x"]) for episode in episodes)
    for batch in (next(iter(filled.dataloader(4, next_fields=["words"]))), filled.get_all_data()):
        assert batch["words"].shape[:2] == (4, longest)
        for place, episode in enumerate(episodes):
            length = len(episode["x"])
            lens = [*map(len, episode["words"][:-1]), *[0] * (longest - length)]
            assert batch["words_lens"][place].tolist() == lens
            for t, row in enumerate(episode["words"][:-1]):
                assert batch["words"][place, t, : len(row)].tolist() == row.tolist()
            if "next_words" in batch:
                assert batch["next_words_lens"][place, :length].tolist() == list(map(len, episode["words"][1:]))
        assert list(batch["task"]) == [episode["task"] for episode in episodes]


def test_a_single_sample_and_another_name(filled, episodes):
    sample = filled.dataset(timestep_level=True, fields=["words"], fieldname_map={"words": "text"})[1]
    wanted = episodes[0]["words"][1]
    assert sample["text"].tolist() == wanted.tolist()
    assert sample["words_lens"] == len(wanted)
    assert sample["task"] == episodes[0]["task"]


def test_workers_deliver_the_same(filled):
    options = {"timestep_level": True, "shuffle": True, "seed": 3}
    mine, theirs = (list(filled.dataloader(5, num_workers=n, **options)) for n in (0, 2))
    for one, other in zip(mine, theirs, strict=True):
        assert one["words"].tolist() == other["words"].tolist()
        assert one["task"] == other["task"]


def test_several_buffers_as_one(tmp_path, filled, episodes):
    with ReplayBuffer(tmp_path / "other", fields=FIELDS, meta_fields=META) as other:
        other.store_episode(**episodes[2])
    both = ConcatReplayBuffer([filled, tmp_path / "other"])
    batch = next(iter(both.dataloader(100, timestep_level=True)))
    rows = [row for episode in [*episodes, episodes[2]] for row in episode["words"][:-1]]
    assert batch["words"].tolist() == padded(rows, max(map(len, rows))).tolist()
    both.close()


def test_a_ring_keeps_no_strings_of_episodes_that_have_left(tmp_path, monkeypatch):
    small_sizes(monkeypatch, strings_run=50_000)
    buffer = ReplayBuffer(tmp_path, fields={"x": "int"}, meta_fields=META, circular=True, max_episodes=4)
    reader = ReplayBuffer.from_folder(tmp_path, read_only=True)
    for number in range(200):
        buffer.store_episode(x=[number], task=f"{number} " * 1000)
        reader.refresh()
        for one in (buffer, reader):
            tasks = [episode.meta["task"] for episode in one]
            assert tasks == [f"{k} " * 1000 for k in range(max(number - 3, 0), number + 1)]
    buffer.close()
    assert (tmp_path / "strings.npy").stat().st_size < 300_000  # of 780,000 that were stored
    assert check_buffer(tmp_path, progress=False).verified
    with ReplayBuffer.from_folder(tmp_path) as again:
        again.store_episode(x=[0], task="new")
        assert [episode.meta["task"][:4] for episode in again] == ["197 ", "198 ", "199 ", "new"]


def test_strings_choose_episodes(filled, episodes):
    task = episodes[0]["task"]
    wanted = [len(episode["x"]) for episode in episodes if episode["task"] == task]
    for condition in (task, {task}, lambda tasks: tasks == task):
        batch = filled.get_all_data() if condition is None else None
        batch = next(iter(filled.dataloader(10, filter_meta={"task": condition})))
        assert batch["_lens"].tolist() == wanted


def test_an_interrupted_episode_leaves_nothing(tmp_path):
    buffer = ReplayBuffer(tmp_path, fields=FIELDS, meta_fields=META)
    context = buffer.one_episode()
    context.__enter__()
    for _ in range(1000):
        buffer.store(words=np.frombuffer(b"abc", np.uint8), x=1)
    context.__exit__(KeyError)
    buffer.store_episode(words=[np.arange(3, dtype=np.uint8)] * 2, x=[5])
    assert len(buffer) == 1
    assert buffer.episode(0)["words"].tolist() == [[0, 1, 2]] * 2
    buffer.close()
    assert check_buffer(tmp_path, progress=False).verified


BAD_VALUES = {
    "one number": ({"words": 3}, r"field 'words': expected shape \('n',\)"),
    "the shape of an element": ({"points": np.zeros((2, 3))}, r"field 'points': expected shape \(2, 2\), got \(2, 3\)"),
    "no whole numbers": ({"words": [0.5]}, "field 'words': expected uint8"),
    "text": ({"words": "abc"}, "field 'words'"),
}


@pytest.mark.parametrize(("values", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_values_that_do_not_fit(tmp_path, values, message):
    buffer = ReplayBuffer(tmp_path, fields=FIELDS)
    with buffer.one_episode():
        with pytest.raises(FieldError, match=message):
            buffer.store(**values)
        buffer.store(x=1)
    assert buffer.num_steps == 1


@pytest.mark.parametrize(
    ("fields", "meta", "message"),
    [
        ({"x": "str"}, {}, "only meta fields can be strings"),
        ({"x": "int"}, {"m": Field("int", ragged=True)}, "only fields of the steps can be ragged"),
    ],
)
def test_what_cannot_be_declared(tmp_path, fields, meta, message):
    with pytest.raises(FieldError, match=message):
        ReplayBuffer(tmp_path, fields=fields, meta_fields=meta)


def test_a_string_must_be_one(tmp_path):
    buffer = ReplayBuffer(tmp_path, fields={"x": "int"}, meta_fields=META)
    with pytest.raises(FieldError, match=r"field 'task': expected a string, got int 3"):
        buffer.store_episode(x=[1], task=3)
    assert len(buffer) == 0


def put(folder: Path, path: str, index: Any, value: Any) -> None:
    values = np.load(folder / path, mmap_mode="r+")
    values[index] = value
    values.flush()


DAMAGE = {
    "a span before the first element": ("steps/words.spans.npy", (0, 0), -1, 12),
    "a span past the last element": ("steps/words.spans.npy", (13, 1), 10**9, 12),
    "a gap between two rows": ("steps/words.spans.npy", (1, 0), 9, 12),
    "a flipped element": ("steps/points.values.npy", (3, 0), 1e9, 9),
    "a flipped letter": ("strings.npy", 12, 7, 13),
}


@pytest.mark.parametrize(("path", "index", "value", "broken"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found_refused_and_repaired(tmp_path, path, index, value, broken):
    rng = np.random.default_rng(1)
    with ReplayBuffer(tmp_path, fields=FIELDS, meta_fields=META) as buffer:
        episodes = [{**random_episode(rng, length), "task": f"task {length}"} for length in (3, 1, 6, 2)]
        for episode in episodes:
            buffer.store_episode(**episode)
    put(tmp_path, path, index, value)
    report = check_buffer(tmp_path, progress=False)
    assert {fault.rule for fault in report.faults} == {broken}, str(report)
    damaged = {fault.episode for fault in report.faults}
    check_buffer(tmp_path, progress=False, repair=True)
    assert check_buffer(tmp_path, progress=False).verified
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert_holds(buffer, [one for number, one in enumerate(episodes) if number not in damaged])
        buffer.store_episode(**episodes[0])
        assert_rows(buffer.episode(-1)["words"], episodes[0]["words"])
    assert check_buffer(tmp_path, progress=False).verified


def test_elements_that_are_not_there_are_refused_by_name(tmp_path):
    with ReplayBuffer(tmp_path, fields=FIELDS) as buffer:
        buffer.store_episode(words=[np.arange(3, dtype=np.uint8)] * 3, x=[1, 2])
    put(tmp_path, "steps/words.spans.npy", (1, 1), 1 << 40)
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        with pytest.raises(CorruptBufferError, match=r"words\.values\.npy: expected at least"):
            buffer.episode(0)["words"][1]
        with pytest.raises(CorruptBufferError, match=r"words\.values\.npy: expected at least"):
            next(iter(buffer.dataloader(2, timestep_level=True)))

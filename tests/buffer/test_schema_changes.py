"""Fields and meta fields that are added, renamed and dropped: whole or not at all."""

import os
import shutil
import sys

import gymnasium as gym
import numpy as np
import pytest

from gym_replay import (
    ConcatReplayBuffer,
    EpisodeStateError,
    Field,
    FieldError,
    MissingExtraError,
    RecordToBuffer,
    ReplayBuffer,
    check_buffer,
    timestep_loader,
)

FIELDS = {
    "observation": Field("float32", (2,), state=True),
    "extra": Field("float", state=True),
    "action": "int",
    "words": Field("uint8", ragged=True),
}
META = {"task": "str", "score": "float64", "pair": ("int", 2)}


def store(buffer, number):
    length = 2 + number % 3
    values = {
        "observation": np.full((length + 1, 2), number),
        "extra": np.arange(length + 1),
        "action": np.arange(length) + 10 * number,
        "words": [np.full(t, number, np.uint8) for t in range(length)],
        "task": f"task {number % 2}",
        "score": number / 2,
        "pair": [number, -number],
    }
    values["other"] = values["extra"]
    known = (*buffer.fieldnames, *buffer.meta_fieldnames)
    buffer.store_episode(**{name: value for name, value in values.items() if name in known})


def filled(folder, **options):
    buffer = ReplayBuffer(folder, fields=FIELDS, meta_fields=META, **options)
    for number in range(5):
        store(buffer, number)
    buffer.delete(1)
    return buffer


def state_of(buffer):
    return {
        "fields": {
            name: [[np.asarray(row).tolist() for row in episode[name]] for episode in buffer]
            for name in buffer.fieldnames
        },
        "meta": {name: np.asarray(buffer.meta[name]).tolist() for name in buffer.meta_fieldnames},
        "ids": [episode.id for episode in buffer],
    }


CHANGES = {
    "add a meta field": lambda buffer: buffer.add_meta_field("success", "bool", [True, False, True, True]),
    "add a meta field with a shape": lambda buffer: buffer.add_meta_field("goal", ("float", 3), np.ones((4, 3))),
    "add a meta field of defaults": lambda buffer: buffer.add_meta_field("weight", ("float", (), 0.5)),
    "add strings": lambda buffer: buffer.add_meta_field("note", "str", ["a", "", "é", "a"]),
    "add empty strings": lambda buffer: buffer.add_meta_field("note", "str"),
    "rename a field": lambda buffer: buffer.rename_field("action", "deep.act"),
    "rename a ragged field": lambda buffer: buffer.rename_field("words", "letters"),
    "rename a state field": lambda buffer: buffer.rename_field("extra", "other"),
    "rename a meta field": lambda buffer: buffer.rename_field("score", "points"),
    "rename strings": lambda buffer: buffer.rename_field("task", "name"),
    "drop a field": lambda buffer: buffer.drop_field("action"),
    "drop a ragged field": lambda buffer: buffer.drop_field("words"),
    "drop a state field": lambda buffer: buffer.drop_field("extra"),
    "drop a meta field": lambda buffer: buffer.drop_field("pair"),
    "drop strings": lambda buffer: buffer.drop_field("task"),
}


def expected_of(before, name):
    """What the buffer shows after a change."""
    fields, meta = dict(before["fields"]), dict(before["meta"])
    if name.startswith("drop"):
        dropped = {"field": "action", "ragged field": "words", "state field": "extra", "meta field": "pair"}
        dropped = dropped.get(name[7:], "task")
        fields.pop(dropped, None)
        meta.pop(dropped, None)
    elif name.startswith("rename"):
        old, new = {
            "rename a field": ("action", "deep.act"),
            "rename a ragged field": ("words", "letters"),
            "rename a state field": ("extra", "other"),
            "rename a meta field": ("score", "points"),
            "rename strings": ("task", "name"),
        }[name]
        fields = {new if each == old else each: value for each, value in fields.items()}
        meta = {new if each == old else each: value for each, value in meta.items()}
    else:
        meta |= {
            "add a meta field": {"success": [True, False, True, True]},
            "add a meta field with a shape": {"goal": [[1.0] * 3] * 4},
            "add a meta field of defaults": {"weight": [0.5] * 4},
            "add strings": {"note": ["a", "", "é", "a"]},
            "add empty strings": {"note": [""] * 4},
        }[name]
    return {**before, "fields": fields, "meta": meta}


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change(tmp_path, change, circular):
    options = {"circular": True, "max_episodes": 5} if circular else {}
    with filled(tmp_path, **options) as buffer:
        reader = ReplayBuffer.from_folder(tmp_path, read_only=True)
        before = state_of(buffer)
        CHANGES[change](buffer)
        expected = expected_of(before, change)
        assert state_of(buffer) == expected
        reader.refresh()
        assert state_of(reader) == expected
        for number in range(5, 9):
            store(buffer, number)
        assert len(buffer) == (5 if circular else 8)
    assert check_buffer(tmp_path, progress=False).verified
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert buffer.episode(-1).id == 8
        next(iter(timestep_loader(buffer, 4)))


CALLS = ("replace", "rename", "unlink", "rmdir")
"""After which other readers may see something else; files beside the old ones are written between them."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_process_that_is_killed_leaves_the_old_state_or_the_new_one(tmp_path, monkeypatch, change):
    buffer = filled(tmp_path / "data")
    before = state_of(buffer)
    copies = []

    def watched(real):
        def call(*arguments, **options):
            with monkeypatch.context() as inner:
                for name, unwatched in originals.items():
                    inner.setattr(os, name, unwatched)
                copies.append(shutil.copytree(tmp_path / "data", tmp_path / str(len(copies))))
            return real(*arguments, **options)

        return call

    originals = {name: getattr(os, name) for name in CALLS}
    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, watched(getattr(os, name)))
        CHANGES[change](buffer)
    expected, seen = expected_of(before, change), []
    for folder in copies:
        read = state_of(ReplayBuffer.from_folder(folder, read_only=True))
        assert read in (before, expected)
        with ReplayBuffer.from_folder(folder) as again:
            store(again, 7)
        assert not list(folder.rglob("*.new"))
        seen.append(read == expected)
    report = check_buffer(copies[len(copies) // 2], progress=False)
    assert report.ok, str(report)
    assert seen == sorted(seen)
    assert not seen[0]
    assert seen[-1]


BAD = {
    "a field that exists": (lambda b: b.add_meta_field("task", "int"), "exists already"),
    "a name that exists among the fields": (lambda b: b.add_meta_field("action", "int"), "exists already"),
    "a bad dtype": (lambda b: b.add_meta_field("x", "string"), "meta field 'x': dtype 'string'"),
    "too few values": (lambda b: b.add_meta_field("x", "int", [1, 2]), "x"),
    "too few strings": (lambda b: b.add_meta_field("x", "str", ["a"]), "4 strings"),
    "a value that does not fit": (lambda b: b.add_meta_field("x", "int", [1.5, 2, 3, 4]), "x"),
    "a ragged meta field": (lambda b: b.add_meta_field("x", Field("int", ragged=True)), "ragged"),
    "a string for each step": (lambda b: b.add_field("x", "str"), "only meta fields can be strings"),
    "a bad name": (lambda b: b.add_meta_field("a..b", "int"), "a..b"),
    "an unknown field to rename": (lambda b: b.rename_field("acton", "x"), "did you mean 'action'"),
    "an unknown meta field to drop": (lambda b: b.drop_field("scor"), "did you mean 'score'"),
    "a new name that exists": (lambda b: b.rename_field("action", "task"), "exists already"),
    "names that differ in case only": (lambda b: b.rename_field("action", "Words"), "Words"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_changed(tmp_path, case):
    change, named = BAD[case]
    with filled(tmp_path) as buffer:
        before = state_of(buffer)
        with pytest.raises(FieldError, match=named):
            change(buffer)
        assert state_of(buffer) == before
    assert check_buffer(tmp_path, progress=False).verified


def test_the_last_ones_stay(tmp_path):
    buffer = ReplayBuffer(tmp_path, fields={"x": Field("int", state=True), "y": "int"})
    buffer.store_episode(x=[1, 2, 3], y=[1, 2])
    with pytest.raises(FieldError, match="only state field"):
        buffer.drop_field("x")
    one = ReplayBuffer(tmp_path / "one", fields={"x": "int"})
    with pytest.raises(FieldError, match="only one"):
        one.drop_field("x")


def test_not_while_an_episode_is_open(tmp_path):
    buffer = filled(tmp_path)
    with buffer.one_episode():
        buffer.store(action=1)
        for change in (lambda: buffer.drop_field("action"), lambda: buffer.add_meta_field("x", "int")):
            with pytest.raises(EpisodeStateError):
                change()


def test_of_a_recorded_buffer(tmp_path):
    with RecordToBuffer(gym.make("CartPole-v1"), tmp_path, extra_fields={"log_prob": "float"}) as env:
        env.reset(seed=0)
        while not any(env.step(0)[2:4]):
            pass
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        with pytest.raises(FieldError, match="set by the recorder"):
            buffer.drop_field("episode_seed")
        with pytest.raises(FieldError, match="set by the recorder"):
            buffer.rename_field("episode_return", "score")
        buffer.add_meta_field("success", "bool", [True])
        buffer.drop_field("log_prob")
        assert buffer.observation_space.shape == (4,)
    with RecordToBuffer(gym.make("CartPole-v1"), tmp_path) as env:
        env.reset(seed=1)
        env.annotate(success=False)
        env.step(0)
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert buffer.meta["success"].tolist() == [True, False]
        buffer.rename_field("observation", "state")
        with pytest.raises(FieldError, match="no observation_space"):
            _ = buffer.observation_space
        assert buffer.action_space.n == 2
        assert buffer.episode(0)["state"].shape == (len(buffer.episode(0)) + 1, 4)


CHANGES_IN_USE = {
    "rename observation": ("observation", lambda buffer, name: buffer.rename_field(name, "other")),
    **{
        f"{change} {name}": (name, function)
        for change, function in {
            "rename": lambda buffer, name: buffer.rename_field(name, "other"),
            "drop": lambda buffer, name: buffer.drop_field(name),
            "replace": lambda buffer, name: (buffer.drop_field(name), buffer.add_field(name, ("float", 7))),
        }.items()
        for name in ("action", "terminated", "log_prob")
    },
    "drop reward": ("reward", lambda buffer, name: buffer.drop_field(name)),
}


@pytest.mark.parametrize("case", CHANGES_IN_USE)
def test_while_a_recorder_is_in_use(tmp_path, case):
    """Its next episode would lose what it has no field for any more; the step says so before the environment's."""
    name, change = CHANGES_IN_USE[case]
    one = gym.make("CartPole-v1", max_episode_steps=3)
    with RecordToBuffer(one, tmp_path, extra_fields={"log_prob": "float"}) as env:
        env.reset(seed=0)
        for _ in range(3):
            env.step(0)
        change(env.buffer, name)
        observation, _ = env.reset(seed=1)
        for _ in range(2):
            with pytest.raises(FieldError, match=f"field '{name}' was .* make a new recorder"):
                env.step(0)
        np.testing.assert_allclose(env.unwrapped.state, observation, 1e-5)
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert buffer.episode_lens.tolist() == [3]
    assert check_buffer(tmp_path, progress=False).verified


@pytest.mark.parametrize("change", ["rename", "drop"])
def test_of_a_field_with_a_codec(tmp_path, change):
    pytest.importorskip("numcodecs")
    images = np.random.default_rng(0).integers(0, 9, (6, 8, 9, 3), np.uint8)
    fields = {
        "camera": Field("uint8", (8, 9, 3), state=True, codec="zstd"),
        "depth": Field("uint8", (8, 9), codec="zstd"),
        "other": "float",
    }
    with ReplayBuffer(tmp_path, fields=fields) as buffer:
        buffer.store_episode(camera=images, depth=images[:5, ..., 0])
        buffer.store_episode(camera=images[::-1], depth=images[:5, ..., 1])
        if change == "rename":
            buffer.rename_field("camera", "view.front")
        else:
            buffer.drop_field("depth")
        name = {"rename": "view.front", "drop": "camera"}[change]
        buffer.store_episode(**{name: images})
        for episode, expected in zip(buffer, (images, images[::-1], images), strict=True):
            np.testing.assert_array_equal(np.asarray(episode[name]), expected)
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        kept = {"rename": ("view.front", "depth", "other"), "drop": ("camera", "other")}[change]
        assert buffer.fieldnames == kept
        np.testing.assert_array_equal(np.asarray(buffer.episode(1)[name]), images[::-1])
    assert check_buffer(tmp_path, progress=False).verified


# --- meta values of all episodes ---


def test_meta_values(tmp_path):
    buffer = filled(tmp_path)
    assert buffer.meta["score"].tolist() == [0, 1, 1.5, 2]
    assert buffer.meta["score"].dtype == np.float64
    assert buffer.meta["task"] == ["task 0", "task 0", "task 1", "task 0"]
    assert buffer.meta["pair"].tolist() == [[0, 0], [2, -2], [3, -3], [4, -4]]
    assert list(buffer.meta) == ["task", "score", "pair"]
    assert "score" in buffer.meta
    assert "x" not in buffer.meta
    assert buffer.meta.get("x") is None
    assert len(dict(buffer.meta)) == 3
    with pytest.raises(FieldError, match="did you mean 'score'"):
        buffer.meta["scores"]
    with pytest.raises(FieldError, match="field of the steps"):
        buffer.meta["action"]
    both = ConcatReplayBuffer([buffer, filled(tmp_path / "b")])
    assert both.meta["score"].tolist() == [0, 1, 1.5, 2] * 2
    assert len(both.meta["task"]) == 8


def test_meta_values_of_a_recorded_buffer_and_of_an_empty_one(tmp_path):
    with RecordToBuffer(gym.make("CartPole-v1"), tmp_path) as env:
        assert env.buffer.meta["episode_return"].tolist() == []
        assert env.buffer.meta["episode_run"] == []
        for seed in range(3):
            env.reset(seed=seed)
            while not any(env.step(0)[2:4]):
                pass
        assert env.buffer.meta["episode_return"].tolist() == env.buffer.episode_lens.tolist()


def test_a_table_of_pandas(tmp_path):
    pytest.importorskip("pandas")
    table = filled(tmp_path).to_pandas()
    assert list(table.columns) == ["id", "length", "task", "score"]
    assert table["id"].tolist() == [0, 2, 3, 4]
    assert table[table.task == "task 0"].length.sum() == 2 + 4 + 3
    odd = ReplayBuffer(tmp_path / "odd", fields={"x": "int"}, meta_fields={"id": "int", "length": "str"})
    odd.store_episode(x=[1], id=7, length="long")
    assert odd.to_pandas().iloc[0].tolist() == [0, 1, 7, "long"]
    assert list(odd.to_pandas().columns) == ["id", "length", "meta/id", "meta/length"]


def test_without_pandas(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gym-replay\[pandas\]'"):
        filled(tmp_path).to_pandas()

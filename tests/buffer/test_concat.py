"""Concatenations: which buffers, which fields, and the whole reading side."""

import os
import pickle
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from format_helpers import as_of_a_recorder

from gym_replay import (
    BufferClosedError,
    BufferNotFoundError,
    ConcatReplayBuffer,
    ConfigMismatchError,
    EmptyBufferError,
    Field,
    FieldError,
    RecordToBuffer,
    ReplayBuffer,
    returns_to_go,
    split,
    statistics,
)

FIELDS = {"observation": Field("float", (2,), state=True), "action": "int", "reward": "float64"}
META = {"task": "int", "name": "str"}


def make(folder, lengths=(3,), first=0, *, fields=FIELDS, meta_fields=META):
    """A buffer, closed, whose episodes can be told from one another."""
    with ReplayBuffer(folder, fields=fields, meta_fields=meta_fields) as buffer:
        for number, length in enumerate(lengths, first):
            add(buffer, number, length)
    return Path(folder)


def add(buffer, number, length):
    steps = 100 * number + np.arange(length + 1)
    states = steps if (info := buffer.metadata.fields.get("observation")) and info.state else steps[:-1]
    values = {"observation": np.stack((states, -states), 1), "action": steps[:-1], "reward": steps[:-1] / 7.0}
    values |= {
        name: np.zeros((length, *info.shape)) for name, info in buffer.metadata.fields.items() if name not in values
    }
    meta = {"task": number % 3, "name": f"episode {number}"}
    values |= {name: value for name, value in meta.items() if name in buffer.meta_fieldnames}
    buffer.store_episode(**{name: value for name, value in values.items() if name in {*buffer.fieldnames, *meta}})


def names(buffer):
    return [folder.name for folder in buffer.folders]


# --- which buffers ---


def test_folders_in_natural_order_by_pattern_and_by_folder(tmp_path):
    for number in (10, 2, 1, 33, 9):
        make(tmp_path / "data" / f"run-{number}", first=number)
    (tmp_path / "data" / "README.md").write_text("hello")
    (tmp_path / "data" / ".cache").mkdir()
    (tmp_path / "data" / "run-50").mkdir()  # where one is just being created
    expected = ["run-1", "run-2", "run-9", "run-10", "run-33"]
    with ConcatReplayBuffer(tmp_path / "data") as buffer:
        assert names(buffer) == expected
        assert [episode.meta["name"] for episode in buffer] == [f"episode {name[4:]}" for name in expected]
    with ConcatReplayBuffer(str(tmp_path / "data" / "run-[0-9]/")) as buffer:
        assert names(buffer) == expected[:3]
    with ConcatReplayBuffer([tmp_path / "data" / "run-33", str(tmp_path / "data" / "run-?")]) as buffer:
        assert names(buffer) == ["run-33", "run-1", "run-2", "run-9"]


def test_shards_buffers_and_concatenations_in_one_list(tmp_path):
    for number in (0, 1):
        make(tmp_path / "data" / "shards" / f"worker-0000{number}", first=number)
    make(tmp_path / "[1]", first=5)  # a name, though it looks like a pattern
    with ReplayBuffer(tmp_path / "own", fields=FIELDS, meta_fields=META) as own:
        shards = ConcatReplayBuffer(tmp_path / "data")
        with ConcatReplayBuffer([own, shards, str(tmp_path / "[1]")]) as buffer:
            assert names(buffer) == ["own", "worker-00000", "worker-00001", "[1]"]
            assert len(buffer) == 3
            add(own, 7, 2)
            assert len(buffer) == 4  # as the buffer that was given sees it
            assert buffer.episode(0).meta["name"] == "episode 7"
        assert own.num_steps == 2  # it stays open
        assert len(shards) == 2


def test_a_folder_that_is_a_buffer_is_that_buffer(tmp_path):
    make(tmp_path / "a", (2, 3))
    with ConcatReplayBuffer(str(tmp_path / "a")) as buffer, ReplayBuffer.from_folder(tmp_path / "a") as one:
        assert len(buffer) == 2
        with ConcatReplayBuffer(one) as other:
            assert len(other) == 2


def test_what_is_not_there_is_named(tmp_path):
    make(tmp_path / "data" / "a")
    (tmp_path / "data" / "b" / "steps").mkdir(parents=True)
    (tmp_path / "data" / "b" / "notes.txt").write_text("no buffer")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for source, message in (
        (tmp_path / "data", r"data/b"),
        (str(tmp_path / "data" / "*"), r"data/b"),
        (tmp_path / "missing", "missing"),
        (str(tmp_path / "missing" / "*"), "pattern"),
        (str(tmp_path / "fil*"), "pattern"),
        (tmp_path / "empty", "neither a buffer"),
        (tmp_path / "file", "file"),
    ):
        with pytest.raises(BufferNotFoundError, match=message):
            ConcatReplayBuffer(source)
    with pytest.raises(EmptyBufferError, match="at least one"):
        ConcatReplayBuffer([])
    with pytest.raises(TypeError, match="got 3"):
        ConcatReplayBuffer([3])


def test_a_folder_comes_once(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for second in (tmp_path / "a", tmp_path / "b" / ".." / "a", tmp_path / "link", str(tmp_path / "[ab]")):
        with pytest.raises(ConfigMismatchError, match=r"twice.*buffer_weights"):
            ConcatReplayBuffer([tmp_path / "a", second])
    with ReplayBuffer.from_folder(tmp_path / "a") as one, pytest.raises(ConfigMismatchError, match="twice"):
        ConcatReplayBuffer([one, tmp_path / "a"])


# --- which fields ---


def test_all_differences_of_all_buffers_are_listed(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", fields={**FIELDS, "reward": "float32"}, meta_fields={"task": "int32", "name": "str"})
    make(tmp_path / "c", fields={**FIELDS, "extra": ("float", 3)}, meta_fields={"name": "str"})
    make(tmp_path / "d", fields={**FIELDS, "observation": Field("float", (2,))})
    for number in range(5):
        make(tmp_path / f"e{number}")
    with pytest.raises(ConfigMismatchError) as caught:
        ConcatReplayBuffer(tmp_path)
    lines = str(caught.value).split("\n")
    assert lines[0] == "the schemas of 9 buffers differ:"
    root = str(tmp_path)
    assert lines[1:5] == [
        f"  field 'observation': float32 of shape (2,) state in {root}/a, {root}/b, {root}/c and 5 more; "
        f"float32 of shape (2,) in {root}/d",
        f"  field 'reward': float64 in {root}/a, {root}/c, {root}/d and 5 more; float32 in {root}/b",
        f"  field 'extra': missing in {root}/a, {root}/b, {root}/d and 5 more; float32 of shape (3,) in {root}/c",
        f"  meta field 'task': int64 in {root}/a, {root}/d, {root}/e0 and 4 more; int32 in {root}/b; "
        f"missing in {root}/c",
    ]
    assert "fields=[...]" in lines[5]
    assert len(lines) == 6


def test_common_fields_can_be_chosen(tmp_path):
    make(tmp_path / "a", (3, 2))
    extra = {**FIELDS, "extra": ("float", 3)}
    make(tmp_path / "b", (4,), first=2, fields=extra, meta_fields={**META, "grade": "float"})
    for options, fields, meta in (
        ({"fields": ("reward", "observation"), "meta_fields": ["name"]}, ("reward", "observation"), ("name",)),
        ({"fields": "common", "meta_fields": "common"}, tuple(FIELDS), tuple(META)),
        ({"fields": ["action"], "meta_fields": ()}, ("action",), ()),
    ):
        with ConcatReplayBuffer([tmp_path / "b", tmp_path / "a"], **options) as buffer:
            assert buffer.fieldnames == fields
            assert buffer.meta_fieldnames == meta
            for episode in buffer:
                assert list(episode) == list(fields)
                assert set(episode.meta) == set(meta)
            assert set(buffer.get_all_data()) == {*fields, *meta, "episode_lens"}
            batch = next(iter(buffer.dataloader(9, timestep_level=True)))
            assert set(batch) == {*fields, *meta}
            for loader in (
                buffer.dataloader(4, timestep_level=True, shuffle=True, seed=0, refresh="epoch"),
                pickle.loads(pickle.dumps(buffer)).dataloader(4, timestep_level=True, shuffle=True, seed=0),
            ):
                assert sum(len(batch[fields[0]]) for batch in loader) == 9
    for options, message in (
        ({"fields": ["extra"], "meta_fields": "common"}, "field 'extra': missing in .*a; float32 of shape"),
        ({"fields": "common"}, "meta field 'grade'"),
        ({"meta_fields": "common"}, "field 'extra'"),
    ):
        with pytest.raises(ConfigMismatchError, match=message):
            ConcatReplayBuffer(tmp_path, **options)
    for options, message in (
        ({"fields": ["nonsense"], "meta_fields": "common"}, "nonsense"),
        ({"fields": "action"}, "write"),
        ({"fields": [], "meta_fields": "common"}, "at least one"),
    ):
        with pytest.raises(FieldError, match=message):
            ConcatReplayBuffer(tmp_path, **options)


def test_what_matters_to_writers_only_may_differ(tmp_path):
    for name, options in (
        ("a", {"max_timesteps": 7}),
        ("b", {"circular": True, "max_episodes": 2, "max_timesteps": 9}),
    ):
        with ReplayBuffer(tmp_path / name, fields={"x": Field("float", default=len(options))}, **options) as buffer:
            buffer.store_episode(x=np.arange(3))
    with ConcatReplayBuffer(tmp_path) as both:
        assert both.episode_lens.tolist() == [3, 3]
        batch = next(iter(both.dataloader(2, slice_by_episode_len=False)))
        assert batch["x"].shape == (2, 9)  # the longer limit


class Other(gym.Env):
    """An environment that differs from CartPole in its bounds."""

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action):
        return np.zeros(4, np.float32), 1.0, True, False, {}


def record(folder, env, **options):
    env = RecordToBuffer(env, folder, **options)
    env.reset(seed=0)
    while not any(env.step(0)[2:4]):
        pass
    env.close()


def test_the_environment_where_all_agree(tmp_path):
    for name in ("a", "b"):
        record(tmp_path / name, gym.make("CartPole-v1"))
    with ConcatReplayBuffer(tmp_path) as both:
        assert both.env_spec.id == "CartPole-v1"
        assert both.action_space == gym.spaces.Discrete(2)
        assert both.observation_space.shape == (4,)
        assert both.read_only
        with both.make_env() as env:
            assert env.spec.id == "CartPole-v1"
    record(tmp_path / "c", Other())
    with ConcatReplayBuffer(tmp_path) as three:
        assert three.action_space == gym.spaces.Discrete(2)
        for ask in (lambda: three.observation_space, lambda: three.env_spec, three.make_env):
            with pytest.raises(FieldError, match=r"b and .*c have different values|a and .*c have different values"):
                ask()
    make(tmp_path / "d", (2,))
    with ConcatReplayBuffer([tmp_path / "d"]) as one, pytest.raises(FieldError, match="not made by RecordToBuffer"):
        _ = one.env_spec


def test_the_recorders_own_meta_fields_may_be_missing(tmp_path):
    """As where folders were recorded by different versions, or in vector environments."""

    for name, own in (("a", {"seed": "int"}), ("b", {"seed": "int", "env_index": "int"})):
        with ReplayBuffer(tmp_path / name, fields={"x": "float"}, meta_fields={**own, "task": "int"}) as buffer:
            buffer.store_episode(x=[1.0], task=3, **dict.fromkeys(own, 4))
        as_of_a_recorder(tmp_path / name, own)
    with ConcatReplayBuffer(tmp_path) as both:
        assert both.meta_fieldnames == ("seed", "task")
        assert both.metadata.recorder_meta == ("seed",)
        assert [episode.meta for episode in both] == [{"seed": 4, "task": 3}] * 2
        assert set(next(iter(both.dataloader(2)))) == {"x", "task", "_lens"}
    with ConcatReplayBuffer(tmp_path, meta_fields=["task"]) as both:
        assert both.meta_fieldnames == ("task",)


# --- the reading side ---


def test_everything_that_reads_equals_one_buffer(tmp_path):
    make(tmp_path / "parts" / "a", (3, 6))
    make(tmp_path / "parts" / "b", ())
    make(tmp_path / "parts" / "c", (2, 4, 1), first=2)
    make(tmp_path / "whole", (3, 6, 2, 4, 1))
    both, whole = ConcatReplayBuffer(tmp_path / "parts"), ReplayBuffer.from_folder(tmp_path / "whole", read_only=True)
    assert (both.num_episodes, both.num_steps, len(both)) == (5, 16, 5)
    assert both.episode_lens.tolist() == whole.episode_lens.tolist()
    for index in range(-5, 5):
        np.testing.assert_array_equal(both[index]["observation"], whole[index]["observation"])
        assert both[index].meta == whole[index].meta
    for index in (-6, 5):
        with pytest.raises(IndexError, match="there are 5"):
            both.episode(index)
    one, other = both.get_all_data(), whole.get_all_data()
    assert one.keys() == other.keys()
    assert one["name"] == other["name"]
    assert all(torch.equal(one[name], other[name]) for name in other if name != "name")
    for name, found in statistics(both).items():
        np.testing.assert_allclose(found.mean, statistics(whole)[name].mean, rtol=1e-12)
    for mine, theirs in zip(returns_to_go(both, 0.9), returns_to_go(whole, 0.9), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    training, valid = split(both, (0.5, 0.5), seed=1)
    assert sorted([*training, *valid]) == list(range(5))
    both.close()
    whole.close()


def test_weights_of_buffers(tmp_path):
    make(tmp_path / "a", (3, 6))
    make(tmp_path / "b", (2,), first=2)
    with ConcatReplayBuffer(tmp_path) as both:
        loader = both.dataloader(50, timestep_level=True, buffer_weights=[0, 1], samples_per_epoch=200, seed=0)
        assert {name for batch in loader for name in batch["name"]} == {"episode 2"}


def test_pickled_it_is_its_paths(tmp_path):
    make(tmp_path / "data" / "a", (3, 6))
    with ReplayBuffer(tmp_path / "own", fields=FIELDS, meta_fields=META) as own:
        add(own, 4, 2)
        both = ConcatReplayBuffer([own, str(tmp_path / "data" / "*")])
        sent = pickle.dumps(both)
        assert len(sent) < 1500
        make(tmp_path / "data" / "b", (1,))
        with pickle.loads(sent) as copy:
            assert [each.folder for each in copy.buffers] == both.folders
            assert all(each.read_only for each in copy.buffers)
            assert copy.episode_lens.tolist() == [2, 3, 6]
            copy.refresh()  # which looks at the pattern again
            assert names(copy) == ["own", "a", "b"]


def test_refresh_sees_new_episodes_and_new_buffers(tmp_path):
    make(tmp_path / "data" / "shards" / "w-2", (3,))
    make(tmp_path / "data" / "shards" / "w-10", (2,), first=1)
    with (
        ConcatReplayBuffer(tmp_path / "data") as both,
        ReplayBuffer.from_folder(tmp_path / "data" / "shards" / "w-2") as writer,
    ):
        add(writer, 2, 4)
        make(tmp_path / "data" / "shards" / "w-3", (5,), first=3)
        assert both.episode_lens.tolist() == [3, 2]
        loader = both.dataloader(100, timestep_level=True, refresh="epoch")
        both.refresh()
        assert names(both) == ["w-2", "w-10", "w-3"]  # at the end
        assert both.episode_lens.tolist() == [3, 4, 2, 5]
        assert both.episode(3).meta["name"] == "episode 3"
        assert len(next(iter(loader))["action"]) == 9  # of the buffers that there were
        make(tmp_path / "data" / "shards" / "w-4", (5,), fields={"x": "float"})
        with pytest.raises(ConfigMismatchError, match="w-4"):
            both.refresh()
        assert names(both) == ["w-2", "w-10", "w-3"]
        assert len(both) == 4


def test_closed(tmp_path):
    make(tmp_path / "a", (3, 2))
    make(tmp_path / "b", (3,))
    with ConcatReplayBuffer(tmp_path) as both:
        view = both.episode(1)["action"]
        assert "2 buffers, 3 episodes, 8 steps" in repr(both)
    assert view.tolist() == [100, 101]
    assert "closed" in repr(both)
    both.close()
    for use in (both.refresh, lambda: len(both), lambda: both.dataloader(2), lambda: both.env_spec):
        with pytest.raises(BufferClosedError):
            use()
    if os.path.isdir("/proc/self/fd"):
        held = [os.path.realpath(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd")]
        assert not [path for path in held if str(tmp_path) in path]


def test_nothing_stays_open_where_opening_fails(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", fields={"x": "float"})
    with pytest.raises(ConfigMismatchError):
        ConcatReplayBuffer(tmp_path)
    if os.path.isdir("/proc/self/fd"):
        held = [os.path.realpath(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd")]
        assert not [path for path in held if str(tmp_path) in path]

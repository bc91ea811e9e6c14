"""Flat arrays for D4RL and OGBench."""

import importlib.util
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import small_sizes
from interop_helpers import by_hand, record, sights, transitions

from gym_replay import (
    ConcatReplayBuffer,
    EmptyBufferError,
    Field,
    FieldError,
    ReplayBuffer,
    from_d4rl,
    to_d4rl,
    to_ogbench,
)

EPISODES = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=5)


@settings(max_examples=40)
@given(episodes=EPISODES, at_once=st.sampled_from([1, 3, 1000]))
@pytest.mark.filterwarnings("ignore:.*left out")
def test_every_transition_is_there_once_and_in_order(tmp_path_factory, monkeypatch, episodes, at_once):
    small_sizes(monkeypatch, exported_steps=at_once)
    with by_hand(tmp_path_factory.mktemp("data") / "a", *zip(*episodes, strict=True)) as buffer:
        expected = list(transitions(buffer))
        if not expected:
            with pytest.raises(EmptyBufferError):
                to_d4rl(buffer)
            return
        data, ogbench = to_d4rl(buffer, dtype=None), to_ogbench(buffer, dtype=None)
        compact = to_ogbench(buffer, dtype=None, compact=True)
    for name, ours in (("observations", "observation"), ("next_observations", "next"), ("actions", "action")):
        wanted = np.array([row[ours] for row in expected])
        np.testing.assert_array_equal(data[name], wanted)
        np.testing.assert_array_equal(ogbench[name], wanted)
    np.testing.assert_array_equal(data["rewards"], [row["reward"] for row in expected])
    np.testing.assert_array_equal(data["terminals"], [row["terminated"] for row in expected])
    np.testing.assert_array_equal(data["timeouts"], [row["truncated"] for row in expected])
    np.testing.assert_array_equal(ogbench["terminals"], [float(row["ends"]) for row in expected])
    np.testing.assert_array_equal(ogbench["masks"], [1.0 - row["terminated"] for row in expected])
    rows = []
    for row in expected:
        rows.append((row["observation"], float(row["ends"]), 1.0))
        if row["ends"]:
            rows.append((row["next"], 1.0, 0.0))
    for name, place in (("observations", 0), ("terminals", 1), ("valids", 2)):
        np.testing.assert_array_equal(compact[name], np.array([row[place] for row in rows]))


def test_what_is_left_out_is_said(tmp_path):
    with by_hand(tmp_path / "a", [3, 2], [True, False]) as buffer:
        with pytest.warns(UserWarning, match="1 transitions are left out"):
            assert len(to_d4rl(buffer)["rewards"]) == 4
        whole = to_d4rl(buffer, next_observations=False)
    assert len(whole["rewards"]) == 5
    assert "next_observations" not in whole


def test_floats_become_float32_and_nothing_else_changes(tmp_path):
    with by_hand(tmp_path / "a", [3], [True]) as buffer:
        data = to_d4rl(buffer)
    assert {name: array.dtype.name for name, array in data.items()} == {
        "observations": "float32",
        "next_observations": "float32",
        "actions": "int64",
        "rewards": "float32",
        "terminals": "bool",
        "timeouts": "bool",
    }


def test_a_dict_space_is_one_array_for_each_part(tmp_path):
    with sights(tmp_path / "a") as buffer:
        data = to_d4rl(buffer)
        with pytest.raises(FieldError, match="OGBench takes one array of observations"):
            to_ogbench(buffer)
        chosen = to_ogbench(buffer, names={"observation": "observation.state"})
        assert data["observations/camera/top"].shape == (buffer.num_steps, 32, 40, 3)
        assert data["observations/camera/top"].dtype == np.uint8
        np.testing.assert_array_equal(chosen["next_observations"], data["next_observations/state"])


def test_several_buffers_and_chosen_episodes(tmp_path):
    with by_hand(tmp_path / "a", [3, 2], [True, True]) as a, by_hand(tmp_path / "b", [4], [True]) as b:
        both = ConcatReplayBuffer([a, b])
        assert to_d4rl(both)["observations"][:, 0].tolist() == [0, 1, 2, 100, 101, 0, 1, 2, 3]
        assert to_d4rl(both, episodes=[1, 2])["observations"][:, 0].tolist() == [100, 101, 0, 1, 2, 3]


def test_other_names(tmp_path):
    with by_hand(tmp_path / "a", [2], [True]) as buffer:
        data = to_d4rl(buffer, names={"observation": "observation", "truncated": None, "terminated": "truncated"})
        assert not data["timeouts"].any()
        with pytest.raises(FieldError, match="no field 'state'"):
            to_d4rl(buffer, names={"observation": "state"})
        with pytest.raises(FieldError, match="unknown part 'obs'"):
            to_d4rl(buffer, names={"obs": "observation"})
        with pytest.raises(FieldError, match="no state field"):
            to_d4rl(buffer, names={"observation": "reward"})


def test_there_and_back_is_the_same(tmp_path):
    with sights(tmp_path / "a") as buffer:
        report = from_d4rl(to_d4rl(buffer, dtype=None), tmp_path / "b")
        assert (report.num_episodes, report.not_known) == (4, ())
        with type(buffer).from_folder(tmp_path / "b") as back:
            for one, other in zip(buffer, back, strict=True):
                assert (one.complete, one.has_final) == (other.complete, other.has_final)
                for name in buffer.fieldnames:
                    np.testing.assert_array_equal(one[name], other[name])


def test_ogbench_reads_its_own_file_as_we_write_it(tmp_path):
    """The raw file has one row more for each trajectory; its own loader makes both layouts of it."""
    spec = importlib.util.find_spec("ogbench")
    if spec is None or spec.origin is None:
        pytest.skip("ogbench is not installed")
    path = Path(spec.origin).with_name("utils.py")  # alone: the package itself wants its simulators
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location("ogbench_utils", path))
    sys.modules.pop("ogbench_utils", None)
    module.__spec__.loader.exec_module(module)
    with by_hand(tmp_path / "a", [3, 1, 5], [True] * 3) as buffer:
        raw = {
            "observations": np.concatenate([episode["observation"] for episode in buffer]),
            "actions": np.concatenate([np.append(episode["action"], 0) for episode in buffer]),
            "terminals": np.concatenate([np.arange(len(episode) + 1) == len(episode) for episode in buffer]),
        }
        np.savez(tmp_path / "file.npz", **raw)
        for compact in (False, True):
            theirs = module.load_dataset(tmp_path / "file.npz", action_dtype=np.int64, compact_dataset=compact)
            ours = to_ogbench(buffer, compact=compact)
            assert set(theirs) <= set(ours)
            for name, array in theirs.items():
                np.testing.assert_array_equal(ours[name], array)
                assert ours[name].dtype == array.dtype


FORMS = {"scalars": (), "columns": (1,)}


@pytest.mark.parametrize("shape", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("export", [to_d4rl, to_ogbench, lambda buffer: to_ogbench(buffer, compact=True)])
def test_one_number_a_step_is_a_single_number(tmp_path, shape, export):
    fields = {
        "observation": Field("float32", (2,), state=True),
        **{name: Field(dtype, shape) for name, dtype in {"action": "int64", "reward": "float64"}.items()},
        **{name: Field("bool", shape) for name in ("terminated", "truncated")},
    }
    with ReplayBuffer(tmp_path / "a", fields=fields) as buffer:
        ends = np.array([False, False, True]).reshape(3, *shape)
        numbers = np.arange(3).reshape(3, *shape)
        for _ in range(2):
            buffer.store_episode(
                observation=np.zeros((4, 2)), action=numbers, reward=numbers / 2, terminated=ends, truncated=~ends
            )
        data = export(buffer)
    rows = len(data["terminals"])
    for name in {"actions", "rewards", "terminals", "timeouts", "masks", "valids"} & data.keys():
        assert data[name].shape == (rows,)
    kept = data.get("valids", np.ones(rows)) == 1
    assert data["rewards"][kept].tolist() == [0, 0.5, 1] * 2
    assert data["actions"][kept].tolist() == [0, 1, 2] * 2


def test_actions_are_as_their_recorded_space_says(tmp_path):
    env = gym.make("CartPole-v1", max_episode_steps=3)
    env.action_space = gym.spaces.MultiDiscrete([2])
    env.unwrapped.step = lambda action, step=env.unwrapped.step: step(int(action[0]))
    with record(tmp_path / "a", env, 1) as buffer:
        assert to_d4rl(buffer)["actions"].shape == (3, 1)


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
@pytest.mark.parametrize(("field", "value"), [(Field("bool", (2,)), [[0, 1]] * 2), (Field("float32"), [0.5, 1])])
def test_flags_that_are_none_are_refused(tmp_path, flag, field, value):
    fields = {"observation": Field("float32", state=True), "action": "int", "reward": "float", "flag": field}
    with ReplayBuffer(tmp_path / "a", fields=fields) as buffer:
        buffer.store_episode(observation=np.zeros(3), action=[0, 1], reward=[0, 1], flag=value)
        with pytest.raises(FieldError, match=r"expected one flag a step|expected booleans"):
            to_d4rl(buffer, names={"terminated": None, "truncated": None, flag: "flag"})

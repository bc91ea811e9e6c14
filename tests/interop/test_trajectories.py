"""Trajectories in memory."""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
from interop_helpers import Sights, cartpole, sights

from gym_replay import EmptyBufferError, FieldError, ReplayBuffer, from_trajectories


def plain(n=3, **changes):
    made = {
        "observations": np.arange(2.0 * (n + 1)).reshape(n + 1, 2),
        "actions": np.arange(n),
        "rewards": np.ones(n),
        "terminations": np.arange(n) == n - 1,
        "truncations": np.zeros(n, bool),
    }
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


def rollout(env, seed, steps_of):
    """One episode, kept as a list of steps."""
    observation, _ = env.reset(seed=seed)
    steps, done = [], False
    while not done:
        action = env.action_space.sample()
        following, reward, terminated, truncated, info = env.step(action)
        steps.append(steps_of(observation, action, reward, terminated, truncated, info, following))
        observation, done = following, terminated or truncated
    return steps


NAMES = ("observation", "action", "reward", "terminated", "truncated", "info", "next_observation")


@pytest.mark.parametrize("kind", ["tuples", "mappings"])
@pytest.mark.parametrize(("env", "record"), [("CartPole-v1", cartpole), (None, sights)])
def test_steps_collected_by_hand_are_what_the_recorder_stores(tmp_path, kind, env, record):
    made = Sights() if env is None else gym.make(env, max_episode_steps=30)
    made.action_space.seed(0)
    as_tuple = kind == "tuples"
    trajectories = (
        rollout(made, seed, lambda *step: step if as_tuple else dict(zip(NAMES, step, strict=True)))
        for seed in range(4)
    )
    report = from_trajectories(trajectories, tmp_path / "a", step=NAMES if as_tuple else None)
    assert report.not_known == ()
    assert report.left_out == ("info: it is no part of a transition",)
    with record(tmp_path / "b", 4) as expected, ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        for one, other in zip(buffer, expected, strict=True):
            assert (one.has_final, one.complete) == (True, True)
            for name in expected.fieldnames:
                np.testing.assert_array_equal(one[name], other[name])


def test_arrays_and_objects(tmp_path):
    @dataclass
    class Trajectory:
        obs: np.ndarray
        acts: np.ndarray
        rews: np.ndarray
        terminal: bool
        infos: None = None

    arrays = plain()
    one = Trajectory(arrays["observations"], arrays["actions"], arrays["rewards"], True)
    report = from_trajectories([one, one], tmp_path / "a")
    assert report.not_known == ("whether 2 trajectories were truncated: they have no such flags",)
    from_trajectories([arrays, arrays], tmp_path / "b")
    with ReplayBuffer.from_folder(tmp_path / "a") as a, ReplayBuffer.from_folder(tmp_path / "b") as b:
        for mine, theirs in zip(a, b, strict=True):
            for name in b.fieldnames:
                np.testing.assert_array_equal(mine[name], theirs[name])


def test_what_they_do_not_tell_is_not_invented(tmp_path):
    short = plain(observations=np.zeros((3, 2)), terminations=None, truncations=None)
    report = from_trajectories([short, plain()], tmp_path / "a")
    assert report.not_known == (
        "whether 1 trajectories terminated: they have no such flags",
        "whether 1 trajectories were truncated: they have no such flags",
        "the last observation of 1 episodes: their last transition is no n-step sample",
        "how 1 episodes ended: they are stored as cut (Episode.complete is False)",
    )
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        assert [episode.has_final for episode in buffer] == [False, True]
        assert [episode.complete for episode in buffer] == [False, True]
        assert buffer.episode(0)["truncated"].tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (plain(actions=None), "trajectory 1: it has no actions"),
        (plain(actions=np.zeros((3, 2))), "trajectory 1: .*action"),
        (plain(observations={"x": np.zeros((4, 2))}), "trajectory 1: .*observation"),
        (plain(observations=np.zeros((6, 2))), "trajectory 1:"),
        (plain(states=np.zeros((4, 2))), "both 'observations' and 'states'"),
        (plain(observations=np.zeros((3, 2)), next_observations=np.ones((3, 2))), "more than one episode"),
        ([(1, 2)], "say what its items are"),
        (None, "trajectory 1: it has no observations"),
        ([], "trajectory 1: it has no step"),
    ],
)
def test_what_does_not_fit_leaves_nothing_behind(tmp_path, second, message):
    with pytest.raises(FieldError, match=message):
        from_trajectories([plain(), second], tmp_path / "a")
    assert not any(tmp_path.iterdir())


def test_rewards_that_happen_to_be_whole_numbers(tmp_path):
    from_trajectories([plain(rewards=[1, 0, 1]), plain(rewards=[0.5, 0, 1])], tmp_path / "a")
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        assert [episode["reward"].tolist() for episode in buffer] == [[1.0, 0.0, 1.0], [0.5, 0.0, 1.0]]


def test_none_at_all(tmp_path):
    with pytest.raises(EmptyBufferError):
        from_trajectories([], tmp_path / "a")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terminations": np.array([1, 0, 1])}, "'terminated' is set at step 0 of 3"),
        ({"terminations": np.array([0, 1, 0])}, "'terminated' is set at step 1 of 3"),
        ({"truncations": np.array([0, 1, 0])}, "'truncated' is set at step 1 of 3"),
        ({"truncations": np.array([[1], [0], [0]])}, "'truncated' is set at step 0 of 3"),
        ({"terminations": np.array([0, 0, 2])}, "got 2 at row 2"),
        ({"terminations": np.nan}, "got nan"),
        ({"terminations": "no"}, "expected booleans"),
        ({"terminations": [None, None, True]}, "expected booleans"),
        ({"terminations": np.zeros(4, bool)}, "expected 3 rows"),
        ({"rewards": 1.0}, "a single reward"),
        ({"actions": [[0], [0, 1], [0]]}, "expected an array of numbers"),
        ({"next_observations": np.zeros((4, 2))}, r"expected shape \(3, 2\)"),
        ({"next_observations": {"x": np.zeros((3, 2))}}, "next observations: expected"),
        ({"next_observations": np.arange(2.0, 8).reshape(3, 2)[::-1]}, "observation of step 0 is not .* of step 1"),
        ({"next_observations": np.array([[2.0, 3], [4, 5], [9, 9]])}, "observation of step 2 is not .* of step 3"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, change, message):
    with pytest.raises(FieldError, match=f"trajectory 1: .*{message}"):
        from_trajectories([plain(), plain(**change)], tmp_path / "a")
    assert not any(tmp_path.iterdir())


def test_n_step_returns_do_not_cross_an_end(tmp_path):
    """Two episodes as they are, which one trajectory with a terminal in its middle would have joined."""
    rewards, ends = np.ones(4), np.array([0, 1, 0, 1])
    with pytest.raises(FieldError, match="more than one episode"):
        from_trajectories([plain(4, rewards=rewards, terminations=ends)], tmp_path / "a")
    parts = [plain(2, rewards=rewards[:2], terminations=ends[:2]), plain(2, rewards=rewards[2:], terminations=ends[2:])]
    from_trajectories(parts, tmp_path / "a")
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        batch = next(iter(buffer.dataloader(batch_size=4, n_steps=3, discount=1.0)))
        assert batch["n_step_return"].tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"terminal": False}, {}], "'terminated' is in only one of its steps 0 and 1"),
        ([{}, {"terminal": True}], "'terminated' is in only one of its steps 0 and 1"),
        ([{"next_obs": 1.0}, {"next_obs": None}], "'next_observation' is in only one of its steps 0 and 1"),
    ],
)
def test_a_part_that_only_some_steps_have_is_refused(tmp_path, steps, message):
    whole = [{"obs": float(t), "action": 0, "reward": 1.0, **step} for t, step in enumerate(steps)]
    with pytest.raises(FieldError, match=message):
        from_trajectories([whole], tmp_path / "a")


def test_two_items_of_one_name_are_refused(tmp_path):
    with pytest.raises(FieldError, match="two items have one name"):
        from_trajectories([[(0.0, 0, 1.0, 2.0)]], tmp_path / "a", step=("observation", "action", "reward", "reward"))


def test_one_number_a_step_is_a_single_number(tmp_path):
    columns = {name: plain()[name][:, None] for name in ("actions", "rewards", "terminations", "truncations")}
    from_trajectories([plain(**columns), plain()], tmp_path / "a")
    from_trajectories([plain(), plain()], tmp_path / "b")
    with ReplayBuffer.from_folder(tmp_path / "a") as a, ReplayBuffer.from_folder(tmp_path / "b") as b:
        assert a.metadata.fields == b.metadata.fields
        for mine, theirs in zip(a, b, strict=True):
            for name in b.fieldnames:
                np.testing.assert_array_equal(mine[name], theirs[name])


@pytest.mark.parametrize(("own", "other"), [("f4", "f8"), ("f8", "f4"), ("f2", "f8")])
@pytest.mark.parametrize("rows", [3, 4])
def test_next_observations_of_another_float_dtype(tmp_path, own, other, rows):
    states = np.random.default_rng(0).normal(size=(4, 2))
    given = {"observations": states[:rows].astype(own), "next_observations": states[1:].astype(other)}
    assert from_trajectories([plain(**given)], tmp_path / "a").num_episodes == 1
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        assert buffer.episode(0).has_final
        last = states[3].astype(own) if rows == 4 else states[3].astype(other).astype(own)
        np.testing.assert_array_equal(buffer.episode(0)["observation"], [*states[:3].astype(own), last])


def test_mappings_that_are_no_dicts_are_nested_observations(tmp_path):
    from types import MappingProxyType

    nested = MappingProxyType({"a": np.arange(4.0), "b": MappingProxyType({"c": np.zeros((4, 2))})})
    from_trajectories([plain(observations=nested)], tmp_path / "a")
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        assert buffer.episode(0)["observation.a"].tolist() == [0, 1, 2, 3]
        assert buffer.episode(0)["observation.b.c"].shape == (4, 2)


def test_other_names_and_groups_inside_of_groups(tmp_path):
    one = {
        "obs": {"robot": {"arm": np.arange(3.0)[:, None], "hand": np.zeros((3, 2))}, "door": np.ones(3)},
        "new_obs": {"robot": {"arm": np.arange(1.0, 4)[:, None], "hand": np.zeros((3, 2))}, "door": np.ones(3)},
        "acts": {"move": np.zeros((3, 2)), "grip": [0, 1, 0]},
        "rews": np.ones(3),
        "terminateds": [0, 0, 1],
        "truncateds": [0, 0, 0],
        "lives": 3,
    }
    report = from_trajectories([one], tmp_path / "a")
    assert (report.not_known, report.left_out) == ((), ("lives: it is no part of a transition",))
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        episode = buffer.episode(0)
        assert episode["observation.robot.arm"][:, 0].tolist() == [0, 1, 2, 3]
        assert episode["action.grip"].tolist() == [0, 1, 0]
        assert episode["terminated"].tolist() == [False, False, True]


def test_trajectories_without_rewards(tmp_path):
    report = from_trajectories([plain(rewards=None)] * 2, tmp_path / "a")
    assert report.not_known == ("the rewards of 2 trajectories",)
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        assert "reward" not in buffer.fieldnames
        assert len(buffer.episode(0)) == 3
    with pytest.raises(FieldError, match="trajectory 1: 'reward' is not in all trajectories"):
        from_trajectories([plain(), plain(rewards=None)], tmp_path / "b")


@pytest.mark.parametrize(
    ("given", "terminated", "truncated", "complete"),
    [
        ({"dones": [0, 0, 1]}, False, True, False),
        ({"dones": [0, 0, 0]}, False, True, False),
        ({"dones": [0, 0, 1], "terminated": [0, 0, 0]}, False, True, True),
        ({"dones": [0, 0, 1], "terminated": [0, 0, 1]}, True, False, True),
        ({"dones": [0, 0, 1], "truncated": [0, 0, 1]}, False, True, True),
        ({"dones": [0, 0, 1], "truncated": [0, 0, 0]}, True, False, True),
        ({"done": True, "terminated": False}, False, True, True),
    ],
)
def test_dones_tell_what_the_other_flag_is_and_alone_only_that_it_ended(
    tmp_path, given, terminated, truncated, complete
):
    report = from_trajectories([plain(terminations=None, truncations=None, **given)], tmp_path / "a")
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        episode = buffer.episode(0)
        assert (episode["terminated"][-1], episode["truncated"][-1]) == (terminated, truncated)
        assert episode.complete is complete
    is_told = len(given) > 1
    assert any("'dones' say only that they ended" in line for line in report.not_known) is not is_told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dones": [0, 1, 1]}, "'terminated' is set at step 1 of 3|more than one episode"),
        ({"dones": [0, 0, 0], "truncated": [0, 0, 1]}, "'dones' contradict the other flags at step 2"),
        ({"dones": [0, 0, 1], "truncated": [0, 0, 0], "terminated": [0, 0, 0]}, "'dones' contradict the other flags"),
    ],
)
def test_dones_that_contradict_something(tmp_path, given, message):
    with pytest.raises(FieldError, match=message):
        from_trajectories([plain(terminations=None, truncations=None, **given)], tmp_path / "a")
    assert not any(tmp_path.iterdir())

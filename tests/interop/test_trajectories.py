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
        ([(1, 2)], "say what is at its places"),
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

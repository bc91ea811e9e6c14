"""Recording changes nothing and loses nothing, in every environment that can be built: a wrapped and a bare one are
given the same seed and the same actions, return the same, and that is what the buffer holds."""

import copy
import importlib.util
import warnings
from collections.abc import Mapping

import gymnasium as gym
import numpy as np
import pytest
from internals import space_tree, unflatten
from wrappers import matrix

from gym_replay import RecordToBuffer, ReplayBuffer, check_buffer

STEPS = 60
CUT_AT = 35  # a reset in the middle of an episode, unless one has just ended


def same(left, right):
    """Whether two values are equal bit for bit, and of the same types at every depth."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Mapping):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, (np.ndarray, np.generic)):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    return left == right or (left != left and right != right)  # not a number


def holds(stored, returned):
    """Whether a value of the buffer is the one that the environment returned, in the dtypes of the space."""
    if isinstance(returned, Mapping):
        return set(stored) == set(returned) and all(holds(stored[key], returned[key]) for key in returned)
    if isinstance(returned, (tuple, list)) and isinstance(stored, (tuple, list)):
        return len(stored) == len(returned) and all(map(holds, stored, returned))
    if isinstance(returned, str) or returned is None:
        return stored == returned
    returned = np.asarray(returned)
    return stored.shape == returned.shape and stored.tobytes() == returned.astype(stored.dtype).tobytes()


def run(env, bare):
    """Drive both with the same actions, comparing all that they return.

    Returns:
        For each episode, its observations, and its actions with what came of them.
    """
    env.action_space.seed(0)
    episodes = []

    def reset(seed):
        (observation, info), (expected, expected_info) = env.reset(seed=seed), bare.reset(seed=seed)
        assert same(observation, expected)
        assert list(info) == list(expected_info)
        episodes.append(([copy.deepcopy(observation)], []))

    reset(7)
    for t in range(STEPS):
        action = env.action_space.sample()
        kept = copy.deepcopy(action)
        *returned, info = env.step(action)
        *expected, expected_info = bare.step(copy.deepcopy(kept))
        assert same(action, kept), "the action was changed"
        assert same(returned, expected), f"step {t}"
        assert list(info) == list(expected_info)
        observations, steps = episodes[-1]
        observations.append(copy.deepcopy(returned[0]))
        steps.append((kept, *returned[1:]))
        if returned[2] or returned[3] or t == CUT_AT:
            reset(None)  # the generator goes on: the recorder must not have drawn from it
    return [episode for episode in episodes if episode[1]]


def rows(episode, space, root):
    """The values of a space in an episode, rebuilt from its fields."""
    tree = space_tree(space, root)
    columns = [episode[leaf.name] for leaf in tree.leaves]
    count = len(episode) + (root == "observation")
    assert all(len(column) == count for column in columns)
    return [unflatten(tree, [column[t] for column in columns]) for t in range(count)]


def record_and_compare(make, folder):
    bare = make()
    env = RecordToBuffer(make(), folder)
    expected = run(env, bare)
    env.close()
    bare.close()
    with ReplayBuffer.from_folder(folder) as buffer:
        assert len(buffer) == len(expected) >= 1
        for index, (episode, (observations, steps)) in enumerate(zip(buffer, expected, strict=True)):
            assert len(episode) == len(steps)
            assert all(map(holds, rows(episode, env.observation_space, "observation"), observations))
            actions, rewards, terminated, truncated = zip(*steps, strict=True)
            assert all(map(holds, rows(episode, env.action_space, "action"), actions))
            assert episode["reward"].tobytes() == np.array(rewards, np.float64).tobytes()
            assert episode["terminated"].tolist() == list(terminated)
            complete = bool(terminated[-1] or truncated[-1])
            assert episode["truncated"].tolist() == [*truncated[:-1], truncated[-1] or not complete]
            assert episode.complete == episode.meta["episode_complete"] == complete
            assert episode.meta["episode_seed"] == (7 if index == 0 else -1)
    assert check_buffer(folder).ok


@pytest.mark.filterwarnings("ignore")  # of bounds, dtypes and versions, by the environments themselves
@pytest.mark.parametrize("name", [*matrix.GYMNASIUM, *matrix.ATARI, *matrix.MINIGRID, *matrix.ROBOTICS])
def test_recording_changes_and_loses_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log of its warnings where it runs
    record_and_compare(lambda: matrix.build(name), tmp_path / "buffer")


@pytest.mark.parametrize("name", matrix.COMPOSITES)
def test_composite_observations(tmp_path, name):
    space = matrix.COMPOSITES[name]
    record_and_compare(lambda: matrix.Sampled(copy.deepcopy(space), gym.spaces.Discrete(3)), tmp_path)


@pytest.mark.parametrize("name", matrix.COMPOSITES)
def test_composite_actions(tmp_path, name):
    space = matrix.COMPOSITES[name]
    record_and_compare(lambda: matrix.Sampled(gym.spaces.Discrete(3), copy.deepcopy(space)), tmp_path)


def test_few_environments_cannot_be_built(tmp_path, monkeypatch):
    """Or else everything could be skipped above, and nobody would see it."""
    monkeypatch.chdir(tmp_path)
    assert len(matrix.BUILDABLE) >= 35
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, package in matrix.BUILDABLE.items():
            if package is None or importlib.util.find_spec(package):
                gym.make(name).close()

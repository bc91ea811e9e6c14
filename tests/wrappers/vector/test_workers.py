"""The workers of an AsyncVectorEnv, which are other processes."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from gym_replay.wrappers.vector import RecordToBuffer


def scaled():
    return gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: reward / 10)


@pytest.mark.parametrize("kind", [AsyncVectorEnv, SyncVectorEnv])
def test_a_spec_that_cannot_be_pickled(tmp_path, kind):
    inner = kind([scaled] * 2)
    envs = RecordToBuffer(inner, tmp_path)
    assert envs.buffer.metadata.environment["env_spec"]["id"] == "CartPole-v1"
    envs.reset(seed=0)
    envs.step(np.zeros(2, int))
    envs.close()
    assert [episode["reward"].tolist() for episode in envs.buffer] == [[0.1], [0.1]]


def test_a_sub_environment_that_can_be_made_no_more_has_no_spec(tmp_path):
    inner = AsyncVectorEnv([scaled] * 2)
    inner.env_fns = [lambda: 1 / 0]
    with pytest.warns(UserWarning, match="division by zero"):
        envs = RecordToBuffer(inner, tmp_path)
    envs.reset(seed=0)
    envs.step(np.zeros(2, int))
    envs.close()
    assert len(envs.buffer) == 2


def test_different_specs_are_warned_about(tmp_path):
    makers = [lambda: gym.make("CartPole-v1"), lambda: gym.wrappers.TimeLimit(CartPoleEnv(), 9)]
    inner = SyncVectorEnv(makers)
    with pytest.warns(UserWarning, match=r"'CartPole-v1', 'None'.*first one, CartPole-v1"):
        envs = RecordToBuffer(inner, tmp_path)
    assert envs.buffer.metadata.environment["env_spec"]["id"] == "CartPole-v1"
    envs.close()

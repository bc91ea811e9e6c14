"""What a caller gives: extra fields of the very next step, seeds, and numbers of other shapes."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from wrappers.scripted import Scripted

from gym_replay import Field, FieldError
from gym_replay.wrappers.vector import RecordToBuffer

EXTRA = {"x": Field("int64", default=3)}


def recorded(folder, mode=AutoresetMode.DISABLED, **answers):
    envs = SyncVectorEnv([lambda: Scripted(9, **answers)] * 2, autoreset_mode=mode)
    return RecordToBuffer(envs, folder, extra_fields=EXTRA)


def stored(envs):
    envs.close()
    return [(int(episode.meta["env_index"]), episode["x"].tolist()) for episode in envs.buffer]


@pytest.mark.parametrize("mask", [None, [True, True], [False, True]])
def test_a_reset_forgets_them(tmp_path, mask):
    envs = recorded(tmp_path)
    envs.reset()
    envs.step([0, 1])
    envs.annotate_step(x=[7, 8])
    envs.reset(options=None if mask is None else {"reset_mask": np.array(mask)})
    envs.step([1, 2])
    of_reset = [(0, [3]), (1, [3]), (0, [3]), (1, [3])]
    assert stored(envs) == ([(1, [3]), (0, [3, 7]), (1, [3])] if mask == [False, True] else of_reset)


def test_a_failed_step_forgets_them(tmp_path):
    raised = []

    def reward(env, t):
        if t == 2 and not raised:
            raised.append(t)
            return ValueError("inside")
        return float(t)

    envs = recorded(tmp_path, reward=reward)
    envs.reset()
    envs.step([0, 0])
    envs.annotate_step(x=[7, 8])
    with pytest.raises(ValueError, match="inside"):
        envs.step([0, 0])
    envs.reset()
    envs.step([0, 0])
    assert stored(envs) == [(0, [3]), (1, [3])] * 2


def test_a_step_that_is_refused_keeps_them(tmp_path):
    envs = recorded(tmp_path)
    envs.reset()
    envs.annotate_step(x=[7, 8])
    with pytest.raises(FieldError, match="action"):
        envs.step([0.5, 0.5])
    envs.step([0, 0])
    assert stored(envs) == [(0, [7]), (1, [8])]


@pytest.mark.parametrize("seed", [1.5, object()])
def test_a_seed_that_is_none_cuts_nothing(tmp_path, seed):
    envs = recorded(tmp_path)
    envs.reset(seed=0)
    envs.step([0, 0])
    with pytest.raises(FieldError, match="seed"):
        envs.reset(seed=seed)
    envs.step([0, 0])
    assert stored(envs) == [(0, [3, 3]), (1, [3, 3])]


def test_rewards_and_actions_of_one_number_each(tmp_path):
    class Columns(gym.vector.VectorWrapper):
        def step(self, actions):
            observations, rewards, *others = self.env.step(actions[:, 0])
            return observations, rewards[:, None], *others

    inner = Columns(SyncVectorEnv([lambda: Scripted(9)] * 2, autoreset_mode=AutoresetMode.DISABLED))
    envs = RecordToBuffer(inner, tmp_path)
    envs.reset()
    envs.step(np.array([[0], [1]]))
    envs.close()
    assert [episode["action"].tolist() for episode in envs.buffer] == [[0], [1]]
    assert [episode["reward"].tolist() for episode in envs.buffer] == [[1.0], [1.0]]


def test_rewards_of_too_many_bits_are_named(tmp_path):
    wide = gym.wrappers.vector.TransformReward(
        SyncVectorEnv([lambda: Scripted(9)] * 2), lambda rewards: rewards.astype(np.longdouble)
    )
    envs = RecordToBuffer(wide, tmp_path)
    envs.reset()
    with pytest.raises(FieldError, match="64 bits"):
        envs.step(np.zeros(2, int))
    envs.close()

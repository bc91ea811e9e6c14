"""A policy for batches of observations, or for single ones, is recognised where it is called in the other way."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from gym_replay import FieldError, collect


def of_batches(observations):
    return (observations[:, 2] > 0).astype(np.int64)


def of_one(observation):
    return 1 if observation[2] > 0 else 0


def silent_of_batches(observations):
    return np.ones(len(np.atleast_2d(observations)), np.int64)


def silent_of_one(observation):
    return 1


def gather(folder, policy, env="CartPole-v1", **options):
    return collect(env, folder, policy=policy, episodes=3, max_episode_steps=20, progress=False, **options)


@pytest.mark.parametrize("policy", [of_batches, silent_of_batches])
def test_a_policy_for_batches_in_one_environment(tmp_path, policy):
    with pytest.raises(FieldError, match=r"num_envs=1 it is called with one observation.*batched=True"):
        gather(tmp_path, policy)
    assert len(gather(tmp_path / "batched", policy, batched=True)) == 3


@pytest.mark.parametrize("policy", [of_one, silent_of_one])
def test_a_policy_for_single_observations_in_several(tmp_path, policy):
    with pytest.raises(FieldError, match=r"num_envs=3 it is called with a batch of 3.*batched=False"):
        gather(tmp_path, policy, num_envs=3)
    with pytest.raises(FieldError, match=r"num_envs=1 it is called with a batch of 1.*batched=False"):
        gather(tmp_path, of_one, batched=True)
    assert len(gather(tmp_path / "batched", policy, num_envs=3, batched=False)) == 3


def test_a_policy_that_returns_logits(tmp_path):
    for num_envs, shape in (1, r"\(2,\), where shape \(\)"), (3, r"\(3, 2\), where shape \(3,\)"):
        with pytest.raises(
            FieldError, match=rf"action of shape {shape} is expected, of the action space Discrete\(2\)"
        ):
            gather(tmp_path, lambda observations: observations[..., :2], num_envs=num_envs)


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1", "Pendulum-v1"])
@pytest.mark.parametrize("options", [{}, {"batched": True}, {"num_envs": 2}, {"num_envs": 2, "batched": False}])
def test_a_policy_that_returns_tensors(tmp_path, env, options):
    """What a network of torch gives is the same as its array, gradients and all."""
    weight = torch.ones((), requires_grad=True)

    def of_tensors(observations):
        found = torch.as_tensor(np.float32(observations)) * weight
        if env == "Pendulum-v1":
            return found[..., :1]
        return (found if env == "FrozenLake-v1" else found[..., 2] > 0).long() % 4

    actions = [
        {
            episode.meta["collect_index"]: episode["action"].tolist()
            for episode in gather(tmp_path / name, policy, env, **options)
        }
        for name, policy in (
            ("tensors", of_tensors),
            ("arrays", lambda observations: of_tensors(observations).numpy(force=True)[()]),
        )
    ]
    assert actions[0] == actions[1]


def test_the_same_episodes_however_the_policy_is_called(tmp_path):
    calls = [(of_batches, 1, True), (of_batches, 3, None), (of_one, 1, None), (of_one, 2, False)]
    found = [
        sorted(
            (episode.meta["collect_index"], episode["action"].tolist())
            for episode in gather(tmp_path / str(i), policy, num_envs=num_envs, batched=batched)
        )
        for i, (policy, num_envs, batched) in enumerate(calls)
    ]
    assert found[0] == found[1] == found[2] == found[3]


def test_extra_fields_of_a_batch_of_one(tmp_path):
    class Policy:
        def __call__(self, observations):
            self.leaning = observations[:, 2].astype(np.float64)
            return of_batches(observations)

        def extra(self):
            return {"leaning": self.leaning}

    buffer = gather(tmp_path, Policy(), batched=True, extra_fields={"leaning": "float64"})
    for episode in buffer:
        assert episode["leaning"].tolist() == episode["observation"][:-1, 2].tolist()


def test_another_exception_of_the_policy_is_its_own(tmp_path):
    def policy(observation):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        gather(tmp_path, policy)


def test_actions_that_are_dicts(tmp_path):
    import gymnasium as gym

    class Two(gym.Env):
        observation_space = spaces.Box(0, 1, (2,), np.float32)
        action_space = spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 1, (2,), np.float32))

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            assert action in self.action_space
            return np.zeros(2, np.float32), 0.0, True, False, {}

    def policy(observations):
        return {"a": np.ones(len(observations), np.int64), "b": np.zeros((len(observations), 2), np.float32)}

    buffer = gather(tmp_path, policy, Two, batched=True)
    assert [episode["action.a"].tolist() for episode in buffer] == [[1]] * 3

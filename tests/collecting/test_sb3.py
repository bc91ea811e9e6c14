"""Policies of Stable-Baselines3, and what looks like them."""

import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from collecting_helpers import Wander, facts_of, seeds_of

from gym_replay import FieldError, MissingExtraError, collect

sb3 = pytest.importorskip("stable_baselines3")


@pytest.fixture(scope="module")
def ppo():
    return sb3.PPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")


@pytest.fixture(scope="module")
def saved(ppo, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "ppo.zip"
    ppo.save(path)
    return path


def collected(folder, policy, **options):
    options = {"episodes": 5, "max_episode_steps": 30, "progress": False, **options}
    return collect("CartPole-v1", folder, policy=policy, **options)


def test_deterministic(tmp_path, ppo):
    expected = facts_of(collected(tmp_path / "1", ppo))
    assert facts_of(collected(tmp_path / "3", ppo, num_envs=3)) == expected
    assert facts_of(collected(tmp_path / "one by one", ppo, num_envs=3, batched=False)) == expected
    episode = collected(tmp_path / "1", ppo).episode(0)
    for observation, action in zip(episode["observation"], episode["action"], strict=False):
        assert ppo.predict(observation, deterministic=True)[0] == action


def test_stochastic_policies_draw_from_each_episode_s_own_generators(tmp_path, ppo):
    torch.manual_seed(1)
    expected = facts_of(collected(tmp_path / "1", ppo, deterministic=False))
    assert expected != facts_of(collected(tmp_path / "deterministic", ppo))
    torch.manual_seed(2)
    assert facts_of(collected(tmp_path / "3", ppo, deterministic=False, num_envs=3)) == expected
    collected(tmp_path / "parts", ppo, deterministic=False, num_envs=2, episodes=3).close()
    assert facts_of(collected(tmp_path / "parts", ppo, deterministic=False)) == expected
    assert facts_of(collected(tmp_path / "other seed", ppo, deterministic=False, seed=1)) != expected


def test_nobody_else_s_draws_change(tmp_path, ppo):
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random(), ppo.action_space.np_random.random()  # noqa: NPY002

    def seed():
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        ppo.action_space.seed(0)

    seed()
    expected = draw()
    seed()
    collected(tmp_path, ppo, deterministic=False, num_envs=2)
    assert draw() == expected


def test_a_batch_of_draws_may_be_asked_for(tmp_path, ppo):
    buffer = collected(tmp_path, ppo, deterministic=False, batched=True, num_envs=3)
    assert len(buffer) == 5


def test_epsilon_greedy_dqn(tmp_path):
    # It draws from NumPy's global generator and from its action space.
    dqn = sb3.DQN("MlpPolicy", gym.make("CartPole-v1"), seed=0, device="cpu", buffer_size=10)
    dqn.exploration_rate = 0.5
    expected = facts_of(collected(tmp_path / "1", dqn, deterministic=False))
    assert facts_of(collected(tmp_path / "4", dqn, deterministic=False, num_envs=4)) == expected
    actions = [action for _, rows, _ in expected.values() for action in np.frombuffer(rows["action"], np.int64)]
    assert len(set(actions)) == 2


def test_by_name(tmp_path, ppo, saved):
    expected = facts_of(collected(tmp_path / "object", ppo))
    assert facts_of(collected(tmp_path / "name", f"sb3:PPO:{saved}")) == expected
    assert facts_of(collected(tmp_path / "without ending", f"sb3:PPO:{saved.with_suffix('')}", num_envs=2)) == expected
    assert facts_of(collected(tmp_path / "policy", ppo.policy, num_envs=2)) == expected


def test_another_model_under_the_same_name_is_refused(tmp_path, ppo):
    ppo.save(tmp_path / "model.zip")
    name = f"sb3:PPO:{tmp_path / 'model.zip'}"
    collected(tmp_path / "data", name, episodes=2).close()
    other = sb3.PPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=64, batch_size=64, seed=1, device="cpu")
    other.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="policy_sha256"):
        collected(tmp_path / "data", name, episodes=3)


def test_names_that_mean_nothing(tmp_path, saved, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sb3_contrib", None)
    with pytest.raises(MissingExtraError, match="pip install sb3-contrib"):
        collected(tmp_path, f"sb3:RecurrentPPO:{saved}")
    monkeypatch.setitem(__import__("sys").modules, "stable_baselines3", None)
    with pytest.raises(MissingExtraError, match="pip install stable-baselines3"):
        collected(tmp_path, f"sb3:PPO:{saved}")
    with pytest.raises(FieldError, match="no file"):
        collected(tmp_path, "sb3:PPO:nowhere")


class Recurrent:
    """Has a state for each row, as recurrent policies of SB3 have, which begins anew where an episode starts."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        is_single = observation.ndim == 3
        count = 1 if is_single else len(observation)
        state = np.zeros(count, int) if state is None else state
        assert episode_start.shape == (count,)
        state = np.where(episode_start, 0, state) + 1
        actions = np.stack([state % 3, state % 4], axis=1)
        return (actions[0] if is_single else actions), state


@pytest.mark.parametrize("deterministic", [True, False])
def test_recurrent_policies(tmp_path, deterministic):
    found = []
    for num_envs in (1, 3):
        folder = tmp_path / str(num_envs)
        options = {"episodes": 7, "num_envs": num_envs, "deterministic": deterministic, "progress": False}
        buffer = collect(Wander, folder, policy=Recurrent(), **options)
        for episode in buffer:
            expected = np.arange(1, len(episode) + 1)
            assert (episode["action"] == np.stack([expected % 3, expected % 4], axis=1)).all()
        found.append(facts_of(buffer))
    assert found[0] == found[1]


class Dicing:
    """Draws from each of the global generators, and from that of its action space."""

    action_space = gym.spaces.Discrete(1000)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.drawn = [torch.rand(1).item(), np.random.rand(), random.random(), float(self.action_space.sample())]  # noqa: NPY002
        return np.array([0, 1]), state

    def extra(self):
        return {"drawn": np.array(self.drawn)}


def test_each_episode_draws_from_generators_of_its_own(tmp_path):
    options = {"episodes": 6, "deterministic": False, "extra_fields": {"drawn": ("float64", 4)}, "progress": False}
    buffer = collect(Wander, tmp_path / "1", policy=Dicing(), **options)
    assert facts_of(collect(Wander, tmp_path / "3", policy=Dicing(), num_envs=3, **options)) == facts_of(buffer)
    drawn = np.concatenate([episode["drawn"] for episode in buffer])
    assert all(len(set(column)) == len(drawn) for column in drawn[:, :3].T)
    for episode in buffer:
        seed = seeds_of(0, int(episode.meta["collect_index"]))[1]
        torch.manual_seed(seed)
        random.seed(seed)
        assert episode["drawn"][0, 0] == torch.rand(1).item()
        assert episode["drawn"][0, 2] == random.random()

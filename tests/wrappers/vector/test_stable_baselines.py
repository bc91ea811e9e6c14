"""Vector environments of Stable-Baselines3: recorded as single environments would be, and its agents learn on them."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from wrappers.scripted import Scripted

pytest.importorskip("stable_baselines3")

from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

import gym_replay
from gym_replay import EpisodeStateError, FieldError, RecordToBuffer, replay
from gym_replay.wrappers import vector

from .pairs import Varied, assert_same

SPACES = {
    "box": (spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(4)),
    "image": (spaces.Box(0, 255, (5, 4, 3), np.uint8), spaces.MultiDiscrete([3, 2])),
    "discrete": (spaces.Discrete(7), spaces.Box(-1, 1, (2,), np.float32)),
    "dict": (
        spaces.Dict({"b.a": spaces.Box(-1, 1, (2,), np.float32), "rgb": spaces.Box(0, 255, (2, 2, 3), np.uint8)}),
        spaces.MultiBinary(3),
    ),
}


def float32(env):
    """Rewards that float32 holds, which is all that comes out of a VecEnv."""
    return gym.wrappers.TransformReward(env, lambda reward: float(np.float32(reward)))


def play_both(make, folder, steps=60, *, kind=DummyVecEnv, around=None, alone=None, halves=False, **options):
    """The vector recorder, and single ones that were given the same seeds and actions.

    Args:
        around, alone: what the vector environment, and what each single one is wrapped in.
    """
    makers = [make] * 3
    envs = kind(makers) if around is None else around(kind(makers))
    recorded = vector.RecordToBuffer(envs, folder / "vector", **options)
    inside = [each() if alone is None else alone(each()) for each in makers]
    singles = [RecordToBuffer(each, folder / str(i), **options) for i, each in enumerate(inside)]
    batched = gym.vector.utils.batch_space(recorded.action_space, 3)
    batched.seed(0)
    recorded.seed(7)
    for t in range(steps):
        if t % 30 == 0:
            recorded.reset()  # the second one without a seed
            for i, single in enumerate(singles):
                single.reset(seed=7 + i if t == 0 else None)
        actions = batched.sample()
        if halves:
            recorded.step_async(actions)
            _, rewards, dones, _ = recorded.step_wait()
        else:
            _, rewards, dones, _ = recorded.step(actions)
        for i, single in enumerate(singles):
            _, reward, terminated, truncated, _ = single.step(actions[i])
            assert (rewards[i], dones[i]) == (np.float32(reward), terminated or truncated)
            if dones[i]:
                single.reset()
    recorded.close()
    for single in singles:
        single.close()
    return recorded, singles


@pytest.mark.parametrize("name", SPACES)
def test_it_records_what_single_recorders_would(tmp_path, name):
    def make():
        return float32(Varied(*SPACES[name], infos=True))

    recorded, singles = play_both(make, tmp_path, record_info=True)
    assert_same(recorded, singles)
    assert {len(episode) for episode in recorded.buffer} >= {1, 2, 5}
    assert recorded.buffer.fieldnames == singles[0].buffer.fieldnames  # no "TimeLimit.truncated" among the infos


def test_processes_and_steps_in_two_halves(tmp_path):
    def make():
        return float32(Varied(*SPACES["dict"], infos=True))

    def forked(makers):
        return SubprocVecEnv(makers, start_method="fork")

    recorded, singles = play_both(
        make, tmp_path, kind=forked, around=VecMonitor, halves=True, record_info=["t", "more"]
    )
    assert_same(recorded, singles)
    assert recorded.buffer.metadata.environment["env_spec"] is None


def test_rewards_are_what_came(tmp_path):
    recorded, singles = play_both(lambda: Varied(*SPACES["box"]), tmp_path)
    rewards = np.concatenate([episode["reward"] for episode in recorded.buffer])
    assert rewards.dtype == np.float64
    np.testing.assert_array_equal(rewards, rewards.astype(np.float32))
    exact = np.concatenate([episode["reward"] for single in singles for episode in single.buffer])
    np.testing.assert_allclose(np.sort(rewards), np.sort(exact), rtol=1e-6)


def test_flags(tmp_path):
    """Termination and truncation in one step are one flag there, which says that it terminated."""

    def scripted(terminated, truncated):
        return lambda: Scripted(3, terminated={3: terminated}, truncated={3: truncated})

    envs = DummyVecEnv([scripted(True, False), scripted(False, True), scripted(True, True)])
    env = vector.RecordToBuffer(envs, tmp_path)
    env.reset()
    for _ in range(3):
        env.step(np.zeros(3, np.int64))
    env.close()
    ends = {int(e.meta["env_index"]): (bool(e["terminated"][-1]), bool(e["truncated"][-1])) for e in env.buffer}
    assert ends == {0: (True, False), 1: (False, True), 2: (True, False)}
    assert all(episode.has_final and episode["observation"].tolist()[-1] == [3, 3] for episode in env.buffer)


def test_what_comes_out_is_a_vec_env(tmp_path):
    env = vector.RecordToBuffer(make_vec_env("CartPole-v1", 3, seed=5), tmp_path)
    assert isinstance(env, VecEnvWrapper)
    assert isinstance(env, vector.RecordToBuffer)
    assert env.num_envs == 3
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert [spec.id for spec in env.get_attr("spec")] == ["CartPole-v1"] * 3
    env.set_attr("gravity", 9.0)
    assert env.get_attr("gravity", indices=1) == [9.0]
    assert env.env_method("has_wrapper_attr", "gravity") == [True] * 3
    assert env.unwrapped is env.venv.unwrapped
    env.set_options({"low": -0.01, "high": 0.01})
    assert np.abs(env.reset()).max() <= 0.01
    env.step(np.zeros(3, np.int64))
    env.close()
    first, second, third = env.buffer
    assert [int(episode.meta["episode_seed"]) for episode in (first, second, third)] == [5, 6, 7]
    assert first.meta["episode_options"] == '{"low": -0.01, "high": 0.01}'
    assert not first.complete


def test_recorded_episodes_can_be_executed_again(tmp_path):
    env = vector.RecordToBuffer(make_vec_env("CartPole-v1", 2, seed=0), tmp_path)
    env.reset()
    for _ in range(30):
        env.step(np.ones(2, np.int64))
    env.close()
    assert replay(env.buffer, 0).equal


@pytest.mark.parametrize("name", ["PPO", "SAC", "DQN"])
def test_agents_learn_on_it(tmp_path, name):
    env_id = "Pendulum-v1" if name == "SAC" else "CartPole-v1"
    made = make_vec_env(env_id, 4, env_kwargs={"max_episode_steps": 25} if name == "SAC" else None)
    env = vector.RecordToBuffer(made, tmp_path)
    around = VecNormalize(env)
    if name == "PPO":
        model = PPO("MlpPolicy", around, n_steps=16, batch_size=64, n_epochs=1, seed=0, device="cpu")
    else:
        kind = SAC if name == "SAC" else DQN
        model = kind("MlpPolicy", around, learning_starts=100, train_freq=8, seed=0, device="cpu", buffer_size=1000)
    model.learn(128)
    assert unwrap_vec_normalize(model.get_env()) is around
    env.close()
    assert env.buffer.num_steps == 128
    assert {int(episode.meta["env_index"]) for episode in env.buffer} == {0, 1, 2, 3}
    raw = np.concatenate([episode["reward"] for episode in env.buffer])
    assert (raw == 1).all() if name != "SAC" else raw.min() < -1  # not normalized
    if name != "SAC":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert evaluate_policy(model, make_vec_env(env_id, 1), n_eval_episodes=1)[0] > 0


def turned(env):
    """An environment of images, with their channels first."""
    space = spaces.Box(0, 255, (3, 5, 4), np.uint8)
    return gym.wrappers.TransformObservation(env, lambda image: np.ascontiguousarray(np.moveaxis(image, -1, 0)), space)


def test_what_a_wrapper_inside_makes_of_observations(tmp_path):
    def make():
        return float32(Varied(*SPACES["image"]))

    recorded, singles = play_both(make, tmp_path / "turned", around=VecTransposeImage, alone=turned)
    assert_same(recorded, singles)
    for wrapper, words in (
        (VecNormalize, "normalized by statistics"),
        (lambda v: VecFrameStack(v, 2), "several times"),
    ):
        made = wrapper(make_vec_env("CartPole-v1", 1))
        with pytest.warns(UserWarning, match=words):
            vector.RecordToBuffer(made, tmp_path / words).close()


class Worded(VecEnvWrapper):
    """Changes the infos of each step."""

    def __init__(self, venv, change):
        super().__init__(venv)
        self.change = change

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards, dones, self.change(infos)


def without(key):
    return lambda infos: [{name: value for name, value in info.items() if name != key} for info in infos]


def test_what_an_environment_does_not_say_is_said_once(tmp_path):
    def played(change, folder, **options):
        env = vector.RecordToBuffer(Worded(DummyVecEnv([lambda: Scripted(2)] * 2), change), folder, **options)
        env.reset()
        for _ in range(5):
            env.step(np.zeros(2, np.int64))
        env.close()
        return env.buffer

    with pytest.warns(UserWarning, match=r"ends episodes without infos\[i\]\['TimeLimit.truncated'\]") as caught:
        played(without("TimeLimit.truncated"), tmp_path / "a")
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"there is no infos\[i\]\['terminal_observation'\]"):
        buffer = played(without("terminal_observation"), tmp_path / "b")
    assert [(episode.has_final, episode.complete) for episode in buffer] == [(False, True)] * 4 + [(True, False)] * 2
    with pytest.raises(FieldError, match="step: expected"):
        played(lambda infos: infos[:1], tmp_path / "c")


def test_mistakes_name_the_right_recorder(tmp_path):
    envs = make_vec_env("CartPole-v1", 2)
    with pytest.raises(TypeError, match=r"gym_replay\.wrappers\.vector\.RecordToBuffer"):
        gym_replay.RecordToBuffer(envs, tmp_path)
    assert not any(tmp_path.iterdir())
    env = vector.RecordToBuffer(envs, tmp_path)
    envs.reset()
    with pytest.warns(UserWarning, match="a step without a running episode"):
        env.step(np.zeros(2, np.int64))
    with pytest.warns(UserWarning, match="a step without a running episode"):
        env.step_async(np.zeros(2, np.int64))
    env.step_wait()
    env.reset()
    with pytest.raises(FieldError):
        env.step(np.zeros(3, np.int64))
    env.step(np.zeros(2, np.int64))
    env.close()
    assert [len(episode) for episode in env.buffer] == [1, 1]
    assert isinstance(env, VecEnv)


def test_on_episode_must_not_step(tmp_path):
    def look(episode):
        with pytest.raises(EpisodeStateError):
            env.reset()
        return {"seen": True}

    envs = DummyVecEnv([lambda: Scripted(2)] * 2)
    env = vector.RecordToBuffer(envs, tmp_path, meta_fields={"seen": "bool"}, on_episode=look)
    env.reset()
    for _ in range(4):
        env.step(np.zeros(2, np.int64))
    env.close()
    assert [bool(episode.meta["seen"]) for episode in env.buffer] == [True] * 4

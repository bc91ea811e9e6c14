"""Replay buffers of Stable-Baselines3, filled and trained from."""

import gymnasium as gym
import numpy as np
import pytest
from interop_helpers import Sights, cartpole, pendulum, record, sights

from gym_replay import ConcatReplayBuffer, FieldError, RecordToBuffer, ReplayBuffer, fill_sb3, select, to_d4rl, to_sb3

sb3 = pytest.importorskip("stable_baselines3")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*tensorboard")


@pytest.mark.parametrize(("agent", "env", "make"), [("DQN", "CartPole-v1", cartpole), ("SAC", "Pendulum-v1", pendulum)])
def test_an_agent_trains_on_it(tmp_path, agent, env, make):
    model = getattr(sb3, agent)("MlpPolicy", env, device="cpu", seed=0, batch_size=32)
    model._setup_learn(0)
    with make(tmp_path / "a") as buffer:
        model.replay_buffer = to_sb3(buffer, device="cpu")
        assert model.replay_buffer.size() == buffer.num_steps
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.train(gradient_steps=3, batch_size=32)
    assert any((one != other).any() for one, other in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize(("agent", "env", "episodes"), [("DQN", "CartPole-v1", 6), ("SAC", "Pendulum-v1", 2)])
def test_it_holds_what_an_agent_would_have_collected(tmp_path, agent, env, episodes):
    """The same environment, seeds and actions, collected by the agent's own loop and exported from a recording."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    made = gym.make(env, max_episode_steps=30)
    model = getattr(sb3, agent)("MlpPolicy", made, device="cpu", buffer_size=2000)
    vector = DummyVecEnv([lambda: gym.make(env, max_episode_steps=30)])
    recorder = RecordToBuffer(gym.make(env, max_episode_steps=30), tmp_path / "a")
    recorder.action_space.seed(0)
    own = model.replay_buffer
    for seed in range(episodes):
        vector.seed(seed)
        model._last_obs = vector.reset()
        recorder.reset(seed=seed)
        done = False
        while not done:
            action = recorder.action_space.sample()
            recorder.step(action)
            stored = model.policy.scale_action(action) if agent == "SAC" else action
            new_obs, rewards, dones, infos = vector.step(np.asarray(action)[None])
            model._vec_normalize_env = None
            model._store_transition(own, np.asarray(stored)[None], new_obs, rewards, dones, infos)
            done = dones[0]
    recorder.close()
    with ReplayBuffer.from_folder(tmp_path / "a", read_only=True) as buffer:
        ours = to_sb3(buffer, 2000, device="cpu")
    assert ours.pos == own.pos
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(own, name), err_msg=name)
    assert own.timeouts.any()


def test_dict_observations_and_images_with_channels_first(tmp_path):
    from stable_baselines3.common.buffers import DictReplayBuffer

    class Flat(gym.ObservationWrapper):
        observation_space = gym.spaces.Dict(
            {"top": Sights.observation_space["camera"]["top"], "state": Sights.observation_space["state"]}
        )

        def observation(self, observation):
            return {"top": observation["camera"]["top"], "state": observation["state"]}

    with record(tmp_path / "a", Flat(Sights()), 2) as buffer:
        turned = gym.spaces.Dict(
            {"top": gym.spaces.Box(0, 255, (3, 32, 40), np.uint8), "state": Flat.observation_space["state"]}
        )
        filled = to_sb3(buffer, observation_space=turned, device="cpu")
        assert isinstance(filled, DictReplayBuffer)
        data = to_d4rl(buffer)
        np.testing.assert_array_equal(filled.observations["top"][:, 0], np.moveaxis(data["observations/top"], -1, 1))
        np.testing.assert_array_equal(filled.next_observations["state"][:, 0], data["next_observations/state"])
        assert filled.sample(5).observations["top"].shape == (5, 3, 32, 40)
    low, high = Sights.action_space.low, Sights.action_space.high
    np.testing.assert_allclose(filled.actions[:, 0], 2 * (data["actions"] - low) / (high - low) - 1, rtol=1e-5)


def test_a_subclass_is_filled_through_its_add(tmp_path):
    from stable_baselines3.common.buffers import ReplayBuffer as Theirs

    class Counting(Theirs):
        added = 0

        def add(self, *arguments):
            self.added += 1
            super().add(*arguments)

    with pendulum(tmp_path / "a") as buffer:
        one, other = (
            cls(200, buffer.observation_space, buffer.action_space, device="cpu") for cls in (Theirs, Counting)
        )
        assert fill_sb3(one, buffer) == fill_sb3(other, buffer) == other.added == 80
        for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.pos == other.pos == 80
        fill_sb3(one, buffer, episodes=[0])
        assert one.pos == 120
        before = one.observations.copy()
        with pytest.raises(FieldError, match="160 transitions do not fit into the 80 free rows"):
            fill_sb3(one, ConcatReplayBuffer([buffer, select(buffer, tmp_path / "copy", progress=False)]))
        np.testing.assert_array_equal(one.observations, before)


def test_what_does_not_fit_is_refused(tmp_path):
    from stable_baselines3.common.buffers import ReplayBuffer as Theirs

    with pendulum(tmp_path / "a", 1) as buffer, sights(tmp_path / "b", 1) as other:
        spaces = buffer.observation_space, buffer.action_space
        with pytest.raises(FieldError, match="n_envs=1"):
            fill_sb3(Theirs(500, *spaces, n_envs=2), buffer)
        with pytest.raises(FieldError, match="one array"):
            fill_sb3(Theirs(500, *spaces), other)
        wide = gym.spaces.Box(-1, 1, (7,), np.float32)
        with pytest.raises(FieldError, match=r"expected shape \(7,\)"):
            to_sb3(buffer, observation_space=wide)
        with pytest.raises(FieldError, match="actions of 7 numbers"):
            to_sb3(buffer, action_space=wide, scale_actions=False)
        unbounded = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        with pytest.raises(FieldError, match="no bounds"):
            to_sb3(buffer, action_space=unbounded)
        assert to_sb3(buffer, action_space=unbounded, scale_actions=False).full

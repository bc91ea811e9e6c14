"""Replay buffers of Stable-Baselines3, filled and trained from."""

import gymnasium as gym
import numpy as np
import pytest
from interop_helpers import Sights, by_hand, cartpole, pendulum, record, sights

from gym_replay import ConcatReplayBuffer, FieldError, RecordToBuffer, ReplayBuffer, fill_sb3, select, to_d4rl, to_sb3
from gym_replay.wrappers.vector import RecordToBuffer as RecordVectorToBuffer

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


@pytest.mark.skipif(not hasattr(gym.vector, "AutoresetMode"), reason="this Gymnasium has one mode")
@pytest.mark.parametrize(("agent", "env"), [("DQN", "CartPole-v1"), ("SAC", "Pendulum-v1")])
def test_columns_are_the_environments_that_an_agent_collects_from(tmp_path, agent, env):
    """Three environments, stepped by the agent's own loop, and by a recorder that resets them in the same step."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    def make():
        return gym.make(env, max_episode_steps=25)

    theirs = DummyVecEnv([make] * 3)
    model = getattr(sb3, agent)("MlpPolicy", theirs, device="cpu", buffer_size=600)
    same_step = gym.vector.AutoresetMode.SAME_STEP
    envs = RecordVectorToBuffer(gym.vector.SyncVectorEnv([make] * 3, autoreset_mode=same_step), tmp_path / "a")
    theirs.seed(5)
    model._last_obs = theirs.reset()
    model._vec_normalize_env = None
    envs.reset(seed=5)
    envs.action_space.seed(0)
    for _ in range(60):
        actions = envs.action_space.sample()
        envs.step(actions)
        stored = model.policy.scale_action(actions) if agent == "SAC" else actions
        model._store_transition(model.replay_buffer, stored, *theirs.step(actions))
    envs.close()
    own = model.replay_buffer
    with ReplayBuffer.from_folder(tmp_path / "a", read_only=True) as buffer:
        ours = to_sb3(buffer, 600, n_envs=3, device="cpu")
    assert (ours.pos, ours.n_envs) == (own.pos, own.n_envs) == (60, 3)
    for name in ("observations", "next_observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(own, name), err_msg=name)
    np.testing.assert_array_equal(ours.dones[:59], own.dones[:59])
    np.testing.assert_array_equal(ours.timeouts[:59], own.timeouts[:59])
    assert ours.dones[59].all()  # close() cut what was running
    np.random.seed(0)  # noqa: NPY002
    expected = own.sample(100)
    np.random.seed(0)  # noqa: NPY002
    for one, other in zip(ours.sample(100)[:5], expected[:5], strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("n_envs", [2, 3, 7, 50, 1000])
@pytest.mark.parametrize("kind", ["plain", "added"])
def test_every_transition_is_there(tmp_path, n_envs, kind):
    from stable_baselines3.common.buffers import ReplayBuffer as Theirs

    class Added(Theirs):
        pass

    with cartpole(tmp_path / "a") as buffer:
        data, spaces = to_d4rl(buffer, dtype=None), (buffer.observation_space, buffer.action_space)
        rows = -(-buffer.num_steps // n_envs)
        cls = Theirs if kind == "plain" else Added
        filled = cls(rows * n_envs, *spaces, device="cpu", n_envs=n_envs)
        assert fill_sb3(filled, buffer) == rows * n_envs
        assert filled.full
        has_terminated = dict(zip(map(bytes, data["observations"]), data["terminals"], strict=True))
        seen = [bytes(observation) for observation in filled.observations.reshape(-1, 4)]
        assert set(seen) == set(has_terminated)
        assert len(seen) - len(set(seen)) < n_envs
        is_next = (filled.next_observations[:-1] == filled.observations[1:]).all(-1)
        np.testing.assert_array_equal(is_next, filled.dones[:-1] == 0)  # what is not done goes on in its column
        assert filled.dones[-1].all()
        for key, done, timeout in zip(seen, filled.dones.flat, filled.timeouts.flat, strict=True):
            assert done * (1 - timeout) == has_terminated[key]  # as samples have it


def test_samples_of_several_steps_end_where_a_last_transition_is_missing(tmp_path):
    """An episode without its last observation loses its last transition, and nothing may run on into the next one."""
    spaces = gym.spaces.Box(-999, 999, (2,), np.float64), gym.spaces.Discrete(3)
    with by_hand(tmp_path, [4, 4, 4], [False, False, True]) as buffer, pytest.warns(UserWarning, match="2 transitions"):
        filled = to_sb3(buffer, observation_space=spaces[0], action_space=spaces[1], device="cpu")
    assert filled.observations[:, 0, 0].tolist() == [0, 1, 2, 100, 101, 102, 200, 201, 202, 203]
    assert filled.dones[:, 0].tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 0, 1]
    assert filled.timeouts[:, 0].tolist() == [0, 0, 1, 0, 0, 1, 0, 0, 0, 0]


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
        columns = to_sb3(buffer, observation_space=turned, device="cpu", n_envs=2)
        in_columns = np.moveaxis(columns.observations["top"], 1, 0).reshape(-1, 1, 3, 32, 40)
        np.testing.assert_array_equal(
            in_columns[: buffer.num_steps // 2], filled.observations["top"][: buffer.num_steps // 2]
        )
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
        with pytest.raises(FieldError, match="n_envs=0"):
            to_sb3(buffer, n_envs=0)
        with pytest.raises(FieldError, match="40 transitions do not fit into the 38 free rows"):
            fill_sb3(Theirs(38, *spaces, n_envs=2), buffer)
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

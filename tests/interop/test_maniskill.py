"""ManiSkill on the CPU, which simulates one environment: its own wrappers and tensors, against what they returned."""

import gymnasium as gym
import numpy as np
import pytest

from gym_replay import check_buffer
from gym_replay.wrappers.vector import RecordToBuffer

envs_of_maniskill = pytest.importorskip("mani_skill.envs")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # of sapien, where there is no renderer


def make(kind):
    from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

    env = gym.make("Empty-v1", num_envs=1, obs_mode="state", render_backend="none", max_episode_steps=3)
    return env if kind == "base" else ManiSkillVectorEnv(env, auto_reset=kind == "same step", record_metrics=True)


@pytest.mark.parametrize("kind", ["same step", "by hand", "base"])
def test_what_is_recorded_is_what_it_returned(tmp_path, kind):
    make("same step").close()  # which leaves its mode in the metadata of the class
    envs = RecordToBuffer(make(kind), tmp_path, record_info=["elapsed_steps"])
    assert isinstance(envs, gym.Env if kind == "base" else gym.vector.VectorEnv)
    assert envs.device == envs.unwrapped.device
    observation, _ = envs.reset(seed=4)
    expected, rows = [], []
    for step in range(8):
        action = torch.rand(envs.action_space.shape, generator=torch.Generator().manual_seed(step)) - 0.5
        after, reward, terminated, truncated, infos = envs.step(action)
        assert torch.is_tensor(after)
        rows.append((observation[0].tolist(), action.reshape(-1).tolist(), float(reward[0])))
        if terminated | truncated:
            last = infos["final_observation"] if kind == "same step" else after
            expected.append((rows, last[0].tolist()))
            rows = []
            if kind != "same step":
                after, _ = envs.reset(options={"env_idx": torch.arange(1)})
        observation = after
    envs.close()
    assert check_buffer(tmp_path, progress=False).ok
    assert [len(episode) for episode in envs.buffer] == [3, 3, 2]
    for episode, (steps, last) in zip(envs.buffer, expected, strict=False):
        observations, actions, rewards = zip(*steps, strict=True)
        assert episode["observation"].tolist() == [*observations, last]
        assert episode["action"].tolist() == list(actions)
        assert episode["reward"].tolist() == list(rewards)
        assert (episode.complete, bool(episode["truncated"][-1]), bool(episode["terminated"][-1])) == (
            True,
            True,
            False,
        )
        assert episode["info.elapsed_steps"].tolist() == [0, 1, 2, 3]
    assert [int(episode.meta["episode_seed"]) for episode in envs.buffer] == [4, -1, -1]
    assert np.all([episode.has_final for episode in envs.buffer])

"""Batched environments of several families that play one script, and what is to be recorded of it."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from gym_replay import ReplayBuffer, check_buffer

TERMINATED, TRUNCATED, BOTH = (True, False), (False, True), (True, True)
ENDS = (
    ((3, TERMINATED), (1, TRUNCATED), (1, BOTH), (4, TRUNCATED)),
    ((2, TRUNCATED), (5, BOTH)),
    ((1, TERMINATED), (1, TERMINATED), (6, TRUNCATED)),
)
"""Of each sub-environment how long its episodes are and how they end, again and again."""

COUNT, WIDTH = len(ENDS), 2


class Script:
    """Observation t of episode k of sub-environment i is ``(i, k, t)``; the reward of a step adds its action."""

    def __init__(self):
        self.k, self.t = torch.full((COUNT,), -1), torch.zeros(COUNT, dtype=torch.long)

    def begin(self, env_indices):
        self.k[env_indices] += 1
        self.t[env_indices] = 0

    def observe(self):
        return torch.stack([torch.arange(COUNT), self.k, self.t], dim=1).float()

    def advance(self, actions):
        """Rewards, and both flags."""
        self.t += 1
        flags = torch.zeros(2, COUNT, dtype=torch.bool)
        for i, (k, t) in enumerate(zip(self.k.tolist(), self.t.tolist(), strict=True)):
            length, how = ENDS[i][k % len(ENDS[i])]
            if t >= length:
                flags[:, i] = torch.tensor(how)
        return (100 * self.k + self.t).float() + actions.sum(dim=1), *flags


class OfIsaacLab(gym.Env):
    """Step for step as ``ManagerBasedRLEnv``: what has ended is reset before anything is observed.

    Args:
        is_direct: it is as ``DirectRLEnv``: the observation space is that of the policy alone, a reset takes no
            ``env_ids``, and flags are written into the same tensors again and again.
        gives_last: the extras have the last observations.
    """

    is_vector_env = True
    metadata = {"render_modes": [None, "human", "rgb_array"]}  # noqa: RUF012
    num_envs, device = COUNT, "cpu"

    def __init__(self, is_direct=False, gives_last=False):
        self.is_direct, self.gives_last, self.script = is_direct, gives_last, Script()
        self.cfg = SimpleNamespace(decimation=4, episode_length_s=5.0)
        self.max_episode_length = 250
        self.episode_length_buf = torch.zeros(COUNT, dtype=torch.long)
        self.reset_terminated, self.reset_time_outs = (torch.zeros(COUNT, dtype=torch.bool) for _ in range(2))
        self.extras = {}
        self.single_observation_space = spaces.Dict()
        self.single_observation_space["policy"] = spaces.Box(-np.inf, np.inf, (3,))
        self.single_observation_space["critic"] = spaces.Box(-np.inf, np.inf, (1,))
        self.single_action_space = spaces.Box(-np.inf, np.inf, (WIDTH,))
        seen = self.single_observation_space["policy"] if is_direct else self.single_observation_space
        self.observation_space = gym.vector.utils.batch_space(seen, COUNT)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, COUNT)

    def _observe(self):
        policy = self.script.observe()
        return {"policy": policy, "critic": policy[:, 2:] * 2}

    def _reset_idx(self, env_ids):
        self.script.begin(env_ids)
        self.extras["log"] = {"Episode_Reward/total": self.episode_length_buf[env_ids].float().mean()}
        self.episode_length_buf[env_ids] = 0

    def reset(self, seed=None, env_ids=None, options=None):
        if self.is_direct and env_ids is not None:
            raise TypeError("reset() got an unexpected keyword argument 'env_ids'")
        self._reset_idx(torch.arange(COUNT) if env_ids is None else env_ids)
        self.obs_buf = self._observe()
        return self.obs_buf, self.extras

    def step(self, action):
        reward, terminated, time_outs = self.script.advance(action.to(self.device))
        self.episode_length_buf += 1
        if self.is_direct:
            self.reset_terminated[:], self.reset_time_outs[:] = terminated, time_outs
        else:
            self.reset_terminated, self.reset_time_outs = terminated, time_outs
        self.extras.pop("final_obs", None)
        reset_env_ids = (terminated | time_outs).nonzero(as_tuple=False).squeeze(-1)
        if len(reset_env_ids) > 0:
            if self.gives_last:
                self.extras["final_obs"] = self._observe()
            self._reset_idx(reset_env_ids)
        self.obs_buf = self._observe()
        return self.obs_buf, reward, self.reset_terminated, self.reset_time_outs, self.extras


@dataclass
class Space:
    """mjlab's own spaces, which are none of Gymnasium's."""

    shape: tuple = ()
    dtype: str = "float32"
    low: float = -math.inf
    high: float = math.inf


@dataclass
class DictSpace(Space):
    spaces: dict = field(default_factory=dict)


class OfMjlab:
    """Step for step as mjlab's ``ManagerBasedRlEnv``, which is no ``gym.Env``, with ``auto_reset=False``."""

    metadata = {"render_modes": [None, "rgb_array"]}  # noqa: RUF012
    num_envs, device, max_episode_length = COUNT, "cpu", 250

    def __init__(self):
        self.script, self.cfg = Script(), SimpleNamespace(auto_reset=False)
        self.episode_length_buf = torch.zeros(COUNT, dtype=torch.long)
        self.pending = torch.zeros(COUNT, dtype=torch.bool)
        self.single_observation_space = DictSpace(spaces={"actor": Space((3,))})
        self.observation_space = DictSpace(spaces={"actor": Space((COUNT, 3))})
        self.single_action_space, self.action_space = Space((WIDTH,)), Space((COUNT, WIDTH))
        self.is_closed = False

    @property
    def unwrapped(self):
        return self

    def reset(self, *, seed=None, env_ids=None, options=None):
        env_ids = torch.arange(COUNT) if env_ids is None else env_ids
        self.script.begin(env_ids)
        self.pending[env_ids] = False
        return {"actor": self.script.observe()}, {"log": {}}

    def step(self, action):
        assert not self.pending.any()
        reward, terminated, time_outs = self.script.advance(action)
        self.pending = terminated | time_outs
        return {"actor": self.script.observe()}, reward, terminated, time_outs, {"log": {}}

    def close(self):
        self.is_closed = True


class OfManiSkill(gym.Env):
    """Step for step as ManiSkill's environments: nothing is reset but by ``options["env_idx"]``."""

    metadata = {"render_modes": ["human"]}  # noqa: RUF012
    num_envs, device, reconfiguration_freq = COUNT, torch.device("cpu"), 0

    def __init__(self):
        self.script, self.elapsed_steps = Script(), torch.zeros(COUNT, dtype=torch.int32)
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (3,))
        self.single_action_space = spaces.Box(-1, 1, (WIDTH,))
        self.observation_space, self.action_space = (
            gym.vector.utils.batch_space(space, COUNT)
            for space in (self.single_observation_space, self.single_action_space)
        )

    def _info(self):
        return {"elapsed_steps": self.elapsed_steps.clone(), "success": self.elapsed_steps > 2}

    def reset(self, seed=None, options=None):
        env_idx = (options or {}).get("env_idx", torch.arange(COUNT))
        self.script.begin(env_idx)
        self.elapsed_steps[env_idx] = 0
        return self.script.observe(), {**self._info(), "reconfigure": False}

    def step(self, action):
        reward, terminated, truncated = self.script.advance(torch.as_tensor(action))
        self.elapsed_steps += 1
        return self.script.observe(), reward, terminated, truncated, self._info()


class OfManiSkillVector(gym.vector.VectorEnv):
    """Step for step as ``ManiSkillVectorEnv``, which also leaves its autoreset mode in the metadata of the class."""

    def __init__(self, env, auto_reset=True):
        self._env, self.auto_reset, self.num_envs = env, auto_reset, env.num_envs
        self.metadata = env.metadata
        self.single_observation_space, self.single_action_space = env.single_observation_space, env.single_action_space
        self.observation_space, self.action_space = env.observation_space, env.action_space

    @property
    def device(self):
        return self.base_env.device

    @property
    def base_env(self):
        return self._env.unwrapped

    @property
    def unwrapped(self):
        return self.base_env

    def reset(self, *, seed=None, options=None):
        return self._env.reset(seed=seed, options=options)

    def step(self, actions):
        obs, reward, terminated, truncated, infos = self._env.step(actions)
        dones = terminated | truncated
        if dones.any() and self.auto_reset:
            final_obs, final_info = obs.clone(), {key: value.clone() for key, value in infos.items()}
            obs, infos = self.reset(options={"env_idx": torch.arange(self.num_envs)[dones]})
            infos["final_observation"], infos["_final_observation"] = final_obs, dones
            infos["final_info"], infos["_final_info"], infos["_elapsed_steps"] = final_info, dones, dones
        return obs, reward, terminated, truncated, infos

    def close_extras(self, **kwargs):
        self._env.close()


def play(envs, steps, again=None):
    """Play, and give the actions; ``again`` resets what has ended, where the environment does not."""
    generator, taken = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        actions = torch.rand(COUNT, WIDTH, generator=generator) * 2 - 1
        taken.append(actions.clone())
        result = envs.step(actions)
        actions[:] = 7.0  # whatever is done with it afterwards
        done = result[2] | result[3]
        if again is not None and done.any():
            again(done.nonzero().squeeze(-1))
    return taken


def expected(taken, *, has_last=True):
    """By sub-environment its episodes: observations, actions, rewards, flags, whether it was whole."""
    found = [[] for _ in range(COUNT)]
    for i in range(COUNT):
        k, rows, acts, rewards = 0, [], [], []
        for actions in taken:
            rows.append([i, k, len(acts)])
            acts.append(actions[i].tolist())
            rewards.append(float(np.float32(100 * k + len(acts)) + actions[i].sum().numpy()))
            length, how = ENDS[i][k % len(ENDS[i])]
            if len(acts) == length:
                last = [[i, k, length]] if has_last else []
                found[i].append((rows + last, acts, rewards, how, True))
                k, rows, acts, rewards = k + 1, [], [], []
        if acts:
            found[i].append(([*rows, [i, k, len(acts)]], acts, rewards, (False, True), False))
    return found


def recorded(folder, field="observation"):
    """What is in a folder, as :func:`expected` has it; no flag is set inside of an episode."""
    report = check_buffer(folder, progress=False)
    assert report.ok, str(report)
    found = [[] for _ in range(COUNT)]
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        for episode in buffer:
            flags = episode["terminated"], episode["truncated"]
            assert not any(flag[:-1].any() for flag in flags)
            found[int(episode.meta["env_index"])].append(
                (
                    episode[field].tolist(),
                    episode["action"].tolist(),
                    episode["reward"].tolist(),
                    tuple(bool(flag[-1]) for flag in flags),
                    episode.complete,
                )
            )
            assert episode.meta["episode_return"] == episode["reward"].sum()
    return found

"""From recorded data to a better policy: TD3+BC on what was recorded, then TD3 on that and on what it plays itself.

python examples/offline_to_online.py                      Hopper-v5; needs gymnasium[mujoco]
python examples/offline_to_online.py --env Pendulum-v1 --record 3000 --offline 3000 --online 3000

1. An agent learns from scratch for a while, and all that it plays is recorded: data of a policy in training. With
   ``--data FOLDER``, what is in that folder is taken instead.
2. A new agent learns from this data alone, by TD3+BC.
3. It goes on in the environment, and is recorded too. Half of each batch is of the old data, and half of the new:
   ``gym_replay.mix``.

S. Fujimoto, H. van Hoof, D. Meger, "Addressing Function Approximation Error in Actor-Critic Methods", ICML 2018 (TD3).
S. Fujimoto, S. S. Gu, "A Minimalist Approach to Offline Reinforcement Learning", NeurIPS 2021 (TD3+BC).
P. J. Ball, L. Smith, I. Kostrikov, S. Levine, "Efficient Online Reinforcement Learning with Offline Data", ICML 2023
(half of each batch from old data).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gym_replay import RecordToBuffer, ReplayBuffer, evaluate, mix, statistics

DISCOUNT, TRACKING, BATCH_SIZE, WIDTH = 0.99, 0.005, 256, 256
NOISE, TARGET_NOISE, TARGET_CLIP, POLICY_EVERY = 0.1, 0.2, 0.5, 2
CLONING = 2.5
"""How much the value counts beside cloning, alpha of TD3+BC."""

Array = npt.NDArray[Any]
Batch = dict[str, Tensor]


def layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs)
    )


class Agent:
    """TD3. Actions are in [-1, 1] inside, and scaled to the environment's bounds outside.

    Args:
        env: what is acted in.
        mean, std: of observations, by which they are normalized.
    """

    def __init__(self, env: gym.Env[Array, Array], mean: Array | float = 0.0, std: Array | float = 1.0) -> None:
        space, action = env.observation_space, env.action_space
        assert isinstance(space, gym.spaces.Box)
        assert isinstance(action, gym.spaces.Box)
        size, self._limit = space.shape[0], torch.from_numpy(action.high)
        self._mean, self._std = (torch.tensor(one, dtype=torch.float32) for one in (mean, std))
        self.actor = nn.Sequential(layers(size, len(action.high)), nn.Tanh())
        self.critics = nn.ModuleList([layers(size + len(action.high), 1) for _ in range(2)])
        self._targets = deepcopy((self.actor, self.critics))
        self._optimizers = [torch.optim.Adam(one.parameters(), lr=3e-4) for one in (self.actor, self.critics)]
        self._updates = 0

    def act(self, observation: Array, noise: float = 0.0) -> Array:
        """The policy's action, with noise of this deviation."""
        with torch.inference_mode():
            action = self.actor((torch.as_tensor(observation, dtype=torch.float32) - self._mean) / self._std)
            action = (action + noise * torch.randn_like(action)).clamp(-1, 1)
        return (action * self._limit).numpy()

    def learn(self, batch: Batch, *, clones: bool = False) -> None:
        """One update; with ``clones``, the policy stays near the actions of the batch, as TD3+BC has it."""
        now, after = ((batch[name] - self._mean) / self._std for name in ("observation", "next_observation"))
        action = batch["action"] / self._limit
        actor, critics = self._targets
        with torch.no_grad():
            noise = (torch.randn_like(action) * TARGET_NOISE).clamp(-TARGET_CLIP, TARGET_CLIP)
            inputs = torch.cat((after, (actor(after) + noise).clamp(-1, 1)), 1)
            following = torch.minimum(*(critic(inputs).squeeze(1) for critic in critics))
            goal = batch["reward"] + DISCOUNT * ~batch["terminated"] * following
        inputs = torch.cat((now, action), 1)
        losses = [nn.functional.mse_loss(critic(inputs).squeeze(1), goal) for critic in self.critics]
        self._step(1, losses[0] + losses[1])
        self._updates += 1
        if self._updates % POLICY_EVERY:
            return
        chosen = self.actor(now)
        value = self.critics[0](torch.cat((now, chosen), 1))
        loss = -value.mean()
        if clones:
            loss = CLONING / value.abs().mean().detach() * loss + nn.functional.mse_loss(chosen, action)
        self._step(0, loss)
        for target, source in zip(self._targets, (self.actor, self.critics), strict=True):
            for one, other in zip(target.parameters(), source.parameters(), strict=True):
                one.data.lerp_(other.data, TRACKING)

    def _step(self, index: int, loss: Tensor) -> None:
        self._optimizers[index].zero_grad()
        loss.backward()
        self._optimizers[index].step()


def play(
    env: RecordToBuffer, agent: Agent, steps: int, seed: int, draw: Callable[[], Batch], *, random_steps: int = 0
) -> None:
    """Play so many steps, which are recorded, with one update after each."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    for step in range(steps):
        action = env.action_space.sample() if step < random_steps else agent.act(observation, NOISE)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
        if step >= random_steps:
            agent.learn(draw())


def record(env_id: str, folder: str, steps: int, seed: int) -> None:
    """Data of an agent that learns from scratch, by what it has recorded so far."""
    with RecordToBuffer(gym.make(env_id), folder, overwrite=True) as env:
        agent = Agent(env)
        draw = lambda: env.buffer.sample(BATCH_SIZE, include_open=True)  # noqa: E731
        play(env, agent, steps, seed, draw, random_steps=min(1000, steps // 4))


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn from recorded data, then go on in the environment.")
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--folder", default="data/offline-to-online", help="buffers in it are replaced")
    parser.add_argument("--data", help="a folder of recorded data of the environment, instead of recording some")
    parser.add_argument("--record", type=int, default=100_000, help="steps that are recorded")
    parser.add_argument("--offline", type=int, default=100_000, help="updates from recorded data")
    parser.add_argument("--online", type=int, default=50_000, help="steps and updates after that")
    parser.add_argument("--episodes", type=int, default=10, help="of each evaluation")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    if args.data is None:
        args.data = f"{args.folder}/recorded"
        record(args.env, args.data, args.record, args.seed)
    with ReplayBuffer.from_folder(args.data, read_only=True) as recorded:
        print(f"recorded: {len(recorded)} episodes, {recorded.num_steps} steps", flush=True)
        print(f"recorded   mean return {np.mean(recorded.meta['episode_return'][-20:]):9.1f}  (the last 20 episodes)")
        found = statistics(recorded, ["observation"])["observation"]
        env = RecordToBuffer(gym.make(args.env), f"{args.folder}/online", overwrite=True)
        agent = Agent(env, found.mean, found.std + 1e-3)
        for _ in range(args.offline):
            agent.learn(recorded.sample(BATCH_SIZE), clones=True)
        returned = evaluate(agent.act, args.env, episodes=args.episodes, seed=1)
        print(f"offline    mean return {returned.mean:9.1f}", flush=True)
        batches = mix(recorded, env.buffer, BATCH_SIZE, ratio=0.5, refresh="batch", include_open=True, seed=args.seed)
        play(env, agent, args.online, args.seed + 1_000_000, lambda: next(batches))
        env.close()
        returned = evaluate(agent.act, args.env, episodes=args.episodes, seed=1)
        print(f"online     mean return {returned.mean:9.1f}")


if __name__ == "__main__":
    main()

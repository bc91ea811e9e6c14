"""Implicit Q-learning: values of what the data does well, and a policy that imitates what is better than expected.

I. Kostrikov, A. Nair, S. Levine, "Offline Reinforcement Learning with Implicit Q-Learning", ICLR 2022
(arXiv:2110.06169). Numbers are those of the paper for locomotion. No action that is not in the data is ever valued.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from examples.offline_rl.networks import Policy, TwinCritic, adam, descend, follow, forever, frozen_copy, mlp
from gym_replay import ConcatReplayBuffer, ReplayBuffer, n_step_loader, statistics

LARGEST_WEIGHT = 100.0
RANGE_OF_RETURNS = 1000.0
"""What the paper scales the rewards of locomotion to, from the worst episode to the best."""


class IQL:
    """The networks and one update of them.

    Args:
        observation: the statistics of the observations.
        space: of the actions.
        steps: how many updates there will be: the rate of the policy falls to 0 along a cosine.
        hidden: width of the hidden layers.
        expectile: which expectile of the values of the recorded actions is taken; above 0.5 for the better ones.
        temperature: beta, how much more a better action is imitated.
        reward_scale: what rewards are multiplied with.
        lr: learning rate.
        rate: how fast the target follows.
    """

    def __init__(
        self,
        observation: Any,
        space: gym.spaces.Box,
        steps: int,
        *,
        hidden: int = 256,
        expectile: float = 0.7,
        temperature: float = 3.0,
        reward_scale: float = 1.0,
        lr: float = 3e-4,
        rate: float = 0.005,
    ) -> None:
        self.policy = Policy(observation, space, hidden)
        self.log_std = nn.Parameter(torch.zeros(space.shape[0]))
        self.critic = TwinCritic(len(observation.mean), space.shape[0], hidden)
        self.target_critic = frozen_copy(self.critic)
        self.value = mlp(len(observation.mean), 1, hidden)
        self.critic_optimizer, self.value_optimizer = adam(self.critic, lr=lr), adam(self.value, lr=lr)
        self.policy_optimizer = adam(self.policy, lr=lr)
        self.policy_optimizer.add_param_group({"params": [self.log_std]})
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.policy_optimizer, steps)
        self.expectile, self.temperature = expectile, temperature
        self.reward_scale, self.rate = reward_scale, rate

    def update(self, batch: Mapping[str, Tensor]) -> None:
        """One step of each network."""
        observation, action = batch["observation"], batch["action"]
        with torch.no_grad():
            recorded = torch.minimum(*self.target_critic(observation, action))
            following = self.value(batch["next_observation"]).squeeze(-1)
            goal = self.reward_scale * batch["n_step_return"] + batch["n_step_discount"] * following

        advantage = recorded - self.value(observation).squeeze(-1)
        share = torch.where(advantage > 0, self.expectile, 1 - self.expectile)
        descend(self.value_optimizer, (share * advantage.square()).mean())

        first, second = self.critic(observation, action)
        mse = nn.functional.mse_loss
        descend(self.critic_optimizer, mse(first, goal) + mse(second, goal))
        follow(self.target_critic, self.critic, self.rate)

        weight = torch.exp(self.temperature * advantage.detach()).clamp(max=LARGEST_WEIGHT)
        spread = self.log_std.clamp(-5, 2).exp()
        likelihood = torch.distributions.Normal(self.policy(observation), spread).log_prob(action).sum(-1)
        descend(self.policy_optimizer, -(weight * likelihood).mean())
        self.schedule.step()


def train(
    buffer: ReplayBuffer | ConcatReplayBuffer,
    steps: int,
    seed: int,
    *,
    batch_size: int = 256,
    discount: float = 0.99,
    reward_scale: float | None = None,
    **settings: Any,
) -> Policy:
    """Learn a policy from recorded transitions; settings are those of :class:`IQL`.

    By default rewards are scaled as in the paper.
    """
    torch.manual_seed(seed)
    found = statistics(buffer, ["observation"], progress=False)
    if reward_scale is None:
        returns = buffer.meta["episode_return"]
        reward_scale = RANGE_OF_RETURNS / float(max(returns) - min(returns))
    agent = IQL(found["observation"], buffer.action_space, steps, reward_scale=reward_scale, **settings)
    loader = n_step_loader(
        buffer, batch_size, discount=discount, normalize=found, shuffle=True, drop_last=True, seed=seed
    )
    for batch in islice(forever(loader), steps):
        agent.update(batch)
    return agent.policy

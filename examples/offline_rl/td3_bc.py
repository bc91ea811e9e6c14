"""TD3+BC: a critic of the recorded actions, and a policy that raises it without leaving the data.

S. Fujimoto, S. S. Gu, "A Minimalist Approach to Offline Reinforcement Learning", NeurIPS 2021; on top of S. Fujimoto,
H. van Hoof, D. Meger, "Addressing Function Approximation Error in Actor-Critic Methods", ICML 2018. Numbers are those
of the paper's table 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from examples.offline_rl.networks import Policy, TwinCritic, adam, descend, follow, forever, frozen_copy
from gym_replay import ConcatReplayBuffer, ReplayBuffer, n_step_loader, statistics

NOISE, NOISE_LIMIT = 0.2, 0.5
"""Of the target's actions, in parts of the largest one."""
POLICY_EVERY = 2
"""Updates of the critic for one of the policy."""


class TD3BC:
    """The networks and one update of them.

    Args:
        observation: the statistics of the observations.
        space: of the actions.
        hidden: width of the hidden layers.
        alpha: how much the critic counts beside the imitation.
        lr: learning rate.
        rate: how fast the targets follow.
        imitates: whether the policy stays near the data; without that this is TD3.
    """

    def __init__(
        self,
        observation: Any,
        space: gym.spaces.Box,
        *,
        hidden: int = 256,
        alpha: float = 2.5,
        lr: float = 3e-4,
        rate: float = 0.005,
        imitates: bool = True,
    ) -> None:
        self.policy = Policy(observation, space, hidden)
        self.critic = TwinCritic(len(observation.mean), space.shape[0], hidden)
        self.target_policy, self.target_critic = frozen_copy(self.policy), frozen_copy(self.critic)
        self.policy_optimizer, self.critic_optimizer = adam(self.policy, lr=lr), adam(self.critic, lr=lr)
        self.alpha, self.rate, self.imitates = alpha, rate, imitates
        self.updates = 0

    def update(self, batch: Mapping[str, Tensor]) -> None:
        """One step of the critic, and every second time one of the policy and of the targets."""
        observation, action = batch["observation"], batch["action"]
        goal = self.goal(batch)
        first, second = self.critic(observation, action)
        mse = nn.functional.mse_loss
        descend(self.critic_optimizer, mse(first, goal) + mse(second, goal))
        self.updates += 1
        if self.updates % POLICY_EVERY:
            return
        chosen = self.policy(observation)
        value = self.critic.first(torch.cat((observation, chosen), dim=-1))
        loss = -value.mean()
        if self.imitates:
            loss = self.alpha / value.detach().abs().mean() * loss
            loss = loss + ((chosen - action) / self.policy.limit).square().mean()
        descend(self.policy_optimizer, loss)
        follow(self.target_critic, self.critic, self.rate)
        follow(self.target_policy, self.policy, self.rate)

    @torch.no_grad()
    def goal(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the critic is to say of the recorded actions, ``(batch,)``.

        ``n_step_discount`` is 0 where the episode terminated. Where it was truncated, there is more to come: it is the
        discount, and ``next_observation`` is the last observation of the episode.
        """
        limit = self.policy.limit
        noise = (torch.randn_like(batch["action"]) * NOISE).clamp_(-NOISE_LIMIT, NOISE_LIMIT) * limit
        following = (self.target_policy(batch["next_observation"]) + noise).clamp(-limit, limit)
        value = torch.minimum(*self.target_critic(batch["next_observation"], following))
        return batch["n_step_return"] + batch["n_step_discount"] * value


def train(
    buffer: ReplayBuffer | ConcatReplayBuffer,
    steps: int,
    seed: int,
    *,
    batch_size: int = 256,
    discount: float = 0.99,
    **settings: Any,
) -> Policy:
    """Learn a policy from recorded transitions; settings are those of :class:`TD3BC`."""
    torch.manual_seed(seed)
    found = statistics(buffer, ["observation"], progress=False)
    agent = TD3BC(found["observation"], buffer.action_space, **settings)
    loader = n_step_loader(
        buffer, batch_size, discount=discount, normalize=found, shuffle=True, drop_last=True, seed=seed
    )
    for batch in islice(forever(loader), steps):
        agent.update(batch)
    return agent.policy

"""DQN from its first step on: each step is recorded, and a batch of all that was recorded so far is learnt from.

python examples/online_dqn.py             each run replaces the folder's buffer

The recorder plays CartPole with the network's greedy actions and random ones in between. Its buffer is circular: the
oldest episodes make room for new ones. ``buffer.sample`` draws from it by priority or uniformly, with the transitions
of the episode that is being played, so that there is something to learn from after the very first step.
"""

from __future__ import annotations

import argparse
import sys

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from gym_replay import PrioritizedSampler, RecordToBuffer, ReplayBuffer, evaluate

ENV_ID = "CartPole-v1"
DISCOUNT = 0.99
N_STEPS = 3
BATCH_SIZE = 128
SYNC_EVERY = 200


def make_network() -> nn.Module:
    """From observations ``(batch, 4)`` to the values of both actions ``(batch, 2)``."""
    return nn.Sequential(nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))


def epsilon_at(step: int, steps: int) -> float:
    """How often an action is random: from always to one in twenty, over the first third of the steps."""
    return max(0.05, 1.0 - 0.95 * step / (steps / 3))


def errors_of(network: nn.Module, target: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The temporal-difference errors of double DQN, ``(batch,)``.

    H. van Hasselt, A. Guez, D. Silver, "Deep Reinforcement Learning with Double Q-learning", AAAI 2016.
    """
    values = network(batch["observation"]).gather(1, batch["action"].unsqueeze(1)).squeeze(1)
    with torch.no_grad():
        best = network(batch["next_observation"]).argmax(dim=1, keepdim=True)
        following = target(batch["next_observation"]).gather(1, best).squeeze(1)
        goal = batch["n_step_return"] + batch["n_step_discount"] * following
    return values - goal


class Learner:
    """A network, what it is compared with, and one update at a time.

    Args:
        buffer: what is learnt from.
        prioritized: draw by priority instead of uniformly.
    """

    def __init__(self, buffer: ReplayBuffer, *, prioritized: bool) -> None:
        self.network, self._target, self._buffer = make_network(), make_network(), buffer
        self._target.load_state_dict(self.network.state_dict())
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=5e-4)
        self._sampler = PrioritizedSampler(alpha=0.6, beta=0.4) if prioritized else None
        self._updates = 0

    def act(self, observation: np.ndarray) -> int:
        """The greedy action."""
        with torch.inference_mode():
            return int(self.network(torch.from_numpy(observation)).argmax())

    def learn(self) -> float:
        """One update from what is recorded now; the loss."""
        batch = self._buffer.sample(
            BATCH_SIZE, n_steps=N_STEPS, discount=DISCOUNT, include_open=True, sampler=self._sampler
        )
        errors = errors_of(self.network, self._target, batch)
        loss = nn.functional.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none")
        loss = (loss * batch["_weights"]).mean() if self._sampler else loss.mean()
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        self._optimizer.step()
        if self._sampler:
            self._sampler.update(batch["_samples"], errors.detach().abs())
        self._updates += 1
        if self._updates % SYNC_EVERY == 0:
            self._target.load_state_dict(self.network.state_dict())
        return loss.item()


def train(folder: str, steps: int, seed: int, *, prioritized: bool) -> Learner:
    """Play so many steps, with one update after each."""
    env = RecordToBuffer(gym.make(ENV_ID), folder, circular=True, max_steps=20_000, overwrite=True)
    learner, rng, losses = Learner(env.buffer, prioritized=prioritized), np.random.default_rng(seed), []
    print("   steps  episodes   loss  return of the last 20")
    observation, _ = env.reset(seed=seed)
    for step in range(1, steps + 1):
        is_random = rng.random() < epsilon_at(step, steps)
        action = int(rng.integers(2)) if is_random else learner.act(observation)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
        losses.append(learner.learn())
        if step % max(steps // 10, 1) == 0 and len(env.buffer):
            newest, returns = env.buffer.episode(-1).id, env.buffer.meta["episode_return"][-20:]
            print(f"{step:8} {newest + 1:9} {np.mean(losses):6.3f}  {np.mean(returns):6.1f}", flush=True)
            losses.clear()
    env.close()
    return learner


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn CartPole while it is recorded.")
    parser.add_argument("--folder", default="data/online-dqn", help="a buffer in it is replaced")
    parser.add_argument("--steps", type=int, default=15_000)
    parser.add_argument("--uniform", action="store_true", help="draw uniformly instead of by priority")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--passing-return", type=float, default=150.0, help="an error below this mean return")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    learner = train(args.folder, args.steps, args.seed, prioritized=not args.uniform)
    mean = evaluate(learner.act, ENV_ID, episodes=10, seed=1).mean
    print(f"mean return of the greedy policy over 10 episodes: {mean:.1f}")
    if mean < args.passing_return:
        sys.exit(f"expected at least {args.passing_return:.0f}")


if __name__ == "__main__":
    main()

"""DQN while it plays: one process fills a circular buffer, another one trains from it.

python examples/online_dqn.py             each run replaces the folder's buffer

The player records CartPole with the network's greedy actions and random ones in between. Its buffer is circular: the
oldest episodes make room for new ones. The learner opens the same folder, draws from what is there at that moment
(``refresh="batch"``), by priority or uniformly, and changes the network, whose weights the two processes share. Each
waits for the other where it gets ahead, so that there is one update for each step.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch import multiprocessing as mp

from gym_replay import PrioritizedSampler, RecordToBuffer, ReplayBuffer

ENV_ID = "CartPole-v1"
DISCOUNT = 0.99
N_STEPS = 3
BATCH_SIZE = 128
WARM_UP = 500
AHEAD = 200
SYNC_EVERY = 200


def make_network() -> nn.Module:
    """From observations ``(batch, 4)`` to the values of both actions ``(batch, 2)``."""
    return nn.Sequential(nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))


def epsilon_at(step: int, steps: int) -> float:
    """How often an action is random: from always to one in twenty, over the first third of the steps."""
    return max(0.05, 1.0 - 0.95 * step / (steps / 3))


def play(folder: str, network: nn.Module, played: Any, learned: Any, steps: int, seed: int) -> None:
    """The player: record episodes into the circular buffer until there were so many steps."""
    torch.set_num_threads(1)
    env = RecordToBuffer(gym.make(ENV_ID), folder, circular=True, max_steps=20_000, overwrite=True)
    rng = np.random.default_rng(seed)
    number = 0
    while played.value < steps:
        observation, _ = env.reset(seed=seed + number)
        number += 1
        done = False
        while not done and played.value < steps:
            while played.value - learned.value > AHEAD + WARM_UP:
                time.sleep(0.0005)
            if rng.random() < epsilon_at(played.value, steps):
                action = int(rng.integers(2))
            else:
                with torch.inference_mode():
                    action = int(network(torch.from_numpy(observation)).argmax())
            observation, _, terminated, truncated, _ = env.step(action)
            played.value += 1
            done = terminated or truncated
    env.close()


def wait_for_steps(folder: str, player: Any) -> ReplayBuffer:
    """The player's buffer, once there is something in it to learn from."""
    while player.is_alive():
        time.sleep(0.05)
        try:
            buffer = ReplayBuffer.from_folder(folder, read_only=True)
        except FileNotFoundError:
            continue
        if buffer.num_steps >= WARM_UP * 3 // 4:
            return buffer
        buffer.close()
    sys.exit("the player ended before there was anything to learn from")


def batches(buffer: ReplayBuffer, sampler: PrioritizedSampler | None, seed: int) -> Iterator[dict[str, Tensor]]:
    """Batches without end, each drawn from what is in the buffer at that moment."""
    loader = buffer.dataloader(
        BATCH_SIZE,
        n_steps=N_STEPS,
        discount=DISCOUNT,
        sampler=sampler,
        shuffle=sampler is None,
        refresh="batch",
        drop_last=True,
        seed=seed,
    )
    while True:
        yield from loader


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


def learn(
    buffer: ReplayBuffer, network: nn.Module, played: Any, learned: Any, steps: int, *, prioritized: bool, seed: int
) -> None:
    """The learner: one update for each step that was played."""
    target = make_network()
    target.load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
    sampler = PrioritizedSampler(alpha=0.6, beta=0.4) if prioritized else None
    source = batches(buffer, sampler, seed)
    losses = []
    print("   steps  episodes   loss  return of the last 20")
    while learned.value + WARM_UP < steps:
        while learned.value + WARM_UP >= played.value:
            time.sleep(0.0005)
        batch = next(source)
        errors = errors_of(network, target, batch)
        weights = batch["_weights"] if sampler else torch.ones_like(errors)
        loss = (weights * nn.functional.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none")).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        if sampler:
            sampler.update(batch["_samples"], errors.detach().abs())
        losses.append(loss.item())
        learned.value += 1
        if learned.value % SYNC_EVERY == 0:
            target.load_state_dict(network.state_dict())
        if learned.value % max(steps // 10, 1) == 0:
            buffer.refresh()
            last = [float(buffer.episode(i).meta["episode_return"]) for i in range(-min(20, len(buffer)), 0)]
            newest = buffer.episode(-1).id
            print(f"{played.value:8} {newest + 1:9} {np.mean(losses):6.3f}  {np.mean(last):6.1f}", flush=True)
            losses.clear()


def evaluate(network: nn.Module, episodes: int, seed: int) -> float:
    """The mean return of the greedy policy."""
    returns = []
    with gym.make(ENV_ID) as env, torch.inference_mode():
        for number in range(episodes):
            observation, _ = env.reset(seed=seed + number)
            total, done = 0.0, False
            while not done:
                action = int(network(torch.from_numpy(observation)).argmax())
                observation, reward, terminated, truncated, _ = env.step(action)
                total += float(reward)
                done = terminated or truncated
            returns.append(total)
    return float(np.mean(returns))


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn CartPole from a buffer that another process fills.")
    parser.add_argument("--folder", default="data/online-dqn", help="a buffer in it is replaced")
    parser.add_argument("--steps", type=int, default=15_000)
    parser.add_argument("--uniform", action="store_true", help="draw uniformly instead of by priority")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--passing-return", type=float, default=150.0, help="an error below this mean return")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    network = make_network().share_memory()
    context = mp.get_context("spawn")
    played, learned = context.Value("q", 0), context.Value("q", 0)
    arguments = (args.folder, network, played, learned, args.steps, args.seed)
    player = context.Process(target=play, args=arguments, daemon=True)
    player.start()
    buffer = wait_for_steps(args.folder, player)
    learn(buffer, network, played, learned, args.steps, prioritized=not args.uniform, seed=args.seed)
    player.join()
    if player.exitcode:
        sys.exit(f"the player ended with exit code {player.exitcode}")

    mean = evaluate(network, episodes=10, seed=10_000_000)
    print(f"mean return of the greedy policy over 10 episodes: {mean:.1f}")
    if mean < args.passing_return:
        sys.exit(f"expected at least {args.passing_return:.0f}")


if __name__ == "__main__":
    main()

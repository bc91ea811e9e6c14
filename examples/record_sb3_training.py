"""Record what PPO does while it learns on eight environments, and clone the best of it.

python -m examples.record_sb3_training       pip install stable-baselines3

The recorder goes around the vector environment of Stable-Baselines3 and is one itself, so that the agent learns on it.
Every episode is in the folder when its last step returns: also the bad ones of the beginning, which a condition leaves
out of the loader.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from examples.behavior_cloning import Controller, greedy
from gym_replay import ReplayBuffer, evaluate, timestep_loader
from gym_replay.wrappers.vector import RecordToBuffer

ENV_ID = "CartPole-v1"
NUM_ENVS = 8
PARTS = 8


def learn(folder: str, steps: int, seed: int) -> PPO:
    """Let PPO learn on eight environments, each episode of which goes to the folder; a buffer in it is replaced."""
    env = RecordToBuffer(make_vec_env(ENV_ID, NUM_ENVS, seed=seed), folder, overwrite=True)
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        gae_lambda=0.8,
        gamma=0.98,
        learning_rate=1e-3,
        seed=seed,
        device="cpu",
    )
    model.learn(steps)
    env.close()
    return model


def clone(buffer: ReplayBuffer, episodes: str, epochs: int, seed: int) -> Controller:
    """Fit a small network to the actions of some episodes."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    fields = ("observation", "action")
    loader = timestep_loader(buffer, 256, episodes=episodes, fields=fields, shuffle=True, seed=seed)
    for _ in range(epochs):
        for batch in loader:
            loss = nn.functional.cross_entropy(network(batch["observation"]), batch["action"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return greedy(network)


def main() -> None:
    parser = argparse.ArgumentParser(description="Record PPO while it learns, and clone its best episodes.")
    parser.add_argument("--folder", default="data/ppo-training", help="a buffer in it is replaced")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--best", type=float, default=0.1, help="which part of the episodes is cloned")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--evaluation-episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    print(f"PPO learns for {args.steps} steps", flush=True)
    model = learn(args.folder, args.steps, args.seed)

    buffer = ReplayBuffer.from_folder(args.folder, read_only=True)
    returns = buffer.meta["episode_return"]
    print(f"{args.folder}: {buffer.num_episodes} episodes of {NUM_ENVS} environments, {buffer.num_steps} steps")
    print("episodes        mean return")
    for part in np.array_split(np.arange(len(returns)), PARTS):
        if len(part):
            print(f"{part[0]:5d} to {part[-1]:5d} {returns[part].mean():12.1f}")

    best = f"episode_return >= {np.quantile(returns, 1 - args.best)}"
    policy = clone(buffer, best, args.epochs, args.seed)
    print(f"cloned: the episodes with {best}")
    print("policy          mean return")
    for name, player in (("PPO", model), ("clone", policy)):
        found = evaluate(player, ENV_ID, episodes=args.evaluation_episodes, seed=args.seed, progress=False)
        print(f"{name:14} {found.mean:12.1f}")


if __name__ == "__main__":
    main()

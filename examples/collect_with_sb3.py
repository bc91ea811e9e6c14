"""Train a policy with Stable-Baselines3 for a moment, record what it does, and look at the data.

python examples/collect_with_sb3.py       pip install stable-baselines3

The model is saved first and recorded under its name, as the command line has it too:

gym-replay record CartPole-v1 data/ppo --policy sb3:PPO:data/ppo.zip --episodes 100 --num-envs 4
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3 import PPO

from gym_replay import collect

ENV_ID = "CartPole-v1"


def train(path: Path, steps: int, seed: int) -> None:
    """Train for some steps, and save the model."""
    model = PPO("MlpPolicy", gym.make(ENV_ID), n_steps=512, batch_size=64, seed=seed, device="cpu")
    model.learn(steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Record a policy of Stable-Baselines3.")
    parser.add_argument("--folder", type=Path, default=Path("data/ppo"))
    parser.add_argument("--train-steps", type=int, default=20_000)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    model = args.folder.with_suffix(".zip")
    if not model.exists():
        print(f"PPO learns for {args.train_steps} steps, which takes about a minute", flush=True)
        train(model, args.train_steps, args.seed)
    policy = f"sb3:PPO:{model}"
    ways: dict[str, dict[str, Any]] = {
        "random": {},
        "greedy": {"policy": policy},
        "drawn": {"policy": policy, "deterministic": False},
    }
    for name, way in ways.items():
        buffer = collect(
            ENV_ID, args.folder / name, episodes=args.episodes, num_envs=args.num_envs, seed=args.seed, **way
        )
        mean = buffer.meta["episode_return"].mean()
        print(f"{name:7} {len(buffer)} episodes, {buffer.num_steps} steps, mean return {mean:.1f}", flush=True)


if __name__ == "__main__":
    main()

"""A short proof that values are learned from what was recorded, and not from what a broken loader would make of it.

python -m examples.offline_rl.pieces                        a minute; an error where the bar is not reached
python -m examples.offline_rl.pieces --defect truncation    the same of data that is wrong, which does not reach it

Pendulum is played at random in pieces of a few steps, each from anywhere, and each truncated. To swing up takes many
pieces, one after the other, of which the data has none: their values have to be put together across the ends of the
pieces, from the rewards, the last observations and the flags that are there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from examples.offline_rl import iql, td3_bc
from examples.offline_rl.networks import Array, Policy
from gym_replay import RecordToBuffer, ReplayBuffer, evaluate, select

ANYWHERE = {"x_init": np.pi, "y_init": 8.0}
"""Options of a reset: any angle, any speed."""
REPEAT = 4
"""For so many steps an action holds."""
LENGTH = 3
"""Actions of a piece."""
PIECES = 4_000
BAR = -500.0
"""The mean return that is enough; random play returns some -1200, and the best policy some -150."""


class Repeat(gym.Wrapper[Any, Any, Any, Any]):
    """Each action holds for some steps, whose rewards are summed."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(REPEAT):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def make(actions: int | None = None) -> gym.Env[Any, Any]:
    """Pendulum, truncated after so many actions; None for its own 200 steps."""
    return Repeat(gym.make("Pendulum-v1", max_episode_steps=None if actions is None else REPEAT * actions))


def record(folder: Path, pieces: int = PIECES, seed: int = 0) -> ReplayBuffer:
    """Play at random, in pieces."""
    with RecordToBuffer(make(LENGTH), folder, overwrite=True) as env:
        env.action_space.seed(seed)
        for number in range(pieces):
            env.reset(seed=None if number else seed, options=ANYWHERE)
            for _ in range(LENGTH):
                env.step(env.action_space.sample())
    return ReplayBuffer.from_folder(folder, read_only=True)


def stacked(buffer: ReplayBuffer, name: str) -> Array:
    """The rows of a field, ``(episodes, rows, ...)``."""
    return np.stack([episode[name] for episode in buffer])


def shifted_reward(buffer: ReplayBuffer) -> Mapping[str, Array]:
    """Each transition has the reward of the one before it."""
    rewards = stacked(buffer, "reward")
    return {"reward": np.roll(rewards.reshape(-1), 1).reshape(rewards.shape)}


def next_reset(buffer: ReplayBuffer) -> Mapping[str, Array]:
    """The last observation is the first one of the next episode, as it is where an environment resets itself."""
    observations = stacked(buffer, "observation")
    observations[:, -1] = np.roll(observations[:, 0], -1, axis=0)
    return {"observation": observations}


def truncation(buffer: ReplayBuffer) -> Mapping[str, Array]:
    """A truncated episode counts as terminated."""
    return {"terminated": stacked(buffer, "terminated") | stacked(buffer, "truncated")}


DEFECTS: dict[str, Callable[[ReplayBuffer], Mapping[str, Array]]] = {
    "shifted-reward": shifted_reward,
    "last-observation": next_reset,
    "truncation": truncation,
}
SETTINGS: dict[str, Any] = {"hidden": 64, "discount": 0.9, "lr": 3e-3, "rate": 0.05}
"""What differs from the papers: small and fast."""
METHODS: dict[str, Callable[[ReplayBuffer, int], Policy]] = {
    "iql": lambda buffer, seed: iql.train(
        buffer, 600, seed, reward_scale=0.05, expectile=0.9, temperature=10.0, **SETTINGS
    ),
    "td3_bc": lambda buffer, seed: td3_bc.train(buffer, 1500, seed, alpha=300.0, **SETTINGS | {"lr": 1e-3}),
}


def with_defect(buffer: ReplayBuffer, defect: str, folder: Path) -> ReplayBuffer:
    """A copy of the data as a loader with a defect would deliver it."""
    select(buffer, folder, progress=False).close()
    with ReplayBuffer.from_folder(folder) as copy:
        copy.update(**DEFECTS[defect](buffer))
    return ReplayBuffer.from_folder(folder, read_only=True)


def reached(buffer: ReplayBuffer, method: str, seed: int = 0) -> float:
    """The mean return of what was learned, in whole episodes of fresh seeds."""
    policy = METHODS[method](buffer, seed)
    options: dict[str, Any] = {"episodes": 20, "seed": 1_000_000, "num_envs": 20, "progress": False}
    return float(evaluate(policy.act, make, **options).mean)


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn to swing up a pendulum from pieces of random play.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--defect", choices=DEFECTS, help="learn from a copy that is wrong in this way")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        buffer = record(Path(folder) / "pieces", seed=args.seed)
        if args.defect:
            buffer = with_defect(buffer, args.defect, Path(folder) / "wrong")
        found: dict[str, Any] = {method: reached(buffer, method, args.seed) for method in args.methods}
    for method, mean in found.items():
        print(f"{method}: mean return {mean:.0f}")
    if missed := [method for method, mean in found.items() if mean < BAR]:
        sys.exit(f"expected at least {BAR:.0f}: {', '.join(missed)}")


if __name__ == "__main__":
    main()

"""Behaviour cloning from a folder: record a scripted CartPole controller, train a policy on it, compare the two.

python examples/behavior_cloning.py       each run records anew and replaces the folder's buffer

In half of the episodes some actions are random, so that the data also shows how the controller recovers. A random
action is no example of what the controller does; what the controller chose itself is recorded beside the executed
action, as the extra field ``expert_action``, and that is what the policy learns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gym_replay import RecordToBuffer, ReplayBuffer, evaluate

ENV_ID = "CartPole-v1"
NOISE = 0.25
EVALUATION_EPISODES = 20
PASSING_RETURN = 475.0

Controller = Callable[[npt.NDArray[Any]], int]


def expert(observation: npt.NDArray[Any]) -> int:
    """Push towards the side to which the pole falls, and a little towards the centre of the track."""
    position, velocity, angle, angular_velocity = observation
    return int(angle + 0.5 * angular_velocity + 0.05 * position + 0.2 * velocity > 0)


def record(folder: str, episodes: int, seed: int) -> None:
    """Play the controller, every second episode with noise, and leave the episodes in the folder."""
    env = RecordToBuffer(
        gym.make(ENV_ID),
        folder,
        overwrite=True,
        meta_fields={"noise": "float"},
        extra_fields={"expert_action": "int"},
    )
    rng = np.random.default_rng(seed)
    for number in tqdm(range(episodes), desc="recording"):
        noise = NOISE if number % 2 else 0.0
        observation, _ = env.reset(seed=seed + number)
        env.annotate(noise=noise)
        done = False
        while not done:
            chosen = expert(observation)
            env.annotate_step(expert_action=chosen)
            executed = int(rng.integers(2)) if rng.random() < noise else chosen
            observation, _, terminated, truncated, _ = env.step(executed)
            done = terminated or truncated
    env.close()


def train(buffer: ReplayBuffer, epochs: int, seed: int) -> nn.Module:
    """Fit a small network to the controller's choices."""
    torch.manual_seed(seed)
    policy = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    loader = buffer.dataloader(
        batch_size=256,
        timestep_level=True,
        fields=("observation", "expert_action"),
        shuffle=True,
        seed=seed,
    )
    for _ in (bar := tqdm(range(epochs), desc="training")):
        correct = 0
        for batch in loader:
            logits = policy(batch["observation"])
            loss = nn.functional.cross_entropy(logits, batch["expert_action"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            correct += int((logits.argmax(dim=1) == batch["expert_action"]).sum())
        schedule.step()
        bar.set_postfix(accuracy=f"{correct / buffer.num_steps:.4f}")
    return policy.eval()


def greedy(policy: nn.Module) -> Controller:
    """The policy as a controller: the action with the larger logit."""

    @torch.inference_mode()
    def act(observation: npt.NDArray[Any]) -> int:
        logits: Tensor = policy(torch.from_numpy(observation))
        return int(logits.argmax())

    return act


def main() -> None:
    parser = argparse.ArgumentParser(description="Clone a scripted CartPole controller from recorded episodes.")
    parser.add_argument("--folder", default="data/cartpole-expert", help="a buffer in it is replaced")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)
    record(args.folder, args.episodes, args.seed)

    buffer = ReplayBuffer.from_folder(args.folder, read_only=True)
    noisy = sum(episode.meta["noise"] > 0 for episode in buffer)
    print(f"{args.folder}: {buffer.num_episodes} episodes ({noisy} with noise), {buffer.num_steps} steps")
    policy = train(buffer, args.epochs, args.seed)

    found = {
        name: evaluate(act, ENV_ID, episodes=EVALUATION_EPISODES, seed=args.seed, progress=False)
        for name, act in (("expert", expert), ("clone", greedy(policy)))
    }
    print("episode  expert  clone")
    for number, returns in enumerate(zip(*(one.returns for one in found.values()), strict=True)):
        print("{:7d} {:7.0f} {:6.0f}".format(number, *returns))
    print("   mean {expert.mean:7.1f} {clone.mean:6.1f}".format(**found))
    mean = found["clone"].mean
    if mean < PASSING_RETURN:
        sys.exit(f"the clone's mean return is {mean:.1f}, expected at least {PASSING_RETURN:.0f}")


if __name__ == "__main__":
    main()

"""Corrections instead of demonstrations: an expert takes over from a policy, against cloning of as many labels.

python -m examples.dagger       each run records anew and replaces the folders' buffers

The expert balances CartPole's pole. It is a function here, in the role that a person has at the window of ``gym-replay
play CartPole-v1 FOLDER --policy ...``: `play` takes both. Labels are the steps in which the expert acts.

- Behaviour cloning spends all of them on episodes that the expert plays alone, in which the pole hardly ever leans.
- DAgger, here as HG-DAgger has it, spends a part on these, and at most as many in all. Then the policy that was learned
  so far plays, the expert takes over where it goes astray, for some steps, and the policy learns from all labels that
  there are, round by round.

Kelly et al., HG-DAgger: Interactive Imitation Learning with Human Experts, 2019 (https://arxiv.org/abs/1810.02890).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from examples.behavior_cloning import ENV_ID, Controller, expert, greedy
from gym_replay import Intent, ReplayBuffer, Scene, evaluate, play, timestep_loader

FARTHEST_ANGLE, FARTHEST_PLACE = 0.08, 0.8
"""The expert takes over where the pole leans farther (in radians), or the cart is farther from the middle, ..."""

PATIENCE = 5
"""... and gives them back after so many steps in which neither is."""

MOST_EPISODES = 15
"""A round ends after so many, whatever labels are left: a policy that goes astray no more needs none."""

EVALUATION_EPISODES = 10
SHARE = 0.95
"""Of the expert's mean return, which DAgger is to reach, and cloning of as many labels does not."""


class Person:
    """The expert at the keys, until it has given so many labels, or has seen enough episodes.

    Args:
        labels: how many.
        always: whether it acts in each step, or only where the policy goes astray.
    """

    def __init__(self, labels: int, *, always: bool) -> None:
        self._left, self._always = labels, always
        self._steps, self._episodes = 0, 0

    def __call__(self, scene: Scene) -> Intent:
        if not self._left or self._episodes == MOST_EPISODES:
            return Intent(wish="quit")
        if scene.finished is not None:
            self._episodes += 1
            return Intent(wish="keep")
        position, _, angle, _ = scene.observation
        if self._always or abs(angle) > FARTHEST_ANGLE or abs(position) > FARTHEST_PLACE:
            self._steps = PATIENCE
        if not self._steps:
            return Intent()
        self._steps -= 1
        self._left -= 1
        return Intent(action=expert(scene.observation))


def train(buffer: ReplayBuffer, steps: int, seed: int) -> Controller:
    """Fit a small network to the expert's actions."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loader = timestep_loader(
        buffer,
        64,
        fields=("observation", "action"),
        filter_fields={"is_intervention": True},
        replacement=True,
        samples_per_epoch=64 * steps,
        seed=seed,
    )
    for batch in loader:
        loss = nn.functional.cross_entropy(network(batch["observation"]), batch["action"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    return greedy(network)


def clone(folder: Path, labels: int, steps: int, seed: int) -> Controller:
    """Behaviour cloning of demonstrations."""
    person = Person(labels, always=True)
    buffer = play(ENV_ID, folder, policy="random", person=person, seed=seed, player="expert", overwrite=True)
    return train(buffer, steps, seed)


def dagger(folder: Path, labels: int, rounds: int, steps: int, seed: int) -> Controller:
    """As many labels, of which the first share are demonstrations, and the others corrections."""
    shares = np.diff(np.linspace(0, labels, rounds + 1).astype(int)).tolist()
    policy = clone(folder, shares[0], steps, seed)
    for number, share in enumerate(shares[1:], 1):
        person = Person(share, always=False)
        buffer = play(ENV_ID, folder, policy=policy, person=person, seed=seed + 1000 * number, player="expert")
        policy = train(buffer, steps, seed)
    return policy


def mean_return(policy: Controller) -> float:
    """Of some episodes that nobody learned from."""
    return float(evaluate(policy, ENV_ID, episodes=EVALUATION_EPISODES, seed=1, progress=False).mean)


def labels_in(folder: Path) -> str:
    """How many labels there are, and in how many steps."""
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        count = sum(int(episode["is_intervention"].sum()) for episode in buffer)
        return f"{count:5d} labels in {buffer.num_steps:6d} steps of {len(buffer):3d} episodes"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare corrections by an expert with demonstrations by it.")
    parser.add_argument("--folder", type=Path, default=Path("data/dagger"), help="buffers in it are replaced")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300, help="of training, in each round")
    parser.add_argument("--seeds", type=int, default=1, help="how many runs")
    args = parser.parse_args()

    torch.set_num_threads(1)
    mean = mean_return(expert)
    print(f"expert          {mean:6.1f}")
    cloned, corrected = [], []
    for seed in range(args.seeds):
        demonstrations, corrections = args.folder / f"demonstrations-{seed}", args.folder / f"corrections-{seed}"
        cloned.append(mean_return(clone(demonstrations, args.labels, args.steps, seed)))
        print(f"clone   seed {seed}  {cloned[-1]:6.1f}  {labels_in(demonstrations)}")
        corrected.append(mean_return(dagger(corrections, args.labels, args.rounds, args.steps, seed)))
        print(f"dagger  seed {seed}  {corrected[-1]:6.1f}  {labels_in(corrections)}", flush=True)
    if np.mean(corrected) < SHARE * mean or np.mean(cloned) >= SHARE * mean:
        sys.exit(f"expected DAgger, and not cloning, to reach {SHARE:.0%} of the expert's mean return")


if __name__ == "__main__":
    main()

"""Behaviour cloning: do what the data does.

D. A. Pomerleau, "ALVINN: An Autonomous Land Vehicle in a Neural Network", NeurIPS 1988. Nothing here sees a reward, so
the clone is at best as good as what it imitates.
"""

from __future__ import annotations

from itertools import islice

import torch
from torch import nn

from examples.offline_rl.networks import Policy, adam, descend, forever
from gym_replay import ConcatReplayBuffer, ReplayBuffer, statistics, timestep_loader


def train(
    buffer: ReplayBuffer | ConcatReplayBuffer, steps: int, seed: int, *, hidden: int = 256, batch_size: int = 256
) -> Policy:
    """Fit a policy to the recorded actions by their squared error."""
    torch.manual_seed(seed)
    found = statistics(buffer, ["observation"], progress=False)
    policy = Policy(found["observation"], buffer.action_space, hidden)
    optimizer = adam(policy)
    loader = timestep_loader(
        buffer, batch_size, fields=("observation", "action"), normalize=found, shuffle=True, drop_last=True, seed=seed
    )
    for batch in islice(forever(loader), steps):
        descend(optimizer, nn.functional.mse_loss(policy(batch["observation"]), batch["action"]))
    return policy

"""What the methods share: networks, and how a policy sees an environment."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gym_replay import FieldStatistics

T = TypeVar("T")
Array = npt.NDArray[Any]


def forever(loader: Iterable[T]) -> Iterator[T]:
    """One epoch of batches after the other, each in an order of its own."""
    while True:
        yield from loader


def mlp(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    """Two hidden layers: ``(batch, inputs)`` to ``(batch, outputs)``."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


class Policy(nn.Module):
    """A deterministic policy: normalized observations ``(batch, observations)`` to actions ``(batch, actions)``.

    Args:
        observation: the statistics of the observations that it learns from; what it sees later is normalized with them.
        space: of the actions, with bounds that are alike on both sides.
        hidden: width of the hidden layers.
    """

    mean: Tensor
    std: Tensor
    limit: Tensor

    def __init__(self, observation: Any, space: gym.spaces.Box, hidden: int) -> None:
        super().__init__()
        self.net = mlp(len(observation.mean), space.shape[0], hidden)
        for name, values in (("mean", observation.mean), ("std", observation.std), ("limit", space.high)):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32))

    def forward(self, observations: Tensor) -> Tensor:
        return self.limit * torch.tanh(self.net(observations))

    @torch.inference_mode()
    def act(self, observations: Array) -> Array:
        """Actions for observations as an environment gives them, one or a batch."""
        seen = torch.as_tensor(np.asarray(observations), dtype=torch.float32)
        found: Array = self((seen - self.mean) / self.std).numpy()
        return found


class TwinCritic(nn.Module):
    """Two estimates of the value of an action: ``(batch,)`` each."""

    def __init__(self, observations: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = (mlp(observations + actions, 1, hidden) for _ in range(2))

    def forward(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat((observations, actions), dim=-1)
        return self.first(both).squeeze(-1), self.second(both).squeeze(-1)


def unscaled(size: int) -> FieldStatistics:
    """Statistics by which observations of so many numbers stay as they are."""
    zeros = np.zeros(size)
    return FieldStatistics(zeros.astype(np.int64), zeros, zeros + 1, zeros, zeros, {})


def adam(*modules: nn.Module, lr: float = 3e-4) -> torch.optim.Adam:
    """The optimizer of some modules' parameters."""
    return torch.optim.Adam([one for module in modules for one in module.parameters()], lr=lr, fused=True)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One gradient step."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy that no gradient changes, to be moved by :func:`follow`."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, module: nn.Module, rate: float) -> None:
    """Move the target's parameters towards the module's, by this share of the way."""
    torch._foreach_lerp_(list(target.parameters()), list(module.parameters()), rate)

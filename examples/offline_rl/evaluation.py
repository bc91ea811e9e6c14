"""Returns of a policy on seeds that nobody learned from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from gym_replay import collect


@dataclass(frozen=True)
class Evaluation:
    """The return of each episode."""

    returns: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))


def evaluate(policy: Any, env: Any, *, episodes: int, seed: int, num_envs: int = 10) -> Evaluation:
    """Play a policy, in several environments at once."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"episodes": episodes, "seed": seed, "num_envs": num_envs, "progress": False}
        return Evaluation(collect(env, folder, policy=policy, **options).meta["episode_return"].tolist())

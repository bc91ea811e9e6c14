"""Record a policy with a memory and random draws of its own, in several environments at once.

python examples/collect_vector.py

The second call asks for more, with another number of environments: it plays what is missing. The third one records the
same episodes one at a time, and they are compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay import ReplayBuffer, collect

ENV_ID = "CartPole-v1"


class Hesitating:
    """Pushes towards the side to which the pole falls, and now and then repeats its last action instead.

    Single observations are ``(4,)`` and batches of them ``(num_envs, 4)``; rows are independent of one another.
    """

    def __init__(self, share: float = 0.2) -> None:
        self.share = share

    def reset(self, mask: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64]) -> None:
        if mask.all():
            self.last = np.zeros(len(mask), np.int64)
            self.generators: list[Any] = [None] * len(mask)
        self.last[mask] = 0
        for place in np.flatnonzero(mask):
            self.generators[place] = np.random.default_rng(seeds[place])

    def __call__(self, observation: npt.NDArray[Any]) -> Any:
        _, _, angle, angular_velocity = np.atleast_2d(observation).T
        hesitates = np.array([generator.random() < self.share for generator in self.generators])
        self.last = np.where(hesitates, self.last, angle + 0.5 * angular_velocity > 0).astype(np.int64)
        return self.last if observation.ndim == 2 else self.last[0]


def rows_of(buffer: ReplayBuffer) -> dict[int, tuple[bytes, ...]]:
    """By number, all that was stored of an episode's steps."""
    return {
        int(episode.meta["collect_index"]): tuple(episode[name].tobytes() for name in buffer.fieldnames)
        for episode in buffer
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Record a policy in several environments at once.")
    parser.add_argument("--folder", type=Path, default=Path("data/vector"))
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--num-envs", type=int, default=8)
    args = parser.parse_args()

    half = max(args.episodes // 2, 1)
    collect(ENV_ID, args.folder / "together", policy=Hesitating(), episodes=half, num_envs=args.num_envs).close()
    together = collect(
        ENV_ID, args.folder / "together", policy=Hesitating(), episodes=args.episodes, num_envs=args.num_envs + 3
    )
    alone = collect(ENV_ID, args.folder / "alone", policy=Hesitating(), episodes=args.episodes)
    print(f"together: {together}")
    print(f"alone: {alone}")
    print(f"the same episodes: {rows_of(together) == rows_of(alone)}")


if __name__ == "__main__":
    main()

"""Record with several workers, and train from all that they recorded as one buffer.

python examples/collect_ray.py            pip install "gym-replay[ray]"

On a cluster, start it on a node of the cluster, with a folder that all nodes share. A second run with more episodes
plays what is missing, with any number of workers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gym_replay import collect


def main() -> None:
    parser = argparse.ArgumentParser(description="Record with several workers.")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--folder", type=Path, default=Path("data/ray"))
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--num-envs", type=int, default=1, help="of each worker")
    args = parser.parse_args()

    buffer = collect(
        args.env,
        args.folder,
        episodes=args.episodes,
        num_envs=args.num_envs,
        engine="ray",
        num_workers=args.workers,
    )
    for shard in buffer.buffers:
        print(f"{shard.folder.name}: {len(shard)} episodes, {shard.num_steps} steps")
    print(f"together: {len(buffer)} episodes, {buffer.num_steps} steps")
    loader = buffer.dataloader(batch_size=256, n_steps=1, shuffle=True, seed=0)
    for name, value in next(iter(loader)).items():
        print(f"  {name:18} {tuple(value.shape)} {value.dtype}")


if __name__ == "__main__":
    main()

"""Record a few episodes of CartPole, look at what is on disk, and load it with each of the three loaders.

python examples/record.py [folder]        a second run appends to the first
"""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np

from gym_replay import RecordToBuffer, ReplayBuffer

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data/cartpole")

env = RecordToBuffer(gym.make("CartPole-v1"), folder)
env.action_space.seed(0)
for seed in range(10):
    env.reset(seed=seed)
    done = False
    while not done:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        done = terminated or truncated
env.close()

for path in sorted(folder.glob("steps/*.npy")):
    rows = np.load(path, mmap_mode="r")
    print(f"{path}: {rows.dtype} {rows.shape}, {path.stat().st_size} bytes")

buffer = ReplayBuffer.from_folder(folder)
print(buffer)

loaders = {
    "trajectory": buffer.dataloader(batch_size=4, return_mask=True),
    "timestep": buffer.dataloader(batch_size=32, timestep_level=True, shuffle=True),
    "n-step": buffer.dataloader(batch_size=32, n_steps=3, shuffle=True),
}
for name, loader in loaders.items():
    print(f"\none batch of the {name} loader, of {len(loader)}:")
    for entry, tensor in next(iter(loader)).items():
        print(f"  {entry:18} {tuple(tensor.shape)} {tensor.dtype}")

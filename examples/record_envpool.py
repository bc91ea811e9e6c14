"""Record a pool of EnvPool's environments, and look at what was recorded.

python examples/record_envpool.py [folder]        a second run appends to the first

EnvPool steps all of its environments in C++ and resets what has ended in the next step. The recorder stands where the
pool stood: the training code around it stays as it is.
"""

import sys
from pathlib import Path

import envpool
import numpy as np

from gym_replay import ReplayBuffer
from gym_replay.wrappers.vector import RecordToBuffer

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data/envpool")

envs = RecordToBuffer(envpool.make_gymnasium("CartPole-v1", num_envs=8, seed=0), folder, record_info=["elapsed_step"])
envs.action_space.seed(0)
observations, infos = envs.reset()
for _ in range(500):
    actions = np.array([envs.action_space.sample() for _ in range(envs.num_envs)])
    observations, rewards, terminated, truncated, infos = envs.step(actions)
envs.close()

buffer = ReplayBuffer.from_folder(folder)
print(buffer)
returns, indices = buffer.meta["episode_return"], buffer.meta["env_index"]
for env_index in range(envs.num_envs):
    mine = returns[indices == env_index]
    print(f"environment {env_index}: {len(mine)} episodes, mean return {mine.mean():.1f}")

batch = next(iter(buffer.dataloader(batch_size=256, n_steps=3, shuffle=True)))
print({name: tuple(tensor.shape) for name, tensor in batch.items()})

"""From recorded data to a better policy: TD3+BC on what was recorded, then TD3 on that and on what it plays itself.

python -m examples.offline_to_online                      Hopper-v5; needs gymnasium[mujoco]
python -m examples.offline_to_online --env Pendulum-v1 --record 3000 --offline 3000 --online 3000

1. An agent learns from scratch for a while, and all that it plays is recorded: data of a policy in training. With
   ``--data FOLDER``, what is in that folder is taken instead.
2. A new agent learns from this data alone, by TD3+BC, the one of ``offline_rl/td3_bc.py``.
3. It goes on in the environment without the imitation, which is TD3, and is recorded too. Half of each batch is of the
   old data, and half of the new: ``gym_replay.mix``.

P. J. Ball, L. Smith, I. Kostrikov, S. Levine, "Efficient Online Reinforcement Learning with Offline Data", ICML 2023
(half of each batch from old data).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from examples.offline_rl.networks import Array, unscaled
from examples.offline_rl.td3_bc import TD3BC
from gym_replay import RecordToBuffer, ReplayBuffer, evaluate, mix, statistics

BATCH_SIZE, DISCOUNT = 256, 0.99
NOISE = 0.1
"""Of the actions that are played, in parts of the largest one."""

Batch = dict[str, Tensor]


def explored(agent: TD3BC, observation: Array) -> Array:
    """The policy's action, with noise."""
    limit = agent.policy.limit.numpy()
    noise = NOISE * limit * torch.randn(len(limit)).numpy()
    return np.clip(agent.policy.act(observation) + noise, -limit, limit)


def play(
    env: RecordToBuffer, agent: TD3BC, steps: int, seed: int, draw: Callable[[], Batch], *, random_steps: int = 0
) -> None:
    """Play so many steps, which are recorded, with one update after each."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    for step in range(steps):
        action = env.action_space.sample() if step < random_steps else explored(agent, observation)
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
        if step >= random_steps:
            agent.update(draw())


def record(env_id: str, folder: str, steps: int, seed: int) -> None:
    """Data of an agent that learns from scratch, by what it has recorded so far."""
    with RecordToBuffer(gym.make(env_id), folder, overwrite=True) as env:
        agent = TD3BC(unscaled(env.observation_space.shape[0]), env.action_space, imitates=False)
        draw = lambda: env.buffer.sample(BATCH_SIZE, discount=DISCOUNT, include_open=True)  # noqa: E731
        play(env, agent, steps, seed, draw, random_steps=min(1000, steps // 4))


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn from recorded data, then go on in the environment.")
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--folder", default="data/offline-to-online", help="buffers in it are replaced")
    parser.add_argument("--data", help="a folder of recorded data of the environment, instead of recording some")
    parser.add_argument("--record", type=int, default=100_000, help="steps that are recorded")
    parser.add_argument("--offline", type=int, default=100_000, help="updates from recorded data")
    parser.add_argument("--online", type=int, default=50_000, help="steps and updates after that")
    parser.add_argument("--episodes", type=int, default=10, help="of each evaluation")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    if args.data is None:
        args.data = f"{args.folder}/recorded"
        record(args.env, args.data, args.record, args.seed)
    with ReplayBuffer.from_folder(args.data, read_only=True) as recorded:
        print(f"recorded: {len(recorded)} episodes, {recorded.num_steps} steps", flush=True)
        print(f"recorded   mean return {np.mean(recorded.meta['episode_return'][-20:]):9.1f}  (the last 20 episodes)")
        found = statistics(recorded, ["observation"])
        env = RecordToBuffer(gym.make(args.env), f"{args.folder}/online", overwrite=True)
        agent = TD3BC(found["observation"], env.action_space)
        # What a transition is made of; recorded data may have more, such as returns to go.
        parts = {"current_fields": ("observation", "action"), "next_fields": ("observation",)}
        drawing: dict[str, Any] = {"discount": DISCOUNT, "normalize": found, **parts}
        for _ in range(args.offline):
            agent.update(recorded.sample(BATCH_SIZE, **drawing))
        returned = evaluate(agent.policy.act, args.env, episodes=args.episodes, seed=1)
        print(f"offline    mean return {returned.mean:9.1f}", flush=True)
        agent.imitates = False
        drawing |= {"refresh": "batch", "include_open": True, "seed": args.seed}
        batches = mix(recorded, env.buffer, BATCH_SIZE, ratio=0.5, **drawing)
        play(env, agent, args.online, args.seed + 1_000_000, lambda: next(batches))
        env.close()
        returned = evaluate(agent.policy.act, args.env, episodes=args.episodes, seed=1)
        print(f"online     mean return {returned.mean:9.1f}")


if __name__ == "__main__":
    main()

"""The data: an agent from its first step on, a medium policy and a final one.

python -m examples.offline_rl.record             pip install stable-baselines3 "gymnasium[classic-control,mujoco]"

For each environment, Stable-Baselines3's SAC learns inside the recorder, so that the folder `replay` holds everything
that it did. Early in that it is stopped for a moment and saved, and then at the end; the two policies are recorded,
drawing their actions, into `medium` and `final`. Everything is seeded. What is there already is kept, so that a run
that was interrupted goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import SAC

from examples.offline_rl.evaluation import evaluate
from gym_replay import RecordToBuffer, ReplayBuffer, collect, fill_sb3, returns_to_go


@dataclass(frozen=True)
class Recording:
    """What is recorded of an environment.

    Args:
        env_id: the environment.
        steps: for which the agent learns.
        medium: after which of them the medium policy is saved.
        played: steps of the medium policy, and of the final one.
        width: of the agent's hidden layers.
        settings: of SAC, where they are not its defaults.
    """

    env_id: str
    steps: int
    medium: int
    played: int
    width: int
    settings: dict[str, Any]

    def shortened(self, steps: int | None) -> Recording:
        """With so many steps of learning, and of the rest in proportion; None for all."""
        if steps is None:
            return self
        medium, played = (count * steps // self.steps for count in (self.medium, self.played))
        return replace(self, steps=steps, medium=medium, played=played)


RECORDINGS = {
    "pendulum": Recording("Pendulum-v1", 10_000, 3_500, 10_000, 256, {"learning_rate": 1e-3, "learning_starts": 1_000}),
    "hopper": Recording("Hopper-v5", 200_000, 130_000, 30_000, 128, {"learning_starts": 5_000}),
    "halfcheetah": Recording("HalfCheetah-v5", 100_000, 25_000, 30_000, 128, {"learning_starts": 5_000}),
}


def begun(of: Recording, folder: Path, seed: int) -> SAC:
    """An agent that plays in the recorder: one that goes on where a run was interrupted, or a new one."""
    saved, replay = folder / "agent.zip", folder / "replay"
    env = RecordToBuffer(gym.make(of.env_id), replay, overwrite=not saved.exists())
    if saved.exists():
        model = SAC.load(saved, env=env, device="cpu")
        fill_sb3(model.replay_buffer, ReplayBuffer.from_folder(replay, read_only=True))
        model.set_random_seed(seed + model.num_timesteps)
        return model
    networks = {"net_arch": [of.width, of.width], "optimizer_kwargs": {"fused": True}}
    return SAC("MlpPolicy", env, seed=seed, device="cpu", policy_kwargs=networks, **of.settings)


def learn(of: Recording, folder: Path, seed: int) -> None:
    """Let SAC learn in the recorder, and save the medium policy and the final one."""
    model = begun(of, folder, seed)
    for name, steps in (("medium", of.medium), ("final", of.steps)):
        if model.num_timesteps < steps:
            model.learn(steps - model.num_timesteps, reset_num_timesteps=False)
            for saved in (name, "agent"):
                model.save(folder / f"{saved}.zip")
    model.env.close()


def play(of: Recording, folder: Path, name: str, seed: int) -> None:
    """Record a saved policy, which draws its actions."""
    policy = f"sb3:SAC:{folder / name}.zip"
    collect(of.env_id, folder / name, policy=policy, steps=of.played, deterministic=False, seed=seed, progress=False)


def add_returns_to_go(folder: Path) -> None:
    """Give the buffer the field that the Decision Transformer is asked with."""
    with ReplayBuffer.from_folder(folder) as buffer:
        if "return_to_go" not in buffer.fieldnames:
            buffer.add_field("return_to_go", "float64", returns_to_go(buffer))


def record(name: str, of: Recording, folder: Path, seed: int) -> None:
    """Everything of one environment that is not there yet."""
    reference = folder / "reference.json"
    if reference.exists():  # it is written last
        return
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    learn(of, folder, seed)
    print(f"{name}: {of.steps} steps of SAC, {time.perf_counter() - begin:.0f} s of them now", flush=True)
    for number, policy in enumerate(("medium", "final")):
        play(of, folder, policy, seed + 1 + number)
    for part in ("replay", "medium", "final"):
        add_returns_to_go(folder / part)
        returns = np.asarray(ReplayBuffer.from_folder(folder / part, read_only=True).meta["episode_return"])
        print(f"{name}/{part}: {len(returns)} episodes, mean return {returns.mean():.1f}", flush=True)
    found = {
        kind: evaluate(policy, of.env_id, episodes=20, seed=seed + 10_000).mean
        for kind, policy in (("random", "random"), ("expert", f"sb3:SAC:{folder / 'final'}.zip"))
    }
    reference.write_text(json.dumps(found) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Record data to learn from.")
    parser.add_argument("--folder", type=Path, default=Path("data/offline-rl"))
    parser.add_argument("--environments", nargs="+", choices=RECORDINGS, default=list(RECORDINGS))
    parser.add_argument("--short", action="store_true", help="Pendulum alone")
    parser.add_argument("--sac-steps", type=int, help="of the agent, instead of those of each environment")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in ["pendulum"] if args.short else args.environments:
        record(name, RECORDINGS[name].shortened(args.sac_steps), args.folder / name, args.seed)


if __name__ == "__main__":
    main()

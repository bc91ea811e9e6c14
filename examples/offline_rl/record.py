"""The data: an agent from its first step on, a medium policy and a final one.

python -m examples.offline_rl.record             pip install stable-baselines3 "gymnasium[classic-control,mujoco]"

For each environment, Stable-Baselines3's SAC learns inside the recorder, so that the folder `replay` holds everything
that it did. Early in that it is stopped for a moment and saved, and then at the end; the two policies are recorded,
drawing their actions, into `medium` and `final`. Everything is seeded. What is there already is kept, so that a run
that was interrupted goes on with what is missing.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import SAC

from gym_replay import RecordToBuffer, ReferenceReturns, ReplayBuffer, collect, evaluate, fill_sb3, returns_to_go

EVALUATION: dict[str, Any] = {"episodes": 20, "num_envs": 10, "progress": False}


@dataclass(frozen=True)
class Recording:
    """What is recorded of an environment.

    Args:
        env_id: the environment.
        steps: for which the agent learns.
        medium: after which of them the medium policy is saved.
        played: steps of the medium policy, and of the final one.
        width: of the agent's hidden layers.
        expert: the return that is a score of 100; None for that of the final policy.
        settings: of SAC, where they are not its defaults.
    """

    env_id: str
    steps: int
    medium: int
    played: int
    width: int
    expert: float | None
    settings: dict[str, Any]

    def shortened(self, steps: int | None) -> Recording:
        """With so many steps of learning, and of the rest in proportion; None for all."""
        if steps is None:
            return self
        medium, played = (count * steps // self.steps for count in (self.medium, self.played))
        return replace(self, steps=steps, medium=medium, played=played)


SLOW_START = {"learning_starts": 5_000}
RECORDINGS = {
    "pendulum": Recording(
        "Pendulum-v1", 10_000, 3_500, 10_000, 256, None, {"learning_rate": 1e-3, "learning_starts": 1_000}
    ),
    "hopper": Recording("Hopper-v5", 200_000, 130_000, 30_000, 128, 3234.3, SLOW_START),
    "halfcheetah": Recording("HalfCheetah-v5", 100_000, 25_000, 30_000, 128, 12135.0, SLOW_START),
}
"""The experts of Hopper and HalfCheetah are D4RL's (arXiv:2004.07219), which played older versions of them."""


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


def complete(folder: Path, reference: ReferenceReturns) -> None:
    """Give a recording what it takes to ask a Decision Transformer for a return, and to make a score of one."""
    with ReplayBuffer.from_folder(folder) as buffer:
        if "return_to_go" not in buffer.fieldnames:
            buffer.add_field("return_to_go", "float64", returns_to_go(buffer))
        buffer.set_reference_returns(reference)
        print(f"{folder}: {len(buffer)} episodes, mean return {buffer.meta['episode_return'].mean():.1f}", flush=True)


def is_complete(folder: Path) -> bool:
    """Whether nothing is missing in a recording."""
    if not (folder / "metadata.json").exists():
        return False
    return ReplayBuffer.from_folder(folder, read_only=True).reference_returns is not None


def record(name: str, of: Recording, folder: Path, seed: int) -> None:
    """Everything of one environment that is not there yet."""
    parts = [folder / part for part in ("replay", "medium", "final")]
    if all(map(is_complete, parts)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    learn(of, folder, seed)
    print(f"{name}: {of.steps} steps of SAC, the last of them in {time.perf_counter() - begin:.0f} s", flush=True)
    for number, policy in enumerate(("medium", "final")):
        play(of, folder, policy, seed + 1 + number)
    final = f"sb3:SAC:{folder / 'final'}.zip"
    expert = of.expert or evaluate(final, of.env_id, **EVALUATION, seed=seed + 10_000).mean
    random = evaluate("random", of.env_id, **EVALUATION, seed=seed + 10_000).mean
    for part in parts:
        complete(part, ReferenceReturns(random=random, expert=expert))


def main() -> None:
    parser = argparse.ArgumentParser(description="Record data to learn from.")
    parser.add_argument("--folder", type=Path, default=Path("data/offline-rl"))
    parser.add_argument("--environments", nargs="+", choices=RECORDINGS, default=list(RECORDINGS))
    parser.add_argument("--short", action="store_true", help="Pendulum alone")
    parser.add_argument("--sac-steps", type=int, help="of the agent, instead of those of each environment")
    parser.add_argument("--played", type=int, help="steps of the saved policies, instead of those of each environment")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in ["pendulum"] if args.short else args.environments:
        of = RECORDINGS[name].shortened(args.sac_steps)
        record(name, replace(of, played=args.played or of.played), args.folder / name, args.seed)


if __name__ == "__main__":
    main()

"""Train every method on every recording, and evaluate it on fresh seeds.

python -m examples.offline_rl --short            Pendulum, in minutes
python -m examples.offline_rl                    all three environments, in hours; a run that is there is not repeated

What is reached goes to a file for each run; at the end come the table, the plot, and an error where the best method of
a recording did not come up to the policy that was recorded.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from examples.offline_rl import bc, decision_transformer, iql, results, td3_bc
from examples.offline_rl.decision_transformer import LastReward, Player
from examples.offline_rl.record import RECORDINGS, record
from gym_replay import ConcatReplayBuffer, ReplayBuffer, evaluate, normalized_score

TRAIN: dict[str, Callable[..., Any]] = {
    "bc": bc.train,
    "td3_bc": td3_bc.train,
    "iql": iql.train,
    "decision_transformer": decision_transformer.train,
}
DATASETS = {"replay": ("replay",), "medium": ("medium",), "mixed": ("medium", "final")}
"""Which folders are learned from together."""
FRESH_SEED = 1_000_000
TOLERANCE = 10.0
"""Of the score: by how much the best method may stay below the policy that was recorded."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Args:
        environments: names of :data:`RECORDINGS`.
        seeds: how many trainings of each.
        steps: gradient steps of TD3+BC and IQL by environment; those of the others are in proportion.
        settings: of a method, where they are not its defaults.
        episodes: for the evaluation.
    """

    environments: tuple[str, ...]
    seeds: int
    steps: dict[str, int]
    settings: dict[str, dict[str, Any]]
    episodes: int = 10


NARROW = {method: {"hidden": 128} for method in ("bc", "td3_bc", "iql")}
"""Half as wide as in the papers: what 2 cores can do."""
LONG = Plan(tuple(RECORDINGS), 3, {"pendulum": 5_000, "hopper": 10_000, "halfcheetah": 10_000}, NARROW)
SHORT = Plan(("pendulum",), 1, {"pendulum": 5_000}, NARROW)
PORTIONS = {"bc": 0.5, "td3_bc": 1.0, "iql": 1.0, "decision_transformer": 0.2}
"""What part of the gradient steps each method makes: a step of the last one takes five times as long."""


def opened(folder: Path, dataset: str) -> ReplayBuffer | ConcatReplayBuffer:
    """A recording, open for reading; several folders as one."""
    parts = [ReplayBuffer.from_folder(folder / part, read_only=True) for part in DATASETS[dataset]]
    return parts[0] if len(parts) == 1 else ConcatReplayBuffer(parts)


def mean_return(policy: Any, env_id: str, episodes: int) -> float:
    """What a policy reaches on seeds that nothing was recorded with."""
    options: dict[str, Any] = {"episodes": episodes, "seed": FRESH_SEED, "num_envs": 10, "progress": False}
    if isinstance(policy, Player):
        return float(evaluate(policy, lambda: LastReward(gym.make(env_id)), **options).mean)
    return float(evaluate(policy.act, env_id, **options).mean)


def train(name: str, dataset: str, method: str, seed: int, plan: Plan, folder: Path) -> results.Run:
    """One training and its evaluation."""
    buffer, steps = opened(folder, dataset), int(plan.steps[name] * PORTIONS[method])
    begin = time.perf_counter()
    policy = TRAIN[method](buffer, steps, seed, **plan.settings.get(method, {}))
    seconds = time.perf_counter() - begin
    mean = mean_return(policy, RECORDINGS[name].env_id, plan.episodes)
    return results.Run(name, dataset, method, seed, steps, seconds, mean, normalized_score(mean, buffer))


def behaviour(name: str, dataset: str, folder: Path) -> results.Run:
    """What the recorded policy reached, as if it were a run."""
    buffer = opened(folder, dataset)
    mean = float(np.mean(buffer.meta["episode_return"]))
    return results.Run(name, dataset, results.BEHAVIOUR, 0, 0, 0.0, mean, normalized_score(mean, buffer))


def runs_of(plan: Plan, methods: list[str]) -> Iterator[tuple[str, str, str, int]]:
    """All runs: first those of one seed, so that an early end leaves a whole table."""
    for seed in range(plan.seeds):
        for name in plan.environments:
            for dataset in DATASETS:
                for method in methods:
                    yield name, dataset, method, seed


def failures(runs: list[results.Run]) -> Iterator[str]:
    """The recordings of which no method learned enough."""
    for dataset in results.datasets(runs):
        (recorded,) = results.scores(runs, dataset, results.BEHAVIOUR)
        reached = {m: np.mean(found) for m in TRAIN if (found := results.scores(runs, dataset, m))}
        if reached and max(reached.values()) < recorded - TOLERANCE:
            yield f"{' '.join(dataset)}: the best score is {max(reached.values()):.0f}, the recorded one {recorded:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn from recordings, and see what came of it.")
    parser.add_argument("--folder", type=Path, default=Path("data/offline-rl"), help="what is not there is recorded")
    parser.add_argument("--results", type=Path, help="a file for each run (default: results in the folder)")
    parser.add_argument("--short", action="store_true", help="Pendulum alone, one seed, few steps")
    parser.add_argument("--methods", nargs="+", choices=TRAIN, default=list(TRAIN))
    parser.add_argument("--seeds", type=int, help="how many trainings of each (default: 3, with --short 1)")
    parser.add_argument("--gradient-steps", type=int, help="of TD3+BC and IQL, and of the others in proportion")
    parser.add_argument("--sac-steps", type=int, help="as for examples.offline_rl.record")
    parser.add_argument("--share", default="0/1", help="1/3: of three processes that share the work, the second")
    args = parser.parse_args()
    torch.set_num_threads(1)
    plan = SHORT if args.short else LONG
    plan = replace(plan, seeds=args.seeds or plan.seeds)
    if args.gradient_steps is not None:
        plan = replace(plan, steps=dict.fromkeys(plan.steps, args.gradient_steps))
    folder = args.results or args.folder / "results"
    share, shares = map(int, args.share.split("/"))

    for name in plan.environments:
        record(name, RECORDINGS[name].shortened(args.sac_steps), args.folder / name, seed=0)
        for dataset in DATASETS:
            behaviour(name, dataset, args.folder / name).save(folder)
    made = 0
    for number, (name, dataset, method, seed) in enumerate(runs_of(plan, args.methods)):
        there = results.file_of(folder, name, dataset, method, seed).exists()
        if number // len(args.methods) % shares == share and not there:
            run = train(name, dataset, method, seed, plan, args.folder / name)
            run.save(folder)
            made += 1
            print(
                f"{name} {dataset} {method} {seed}: return {run.mean:.0f}, score {run.score:.0f}, {run.seconds:.0f} s",
                flush=True,
            )

    runs = results.load(folder)
    print(f"{made} runs; all that are there:")
    print("\n".join(results.lines(runs)))
    try:
        results.plot(runs, folder / "offline_rl.png")
    except ImportError as error:
        print(f"no plot: {error}; pip install matplotlib")
    if found := list(failures(runs)):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()

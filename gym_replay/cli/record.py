"""``gym-replay record``: collect episodes of an environment and a policy into a folder."""

from __future__ import annotations

import argparse
from typing import Any

from gym_replay.cli.policies import CALLING, ENV, ENV_KWARGS, EPISODE, POLICY, QUIET, import_for, reported
from gym_replay.cli.verbs import CODEC, RECORD_INFO, REPLACE, keywords, option, verb


@verb(
    "record",
    "collect episodes of an environment and a policy",
    "Collect episodes of an environment and a policy into a folder, until it holds as many as asked for. --episodes "
    "and --steps are totals of the folder: the same command, run again, records what is missing. Ctrl-C ends after the "
    "step under way, with every finished episode in the folder.",
    [
        "gym-replay record CartPole-v1 data/random --episodes 1000",
        "gym-replay record CartPole-v1 data/ppo --policy sb3:PPO:model.zip --steps 100000",
        "gym-replay record my_envs:Maze-v0 data/maze --policy my_policies:expert \\\n      --episodes 500 "
        "--env-kwargs '{\"size\": 9}'",
        "gym-replay record ale_py:ALE/Pong-v5 data/pong --episodes 10 --codec zstd",
        "gym-replay record HalfCheetah-v5 data/cheetah --episodes 10000 --ray-workers 16",
    ],
    ENV,
    option("folder", metavar="FOLDER", help="where the episodes go"),
    POLICY,
    option("--episodes", type=int, metavar="N", help="how many episodes in total"),
    option("--steps", type=int, metavar="N", help="how many steps in total, reached by whole episodes"),
    *CALLING,
    option(
        "--vectorization", choices=("sync", "async", "native"), default="sync", help="how several environments are run"
    ),
    ENV_KWARGS,
    *EPISODE,
    option(
        "--reward-shape",
        type=int,
        nargs="*",
        metavar="N",
        help="shape of a reward of several values; nothing for one number (default: that of the first reward)",
    ),
    option("--policy-name", metavar="NAME", help="identify the policy by this name alone, not by its code"),
    CODEC,
    RECORD_INFO,
    option("--ray-workers", dest="num_workers", type=int, metavar="W", help="play with Ray, in so many workers"),
    REPLACE,
    QUIET,
)
def record(args: argparse.Namespace) -> int:
    """Collect; what ends it early is raised again after a report."""
    # What this needs takes a while to import: the other verbs, and --help, do without.
    from gym_replay.collecting.collect import collect
    from gym_replay.files.folders import folder_of

    folder = folder_of(args.folder)
    import_for(args.env, args.policy)
    engine: Any = "local" if args.num_workers is None else "ray"
    with reported(args, folder):
        collect(args.env, folder, engine=engine, **keywords(args, "env", "folder")).close()
    return 0

"""``gym-replay record``: collect episodes of an environment and a policy into a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gym_replay.cli.output import write_json
from gym_replay.cli.policies import CALLING, ENV, ENV_KWARGS, EPISODE, POLICY, QUIET, import_for
from gym_replay.cli.verbs import CODEC, keywords, option, verb
from gym_replay.errors import BufferLockedError, ConfigMismatchError, FieldError, MissingExtraError, printable


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
        "gym-replay record ALE/Pong-v5 data/pong --episodes 10 --codec zstd",
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
    option("--record-info", action="store_true", help="record the numbers and arrays in the infos too"),
    option("--ray-workers", dest="num_workers", type=int, metavar="W", help="play with Ray, in so many workers"),
    option("--overwrite", action="store_true", help="replace the buffer that is in the folder"),
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
    try:
        collect(args.env, folder, engine=engine, **keywords(args, "env", "folder")).close()
    except KeyboardInterrupt:
        _report(args, folder, "interrupted", "stopped; the same command goes on from here")
        raise
    except Exception as error:
        has_begun = not isinstance(error, (ConfigMismatchError, FieldError, BufferLockedError, MissingExtraError))
        if has_begun and _folders_in(folder):
            _report(args, folder, "failed", "stopped; what had ended by then is in the folder")
        raise
    _report(args, folder, "complete", "complete")
    return 0


def _report(args: argparse.Namespace, folder: Path, status: str, words: str) -> None:
    """Say what there is: a line on stderr, and JSON on stdout where it is asked for."""
    from gym_replay.buffer.replay_buffer import ReplayBuffer
    from gym_replay.collecting.folder import summed_returns
    from gym_replay.files.folders import bytes_beneath

    episodes = steps = 0
    returns = 0.0
    for each in _folders_in(folder):
        with ReplayBuffer.from_folder(each, read_only=True) as buffer:
            episodes, steps = episodes + len(buffer), steps + buffer.num_steps
            returns += summed_returns(buffer)
    mean = returns / episodes if episodes else None
    if args.json:
        counts = {"num_episodes": episodes, "num_steps": steps, "return_mean": mean}
        write_json({"status": status, "folder": folder, **counts, "bytes": bytes_beneath(folder, on_disk=True)})
    ending = "" if mean is None else f", mean return {mean:.4g}"
    print(printable(f"{folder}: {words}: {episodes} episodes, {steps} steps{ending}"), file=sys.stderr)


def _folders_in(folder: Path) -> list[Path]:
    """The buffers that are there by now: the folder itself, or one of each worker."""
    from gym_replay.buffer.door import has_buffer
    from gym_replay.collecting.folder import shards_of

    return [folder] if has_buffer(folder) else shards_of(folder)

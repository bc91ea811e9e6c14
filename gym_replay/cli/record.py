"""``gym-replay record``: collect episodes of an environment and a policy into a folder."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from gym_replay.cli import INTERRUPTED, OK
from gym_replay.cli.options import add_verb
from gym_replay.cli.output import write_json
from gym_replay.errors import printable

_DESCRIPTION = (
    "Collect episodes of an environment and a policy into a folder, until it holds as many as asked for. The numbers "
    "of episodes and steps are totals: the same command again completes what is there. Ctrl-C ends after the step "
    "under way, with every finished episode in the folder."
)

_EXAMPLES = (
    "gym-replay record CartPole-v1 data/random --episodes 1000",
    "gym-replay record CartPole-v1 data/ppo --policy sb3:PPO:model.zip --steps 100000",
    "gym-replay record my_envs:Maze-v0 data/maze --policy my_policies:expert \\\n      --episodes 500 "
    "--env-kwargs '{\"size\": 9}'",
    "gym-replay record HalfCheetah-v5 data/cheetah --episodes 10000 --ray-workers 16",
)


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command's."""
    summary = "collect episodes of an environment and a policy"
    verb = add_verb(verbs, "record", run, summary, _DESCRIPTION, _EXAMPLES)
    verb.add_argument("env", metavar="ENV", help="environment id; 'module:id' imports the module that registers it")
    verb.add_argument("folder", metavar="FOLDER", help="where the episodes go")
    verb.add_argument(
        "--policy",
        default="random",
        help="'random', 'module:name' (a function from observations to actions, an object with predict, or a class of "
        "either), or 'sb3:ALGO:PATH'; the last two run the code in the module or the model's file (default: random)",
    )
    verb.add_argument("--episodes", type=int, metavar="N", help="how many episodes in total")
    verb.add_argument("--steps", type=int, metavar="N", help="how many steps in total, reached by whole episodes")
    verb.add_argument("--num-envs", type=int, default=1, metavar="K", help="environments at once (default: 1)")
    verb.add_argument("--seed", type=int, default=0, metavar="S", help="of environment and policy (default: 0)")
    verb.add_argument(
        "--vectorization", choices=("sync", "async", "native"), default="sync", help="how several environments are run"
    )
    verb.add_argument("--env-kwargs", type=_json_object, metavar="JSON", help="arguments of the environment")
    verb.add_argument("--max-episode-steps", type=int, metavar="N", help="truncate episodes there")
    verb.add_argument("--fresh-envs", action="store_true", help="make the environment anew for each episode")
    verb.add_argument("--options", type=_json_object, metavar="JSON", help="options of each reset")
    verb.add_argument(
        "--reward-shape",
        type=int,
        nargs="*",
        metavar="N",
        help="shape of a reward of several values; nothing for one number (default: that of the first reward)",
    )
    verb.add_argument("--stochastic", action="store_true", help="let predict draw its actions at random")
    verb.add_argument("--record-info", action="store_true", help="record the numbers and arrays in the infos too")
    verb.add_argument("--ray-workers", type=int, metavar="W", help="play with Ray, in so many workers")
    verb.add_argument("--overwrite", action="store_true", help="replace the buffer that is in the folder")
    verb.add_argument("--quiet", action="store_true", help="show no bar")


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object, such as '{\"size\": 9}'")
    return value


def run(args: argparse.Namespace) -> int:
    """Collect; the status is that of an interrupt after Ctrl-C."""
    # What this needs takes a while to import: the other verbs, and --help, do without.
    from gym_replay.collecting.collect import collect
    from gym_replay.files.folders import folder_of

    folder = folder_of(args.folder)

    if ":" in args.env + args.policy and not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())  # for module:name, as `python -m` has it; a model may need its module, too
    names = (
        "policy",
        "episodes",
        "steps",
        "num_envs",
        "seed",
        "vectorization",
        "env_kwargs",
        "max_episode_steps",
        "fresh_envs",
        "reward_shape",
    )
    options: dict[str, Any] = {name: getattr(args, name) for name in (*names, "options", "record_info", "overwrite")}
    options |= {"deterministic": not args.stochastic, "progress": not args.quiet}
    if args.ray_workers is not None:
        options |= {"engine": "ray", "num_workers": args.ray_workers}
    try:
        with collect(args.env, folder, **options):
            pass
    except KeyboardInterrupt:
        _report(args, folder, "interrupted", "stopped; the same command goes on from here")
        return INTERRUPTED
    except Exception:
        if _folders_in(folder):
            _report(args, folder, "failed", "stopped; what had ended by then is in the folder")
        raise
    _report(args, folder, "complete", "complete")
    return OK


def _report(args: argparse.Namespace, folder: Path, status: str, words: str) -> None:
    """Say what there is: a line on stderr, or JSON on stdout."""
    from gym_replay.files.folders import bytes_beneath

    facts = {
        "status": status,
        "folder": str(folder),
        **_count(folder),
        "bytes": bytes_beneath(folder, on_disk=True),
    }
    if args.json:
        write_json(facts)
    returns = "" if facts["return_mean"] is None else f", mean return {facts['return_mean']:.4g}"
    message = f"{folder}: {words}: {facts['num_episodes']} episodes, {facts['num_steps']} steps{returns}"
    print(printable(message), file=sys.stderr)


def _count(folder: Path) -> dict[str, Any]:
    """Episodes, steps and their mean return; zeros where nothing was created yet."""
    from gym_replay.buffer.replay_buffer import ReplayBuffer
    from gym_replay.collecting.target import returns_in

    episodes = steps = 0
    returns: list[float] = []
    for each in _folders_in(folder):
        with ReplayBuffer.from_folder(each, read_only=True) as buffer:
            episodes, steps = episodes + len(buffer), steps + buffer.num_steps
            returns += returns_in(buffer)
    mean = sum(returns) / len(returns) if returns else None
    return {"num_episodes": episodes, "num_steps": steps, "return_mean": mean}


def _folders_in(folder: Path) -> list[Path]:
    """The buffers that are there by now: the folder itself, or one of each worker."""
    from gym_replay.buffer.door import has_buffer
    from gym_replay.collecting.target import shards_of

    return [folder] if has_buffer(folder) else shards_of(folder)

"""What verbs share that play a policy in an environment: options, what is imported, and what they say at the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gym_replay.cli.output import write_json
from gym_replay.cli.verbs import import_from_here, json_object, option
from gym_replay.errors import BufferLockedError, ConfigMismatchError, FieldError, MissingExtraError, printable
from gym_replay.files.folders import bytes_beneath

POLICIES = (
    "'random', 'module:name' (a function from observations to actions, an object with predict, or a class of either), "
    "or 'sb3:ALGO:PATH'; the last two run the code in the module or the model's file"
)
"""What an option that takes a policy says of it."""

ENV = option("env", metavar="ENV", help="environment id; 'module:id' imports the module that registers it")
POLICY = option("--policy", default="random", help=f"{POLICIES} (default: random)")
ENV_KWARGS = option("--env-kwargs", type=json_object, metavar="JSON", help="arguments of the environment")
STOCHASTIC = option(
    "--stochastic", dest="deterministic", action="store_false", help="let predict draw its actions at random"
)
MAX_EPISODE_STEPS = option("--max-episode-steps", type=int, metavar="N", help="truncate episodes there")
RESET_OPTIONS = option("--options", type=json_object, metavar="JSON", help="options of each reset")
QUIET = option("--quiet", dest="progress", action="store_false", help="show no bar")

CALLING = (
    option("--num-envs", type=int, default=1, metavar="K", help="environments at once (default: 1)"),
    option("--seed", type=int, default=0, metavar="S", help="of environment and policy (default: 0)"),
    STOCHASTIC,
    option(
        "--batched",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="call the policy with a batch of the observations of all environments, or of each by itself "
        "(default: a batch where there are several)",
    ),
)
"""How many environments there are, and how a policy is called."""

EPISODE = (
    MAX_EPISODE_STEPS,
    option("--fresh-envs", action="store_true", help="make the environment anew for each episode"),
    RESET_OPTIONS,
)
"""What an episode is."""


def import_for(*names: str | None) -> None:
    """Where one of these names is in a module (``module:name``), let modules of the folder that one is in be found."""
    if any(name is not None and ":" in name for name in names):  # a model may need its module, too
        import_from_here()


@contextmanager
def reported(args: argparse.Namespace, folder: Path) -> Iterator[None]:
    """A context in which episodes are recorded into a folder; at its end it is said what there is.

    That is a line on stderr, and JSON on stdout where it is asked for. What ends it early is raised again after that.
    """
    try:
        yield
    except KeyboardInterrupt:
        _report(args, folder, "interrupted", "stopped; the same command goes on from here")
        raise
    except Exception as error:
        has_begun = not isinstance(error, (ConfigMismatchError, FieldError, BufferLockedError, MissingExtraError))
        if has_begun and _folders_in(folder):
            _report(args, folder, "failed", "stopped; what had ended by then is in the folder")
        raise
    _report(args, folder, "complete", "complete")


def _report(args: argparse.Namespace, folder: Path, status: str, words: str) -> None:
    from gym_replay.buffer.replay_buffer import ReplayBuffer
    from gym_replay.collecting.folder import summed_returns

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

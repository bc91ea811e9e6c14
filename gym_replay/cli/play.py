"""``gym-replay play``: a person plays an environment, and every episode is recorded."""

from __future__ import annotations

import argparse
import json
from typing import Any

from gym_replay.cli.policies import (
    ENV,
    ENV_KWARGS,
    MAX_EPISODE_STEPS,
    RESET_OPTIONS,
    STOCHASTIC,
    import_for,
    reported,
)
from gym_replay.cli.verbs import (
    CODEC,
    RECORD_INFO,
    REPLACE,
    import_modules,
    importing,
    json_object,
    keywords,
    option,
    verb,
)


def _json_value(text: str) -> Any:
    """A value as JSON; a word as it is."""
    try:
        return json.loads(text)
    except ValueError:
        if text == "last":
            return text
        raise argparse.ArgumentTypeError("expected an action as JSON, or 'last'") from None


@verb(
    "play",
    "play an environment yourself, alone or in turns with a policy, and record it",
    "Opens a window and records what you play with keyboard or gamepad; the window shows the keys. With --policy the "
    "policy acts until you press a key, and each step says who acted and what the policy would have done. Closing the "
    "window or Ctrl-C ends it, with every finished episode in the folder. Needs the extra: "
    "pip install 'gym-replay[play]'.",
    [
        "gym-replay play CartPole-v1 data/mine",
        "gym-replay play ALE/Pong-v5 data/pong --import ale_py --codec zstd --episodes 20 --player Ada",
        "gym-replay play CarRacing-v3 data/car --policy sb3:PPO:model.zip",
        'gym-replay play Pendulum-v1 data/swing --keys \'{"left": {"0": -2}, "right": {"0": 2}}\' --ramp 0.5',
    ],
    ENV,
    option("folder", metavar="FOLDER", help="where the episodes go"),
    option("--policy", help="acts until you do: 'random', 'module:name' or 'sb3:ALGO:PATH', as for record"),
    option("--player", default="person", metavar="NAME", help="who plays, kept with each episode (default: person)"),
    option("--episodes", type=int, metavar="N", help="end when the folder holds so many (default: when you quit)"),
    option("--seed", type=int, metavar="S", help="of the first episode, and one more for each that follows"),
    option("--keys", type=json_object, metavar="JSON", help="actions by key, or targets of their parts by key"),
    option("--idle", type=_json_value, metavar="ACTION", help="the action while no key is held, or 'last'"),
    option(
        "--wait",
        dest="waits",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let the environment stand still until a key is pressed (default: as is known for it)",
    ),
    option("--fps", type=float, metavar="N", help="steps a second at most (default: the environment's rate)"),
    option(
        "--ramp",
        type=float,
        default=0.25,
        metavar="S",
        help="seconds in which a key moves a continuous action to its end (default: 0.25)",
    ),
    option("--zoom", type=float, metavar="N", help="pixels of the screen for one of the frame"),
    option("--no-ask", dest="ask", action="store_false", help="keep each episode that ends, without a question"),
    option(
        "--discard-cut",
        dest="on_incomplete",
        action="store_const",
        const="discard",
        default="keep",
        help="forget the episode in the middle of which you quit",
    ),
    ENV_KWARGS,
    MAX_EPISODE_STEPS,
    RESET_OPTIONS,
    STOCHASTIC,
    CODEC,
    RECORD_INFO,
    REPLACE,
    importing(),
)
def play(args: argparse.Namespace) -> int:
    """Play; what ends it early is raised again after a report."""
    from gym_replay.files.folders import folder_of
    from gym_replay.playing.play import play as play_here

    folder = folder_of(args.folder)
    import_modules(args.modules)
    import_for(args.env, args.policy)
    with reported(args, folder):
        play_here(args.env, folder, **keywords(args, "env", "folder", "modules")).close()
    return 0

"""``gym-replay reobserve``: recorded episodes executed again, and recorded with other observations."""

from __future__ import annotations

import argparse

from gym_replay.cli import output
from gym_replay.cli.policies import ENV_KWARGS, QUIET, import_for
from gym_replay.cli.verbs import (
    CHOICE,
    CODEC,
    FOLDER,
    OUT,
    REPLACE,
    TRUST,
    import_modules,
    importing,
    keywords,
    opened,
    option,
    verb,
)


@verb(
    "reobserve",
    "execute episodes again, and record them with other observations",
    "Executes recorded episodes again, each from its seed or generator, and records them with frames, other wrappers, "
    "or another environment that takes the same actions. Rewards, flags and lengths must come out as they were "
    "recorded; other episodes are named and left out, and the exit status is 1 then. The same command, run again, goes "
    "on where it was.",
    [
        "gym-replay reobserve data/cheetah data/frames --frames only --codec zstd",
        'gym-replay reobserve data/pong data/rgb --env-kwargs \'{"obs_type": "rgb"}\' --workers 8',
        "gym-replay reobserve data/maze data/grey --import my_envs --wrapper my_wrappers:grey --where 'length > 10'",
    ],
    FOLDER,
    OUT,
    option("--frames", choices=("only", "beside"), help="observe what is rendered, alone or beside the observation"),
    option(
        "--wrapper",
        dest="wrappers",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="a wrapper, or a function that puts one around an environment; may be given several times, the innermost "
        "first",
    ),
    option("--env", metavar="ENV", help="an environment id, instead of the recorded one"),
    ENV_KWARGS,
    *CHOICE,
    CODEC,
    option("--record-info", action="store_true", default=None, help="record all of the infos, not those of the source"),
    REPLACE,
    option("--workers", dest="num_workers", type=int, default=1, metavar="N", help="processes (default: 1)"),
    importing(),
    TRUST,
    QUIET,
)
def reobserve(args: argparse.Namespace) -> int:
    """Observe episodes again."""
    from gym_replay.replaying import reobserve as reobserving

    import_for(args.env, *args.wrappers)
    import_modules(args.modules)
    with opened(args) as (source, args.episodes):
        found = reobserving.reobserve(source, args.out, **keywords(args, "folder", "out", "modules", "where"))
    with found.buffer as buffer:
        episodes, steps = len(buffer), buffer.num_steps
    counts = {"num_episodes": episodes, "num_steps": steps, "restored": found.restored}
    document = {"folder": args.out, **counts, "left_out": [vars(each) for each in found.left_out]}
    restored = f", {len(found.restored)} restored from states" if found.restored else ""
    lines = [f"left out: {each}" for each in found.left_out]
    lines.append(f"{args.out}: {episodes} episodes, {steps} steps{restored}; {len(found.left_out)} left out")
    output.show(args, document, lines)
    return 1 if found.left_out else 0

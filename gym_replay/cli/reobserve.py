"""``gym-replay reobserve``: recorded episodes executed again, and recorded with other observations."""

from __future__ import annotations

import argparse

from gym_replay.cli import output
from gym_replay.cli.policies import ENV_KWARGS, QUIET, import_for
from gym_replay.cli.verbs import CHOICE, CODEC, FOLDER, OUT, import_modules, importing, keywords, option, verb
from gym_replay.errors import printable


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
    option("--workers", dest="num_workers", type=int, default=1, metavar="N", help="processes (default: 1)"),
    importing("; may be given several times"),
    option("--trust", action="store_true", help="hand the recorded arguments and reset options on, whatever they are"),
    QUIET,
)
def reobserve(args: argparse.Namespace) -> int:
    """Observe episodes again."""
    from gym_replay.buffer.concat import open_source
    from gym_replay.cli.verbs import parse_indices
    from gym_replay.replaying import reobserve as reobserving

    import_for(args.env, *args.wrappers)
    import_modules(args.modules)
    with open_source(args.folder) as source:
        if args.episodes is not None:
            args.episodes = sorted(set(parse_indices(args.episodes, len(source))))
        found = reobserving.reobserve(source, args.out, **keywords(args, "folder", "out", "modules"))
    with found.buffer as buffer:
        episodes, steps = len(buffer), buffer.num_steps
    if args.json:
        left_out = [vars(each) for each in found.left_out]
        counts = {"num_episodes": episodes, "num_steps": steps, "restored": found.restored}
        output.write_json({"folder": args.out, **counts, "left_out": left_out})
    else:
        for each in found.left_out:
            print(printable(f"left out: {each}"))
        restored = f", {len(found.restored)} restored from states" if found.restored else ""
        print(printable(f"{args.out}: {episodes} episodes, {steps} steps{restored}; {len(found.left_out)} left out"))
    return 1 if found.left_out else 0

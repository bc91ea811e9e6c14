"""``gym-replay select``: chosen episodes copied into a new folder."""

from __future__ import annotations

import argparse

from gym_replay.cli.copies import add_overwrite, show_made
from gym_replay.cli.options import SOURCE_HELP, add_choice, add_verb, chosen, shows_bars


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "select",
        run,
        "copy chosen episodes into a new folder",
        "Copies the episodes that meet all conditions, with all meta fields. Without conditions it copies all, and "
        "leaves behind what deleted and evicted episodes take.",
        [
            "gym-replay select data/all data/good --where 'episode_return > 300 and not truncated'",
            "gym-replay select data/all data/first --episodes 0:100",
            "gym-replay select data/all data/all --overwrite",
        ],
    )
    parser.add_argument("folder", help=SOURCE_HELP)
    parser.add_argument("out", metavar="OUT", help="the new folder")
    add_choice(parser)
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    """Copy."""
    from gym_replay.buffer.concat import open_source
    from gym_replay.buffer.copying import select

    with open_source(args.folder) as buffer:
        made = select(
            buffer,
            args.out,
            where=args.where,
            episodes=chosen(buffer, None, args.episodes),
            overwrite=args.overwrite,
            progress=shows_bars(args),
        )
    show_made([made], as_json=args.json)
    return 0

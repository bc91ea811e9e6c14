"""``gym-replay split``: each episode of a folder copied into one of several."""

from __future__ import annotations

import argparse

from gym_replay.cli.copies import add_overwrite, show_made
from gym_replay.cli.options import SOURCE_HELP, add_verb, shows_bars
from gym_replay.errors import FieldError


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "split",
        run,
        "copy each episode into one of several folders, at random",
        "Copies each episode into one of several new folders. Which one depends on its id, the seed and the fractions "
        "only, so that an episode stays in its subset when more are recorded.",
        ["gym-replay split data/all --into data/train=0.9 data/val=0.1 --seed 0"],
    )
    parser.add_argument("folder", help=SOURCE_HELP)
    parser.add_argument(
        "--into", nargs="+", required=True, metavar="FOLDER=FRACTION", help="the new folders; fractions add up to 1"
    )
    parser.add_argument("--seed", type=int, default=0, help="any number from 0 on (0)")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    """Copy."""
    from gym_replay.buffer.copying import split_into

    fractions: dict[str, float] = {}
    for item in args.into:
        folder, _, fraction = item.rpartition("=")
        try:
            value = float(fraction)
        except ValueError:
            folder = ""
        if not folder:
            raise FieldError(f"--into {item!r}: expected FOLDER=FRACTION, such as data/train=0.9")
        if folder in fractions:
            raise FieldError(f"--into: {folder!r} is named twice")
        fractions[folder] = value
    from gym_replay.buffer.concat import open_source

    with open_source(args.folder) as buffer:
        made = split_into(buffer, fractions, seed=args.seed, overwrite=args.overwrite, progress=shows_bars(args))
    show_made(made, as_json=args.json)
    return 0

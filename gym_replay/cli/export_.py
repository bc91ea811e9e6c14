"""``gym-replay export``: a folder written in the format of another package."""

from __future__ import annotations

import argparse
from importlib import import_module

from gym_replay.cli.formats import EXPORTS
from gym_replay.cli.options import Formatter, epilog_of


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb, with a parser for each format."""
    parser = verbs.add_parser(
        "export",
        help="write a folder in the format of another package",
        description="Writes the episodes of a folder in the format of another package.",
        epilog=epilog_of(["gym-replay export minari data/cartpole cartpole/my-v0", "gym-replay export minari --help"]),
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    for name in EXPORTS:
        import_module(name).add_export(formats)

"""``gym-replay import``: episodes in the format of another package read into a new folder."""

from __future__ import annotations

import argparse
from importlib import import_module

from gym_replay.cli.formats import IMPORTS
from gym_replay.cli.options import Formatter, epilog_of


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb, with a parser for each format."""
    parser = verbs.add_parser(
        "import",
        help="read episodes in the format of another package into a new folder",
        description="Reads episodes in the format of another package into a new folder.",
        epilog=epilog_of(["gym-replay import minari D4RL/door/human-v2 data/door", "gym-replay import minari --help"]),
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    for name in IMPORTS:
        import_module(name).add_import(formats)

"""``gym-replay import``: episodes in the format of another package read into a new folder."""

from __future__ import annotations

import argparse

from gym_replay.cli.formats import IMPORTS, add_formats


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb, with a parser for each format."""
    add_formats(
        verbs,
        "import",
        "read episodes in the format of another package into a new folder",
        "Reads episodes in the format of another package into a new folder.",
        ["gym-replay import minari D4RL/door/human-v2 data/door", "gym-replay import minari --help"],
        IMPORTS,
    )

"""``gym-replay export``: a folder written in the format of another package."""

from __future__ import annotations

import argparse

from gym_replay.cli.formats import EXPORTS, add_formats


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb, with a parser for each format."""
    add_formats(
        verbs,
        "export",
        "write a folder in the format of another package",
        "Writes the episodes of a folder in the format of another package.",
        ["gym-replay export minari data/cartpole cartpole/my-v0", "gym-replay export minari --help"],
        EXPORTS,
    )

"""The formats of other packages that the verbs ``export`` and ``import`` know: one module for each.

A module has ``add_export(formats)``, ``add_import(formats)`` or both, which add the format's parser with
``set_defaults(run=function)``; the function takes the parsed arguments and returns the exit status. It is listed in
``EXPORTS`` or ``IMPORTS`` below.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from gym_replay.cli.options import add_verb

Parsers = argparse._SubParsersAction  # what add_subparsers() gives has no public name

EXPORTS = ("gym_replay.cli.formats.minari",)
"""The modules whose ``add_export`` adds a format to ``gym-replay export``."""

IMPORTS = ("gym_replay.cli.formats.minari", "gym_replay.cli.formats.old_data")
"""The modules whose ``add_import`` adds formats to ``gym-replay import``."""


def add_format(
    formats: Parsers[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    commands: Sequence[str],
) -> argparse.ArgumentParser:
    """Add a format as :func:`~gym_replay.cli.options.add_verb` adds a verb, with ``--drop-unsupported``."""
    parser = add_verb(formats, name, run, summary, description, commands)
    parser.add_argument(
        "--drop-unsupported",
        action="store_const",
        dest="on_unsupported",
        const="drop",
        default="error",
        help="leave out what the target cannot hold, and list it, instead of an error",
    )
    return parser

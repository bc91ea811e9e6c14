"""The formats of other packages that the verbs ``export`` and ``import`` know: one module for each.

A module has ``add_export(formats)``, ``add_import(formats)`` or both, which add the format's parser with
``set_defaults(run=function)``; the function takes the parsed arguments and returns the exit status. It is listed in
``EXPORTS`` or ``IMPORTS`` below.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module

from gym_replay.cli.options import Formatter, add_verb, epilog_of

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


def add_formats(
    verbs: Parsers[argparse.ArgumentParser],
    verb: str,
    summary: str,
    description: str,
    commands: Sequence[str],
    modules: Sequence[str],
) -> None:
    """Add a verb, ``export`` or ``import``, with a parser for each format of these modules."""
    parser = verbs.add_parser(
        verb,
        help=summary,
        description=description,
        epilog=epilog_of(commands),
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    formats = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    for module in modules:
        getattr(import_module(module), f"add_{verb}")(formats)

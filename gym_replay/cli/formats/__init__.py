"""The formats of other packages that the verbs ``export`` and ``import`` know: one module for each.

A module has ``add_export(formats)``, ``add_import(formats)`` or both, which add the format's parser with
``set_defaults(run=function)``; the function takes the parsed arguments and returns the exit status. It is listed in
``EXPORTS`` or ``IMPORTS`` below.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

Parsers = argparse._SubParsersAction  # what add_subparsers() gives has no public name

EXPORTS = ("gym_replay.cli.formats.minari",)
"""The modules whose ``add_export`` adds a format to ``gym-replay export``."""

IMPORTS = ("gym_replay.cli.formats.minari",)
"""The modules whose ``add_import`` adds a format to ``gym-replay import``."""

ON_UNSUPPORTED = "error"


class Formatter(argparse.HelpFormatter):
    """Keeps the lines of examples, and wraps all other text."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def examples(*commands: str) -> str:
    """The end of a parser's help."""
    return "examples:\n" + "\n".join(f"  {command}" for command in commands)


def add_format(
    formats: Parsers[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    commands: Sequence[str],
) -> argparse.ArgumentParser:
    """Add a format with ``--json``, ``--debug`` and ``--drop-unsupported``; its own arguments are added to what is
    returned.

    Args:
        formats: of the verb.
        name: of the format.
        run: executes the command.
        summary: one line for the list of formats.
        description: for the help of the format.
        commands: examples.
    """
    parser = formats.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples(*commands),
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="write JSON to the standard output, and nothing else")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument(
        "--drop-unsupported",
        action="store_const",
        dest="on_unsupported",
        const="drop",
        default=ON_UNSUPPORTED,
        help="leave out what the target cannot hold, and list it, instead of an error",
    )
    return parser


def shows_bar(args: argparse.Namespace) -> bool:
    """Whether somebody sees a bar: on a terminal, and not where a script asked for JSON."""
    return not args.json and sys.stderr is not None and sys.stderr.isatty()

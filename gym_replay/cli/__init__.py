"""The command ``gym-replay``: one module for each verb, and what they share.

A verb's module has ``add(verbs)``, which adds its parser with ``set_defaults(run=function)``; the function takes the
parsed arguments and returns the exit status. Results go to the standard output, everything else to the standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from gym_replay.errors import GymReplayError, printable

VERBS = ("record", "info", "check", "stats", "head", "replay", "merge", "select", "split", "export_", "import_")
"""The verbs, in the order of the help: each is a module of this package."""

OK, FOUND, ERROR, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


class _Parser(argparse.ArgumentParser):
    """A parser that says on one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(ERROR, f"{self.prog}: error: {message} ({self.prog} --help shows how it is used)\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    import gym_replay

    parser = _Parser(
        prog="gym-replay",
        description="Record environments, and look at, check, replay and copy what gym_replay recorded.",
        epilog="gym-replay VERB --help has the options and examples of each verb. Exit status: 0 all is well, 1 a "
        "check or a replay found a difference, 2 wrong usage or an error, 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gym-replay {gym_replay.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        import_module(f"gym_replay.cli.{verb}").add(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Args:
        arguments: in the place of those of the process.

    Example:
        >>> main(["info", "data/cartpole"])  # doctest: +SKIP
    """
    _escape_what_cannot_be_written()
    args = make_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status: int = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough
        _drop_output()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except Exception as error:  # also what an environment raises while it is replayed
        if getattr(args, "debug", False):
            _print_error(traceback.format_exc().rstrip())
        _say(f"error: {_described(error)}")
        _drop_output()
        return ERROR
    return status


def _described(error: Exception) -> str:
    """An error without its number: the message, and the file where it is about one."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}"
    if isinstance(error, (GymReplayError, IndexError)):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split()) + " (--debug shows where)"


def _say(message: str) -> None:
    _print_error(f"gym-replay: {message}")


def _print_error(text: str) -> None:
    with suppress(OSError):
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)


def _show_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    _say(f"warning: {message}")


def _escape_what_cannot_be_written() -> None:
    """Names of files and strings may have characters that the terminal's encoding has not."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Let what is not written yet go nowhere, so that the interpreter does not fail to write it at its end."""
    with suppress(OSError, ValueError, AttributeError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)

"""The command ``gym-replay``: its parser, and what becomes of errors.

The modules of :data:`MODULES` declare the verbs. Results go to the standard output, everything else to the standard
error.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from gym_replay.cli import output
from gym_replay.cli.verbs import VERBS
from gym_replay.errors import GymReplayError, printable
from gym_replay.notices import did_you_mean

MODULES = (
    "record",
    "play",
    "evaluate",
    "info",
    "episodes",
    "looking",
    "view",
    "media",
    "label",
    "replay",
    "reobserve",
    "copies",
    "remote",
    "formats",
)
"""The modules of this package that declare verbs, in the order of the help."""

_GROUPS = {
    "export": "write a folder in the format of another package",
    "import": "read episodes in the format of another package into a new folder",
}
"""The verbs that have formats."""

_EXAMPLES = "examples:"

OK, FOUND, ERROR, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


class _Parser(argparse.ArgumentParser):
    """A parser that says in a sentence what is wrong, and names what may have been meant."""

    def error(self, message: str) -> NoReturn:
        if choice := _CHOICE.match(message):
            known = [word.strip().strip("'") for word in choice["known"].split(",")]
            message = f"{choice['argument']}: there is no {choice['given']}{did_you_mean(choice['given'], known)}"
        _print_error(_fitting(f"{self.prog}: error: {message}\n({self.prog} --help shows how it is used)"))
        self.exit(ERROR)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            verb: argparse.ArgumentParser = getattr(found, "parser", self)
            name = unknown[0].partition("=")[0]
            options = [each for action in verb._actions for each in action.option_strings]
            hint = did_you_mean(name, options) if name.startswith("-") else ""
            hint = hint if hint.startswith("; did") else ""
            verb.error(f"{'unknown option' if name.startswith('-') else 'unexpected argument'} {unknown[0]!r}{hint}")
        return found


_CHOICE = re.compile(r"argument (?P<argument>.*?): invalid choice: '(?P<given>.*)' \(choose from (?P<known>.*)\)")
"""How argparse says that a value is none of those that there are."""


class _Formatter(argparse.HelpFormatter):
    """Keeps the lines of examples, and wraps all other text."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    import gym_replay

    for module in MODULES:
        import_module(f"gym_replay.cli.{module}")
    parser = _Parser(
        prog="gym-replay",
        description="Record environments, and look at, check, replay and copy what gym_replay recorded.",
        epilog="gym-replay VERB --help has the options and examples of each verb. Exit status: 0 all is well, 1 a "
        "check or a replay found a difference, 2 wrong usage or an error, 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gym-replay {gym_replay.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    formats: dict[str, Any] = {}
    for verb in VERBS:
        group, _, name = verb.name.rpartition(" ")
        if group and group not in formats:
            summary = _GROUPS[group]
            examples = [*verb.examples[:1], f"gym-replay {verb.name} --help"]
            made = _add_parser(verbs, group, summary, f"{summary.capitalize()}.", examples)
            formats[group] = made.add_subparsers(dest="format", metavar="FORMAT", required=True)
        one = _add_parser(formats.get(group, verbs), name, verb.summary, verb.description, verb.examples)
        one.set_defaults(run=verb.run, parser=one)
        one.add_argument("--json", action="store_true", help="write JSON to the standard output, and nothing else")
        one.add_argument("--debug", action="store_true", help="show the traceback of an error")
        for names, settings in verb.options:
            one.add_argument(*names, **settings)
    return parser


def _add_parser(
    parsers: Any, name: str, summary: str, description: str, examples: Sequence[str]
) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = parsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog="\n".join([_EXAMPLES, *(f"  {example}" for example in examples)]),
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Args:
        arguments: instead of those of the process.

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
        _say(f"error: {_in_its_words(_described(error), args.parser)}")
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


def _in_its_words(text: str, parser: argparse.ArgumentParser) -> str:
    """A message of the library in the words of a verb's options: ``--episodes 3`` instead of ``episodes=3``."""
    options: dict[str, dict[str, str]] = {}
    for action in parser._actions:
        for flag in action.option_strings[-2:]:
            value = str(action.const if action.const is not None else not flag.startswith("--no-"))
            takes_none = action.nargs == 0
            options.setdefault(action.dest, {})[value if takes_none else ""] = flag

    def worded(found: re.Match[str]) -> str:
        flags, value = options[found["name"]], found["value"]
        if value in flags:
            return flags[value]
        flag = next(iter(flags.values()))
        return flag if value in ("...", "None", "True", "False") else f"{flag} {value}"

    names = "|".join(map(re.escape, options))
    text = re.sub(rf"(?<![\w.-])(?P<name>{names})=(?P<value>'[^']*'|\"[^\"]*\"|[\w.+-]+|\.\.\.)", worded, text)
    return re.sub(rf"^(?P<name>{names}): ", lambda found: f"{next(iter(options[found['name']].values()))}: ", text)


def _fitting(text: str) -> str:
    """A text wrapped to the terminal; what is redirected stays on its lines, for whoever searches them."""
    if sys.stderr is None or not sys.stderr.isatty():
        return " ".join(text.split("\n")) if "\n  " not in text else text
    lines = text.split("\n")
    return "\n".join(
        part for line in lines for part in (output.wrapped(line) if len(line) > output.width() else [line])
    )


def _say(message: str) -> None:
    _print_error(_fitting(f"gym-replay: {message}"))


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

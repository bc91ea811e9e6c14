"""What a verb of the command is, and what verbs share: options, opening folders, and choosing episodes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError

if TYPE_CHECKING:
    from gym_replay.buffer.concat import ConcatReplayBuffer
    from gym_replay.buffer.replay_buffer import ReplayBuffer

Run: TypeAlias = Callable[[argparse.Namespace], int]
"""Takes the parsed arguments, and returns the exit status."""


Option: TypeAlias = tuple[tuple[str, ...], dict[str, Any]]


def option(*names: str, **settings: Any) -> Option:
    """An argument of a verb: what ``add_argument`` takes, by position and by name."""
    return names, settings


class Verb(NamedTuple):
    """A verb of the command.

    Attributes:
        name: one word, or two where a verb has formats: ``"export minari"``.
        run: does it.
        summary: one line for the list of verbs.
        description: for the help of the verb.
        examples: commands.
        options: beside ``--json`` and ``--debug``, which all verbs have.
    """

    name: str
    run: Run
    summary: str
    description: str
    examples: Sequence[str]
    options: Sequence[Option]


VERBS: list[Verb] = []
"""The verbs, in the order of the help; those of a module are there once it is imported."""

_OF_ALL = ("run", "parser", "json", "debug", "format")
"""What the parsed arguments of every verb hold."""

_SOURCE = "a buffer's folder, a folder of such folders (shards), or a quoted pattern such as 'data/run-*'"
SOURCES = option("sources", nargs="+", metavar="FOLDER", help=_SOURCE)
FOLDER = option("folder", help=_SOURCE)
NEW_FOLDER = option("folder", metavar="FOLDER", help="the new folder")
OUT = option("out", metavar="OUT", help="the new folder")
FIELDS = option("--fields", nargs="+", metavar="FIELD", help="only these fields")
OVERWRITE = option(
    "--overwrite", action="store_true", help="replace a buffer that is there, once the new one is complete"
)
REPLACE = option("--overwrite", action="store_true", help="replace the buffer that is in the folder")
TRUST = option(
    "--trust",
    action="store_true",
    help="hand the recorded arguments and reset options on, whatever they are; without it only harmless ones",
)
RECORD_INFO = option("--record-info", action="store_true", help="record the numbers and arrays in the infos too")
CHOICE = (
    option(
        "--where",
        metavar="CONDITION",
        help="episodes that meet a condition on meta fields and on index, id, length, complete, has_final, label, "
        "terminated, truncated, episode_return, such as 'episode_return > 300 and not truncated'",
    ),
    option(
        "--episodes", metavar="LIST", help="episodes by index: 3 or 0,5 or 10:20 or -1 (as --episodes=-1), and mixed"
    ),
)
"""The options that choose episodes."""


def json_object(text: str) -> dict[str, Any]:
    """The type of an option that is an object of JSON."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object, such as '{\"size\": 9}'")
    return value


class _AddCodec(argparse.Action):
    """Makes a dict, by field or group, of codecs that are given as ``FIELD=CODEC``, or ``CODEC`` for all images."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, value: Any, name: str | None = None) -> None:
        field, equals, codec = value.partition("=")
        if not equals or value.startswith("{"):
            field, codec = "images", value
        try:
            parsed = json_object(codec) if codec.startswith("{") else codec
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --codec: {error}")
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), field: parsed})


CODEC = option(
    "--codec",
    dest="codecs",
    action=_AddCodec,
    metavar="[FIELD=]CODEC",
    help="store a field encoded, or, without FIELD, all images (uint8, two or three axes): zstd, lz4, png, jpeg, a "
    "configuration as JSON, or raw for none; may be given several times",
)


def verb(name: str, summary: str, description: str, examples: Sequence[str], *options: Option) -> Callable[[Run], Run]:
    """Declare the function below it as a verb; the arguments are those of :class:`Verb`."""

    def declare(run: Run) -> Run:
        VERBS.append(Verb(name, run, summary, description, examples, options))
        return run

    return declare


@contextmanager
def opened(
    args: argparse.Namespace,
) -> Iterator[tuple[ReplayBuffer | ConcatReplayBuffer, npt.NDArray[np.int64] | None]]:
    """The buffer in ``folder``, and the ascending indices that ``--where`` and ``--episodes`` choose, None for all.

    Raises:
        FieldError: one of the options is wrong.
        IndexError: there is no such episode.
    """
    from gym_replay.buffer.concat import open_source
    from gym_replay.buffer.loading.selection import EpisodeValues, selected

    with open_source(args.folder) as buffer:
        if args.where is None and args.episodes is None:
            yield buffer, None
            return
        mask = selected(EpisodeValues(buffer.snapshots()), args.where)
        if args.episodes is not None:
            mask = mask & np.isin(np.arange(len(buffer)), parse_indices(args.episodes, len(buffer)))
        yield buffer, np.flatnonzero(mask)


def parse_indices(text: str, count: int) -> list[int]:
    """Indices from a list such as ``0,5,10:20,-1``.

    Raises:
        FieldError: it is no such list.
        IndexError: there is no such episode.

    Example:
        >>> parse_indices("0,2:4,-1", 10)
        [0, 2, 3, 9]
    """
    found: list[int] = []
    for item in text.split(","):
        try:
            numbers = [int(part) if part.strip() else None for part in item.split(":")]
            if len(numbers) > 1:
                if not (meant := range(count)[slice(*numbers)]):
                    raise IndexError(f"--episodes {text!r}: there are {count} episodes, none of them in {item.strip()}")
                found += meant
                continue
            (index,) = numbers
            assert index is not None
        except (ValueError, TypeError, AssertionError):
            raise FieldError(f"--episodes {text!r}: expected indices and ranges such as 0,5,10:20") from None
        if not -count <= index < count:
            raise IndexError(f"--episodes {text!r}: there are {count} episodes, none has the index {index}")
        found.append(index % count)
    return found


def keywords(args: argparse.Namespace, *others: str) -> dict[str, Any]:
    """The options as keyword arguments of a function, without the others named here and those of all verbs."""
    return {name: value for name, value in vars(args).items() if name not in (*_OF_ALL, *others)}


def import_from_here() -> None:
    """Let modules in the folder that one is in be imported, as `python -m` has it."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())


def importing(which: str = "; may be given several times") -> Option:
    """The option ``--import``, whose modules :func:`import_modules` imports."""
    return option(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help=f"import a module first, which registers the environment{which}",
    )


def import_modules(modules: Sequence[str]) -> None:
    """Import what ``--import`` names."""
    for module in modules:
        import_from_here()
        import_module(module)


def shows_bars(args: argparse.Namespace) -> bool:
    """Whether there may be a bar: not where a script asked for JSON."""
    return not args.json

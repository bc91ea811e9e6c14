"""What verbs share: options, opening folders, and choosing episodes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError

if TYPE_CHECKING:
    from gym_replay.buffer.concat import ConcatReplayBuffer
    from gym_replay.buffer.replay_buffer import ReplayBuffer

SOURCE_HELP = "a buffer's folder, a folder of such folders (shards), or a quoted pattern such as 'data/run-*'"
_EXAMPLES = "examples:"


class Formatter(argparse.HelpFormatter):
    """Keeps the lines of examples, and wraps all other text."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)


def epilog_of(examples: Sequence[str]) -> str:
    """The end of a parser's help."""
    return f"{_EXAMPLES}\n" + "\n".join(f"  {example}" for example in examples)


def add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    examples: Sequence[str],
) -> argparse.ArgumentParser:
    """Add a verb with ``--json`` and ``--debug``; its own arguments are added to the parser that is returned.

    Args:
        summary: one line for the list of verbs.
        description: for the help of the verb.
        examples: commands.
    """
    parser = verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog_of(examples),
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="write JSON to the standard output, and nothing else")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose episodes."""
    parser.add_argument(
        "--where",
        metavar="CONDITION",
        help="episodes that meet a condition on meta fields and on index, id, length, complete, has_final, "
        "terminated, truncated, episode_return, such as 'episode_return > 300 and not truncated'",
    )
    parser.add_argument(
        "--episodes", metavar="LIST", help="episodes by index: 3 or 0,5 or 10:20 or -1 (as --episodes=-1), and mixed"
    )


def chosen(
    buffer: ReplayBuffer | ConcatReplayBuffer, where: str | None, episodes: str | None
) -> npt.NDArray[np.int64] | None:
    """The indices of the episodes that the options name, ascending; None where neither is given.

    Raises:
        FieldError: one of them is wrong.
        IndexError: there is no such episode.
    """
    if where is None and episodes is None:
        return None
    from gym_replay.buffer.loading.selection import EpisodeValues, selected

    mask = selected(EpisodeValues(buffer.snapshots()), where)
    if episodes is not None:
        listed = np.zeros(len(buffer), np.bool_)
        listed[parse_indices(episodes, len(buffer))] = True
        mask = mask & listed
    return np.flatnonzero(mask)


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
                found += range(count)[slice(*numbers)]
                continue
            (index,) = numbers
            assert index is not None
        except (ValueError, TypeError, AssertionError):
            raise FieldError(f"--episodes {text!r}: expected indices and ranges such as 0,5,10:20") from None
        if not -count <= index < count:
            raise IndexError(f"--episodes {text!r}: there are {count} episodes, none has the index {index}")
        found.append(index % count)
    return found


def shows_bars(args: argparse.Namespace) -> bool:
    """Whether somebody sees a bar: on a terminal, and not where a script asked for JSON."""
    return not args.json and sys.stderr is not None and sys.stderr.isatty()

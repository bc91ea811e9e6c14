"""``gym-replay head``: the first transitions as a table."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from gym_replay.buffer.reading import Readable
from gym_replay.cli import output
from gym_replay.cli.options import SOURCE_HELP, add_choice, add_verb, chosen
from gym_replay.errors import FieldError

_LONGEST_CELL = 30


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "head",
        run,
        "show the first transitions as a table",
        "Shows the first transitions of a folder, or of chosen episodes, one on each line. With --json the values are "
        "complete.",
        ["gym-replay head data/cartpole", "gym-replay head data/cartpole -n 3 --episodes=-1 --fields action reward"],
    )
    parser.add_argument("folder", help=SOURCE_HELP)
    parser.add_argument("-n", "--steps", type=int, default=10, metavar="N", help="how many transitions (10)")
    parser.add_argument("--fields", nargs="+", metavar="FIELD", help="only these fields")
    add_choice(parser)


def run(args: argparse.Namespace) -> int:
    """Show the transitions."""
    from gym_replay.buffer.concat import open_source

    with open_source(args.folder) as buffer:
        names = list(buffer.fieldnames if args.fields is None else args.fields)
        if unknown := [name for name in names if name not in buffer.fieldnames]:
            raise FieldError(f"--fields: unknown field {unknown[0]!r}; there are {list(buffer.fieldnames)}")
        if args.steps < 0:
            raise FieldError(f"--steps: expected a number from 0 on, got {args.steps}")
        episodes = chosen(buffer, args.where, args.episodes)
        indices = range(len(buffer)) if episodes is None else episodes.tolist()
        rows = list(islice(_transitions(buffer, indices, names), args.steps))
    if args.json:
        output.write_json([dict(zip(("episode", "t", *names), row, strict=True)) for row in rows])
        return 0
    cells = [[str(row[0]), str(row[1]), *map(_cell, row[2:])] for row in rows]
    print("\n".join(output.table(("episode", "t", *names), cells, right=("episode", "t"))))
    return 0


def _transitions(buffer: Readable, indices: Sequence[int], names: Sequence[str]) -> Iterator[list[Any]]:
    """Index of the episode, t, and the values of the fields."""
    for index in indices:
        episode = buffer.episode(index)
        for t in range(len(episode)):
            yield [index, t, *(np.array(episode[name][t]) for name in names)]


def _cell(value: Any) -> str:
    """A value on one line, large ones cut."""
    if value.ndim == 0:
        return output.number(value[()].item())
    shown: list[str] = []
    for item in value.reshape(-1)[: _LONGEST_CELL // 2]:
        shown.append(output.number(item.item()))
        if len(" ".join(shown)) > _LONGEST_CELL - 5:
            break
    whole = len(shown) == value.size
    shape = "" if value.ndim == 1 else f" {'x'.join(map(str, value.shape))}"
    return f"[{' '.join(shown)}{'' if whole else ' ...'}]{shape}"

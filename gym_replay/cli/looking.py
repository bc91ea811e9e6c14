"""``gym-replay check``, ``stats`` and ``head``: what is in a folder, and whether it is sound."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from gym_replay.buffer.reading import Readable
from gym_replay.cli import output
from gym_replay.cli.verbs import CHOICE, FIELDS, FOLDER, opened, option, shows_bars, verb
from gym_replay.errors import FieldError, printable
from gym_replay.notices import did_you_mean
from gym_replay.viewing.text import number

if TYPE_CHECKING:
    from gym_replay.buffer.loading.statistics import FieldStatistics

_QUANTILES = (0.01, 0.5, 0.99)
_MOST_ROWS = 12
"""Elements of one field that are shown without --all."""

_LEAST_CELL = 16
"""To which a cell is cut where there is no room for it, before each field gets a line."""


@verb(
    "check",
    "compare a folder with the format's rules and its checksums",
    "Reads all rows and names each fault with its file, episode and field. The exit status is 0 where there is none, "
    "else 1. Meant for folders that nobody writes at the time.",
    ["gym-replay check data/cartpole", "gym-replay check data/cartpole --repair"],
    FOLDER,
    option(
        "--repair",
        action="store_true",
        help="keep all sound episodes, and delete damaged ones for good",
    ),
)
def check(args: argparse.Namespace) -> int:
    """Check every buffer in a folder."""
    from gym_replay.buffer.check import check_buffer
    from gym_replay.buffer.finding import find_buffers

    reports = []
    for folder in find_buffers(args.folder):
        report = check_buffer(folder, repair=args.repair, progress=shows_bars(args))
        reports.append(report)
        if not args.json:
            print("\n".join(map(printable, str(report).splitlines())), flush=True)
    sound = all(report.ok for report in reports)
    if args.json:
        output.write_json(
            {
                "folder": args.folder,
                "ok": sound,
                "verified": all(report.verified for report in reports),
                "num_episodes": sum(report.num_episodes for report in reports),
                "num_checked": sum(report.num_checked for report in reports),
                "buffers": [{**asdict(report), "ok": report.ok, "verified": report.verified} for report in reports],
            }
        )
    return 0 if sound else 1


@verb(
    "stats",
    "show mean, deviation, range and quantiles of each field",
    "Shows what the values of each field are like, one line for each element. Ragged fields have no statistics.",
    ["gym-replay stats data/cartpole", "gym-replay stats data/cartpole --fields reward --where 'length > 100'"],
    FOLDER,
    FIELDS,
    option("--all", action="store_true", help=f"show all elements of fields with more than {_MOST_ROWS}"),
    *CHOICE,
)
def stats(args: argparse.Namespace) -> int:
    """Show the statistics of fields."""
    from gym_replay.buffer.loading.statistics import statistics

    with opened(args) as (buffer, episodes):
        found = statistics(
            buffer, args.fields, episodes=episodes, quantiles=_QUANTILES, std_floor=0, progress=shows_bars(args)
        )
        count = len(buffer) if episodes is None else len(episodes)
    fields = {name: _plain(field) for name, field in found.items()}
    header = ("field", "count", "mean", "std", "min", "max", *(f"{quantile:.0%}" for quantile in _QUANTILES))
    rows = [row for name, field in found.items() for row in _rows(name, field, None if args.all else _MOST_ROWS)]
    document = {"folder": args.folder, "num_episodes": count, "fields": fields}
    return output.show(args, document, output.table(header, rows, right=header[1:]))


def _plain(field: FieldStatistics) -> Mapping[str, Any]:
    quantiles = {f"{probability:g}": values for probability, values in field.quantiles.items()}
    return {name: getattr(field, name) for name in ("count", "mean", "std", "min", "max")} | {"quantiles": quantiles}


def _rows(name: str, field: FieldStatistics, most: int | None) -> Iterator[tuple[str, ...]]:
    """One row for each element of a field, up to so many."""
    for row, element in enumerate(np.ndindex(field.count.shape)):
        if most is not None and row == most:
            yield (f"{name}: {field.count.size - most} more", *[""] * (5 + len(field.quantiles)))
            return
        values = [field.mean, field.std, field.min, field.max, *field.quantiles.values()]
        label = name if not element else f"{name}[{','.join(map(str, element))}]"
        yield (label, str(int(field.count[element])), *(number(float(value[element]), 3) for value in values))


@verb(
    "head",
    "show the first transitions as a table",
    "Shows the first transitions of a folder, or of chosen episodes, one on each line. With --json the values are "
    "complete.",
    ["gym-replay head data/cartpole", "gym-replay head data/cartpole -n 3 --episodes=-1 --fields action reward"],
    FOLDER,
    option("-n", "--steps", type=int, default=10, metavar="N", help="how many transitions (10)"),
    FIELDS,
    *CHOICE,
)
def head(args: argparse.Namespace) -> int:
    """Show the first transitions."""
    with opened(args) as (buffer, episodes):
        names = list(buffer.fieldnames if args.fields is None else args.fields)
        if unknown := [name for name in names if name not in buffer.fieldnames]:
            raise FieldError(f"--fields: unknown field {unknown[0]!r}{did_you_mean(unknown[0], buffer.fieldnames)}")
        if args.steps < 0:
            raise FieldError(f"--steps: expected a number from 0 on, got {args.steps}")
        indices = range(len(buffer)) if episodes is None else episodes.tolist()
        rows = list(islice(_transitions(buffer, indices, names), args.steps))
        is_ragged = [buffer.metadata.fields[name].ragged for name in names]
    header = ("episode", "t", *names)
    return output.show(args, [dict(zip(header, row, strict=True)) for row in rows], _lines(header, rows, is_ragged))


def _lines(header: Sequence[str], rows: Sequence[Sequence[Any]], is_ragged: Sequence[bool]) -> Iterator[str]:
    """The transitions as a table, or with a line for each field, where they do not fit beside one another."""
    from gym_replay.viewing.curves import shown_value

    cells = [[str(row[0]), str(row[1]), *map(shown_value, row[2:], is_ragged)] for row in rows]
    columns = zip(header, *cells, strict=True)
    widths = [max(len(name), min(max(map(len, (name, *column))), _LEAST_CELL)) for name, *column in columns]
    if sum(widths) + 2 * (len(widths) - 1) <= output.width():
        yield from output.table(header, cells, right=header[:2])
        return
    longest = max(map(len, header[2:]), default=0)
    for place, row in enumerate(cells):
        if place:
            yield ""
        yield f"episode {row[0]}, step {row[1]}"
        for name, cell in zip(header[2:], row[2:], strict=True):
            yield output.cut(f"  {printable(name):<{longest}}  {printable(cell)}", output.width())


def _transitions(buffer: Readable, indices: Sequence[int], names: Sequence[str]) -> Iterator[list[Any]]:
    """Index of the episode, t, and the values of the fields."""
    for index in indices:
        episode = buffer.episode(index)
        for t in range(len(episode)):
            yield [index, t, *(np.array(episode[name][t]) for name in names)]

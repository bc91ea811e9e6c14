"""``gym-replay stats``: what the values of each field are like."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gym_replay.cli import output
from gym_replay.cli.options import SOURCE_HELP, add_choice, add_verb, chosen, shows_bars

if TYPE_CHECKING:
    from gym_replay.buffer.loading.moments import FieldStatistics

_QUANTILES = (0.01, 0.5, 0.99)
_MOST_ROWS = 12
"""Elements of one field that are shown without --all."""


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "stats",
        run,
        "show mean, deviation, range and quantiles of each field",
        "Shows what the values of each field are like, one line for each element. Ragged fields have no statistics.",
        ["gym-replay stats data/cartpole", "gym-replay stats data/cartpole --fields reward --where 'length > 100'"],
    )
    parser.add_argument("folder", help=SOURCE_HELP)
    parser.add_argument("--fields", nargs="+", metavar="FIELD", help="only these fields")
    parser.add_argument("--all", action="store_true", help=f"show all elements of fields with more than {_MOST_ROWS}")
    add_choice(parser)


def run(args: argparse.Namespace) -> int:
    """Show the statistics."""
    from gym_replay.buffer.concat import open_source
    from gym_replay.buffer.loading.statistics import statistics

    with open_source(args.folder) as buffer:
        episodes = chosen(buffer, args.where, args.episodes)
        found = statistics(
            buffer, args.fields, episodes=episodes, quantiles=_QUANTILES, std_floor=0, progress=shows_bars(args)
        )
        count = len(buffer) if episodes is None else len(episodes)
    if args.json:
        fields = {name: _plain(field) for name, field in found.items()}
        output.write_json({"folder": args.folder, "num_episodes": count, "fields": fields})
        return 0
    header = ("field", "count", "mean", "std", "min", "max", *(f"{quantile:.0%}" for quantile in _QUANTILES))
    rows = [row for name, field in found.items() for row in _rows(name, field, None if args.all else _MOST_ROWS)]
    print("\n".join(output.table(header, rows, right=header[1:])))
    return 0


def _plain(field: FieldStatistics) -> Mapping[str, Any]:
    quantiles = {f"{probability:g}": values for probability, values in field.quantiles.items()}
    return {name: getattr(field, name) for name in ("count", "mean", "std", "min", "max")} | {"quantiles": quantiles}


def _rows(name: str, field: FieldStatistics, most: int | None) -> Iterator[tuple[str, ...]]:
    """One row for each element of a field, up to a number."""
    for at, place in enumerate(np.ndindex(field.count.shape)):
        if most is not None and at == most:
            yield (f"{name}: {field.count.size - most} more", *[""] * (5 + len(field.quantiles)))
            return
        values = [field.mean, field.std, field.min, field.max, *field.quantiles.values()]
        label = name if not place else f"{name}[{','.join(map(str, place))}]"
        yield (label, str(int(field.count[place])), *(output.number(float(value[place]), 3) for value in values))

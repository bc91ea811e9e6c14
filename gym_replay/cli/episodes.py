"""``gym-replay episodes``: the episodes of a folder, one on each line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from gym_replay.cli import output
from gym_replay.cli.verbs import CHOICE, FOLDER, opened, option, verb
from gym_replay.errors import FieldError
from gym_replay.notices import did_you_mean

if TYPE_CHECKING:
    from gym_replay.viewing.episodes import EpisodeTable


@verb(
    "episodes",
    "list the episodes: length, return, how each ended, meta fields",
    "Shows one episode on each line: its index and length, its return, how it ended, its seed, and the meta fields "
    "that are not the recorder's own. With --json each episode has its id and all meta fields.",
    [
        "gym-replay episodes data/cartpole -n 20",
        "gym-replay episodes data/cartpole --where 'episode_return > 300' --sort=-length",
        "gym-replay episodes data/cartpole --meta-fields episode_seed episode_duration",
    ],
    FOLDER,
    option("-n", "--number", type=int, metavar="N", help="how many episodes (all)"),
    option("--sort", metavar="NAME", help="by length, return or a meta field; largest first as --sort=-NAME"),
    option("--meta-fields", nargs="+", metavar="NAME", help="only these meta fields"),
    *CHOICE,
)
def episodes(args: argparse.Namespace) -> int:
    """List the episodes."""
    from gym_replay.viewing.episodes import Column, EpisodeTable

    with opened(args) as (buffer, chosen):
        table = EpisodeTable(buffer)
        known = table.values.meta_fields
        if unknown := [name for name in args.meta_fields or () if name not in known]:
            raise FieldError(f"--meta-fields: unknown meta field {unknown[0]!r}{did_you_mean(unknown[0], known)}")
        if args.number is not None and args.number < 0:
            raise FieldError(f"--number: expected a number from 0 on, got {args.number}")
        indices = np.arange(len(buffer)) if chosen is None else chosen
        indices = _sorted(indices, args.sort, table)[: args.number]
        documents = _documents(indices, table.values, args.meta_fields)
        columns = [Column("index", "episode"), *(column for column in table.columns if column.name != "id")]
        if not table.labelled and "label" not in known:
            columns = [column for column in columns if column.name != "label"]
        if args.meta_fields is not None:
            columns = [column for column in columns if column.name in ("index", "length")]
            columns += [Column(name, name, is_number=not known[name].is_text) for name in args.meta_fields]
        rows = table.rows(indices, columns)
    right = [column.title for column in columns if column.is_number]
    return output.show(args, documents, output.table([column.title for column in columns], rows, right=right))


def _sorted(indices: Any, name: str | None, table: EpisodeTable) -> Any:
    if name is None:
        return indices
    wanted = name.removeprefix("-")
    wanted = {"return": "episode_return", "episode": "index"}.get(wanted, wanted)
    known = ["index", "id", "length", *(column.name for column in table.columns)]
    if wanted not in known or wanted not in table.values:
        raise FieldError(f"--sort: unknown name {wanted!r}{did_you_mean(wanted, known)}")
    order = np.argsort(table.values[wanted][indices], kind="stable")
    return indices[order[::-1]] if name.startswith("-") else indices[order]


def _documents(indices: Any, values: Any, names: list[str] | None) -> list[dict[str, Any]]:
    """Each episode as JSON values."""
    facts = {"episode": values["index"], "id": values["id"], "length": values["length"]}
    facts |= {name: values[name] for name in (values.meta_fields if names is None else names)}
    return [{name: column[index] for name, column in facts.items()} for index in indices.tolist()]

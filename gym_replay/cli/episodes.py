"""``gym-replay episodes``: the episodes of a folder, one on each line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from gym_replay.cli import output
from gym_replay.cli.verbs import CHOICE, FOLDER, opened, option, verb
from gym_replay.errors import FieldError
from gym_replay.notices import did_you_mean

_LONGEST_TEXT = 40


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
    from gym_replay.buffer.loading.selection import EpisodeValues

    with opened(args) as (buffer, chosen):
        values = EpisodeValues(buffer.snapshots())
        known = [name for name, info in values.meta_fields.items() if info.is_text or info.shape == ()]
        own = buffer.metadata.recorder_meta
        if unknown := [name for name in args.meta_fields or () if name not in values.meta_fields]:
            near = did_you_mean(unknown[0], values.meta_fields)
            raise FieldError(f"--meta-fields: unknown meta field {unknown[0]!r}{near}")
        if args.number is not None and args.number < 0:
            raise FieldError(f"--number: expected a number from 0 on, got {args.number}")
        indices = np.arange(len(buffer)) if chosen is None else chosen
        indices = _sorted(indices, args.sort, values, known)[: args.number]
        if args.json:
            output.write_json(_documents(indices, values, args.meta_fields))
            return 0
        names = args.meta_fields or [name for name in known if name not in own]
        columns = _columns(values, names, shows_seed=args.meta_fields is None)
        rows = [[cell(index) for cell in columns.values()] for index in indices.tolist()]
    numbers = [name for name in columns if name != "end" and not _is_text(values, name)]
    print("\n".join(output.table(list(columns), rows, right=numbers)))
    return 0


def _sorted(indices: Any, name: str | None, values: Any, known: list[str]) -> Any:
    if name is None:
        return indices
    wanted = name.removeprefix("-")
    wanted = {"return": "episode_return", "episode": "index"}.get(wanted, wanted)
    if wanted not in ("index", "id", "length", "episode_return", *known) or wanted not in values:
        raise FieldError(f"--sort: unknown name {wanted!r}{did_you_mean(wanted, ['id', 'length', 'return', *known])}")
    order = np.argsort(values[wanted][indices], kind="stable")
    return indices[order[::-1]] if name.startswith("-") else indices[order]


def _documents(indices: Any, values: Any, names: list[str] | None) -> list[dict[str, Any]]:
    """Each episode as JSON values."""
    facts = {"episode": values["index"], "id": values["id"], "length": values["length"]}
    facts |= {name: values[name] for name in (values.meta_fields if names is None else names)}
    return [{name: column[index] for name, column in facts.items()} for index in indices.tolist()]


def _columns(values: Any, names: list[str], *, shows_seed: bool) -> Mapping[str, Any]:
    """What is shown of an episode, by the name of the column: functions from its index to a text."""
    columns: dict[str, Any] = {"episode": str, "length": lambda index: str(values["length"][index])}
    if shows_seed and "episode_return" in values:
        columns["return"] = lambda index: _text(values["episode_return"][index])
    if shows_seed:
        columns["end"] = lambda index: _end(values, index)
    if shows_seed and "episode_seed" in values and (values["episode_seed"] != -1).any():
        columns["seed"] = lambda index: "" if (seed := values["episode_seed"][index]) == -1 else str(seed)
    return columns | {name: (lambda index, name=name: _text(values[name][index])) for name in names}


def _end(values: Any, index: int) -> str:
    """How an episode ended, in a word."""
    if not values["complete"][index]:
        return "cut"
    found = [name for name in ("terminated", "truncated") if name in values and bool(values[name][index])]
    return " and ".join(found)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return output.cut(value, _LONGEST_TEXT)
    if np.ndim(value):
        return "[" + " ".join(output.number(each) for each in np.ravel(value).tolist()) + "]"
    return output.number(value.item())


def _is_text(values: Any, name: str) -> bool:
    info = values.meta_fields.get(name)
    return info is not None and (info.is_text or info.shape != ())

"""``gym-replay merge``, ``select`` and ``split``: whole episodes copied into new folders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gym_replay.cli import output
from gym_replay.cli.verbs import (
    CHOICE,
    CODEC,
    FOLDER,
    OUT,
    OVERWRITE,
    SOURCES,
    keywords,
    opened,
    option,
    shows_bars,
    verb,
)
from gym_replay.errors import FieldError
from gym_replay.files.folders import bytes_beneath

if TYPE_CHECKING:
    from gym_replay.buffer.replay_buffer import ReplayBuffer


@verb(
    "merge",
    "copy the episodes of several folders into one",
    "Copies whole episodes, with all meta fields, in the order of the sources. Each is compared with its checksums on "
    "the way. The new folder appears under its name when it is complete.",
    ["gym-replay merge data/monday data/tuesday data/both", "gym-replay merge data/shards data/one"],
    SOURCES,
    OUT,
    option("--fields", nargs="+", metavar="FIELD", help="only these, or common for those that all have"),
    option("--meta-fields", nargs="+", metavar="FIELD", help="only these meta fields, or common"),
    OVERWRITE,
)
def merge(args: argparse.Namespace) -> int:
    """Copy several folders into one."""
    from gym_replay.buffer import copying

    chosen: dict[str, Any] = {
        name: "common" if value == ["common"] else value for name, value in keywords(args, "sources", "out").items()
    }
    made = copying.merge(args.sources, args.out, **chosen, progress=shows_bars(args))
    return _show([made], args)


@verb(
    "select",
    "copy chosen episodes into a new folder",
    "Copies the episodes that meet all conditions, with all meta fields. Without conditions it copies all episodes; "
    "the copy takes no room for deleted and evicted ones. --codec converts fields; each episode that was converted is "
    "read back and compared row by row.",
    [
        "gym-replay select data/all data/good --where 'episode_return > 300 and not truncated'",
        "gym-replay select data/all data/first --episodes 0:100",
        "gym-replay select data/all data/all --overwrite",
        "gym-replay select data/all data/small --codec observation=zstd",
    ],
    FOLDER,
    OUT,
    *CHOICE,
    CODEC,
    OVERWRITE,
)
def select(args: argparse.Namespace) -> int:
    """Copy chosen episodes."""
    from gym_replay.buffer import copying

    where, args.where = args.where, None  # the copy is asked for it, and says it where no episode meets it
    with opened(args) as (buffer, episodes):
        made = copying.select(
            buffer,
            args.out,
            where=where,
            episodes=episodes,
            codecs=args.codecs,
            overwrite=args.overwrite,
            progress=shows_bars(args),
        )
    return _show([made], args)


@verb(
    "split",
    "copy each episode into one of several folders, at random",
    "Copies each episode that meets the conditions into one of several new folders. Which one depends on its id, the "
    "seed and the fractions only, so that an episode stays in its subset when more are recorded.",
    [
        "gym-replay split data/all --into data/train=0.9 data/val=0.1 --seed 0",
        "gym-replay split data/all --into train=0.9 val=0.1 --where \"label == 'good'\"",
    ],
    FOLDER,
    *CHOICE,
    option(
        "--into", nargs="+", required=True, metavar="FOLDER=FRACTION", help="the new folders; fractions add up to 1"
    ),
    option("--seed", type=int, default=0, help="any number from 0 on (0)"),
    OVERWRITE,
)
def split(args: argparse.Namespace) -> int:
    """Copy each episode into one of several folders."""
    from gym_replay.buffer.copying import split_into

    fractions: dict[str, float] = {}
    for item in args.into:
        folder, _, fraction = item.rpartition("=")
        try:
            value = float(fraction)
        except ValueError:
            folder = ""
        if not folder:
            raise FieldError(f"--into {item!r}: expected FOLDER=FRACTION, such as data/train=0.9")
        if folder in fractions:
            raise FieldError(f"--into: {folder!r} is named twice")
        fractions[folder] = value
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise FieldError(f"--into: expected a sum of 1 of all fractions, got {sum(fractions.values()):g}")
    with opened(args) as (buffer, episodes):
        made = split_into(
            buffer, fractions, seed=args.seed, episodes=episodes, overwrite=args.overwrite, progress=shows_bars(args)
        )
    return _show(made, args)


def _show(made: Sequence[ReplayBuffer], args: argparse.Namespace) -> int:
    """Say which buffers there are now."""
    found = []
    for buffer in made:
        with buffer:
            found.append((str(buffer.folder), len(buffer), buffer.num_steps, bytes_beneath(buffer.folder)))
    names = ("folder", "num_episodes", "num_steps", "bytes")
    document = {"buffers": [dict(zip(names, one, strict=True)) for one in found]}
    lines = (f"{folder}: {count} episodes, {steps} steps, {output.nbytes(n)}" for folder, count, steps, n in found)
    return output.show(args, document, lines)

"""Old data on the command line: folders of memmap-replay-buffer, and files in D4RL's layout."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gym_replay.cli import output
from gym_replay.cli.options import add_verb

if TYPE_CHECKING:
    from gym_replay.interop.target import ImportReport


def add_import(formats: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the formats to ``gym-replay import``."""
    parser = add_verb(
        formats,
        "memmap-replay-buffer",
        run_memmap,
        "a folder of the package memmap-replay-buffer",
        "Reads a folder of memmap-replay-buffer into a new folder, and says what the old one did not tell. Its pickle "
        "runs no code. The new folder appears when it is complete.",
        ["gym-replay import memmap-replay-buffer old/cheetah data/cheetah --state-fields state"],
    )
    parser.add_argument("source", metavar="SOURCE", help="the folder of memmap-replay-buffer")
    parser.add_argument("folder", metavar="FOLDER", help="the new folder")
    parser.add_argument(
        "--state-fields", nargs="+", default=(), metavar="FIELD", help="the fields that hold observations"
    )
    parser = add_verb(
        formats,
        "d4rl",
        run_d4rl,
        "a file in D4RL's layout, HDF5 or .npz",
        "Reads a file in D4RL's layout into a new folder, and says what the file did not tell. The new folder appears "
        "when it is complete.",
        ["gym-replay import d4rl halfcheetah_medium-v2.hdf5 data/cheetah --max-episode-steps 1000"],
    )
    parser.add_argument("source", metavar="SOURCE", help="the file")
    parser.add_argument("folder", metavar="FOLDER", help="the new folder")
    parser.add_argument(
        "--max-episode-steps", type=int, metavar="N", help="how long an episode is at most, where the file has no ends"
    )


def run_memmap(args: argparse.Namespace) -> int:
    """Read the folder."""
    from gym_replay.interop.memmap_replay_buffer import from_memmap_replay_buffer

    return _show(args, from_memmap_replay_buffer(args.source, args.folder, state_fields=args.state_fields))


def run_d4rl(args: argparse.Namespace) -> int:
    """Read the file."""
    from gym_replay.interop.d4rl import from_d4rl

    return _show(args, from_d4rl(args.source, args.folder, max_episode_steps=args.max_episode_steps))


def _show(args: argparse.Namespace, report: ImportReport) -> int:
    if args.json:
        names = ("num_episodes", "num_steps", "not_known", "left_out", "doubtful")
        output.write_json({"path": report.folder, **{name: getattr(report, name) for name in names}})
    else:
        for line in str(report).splitlines():
            print(*output.wrapped(line), sep="\n")
    return 0

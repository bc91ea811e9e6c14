"""Minari datasets on the command line."""

from __future__ import annotations

import argparse
from typing import Any

from gym_replay.cli.formats import add_format
from gym_replay.cli.options import shows_bars
from gym_replay.cli.output import write_json
from gym_replay.errors import printable


def add_export(formats: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the format to ``gym-replay export``."""
    parser = add_format(
        formats,
        "minari",
        run_export,
        "a Minari dataset",
        "Writes a folder as a Minari dataset below MINARI_DATASETS_PATH (by default ~/.minari/datasets), without a "
        "change to any value. The dataset appears when it is complete.",
        [
            "gym-replay export minari data/cartpole cartpole/random-v0 --author me",
            "gym-replay export minari data/kitchen kitchen/demos-v0 --data-format arrow --drop-unsupported",
        ],
    )
    parser.add_argument("folder", metavar="FOLDER", help="the buffer's folder")
    parser.add_argument("dataset_id", metavar="DATASET_ID", help="such as cartpole/random-v0")
    parser.add_argument(
        "--data-format", choices=("hdf5", "arrow", "parquet"), default="hdf5", help="of Minari's (hdf5)"
    )
    parser.add_argument("--jpeg", action="store_true", help="keep images as JPEG, which is smaller and changes them")
    for name in ("author", "author-email"):
        parser.add_argument(f"--{name}", action="append", metavar="TEXT", help="may be given several times")
    for name in ("algorithm-name", "code-permalink", "description"):
        parser.add_argument(f"--{name}", metavar="TEXT", help="about the dataset")
    parser.add_argument("--requirements", nargs="+", metavar="REQUIREMENT", help="what to install for the environment")
    parser.add_argument("--eval-env", metavar="ENV_ID", help="the environment to evaluate in, where it is another one")


def add_import(formats: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the format to ``gym-replay import``."""
    parser = add_format(
        formats,
        "minari",
        run_import,
        "a Minari dataset",
        "Reads a Minari dataset of this machine into a new folder; nothing is downloaded. The folder appears when it "
        "is complete.",
        ["gym-replay import minari D4RL/door/human-v2 data/door"],
    )
    parser.add_argument("dataset_id", metavar="DATASET_ID", help="such as D4RL/door/human-v2")
    parser.add_argument("folder", metavar="FOLDER", help="the new folder")


def run_export(args: argparse.Namespace) -> int:
    """Write the dataset."""
    from gym_replay.interop.minari import export_minari

    dataset = export_minari(
        args.folder,
        args.dataset_id,
        data_format=args.data_format,
        on_unsupported=args.on_unsupported,
        jpeg_encoding=args.jpeg,
        author=None if args.author is None else set(args.author),
        author_email=None if args.author_email is None else set(args.author_email),
        algorithm_name=args.algorithm_name,
        code_permalink=args.code_permalink,
        description=args.description,
        requirements=args.requirements,
        eval_env=args.eval_env,
        progress=shows_bars(args),
    )
    _show(
        args,
        {
            "dataset_id": dataset.id,
            "path": str(dataset.storage.data_path.parent),
            "num_episodes": int(dataset.total_episodes),
            "num_steps": int(dataset.total_steps),
        },
    )
    return 0


def run_import(args: argparse.Namespace) -> int:
    """Read the dataset."""
    from gym_replay.interop.minari import import_minari

    with import_minari(
        args.dataset_id, args.folder, on_unsupported=args.on_unsupported, progress=shows_bars(args)
    ) as buffer:
        _show(
            args,
            {
                "dataset_id": args.dataset_id,
                "path": str(buffer.folder),
                "num_episodes": buffer.num_episodes,
                "num_steps": buffer.num_steps,
            },
        )
    return 0


def _show(args: argparse.Namespace, made: dict[str, Any]) -> None:
    if args.json:
        write_json(made)
    else:
        print(printable(f"{made['path']}: {made['num_episodes']} episodes, {made['num_steps']} steps"))

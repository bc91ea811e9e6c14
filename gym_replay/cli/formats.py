"""``gym-replay export`` and ``gym-replay import``: the formats of other packages."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gym_replay.cli import output
from gym_replay.cli.verbs import CODEC, NEW_FOLDER, Option, json_object, keywords, option, shows_bars, verb
from gym_replay.errors import FieldError

if TYPE_CHECKING:
    from gym_replay.interop.lerobot import ExportReport
    from gym_replay.interop.old_data import ImportReport

_DROP_UNSUPPORTED = option(
    "--drop-unsupported",
    action="store_const",
    dest="on_unsupported",
    const="drop",
    default="error",
    help="leave out what the target cannot hold, and list it, instead of an error",
)


@verb(
    "export minari",
    "a Minari dataset",
    "Writes a folder as a Minari dataset below MINARI_DATASETS_PATH (by default ~/.minari/datasets), without a change "
    "to any value. The dataset appears when it is complete.",
    [
        "gym-replay export minari data/cartpole cartpole/random-v0 --author me",
        "gym-replay export minari data/kitchen kitchen/demos-v0 --data-format arrow --drop-unsupported",
    ],
    option("folder", metavar="FOLDER", help="the buffer's folder"),
    option("dataset_id", metavar="DATASET_ID", help="such as cartpole/random-v0"),
    option("--data-format", choices=("hdf5", "arrow", "parquet"), default="hdf5", help="of Minari's (hdf5)"),
    option(
        "--jpeg",
        dest="jpeg_encoding",
        action="store_true",
        help="keep images as JPEG, which is smaller and changes them",
    ),
    option("--author", action="append", metavar="TEXT", help="may be given several times"),
    option("--author-email", action="append", metavar="TEXT", help="may be given several times"),
    option("--algorithm-name", metavar="TEXT", help="about the dataset"),
    option("--code-permalink", metavar="TEXT", help="about the dataset"),
    option("--description", metavar="TEXT", help="about the dataset"),
    option("--requirements", nargs="+", metavar="REQUIREMENT", help="what to install for the environment"),
    option("--eval-env", metavar="ENV_ID", help="the environment to evaluate in, where it is another one"),
    _DROP_UNSUPPORTED,
)
def export_minari(args: argparse.Namespace) -> int:
    """Write a Minari dataset."""
    from gym_replay.interop import minari

    about = keywords(args, "folder", "dataset_id", "author", "author_email")
    for name in ("author", "author_email"):
        about[name] = None if getattr(args, name) is None else set(getattr(args, name))
    dataset = minari.export_minari(args.folder, args.dataset_id, **about, progress=shows_bars(args))
    path, episodes, steps = dataset.storage.data_path.parent, dataset.total_episodes, dataset.total_steps
    return _show(args, {"dataset_id": dataset.id, "path": path, "num_episodes": episodes, "num_steps": steps})


@verb(
    "import minari",
    "a Minari dataset",
    "Reads a Minari dataset of this machine into a new folder; nothing is downloaded. The folder appears when it is "
    "complete.",
    ["gym-replay import minari D4RL/door/human-v2 data/door"],
    option("dataset_id", metavar="DATASET_ID", help="such as D4RL/door/human-v2"),
    NEW_FOLDER,
    _DROP_UNSUPPORTED,
)
def import_minari(args: argparse.Namespace) -> int:
    """Read a Minari dataset."""
    from gym_replay.interop import minari

    with minari.import_minari(
        args.dataset_id, args.folder, on_unsupported=args.on_unsupported, progress=shows_bars(args)
    ) as buffer:
        found = {"path": buffer.folder, "num_episodes": len(buffer), "num_steps": buffer.num_steps}
    return _show(args, {"dataset_id": args.dataset_id, **found})


_KEY = option(
    "--key",
    dest="keys",
    action="append",
    default=[],
    metavar="FIELD=KEY",
    help="another key for the feature of a field, such as observation.agent_pos=observation.state; FIELD= keeps the "
    "field from LeRobot; may be given several times",
)


@verb(
    "export lerobot",
    "a LeRobot dataset, of codebase version v3.0",
    "Writes a folder as a LeRobot dataset, and says what LeRobot does not see of it: that goes along, and an import "
    "finds it. The dataset appears when it is complete.",
    [
        'gym-replay export lerobot data/pusht data/pusht-lerobot --fps 10 --task "push the T onto the T"',
        "gym-replay export lerobot data/atari data/atari-lerobot --fps 15 --task play --no-video",
    ],
    option("folder", metavar="FOLDER", help="the buffer's folder"),
    option("target", metavar="DATASET", help="the new folder of the dataset"),
    option(
        "--fps", type=int, metavar="N", help="frames a second; needed unless the buffer came from a LeRobot dataset"
    ),
    option("--task", metavar="TEXT", help="what is done in all episodes; without it the meta field task"),
    option(
        "--no-video",
        dest="video",
        action="store_const",
        const=False,
        default=True,
        help="keep images in the tables, as PNG, without loss",
    ),
    option(
        "--encoder", type=json_object, metavar="JSON", help='of videos, such as \'{"codec": "libsvtav1", "crf": 30}\''
    ),
    option("--robot-type", metavar="WORD", help="about the dataset"),
    _KEY,
    option(
        "--element-names",
        action="append",
        default=[],
        metavar="FIELD=NAME,NAME,...",
        help="what the numbers of a field are called, such as action=pan.pos,gripper.pos; may be given several times",
    ),
)
def export_lerobot(args: argparse.Namespace) -> int:
    """Write a LeRobot dataset."""
    from gym_replay.interop import lerobot

    given = keywords(args, "folder", "target", "keys", "element_names", "encoder", "video")
    video = args.encoder if args.encoder is not None and args.video else args.video
    keys = _parsed_keys(args.keys)
    report = lerobot.export_lerobot(
        args.folder,
        args.target,
        **given,
        keys=keys,
        element_names=_parsed_names(args.element_names),
        video=video,
        progress=shows_bars(args),
    )
    return _show_report(args, report, "num_episodes", "num_frames", "features", "unseen", "changed")


def _parsed_keys(given: list[str]) -> dict[str, str | None]:
    keys: dict[str, str | None] = {}
    for text in given:
        field, equals, key = text.partition("=")
        if not equals:
            raise FieldError(f"--key {text!r:.80}: expected FIELD=KEY, or FIELD= to keep the field from LeRobot")
        keys[field] = key or None
    return keys


def _parsed_names(given: list[str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for text in given:
        field, equals, listed = text.partition("=")
        if not equals:
            raise FieldError(f"--element-names {text!r:.80}: expected FIELD=NAME,NAME,...")
        names[field] = listed.split(",")
    return names


def _show(args: argparse.Namespace, made: dict[str, Any]) -> int:
    return output.show(args, made, [f"{made['path']}: {made['num_episodes']} episodes, {made['num_steps']} steps"])


def _show_report(args: argparse.Namespace, report: ImportReport | ExportReport, *names: str) -> int:
    document = {"path": report.folder, **{name: getattr(report, name) for name in names}}
    return output.show(args, document, (part for line in str(report).splitlines() for part in output.wrapped(line)))


def _importer(
    name: str, what: str, function: str, source: Option, example: str, *options: Option, has_bar: bool = False
) -> None:
    """Declare the verb of a function that reads what another package wrote, and reports.

    Args:
        name: of the format.
        what: a source is.
        function: ``"module:name"`` below ``gym_replay.interop``.
        source: the option of the source.
        example: of the words behind the verb.
        options: beside the source and the new folder: keywords of the function.
        has_bar: whether the function shows a bar.
    """

    def read(args: argparse.Namespace) -> int:
        module, _, reader = function.partition(":")
        given = keywords(args, "source", "folder") | ({"progress": shows_bars(args)} if has_bar else {})
        report = getattr(import_module(f"gym_replay.interop.{module}"), reader)(args.source, args.folder, **given)
        return _show_report(args, report, "num_episodes", "num_steps", "not_known", "left_out", "doubtful")

    description = f"Reads {what} into a new folder, which appears when it is complete, and says what was not told."
    examples = [f"gym-replay import {name} {example}"]
    verb(f"import {name}", what, description, examples, source, NEW_FOLDER, *options)(read)


_importer(
    "lerobot",
    "a LeRobot dataset, of codebase version v3.0 or v2.1",
    "lerobot:import_lerobot",
    option("source", metavar="DATASET", help="the dataset's folder, with meta/info.json in it; nothing is downloaded"),
    "~/.cache/huggingface/lerobot/lerobot/pusht data/pusht --codec images=png",
    CODEC,
    has_bar=True,
)
_FILE = option("source", metavar="SOURCE", help="the file")
_importer(
    "memmap-replay-buffer",
    "a folder of the package memmap-replay-buffer",
    "memmap_replay_buffer:from_memmap_replay_buffer",
    option("source", metavar="SOURCE", help="the folder of memmap-replay-buffer, whose pickle runs no code"),
    "old/cheetah data/cheetah --state-fields state",
    option("--state-fields", nargs="+", default=(), metavar="FIELD", help="the fields that hold observations"),
)
_importer(
    "d4rl",
    "a file in D4RL's layout, HDF5 or .npz",
    "d4rl:from_d4rl",
    _FILE,
    "halfcheetah_medium-v2.hdf5 data/cheetah --max-episode-steps 1000",
    option(
        "--max-episode-steps", type=int, metavar="N", help="how long an episode is at most, where the file has no ends"
    ),
)
_importer(
    "robomimic",
    "a data set of robomimic, HDF5",
    "robomimic:from_robomimic",
    _FILE,
    "lift/ph/low_dim.hdf5 data/lift --filter-key train",
    option("--filter-key", metavar="NAME", help="take only the demonstrations that mask/NAME of the file names"),
)
_importer(
    "rlds",
    "an RLDS data set of TensorFlow Datasets",
    "rlds:from_rlds",
    option("source", metavar="DATASET", help="the folder of one version, with features.json in it"),
    "~/tensorflow_datasets/bridge/1.0.0 data/bridge --split train",
    option("--split", metavar="NAME", help="take only this one"),
    CODEC,
    has_bar=True,
)
_importer(
    "ogbench",
    "a file of OGBench, .npz",
    "ogbench:from_ogbench",
    _FILE,
    "~/.ogbench/data/antmaze-medium-navigate-v0.npz data/antmaze",
)

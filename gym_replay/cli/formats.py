"""``gym-replay export`` and ``gym-replay import``: the formats of other packages."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from gym_replay.cli import output
from gym_replay.cli.verbs import CODEC, NEW_FOLDER, json_object, keywords, option, shows_bars, verb
from gym_replay.errors import FieldError, printable

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
)
def export_lerobot(args: argparse.Namespace) -> int:
    """Write a LeRobot dataset."""
    from gym_replay.interop import lerobot

    given = keywords(args, "folder", "target", "keys", "encoder", "video")
    video = args.encoder if args.encoder is not None and args.video else args.video
    keys = _parsed_keys(args.keys)
    report = lerobot.export_lerobot(
        args.folder, args.target, **given, keys=keys, video=video, progress=shows_bars(args)
    )
    return _show_lines(args, report, "num_episodes", "num_frames", "features", "unseen", "changed")


def _parsed_keys(given: list[str]) -> dict[str, str | None]:
    keys: dict[str, str | None] = {}
    for text in given:
        field, equals, key = text.partition("=")
        if not equals:
            raise FieldError(f"--key {text!r:.80}: expected FIELD=KEY, or FIELD= to keep the field from LeRobot")
        keys[field] = key or None
    return keys


@verb(
    "import lerobot",
    "a LeRobot dataset, of codebase version v3.0 or v2.1",
    "Reads a LeRobot dataset of this machine into a new folder, videos frame by frame, and says what the dataset did "
    "not tell. Nothing is downloaded. The new folder appears when it is complete.",
    [
        "gym-replay import lerobot ~/.cache/huggingface/lerobot/lerobot/pusht data/pusht",
        "gym-replay import lerobot data/aloha-lerobot data/aloha --codec images=png",
    ],
    option("source", metavar="DATASET", help="the folder of the dataset, with meta/info.json in it"),
    NEW_FOLDER,
    CODEC,
)
def import_lerobot(args: argparse.Namespace) -> int:
    """Read a LeRobot dataset."""
    from gym_replay.interop import lerobot

    report = lerobot.import_lerobot(args.source, args.folder, codecs=args.codecs, progress=shows_bars(args))
    return _show_report(args, report)


def _show(args: argparse.Namespace, made: dict[str, Any]) -> int:
    if args.json:
        output.write_json(made)
    else:
        print(printable(f"{made['path']}: {made['num_episodes']} episodes, {made['num_steps']} steps"))
    return 0


@verb(
    "import memmap-replay-buffer",
    "a folder of the package memmap-replay-buffer",
    "Reads a folder of memmap-replay-buffer into a new folder, and says what the old one did not tell. Its pickle runs "
    "no code. The new folder appears when it is complete.",
    ["gym-replay import memmap-replay-buffer old/cheetah data/cheetah --state-fields state"],
    option("source", metavar="SOURCE", help="the folder of memmap-replay-buffer"),
    NEW_FOLDER,
    option("--state-fields", nargs="+", default=(), metavar="FIELD", help="the fields that hold observations"),
)
def import_memmap(args: argparse.Namespace) -> int:
    """Read a folder of memmap-replay-buffer."""
    from gym_replay.interop.memmap_replay_buffer import from_memmap_replay_buffer

    return _show_report(args, from_memmap_replay_buffer(args.source, args.folder, **keywords(args, "source", "folder")))


@verb(
    "import d4rl",
    "a file in D4RL's layout, HDF5 or .npz",
    "Reads a file in D4RL's layout into a new folder, and says what the file did not tell. The new folder appears when "
    "it is complete.",
    ["gym-replay import d4rl halfcheetah_medium-v2.hdf5 data/cheetah --max-episode-steps 1000"],
    option("source", metavar="SOURCE", help="the file"),
    NEW_FOLDER,
    option(
        "--max-episode-steps", type=int, metavar="N", help="how long an episode is at most, where the file has no ends"
    ),
)
def import_d4rl(args: argparse.Namespace) -> int:
    """Read a file in D4RL's layout."""
    from gym_replay.interop.d4rl import from_d4rl

    return _show_report(args, from_d4rl(args.source, args.folder, **keywords(args, "source", "folder")))


@verb(
    "import robomimic",
    "a data set of robomimic, HDF5",
    "Reads an HDF5 file of robomimic into a new folder, and says what the file did not tell. The new folder appears "
    "when it is complete.",
    ["gym-replay import robomimic lift/ph/low_dim.hdf5 data/lift --filter-key train"],
    option("source", metavar="SOURCE", help="the file"),
    NEW_FOLDER,
    option("--filter-key", metavar="NAME", help="take only the demonstrations that mask/NAME of the file names"),
)
def import_robomimic(args: argparse.Namespace) -> int:
    """Read a data set of robomimic."""
    from gym_replay.interop.robomimic import from_robomimic

    return _show_report(args, from_robomimic(args.source, args.folder, **keywords(args, "source", "folder")))


@verb(
    "import rlds",
    "an RLDS data set of TensorFlow Datasets",
    "Reads a data set that TensorFlow Datasets prepared into a new folder, without TensorFlow, and says what it did "
    "not tell. The new folder appears when it is complete.",
    ["gym-replay import rlds ~/tensorflow_datasets/bridge/1.0.0 data/bridge --split train"],
    option("source", metavar="DATASET", help="the folder of one version, with features.json in it"),
    NEW_FOLDER,
    option("--split", metavar="NAME", help="take only this one"),
    CODEC,
)
def import_rlds(args: argparse.Namespace) -> int:
    """Read an RLDS data set."""
    from gym_replay.interop.rlds import from_rlds

    report = from_rlds(args.source, args.folder, split=args.split, codecs=args.codecs, progress=shows_bars(args))
    return _show_report(args, report)


@verb(
    "import ogbench",
    "a file of OGBench, .npz",
    "Reads an .npz file of OGBench into a new folder, and says what the file did not tell. The new folder appears when "
    "it is complete.",
    ["gym-replay import ogbench ~/.ogbench/data/antmaze-medium-navigate-v0.npz data/antmaze"],
    option("source", metavar="SOURCE", help="the file"),
    NEW_FOLDER,
)
def import_ogbench(args: argparse.Namespace) -> int:
    """Read a file of OGBench."""
    from gym_replay.interop.ogbench import from_ogbench

    return _show_report(args, from_ogbench(args.source, args.folder))


def _show_report(args: argparse.Namespace, report: ImportReport) -> int:
    return _show_lines(args, report, "num_episodes", "num_steps", "not_known", "left_out", "doubtful")


def _show_lines(args: argparse.Namespace, report: ImportReport | ExportReport, *names: str) -> int:
    if args.json:
        output.write_json({"path": report.folder, **{name: getattr(report, name) for name in names}})
    else:
        for line in str(report).splitlines():
            print(*output.wrapped(line), sep="\n")
    return 0

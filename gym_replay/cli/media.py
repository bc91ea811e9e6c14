"""``gym-replay video``, ``sheet`` and ``plot``: episodes as files of video and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gym_replay.cli import output
from gym_replay.cli.verbs import (
    CHOICE,
    FIELDS,
    FOLDER,
    Option,
    import_modules,
    importing,
    keywords,
    opened,
    option,
    shows_bars,
    verb,
)

_EXTRA = "Needs the extra: pip install 'gym-replay[media]'."
_RENDERING = (
    option(
        "--render",
        action="store_true",
        help="play the episodes again and render them; imports and runs the recorded environment as installed here",
    ),
    importing(),
)
_REPLACE = option("--overwrite", action="store_true", help="replace a file that is there, once the new one is complete")


def _out(what: str) -> Option:
    return option("out", metavar="OUT", help=f"the new file, {what}")


@verb(
    "video",
    "make a video or a GIF of episodes",
    "Shows the episodes one after another: their image fields side by side, or, with --render, frames that the "
    f"recorded environment renders while it is played again. {_EXTRA}",
    [
        "gym-replay video data/pixels first.mp4 --episodes 0:5",
        "gym-replay video data/cartpole best.gif --where 'episode_return > 400' --render --strip",
    ],
    FOLDER,
    _out(".mp4 or .gif"),
    FIELDS,
    option("--fps", type=float, metavar="N", help="frames a second (as recorded, or 30)"),
    option("--strip", action="store_true", help="show step, reward and return so far below the frames"),
    *_RENDERING,
    _REPLACE,
    *CHOICE,
)
def video(args: argparse.Namespace) -> int:
    """Make the video."""
    from gym_replay.viewing.video import video as make_video

    return _make(args, make_video, progress=shows_bars(args))


@verb(
    "sheet",
    "put frames of episodes on one picture",
    "Makes a contact sheet: a row for each episode, with frames at equal distances from its first to its last. Without "
    f"a choice, up to 20 episodes. {_EXTRA}",
    [
        "gym-replay sheet data/pixels sheet.png",
        "gym-replay sheet data/cartpole sheet.png --episodes 0:5 --render --columns 6",
    ],
    FOLDER,
    _out(".png or .jpg"),
    FIELDS,
    option("--columns", type=int, default=8, metavar="N", help="frames of each episode (8)"),
    option("--height", type=int, default=96, metavar="PIXELS", help="height of a frame (96)"),
    *_RENDERING,
    _REPLACE,
    *CHOICE,
)
def sheet(args: argparse.Namespace) -> int:
    """Make the contact sheet."""
    from gym_replay.viewing.sheet import contact_sheet

    return _make(args, contact_sheet)


@verb(
    "plot",
    "plot returns, lengths, and ranges of actions and observations",
    "Plots the returns and lengths of the episodes over time, and the range of each element of the actions and "
    f"observations. {_EXTRA}",
    ["gym-replay plot data/cartpole cartpole.png", "gym-replay plot data/ant ant.svg --where 'not truncated'"],
    FOLDER,
    _out(".png, .svg or .pdf"),
    _REPLACE,
    *CHOICE,
)
def plot(args: argparse.Namespace) -> int:
    """Make the plot."""
    from gym_replay.viewing.plots import plot as make_plot

    return _make(args, make_plot, progress=shows_bars(args))


def _make(args: argparse.Namespace, make: Callable[..., Path], **options: Any) -> int:
    import_modules(getattr(args, "modules", ()))
    with opened(args) as (buffer, chosen):
        given = keywords(args, "folder", "out", "modules", "where", "episodes")
        path = make(buffer, args.out, episodes=chosen, **given, **options)
    size = path.stat().st_size
    document = {"folder": args.folder, "path": path, "bytes": size}
    return output.show(args, document, [f"{args.out}: {output.nbytes(size)}"])

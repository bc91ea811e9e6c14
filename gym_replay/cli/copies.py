"""What the verbs that copy share: their options, and what they say at the end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gym_replay.cli import output
from gym_replay.errors import printable
from gym_replay.files.folders import bytes_beneath

if TYPE_CHECKING:
    from gym_replay.buffer.replay_buffer import ReplayBuffer


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a buffer that is there, once the new one is complete"
    )


def show_made(made: Sequence[ReplayBuffer], *, as_json: bool) -> None:
    """Say which buffers there are now."""
    found = [(str(buffer.folder), len(buffer), buffer.num_steps, bytes_beneath(buffer.folder)) for buffer in made]
    for buffer in made:
        buffer.close()
    if as_json:
        names = ("folder", "num_episodes", "num_steps", "bytes")
        output.write_json({"buffers": [dict(zip(names, one, strict=True)) for one in found]})
        return
    for folder, episodes, steps, size in found:
        print(f"{printable(folder)}: {episodes} episodes, {steps} steps, {output.nbytes(size)}")

"""video: episodes as a file of video, or as a GIF."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gym_replay.buffer.concat import opened
from gym_replay.buffer.reading import Readable
from gym_replay.errors import FieldError
from gym_replay.extras import require
from gym_replay.files.new_file import new_file
from gym_replay.files.video import VideoWriter, find_av
from gym_replay.notices import bar
from gym_replay.schema.arguments import checked_number
from gym_replay.schema.pictures import Rgb
from gym_replay.viewing.episodes import recorded_rate
from gym_replay.viewing.film import EXTRA, Film, scaled, side_by_side, target_of
from gym_replay.viewing.strip import Strip

if TYPE_CHECKING:
    from gym_replay.buffer.loading.selection import Episodes

_SMALL = 160
"""Frames of a lower height are enlarged, by a whole number."""

_GIF_RATE = 50
"""Frames a second, at most: browsers slow faster ones down."""

_GIF_BYTES = 1 << 30
"""Pixels of a GIF, at most, which are all in memory until it is written."""

_CODECS = {"libx264": {"crf": 18}, "libopenh264": {"b": 8_000_000}, "mpeg4": {"b": 8_000_000}}
"""Encoders, the best one first, and their options."""


def video(
    source: str | os.PathLike[str] | Readable,
    path: str | os.PathLike[str],
    *,
    episodes: Episodes | None = None,
    fields: Sequence[str] | None = None,
    fps: float | None = None,
    render: bool = False,
    strip: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Make a file of video of episodes, one after another: recorded frames, or rendered ones.

    An episode of T transitions has T+1 frames where its last observation is there, else T. The pictures of several
    fields are side by side, at the height of the largest one.

    Args:
        source: a buffer, or the folder of one, a folder of such folders, or a pattern.
        path: the new file, ``.mp4`` or ``.gif``.
        episodes: which episodes, as for the loaders; None for all.
        fields: names of image fields; None for all.
        fps: frames a second; None for the rate at which the first episode was recorded, where that was between 1 and
            120, and else 30. A GIF has whole hundredths of a second a frame, and at least two.
        render: play the episodes again and render them, as :func:`~gym_replay.replay` does. This imports and runs the
            recorded environment as it is installed here, and nothing of the folder.
        strip: show the step, the reward and the return so far below the frames.
        overwrite: replace a file that is there.
        progress: show a bar where it takes longer than a second.

    Returns:
        The file. It is written beside its place, and renamed when it is complete.

    Raises:
        EmptyBufferError: no episode is chosen.
        FieldError: a field is unknown or no image, no field is one and ``render`` is False, or another argument is
            wrong.
        IndexError: there is no such episode.
        MissingExtraError: the extra ``media`` is not installed.
        EpisodeStateError: with ``render``, an episode does not replay equal.
        MakeEnvError: with ``render``, the environment cannot be made here.
        StorageError: there is a file already, or the operating system refused.

    Example:
        >>> video("data/cartpole", "first.mp4", episodes=slice(0, 5), render=True, strip=True)  # doctest: +SKIP
    """
    from gym_replay.interop.transitions import ChosenEpisodes

    target = target_of(path, (".mp4", ".gif"))
    rate = None if fps is None else checked_number("fps", fps, 1000)
    if rate == 0:
        raise FieldError("fps: expected a number above 0, got 0")
    with opened(source) as buffer:
        film = Film(buffer, ChosenEpisodes(buffer, episodes), fields, render=render)
        rate = recorded_rate(film.episodes[0]) if rate is None else rate
        count = sum(film.count(film.episodes[at]) for at in range(len(film.episodes)))
        write = _write_gif if target.suffix.lower() == ".gif" else _write_mp4
        with new_file(target, overwrite=overwrite) as made, bar(count, "video", "frame", progress=progress) as shown:
            write(made, _told(_frames(film, strip), shown), rate, count)
    return target


def _told(frames: Iterator[Rgb], shown: Any) -> Iterator[Rgb]:
    for frame in frames:
        yield frame
        shown.update()


def _frames(film: Film, strip: bool) -> Iterator[Rgb]:
    """The frames of all episodes, all of the size of the first one."""
    size: tuple[int, int] | None = None
    for at in range(len(film.episodes)):
        episode = film.episodes[at]
        below: Strip | None = None
        for t, pictures in enumerate(film.pictures(episode, range(film.count(episode)))):
            if size is None:
                tallest = max(picture.shape[0] for picture in pictures)
                height = tallest * -(-_SMALL // tallest)
                size = height, side_by_side(pictures, height).shape[1]
            frame = scaled(side_by_side(pictures, size[0]), *size)
            if strip:
                below = below or Strip(episode, int(film.episodes.indices[at]), size[1])
                frame = below.below(frame, t)
            yield frame


def _write_mp4(path: Path, frames: Iterator[Rgb], rate: float, count: int) -> None:
    known = find_av(EXTRA).codecs_available
    codec = next(name for name in _CODECS if name in known)
    exact = Fraction(rate).limit_denominator(1001)
    with closing(VideoWriter(path, codec=codec, rate=exact, options=_CODECS[codec], extra=EXTRA)) as film:
        for picture in frames:  # with even sides, so that every player shows them
            sides = [(0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)]
            film.add(np.pad(picture, sides, mode="edge"))


def _write_gif(path: Path, frames: Iterator[Rgb], rate: float, count: int) -> None:
    pillow = require("PIL.Image", EXTRA, "a GIF")
    first = next(frames)
    if count * first.shape[0] * first.shape[1] > _GIF_BYTES:
        raise FieldError(
            f"{count} frames of {first.shape[1]}x{first.shape[0]} pixels are too many for a GIF; choose fewer "
            "episodes, or make an .mp4"
        )
    duration = 10 * max(round(100 / rate), 100 // _GIF_RATE)
    images: Iterator[Any] = (pillow.fromarray(frame) for frame in frames)
    pillow.fromarray(first).save(path, "GIF", save_all=True, append_images=images, duration=duration, loop=0)

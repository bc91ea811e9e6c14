"""contact_sheet: evenly spaced frames of episodes on one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gym_replay.buffer.concat import opened
from gym_replay.buffer.episode import Episode
from gym_replay.buffer.reading import Readable
from gym_replay.errors import FieldError
from gym_replay.extras import require
from gym_replay.files.new_file import new_file
from gym_replay.schema.arguments import checked_integer
from gym_replay.schema.pictures import Rgb
from gym_replay.viewing.episodes import end_of
from gym_replay.viewing.film import EXTRA, Film, font, rewards_of, scaled, target_of
from gym_replay.viewing.text import counted, number

if TYPE_CHECKING:
    from gym_replay.buffer.loading.selection import Episodes

_FEW = 20
"""How many episodes are on a sheet where nobody says which."""

_MOST_PIXELS = 100_000_000
_GAP, _LINE = 4, 20
_BACK, _TEXT = (232, 234, 238), (40, 44, 52)


def contact_sheet(
    source: str | os.PathLike[str] | Readable,
    path: str | os.PathLike[str],
    *,
    episodes: Episodes | None = None,
    fields: Sequence[str] | None = None,
    columns: int = 8,
    height: int = 96,
    render: bool = False,
    overwrite: bool = False,
) -> Path:
    """Put evenly spaced frames of episodes on one picture: a row for each episode, and in it one for each field.

    Args:
        source: a buffer, or the folder of one, a folder of such folders, or a pattern.
        path: the new file, ``.png`` or ``.jpg``.
        episodes: which episodes, as for the loaders; None for all, or, where there are more than 20, for 20 evenly
            spaced ones.
        fields: names of image fields; None for all.
        columns: frames of each episode; the first and the last are among them.
        height: of a frame, in pixels.
        render: play the episodes again and render them, as :func:`~gym_replay.replay` does. This imports and runs the
            recorded environment as it is installed here, and nothing of the folder.
        overwrite: replace a file that is there.

    Returns:
        The file. It is written beside its place, and renamed when it is complete.

    Raises:
        EmptyBufferError: no episode is chosen.
        FieldError: a field is unknown or no image, no field is one and ``render`` is False, the picture would be too
            large, or another argument is wrong.
        IndexError: there is no such episode.
        MissingExtraError: the extra ``media`` is not installed.
        EpisodeStateError: with ``render``, an episode does not replay equal.
        MakeEnvError: with ``render``, the environment cannot be made here.
        StorageError: there is a file already, or the operating system refused.

    Example:
        >>> contact_sheet("data/pixels", "sheet.png", episodes="episode_return > 300")  # doctest: +SKIP
    """
    from gym_replay.interop.transitions import ChosenEpisodes

    target = target_of(path, (".png", ".jpg", ".jpeg"))
    columns, height = checked_integer("columns", columns, 1, 1001), checked_integer("height", height, 16, 4001)
    pillow = require("PIL.Image", EXTRA, "a contact sheet")
    with opened(source) as buffer:
        chosen = ChosenEpisodes(buffer, episodes)
        total = len(chosen)
        if episodes is None and total > _FEW:
            chosen = ChosenEpisodes(buffer, np.linspace(0, total - 1, _FEW).astype(np.int64))
        film = Film(buffer, chosen, fields, render=render)
        rows: list[Rgb] = []
        with new_file(target, overwrite=overwrite) as made:
            for at in range(len(chosen)):
                episode = chosen[at]
                rows.append(_line(_said_of(episode, int(chosen.indices[at]))))
                rows += _rows_of(film, episode, columns, height)
            head = counted(total, "episode")
            head = f"{len(chosen)} of {head}" if len(chosen) < total else head
            sheet = _stacked([_line(head), *rows])
            pillow.fromarray(sheet).save(made, "PNG" if target.suffix.lower() == ".png" else "JPEG")
    return target


def _said_of(episode: Episode, index: int) -> str:
    rewards = rewards_of(episode)
    said = [f"episode {index}", counted(len(episode), "step")]
    if rewards is not None:
        said.append(f"return {number(float(rewards.sum()))}")
    return "   ".join([*said, *filter(None, [end_of(episode)])])


def _rows_of(film: Film, episode: Episode, columns: int, height: int) -> list[Rgb]:
    """A row of frames for each camera."""
    wanted = np.unique(np.linspace(0, film.count(episode) - 1, columns).astype(np.int64)).tolist()
    moments: list[list[Rgb]] = []
    for pictures in film.pictures(episode, wanted):
        _require_size(pictures, height, len(wanted) * len(film.episodes))
        moments.append([scaled(picture, height) for picture in pictures])
    return [_beside(list(camera)) for camera in zip(*moments, strict=True)]


def _beside(pictures: list[Rgb]) -> Rgb:
    gap = np.full((pictures[0].shape[0], _GAP, 3), _BACK, np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, gap)], axis=1)


def _line(text: str) -> Rgb:
    """A line of text, as wide as it is."""
    drawing: Any = require("PIL.ImageDraw", EXTRA, "a contact sheet")
    pillow = require("PIL.Image", EXTRA, "a contact sheet")
    style = font(13)
    image = pillow.new("RGB", (int(style.getlength(text)) + 2 * _GAP, _LINE), _BACK)
    drawing.Draw(image).text((0, 2), text, fill=_TEXT, font=style)
    found: Rgb = np.asarray(image)
    return found


def _require_size(pictures: list[Rgb], height: int, moments: int) -> None:
    """Raise FieldError where a sheet of so many moments that look like this one would be too large."""
    pixels = moments * sum(height * height * picture.shape[1] / picture.shape[0] for picture in pictures)
    if pixels > _MOST_PIXELS:
        raise FieldError("the contact sheet would be too large; choose fewer episodes, fewer columns or a lower height")


def _stacked(rows: list[Rgb]) -> Rgb:
    width = max(row.shape[1] for row in rows) + _GAP
    sheet = np.full((sum(row.shape[0] + _GAP for row in rows) + _GAP, width + _GAP, 3), _BACK, np.uint8)
    top = _GAP
    for row in rows:
        sheet[top : top + row.shape[0], _GAP : _GAP + row.shape[1]] = row
        top += row.shape[0] + _GAP
    return sheet

"""Episodes as sequences of pictures, for files of video and contact sheets: from fields, or rendered anew."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.episode import Episode
from gym_replay.buffer.reading import Readable
from gym_replay.errors import FieldError
from gym_replay.extras import require
from gym_replay.files.folders import folder_of
from gym_replay.notices import did_you_mean
from gym_replay.schema.pictures import Rgb, image_fields, rendered_rgb
from gym_replay.viewing.curves import last_t
from gym_replay.viewing.frames import rgb_frame
from gym_replay.viewing.rendered import what_runs

if TYPE_CHECKING:
    from gym_replay.interop.transitions import ChosenEpisodes

EXTRA = "media"


class Film:
    """The pictures of a buffer's episodes, for each t those of every camera.

    Args:
        buffer: what the episodes are of.
        episodes: those that are shown, one or more.
        fields: names of image fields; None for all.
        render: whether the episodes are played again in the recorded environment, which renders them.

    Raises:
        FieldError: a field is unknown or no image, or there is none.
    """

    def __init__(
        self, buffer: Readable, episodes: ChosenEpisodes, fields: Sequence[str] | None, *, render: bool
    ) -> None:
        self._buffer, self.episodes, self._render = buffer, episodes, render
        self._names = [] if render else _checked_fields(buffer, episodes[0], fields)
        if render and fields is not None:
            raise FieldError("fields and render=True exclude one another: recorded frames, or rendered ones")

    def count(self, episode: Episode) -> int:
        """How many t there are pictures of."""
        return len(episode) + 1 if self._render else last_t(episode) + 1

    def pictures(self, episode: Episode, wanted: Sequence[int]) -> Iterator[list[Rgb]]:
        """The pictures of each wanted t, ascending, one of each camera.

        Raises:
            EpisodeStateError: rendered frames are asked for, and the episode does not replay equal.
            EpisodeEvictedError: the episode left the circular buffer meanwhile.
        """
        if self._render:
            yield from self._rendered(episode, wanted)
            return
        for t in wanted:
            yield [rgb_frame(episode, name, min(t, len(episode[name]) - 1)) for name in self._names]

    def _rendered(self, episode: Episode, wanted: Sequence[int]) -> Iterator[list[Rgb]]:
        from gym_replay.replaying.replay import replay

        left = set(wanted)
        for t, rendered in enumerate(replay(self._buffer, episode, render=True)):
            if t in left:
                yield [rendered_rgb(rendered)]
                left.remove(t)
            if not left:
                return


def _checked_fields(buffer: Readable, first: Episode, fields: Sequence[str] | None) -> list[str]:
    known = buffer.metadata.fields
    images = image_fields(known)
    if isinstance(fields, str):
        raise FieldError(f"fields: expected a list of names, got {fields!r}; [{fields!r}] is one")
    for name in fields or ():
        if name not in known:
            raise FieldError(f"fields: unknown name {name!r}{did_you_mean(name, images)}")
        if name not in images:
            raise FieldError(f"fields: the rows of {name!r} are no pictures, {known[name].dtype} {known[name].shape}")
    if fields is None and not images:
        raise FieldError(f"no field is an image; render=True plays the episodes again. {what_runs(first)[0]}")
    if fields is not None and not len(fields):
        raise FieldError("fields: expected one or more names, got none")
    return images if fields is None else list(fields)


def target_of(path: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """The absolute path of a file to be made.

    Raises:
        FieldError: its name ends in none of these suffixes.
    """
    target = folder_of(path)
    if target.suffix.lower() not in suffixes:
        raise FieldError(f"{target.name}: expected a name that ends in {' or '.join(suffixes)}")
    return target


def rewards_of(episode: Episode) -> npt.NDArray[np.float64] | None:
    """The rewards of an episode, float64 ``(T,)``; None where they are not one number each."""
    info = episode.snapshot.metadata.fields.get("reward")
    if info is None or info.ragged or info.dtype.kind not in "biuf" or info.shape not in ((), (1,)):
        return None
    rewards = np.asarray(episode["reward"], np.float64).reshape(-1)[: len(episode)]
    episode.snapshot.require_live(episode.id)
    return rewards


# --- pictures put together ---


def scaled(picture: Rgb, height: int, width: int | None = None) -> Rgb:
    """A picture at another height, and at the width that goes with it unless one is given; enlarged without smoothing.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    if width is None:
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    if picture.shape[:2] == (height, width):
        return picture
    pillow = require("PIL.Image", EXTRA, "scaled frames")
    method = pillow.Resampling.NEAREST if height >= picture.shape[0] else pillow.Resampling.BOX
    found: Rgb = np.asarray(pillow.fromarray(picture).resize((width, height), method))
    return found


def side_by_side(pictures: Sequence[Rgb], height: int) -> Rgb:
    """Pictures of one moment in a row, all of one height."""
    if len(pictures) == 1:
        return scaled(pictures[0], height)
    gap = np.zeros((height, 2, 3), np.uint8)
    parts: list[Rgb] = []
    for picture in pictures:
        parts += [scaled(picture, height), gap]
    return np.concatenate(parts[:-1], axis=1)


def font(size: int) -> Any:
    """Pillow's own font."""
    return require("PIL.ImageFont", EXTRA, "text beside frames").load_default(size)

"""Files of video: episodes one after another in each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gym_replay.errors import FieldError
from gym_replay.files.video import VideoWriter, find_av
from gym_replay.interop.lerobot.images import EXTRA
from gym_replay.interop.lerobot.layout import VIDEO_MB, VIDEOS, RollingFiles, megabytes
from gym_replay.schema.arrays import Array

VideoOptions = Mapping[str, Any]
"""``codec`` and ``pix_fmt``; all else are options of the encoder."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "libx264": {"crf": 23, "g": 2, "bf": 0, "preset": "veryfast"},
    "libsvtav1": {"crf": 30, "g": 2, "preset": 12},
}
"""By encoder. A key frame at every second frame, as LeRobot has it, makes single frames quick to find."""


def checked_options(video: bool | VideoOptions) -> dict[str, Any]:
    """The options of an encoder.

    Raises:
        FieldError: there is no such encoder here.
        MissingExtraError: PyAV is not installed.
    """
    known = find_av(EXTRA).codecs_available
    given = dict(video) if isinstance(video, Mapping) else {}
    codec = given.pop("codec", "libx264")
    if codec not in known:
        raise FieldError(f"video: there is no encoder {codec!r:.60} here; 'libx264' and 'libsvtav1' are the usual ones")
    return {"codec": codec, **_DEFAULTS.get(codec, {"g": 2}), **given}


class FilmRoll:
    """The files of video of one feature, on their way.

    Args:
        root: the folder of the dataset.
        key: of the feature.
        fps: frames a second.
        options: of :func:`checked_options`.
    """

    def __init__(self, root: Path, key: str, fps: int, options: Mapping[str, Any]) -> None:
        self._key, self._fps = key, fps
        others = {name: value for name, value in options.items() if name != "codec"}
        make = partial(VideoWriter, codec=options["codec"], rate=fps, options=others, extra=EXTRA)
        self._files = RollingFiles(root, VIDEOS, megabytes(VIDEO_MB), make, video_key=key)

    def begin(self) -> None:
        """Begin with an episode, in a new file where the present one is long enough."""
        self._film = self._files.begin()
        self._first = self._film.num_frames

    def add(self, pictures: Array) -> None:
        """Add frames, uint8 ``(frames, height, width, channels)``."""
        for picture in pictures:
            self._film.add(picture)

    def end(self) -> dict[str, Any]:
        """Where the episode is: the entries of its row in the table of episodes."""
        times = {"from_timestamp": self._first / self._fps, "to_timestamp": self._film.num_frames / self._fps}
        return {f"videos/{self._key}/{name}": value for name, value in {**self._files.place, **times}.items()}

    def close(self) -> None:
        """End the present file."""
        self._files.close()

    def about(self) -> dict[str, Any]:
        """What ``meta/info.json`` says of the files."""
        stream = self._film.stream
        return {
            "video.height": stream.codec_context.height,
            "video.width": stream.codec_context.width,
            "video.codec": stream.codec.canonical_name,
            "video.pix_fmt": stream.codec_context.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": self._fps,
            "video.channels": 3,
            "has_audio": False,
        }

"""Files of video: episodes one after another in each, encoded and decoded frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.extras import require
from gym_replay.interop.lerobot.images import EXTRA
from gym_replay.interop.lerobot.layout import FILES_IN_CHUNK, VIDEO_MB, VIDEOS, filled, megabytes
from gym_replay.schema.arrays import Array

VideoOptions = Mapping[str, Any]
"""``codec`` and ``pix_fmt``; all else are options of the encoder."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "libx264": {"crf": 23, "g": 2, "bf": 0, "preset": "veryfast"},
    "libsvtav1": {"crf": 30, "g": 2, "preset": 12},
}
"""By encoder. A key frame at every second frame, as LeRobot has it, makes single frames quick to find."""

_TOLERANCE = 1e-4
"""Seconds between a frame and the time at which it should be, at most, as LeRobot asks of its own datasets."""

_SLACK = 64
"""Pixels of a side by which an encoder fills up what it encodes."""


def find_av(what: str) -> Any:
    """The package PyAV.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("av", EXTRA, what)


def checked_options(video: bool | VideoOptions) -> dict[str, Any]:
    """The options of an encoder.

    Raises:
        FieldError: there is no such encoder here.
        MissingExtraError: PyAV is not installed.
    """
    av = find_av("a LeRobot dataset with videos")
    given = dict(video) if isinstance(video, Mapping) else {}
    codec = given.pop("codec", "libx264")
    if codec not in av.codecs_available:
        raise FieldError(f"video: there is no encoder {codec!r:.60} here; 'libx264' and 'libsvtav1' are the usual ones")
    return {"codec": codec, **_DEFAULTS.get(codec, {"g": 2}), **given}


def _pixel_format(codec: str, *, is_even: bool) -> str:
    """What frames are encoded in, of those that an encoder takes: 4:2:0 has one colour for two by two pixels."""
    known = [each.name for each in find_av("a video").Codec(codec, "w").video_formats or ()]
    wanted = ("yuv420p", "yuv444p", "rgb24", "gbrp") if is_even else ("yuv444p", "rgb24", "gbrp", "yuv420p")
    return next((name for name in wanted if name in known), known[0] if known else wanted[0])


class FilmRoll:
    """The files of video of one feature, on their way.

    Args:
        root: the folder of the dataset.
        key: of the feature.
        fps: frames a second.
        options: of :func:`checked_options`.
    """

    def __init__(self, root: Path, key: str, fps: int, options: Mapping[str, Any]) -> None:
        self._root, self._key, self._fps = root, key, fps
        self._options = dict(options)
        self._codec = self._options.pop("codec")
        self._pix_fmt = self._options.pop("pix_fmt", None)
        self._file = -1
        self._container: Any = None
        self._stream: Any = None
        self._frames = self._first = self._nbytes = 0

    def begin(self) -> None:
        """Begin with an episode, in a new file where the present one is long enough."""
        if self._container is not None and self._nbytes >= megabytes(VIDEO_MB):
            self.close()
        if self._container is None:
            self._open()
        self._first = self._frames

    @property
    def _path(self) -> Path:
        chunk, file = divmod(self._file, FILES_IN_CHUNK)
        return self._root / filled(VIDEOS, video_key=self._key, chunk_index=chunk, file_index=file)

    def _open(self) -> None:
        self._file += 1
        self._frames = self._nbytes = 0
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = find_av("a video").open(str(self._path), "w", format="mp4")
        options = {name: str(value) for name, value in self._options.items()}
        self._stream = self._container.add_stream(self._codec, rate=self._fps, options=options)

    def add(self, pictures: Array) -> None:
        """Add frames, uint8 ``(frames, height, width, channels)``."""
        av = find_av("a video")
        height, width = pictures.shape[1:3]
        if self._frames == 0:
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = self._pix_fmt or _pixel_format(self._codec, is_even=not (height % 2 or width % 2))
        for picture in pictures:
            rgb = np.broadcast_to(picture, (height, width, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame.pts, frame.time_base = self._frames, Fraction(1, self._fps)
            self._encode(frame)
            self._frames += 1

    def _encode(self, frame: Any = None) -> None:
        """Encode a frame, or what is left of those before, and write what comes of it."""
        av = find_av("a video")
        try:
            packets = self._stream.encode(frame)
        except (av.error.FFmpegError, ValueError) as error:
            raise FieldError(f"video: the encoder {self._codec!r} does not take its options: {error}") from error
        try:
            for packet in packets:
                self._nbytes += packet.size
                self._container.mux(packet)
        except av.error.FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def end(self) -> dict[str, Any]:
        """Where the episode is: the entries of its row in the table of episodes."""
        chunk, file = divmod(self._file, FILES_IN_CHUNK)
        return {
            f"videos/{self._key}/chunk_index": chunk,
            f"videos/{self._key}/file_index": file,
            f"videos/{self._key}/from_timestamp": self._first / self._fps,
            f"videos/{self._key}/to_timestamp": self._frames / self._fps,
        }

    def close(self) -> None:
        """End the present file."""
        if self._container is None:
            return
        try:
            if self._frames:
                self._encode()
        finally:
            container, self._container = self._container, None
            container.close()

    def about(self) -> dict[str, Any]:
        """What ``meta/info.json`` says of the files."""
        context = self._stream.codec_context
        return {
            "video.height": context.height,
            "video.width": context.width,
            "video.codec": self._codec_name(),
            "video.pix_fmt": context.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": self._fps,
            "video.channels": 3,
            "has_audio": False,
        }

    def _codec_name(self) -> str:
        name: str = self._stream.codec.canonical_name
        return name


class FilmReader:
    """The frames of one feature, episode by episode as they lie in files of video.

    Args:
        shape: of the images: height, width and 1, 3 or 4 channels.

    Attributes:
        num_late: frames that were further from their time than LeRobot lets them be, and still the nearest ones.

    Raises:
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._av = find_av("a LeRobot dataset with videos")
        self._shape = shape
        self._path: Path | None = None
        self._container: Any = None
        self._frames: Iterator[tuple[float, Any]] = iter(())
        self._frame: tuple[float, Any] | None = None  # the present one, and the next one
        self._ahead: tuple[float, Any] | None = None
        self.num_late = 0

    def take(self, path: Path, times: Sequence[float], fps: float) -> Array:
        """The frames of a file at these ascending times in seconds: uint8 ``(len(times), height, width, channels)``.

        Each one is the nearest, and less than half a frame away.

        Raises:
            CorruptBufferError: the file is damaged, is of another size, or has no frame at one of the times.
        """
        rows = np.empty((len(times), *self._shape), np.uint8)
        try:
            is_behind = self._frame is not None and len(times) and times[0] < self._frame[0] - 0.5 / fps
            if path != self._path or is_behind:
                self._open(path)
            for row, time in zip(rows, times, strict=True):
                row[...] = self._at(time, 0.5 / fps)
        except (self._av.error.FFmpegError, OSError, ValueError, EOFError) as error:
            if isinstance(error, CorruptBufferError):
                raise CorruptBufferError(f"{path}: {error}") from None
            raise CorruptBufferError(f"{path}: the video cannot be decoded: {error}") from None
        return rows

    def _open(self, path: Path) -> None:
        self.close()
        self._container = self._av.open(str(path), "r")
        self._path = path
        if not self._container.streams.video:
            raise CorruptBufferError("there is no video in it")
        stream = self._container.streams.video[0]
        height, width = self._shape[:2]
        if (stream.height, stream.width) != (height, width):
            raise CorruptBufferError(
                f"expected a video of {width}x{height} pixels, got one of {stream.width}x{stream.height}"
            )
        stream.codec_context.options = {"max_pixels": str((height + _SLACK) * (width + _SLACK))}
        stream.thread_type = "AUTO"
        self._frames = self._decoded(stream)
        self._ahead = next(self._frames, None)

    def _decoded(self, stream: Any) -> Iterator[tuple[float, Any]]:
        for frame in self._container.decode(stream):
            if frame.pts is not None:
                yield float(frame.pts * frame.time_base), frame

    def _at(self, time: float, tolerance: float) -> Array:
        while self._ahead is not None and (
            self._frame is None or abs(self._ahead[0] - time) < abs(self._frame[0] - time)
        ):
            self._frame, self._ahead = self._ahead, next(self._frames, None)
        if self._frame is None or abs(self._frame[0] - time) > tolerance:
            raise CorruptBufferError(f"there is no frame at {time:.4f} s")
        found, frame = self._frame
        self.num_late += abs(found - time) > _TOLERANCE
        height, width, channels = self._shape
        if (frame.height, frame.width) != (height, width):
            raise CorruptBufferError(f"the frame at {time:.4f} s has {frame.width}x{frame.height} pixels")
        pixels: Array = frame.to_ndarray(format="rgba" if channels == 4 else "rgb24")
        return pixels[..., :channels]

    def close(self) -> None:
        """Close the present file."""
        self._frames, self._frame, self._ahead, self._path = iter(()), None, None, None
        container, self._container = self._container, None
        if container is not None:
            with suppress(Exception):
                container.close()

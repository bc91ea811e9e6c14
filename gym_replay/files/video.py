"""Files of video: frames encoded one after another, and decoded as they lie in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.extras import require
from gym_replay.schema.arrays import Array

_TOLERANCE = 1e-4
"""Seconds between a frame and the time at which it should be, at most, as LeRobot asks of its own datasets."""

_SLACK = 64
"""Pixels of a side by which an encoder fills up what it encodes."""


def find_av(extra: str) -> Any:
    """The package PyAV.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("av", extra, "a video")


class VideoWriter:
    """A new file of video, in MP4, whose index comes first, so that it can be played while it is fetched.

    Args:
        path: of the file.
        codec: the name of an encoder of FFmpeg's.
        rate: frames a second.
        options: of the encoder; ``pix_fmt`` is what frames are encoded in.
        extra: the extra of this package that brings PyAV.

    Attributes:
        stream: PyAV's, with what the encoder says of itself.
        num_frames: how many were added.

    Raises:
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, path: Path, *, codec: str, rate: int | Fraction, options: Mapping[str, Any], extra: str) -> None:
        self._av, self._path, self._codec = find_av(extra), path, codec
        self._tick = 1 / Fraction(rate)
        self._pix_fmt = options.get("pix_fmt")
        self._container = self._av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        given = {name: str(value) for name, value in options.items() if name != "pix_fmt"}
        self.stream = self._container.add_stream(codec, rate=rate, options=given)
        self.num_frames = 0

    def add(self, picture: Array) -> None:
        """Add a frame, uint8 ``(height, width, 1 or 3)``, of the size of the first one.

        Raises:
            FieldError: the encoder does not take its options.
            OSError: the operating system refused.
        """
        height, width = picture.shape[:2]
        if self.num_frames == 0:
            self.stream.width, self.stream.height = width, height
            self.stream.pix_fmt = self._pix_fmt or self._pixel_format(is_even=not (height % 2 or width % 2))
        rgb = np.ascontiguousarray(np.broadcast_to(picture, (height, width, 3)))
        frame = self._av.VideoFrame.from_ndarray(rgb, format="rgb24")
        frame.pts, frame.time_base = self.num_frames, self._tick
        self._encode(frame)
        self.num_frames += 1

    def _pixel_format(self, *, is_even: bool) -> str:
        """What frames are encoded in, of those that an encoder takes: 4:2:0 has one colour for two by two pixels."""
        known = [each.name for each in self._av.Codec(self._codec, "w").video_formats or ()]
        wanted = ("yuv420p", "yuv444p", "rgb24", "gbrp") if is_even else ("yuv444p", "rgb24", "gbrp", "yuv420p")
        return next((name for name in wanted if name in known), known[0] if known else wanted[0])

    def _encode(self, frame: Any = None) -> None:
        """Encode a frame, or what is left of those before, and write what comes of it."""
        try:
            packets = self.stream.encode(frame)
        except (self._av.error.FFmpegError, ValueError) as error:
            raise FieldError(f"video: the encoder {self._codec!r} does not take its options: {error}") from error
        try:
            self._container.mux(packets)
        except self._av.error.FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def close(self) -> None:
        """End the file."""
        try:
            if self.num_frames:
                self._encode()
        finally:
            self._container.close()


class VideoReader:
    """Frames of files of video, in the order of their times.

    Args:
        shape: of the images: height, width and 1, 3 or 4 channels.
        extra: the extra of this package that brings PyAV.

    Attributes:
        num_late: frames that were more than 0.1 ms from their time, and still the nearest ones.

    Raises:
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, shape: tuple[int, ...], extra: str) -> None:
        self._av = find_av(extra)
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

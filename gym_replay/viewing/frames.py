"""Frames of an episode: which fields are images, one frame as an RGB array, and as the bytes that a browser shows."""

from __future__ import annotations

import html
import io
import textwrap
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.episode import Episode
from gym_replay.errors import MissingExtraError
from gym_replay.schema.fields import Field

Rgb = npt.NDArray[np.uint8]

_LEAST_SIDE = 16
_MOST_CHANNELS = 4
_MOST_STACKED = 16
_LOSSLESS_PIXELS = 40_000
"""Frames of up to so many pixels are shown bit for bit; larger ones as JPEG, which is several times as fast."""

_LARGEST_SIDE = 1600
CACHE_BYTES = 64 << 20


def image_fields(fields: Mapping[str, Field]) -> list[str]:
    """The names of the fields whose rows can be shown as pictures, in their order.

    Rows are pictures where they have two sides of 16 or more numbers, with 1, 3 or 4 channels before or behind them or
    without, in a stack of up to 16 such pictures or alone; bytes, flags, or floats.
    """
    return [name for name, info in fields.items() if is_image(info)]


def is_image(info: Field) -> bool:
    """Whether the rows of a field can be shown as pictures."""
    if (
        info.ragged
        or info.is_text
        or info.dtype.name not in ("uint8", "uint16", "bool", "float16", "float32", "float64")
    ):
        return False
    return _layout(info.shape) is not None


class _Layout(NamedTuple):
    """How the axes of a row are those of a picture.

    Attributes:
        stacked: whether the first axis is one over pictures.
        channels: 0 where there is no axis of channels, 1 where it is the first of a picture, 2 where it is the last.
    """

    stacked: bool
    channels: int


def _layout(shape: tuple[int, ...]) -> _Layout | None:
    found = _plain_layout(shape)
    if found is not None:
        return _Layout(False, found)
    if len(shape) in (3, 4) and 1 <= shape[0] <= _MOST_STACKED:
        found = _plain_layout(shape[1:])
    return None if found is None else _Layout(True, found)


def _plain_layout(shape: tuple[int, ...]) -> int | None:
    if len(shape) == 2 and min(shape) >= _LEAST_SIDE:
        return 0
    if len(shape) != 3:
        return None
    if shape[2] in (1, 3, _MOST_CHANNELS) and min(shape[:2]) >= _LEAST_SIDE:
        return 2
    if shape[0] in (1, 3) and min(shape[1:]) >= _LEAST_SIDE:
        return 1
    return None


def to_rgb(row: npt.NDArray[Any]) -> Rgb:
    """A row of an image field as a picture, uint8 ``(height, width, 3)``.

    Of a stack the newest picture is taken, the last one. Four channels are RGBA where the last one is opaque
    everywhere, else four grey pictures. Numbers other than bytes are spread from their least to their largest; floats
    from 0 to 1 are taken as they are.

    Raises:
        ValueError: the row has another shape than pictures have.
    """
    row = np.asarray(row)
    layout = _layout(row.shape)
    if layout is None:
        raise ValueError(f"a row of shape {row.shape} is no picture")
    picture = row[-1] if layout.stacked else row
    if layout.channels == 1:
        picture = np.moveaxis(picture, 0, -1)
    if layout.channels and picture.shape[-1] == _MOST_CHANNELS:
        opaque = picture.dtype == np.uint8 and bool((picture[..., 3] == 255).all())
        picture = picture[..., :3] if opaque else picture[..., 3:]
    if layout.channels == 0:
        picture = picture[..., None]
    return np.ascontiguousarray(np.broadcast_to(_as_bytes(picture), (*picture.shape[:2], 3)))


def _as_bytes(picture: npt.NDArray[Any]) -> Rgb:
    if picture.dtype == np.uint8:
        return picture
    if picture.dtype == np.bool_:
        flags: Rgb = picture.astype(np.uint8) * np.uint8(255)
        return flags
    values = np.nan_to_num(picture.astype(np.float64), nan=0.0)
    low, high = float(values.min()), float(values.max())
    if picture.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled: Rgb = np.round((values - low) * (255 / (high - low if high > low else 1))).astype(np.uint8)
    return scaled


def rgb_frame(episode: Episode, name: str, t: int) -> Rgb:
    """Row t of an image field as a picture, uint8 ``(height, width, 3)``, copied.

    Raises:
        IndexError: the episode has no such row.
        EpisodeEvictedError: it left the circular buffer meanwhile.
    """
    rows = episode[name]
    if not 0 <= t < len(rows):
        raise IndexError(f"{name}: there are {len(rows)} rows, none is {t}")
    picture: Rgb = to_rgb(rows[t]).copy()
    episode.snapshot.require_live(episode.id)
    return picture


def encode(picture: Rgb) -> tuple[bytes, str]:
    """A picture as bytes that a browser shows, and their media type.

    Small pictures are PNG, bit for bit; larger ones JPEG; what is larger than a screen is made smaller.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    image_module = find_pillow()
    step = -(-max(picture.shape[:2]) // _LARGEST_SIDE)
    image = image_module.fromarray(np.ascontiguousarray(picture[::step, ::step]))
    out = io.BytesIO()
    if image.width * image.height <= _LOSSLESS_PIXELS:
        image.save(out, "PNG", compress_level=1)
        return out.getvalue(), "image/png"
    image.save(out, "JPEG", quality=88)
    return out.getvalue(), "image/jpeg"


def written(text: str) -> bytes:
    """A picture, as SVG, that says why there is no frame."""
    lines = textwrap.wrap(text, 60)[:8]
    spans = "".join(f'<tspan x="20" dy="22">{html.escape(line)}</tspan>' for line in lines)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 320" font-family="sans-serif" font-size="14" '
        f'fill="#8b8f98"><text y="60">{spans}</text></svg>'
    ).encode()


def find_pillow() -> Any:
    """The module ``PIL.Image``.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(f"frames need Pillow ({error}); pip install 'gym-replay[view]'") from error
    return Image


Encoded = tuple[bytes, str]


class FrameCache:
    """Encoded frames by key, those that were asked for last, of a bounded size. Any thread may ask.

    Args:
        limit: bytes, of all frames together.

    Example:
        >>> cache = FrameCache()
        >>> cache.get("a", lambda: (b"...", "image/png"))
        (b'...', 'image/png')
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit, self._bytes = limit, 0
        self._frames: OrderedDict[Hashable, Encoded] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Encoded]) -> Encoded:
        """The frame of a key; it is made where it is not there."""
        with self._lock:
            if key in self._frames:
                self._frames.move_to_end(key)
                return self._frames[key]
        frame = make()
        with self._lock:
            if key not in self._frames:
                self._frames[key] = frame
                self._bytes += len(frame[0])
            while self._bytes > self._limit and len(self._frames) > 1:
                _, (dropped, _) = self._frames.popitem(last=False)
                self._bytes -= len(dropped)
        return frame

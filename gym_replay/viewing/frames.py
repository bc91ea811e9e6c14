"""Frames of an episode: one as an RGB array, and as the bytes that a browser shows."""

from __future__ import annotations

import html
import io
import textwrap
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from gym_replay.buffer.episode import Episode
from gym_replay.errors import MissingExtraError
from gym_replay.schema.pictures import Rgb, to_rgb

_LOSSLESS_PIXELS = 40_000
"""Frames of up to so many pixels are shown bit for bit; larger ones as JPEG, which is several times as fast."""

_LARGEST_SIDE = 1600
CACHE_BYTES = 64 << 20


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

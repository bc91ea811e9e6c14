"""Frames of an episode: one as an RGB array, and as the bytes that a browser shows."""

from __future__ import annotations

import html
import io
import textwrap

import numpy as np

from gym_replay.buffer.episode import Episode
from gym_replay.extras import require
from gym_replay.schema.pictures import Rgb, to_rgb

_LOSSLESS_PIXELS = 40_000
"""Frames of up to so many pixels are shown bit for bit; larger ones as JPEG, which is several times as fast."""

_LARGEST_SIDE = 1600
EXTRA = "view"

Encoded = tuple[bytes, str]
"""A picture as bytes, and their media type."""


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


def encode(picture: Rgb) -> Encoded:
    """A picture as bytes that a browser shows, and their media type.

    Small pictures are PNG, bit for bit; larger ones JPEG; what is larger than a screen is made smaller.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    image_module = require("PIL.Image", EXTRA, "frames")
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

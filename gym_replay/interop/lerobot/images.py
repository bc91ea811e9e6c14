"""Images in the tables of a dataset: PNG, encoded and decoded by Pillow as LeRobot's own code does it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from gym_replay.extras import require
from gym_replay.interop.encoded_images import pixels_of
from gym_replay.schema.arrays import Array

EXTRA = "lerobot"


def find_pillow() -> Any:
    """Pillow's module of images.

    Raises:
        MissingExtraError: it is not installed.
    """
    return require("PIL.Image", EXTRA, "a LeRobot dataset with images")


def to_png(row: Array) -> bytes:
    """An image, uint8 ``(height, width, 1, 3 or 4)``, as PNG."""
    pixels = row[..., 0] if row.shape[2] == 1 else row
    file = io.BytesIO()
    find_pillow().fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def from_bytes(content: Any, shape: tuple[int, ...]) -> Array:
    """The pixels of an encoded image, uint8 of a known shape ``(height, width, channels)``.

    Raises:
        CorruptBufferError: it is no image, or one of another size; nothing of another size is decoded.
    """
    return pixels_of(find_pillow(), content, shape)

"""Images in the tables of a dataset: PNG, encoded and decoded by Pillow as LeRobot's own code does it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from gym_replay.errors import CorruptBufferError
from gym_replay.extras import require
from gym_replay.schema.arrays import Array

EXTRA = "lerobot"

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


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
    if not isinstance(content, bytes):
        raise CorruptBufferError(f"expected the bytes of an image, got {content!r:.60}; paths are not followed")
    try:
        with find_pillow().open(io.BytesIO(content)) as image:
            if image.size != (shape[1], shape[0]):
                raise CorruptBufferError(f"expected an image of {shape[1]}x{shape[0]} pixels, got {image.size}")
            if image.mode.startswith(("I", "F")):
                raise CorruptBufferError(f"expected an image of 8 bits a channel, got one of mode {image.mode}")
            pixels = np.asarray(image.convert(_MODES[shape[2]]))
    except CorruptBufferError:
        raise
    except Exception as error:  # Pillow raises many kinds of a damaged file
        raise CorruptBufferError(f"an image cannot be decoded: {error}") from None
    return pixels.reshape(shape)
